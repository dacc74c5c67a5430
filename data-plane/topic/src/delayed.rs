//! Messages whose time has not come.
//!
//! The index holds positions only, ordered by time. All indexes share one bound: beyond it the latest are forgotten, and since
//! they stay unacknowledged they are found again by reading from the first forgotten position, at the latest when the
//! first of them is due. The same makes the index survive a restart without being stored.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geminga_model::Position;

/// Time, position, slot of the key.
type Item = (u64, Position, u16);

/// Bytes of one item in the tree, with its share of the nodes.
const ITEM_BYTES: usize = size_of::<Item>() * 3 / 2;

/// Bytes that the indexes of many subscriptions may take together.
#[derive(Debug)]
pub struct DelayedBudget {
    limit: usize,
    used: AtomicUsize,
}

impl DelayedBudget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(DelayedBudget { limit, used: AtomicUsize::new(0) })
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether that was within the limit.
    fn take(&self) -> bool {
        self.used.fetch_add(ITEM_BYTES, Ordering::Relaxed) + ITEM_BYTES <= self.limit
    }

    fn give_back(&self, items: usize) {
        self.used.fetch_sub(items * ITEM_BYTES, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct DelayedIndex {
    items: BTreeSet<Item>,
    budget: Arc<DelayedBudget>,
    forgotten: Option<Forgotten>,
}

#[derive(Debug)]
struct Forgotten {
    from: Position,
    /// When the first of them is due.
    due: u64,
}

impl DelayedIndex {
    pub fn new(budget: Arc<DelayedBudget>) -> Self {
        DelayedIndex { items: BTreeSet::new(), budget, forgotten: None }
    }

    pub fn clear(&mut self) {
        self.budget.give_back(self.items.len());
        self.items.clear();
        self.forgotten = None;
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn bytes(&self) -> usize {
        self.items.len() * ITEM_BYTES
    }

    /// Holds a message until `at`. Adding one twice changes nothing.
    pub fn add(&mut self, at: u64, position: Position, hash: u16) {
        if self.items.insert((at, position, hash))
            && !self.budget.take()
            && let Some((due, from, _)) = self.items.pop_last()
        {
            self.budget.give_back(1);
            match &mut self.forgotten {
                Some(forgotten) => {
                    forgotten.from = forgotten.from.min(from);
                    forgotten.due = forgotten.due.min(due);
                }
                None => self.forgotten = Some(Forgotten { from, due }),
            }
        }
    }

    /// The next message whose time has come.
    pub fn pop_due(&mut self, now: u64) -> Option<(Position, u16)> {
        if self.items.first()?.0 > now {
            return None;
        }
        let (_, position, hash) = self.items.pop_first()?;
        self.budget.give_back(1);
        Some((position, hash))
    }

    /// Where to read again because forgotten messages are due.
    pub fn take_forgotten(&mut self, now: u64) -> Option<Position> {
        if self.forgotten.as_ref()?.due > now {
            return None;
        }
        self.forgotten.take().map(|forgotten| forgotten.from)
    }

    /// When something happens next.
    pub fn next_due(&self) -> Option<u64> {
        let first = self.items.first().map(|item| item.0);
        let forgotten = self.forgotten.as_ref().map(|forgotten| forgotten.due);
        first.into_iter().chain(forgotten).min()
    }
}

impl Drop for DelayedIndex {
    fn drop(&mut self) {
        self.budget.give_back(self.items.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_indexes_share_one_budget_and_give_it_back() {
        let budget = DelayedBudget::new(3 * ITEM_BYTES);
        let mut first = DelayedIndex::new(budget.clone());
        let mut second = DelayedIndex::new(budget.clone());
        for entry_id in 0..3 {
            first.add(100 + entry_id as u64, Position { ledger_id: 1, entry_id }, 0);
            first.add(100 + entry_id as u64, Position { ledger_id: 1, entry_id }, 0);
        }
        second.add(50, Position { ledger_id: 2, entry_id: 7 }, 0);
        assert_eq!((first.len(), second.len(), budget.used()), (3, 0, 3 * ITEM_BYTES));
        assert_eq!(second.next_due(), Some(50), "it is found again by reading");
        assert_eq!(second.take_forgotten(50), Some(Position { ledger_id: 2, entry_id: 7 }));
        assert!(first.pop_due(100).is_some());
        second.add(60, Position { ledger_id: 2, entry_id: 8 }, 0);
        first.add(1, Position { ledger_id: 1, entry_id: 9 }, 0);
        assert_eq!((first.len(), second.len()), (2, 1), "who adds forgets its own latest");
        assert_eq!(first.take_forgotten(102), Some(Position { ledger_id: 1, entry_id: 2 }));
        drop(second);
        first.clear();
        assert_eq!(budget.used(), 0);
    }
}
