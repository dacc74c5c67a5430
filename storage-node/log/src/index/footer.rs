//! The index of a sealed segment, after its records: a section with the runs of each ledger, then the directory.
//! docs/formats.md has the layout.

use crc_fast::crc32_iscsi as crc32c;

use super::{OpenIndex, Run, Runs, SegmentLedger};
use crate::format::{BLOCK_BYTES, u32_at, u64_at};
use crate::planted::{Bug, is_planted};
use crate::replica::{EXPLICIT_LAC_BYTES_MAX, ExplicitLac, MasterKey};

const DIRECTORY_HEAD_BYTES: usize = 16;
const ROW_BYTES: usize = 56;
const HOLE_BYTES: usize = 16;
const RUN_BYTES_MAX: usize = 24;
const FENCED: u32 = 1;
const DELETED: u32 = 2;
const KEYED: u32 = 4;
const CONFIRMED: u32 = 8;
/// Key, explicit last add confirmed and the length of its body.
const REPLICA_BYTES_MAX: usize = size_of::<MasterKey>() + 8 + 1 + EXPLICIT_LAC_BYTES_MAX;

/// Bytes of a segment that no record could be read from, though they were durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    pub offset: u64,
    pub bytes: u64,
}

/// What the directory says of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub ledger: u64,
    /// In the segment file; no bytes if the segment has no entry of the ledger.
    pub section_at: u32,
    pub section_bytes: u32,
    /// Of the entries here; `first > last` if there is none.
    pub first: u64,
    pub last: u64,
    pub bytes: u64,
    pub fence: Option<u64>,
    pub deleted: bool,
    pub key: Option<MasterKey>,
    pub explicit_lac: Option<ExplicitLac>,
}

impl Row {
    /// Whether there is more than a tombstone.
    pub fn holds_something(&self) -> bool {
        self.first <= self.last || self.fence.is_some() || self.key.is_some() || self.explicit_lac.is_some()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// The last manifest in the segment; 0 if there is none.
    pub manifest_at: u64,
    pub rows: Vec<Row>,
    pub holes: Vec<Hole>,
}

pub struct Footer {
    pub sections: Vec<u8>,
    pub directory: Directory,
    pub directory_bytes: Vec<u8>,
}

pub fn bytes_max(ledgers: usize, runs: usize) -> u64 {
    (2 * BLOCK_BYTES + DIRECTORY_HEAD_BYTES + ledgers * (ROW_BYTES + REPLICA_BYTES_MAX + 8) + runs * RUN_BYTES_MAX)
        as u64
}

/// Sections begin at `at`. Ledgers come in the order of their ids, so that the same index gives the same bytes.
pub fn build(index: &OpenIndex, at: u64, manifest_at: u64, holes: &[Hole]) -> Footer {
    let mut ledgers: Vec<(&u64, &SegmentLedger)> = index.ledgers().iter().collect();
    ledgers.sort_unstable_by_key(|(ledger, _)| **ledger);
    let mut sections = Vec::new();
    let rows = ledgers.into_iter().map(|(&ledger, content)| {
        let section_at = sections.len();
        if !content.runs.as_slice().is_empty() {
            encode_section(&content.runs, &mut sections);
        }
        Row {
            ledger,
            section_at: (at as usize + section_at) as u32,
            section_bytes: (sections.len() - section_at) as u32,
            first: content.runs.first().unwrap_or(1),
            last: content.runs.last().unwrap_or(0),
            bytes: content.bytes,
            fence: content.fence,
            deleted: content.deleted,
            key: content.key,
            explicit_lac: content.explicit_lac,
        }
    });
    let directory = Directory { manifest_at, rows: rows.collect(), holes: holes.to_vec() };
    let directory_bytes = encode_directory(&directory);
    Footer { sections, directory, directory_bytes }
}

fn encode_directory(directory: &Directory) -> Vec<u8> {
    let length = DIRECTORY_HEAD_BYTES + directory.rows.len() * ROW_BYTES + directory.holes.len() * HOLE_BYTES;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((directory.rows.len() as u32).to_le_bytes());
    bytes.extend((directory.holes.len() as u32).to_le_bytes());
    bytes.extend(directory.manifest_at.to_le_bytes());
    for row in &directory.rows {
        let flags = u32::from(row.fence.is_some()) * FENCED
            + u32::from(row.deleted) * DELETED
            + u32::from(row.key.is_some()) * KEYED
            + u32::from(row.explicit_lac.is_some()) * CONFIRMED;
        bytes.extend(row.ledger.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(row.section_bytes.to_le_bytes());
        bytes.extend(u64::from(row.section_at).to_le_bytes());
        bytes.extend(row.first.to_le_bytes());
        bytes.extend(row.last.to_le_bytes());
        bytes.extend(row.bytes.to_le_bytes());
        bytes.extend(row.fence.unwrap_or(0).to_le_bytes());
    }
    for hole in &directory.holes {
        bytes.extend(hole.offset.to_le_bytes());
        bytes.extend(hole.bytes.to_le_bytes());
    }
    for row in &directory.rows {
        bytes.extend(row.key.iter().flatten());
        if let Some(lac) = &row.explicit_lac {
            bytes.extend(lac.last_add_confirmed.to_le_bytes());
            bytes.push(lac.body().len() as u8);
            bytes.extend(lac.body());
        }
    }
    bytes
}

/// `None` if the bytes are no directory; their checksum is the caller's business.
pub fn decode_directory(bytes: &[u8]) -> Option<Directory> {
    let head = bytes.get(..DIRECTORY_HEAD_BYTES)?;
    let (rows, holes) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
    let row_bytes = bytes.get(DIRECTORY_HEAD_BYTES..)?.get(..rows.checked_mul(ROW_BYTES)?)?;
    let hole_bytes = bytes.get(DIRECTORY_HEAD_BYTES + row_bytes.len()..)?.get(..holes.checked_mul(HOLE_BYTES)?)?;
    let row = |row: &[u8]| {
        let flags = u32_at(row, 8);
        Row {
            ledger: u64_at(row, 0),
            section_bytes: u32_at(row, 12),
            section_at: u64_at(row, 16) as u32,
            first: u64_at(row, 24),
            last: u64_at(row, 32),
            bytes: u64_at(row, 40),
            fence: (flags & FENCED != 0).then(|| u64_at(row, 48)),
            deleted: flags & DELETED != 0,
            key: None,
            explicit_lac: None,
        }
    };
    let mut rows: Vec<Row> = row_bytes.chunks_exact(ROW_BYTES).map(row).collect();
    let mut rest = &bytes[DIRECTORY_HEAD_BYTES + row_bytes.len() + hole_bytes.len()..];
    for (row, encoded) in rows.iter_mut().zip(row_bytes.chunks_exact(ROW_BYTES)) {
        let flags = u32_at(encoded, 8);
        if flags & KEYED != 0 {
            row.key = Some(*take(&mut rest, size_of::<MasterKey>())?.first_chunk()?);
        }
        if flags & CONFIRMED != 0 {
            let confirmed = u64_at(take(&mut rest, 8)?, 0) as i64;
            let length = usize::from(take(&mut rest, 1)?[0]);
            row.explicit_lac = Some(ExplicitLac::new(confirmed, take(&mut rest, length)?)?);
        }
    }
    Some(Directory {
        manifest_at: u64_at(head, 8),
        rows,
        holes: hole_bytes
            .chunks_exact(HOLE_BYTES)
            .map(|b| Hole { offset: u64_at(b, 0), bytes: u64_at(b, 8) })
            .collect(),
    })
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

/// Checksum, then per run, as variable-length integers relative to the run before: entries skipped (zigzag), count,
/// offset (zigzag) and span in units of eight bytes.
fn encode_section(runs: &Runs, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend([0; 4]);
    let mut before = Run { first: 0, count: 0, offset: 0, span: 0 };
    for run in runs.as_slice() {
        put_varint(bytes, zigzag(run.first.wrapping_sub(before.end()) as i64));
        put_varint(bytes, u64::from(run.count));
        put_varint(bytes, zigzag((i64::from(run.offset) - i64::from(before.offset)) / 8));
        put_varint(bytes, u64::from(run.span) / 8);
        before = *run;
    }
    let crc = crc32c(&bytes[start + 4..]);
    bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// `None` if the section is damaged.
pub fn decode_section(bytes: &[u8]) -> Option<Runs> {
    let mut rest = bytes.get(4..)?;
    if crc32c(rest) != u32_at(bytes, 0) && !is_planted(Bug::IndexUnchecked) {
        return None;
    }
    let mut runs = Vec::with_capacity(rest.len() / 5);
    let mut before = Run { first: 0, count: 0, offset: 0, span: 0 };
    while !rest.is_empty() {
        let first = before.end().wrapping_add(unzigzag(take_varint(&mut rest)?) as u64);
        let count = u32::try_from(take_varint(&mut rest)?).ok()?;
        let distance = unzigzag(take_varint(&mut rest)?).checked_mul(8)?;
        let offset = i64::from(before.offset).checked_add(distance)?;
        let span = u32::try_from(take_varint(&mut rest)?.checked_mul(8)?).ok()?;
        before = Run { first, count, offset: u32::try_from(offset).ok()?, span };
        if runs.last().is_some_and(|last: &Run| last.first > first) || count == 0 {
            return None;
        }
        runs.push(before);
    }
    Some(Runs::from_sorted(runs))
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Whatever the bytes are: what is taken for a directory or, with a right checksum, a section, is written the same again.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(data: &[u8]) {
    if let Some(directory) = decode_directory(data) {
        assert_eq!(decode_directory(&encode_directory(&directory)), Some(directory));
    }
    let mut section = crc32c(data).to_le_bytes().to_vec();
    section.extend(data);
    if let Some(runs) = decode_section(&section) {
        let mut again = Vec::new();
        encode_section(&runs, &mut again);
        let (last, first) = (runs.last(), runs.first());
        assert!(runs.as_slice().iter().all(|run| runs.from(run.first).is_some() || run.first == u64::MAX));
        assert_eq!(decode_section(&again), Some(runs), "{first:?} to {last:?}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_run() -> impl Strategy<Value = Run> {
        (any::<u64>(), 1..1000_u32, 0..1_u32 << 29, 4..1_u32 << 25).prop_map(|(first, count, offset, span)| Run {
            first,
            count,
            offset: offset * 8,
            span: span * 8,
        })
    }

    #[test]
    fn a_directory_of_version_1_is_read() {
        let hex = include_str!("../../golden/footer.v1.hex").split_whitespace().last().expect("a directory");
        let digits = hex.as_bytes().chunks(2);
        let bytes: Vec<u8> =
            digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
        let directory = decode_directory(&bytes).expect("it is sound");
        assert_eq!(directory.rows.iter().map(|row| row.ledger).collect::<Vec<_>>(), [7, 8, 9]);
        assert!(directory.rows.iter().all(|row| row.key.is_none() && row.explicit_lac.is_none()));
        assert_eq!(directory.holes, [Hole { offset: 8368, bytes: 24 }]);
    }

    /// Found by fuzzing.
    #[test]
    fn an_offset_beyond_all_numbers_is_damage() {
        let mut runs = Vec::new();
        for value in [0, 1, zigzag(1), 8, 0, 1, zigzag(i64::MAX / 8), 8] {
            put_varint(&mut runs, value);
        }
        let section = [&crc32c(&runs).to_le_bytes()[..], &runs].concat();
        assert_eq!(decode_section(&section), None);
    }

    #[test]
    fn golden_bytes_of_version_2() {
        let mut index = OpenIndex::default();
        index.add_run(7, Run::one(0, 8224, 64), 64);
        index.add_run(7, Run::one(1, 8288, 40), 40);
        index.add_run(7, Run::one(9, 8328, 40), 40);
        index.ledger_mut(8).fence = Some(5);
        index.ledger_mut(9).deleted = true;
        index.ledger_mut(10).key = Some([0x4b; 20]);
        index.ledger_mut(11).explicit_lac = ExplicitLac::new(258, b"lac");
        let footer = build(&index, 12288, 8192, &[Hole { offset: 8368, bytes: 24 }]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let golden = include_str!("../../golden/footer.hex").split_whitespace();
        assert!(
            golden.eq([hex(&footer.sections), hex(&footer.directory_bytes)]),
            "{} {}",
            hex(&footer.sections),
            hex(&footer.directory_bytes)
        );
    }

    proptest! {
        #[test]
        fn sections_and_directories_round_trip(
            mut runs in prop::collection::vec(any_run(), 1..50),
            fence: Option<u64>,
            deleted: bool,
            key: Option<MasterKey>,
            lac: Option<(i64, [u8; 20])>,
        ) {
            runs.sort_by_key(|run| run.first);
            let mut index = OpenIndex::default();
            let ledger = index.ledger_mut(7);
            let explicit_lac = lac.and_then(|(lac, body)| ExplicitLac::new(lac, &body));
            *ledger = SegmentLedger { runs: Runs::from_sorted(runs), bytes: 99, fence, deleted, key, explicit_lac };
            let content = ledger.clone();
            let holes = [Hole { offset: 8192, bytes: 40 }];
            let footer = build(&index, 16384, 12288, &holes);
            prop_assert_eq!(decode_section(&footer.sections), Some(content.runs));
            prop_assert_eq!(decode_directory(&footer.directory_bytes), Some(footer.directory));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check(&bytes);
        }
    }
}
