//! Entries read back from storage, for all subscriptions of a topic that are behind its tail cache.
//!
//! What one read has returned is a stretch: consecutive entries of one ledger. Subscriptions that are close to each other
//! find what the first of them has read; a stretch goes when the last of them has passed it, or, if that takes too
//! much memory, when it has not been used for the longest.

use std::collections::BTreeMap;

use geminga_model::Position;

use crate::entry::Entry;

/// See the module's head.
#[derive(Debug, Default)]
pub struct ReadCache {
    /// By first position. They do not overlap.
    stretches: BTreeMap<Position, Stretch>,
    bytes: usize,
    /// Counts uses.
    clock: u64,
    /// The clock when [`ReadCache::evict_unused`] was last called.
    looked_at: u64,
}

#[derive(Debug)]
struct Stretch {
    entries: Vec<Entry>,
    bytes: usize,
    used: u64,
}

impl Stretch {
    /// The first position behind it.
    fn end(&self) -> Option<Position> {
        self.entries.last().map(|last| last.position.next())
    }
}

impl ReadCache {
    /// Takes consecutive entries of one ledger; those that another stretch holds already are left out.
    pub fn insert(&mut self, mut entries: Vec<Entry>) {
        if let Some(first) = entries.first().map(|entry| entry.position)
            && let Some(known) = self.stretch_of(first).and_then(Stretch::end)
        {
            entries.retain(|entry| entry.position >= known);
        }
        let Some(first) = entries.first().map(|entry| entry.position) else { return };
        if let Some((&next, _)) = self.stretches.range(first..).next() {
            entries.retain(|entry| entry.position < next);
        }
        entries.shrink_to_fit();
        let bytes = entries.iter().map(Entry::cost).sum();
        self.bytes += bytes;
        self.clock += 1;
        self.stretches.insert(first, Stretch { entries, bytes, used: self.clock });
    }

    /// What the entries take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn stretch_of(&self, position: Position) -> Option<&Stretch> {
        let (_, stretch) = self.stretches.range(..=position).next_back()?;
        stretch.end().is_some_and(|end| position < end).then_some(stretch)
    }

    /// Where the stretch ends that holds the entry.
    pub fn held_to(&self, position: Position) -> Option<Position> {
        self.stretch_of(position)?.end()
    }

    pub fn get(&self, position: Position) -> Option<&Entry> {
        let stretch = self.stretch_of(position)?;
        stretch.entries.get((position.entry_id - stretch.entries[0].position.entry_id) as usize)
    }

    /// Appends entries from `from` (which must be held, else nothing) to the end of its stretch: at most `max_entries`, and no
    /// further one once `max_bytes` of payload are reached. Returns where the stretch ends.
    pub fn range(
        &mut self,
        from: Position,
        max_entries: usize,
        max_bytes: usize,
        out: &mut Vec<Entry>,
    ) -> Option<Position> {
        let (first, stretch) = self.stretches.range_mut(..=from).next_back()?;
        let end = stretch.end().filter(|&end| from < end)?;
        self.clock += 1;
        stretch.used = self.clock;
        let mut bytes = 0;
        for entry in stretch.entries.iter().skip((from.entry_id - first.entry_id) as usize).take(max_entries) {
            if bytes >= max_bytes {
                break;
            }
            bytes += entry.data.len();
            out.push(entry.clone());
        }
        Some(end)
    }

    /// The first position at or after `from` that is held.
    pub fn next_held(&self, from: Position) -> Option<Position> {
        if self.stretch_of(from).is_some() {
            return Some(from);
        }
        self.stretches.range(from..).next().map(|(&first, _)| first)
    }

    /// Drops stretches that end before `position`; returns the bytes freed.
    pub fn evict_below(&mut self, position: Position) -> usize {
        let before = self.bytes;
        while let Some(first) = self.stretches.first_entry() {
            if first.get().end().is_some_and(|end| end > position) {
                break;
            }
            self.bytes -= first.remove().bytes;
        }
        before - self.bytes
    }

    /// Drops what was not used for the longest until `bytes` are freed; returns how many were.
    pub fn evict_bytes(&mut self, bytes: usize) -> usize {
        let before = self.bytes;
        while before - self.bytes < bytes {
            let Some(oldest) = self.stretches.iter().min_by_key(|(_, stretch)| stretch.used).map(|(&first, _)| first)
            else {
                break;
            };
            self.bytes -= self.stretches.remove(&oldest).map_or(0, |stretch| stretch.bytes);
        }
        before - self.bytes
    }

    /// Drops what was not used since the last call; returns the bytes freed.
    pub fn evict_unused(&mut self) -> usize {
        let (before, since) = (self.bytes, self.looked_at);
        self.looked_at = self.clock;
        self.stretches.retain(|_, stretch| stretch.used > since);
        self.bytes = self.stretches.values().map(|stretch| stretch.bytes).sum();
        before - self.bytes
    }

    /// Drops everything; returns the bytes freed.
    pub fn clear(&mut self) -> usize {
        self.stretches.clear();
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::entry::EntryMeta;

    fn entries(ledger_id: u64, ids: std::ops::Range<i64>) -> Vec<Entry> {
        ids.map(|entry_id| Entry {
            position: Position { ledger_id, entry_id },
            meta: EntryMeta::default(),
            data: Bytes::from(vec![0; 10]),
        })
        .collect()
    }

    fn read(cache: &mut ReadCache, from: Position, max_entries: usize, max_bytes: usize) -> Vec<i64> {
        let mut out = Vec::new();
        cache.range(from, max_entries, max_bytes, &mut out);
        out.iter().map(|entry| entry.position.entry_id).collect()
    }

    #[test]
    fn two_readers_share_a_stretch_and_the_last_one_ends_it() {
        let mut cache = ReadCache::default();
        cache.insert(entries(3, 10..14));
        let at = |entry_id| Position::new(3, entry_id);
        assert_eq!(read(&mut cache, at(10), 2, 1000), [10, 11]);
        assert_eq!(read(&mut cache, at(12), 9, 1000), [12, 13]);
        assert_eq!(read(&mut cache, at(11), 9, 11), [11, 12], "bytes end it behind the entry that reaches them");
        assert!(read(&mut cache, at(14), 9, 9).is_empty() && read(&mut cache, at(9), 9, 9).is_empty());
        assert_eq!(cache.range(at(13), 1, 1, &mut Vec::new()), Some(at(14)));
        assert_eq!(cache.get(at(13)).map(|entry| entry.position), Some(at(13)));
        assert_eq!(cache.evict_below(at(13)), 0);
        let bytes = cache.bytes();
        assert_eq!(cache.evict_below(at(14)), bytes);
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn stretches_do_not_overlap() {
        let mut cache = ReadCache::default();
        cache.insert(entries(3, 10..14));
        cache.insert(entries(3, 5..12));
        cache.insert(entries(3, 12..17));
        assert_eq!(read(&mut cache, Position::new(3, 5), 99, 1000), [5, 6, 7, 8, 9]);
        assert_eq!(read(&mut cache, Position::new(3, 14), 99, 1000), [14, 15, 16]);
        assert_eq!(cache.bytes(), 12 * entries(0, 0..1)[0].cost());
        assert_eq!(cache.next_held(Position::new(3, 0)), Some(Position::new(3, 5)));
        assert_eq!(cache.next_held(Position::new(3, 16)), Some(Position::new(3, 16)));
        assert_eq!(cache.next_held(Position::new(3, 17)), None);
        assert_eq!(cache.held_to(Position::new(3, 13)), Some(Position::new(3, 14)));
        assert_eq!(cache.held_to(Position::new(3, 17)), None);
    }

    #[test]
    fn what_was_not_used_goes_first() {
        let mut cache = ReadCache::default();
        for ledger in 1..4 {
            cache.insert(entries(ledger, 0..2));
        }
        read(&mut cache, Position::new(1, 0), 1, 1);
        cache.evict_bytes(1);
        assert!(cache.get(Position::new(2, 0)).is_none() && cache.get(Position::new(1, 0)).is_some());
        assert_eq!(cache.evict_unused(), 0);
        read(&mut cache, Position::new(3, 0), 1, 1);
        assert!(cache.evict_unused() > 0);
        assert!(cache.get(Position::new(1, 0)).is_none() && cache.get(Position::new(3, 0)).is_some());
        assert_eq!(cache.bytes(), 2 * entries(0, 0..1)[0].cost());
    }
}
