//! Entries that are stored here and cannot be read: found by the scrub and by clients, until they are repaired.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use geminga_observe::{family, sample};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Damaged entries that are remembered. What is beyond is found again by the next scrub.
const REMEMBERED_MAX: usize = 100_000;
/// Entries that are named in the log one by one; further ones are only counted.
const NAMED_MAX: u64 = 100;

/// Ledger and entry.
pub type EntryName = (u64, u64);

/// See the module's head; and how far scrub and repair are.
#[derive(Default)]
pub struct Damage {
    known: Mutex<Known>,
    /// Something was found.
    pub found: Notify,
    pub counts: Counts,
}

#[derive(Default)]
struct Known {
    waiting: BTreeSet<EntryName>,
    /// No other node could give these.
    unrepaired: BTreeSet<EntryName>,
}

#[derive(Default)]
pub struct Counts {
    /// Entries that were found damaged, each time they were.
    pub found: AtomicU64,
    pub repaired: AtomicU64,
    /// Records that were damaged, those of no consequence included.
    pub places: AtomicU64,
    pub indexes_rewritten: AtomicU64,
    pub passes: AtomicU64,
    pub scrubbed_bytes: AtomicU64,
    /// Of the pass under way: segments that are left, of so many.
    pub segments_left: AtomicU64,
    pub segments: AtomicU64,
    /// When the last full pass ended, in seconds since 1970; 0 for never.
    pub last_pass: AtomicU64,
}

impl Damage {
    /// An entry was found that cannot be read.
    pub fn note(&self, (ledger, entry): EntryName) {
        {
            let mut known = self.known.lock();
            if known.waiting.len() >= REMEMBERED_MAX
                || known.unrepaired.contains(&(ledger, entry))
                || !known.waiting.insert((ledger, entry))
            {
                return;
            }
        }
        if self.counts.found.fetch_add(1, Ordering::Relaxed) < NAMED_MAX {
            tracing::error!(ledger, entry, "a stored entry is damaged");
        }
        self.found.notify_one();
    }

    /// The next one to be repaired.
    pub fn take(&self) -> Option<EntryName> {
        self.known.lock().waiting.pop_first()
    }

    /// It could not be repaired for now. Whether that is news.
    pub fn set_aside(&self, name: EntryName) -> bool {
        let mut known = self.known.lock();
        known.unrepaired.len() < REMEMBERED_MAX && known.unrepaired.insert(name)
    }

    /// What could not be repaired is tried again.
    pub fn try_again(&self) {
        let mut known = self.known.lock();
        let Known { waiting, unrepaired } = &mut *known;
        waiting.append(unrepaired);
    }

    /// Damaged entries that are known and not repaired.
    pub fn entries(&self) -> usize {
        let known = self.known.lock();
        known.waiting.len() + known.unrepaired.len()
    }

    pub fn render(&self, page: &mut String) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        let counters = [
            ("geminga_storage_damaged_entries_found", "Entries found damaged.", &counts.found),
            (
                "geminga_storage_repaired_entries",
                "Damaged entries that were copied from another node.",
                &counts.repaired,
            ),
            (
                "geminga_scrub_damaged_places",
                "Records found damaged by the scrub, also such that do no harm.",
                &counts.places,
            ),
            (
                "geminga_scrub_indexes_rewritten",
                "Damaged indexes of segments that were written again.",
                &counts.indexes_rewritten,
            ),
            ("geminga_scrub_passes", "Full passes of the scrub.", &counts.passes),
            ("geminga_scrub_read_bytes", "Bytes that the scrub has read.", &counts.scrubbed_bytes),
        ];
        for (name, help, counter) in counters {
            family(page, name, "counter", help);
            sample(page, name, &[], read(counter));
        }
        let gauges = [
            ("geminga_storage_damaged_entries", "Damaged entries that are not repaired.", self.entries() as u64),
            (
                "geminga_scrub_last_full_pass_seconds",
                "When the last full pass ended, since 1970.",
                read(&counts.last_pass),
            ),
            ("geminga_scrub_segments_left", "Segments that are left of this pass.", read(&counts.segments_left)),
        ];
        for (name, help, value) in gauges {
            family(page, name, "gauge", help);
            sample(page, name, &[], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_counted_once_until_it_is_repaired() {
        let damage = Damage::default();
        for _ in 0..2 {
            damage.note((1, 5));
        }
        assert_eq!((damage.entries(), damage.counts.found.load(Ordering::Relaxed)), (1, 1));
        assert_eq!(damage.take(), Some((1, 5)));
        assert!(damage.set_aside((1, 5)));
        damage.note((1, 5));
        assert_eq!((damage.entries(), damage.take()), (1, None));
        damage.try_again();
        assert_eq!((damage.take(), damage.entries()), (Some((1, 5)), 0));
        for entry in 0..REMEMBERED_MAX as u64 + 10 {
            damage.note((2, entry));
        }
        assert_eq!(damage.entries(), REMEMBERED_MAX);
    }
}
