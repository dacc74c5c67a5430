//! Where a subscription reads: the position, and entries that were read but could not be handed out yet.

use std::collections::VecDeque;

use geminga_ledger::cursor::Cursor;
use geminga_model::Position;

use crate::entry::{Entry, EntryReader, Ready};

#[derive(Debug)]
pub(crate) struct Feed {
    /// Everything before it was handed out, is held back by the dispatcher, or is acknowledged.
    next: Position,
    /// Where reading has got to before it went back; entries from here on are new to the dispatcher.
    frontier: Position,
    /// Entries from `next` on. Small: only what a batch larger than expected left over.
    stash: VecDeque<Entry>,
    scratch: Vec<Entry>,
    /// Messages per entry, a moving average, at least 1.
    messages_per_entry: f32,
}

impl Feed {
    pub fn new(next: Position) -> Self {
        Feed { next, frontier: next, stash: VecDeque::new(), scratch: Vec::new(), messages_per_entry: 1.0 }
    }

    pub fn next(&self) -> Position {
        self.next
    }

    /// Starts over at `next`: nothing counts as read before.
    pub fn reset(&mut self, next: Position) {
        self.stash.clear();
        self.next = next;
        self.frontier = next;
    }

    /// What is at hand may not exist any more: it is read again.
    pub fn drop_stash(&mut self) {
        self.stash.clear();
    }

    pub fn give_back_spare(&mut self) {
        if self.stash.is_empty() {
            self.stash.shrink_to_fit();
            self.scratch.shrink_to_fit();
        }
    }

    /// Goes back to look at entries again that the dispatcher did not keep.
    pub fn go_back(&mut self, to: Position) {
        if to < self.next {
            self.stash.clear();
            self.frontier = self.frontier.max(self.next);
            self.next = to;
        }
    }

    /// Whether an entry may have been seen before.
    pub fn is_behind_frontier(&self, position: Position) -> bool {
        position < self.frontier
    }

    /// How many entries to read for so many messages.
    pub fn entries_for(&self, permits: i64) -> usize {
        ((permits.max(1) as f32 / self.messages_per_entry) as usize).clamp(1, 1000)
    }

    /// Makes sure that [`pop`](Self::pop) returns an entry, unless told otherwise. Acknowledged runs are jumped over.
    pub fn fill(
        &mut self,
        cursor: &Cursor,
        reader: &mut dyn EntryReader,
        max_entries: usize,
        max_bytes: usize,
    ) -> Ready {
        if !self.stash.is_empty() {
            return Ready::Entries;
        }
        let Some(from) = cursor.next_unacked(reader.ledgers(), self.next) else { return Ready::CaughtUp };
        self.next = from;
        let ready = reader.read_ready(from, max_entries, max_bytes, &mut self.scratch);
        if ready == Ready::Entries && self.scratch.is_empty() {
            return Ready::NeedRead(from);
        }
        self.stash.extend(self.scratch.drain(..));
        ready
    }

    pub fn pop(&mut self) -> Option<Entry> {
        let entry = self.stash.pop_front()?;
        self.next = entry.position.next();
        self.messages_per_entry += (entry.meta.num_messages.max(1) as f32 - self.messages_per_entry) * 0.1;
        Some(entry)
    }
}
