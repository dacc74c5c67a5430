//! The records of a cursor log and the entries that hold them.
//!
//! ```text
//! entry    version u8 = 1 | crc32c u32 LE of the rest | record*
//! record   kind u8 | id varint | length varint | payload
//! kind     1 delta (cursor encoding)   2 snapshot (cursor encoding)   3 cursor dropped (no payload)
//!          4 blob (its bytes)          5 blob dropped (no payload)
//!          6 part of a record that is too large for one entry: kind u8 | index varint | count varint | bytes
//! ```
//! Parts of a record follow each other, one per entry of the same ledger, with no other record between them; they count when
//! all are there.

use bytes::Bytes;

use crate::cursor::{CursorDelta, CursorSnapshot};
use crate::wire::{FormatError, Reader, put_u64};

const VERSION: u8 = 1;
const HEADER: usize = 5;
const DELTA: u8 = 1;
const SNAPSHOT: u8 = 2;
const DROPPED: u8 = 3;
const BLOB: u8 = 4;
const BLOB_DROPPED: u8 = 5;
const PART: u8 = 6;
/// More than the head of a record or of a part takes.
const RECORD_HEAD: usize = 48;

/// What a cursor log holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Delta {
        cursor_id: u64,
        delta: CursorDelta,
    },
    Snapshot {
        cursor_id: u64,
        snapshot: CursorSnapshot,
    },
    /// The subscription was deleted.
    Dropped {
        cursor_id: u64,
    },
    /// Something else of the bundle that follows the same life (a deduplication snapshot): the latest with a key counts.
    Blob {
        key: u64,
        bytes: Bytes,
    },
    BlobDropped {
        key: u64,
    },
}

impl Record {
    fn head(&self) -> (u8, u64) {
        match self {
            Record::Delta { cursor_id, .. } => (DELTA, *cursor_id),
            Record::Snapshot { cursor_id, .. } => (SNAPSHOT, *cursor_id),
            Record::Dropped { cursor_id } => (DROPPED, *cursor_id),
            Record::Blob { key, .. } => (BLOB, *key),
            Record::BlobDropped { key } => (BLOB_DROPPED, *key),
        }
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            Record::Delta { delta, .. } => delta.encode(out),
            Record::Snapshot { snapshot, .. } => snapshot.encode(out),
            Record::Blob { bytes, .. } => out.extend_from_slice(bytes),
            Record::Dropped { .. } | Record::BlobDropped { .. } => {}
        }
    }

    fn decode(kind: u8, id: u64, payload: &[u8]) -> Result<Record, FormatError> {
        match kind {
            DELTA => Ok(Record::Delta { cursor_id: id, delta: CursorDelta::decode(payload)? }),
            SNAPSHOT => Ok(Record::Snapshot { cursor_id: id, snapshot: CursorSnapshot::decode(payload)? }),
            DROPPED if payload.is_empty() => Ok(Record::Dropped { cursor_id: id }),
            BLOB => Ok(Record::Blob { key: id, bytes: Bytes::copy_from_slice(payload) }),
            BLOB_DROPPED if payload.is_empty() => Ok(Record::BlobDropped { key: id }),
            _ => Err(FormatError::Invalid("kind of cursor log record")),
        }
    }
}

/// An entry that is ready to be written.
#[derive(Debug)]
pub(crate) struct ReadyEntry {
    pub bytes: Bytes,
    /// All records up to this sequence number are stored once this entry and those before it are.
    pub completes: u64,
    /// Begins in the middle of a record: belongs into the ledger of the entry before it.
    pub continues: bool,
}

/// Packs records into entries.
#[derive(Debug, Default)]
pub(crate) struct EntryWriter {
    /// The entry being filled.
    current: Vec<u8>,
    continues: bool,
    completes: u64,
    scratch: Vec<u8>,
}

impl EntryWriter {
    /// Encodes a record; entries that are full go to `ready`. Returns how many bytes it takes.
    pub fn add(
        &mut self,
        record: &Record,
        sequence: u64,
        max_entry: usize,
        ready: &mut dyn FnMut(ReadyEntry),
    ) -> usize {
        let mut payload = std::mem::take(&mut self.scratch);
        payload.clear();
        record.payload(&mut payload);
        let (kind, id) = record.head();
        if payload.len() + HEADER + RECORD_HEAD > max_entry {
            self.add_parts(kind, id, &payload, max_entry, ready);
        } else {
            if self.current.len() + payload.len() + RECORD_HEAD > max_entry {
                self.seal(ready);
            }
            self.put(kind, id, &payload);
        }
        self.completes = sequence;
        let len = payload.len() + RECORD_HEAD / 4;
        self.scratch = if payload.capacity() <= 64 * 1024 { payload } else { Vec::new() };
        len
    }

    fn add_parts(&mut self, kind: u8, id: u64, payload: &[u8], max_entry: usize, ready: &mut dyn FnMut(ReadyEntry)) {
        let chunks = payload.chunks(max_entry - HEADER - RECORD_HEAD);
        let count = chunks.len() as u64;
        for (index, chunk) in chunks.enumerate() {
            self.seal(ready);
            let mut part = vec![kind];
            put_u64(&mut part, index as u64);
            put_u64(&mut part, count);
            part.extend_from_slice(chunk);
            self.continues = index > 0;
            self.put(PART, id, &part);
        }
    }

    fn put(&mut self, kind: u8, id: u64, payload: &[u8]) {
        if self.current.is_empty() {
            self.current.extend_from_slice(&[VERSION, 0, 0, 0, 0]);
        }
        self.current.push(kind);
        put_u64(&mut self.current, id);
        put_u64(&mut self.current, payload.len() as u64);
        self.current.extend_from_slice(payload);
    }

    /// Finishes the entry being filled, if it holds anything.
    pub fn seal(&mut self, ready: &mut dyn FnMut(ReadyEntry)) {
        if self.current.is_empty() {
            return;
        }
        let mut entry = std::mem::take(&mut self.current);
        let crc = crc_fast::crc32_iscsi(&entry[HEADER..]);
        entry[1..HEADER].copy_from_slice(&crc.to_le_bytes());
        let continues = std::mem::take(&mut self.continues);
        ready(ReadyEntry { bytes: Bytes::from(entry), completes: self.completes, continues });
    }

    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// Whether the entry being filled begins in the middle of a record.
    pub fn continues(&self) -> bool {
        self.continues
    }

    /// Forgets what was not sealed.
    pub fn clear(&mut self) {
        self.current.clear();
        self.continues = false;
        self.completes = 0;
    }
}

/// Reads the entries of one ledger in order.
#[derive(Debug, Default)]
pub(crate) struct EntryReader {
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    kind: u8,
    id: u64,
    next: u64,
    count: u64,
    bytes: Vec<u8>,
}

impl EntryReader {
    /// The complete records of one entry.
    pub fn read(&mut self, entry: &[u8], each: &mut dyn FnMut(Record)) -> Result<(), FormatError> {
        match entry.first() {
            None => return Err(FormatError::Truncated),
            Some(&VERSION) => {}
            Some(&other) => return Err(FormatError::Version(other)),
        }
        let (crc, body) = entry[1..].split_first_chunk::<4>().ok_or(FormatError::Truncated)?;
        if crc_fast::crc32_iscsi(body) != u32::from_le_bytes(*crc) {
            return Err(FormatError::Checksum);
        }
        let mut reader = Reader(body);
        while !reader.is_empty() {
            let (kind, id, len) = (reader.u8()?, reader.u64()?, reader.u64()?);
            let payload = reader.bytes(len)?;
            if kind == PART {
                if let Some(record) = self.part(id, payload)? {
                    each(record);
                }
                continue;
            }
            if self.parts.is_some() {
                return Err(FormatError::Invalid("cursor log record: between the parts of another"));
            }
            each(Record::decode(kind, id, payload)?);
        }
        Ok(())
    }

    fn part(&mut self, id: u64, payload: &[u8]) -> Result<Option<Record>, FormatError> {
        let mut reader = Reader(payload);
        let (kind, index, count) = (reader.u8()?, reader.u64()?, reader.u64()?);
        let mut parts = match self.parts.take() {
            None if index == 0 => Parts { kind, id, next: 0, count, bytes: Vec::new() },
            Some(parts) if (parts.kind, parts.id, parts.next, parts.count) == (kind, id, index, count) => parts,
            _ => return Err(FormatError::Invalid("part of a cursor log record")),
        };
        parts.bytes.extend_from_slice(reader.0);
        parts.next += 1;
        if parts.next == parts.count {
            return Record::decode(kind, id, &parts.bytes).map(Some);
        }
        self.parts = Some(parts);
        Ok(None)
    }
}
