//! The dispatchers: who gets the next entry.
//!
//! A dispatcher is state beside [`Core`](crate::subscription::Core), created when the first consumer joins, of the type that
//! this consumer asks for, and gone with the last one.

pub(crate) mod explain;
pub(crate) mod kept;
pub(crate) mod key_shared;
pub(crate) mod selector;
pub(crate) mod shared;
pub(crate) mod single_active;

use geminga_model::Position;

use key_shared::KeyShared;
use shared::Shared;
use single_active::SingleActive;

use crate::entry::Entry;

/// Positions of single entries that one call asks to be read.
pub(crate) const MAX_MISSING: usize = 100;

#[derive(Debug)]
pub(crate) enum Dispatcher {
    SingleActive(SingleActive),
    Shared(Shared),
    KeyShared(Box<KeyShared>),
}

impl Dispatcher {
    /// Memory for entries that wait.
    pub fn bytes_aside(&self) -> usize {
        match self {
            Dispatcher::SingleActive(_) => 0,
            Dispatcher::Shared(shared) => shared.bytes_aside(),
            Dispatcher::KeyShared(keyed) => keyed.bytes_aside(),
        }
    }
}

/// Bytes and messages that one call of a dispatcher may still look at.
pub(crate) struct Budget {
    left: usize,
    messages: u64,
}

impl Budget {
    pub fn new(bytes: usize, messages: u64) -> Self {
        Budget { left: bytes.max(1), messages: messages.max(1) }
    }

    pub fn spend(&mut self, entry: &Entry) {
        // Small entries cost work too.
        self.left = self.left.saturating_sub(entry.data.len() + 64);
        self.messages = self.messages.saturating_sub(u64::from(entry.meta.num_messages.max(1)));
    }

    pub fn is_spent(&self) -> bool {
        self.left == 0 || self.messages == 0
    }

    pub fn left(&self) -> usize {
        self.left
    }
}

/// Two kinds of reads may be due at once, but a call returns one: they take turns, so that neither keeps the other waiting.
#[derive(Debug, Default)]
pub(crate) struct ReadTurns {
    entries_last: bool,
}

impl ReadTurns {
    /// `sequential` is what the reading of new entries waits for.
    pub fn choose(
        &mut self,
        missing: Vec<Position>,
        sequential: crate::entry::DispatchWait,
    ) -> crate::entry::DispatchWait {
        let read_due = matches!(sequential, crate::entry::DispatchWait::NeedRead { .. });
        if missing.is_empty() || (read_due && self.entries_last) {
            self.entries_last = false;
            return sequential;
        }
        self.entries_last = true;
        crate::entry::DispatchWait::NeedEntries(missing)
    }
}
