//! Small files in a data directory that say how things stand: JSON, with a version and a checksum that builds before those pass over.
//!
//! Behind the JSON come a line break and 48 blanks, of which a space is a 0 and a tab a 1: the version in 16 bits, and the CRC-32C of
//! all before it in 32. JSON ignores blanks behind a value, also behind an array, which could take no further field. What those
//! builds wrote ends with the JSON, and is read as it is.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crc_fast::crc32_iscsi as crc32c;
use serde::Serialize;
use serde::de::DeserializeOwned;

const VERSION: u16 = 1;
const VERSION_BITS: usize = 16;
const CHECKSUM_BITS: usize = 32;

#[derive(Debug, thiserror::Error)]
#[error("the file '{file}' in {folder} {problem}")]
pub struct StateFileError {
    file: &'static str,
    folder: String,
    #[source]
    pub(crate) problem: Problem,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("is damaged: {0}")]
    Damaged(String),
    #[error("has version {0}, and this build knows {VERSION}: a newer one wrote it")]
    Newer(u16),
    #[error("cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

impl StateFileError {
    pub(crate) fn new(file: &'static str, folder: &Path, problem: impl Into<Problem>) -> Self {
        Self { file, folder: folder.display().to_string(), problem: problem.into() }
    }
}

/// `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(file: &'static str, folder: &Path) -> Result<Option<T>, StateFileError> {
    let parsed = match std::fs::read(folder.join(file)) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error.into()),
    };
    parsed.map(Some).map_err(|problem| StateFileError::new(file, folder, problem))
}

/// Replaces what is there, durably.
pub(crate) fn write<T: Serialize>(file: &'static str, folder: &Path, value: &T) -> Result<(), StateFileError> {
    let bytes = encode(serde_json::to_vec(value).expect("numbers and names are JSON"), VERSION);
    let put = || -> io::Result<()> {
        let temporary = folder.join(format!("{file}.new"));
        let mut new = File::create(&temporary)?;
        new.write_all(&bytes)?;
        new.sync_all()?;
        std::fs::rename(&temporary, folder.join(file))?;
        File::open(folder)?.sync_all()
    };
    put().map_err(|error| StateFileError::new(file, folder, error))
}

/// Durably. That there is none is no error.
pub(crate) fn remove(file: &'static str, folder: &Path) -> Result<(), StateFileError> {
    let removed = match std::fs::remove_file(folder.join(file)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => File::open(folder).and_then(|folder| folder.sync_all()),
    };
    removed.map_err(|error| StateFileError::new(file, folder, error))
}

/// Whether a build before checksums wrote the file that is there.
pub(crate) fn is_unchecked(file: &'static str, folder: &Path) -> bool {
    std::fs::read(folder.join(file)).is_ok_and(|bytes| ends_with_json(&bytes))
}

fn ends_with_json(bytes: &[u8]) -> bool {
    bytes.last().is_none_or(|last| !last.is_ascii_whitespace())
}

fn encode(mut bytes: Vec<u8>, version: u16) -> Vec<u8> {
    bytes.push(b'\n');
    push_blanks(&mut bytes, version.into(), VERSION_BITS);
    let checksum = crc32c(&bytes);
    push_blanks(&mut bytes, checksum, CHECKSUM_BITS);
    bytes
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let json = if ends_with_json(bytes) { bytes } else { checked(bytes)? };
    serde_json::from_slice(json).map_err(|error| Problem::Damaged(error.to_string()))
}

/// The JSON in front of the blanks.
fn checked(bytes: &[u8]) -> Result<&[u8], Problem> {
    let damaged = || Problem::Damaged("its checksum is wrong".to_owned());
    let (rest, checksum) = bytes.split_last_chunk::<CHECKSUM_BITS>().ok_or_else(damaged)?;
    let (json, version) = rest.split_last_chunk::<VERSION_BITS>().ok_or_else(damaged)?;
    if number(checksum) != Some(crc32c(rest)) {
        return Err(damaged());
    }
    match number(version) {
        Some(version) if version <= VERSION.into() => Ok(json),
        Some(version) => Err(Problem::Newer(version as u16)),
        None => Err(damaged()),
    }
}

fn push_blanks(bytes: &mut Vec<u8>, number: u32, bits: usize) {
    bytes.extend((0..bits).rev().map(|bit| if number >> bit & 1 == 0 { b' ' } else { b'\t' }));
}

fn number(blanks: &[u8]) -> Option<u32> {
    blanks.iter().try_fold(0, |number, blank| match blank {
        b' ' => Some(number << 1),
        b'\t' => Some(number << 1 | 1),
        _ => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fmt::Debug;

    use super::*;

    /// Turns each bit of a file, and cuts it at each length: `read` has to call it damaged. Only a cut that leaves all of the JSON leaves what
    /// a build before checksums would have written: that has to be the same. What is read once more in the end is whole.
    pub(crate) fn check_damage<T: PartialEq + Debug>(
        file: &'static str,
        folder: &Path,
        read: impl Fn() -> Result<T, StateFileError>,
    ) {
        let whole = std::fs::read(folder.join(file)).expect("it is there");
        let value = read().expect("it is whole");
        let read_of = |bytes: &[u8]| {
            std::fs::write(folder.join(file), bytes).expect("written");
            read()
        };
        let is_damage = |found: &Result<T, StateFileError>| {
            matches!(found, Err(StateFileError { problem: Problem::Damaged(_), .. }))
        };
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = read_of(&bytes);
            assert!(is_damage(&found), "bit {bit} of {file}: {found:?}");
        }
        let json = whole.len() - CHECKSUM_BITS - VERSION_BITS - 1;
        for length in 0..whole.len() {
            match read_of(&whole[..length]) {
                Ok(found) => assert_eq!((length, &found), (json, &value)),
                found => assert!(is_damage(&found), "{length} bytes of {file}: {found:?}"),
            }
        }
        assert_eq!(read_of(&whole).expect("it is whole"), value);
    }

    #[test]
    fn golden_bytes_of_version_1_which_are_json_to_the_build_before() {
        let bytes = encode(b"[3,9]".to_vec(), VERSION);
        let (version, checksum) = ("               1", " 11 11   1 1  11111  11 11111   ");
        assert_eq!(
            String::from_utf8(bytes.clone()).expect("text").replace('\t', "1"),
            format!("[3,9]\n{version}{checksum}")
        );
        assert_eq!(serde_json::from_slice::<Vec<u64>>(&bytes).expect("JSON"), [3, 9]);
        assert_eq!(parse::<Vec<u64>>(&bytes).expect("whole"), [3, 9]);
        assert_eq!(parse::<Vec<u64>>(b"[3,9]").expect("from the build before"), [3, 9]);
    }

    #[test]
    fn a_newer_version_is_refused_and_named() {
        let found = parse::<Vec<u64>>(&encode(b"[3,9]".to_vec(), 2));
        assert!(matches!(found, Err(Problem::Newer(2))), "{found:?}");
    }

    #[test]
    fn a_file_is_replaced_and_removed_and_says_whether_it_is_checked() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        assert!(read::<Vec<u64>>("x", folder).expect("none").is_none() && !is_unchecked("x", folder));
        std::fs::write(folder.join("x"), b"[1]").expect("written");
        assert_eq!((read("x", folder).expect("readable"), is_unchecked("x", folder)), (Some(vec![1_u64]), true));
        write("x", folder, &[2_u64]).expect("written");
        assert_eq!((read("x", folder).expect("readable"), is_unchecked("x", folder)), (Some(vec![2_u64]), false));
        for _ in 0..2 {
            remove("x", folder).expect("removed");
            assert!(!folder.join("x").exists());
        }
        let missing = write("x", &folder.join("gone"), &[2_u64]).expect_err("no folder");
        assert!(matches!(missing.problem, Problem::Io(_)), "{missing}");
    }
}
