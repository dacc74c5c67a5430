//! Records: what commits consist of.

use std::ops::RangeInclusive;

use crc_fast::crc32_iscsi as crc32c;

use super::entries::{ENTRIES_MAX, ROW_BYTES, Table};
use super::{u32_at, u64_at};
use crate::planted::{Bug, is_planted};

pub const RECORD_HEADER_BYTES: usize = 32;
pub const RECORD_ALIGNMENT: usize = 8;
/// The longest body that a record header can state.
pub const BODY_BYTES_MAX: usize = (1 << 28) - 1;

const KIND_SHIFT: u32 = 28;
/// Of a record of several entries: their number is above the length of its body.
const COUNT_SHIFT: u32 = 16;

/// Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// One entry of a ledger.
    Entry = 1,
    /// Begins each commit. `ledger` and `entry` are the segment and offset up to which the log was durable by then.
    Commit = 2,
    /// Fills up to the next block boundary.
    Pad = 3,
    /// The ledger takes no more entries; `entry` is the number of the first entry that does not belong to it, all bits set if
    /// it is a replica.
    Fence = 4,
    /// The ledger is deleted.
    Tombstone = 5,
    /// The body lists the segments that make up the log, other than this one.
    Manifest = 6,
    /// The body is the master key of the ledger, which is a replica.
    Key = 7,
    /// `entry` is a last add confirmed, the body what its writer sent to say so.
    ExplicitLac = 8,
    /// Several entries of a ledger, each the successor of the one before it.
    Entries = 9,
}

impl RecordKind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Entry,
            2 => Self::Commit,
            3 => Self::Pad,
            4 => Self::Fence,
            5 => Self::Tombstone,
            6 => Self::Manifest,
            7 => Self::Key,
            8 => Self::ExplicitLac,
            9 => Self::Entries,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: RecordKind,
    pub body_bytes: u32,
    /// Of the table only, in a record of several entries.
    pub body_crc: u32,
    pub ledger: u64,
    /// The first one in a record of several.
    pub entry: u64,
    /// How many entries there are in a record of several; 0 in any other.
    pub count: u16,
}

impl RecordHeader {
    /// `segment` and `offset` go into the checksum, so that a record is valid only where it was written: neither what a
    /// recycled file held before nor a misdirected write is taken for one.
    pub fn encode(&self, segment: u32, offset: u64) -> [u8; RECORD_HEADER_BYTES] {
        debug_assert!(self.body_bytes as usize <= BODY_BYTES_MAX && offset.is_multiple_of(RECORD_ALIGNMENT as u64));
        debug_assert!(self.is_plausible(), "{self:?}");
        let length = self.body_bytes | u32::from(self.count) << COUNT_SHIFT;
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[8..12].copy_from_slice(&(length | (self.kind as u32) << KIND_SHIFT).to_le_bytes());
        bytes[12..16].copy_from_slice(&segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.ledger.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.entry.to_le_bytes());
        let crc = header_crc(&bytes, offset);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` unless this is the header of a record written at `offset` of `segment`.
    pub fn decode(bytes: &[u8], segment: u32, offset: u64) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.get(..RECORD_HEADER_BYTES)?.try_into().ok()?;
        if u32_at(bytes, 12) != segment || u32_at(bytes, 0) != header_crc(bytes, offset) {
            return None;
        }
        let length_and_kind = u32_at(bytes, 8);
        let kind = RecordKind::from_number(length_and_kind >> KIND_SHIFT)?;
        let length = length_and_kind & BODY_BYTES_MAX as u32;
        let (body_bytes, count) = match kind {
            RecordKind::Entries => (length & ((1 << COUNT_SHIFT) - 1), (length >> COUNT_SHIFT) as u16),
            _ => (length, 0),
        };
        let (ledger, entry) = (u64_at(bytes, 16), u64_at(bytes, 24));
        let header = Self { kind, body_bytes, body_crc: u32_at(bytes, 4), ledger, entry, count };
        header.is_plausible().then_some(header)
    }

    /// A record of several entries has room for their table, and numbers for them.
    fn is_plausible(&self) -> bool {
        match self.kind {
            RecordKind::Entries => {
                let table_bytes = usize::from(self.count) * ROW_BYTES;
                (1..=ENTRIES_MAX).contains(&usize::from(self.count))
                    && (table_bytes..1 << COUNT_SHIFT).contains(&(self.body_bytes as usize))
                    && self.entry.checked_add(u64::from(self.count)).is_some()
            }
            _ => self.count == 0,
        }
    }

    /// Header, body and what fills up to the next record.
    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.body_bytes as usize)
    }

    pub fn holds_entries(&self) -> bool {
        matches!(self.kind, RecordKind::Entry | RecordKind::Entries)
    }

    /// Whose number is in the record, if it holds any.
    pub fn entries(&self) -> RangeInclusive<u64> {
        self.entry..=self.entry.saturating_add(u64::from(self.entry_count().max(1) - 1))
    }

    pub fn entry_count(&self) -> u32 {
        match self.kind {
            RecordKind::Entry => 1,
            _ => u32::from(self.count),
        }
    }

    /// Whether every checksum of the body is right.
    pub fn body_is_intact(&self, body: &[u8]) -> bool {
        match self.kind {
            RecordKind::Pad => true,
            RecordKind::Entry | RecordKind::Entries => Table::of(self, body)
                .is_some_and(|table| table.is_intact && table.slots().all(|slot| slot.is_intact(body))),
            _ => body.len() == self.body_bytes as usize && crc32c(body) == self.body_crc,
        }
    }
}

fn header_crc(bytes: &[u8; RECORD_HEADER_BYTES], offset: u64) -> u32 {
    let offset = if is_planted(Bug::ChecksumWithoutPlace) { 0 } else { offset };
    let mut covered = [0; RECORD_HEADER_BYTES + 4];
    covered[..RECORD_HEADER_BYTES - 4].copy_from_slice(&bytes[4..]);
    covered[RECORD_HEADER_BYTES - 4..].copy_from_slice(&offset.to_le_bytes());
    crc32c(&covered)
}

pub const fn record_bytes(body_bytes: usize) -> u64 {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(RECORD_ALIGNMENT) as u64
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod sealed {
    use super::*;

    pub fn record(data: &[u8], segment: u32, offset: u64) -> Option<[u8; RECORD_HEADER_BYTES]> {
        let mut bytes = *data.first_chunk()?;
        bytes[12..16].copy_from_slice(&segment.to_le_bytes());
        let crc = header_crc(&bytes, offset);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        Some(bytes)
    }
}
