//! Runs of sealed segments, as far as the memory for them goes; the least recently used go first.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{Run, Runs};

const OVERHEAD_BYTES: usize = 160;

/// Segment and ledger.
pub type Key = (u32, u64);

/// What is known of the runs of a ledger in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRuns {
    pub runs: Arc<Runs>,
    /// There are no others. If not, the index is damaged, and so are some of the records that were read instead.
    pub are_all: bool,
}

struct Cached {
    known: KnownRuns,
    used: u64,
    bytes: usize,
}

/// Not larger than `capacity_bytes`, but for the one list that was asked for last.
pub struct IndexCache {
    capacity_bytes: usize,
    bytes: usize,
    clock: u64,
    lists: FxHashMap<Key, Cached>,
    by_use: BTreeMap<u64, Key>,
}

impl IndexCache {
    pub fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, bytes: 0, clock: 0, lists: FxHashMap::default(), by_use: BTreeMap::new() }
    }

    pub fn get(&mut self, key: Key) -> Option<KnownRuns> {
        let cached = self.lists.get_mut(&key)?;
        self.by_use.remove(&cached.used);
        self.clock += 1;
        cached.used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(cached.known.clone())
    }

    pub fn put(&mut self, key: Key, known: KnownRuns) {
        self.remove(key);
        let bytes = OVERHEAD_BYTES + size_of_val::<[Run]>(known.runs.as_slice());
        while self.bytes + bytes > self.capacity_bytes {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.forget(oldest);
        }
        self.clock += 1;
        self.bytes += bytes;
        self.by_use.insert(self.clock, key);
        self.lists.insert(key, Cached { known, used: self.clock, bytes });
    }

    /// Its index is another one now.
    pub fn forget_segment(&mut self, segment: u32) {
        let keys: Vec<Key> = self.lists.keys().filter(|(of, _)| *of == segment).copied().collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }

    /// What could not be read may be read now.
    pub fn forget_incomplete(&mut self) {
        let incomplete = self.lists.iter().filter(|(_, cached)| !cached.known.are_all);
        let keys: Vec<Key> = incomplete.map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn remove(&mut self, key: Key) {
        if let Some(used) = self.lists.get(&key).map(|cached| cached.used) {
            self.by_use.remove(&used);
            self.forget(key);
        }
    }

    fn forget(&mut self, key: Key) {
        if let Some(cached) = self.lists.remove(&key) {
            self.bytes -= cached.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_used_last_within_its_bytes() {
        let runs = |are_all| KnownRuns { runs: Arc::new(Runs::from_sorted(vec![Run::one(0, 0, 8); 10])), are_all };
        let mut cache = IndexCache::new(10 * (OVERHEAD_BYTES + 240));
        for ledger in 0..100 {
            cache.put((1, ledger), runs(ledger != 95));
            cache.get((1, 0)).expect("in use");
            assert!(cache.bytes() <= cache.capacity_bytes);
        }
        let left: Vec<u64> = (0..100).filter(|&ledger| cache.get((1, ledger)).is_some()).collect();
        assert_eq!(left, [0, 91, 92, 93, 94, 95, 96, 97, 98, 99]);
        cache.forget_incomplete();
        assert!(cache.get((1, 95)).is_none() && cache.get((1, 96)).is_some());
        assert_eq!(cache.by_use.len(), cache.lists.len());
    }
}
