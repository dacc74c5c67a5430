//! The latest entries of a topic, for consumers that keep up.
//!
//! Entries are in order and without a gap: whoever finds the first one of a range in the cache finds all that follow.
//! An insert that would leave a gap starts the cache over. Insert and eviction take amortised constant time, lookups
//! a subtraction, or a binary search across ledgers.

use std::collections::VecDeque;

use geminga_model::Position;

use crate::entry::Entry;

/// See the module's head.
#[derive(Debug, Default)]
pub struct TailCache {
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// Whether `next` can be the entry after `last`: entry ids are consecutive, and a ledger starts at 0.
fn follows(last: Position, next: Position) -> bool {
    if next.ledger_id == last.ledger_id {
        next.entry_id == last.entry_id + 1
    } else {
        next.ledger_id > last.ledger_id && next.entry_id == 0
    }
}

impl TailCache {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the next entry of the topic. If it does not follow the last one, what was held is dropped first.
    pub fn insert(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| !follows(last.position, entry.position)) {
            self.clear();
        }
        self.bytes += entry.cost();
        self.entries.push_back(entry);
    }

    /// Frees the room for entries while there are none.
    pub fn give_back_spare(&mut self) {
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
    }

    /// Payload and overhead of what is held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn first(&self) -> Option<Position> {
        self.entries.front().map(|entry| entry.position)
    }

    fn index_at_or_after(&self, position: Position) -> usize {
        let Some(first) = self.first() else { return 0 };
        if position <= first {
            return 0;
        }
        if position.ledger_id == first.ledger_id {
            // Exact unless the first ledger ends before it.
            let guess = (position.entry_id - first.entry_id) as usize;
            if self.entries.get(guess).is_some_and(|entry| entry.position == position) {
                return guess;
            }
        }
        self.entries.partition_point(|entry| entry.position < position)
    }

    pub fn get(&self, position: Position) -> Option<&Entry> {
        self.entries.get(self.index_at_or_after(position)).filter(|entry| entry.position == position)
    }

    /// Appends the entries from `from` (which must be held, else nothing) to `last`, at most `max_entries`, and no further one
    /// once `max_bytes` of payload are reached. Returns how many.
    pub fn range(
        &self,
        from: Position,
        last: Position,
        max_entries: usize,
        max_bytes: usize,
        out: &mut Vec<Entry>,
    ) -> usize {
        let start = self.index_at_or_after(from);
        if self.entries.get(start).is_none_or(|entry| entry.position != from) {
            return 0;
        }
        let (mut bytes, mut taken) = (0, 0);
        for entry in self.entries.range(start..) {
            if entry.position > last || taken >= max_entries || (taken > 0 && bytes >= max_bytes) {
                break;
            }
            bytes += entry.data.len();
            taken += 1;
            out.push(entry.clone());
        }
        taken
    }

    /// Drops entries before `position`; returns the bytes freed.
    pub fn evict_below(&mut self, position: Position) -> usize {
        let before = self.bytes;
        while self.first().is_some_and(|first| first < position) {
            self.pop();
        }
        self.shrink();
        before - self.bytes
    }

    /// Drops the oldest entries until at least `bytes` are freed or nothing is left; returns the bytes freed.
    pub fn evict_bytes(&mut self, bytes: usize) -> usize {
        let before = self.bytes;
        while before - self.bytes < bytes && self.pop() {}
        self.shrink();
        before - self.bytes
    }

    /// Drops everything; returns the bytes freed.
    pub fn clear(&mut self) -> usize {
        self.entries = VecDeque::new();
        std::mem::take(&mut self.bytes)
    }

    fn pop(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else { return false };
        self.bytes -= entry.cost();
        true
    }

    /// A cache that was full once does not keep its slots for ever.
    fn shrink(&mut self) {
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::EntryMeta;

    fn entry(ledger_id: u64, entry_id: i64) -> Entry {
        let position = Position { ledger_id, entry_id };
        Entry { position, meta: EntryMeta::default(), data: Bytes::from(vec![0; 10]) }
    }

    fn positions(out: &[Entry]) -> Vec<String> {
        out.iter().map(|entry| entry.position.to_string()).collect()
    }

    #[test]
    fn ranges_across_ledgers_and_eviction() {
        let mut cache = TailCache::new();
        for at in [entry(3, 7), entry(3, 8), entry(5, 0), entry(5, 1), entry(9, 0)] {
            cache.insert(at);
        }
        let mut out = Vec::new();
        assert_eq!(cache.range(Position::new(3, 8), Position::new(5, 1), 10, 1000, &mut out), 3);
        assert_eq!(positions(&out), ["3:8", "5:0", "5:1"]);
        out.clear();
        assert_eq!(cache.range(Position::new(3, 9), Position::LATEST, 10, 1000, &mut out), 0);
        assert_eq!(cache.range(Position::new(5, 0), Position::LATEST, 10, 15, &mut out), 2);
        assert_eq!(cache.get(Position::new(9, 0)).map(|e| e.position), Some(Position::new(9, 0)));
        assert!(cache.get(Position::new(4, 0)).is_none());
        let each = entry(0, 0).cost();
        assert_eq!(cache.bytes(), 5 * each);
        assert_eq!(cache.evict_below(Position::new(4, 0)), 2 * each);
        assert_eq!(cache.evict_bytes(1), each);
        assert_eq!(cache.first(), Some(Position::new(5, 1)));
        cache.insert(entry(9, 5));
        assert_eq!((cache.len(), cache.bytes()), (1, each));
        assert_eq!(cache.clear(), each);
        assert!(cache.is_empty());
    }
}
