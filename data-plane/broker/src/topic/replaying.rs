//! Reading single entries that are to be delivered again, or were skipped over.

use std::sync::Arc;
use std::time::Instant;

use geminga_ledger_client::{LedgerError, StoredEntry};
use geminga_model::Position;
use geminga_topic::Entry;
use rustc_hash::FxHashMap;

use super::reading::{READ_BYTES, READ_BYTES_SCARCE, RETRY};
use super::{Flushes, Topic, TopicState};
use geminga_flow::Budget;

/// Entries read for one subscription and not yet dispatched.
#[derive(Default)]
pub(super) struct Replay {
    entries: FxHashMap<Position, Entry>,
    /// Bytes taken from the budget and still held here.
    held: usize,
    /// Bytes dispatched since the budget was last told.
    released: usize,
    pub(super) reading: bool,
    /// The last read failed.
    pub(super) failing: bool,
}

impl Replay {
    /// The entry, if it was read. It is forgotten.
    pub(super) fn take(&mut self, at: Position) -> Option<Entry> {
        let entry = self.entries.remove(&at)?;
        self.held -= entry.cost();
        self.released += entry.cost();
        Some(entry)
    }

    pub(super) fn has(&self, at: Position) -> bool {
        self.entries.contains_key(&at)
    }

    /// The entry is not to be dispatched any more.
    pub(super) fn forget(&mut self, at: Position) {
        self.take(at);
    }

    fn put(&mut self, entry: Entry, budget: &Budget) {
        self.take(entry.position);
        self.held += entry.cost();
        budget.take(entry.cost() as u64);
        self.entries.insert(entry.position, entry);
    }

    /// Tells the budget what has been dispatched.
    pub(super) fn give_back(&mut self, budget: &Budget) {
        budget.give_back(std::mem::take(&mut self.released) as u64);
    }

    pub(super) fn give_back_spare(&mut self) {
        super::closing::shrink_empty(&mut self.entries);
    }

    /// Drops what was read, for a reset or when the subscription goes.
    pub(super) fn clear(&mut self, budget: &Budget) {
        self.entries.clear();
        self.released += std::mem::take(&mut self.held);
        self.give_back(budget);
    }
}

impl Topic {
    /// Starts reading single entries for a subscription, unless it is under way.
    pub(super) fn read_entries(&self, state: &mut TopicState, name: &Arc<str>, mut positions: Vec<Position>) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        if sub.replay.reading || positions.is_empty() {
            return;
        }
        sub.replay.reading = true;
        positions.sort_unstable();
        let (topic, name) = (self.arc(), name.clone());
        tokio::spawn(async move {
            let mut budget = if topic.shared.memory.read_ahead.exhausted() { READ_BYTES_SCARCE } else { READ_BYTES };
            let mut reads = Vec::new();
            for run in consecutive_runs(&positions) {
                let (first, last) = (run[0], run[run.len() - 1]);
                let started = Instant::now();
                let result = topic
                    .shared
                    .ledgers
                    .read(first.ledger_id, first.entry_id as u64, last.entry_id as u64, budget)
                    .await;
                topic.reads.done(started.elapsed(), result.as_ref().map_or(0, Vec::len));
                let bytes: usize = result.iter().flatten().map(|entry| entry.data.len()).sum();
                reads.push((first.ledger_id, result));
                budget = budget.saturating_sub(bytes);
                if budget == 0 {
                    break;
                }
            }
            topic.replay_done(&name, reads);
        });
    }

    fn replay_done(&self, name: &Arc<str>, reads: Vec<(u64, Result<Vec<StoredEntry>, LedgerError>)>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        let TopicState { subscriptions, ledger, .. } = &mut *state;
        let Some(sub) = subscriptions.get_mut(name) else { return };
        sub.replay.reading = false;
        let mut failure = None;
        for (ledger_id, result) in reads {
            let (entries, failed) = self.decode(ledger_id, result);
            // Some were acknowledged meanwhile, or all consumers are gone: nobody would ever take those out again.
            for entry in entries.into_iter().filter(|entry| sub.core.awaits(entry, ledger.list())) {
                sub.replay.put(entry, &self.shared.memory.read_ahead);
            }
            failure = failure.or(failed);
        }
        sub.replay.failing = failure.is_some();
        sub.note_read(&self.name, &failure);
        match failure {
            None => self.dispatch(&mut state, name, &mut flushes),
            Some(_) => self.dispatch_soon(name, RETRY),
        }
        drop(state);
        flushes.run();
    }
}

/// Splits sorted positions into runs that one read covers.
fn consecutive_runs(positions: &[Position]) -> impl Iterator<Item = &[Position]> {
    positions.chunk_by(|a, b| a.ledger_id == b.ledger_id && a.entry_id + 1 == b.entry_id)
}
