//! Reading behind the tail cache: large sequential reads ahead of a subscription, and single entries for redelivery.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_ledger::ledger_list::LedgerList;
use geminga_ledger_client::{LedgerError, StoredEntry};
use geminga_model::Position;
use geminga_topic::tail_cache::TailCache;
use geminga_topic::{Entry, EntryReader, Ready};
use rustc_hash::FxHashMap;

use super::{Flushes, Topic, TopicState};
use crate::entry_meta::read_entry;
use crate::memory::Budget;

/// One read ahead, in bytes.
const READ_BYTES: usize = 1 << 20;
/// The same while the budget for read-ahead is used up: progress, slowly.
const READ_BYTES_SCARCE: usize = 64 << 10;
/// Pause after a read that failed before it is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Entries read for one subscription and not yet dispatched.
#[derive(Default)]
pub(super) struct ReadAhead {
    /// Consecutive entries from the subscription's read position on.
    run: VecDeque<Entry>,
    /// Entries to be delivered again.
    replay: FxHashMap<Position, Entry>,
    /// Bytes taken from the budget and still held here.
    held: usize,
    /// Bytes dispatched since the budget was last told.
    released: usize,
    reading: bool,
    replaying: bool,
    /// Why the last read failed, until one succeeds.
    pub(super) failure: Option<String>,
}

impl ReadAhead {
    fn add(&mut self, entry: &Entry, budget: &Budget) {
        self.held += entry.data.len();
        budget.take(entry.data.len() as u64);
    }

    fn remove(&mut self, entry: &Entry) {
        self.held -= entry.data.len();
        self.released += entry.data.len();
    }

    /// Tells the budget what has been dispatched.
    pub(super) fn give_back(&mut self, budget: &Budget) {
        budget.give_back(std::mem::take(&mut self.released) as u64);
    }

    pub(super) fn give_back_spare(&mut self) {
        if self.run.is_empty() {
            self.run.shrink_to_fit();
        }
        super::closing::shrink_empty(&mut self.replay);
    }

    /// Drops what was read, for a reset or when the subscription goes.
    pub(super) fn clear(&mut self, budget: &Budget) {
        self.run.clear();
        self.replay.clear();
        self.released += std::mem::take(&mut self.held);
        self.give_back(budget);
    }
}

/// What a dispatcher may read without waiting.
pub(super) struct Reader<'a> {
    pub cache: &'a TailCache,
    pub read_ahead: &'a mut ReadAhead,
    pub ledgers: &'a LedgerList,
}

impl EntryReader for Reader<'_> {
    fn read_ready(&mut self, from: Position, max_entries: usize, max_bytes: usize, out: &mut Vec<Entry>) -> Ready {
        let last = self.ledgers.last_position();
        let from = if self.ledgers.contains(from) {
            from
        } else {
            match self.ledgers.next_after(Position { entry_id: from.entry_id - 1, ..from }) {
                Some(next) => next,
                None => return Ready::CaughtUp,
            }
        };
        if from > last {
            return Ready::CaughtUp;
        }
        while let Some(stale) = self.read_ahead.run.pop_front_if(|entry| entry.position < from) {
            self.read_ahead.remove(&stale);
        }
        if self.read_ahead.run.front().is_some_and(|entry| entry.position == from) {
            let mut bytes = 0;
            while out.len() < max_entries && bytes < max_bytes {
                let Some(entry) = self.read_ahead.run.pop_front() else { break };
                self.read_ahead.remove(&entry);
                bytes += entry.data.len();
                out.push(entry);
            }
            return Ready::Entries;
        }
        if self.cache.range(from, last, max_entries, max_bytes, out) > 0 {
            return Ready::Entries;
        }
        // The dispatcher went elsewhere (a rewind): what was read ahead is of no use.
        while let Some(stale) = self.read_ahead.run.pop_front() {
            self.read_ahead.remove(&stale);
        }
        Ready::NeedRead(from)
    }

    fn get(&mut self, at: Position) -> Option<Entry> {
        if let Some(entry) = self.read_ahead.replay.remove(&at) {
            self.read_ahead.remove(&entry);
            return Some(entry);
        }
        self.cache.get(at).cloned()
    }

    fn ledgers(&self) -> &LedgerList {
        self.ledgers
    }
}

impl Topic {
    /// Starts reading from a position on for a subscription, unless it is under way.
    pub(super) fn read_from(&self, state: &mut TopicState, name: &Arc<str>, from: Position, max_entries: usize) {
        let list = state.ledger.list();
        let Some(span) = list.get(from.ledger_id).filter(|span| span.entries > 0) else { return };
        let last = span.entries - 1;
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        if sub.read_ahead.reading {
            return;
        }
        sub.read_ahead.reading = true;
        let last = last.min(from.entry_id as u64 + max_entries.max(1) as u64 - 1);
        let bytes = if self.shared.memory.read_ahead.exhausted() { READ_BYTES_SCARCE } else { READ_BYTES };
        let read = self.shared.ledgers.read(from.ledger_id, from.entry_id as u64, last, bytes);
        let (topic, name) = (self.arc(), name.clone());
        tokio::spawn(async move {
            let started = Instant::now();
            let result = read.await;
            topic.shared.stages.read.record(started.elapsed());
            topic.read_done(&name, from.ledger_id, result);
        });
    }

    fn read_done(&self, name: &Arc<str>, ledger_id: u64, result: Result<Vec<StoredEntry>, LedgerError>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        sub.read_ahead.reading = false;
        let retry = self.keep(&mut sub.read_ahead, ledger_id, result, |read_ahead, entry| {
            read_ahead.run.push_back(entry);
        });
        match retry {
            None => self.dispatch(&mut state, name, &mut flushes),
            Some(after) => self.dispatch_soon(name, after),
        }
        drop(state);
        flushes.run();
    }

    /// Starts reading single entries for redelivery.
    pub(super) fn read_entries(&self, state: &mut TopicState, name: &Arc<str>, mut positions: Vec<Position>) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        if sub.read_ahead.replaying || positions.is_empty() {
            return;
        }
        sub.read_ahead.replaying = true;
        positions.sort_unstable();
        let (topic, name) = (self.arc(), name.clone());
        tokio::spawn(async move {
            let mut budget = if topic.shared.memory.read_ahead.exhausted() { READ_BYTES_SCARCE } else { READ_BYTES };
            let mut reads = Vec::new();
            for run in consecutive_runs(&positions) {
                let (first, last) = (run[0], run[run.len() - 1]);
                let result = topic
                    .shared
                    .ledgers
                    .read(first.ledger_id, first.entry_id as u64, last.entry_id as u64, budget)
                    .await;
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
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        sub.read_ahead.replaying = false;
        let mut retry = None;
        for (ledger_id, result) in reads {
            let again = self.keep(&mut sub.read_ahead, ledger_id, result, |read_ahead, entry| {
                if let Some(old) = read_ahead.replay.insert(entry.position, entry) {
                    read_ahead.remove(&old);
                }
            });
            retry = retry.or(again);
        }
        match retry {
            None => self.dispatch(&mut state, name, &mut flushes),
            Some(after) => self.dispatch_soon(name, after),
        }
        drop(state);
        flushes.run();
    }

    /// Puts entries that were read where the dispatcher finds them; says when to try again if they could not be read.
    fn keep(
        &self,
        read_ahead: &mut ReadAhead,
        ledger_id: u64,
        result: Result<Vec<StoredEntry>, LedgerError>,
        mut put: impl FnMut(&mut ReadAhead, Entry),
    ) -> Option<Duration> {
        let entries = match result {
            Ok(entries) => entries,
            Err(error) => {
                // Nothing is skipped: what cannot be read stays unacknowledged until it can be, or an operator decides.
                if read_ahead.failure.is_none() {
                    tracing::error!(topic = %self.name, ledger_id, %error, "entries could not be read; trying again");
                }
                read_ahead.failure = Some(error.to_string());
                return Some(RETRY);
            }
        };
        read_ahead.failure = None;
        for stored in entries {
            match decode_stored(ledger_id, stored.entry_id, stored.data) {
                Ok(entry) => {
                    read_ahead.add(&entry, &self.shared.memory.read_ahead);
                    put(read_ahead, entry);
                }
                Err(error) => {
                    tracing::error!(topic = %self.name, ledger_id, entry_id = stored.entry_id, %error, "entry is unreadable");
                    read_ahead.failure = Some(error);
                    return Some(RETRY);
                }
            }
        }
        None
    }
}

pub(super) fn decode_stored(ledger_id: u64, entry_id: u64, data: Bytes) -> Result<Entry, String> {
    let position = Position { ledger_id, entry_id: entry_id as i64 };
    read_entry(position, data).map_err(|error| format!("{position}: {error}"))
}

/// Splits sorted positions into runs that one read covers.
fn consecutive_runs(positions: &[Position]) -> impl Iterator<Item = &[Position]> {
    positions.chunk_by(|a, b| a.ledger_id == b.ledger_id && a.entry_id + 1 == b.entry_id)
}
