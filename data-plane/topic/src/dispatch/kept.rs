//! Entries that wait for a moment only are kept in memory, so that they need not be found again.

use geminga_model::Position;
use rustc_hash::FxHashMap;

use crate::entry::Entry;

/// Bytes kept per subscription.
const MAX_BYTES: usize = 4 << 20;
/// Behind so many others an entry is likely to wait for long.
const MAX_LINE: usize = 512;
const OVERHEAD: usize = size_of::<Entry>() + 32;

#[derive(Debug, Default)]
pub(crate) struct KeptEntries {
    entries: FxHashMap<Position, Entry>,
    bytes: usize,
}

impl KeptEntries {
    /// Keeps an entry if there is room; `line` is how many wait before it.
    pub fn keep(&mut self, entry: Entry, line: usize) {
        let cost = entry.data.len() + OVERHEAD;
        if line >= MAX_LINE || self.bytes + cost > MAX_BYTES {
            return;
        }
        self.bytes += cost;
        if let Some(old) = self.entries.insert(entry.position, entry) {
            self.bytes -= old.data.len() + OVERHEAD;
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn take(&mut self, position: Position) -> Option<Entry> {
        if self.entries.is_empty() {
            return None;
        }
        let entry = self.entries.remove(&position)?;
        self.bytes -= entry.data.len() + OVERHEAD;
        Some(entry)
    }
}
