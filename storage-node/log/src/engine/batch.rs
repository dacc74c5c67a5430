//! Requests, and their encoding into the bytes of one commit.

use bytes::Bytes;
use crc_fast::crc32_iscsi as crc32c;

use crate::buffer::AlignedBuffer;
use crate::error::{AppendError, FenceError};
use crate::format::{
    BLOCK_BYTES, ENTRIES_MAX, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, ROW_BYTES, RecordHeader, RecordKind, Slot,
    record_bytes,
};
use crate::index::{Control, RUN_BYTES_MAX, Run};
use crate::replica::{ExplicitLac, MasterKey};

/// Told once, on a thread of the log, when everything in the call is durable or the call has failed.
pub type Done = Box<dyn FnOnce(Result<(), AppendError>) + Send>;
/// Told the last entry of the ledger, `None` if it has none.
pub type FenceDone = Box<dyn FnOnce(Result<Option<u64>, FenceError>) + Send>;

/// One entry to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Append {
    pub ledger: u64,
    pub entry: u64,
    /// Stored one after the other; the entry is their concatenation.
    pub parts: [Bytes; 3],
    /// May use the disk reserve.
    pub reserve: bool,
}

impl Append {
    pub fn payload_bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// Who may write to the ledgers of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The single writer of whole ledgers.
    Whole,
    /// A writer of a replica, who knows its key.
    Replica {
        key: MasterKey,
        /// Allowed though the replica is fenced.
        recovery: bool,
    },
}

pub enum Request {
    Append {
        entries: Vec<Append>,
        admission: Admission,
        done: Done,
    },
    Fence {
        ledger: u64,
        /// Of a replica.
        key: Option<MasterKey>,
        done: FenceDone,
    },
    ExplicitLac {
        ledger: u64,
        key: MasterKey,
        lac: ExplicitLac,
        done: Done,
    },
    Delete {
        ledgers: Vec<u64>,
        done: Done,
    },
    /// Failed already; takes its turn, so that answers come in order.
    Refused {
        ledgers: Vec<u64>,
        done: Done,
        error: AppendError,
    },
    /// An empty commit, which proves on disk that the one before it was durable.
    Mark,
    /// Controls that must outlive their segment, and a new manifest without the segments of `drop`.
    Housekeeping {
        controls: Vec<Control>,
        adopt: Option<u32>,
        drop: Vec<u32>,
        done: Done,
    },
}

impl Request {
    /// Memory that waits with it.
    pub fn queued_bytes(&self) -> usize {
        match self {
            Self::Append { entries, .. } => {
                entries.iter().map(|entry| entry.payload_bytes() + size_of::<Append>()).sum::<usize>() + 64
            }
            Self::Delete { ledgers, .. } => 8 * ledgers.len() + 64,
            _ => 64,
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::Append { entries, .. } if entries.iter().all(|entry| entry.reserve) => Class::Reserved,
            Self::Append { .. } => Class::Normal,
            _ => Class::Control,
        }
    }

    /// No more than this is added to a commit.
    pub(super) fn encoded_bytes(&self) -> u64 {
        match self {
            Self::Append { entries, admission, .. } => {
                let entries_bytes: u64 = entries.iter().map(|entry| record_bytes(entry.payload_bytes())).sum();
                // Each change of the ledger may need a key before it.
                let changes = entries.chunk_by(|one, next| one.ledger == next.ledger).count() as u64;
                entries_bytes + if *admission == Admission::Whole { 0 } else { changes * KEY_RECORD_BYTES }
            }
            Self::Fence { .. } => record_bytes(0) + KEY_RECORD_BYTES,
            Self::ExplicitLac { lac, .. } => record_bytes(lac.body().len()) + KEY_RECORD_BYTES,
            Self::Delete { ledgers, .. } => ledgers.len() as u64 * record_bytes(0),
            Self::Housekeeping { controls, .. } => controls.iter().map(Control::record_bytes).sum(),
            Self::Refused { .. } | Self::Mark => 0,
        }
    }
}

const KEY_RECORD_BYTES: u64 = record_bytes(size_of::<MasterKey>());

/// How much of the disk a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// All but the reserve.
    Normal,
    /// All but half of the reserve.
    Reserved,
    /// All of it: these are small, and they are what frees space.
    Control,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LedgerRun {
    pub ledger: u64,
    /// Of a whole ledger rather than of a replica.
    pub whole: bool,
    pub run: Run,
    pub bytes: u64,
}

/// The last record of a batch, as long as it takes entries: those that follow each other. Its header is written when it is
/// closed.
struct OpenRecord {
    ledger: u64,
    /// Of a whole ledger rather than of a replica.
    whole: bool,
    first: u64,
    count: usize,
    /// Of its header, in the buffer.
    start: usize,
    first_crc: u32,
}

impl OpenRecord {
    /// One that is found by reading no more than a run may have.
    fn takes(&self, append: &Append, whole: bool, end: usize) -> bool {
        let bytes = end - self.start + append.payload_bytes() + (self.count + 1) * ROW_BYTES;
        (self.ledger, self.whole) == (append.ledger, whole)
            && self.first.checked_add(self.count as u64) == Some(append.entry)
            && append.entry < u64::MAX
            && self.count < ENTRIES_MAX
            && bytes <= RUN_BYTES_MAX as usize
    }

    /// A record of one entry needs no table.
    fn table_bytes(&self) -> usize {
        if self.count > 1 { self.count * ROW_BYTES } else { 0 }
    }
}

/// The bytes of a commit, and what will have to go into the index when they are durable.
pub(super) struct Batch {
    pub segment: u32,
    pub offset: u64,
    /// Complete after [`Batch::pad`].
    pub buffer: AlignedBuffer,
    open: Option<OpenRecord>,
    /// Rows of the open record.
    table: Vec<u8>,
    pub runs: Vec<LedgerRun>,
    pub controls: Vec<Control>,
    pub manifest_at: Option<u64>,
}

impl Batch {
    /// `durable` is how far the log is known to be durable now.
    pub fn new(segment: u32, offset: u64, buffer: AlignedBuffer, durable: (u32, u64)) -> Self {
        let mut batch = Self {
            segment,
            offset,
            buffer,
            open: None,
            table: Vec::new(),
            runs: Vec::new(),
            controls: Vec::new(),
            manifest_at: None,
        };
        batch.add(RecordKind::Commit, u64::from(durable.0), durable.1, &[]);
        batch
    }

    fn position(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Bytes of all records, if nothing were added any more; without what fills up the last block.
    pub fn bytes(&self) -> u64 {
        let table_bytes = self.open.as_ref().map_or(0, OpenRecord::table_bytes);
        (self.buffer.len() + table_bytes).next_multiple_of(RECORD_ALIGNMENT) as u64
    }

    pub fn end(&self) -> u64 {
        self.offset + self.bytes()
    }

    /// The one copy of the payload; its checksum is taken while it is in the processor's cache.
    pub fn add_entry(&mut self, append: &Append, whole: bool) {
        if self.open.as_ref().is_none_or(|open| !open.takes(append, whole, self.buffer.len())) {
            self.close_record();
            let (ledger, first, start) = (append.ledger, append.entry, self.buffer.len());
            self.buffer.reserve(record_bytes(append.payload_bytes()) as usize);
            self.buffer.extend(&[0; RECORD_HEADER_BYTES]);
            self.open = Some(OpenRecord { ledger, whole, first, count: 0, start, first_crc: 0 });
        }
        let at = self.buffer.len();
        for part in &append.parts {
            self.buffer.extend(part);
        }
        let crc = crc32c(&self.buffer.as_slice()[at..]);
        let open = self.open.as_mut().expect("opened if there was none");
        if open.count == 0 {
            open.first_crc = crc;
        }
        open.count += 1;
        // The length of a longer one fits into the header, and it stays alone.
        self.table.extend(Slot::row(append.payload_bytes() as u16, crc));
    }

    fn close_record(&mut self) {
        let Some(open) = self.open.take() else { return };
        let (kind, body_crc, count) = match open.count {
            1 => (RecordKind::Entry, open.first_crc, 0),
            count => {
                self.buffer.extend(&self.table);
                (RecordKind::Entries, crc32c(&self.table), count as u16)
            }
        };
        self.table.clear();
        let body_bytes = (self.buffer.len() - open.start - RECORD_HEADER_BYTES) as u32;
        let (ledger, entry) = (open.ledger, open.first);
        self.close(open.start, RecordHeader { kind, body_bytes, body_crc, ledger, entry, count });
        let offset = self.offset + open.start as u64;
        let bytes = (self.buffer.len() - open.start) as u64;
        let run = Run { first: entry, count: open.count as u32, offset: offset as u32, span: bytes as u32 };
        if let Some(last) = self.runs.last_mut()
            && last.ledger == ledger
            && last.run.absorb(&run)
        {
            last.bytes += bytes;
        } else {
            self.runs.push(LedgerRun { ledger, whole: open.whole, run, bytes });
        }
    }

    pub fn add_control(&mut self, control: Control) {
        let (kind, entry) = match control {
            Control::Fence { end, .. } => (RecordKind::Fence, end),
            Control::Tombstone { .. } => (RecordKind::Tombstone, 0),
            Control::Key { .. } => (RecordKind::Key, 0),
            Control::ExplicitLac { lac, .. } => (RecordKind::ExplicitLac, lac.last_add_confirmed as u64),
        };
        self.add(kind, control.ledger(), entry, control.body());
        self.controls.push(control);
    }

    pub fn add_manifest(&mut self, body: &[u8]) {
        self.close_record();
        self.manifest_at = Some(self.position());
        self.add(RecordKind::Manifest, 0, 0, body);
    }

    fn add(&mut self, kind: RecordKind, ledger: u64, entry: u64, body: &[u8]) {
        self.close_record();
        let start = self.buffer.len();
        self.buffer.extend(&[0; RECORD_HEADER_BYTES]);
        self.buffer.extend(body);
        let (body_bytes, body_crc) = (body.len() as u32, crc32c(body));
        self.close(start, RecordHeader { kind, body_bytes, body_crc, ledger, entry, count: 0 });
    }

    /// Puts the header before a body that is complete, and zeros behind it.
    fn close(&mut self, start: usize, header: RecordHeader) {
        let encoded = header.encode(self.segment, self.offset + start as u64);
        self.buffer.as_mut_slice()[start..start + RECORD_HEADER_BYTES].copy_from_slice(&encoded);
        self.buffer.extend_zeros(self.buffer.len().next_multiple_of(RECORD_ALIGNMENT) - self.buffer.len());
    }

    /// Ends at a block boundary with a record that says so: zeros are never valid content.
    pub fn pad(&mut self) {
        self.close_record();
        let left = self.buffer.len().next_multiple_of(BLOCK_BYTES) - self.buffer.len();
        if left == 0 {
            return;
        }
        let bytes = if left < RECORD_HEADER_BYTES { left + BLOCK_BYTES } else { left };
        let body_bytes = bytes - RECORD_HEADER_BYTES;
        let header = RecordHeader {
            kind: RecordKind::Pad,
            body_bytes: body_bytes as u32,
            body_crc: 0,
            ledger: 0,
            entry: 0,
            count: 0,
        };
        let header = header.encode(self.segment, self.position());
        self.buffer.extend(&header);
        self.buffer.extend_zeros(body_bytes);
    }

    /// Whether there is anything of the ledger in this commit.
    pub fn holds(&self, ledger: u64) -> bool {
        self.last_of(ledger).is_some() || self.controls.iter().any(|control| control.ledger() == ledger)
    }

    /// The greatest entry of the ledger in this commit.
    pub fn last_of(&self, ledger: u64) -> Option<u64> {
        let open = self.open.iter().map(|open| (open.ledger, open.first.saturating_add(open.count as u64)));
        let runs = self.runs.iter().map(|run| (run.ledger, run.run.end()));
        runs.chain(open).filter(|(of, _)| *of == ledger).map(|(_, end)| end - 1).max()
    }
}
