//! SQLite's statements. Those over many rows come in a few fixed sizes, so that their compiled forms stay cached.

use std::sync::LazyLock;

pub(super) const GET: &str = "SELECT version, value FROM records WHERE key = ?1";

/// Ends of ranges are bytes that need not be UTF-8; the cast keeps them as they are.
pub(super) const SCAN_FROM: &str = "SELECT key, version, value FROM records \
     WHERE key >= ?1 AND key < CAST(?2 AS TEXT) ORDER BY key LIMIT ?3";
pub(super) const SCAN_AFTER: &str = "SELECT key, version, value FROM records \
     WHERE key > ?1 AND key < CAST(?2 AS TEXT) ORDER BY key LIMIT ?3";
pub(super) const VERSIONS_UNDER: &str = "SELECT key, version FROM records \
     WHERE key >= ?1 AND key < CAST(?2 AS TEXT) ORDER BY key LIMIT ?3";
/// Greater than every UTF-8 text.
pub(super) const BEYOND_ALL_KEYS: &[u8] = &[0xff];

pub(super) const LAST_VERSION: &str = "SELECT version FROM last_commit WHERE id = 1";
pub(super) const SET_LAST_VERSION: &str = "UPDATE last_commit SET version = ?1 WHERE id = 1";

/// Binds the name and the number of ids; answers the id after them.
pub(super) const ALLOCATE: &str = "INSERT INTO sequences (name, next) VALUES (?1, 1 + ?2) \
     ON CONFLICT (name) DO UPDATE SET next = next + ?2 RETURNING next";

/// Rows per statement, largest first.
const SIZES: [usize; 3] = [64, 8, 1];

/// The next id of a sequence, if it has given any.
pub(super) const NEXT_OF: &str = "SELECT next FROM sequences WHERE name = ?";

/// One statement per size in [`SIZES`].
pub(super) struct Sized {
    texts: LazyLock<[String; SIZES.len()]>,
}

pub(super) static VERSIONS: Sized =
    Sized::new(|| SIZES.map(|size| format!("SELECT key, version FROM records WHERE key IN ({})", repeat("?", size))));

pub(super) static PUT: Sized = Sized::new(|| {
    SIZES.map(|size| {
        format!(
            "INSERT INTO records (key, version, value) VALUES {} ON CONFLICT (key) DO UPDATE \
             SET version = excluded.version, value = excluded.value",
            repeat("(?, ?, ?)", size)
        )
    })
});

pub(super) static DELETE: Sized =
    Sized::new(|| SIZES.map(|size| format!("DELETE FROM records WHERE key IN ({})", repeat("?", size))));

fn repeat(item: &str, count: usize) -> String {
    vec![item; count].join(", ")
}

impl Sized {
    const fn new(texts: fn() -> [String; SIZES.len()]) -> Self {
        Sized { texts: LazyLock::new(texts) }
    }

    /// Cuts rows into pieces, each with the statement for its size.
    pub fn pieces<'a, T>(&'static self, rows: &'a [T]) -> impl Iterator<Item = (&'static str, &'a [T])> {
        let mut rest = rows;
        std::iter::from_fn(move || {
            let index = SIZES.iter().position(|size| *size <= rest.len())?;
            let (piece, after) = rest.split_at(SIZES[index]);
            rest = after;
            Some((self.texts[index].as_str(), piece))
        })
    }
}
