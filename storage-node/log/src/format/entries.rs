//! The body of a record of several entries: one after the other, then a table with a row of each: length u16, checksum u32.
//!
//! The table comes last, as checksums are known when the entries have been copied. The head has its checksum and says how
//! many rows there are, so that a damaged table does not hide which entries it was of; and both ends of the entries are
//! known, so that a damaged row costs its entry and no other.

use std::ops::Range;

use crc_fast::crc32_iscsi as crc32c;

use super::record::{RecordHeader, RecordKind};
use super::u32_at;

pub const ROW_BYTES: usize = 6;
/// As many as the head can state.
pub const ENTRIES_MAX: usize = (1 << 12) - 1;

/// Where an entry is in the body of its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub range: Range<usize>,
    pub crc: u32,
}

impl Slot {
    /// The row that says so.
    pub fn row(entry_bytes: u16, crc: u32) -> [u8; ROW_BYTES] {
        let mut row = [0; ROW_BYTES];
        row[..2].copy_from_slice(&entry_bytes.to_le_bytes());
        row[2..].copy_from_slice(&crc.to_le_bytes());
        row
    }

    pub fn is_intact(&self, body: &[u8]) -> bool {
        body.get(self.range.clone()).is_some_and(|entry| crc32c(entry) == self.crc)
    }
}

/// Where the entries of a record are.
pub struct Table<'b> {
    /// Whether it can be trusted. If not, it has those entries that are intact, and wrong ones in the places of the others.
    pub is_intact: bool,
    rows: &'b [u8],
    /// Those that no row tells of, or that were found in spite of damaged rows.
    found: Vec<Slot>,
}

impl<'b> Table<'b> {
    /// `None` if the record is not one of entries, or not whole.
    pub fn of(header: &RecordHeader, body: &'b [u8]) -> Option<Self> {
        if body.len() != header.body_bytes as usize {
            return None;
        }
        match header.kind {
            RecordKind::Entry => {
                let found = vec![Slot { range: 0..body.len(), crc: header.body_crc }];
                Some(Self { is_intact: true, rows: &[], found })
            }
            RecordKind::Entries => {
                let (entries, rows) = body.split_at_checked(body.len() - usize::from(header.count) * ROW_BYTES)?;
                let is_intact = crc32c(rows) == header.body_crc && rows_bytes(rows) == entries.len();
                Some(match is_intact {
                    true => Self { is_intact, rows, found: Vec::new() },
                    false => Self { is_intact, rows: &[], found: find_in_spite(rows, entries) },
                })
            }
            _ => None,
        }
    }

    /// In their order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.found.iter().cloned().chain(slots_of(self.rows))
    }
}

fn entry_bytes(row: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([row[0], row[1]]))
}

fn rows_bytes(rows: &[u8]) -> usize {
    rows.chunks_exact(ROW_BYTES).map(entry_bytes).sum()
}

/// One after the other.
fn slots_of(rows: &[u8]) -> impl Iterator<Item = Slot> {
    rows.chunks_exact(ROW_BYTES).scan(0, |end, row| {
        let start = *end;
        *end += entry_bytes(row);
        Some(Slot { range: start..*end, crc: u32_at(row, 2) })
    })
}

/// Rows that are right lead to intact entries: from the first entry on up to the first wrong row, and the other way round. A row of
/// zeros may be that of an empty entry, or be lost: it is not believed.
fn find_in_spite(rows: &[u8], entries: &[u8]) -> Vec<Slot> {
    let mut slots: Vec<Slot> = slots_of(rows).collect();
    let right = slots.iter().take_while(|slot| slot.is_intact(entries)).count();
    let mut end = entries.len();
    for (slot, row) in slots.iter_mut().zip(rows.chunks_exact(ROW_BYTES)).skip(right).rev() {
        let start = end.saturating_sub(entry_bytes(row));
        slot.range = start..end;
        end = start;
    }
    let of_zeros = slots.iter_mut().zip(rows.chunks_exact(ROW_BYTES)).filter(|(_, row)| **row == [0; ROW_BYTES]);
    of_zeros.for_each(|(slot, _)| slot.crc = !crc32c(&[]));
    slots
}
