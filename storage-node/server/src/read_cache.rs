//! Entries that were read ahead: BookKeeper's clients ask for one entry at a time, and the log reads them by the dozen.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// What an entry costs beside its bytes.
const OVERHEAD_BYTES: usize = 96;

type Name = (u64, u64);

/// The entries that were read last, by ledger and entry, up to a bound in bytes.
pub struct ReadCache {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    entries: FxHashMap<Name, Bytes>,
    order: VecDeque<Name>,
    bytes: usize,
}

impl ReadCache {
    pub fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::default() }
    }

    pub fn get(&self, ledger: u64, entry: u64) -> Option<Bytes> {
        self.held.lock().entries.get(&(ledger, entry)).cloned()
    }

    pub fn put(&self, ledger: u64, entries: impl IntoIterator<Item = (u64, Bytes)>) {
        let mut held = self.held.lock();
        for (entry, bytes) in entries {
            held.bytes += bytes.len() + OVERHEAD_BYTES;
            match held.entries.insert((ledger, entry), bytes) {
                Some(before) => held.bytes -= before.len() + OVERHEAD_BYTES,
                None => held.order.push_back((ledger, entry)),
            }
        }
        while held.bytes > self.limit {
            let Some(oldest) = held.order.pop_front() else { break };
            if let Some(bytes) = held.entries.remove(&oldest) {
                held.bytes -= bytes.len() + OVERHEAD_BYTES;
            }
        }
    }

    /// The ledger is deleted.
    pub fn forget(&self, ledger: u64) {
        let mut held = self.held.lock();
        let gone: Vec<Name> = held.entries.keys().filter(|(of, _)| *of == ledger).copied().collect();
        for name in gone {
            if let Some(bytes) = held.entries.remove(&name) {
                held.bytes -= bytes.len() + OVERHEAD_BYTES;
            }
        }
        let Held { entries, order, .. } = &mut *held;
        order.retain(|name| entries.contains_key(name));
    }

    pub fn bytes(&self) -> usize {
        self.held.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_go_first() {
        let cache = ReadCache::new(4 * (100 + OVERHEAD_BYTES));
        for entry in 0..6 {
            cache.put(1, [(entry, Bytes::from(vec![entry as u8; 100]))]);
        }
        assert_eq!((cache.get(1, 1), cache.get(1, 2).map(|bytes| bytes[0])), (None, Some(2)));
        cache.put(1, [(2, Bytes::from(vec![9; 100]))]);
        assert_eq!(cache.get(1, 2).map(|bytes| bytes[0]), Some(9));
        cache.forget(1);
        assert_eq!((cache.get(1, 5), cache.bytes()), (None, 0));
    }
}
