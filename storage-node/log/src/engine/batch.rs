//! Requests, and their encoding into the bytes of one commit.

use bytes::Bytes;
use crc_fast::crc32_iscsi as crc32c;

use crate::buffer::AlignedBuffer;
use crate::error::{AppendError, FenceError};
use crate::format::{BLOCK_BYTES, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, RecordKind, record_bytes};
use crate::index::{Control, Run};
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

/// The bytes of a commit, and what will have to go into the index when they are durable.
pub(super) struct Batch {
    pub segment: u32,
    pub offset: u64,
    pub buffer: AlignedBuffer,
    pub runs: Vec<LedgerRun>,
    pub controls: Vec<Control>,
    pub manifest_at: Option<u64>,
}

impl Batch {
    /// `durable` is how far the log is known to be durable now.
    pub fn new(segment: u32, offset: u64, buffer: AlignedBuffer, durable: (u32, u64)) -> Self {
        let mut batch = Self { segment, offset, buffer, runs: Vec::new(), controls: Vec::new(), manifest_at: None };
        batch.add_bare(RecordKind::Commit, u64::from(durable.0), durable.1);
        batch
    }

    fn position(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    pub fn end(&self) -> u64 {
        self.position()
    }

    pub fn add_entry(&mut self, append: &Append, whole: bool) {
        let payload_bytes = append.payload_bytes();
        let at = self.position();
        self.add(RecordKind::Entry, append.ledger, append.entry, &append.parts, payload_bytes);
        let bytes = record_bytes(payload_bytes);
        let run = Run::one(append.entry, at as u32, bytes as u32);
        if let Some(last) = self.runs.last_mut()
            && last.ledger == append.ledger
            && last.run.absorb(&run)
        {
            last.bytes += bytes;
        } else {
            self.runs.push(LedgerRun { ledger: append.ledger, whole, run, bytes });
        }
    }

    pub fn add_control(&mut self, control: Control) {
        let (kind, entry) = match control {
            Control::Fence { end, .. } => (RecordKind::Fence, end),
            Control::Tombstone { .. } => (RecordKind::Tombstone, 0),
            Control::Key { .. } => (RecordKind::Key, 0),
            Control::ExplicitLac { lac, .. } => (RecordKind::ExplicitLac, lac.last_add_confirmed as u64),
        };
        let body = Bytes::copy_from_slice(control.body());
        let body_bytes = body.len();
        self.add(kind, control.ledger(), entry, &[body], body_bytes);
        self.controls.push(control);
    }

    pub fn add_manifest(&mut self, body: Vec<u8>) {
        self.manifest_at = Some(self.position());
        let length = body.len();
        self.add(RecordKind::Manifest, 0, 0, &[Bytes::from(body)], length);
    }

    fn add_bare(&mut self, kind: RecordKind, ledger: u64, entry: u64) {
        self.add(kind, ledger, entry, &[], 0);
    }

    /// The one copy of the payload; its checksum is taken while it is in the processor's cache.
    fn add(&mut self, kind: RecordKind, ledger: u64, entry: u64, parts: &[Bytes], body_bytes: usize) {
        let offset = self.position();
        let start = self.buffer.len();
        self.buffer.reserve(record_bytes(body_bytes) as usize);
        self.buffer.extend(&[0; RECORD_HEADER_BYTES]);
        for part in parts {
            self.buffer.extend(part);
        }
        let body_at = start + RECORD_HEADER_BYTES;
        let body_crc = crc32c(&self.buffer.as_slice()[body_at..]);
        let header = RecordHeader { kind, body_bytes: body_bytes as u32, body_crc, ledger, entry };
        let header = header.encode(self.segment, offset);
        self.buffer.as_mut_slice()[start..body_at].copy_from_slice(&header);
        self.buffer
            .extend(&[0; RECORD_ALIGNMENT][..record_bytes(body_bytes) as usize - RECORD_HEADER_BYTES - body_bytes]);
    }

    /// Ends at a block boundary with a record that says so: zeros are never valid content.
    pub fn pad(&mut self) {
        let left = self.buffer.len().next_multiple_of(BLOCK_BYTES) - self.buffer.len();
        if left == 0 {
            return;
        }
        let bytes = if left < RECORD_HEADER_BYTES { left + BLOCK_BYTES } else { left };
        let body_bytes = bytes - RECORD_HEADER_BYTES;
        let header =
            RecordHeader { kind: RecordKind::Pad, body_bytes: body_bytes as u32, body_crc: 0, ledger: 0, entry: 0 };
        let header = header.encode(self.segment, self.position());
        self.buffer.extend(&header);
        self.buffer.extend_zeros(body_bytes);
    }

    /// Whether there is anything of the ledger in this commit.
    pub fn holds(&self, ledger: u64) -> bool {
        self.runs.iter().any(|run| run.ledger == ledger)
            || self.controls.iter().any(|control| control.ledger() == ledger)
    }

    /// The greatest entry of the ledger in this commit.
    pub fn last_of(&self, ledger: u64) -> Option<u64> {
        self.runs.iter().filter(|run| run.ledger == ledger).map(|run| run.run.end() - 1).max()
    }
}
