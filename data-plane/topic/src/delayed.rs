//! Messages whose time has not come.
//!
//! The index holds positions only, ordered by time. It is bounded: beyond the bound the latest are forgotten, and since they
//! stay unacknowledged they are found again by reading from the first forgotten position, at the latest when the first
//! of them is due. The same makes the index survive a restart without being stored.

use std::collections::BTreeSet;

use geminga_model::Position;

/// Time, position, slot of the key.
type Item = (u64, Position, u16);

/// Bytes of one item in the tree, with its share of the nodes.
const ITEM_BYTES: usize = size_of::<Item>() * 3 / 2;

#[derive(Debug)]
pub(crate) struct DelayedIndex {
    items: BTreeSet<Item>,
    max_items: usize,
    forgotten: Option<Forgotten>,
}

#[derive(Debug)]
struct Forgotten {
    from: Position,
    /// When the first of them is due.
    due: u64,
}

impl DelayedIndex {
    pub fn new(max_bytes: usize) -> Self {
        DelayedIndex { items: BTreeSet::new(), max_items: (max_bytes / ITEM_BYTES).max(1), forgotten: None }
    }

    pub fn clear(&mut self) {
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
        self.items.insert((at, position, hash));
        if self.items.len() > self.max_items
            && let Some((due, from, _)) = self.items.pop_last()
        {
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
        self.items.pop_first().map(|(_, position, hash)| (position, hash))
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
