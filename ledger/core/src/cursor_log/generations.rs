//! The ledgers of a cursor log, oldest first, and which of them hold the state of which cursor.
//!
//! A cursor's *base* is the oldest ledger that a replay needs to restore it: the one with its latest snapshot, or without one,
//! its first delta. The bookkeeping may place a base too early (a record is counted for the ledger that is newest when it is
//! appended, and may be written to the next), never too late.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_model::Position;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::pending::Key;
use super::record::Record;
use crate::cursor::CursorSnapshot;

/// One ledger of a cursor log, as the bundle's metadata record holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLedger {
    pub ledger_id: u64,
    /// How many entries count; `None` for the newest one, whose length has to be recovered.
    pub entries: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Generation {
    /// `None` until one is created.
    pub ledger_id: Option<u64>,
    /// Confirmed.
    pub entries: u64,
    pub bytes: u64,
    /// What was queued since it is the newest.
    pub delta_bytes: u64,
    pub snapshot_bytes: u64,
    open: bool,
    /// Whose base is here, and some whose base was here.
    cursors: Vec<u64>,
    blobs: Vec<u64>,
    /// The last record that took a base away from here.
    released_at: u64,
}

#[derive(Debug)]
struct CursorSlot {
    state: CursorSnapshot,
    base: u32,
}

#[derive(Debug)]
struct BlobSlot {
    bytes: Bytes,
    base: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Generations {
    all: VecDeque<Generation>,
    /// Number of the first of them.
    first: u32,
    cursors: FxHashMap<u64, CursorSlot>,
    blobs: FxHashMap<u64, BlobSlot>,
}

impl Generations {
    pub fn cursor(&self, id: u64) -> Option<&CursorSnapshot> {
        self.cursors.get(&id).map(|slot| &slot.state)
    }

    pub fn blob(&self, key: u64) -> Option<&Bytes> {
        self.blobs.get(&key).map(|slot| &slot.bytes)
    }

    pub fn cursor_ids(&self) -> impl Iterator<Item = u64> {
        self.cursors.keys().copied()
    }

    /// Adds a ledger behind the others; the one before takes no more records.
    pub fn begin(&mut self, ledger_id: Option<u64>) {
        self.close_newest();
        self.all.push_back(Generation { ledger_id, open: true, ..Generation::default() });
    }

    pub fn close_newest(&mut self) {
        if let Some(newest) = self.all.back_mut() {
            newest.open = false;
        }
    }

    /// Makes sure that the newest takes records, in a ledger that is still to be created if need be.
    pub fn open_newest(&mut self) {
        if !self.all.back().is_some_and(|newest| newest.open) {
            self.begin(None);
        }
    }

    /// The ledger that records are counted for.
    pub fn newest_mut(&mut self) -> &mut Generation {
        self.all.back_mut().expect("a ledger was begun before the first record")
    }

    pub fn newest_has_ledger(&self) -> bool {
        self.all.back().is_some_and(|newest| newest.open && newest.ledger_id.is_some())
    }

    pub fn is_newest_full(&self, rotate_bytes: u64) -> bool {
        self.all.back().is_some_and(|newest| newest.delta_bytes >= rotate_bytes.max(newest.snapshot_bytes))
    }

    /// The newest ledger failed. If nothing in it counts, it is returned for deletion, otherwise it stays as it is.
    pub fn abandon_newest(&mut self) -> Option<u64> {
        let newest = self.newest_mut();
        (newest.delta_bytes, newest.snapshot_bytes) = (0, 0);
        if newest.entries == 0 {
            return newest.ledger_id.take();
        }
        self.begin(None);
        None
    }

    /// From here on records are written to this ledger.
    pub fn switch_to(&mut self, ledger_id: u64) {
        match self.all.back_mut() {
            Some(newest) if newest.open && newest.ledger_id.is_none() => newest.ledger_id = Some(ledger_id),
            _ => self.begin(Some(ledger_id)),
        }
    }

    /// The list for metadata.
    pub fn record(&self) -> Vec<LogLedger> {
        let ledger = |generation: &Generation| {
            let entries = (!generation.open).then_some(generation.entries);
            Some(LogLedger { ledger_id: generation.ledger_id?, entries })
        };
        self.all.iter().filter_map(ledger).collect()
    }

    /// Brings the state up to a record, which is in (or on its way to) the newest ledger or a later one.
    pub fn apply(&mut self, record: &Record, sequence: u64) {
        match record {
            Record::Delta { cursor_id, delta } => {
                if !self.cursors.contains_key(cursor_id) {
                    self.place_cursor(*cursor_id, CursorSnapshot::new(Position::EARLIEST), sequence);
                }
                self.cursors.get_mut(cursor_id).expect("placed above").state.apply(delta);
            }
            Record::Snapshot { cursor_id, snapshot } => self.place_cursor(*cursor_id, snapshot.clone(), sequence),
            Record::Dropped { cursor_id } => {
                if let Some(slot) = self.cursors.remove(cursor_id) {
                    self.release(slot.base, sequence);
                }
            }
            Record::Blob { key, bytes } => {
                let base = self.newest();
                let old = self.blobs.insert(*key, BlobSlot { bytes: bytes.clone(), base });
                if old.as_ref().is_none_or(|old| old.base != base) {
                    self.newest_mut().blobs.push(*key);
                    old.inspect(|old| self.release(old.base, sequence));
                }
            }
            Record::BlobDropped { key } => {
                if let Some(slot) = self.blobs.remove(key) {
                    self.release(slot.base, sequence);
                }
            }
        }
    }

    fn place_cursor(&mut self, id: u64, state: CursorSnapshot, sequence: u64) {
        let base = self.newest();
        let old = self.cursors.insert(id, CursorSlot { state, base }).map(|old| old.base);
        if old != Some(base) {
            self.newest_mut().cursors.push(id);
            old.inspect(|&old| self.release(old, sequence));
        }
    }

    fn release(&mut self, base: u32, sequence: u64) {
        let at = base.wrapping_sub(self.first) as usize;
        if let Some(generation) = self.all.get_mut(at) {
            generation.released_at = generation.released_at.max(sequence);
        }
    }

    fn newest(&self) -> u32 {
        self.first.wrapping_add(self.all.len() as u32 - 1)
    }

    /// A record that alone gives the present state.
    pub fn current(&self, key: Key) -> Record {
        match key {
            Key::Cursor(cursor_id) => match self.cursor(cursor_id) {
                Some(state) => Record::Snapshot { cursor_id, snapshot: state.clone() },
                None => Record::Dropped { cursor_id },
            },
            Key::Blob(key) => match self.blob(key) {
                Some(bytes) => Record::Blob { key, bytes: bytes.clone() },
                None => Record::BlobDropped { key },
            },
        }
    }

    /// Whether the old ledgers are too many or too large.
    pub fn is_oldest_due(&self, max_bytes: u64, max_count: usize) -> bool {
        let old = self.all.len().saturating_sub(1);
        old > max_count || (old > 0 && self.all.iter().take(old).map(|old| old.bytes).sum::<u64>() >= max_bytes)
    }

    /// Something whose base is the oldest ledger.
    pub fn next_of_oldest(&mut self) -> Option<Key> {
        let oldest = self.all.front_mut()?;
        while let Some(id) = oldest.cursors.pop() {
            if self.cursors.get(&id).is_some_and(|slot| slot.base == self.first) {
                return Some(Key::Cursor(id));
            }
        }
        while let Some(key) = oldest.blobs.pop() {
            if self.blobs.get(&key).is_some_and(|slot| slot.base == self.first) {
                return Some(Key::Blob(key));
            }
        }
        None
    }

    /// Removes the oldest ledger if no replay needs it, given that all records up to `durable` are durable elsewhere.
    pub fn pop_free_oldest(&mut self, durable: u64) -> Option<u64> {
        let free = |oldest: &mut Generation| {
            !oldest.open && oldest.cursors.is_empty() && oldest.blobs.is_empty() && oldest.released_at <= durable
        };
        let oldest = self.all.pop_front_if(free)?;
        self.first = self.first.wrapping_add(1);
        oldest.ledger_id
    }

    pub fn memory_bytes(&self) -> usize {
        let states: usize = self.cursors.values().map(|slot| slot.state.memory_bytes()).sum();
        let blobs: usize = self.blobs.values().map(|slot| slot.bytes.len()).sum();
        let lists: usize =
            self.all.iter().map(|generation| generation.cursors.capacity() + generation.blobs.capacity()).sum();
        let slots = (self.cursors.capacity() - self.cursors.len()) * size_of::<(u64, CursorSlot)>()
            + self.cursors.len() * (size_of::<(u64, CursorSlot)>() - size_of::<CursorSnapshot>())
            + self.blobs.capacity() * size_of::<(u64, BlobSlot)>();
        states + blobs + lists * 8 + slots + self.cursors.capacity()
    }
}
