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
                // Each change of the ledger may need a key before it.
                let changes = entries.chunk_by(|one, next| one.ledger == next.ledger).count() as u64;
                entries_bytes_max(entries) + if *admission == Admission::Whole { 0 } else { changes * KEY_RECORD_BYTES }
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

/// An entry that is to be written; and whether its ledger is a whole one rather than a replica.
type Entry<'a> = (&'a Append, bool);

/// How many of the entries go into one record: those that follow each other, in what is read to find one of them.
fn count_together(entries: &[Entry]) -> usize {
    let (first, whole) = entries[0];
    let mut bytes = RECORD_HEADER_BYTES;
    let follows = |(offset, (append, of_whole)): &(usize, &Entry)| {
        bytes += append.payload_bytes() + ROW_BYTES;
        (append.ledger, *of_whole) == (first.ledger, whole)
            && first.entry.checked_add(*offset as u64) == Some(append.entry)
            && append.entry < u64::MAX
            && bytes <= RUN_BYTES_MAX as usize
    };
    entries.iter().enumerate().take(ENTRIES_MAX).take_while(follows).count().max(1)
}

/// The bytes of a commit, and what will have to go into the index when they are durable.
pub(super) struct Batch {
    pub segment: u32,
    pub offset: u64,
    /// Complete after [`Batch::pad`].
    pub buffer: AlignedBuffer,
    /// Entries that are not in the buffer yet, so that those of a ledger come together whatever was asked for in between; and
    /// whether their ledgers are whole.
    waiting: Vec<(Vec<Append>, bool)>,
    /// No more than this is added for them.
    waiting_bytes: u64,
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
            waiting: Vec::new(),
            waiting_bytes: 0,
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

    /// No more than this is written, if nothing is added; without what fills up the last block.
    pub fn bytes(&self) -> u64 {
        self.buffer.len() as u64 + self.waiting_bytes
    }

    pub fn end(&self) -> u64 {
        self.offset + self.bytes()
    }

    pub fn add_entries(&mut self, entries: Vec<Append>, whole: bool) {
        self.waiting_bytes += entries_bytes_max(&entries);
        self.waiting.push((entries, whole));
    }

    /// Ledger by ledger, and of each in the order in which they came.
    fn write_entries(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let mut entries: Vec<Entry> = Vec::new();
        for (of_call, whole) in &waiting {
            entries.extend(of_call.iter().map(|append| (append, *whole)));
        }
        entries.sort_by_key(|(append, _)| append.ledger);
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let (together, after) = rest.split_at(count_together(rest));
            self.write_record(together);
            rest = after;
        }
    }

    fn write_record(&mut self, entries: &[Entry]) {
        let (&Append { ledger, entry, .. }, whole) = entries[0];
        let start = self.buffer.len();
        self.buffer.extend(&[0; RECORD_HEADER_BYTES]);
        let (kind, body_crc, count) = match entries {
            [(append, _)] => (RecordKind::Entry, self.write_entry(append), 0),
            _ => {
                let mut table = Vec::with_capacity(entries.len() * ROW_BYTES);
                for (append, _) in entries {
                    let crc = self.write_entry(append);
                    table.extend(Slot::row(append.payload_bytes() as u16, crc));
                }
                self.buffer.extend(&table);
                (RecordKind::Entries, crc32c(&table), entries.len() as u16)
            }
        };
        let body_bytes = (self.buffer.len() - start - RECORD_HEADER_BYTES) as u32;
        self.close(start, RecordHeader { kind, body_bytes, body_crc, ledger, entry, count });
        let bytes = (self.buffer.len() - start) as u64;
        let offset = (self.offset + start as u64) as u32;
        let run = Run { first: entry, count: entries.len() as u32, offset, span: bytes as u32 };
        if let Some(last) = self.runs.last_mut()
            && last.ledger == ledger
            && last.run.absorb(&run)
        {
            last.bytes += bytes;
        } else {
            self.runs.push(LedgerRun { ledger, whole, run, bytes });
        }
    }

    /// The one copy of the payload; its checksum is taken while it is in the processor's cache.
    fn write_entry(&mut self, append: &Append) -> u32 {
        let at = self.buffer.len();
        self.buffer.reserve(append.payload_bytes());
        append.parts.iter().for_each(|part| self.buffer.extend(part));
        crc32c(&self.buffer.as_slice()[at..])
    }

    pub fn add_control(&mut self, control: Control) {
        let (kind, entry) = match control {
            Control::Fence { end, .. } => (RecordKind::Fence, end),
            Control::Tombstone { .. } => (RecordKind::Tombstone, 0),
            Control::Key { .. } => (RecordKind::Key, 0),
            Control::ExplicitLac { lac, .. } => (RecordKind::ExplicitLac, lac.last_add_confirmed as u64),
        };
        // A key stands before the entries of its ledger, whatever else behind what came before it.
        if kind != RecordKind::Key {
            self.write_entries();
        }
        self.add(kind, control.ledger(), entry, control.body());
        self.controls.push(control);
    }

    pub fn add_manifest(&mut self, body: &[u8]) {
        self.write_entries();
        self.manifest_at = Some(self.position());
        self.add(RecordKind::Manifest, 0, 0, body);
    }

    fn add(&mut self, kind: RecordKind, ledger: u64, entry: u64, body: &[u8]) {
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
        self.write_entries();
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
        let written = self.runs.iter().filter(|run| run.ledger == ledger).map(|run| run.run.end() - 1);
        let waiting = self.waiting.iter().flat_map(|(entries, _)| entries).filter(|append| append.ledger == ledger);
        written.chain(waiting.map(|append| append.entry)).max()
    }
}

/// Each one in a record of its own, which is the most that it can take.
fn entries_bytes_max(entries: &[Append]) -> u64 {
    entries.iter().map(|entry| record_bytes(entry.payload_bytes())).sum()
}
