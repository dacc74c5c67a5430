//! Which of the writes to a ledger are confirmed, whatever the order and grouping of their completions.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    /// All entries before this one are confirmed.
    to: u64,
    /// Completed further on: first entry → count.
    ahead: BTreeMap<u64, u64>,
}

impl Confirmations {
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Entries `first .. first + count` are stored; `next` is the first entry that was not written yet.
    pub fn completed(&mut self, first: u64, count: u64, next: u64) {
        let end = first.saturating_add(count).min(next);
        if first > self.to {
            self.ahead.insert(first, end - first);
            return;
        }
        self.to = self.to.max(end);
        while let Some(ahead) = self.ahead.first_entry().filter(|ahead| *ahead.key() <= self.to) {
            let (first, count) = ahead.remove_entry();
            self.to = self.to.max(first + count);
        }
    }

    /// Entry `end` and all behind it are void.
    pub fn cut(&mut self, end: u64) {
        self.to = self.to.min(end);
        self.ahead.retain(|&first, _| first < end);
        self.ahead.iter_mut().for_each(|(first, count)| *count = (*count).min(end - first));
    }
}
