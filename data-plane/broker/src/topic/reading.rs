//! Reading behind the tail cache: large sequential reads, which all subscriptions of a topic share.
//!
//! A subscription that needs an entry waits for the read that covers it, its own or another's. While one goes through what
//! was read, the next pieces are read ahead: several, so that the disk has work while others are on their way from storage nodes
//! and are being unpacked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_ledger::ledger_list::LedgerList;
use geminga_ledger_client::{LedgerError, StoredEntry};
use geminga_model::Position;
use geminga_topic::read_cache::ReadCache;
use geminga_topic::tail_cache::TailCache;
use geminga_topic::{Entry, EntryReader, Ready};

use super::replaying::Replay;
use super::{Flushes, Topic, TopicState};
use crate::entry_meta::read_entry;
use geminga_flow::Budget;

/// One read, in bytes.
pub(super) const READ_BYTES: usize = 1 << 20;
/// The same while the budget for read-ahead is used up: progress, slowly.
pub(super) const READ_BYTES_SCARCE: usize = 64 << 10;
/// One more piece is read ahead for each of these while less than this share of the budget, as its divisor, is used.
const AHEAD: [u64; 4] = [2, 4, 8, 8];
/// Pause after a read that failed before it is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// What a topic has read back from storage and is reading.
#[derive(Default)]
pub(super) struct ReadBack {
    cache: ReadCache,
    under_way: Vec<UnderWay>,
}

/// A read that has not returned, with what it is expected to cover.
struct UnderWay {
    ledger_id: u64,
    first: u64,
    last: u64,
    /// Taken from the budget for it.
    bytes: u64,
}

impl ReadBack {
    /// The read under way that is expected to bring the entry.
    fn covering(&self, position: Position) -> Option<&UnderWay> {
        self.under_way.iter().find(|read| {
            read.ledger_id == position.ledger_id && (read.first..=read.last).contains(&(position.entry_id as u64))
        })
    }

    fn covers(&self, position: Position) -> bool {
        self.covering(position).is_some()
    }

    /// The read from there is not under way any more.
    fn arrived(&mut self, from: Position, budget: &Budget) {
        let name = (from.ledger_id, from.entry_id as u64);
        let done = self.under_way.extract_if(.., |read| (read.ledger_id, read.first) == name);
        budget.give_back(done.map(|read| read.bytes).sum());
    }

    /// Drops everything.
    pub(super) fn clear(&mut self, budget: &Budget) {
        budget.give_back(self.cache.clear() as u64);
    }

    /// Drops what was not used for a while.
    pub(super) fn give_back_spare(&mut self, budget: &Budget) {
        budget.give_back(self.cache.evict_unused() as u64);
    }

    fn insert(&mut self, entries: Vec<Entry>, budget: &Budget) {
        if budget.exhausted() {
            let bytes = entries.iter().map(Entry::cost).sum();
            budget.give_back(self.cache.evict_bytes(bytes) as u64);
        }
        let before = self.cache.bytes();
        self.cache.insert(entries);
        budget.take((self.cache.bytes() - before) as u64);
    }
}

/// What a dispatcher may read without waiting.
pub(super) struct Reader<'a> {
    pub tail: &'a TailCache,
    pub read_back: &'a mut ReadBack,
    pub replay: &'a mut Replay,
    pub ledgers: &'a LedgerList,
    /// Set to where the piece ends from which the dispatcher has read last, for reading on from there.
    pub ahead: Option<Position>,
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
        if self.tail.range(from, last, max_entries, max_bytes, out) > 0 {
            return Ready::Entries;
        }
        match self.read_back.cache.range(from, max_entries, max_bytes, out) {
            Some(end) => {
                self.ahead = Some(end);
                Ready::Entries
            }
            None => Ready::NeedRead(from),
        }
    }

    fn get(&mut self, at: Position) -> Option<Entry> {
        self.replay.take(at).or_else(|| self.tail.get(at).or_else(|| self.read_back.cache.get(at)).cloned())
    }

    fn has(&self, at: Position) -> bool {
        self.replay.has(at) || self.tail.get(at).is_some() || self.read_back.cache.get(at).is_some()
    }

    fn single_reads_fail(&self) -> bool {
        self.replay.failing
    }

    fn forget(&mut self, at: Position) {
        self.replay.forget(at);
    }

    fn ledgers(&self) -> &LedgerList {
        self.ledgers
    }
}

impl Topic {
    /// Sees to it that the entry at a position is read for a subscription.
    pub(super) fn read_from(&self, state: &mut TopicState, name: &Arc<str>, from: Position, max_entries: usize) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        sub.awaits_read = true;
        if !state.read_back.covers(from) {
            self.start_reading(state, from, max_entries);
        }
    }

    /// Reads the next pieces before they are asked for, if memory allows: the first of them rather than the last.
    pub(super) fn read_ahead(&self, state: &mut TopicState, mut from: Position) {
        let budget = &self.shared.memory.read_ahead;
        for share in AHEAD {
            let list = state.ledger.list();
            let next = match list.contains(from) {
                true => Some(from),
                false => list.next_after(from.previous()),
            };
            let Some(next) = next else { return };
            if state.cache.first().is_some_and(|at| at <= next) {
                return;
            }
            if let Some(end) = state.read_back.cache.held_to(next) {
                from = end;
                continue;
            }
            if !state.read_back.covers(next) {
                if budget.used() >= budget.limit() / share {
                    return;
                }
                self.start_reading(state, next, usize::MAX);
            }
            let Some(read) = state.read_back.covering(next) else { return };
            from = Position { entry_id: read.last as i64 + 1, ..next };
        }
    }

    /// Reads up to what is in memory already. Not more than `max_entries` when memory is scarce.
    fn start_reading(&self, state: &mut TopicState, from: Position, max_entries: usize) {
        let Some(span) = state.ledger.list().get(from.ledger_id).filter(|span| span.entries > 0) else { return };
        let first = from.entry_id as u64;
        let (mut last, mut bytes) = (span.entries - 1, READ_BYTES);
        if self.shared.memory.read_ahead.exhausted() {
            last = last.min(first.saturating_add(max_entries.max(1) as u64 - 1));
            bytes = READ_BYTES_SCARCE;
        }
        for known in [state.read_back.cache.next_held(from), state.cache.first()].into_iter().flatten() {
            if known.ledger_id == from.ledger_id && known > from {
                last = last.min(known.entry_id as u64 - 1);
            }
        }
        // Not more than is expected, so that the next piece can begin behind it.
        let entry_bytes = (span.size / span.entries).max(1);
        last = last.min(first.saturating_add((bytes as u64 / entry_bytes).max(1) - 1));
        let expected = entry_bytes.saturating_mul(last - first + 1);
        self.shared.memory.read_ahead.take(expected);
        state.read_back.under_way.push(UnderWay { ledger_id: from.ledger_id, first, last, bytes: expected });
        let read = self.shared.ledgers.read(from.ledger_id, first, last, bytes);
        let topic = self.arc();
        tokio::spawn(async move {
            let started = Instant::now();
            let result = read.await;
            let took = started.elapsed();
            topic.shared.stages.read.record(took);
            topic.reads.done(took, result.as_ref().map_or(0, Vec::len));
            topic.read_done(from, result);
        });
    }

    fn read_done(&self, from: Position, result: Result<Vec<StoredEntry>, LedgerError>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        state.read_back.arrived(from, &self.shared.memory.read_ahead);
        let (entries, failure) = self.decode(from.ledger_id, result);
        state.read_back.insert(entries, &self.shared.memory.read_ahead);
        let waiting: Vec<Arc<str>> =
            state.subscriptions.iter().filter(|(_, sub)| sub.awaits_read).map(|(name, _)| name.clone()).collect();
        for name in waiting {
            if let Some(sub) = state.subscriptions.get_mut(&name) {
                sub.awaits_read = false;
                sub.note_read(&self.name, &failure);
            }
            match failure {
                None => self.dispatch(&mut state, &name, &mut flushes),
                Some(_) => self.dispatch_soon(&name, RETRY),
            }
        }
        self.trim_read_back(&mut state);
        drop(state);
        flushes.run();
    }

    /// Forgets entries that every connected subscription has passed.
    pub(super) fn trim_read_back(&self, state: &mut TopicState) {
        let budget = &self.shared.memory.read_ahead;
        match state.first_needed() {
            Some(position) => budget.give_back(state.read_back.cache.evict_below(position) as u64),
            None => state.read_back.clear(budget),
        }
    }

    /// What was read, up to the first entry that cannot be understood, and what went wrong.
    pub(super) fn decode(
        &self,
        ledger_id: u64,
        result: Result<Vec<StoredEntry>, LedgerError>,
    ) -> (Vec<Entry>, Option<String>) {
        let stored = match result {
            Ok(stored) => stored,
            Err(error) => return (Vec::new(), Some(error.to_string())),
        };
        let mut entries = Vec::with_capacity(stored.len());
        for StoredEntry { entry_id, data } in stored {
            match decode_stored(ledger_id, entry_id, data) {
                Ok(entry) => entries.push(entry),
                Err(error) => return (entries, Some(error)),
            }
        }
        (entries, None)
    }
}

pub(super) fn decode_stored(ledger_id: u64, entry_id: u64, data: Bytes) -> Result<Entry, String> {
    let position = Position { ledger_id, entry_id: entry_id as i64 };
    read_entry(position, data).map_err(|error| format!("{position}: {error}"))
}
