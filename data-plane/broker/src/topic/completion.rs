//! When appends are durable or have failed: receipts, the last confirmed position, and what waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use geminga_ledger::managed_ledger::{FailReason, WriteError};
use geminga_ledger_client::LedgerError;
use geminga_model::Position;
use parking_lot::MutexGuard;

use super::{Flushes, ProducerHandle, Topic, TopicState};
use crate::completions::{Completion, Written};
use crate::error::BrokerError;
use crate::peer::Receipt;
use crate::shared::now_ms;

/// To so many subscriptions at most is an entry given on the thread of the storage, which others wait for.
const SUBSCRIPTIONS_AT_ONCE: usize = 8;

impl Topic {
    /// Handles finished appends, in the order in which they were made.
    pub(crate) fn written(&self, completions: Vec<Completion>) {
        self.written_under(self.state.lock(), completions);
    }

    /// Handles a finished append if that is done at once, and gives it back otherwise. The topic may be busy, perhaps on this very
    /// thread: an append that is refused at once ends where it began.
    pub(crate) fn written_at_once(&self, completion: Completion) -> Result<(), Completion> {
        match self.state.try_lock() {
            Some(state) if state.subscriptions.len() <= SUBSCRIPTIONS_AT_ONCE => {
                self.written_under(state, vec![completion]);
                Ok(())
            }
            _ => Err(completion),
        }
    }

    fn written_under(&self, mut state: MutexGuard<'_, TopicState>, completions: Vec<Completion>) {
        let mut flushes = Flushes::default();
        let mut receipts = Receipts::default();
        let stages = &self.shared.stages;
        let mut finished = Vec::with_capacity(completions.len());
        for completion in completions {
            let entries = completion.written.len() as u64;
            let latency = completion.finished - completion.started;
            stages.append.record_many(latency, entries);
            self.writes.durable(latency, entries);
            finished.push((completion.finished, entries));
            self.written_one(&mut state, completion, &mut receipts, &mut flushes);
        }
        receipts.send(&mut flushes);
        for (finished, entries) in finished {
            stages.receipt.record_many(finished.elapsed(), entries);
        }
        self.carry_out(&mut state, &mut flushes);
        self.dispatch_all(&mut state, &mut flushes);
        drop(state);
        flushes.run();
    }

    fn written_one(
        &self,
        state: &mut TopicState,
        completion: Completion,
        receipts: &mut Receipts,
        flushes: &mut Flushes,
    ) {
        let Completion { ledger_id, first_entry, written, result, .. } = completion;
        let count = written.len() as u64;
        let failure = result.as_ref().err().cloned();
        let outcome = state.ledger.written(
            ledger_id,
            first_entry as i64,
            count,
            result.map_err(|error| match error {
                LedgerError::DiskFull => WriteError::Full,
                LedgerError::Fenced(_) => WriteError::Fenced,
                other => WriteError::Failed(other.to_string()),
            }),
        );
        if outcome.confirmed == 0 {
            let cause = failure.unwrap_or_else(|| LedgerError::Io("an earlier append to this ledger failed".into()));
            if !matches!(cause, LedgerError::DiskFull) {
                tracing::warn!(topic = %self.name, ledger_id, first_entry, count, %cause, "append failed");
            }
            receipts.send(flushes);
            // What was cached under these positions will never be confirmed.
            self.shared.memory.tail_cache.give_back(state.cache.clear() as u64);
            self.fail(state, written.into_iter(), &BrokerError::Persistence(cause), flushes);
            return;
        }
        let mut freed = 0;
        let mut messages = 0u64;
        for (written, entry_id) in written.into_iter().zip(first_entry..) {
            let position = Position { ledger_id, entry_id: entry_id as i64 };
            let origin = written.origin;
            freed += written.bytes;
            messages += u64::from(written.meta.num_messages);
            self.writes.entry(written.bytes);
            let is_seen = origin.seen_by == state.dedup_stored.cursor_id;
            match &mut state.dedup {
                Some(dedup) if is_seen => {
                    dedup.persisted(&origin.producer.name, origin.highest_sequence_id, position);
                }
                Some(dedup) if !origin.inner_chunk => {
                    dedup.replayed(&origin.producer.name, origin.highest_sequence_id, position, now_ms());
                }
                _ => {}
            }
            state.last_entry = Some((position, written.meta));
            receipts.add(
                origin.producer,
                Receipt {
                    producer_id: 0,
                    sequence_id: origin.sequence_id,
                    highest_sequence_id: origin.highest_sequence_id,
                    position: Some(position),
                },
                written.bytes,
                flushes,
            );
        }
        self.counters.messages_in.fetch_add(messages, Ordering::Relaxed);
        self.counters.bytes_in.fetch_add(freed, Ordering::Relaxed);
        self.shared.memory.publishing.give_back(freed);
        self.count_for_deduplication(state, count);
    }

    /// Answers entries that will not become durable. What comes while the topic is being terminated gets no answer of its own:
    /// its producer is closed as soon as the termination is stored, and fails then when it connects again.
    pub(super) fn fail(
        &self,
        state: &mut TopicState,
        entries: impl Iterator<Item = Written>,
        error: &BrokerError,
        flushes: &mut Flushes,
    ) {
        let answered = !matches!(error, BrokerError::TopicTerminated(_));
        let mut freed = 0;
        for Written { bytes, origin, .. } in entries {
            freed += bytes;
            if let Some(dedup) = &mut state.dedup
                && origin.seen_by == state.dedup_stored.cursor_id
            {
                dedup.failed(&origin.producer.name);
            }
            if answered {
                origin.producer.refuse(origin.highest_sequence_id, error);
                flushes.add(&origin.producer.peer);
            }
            origin.producer.finished(1, bytes);
        }
        self.shared.memory.publishing.give_back(freed);
    }

    pub(super) fn write_refused(&self, reason: &FailReason) -> BrokerError {
        match reason {
            FailReason::Terminated => BrokerError::TopicTerminated(self.name.to_string()),
            FailReason::Write(WriteError::Full) => BrokerError::Persistence(LedgerError::DiskFull),
            other => BrokerError::Persistence(LedgerError::Io(other.to_string())),
        }
    }
}

impl ProducerHandle {
    /// So many entries have been answered.
    pub(super) fn finished(&self, entries: usize, bytes: u64) {
        self.peer.settled(bytes);
        if self.in_flight.fetch_sub(entries, Ordering::AcqRel) == entries {
            self.drained.notify_waiters();
        }
    }
}

/// Receipts gathered for one producer at a time.
#[derive(Default)]
struct Receipts {
    producer: Option<Arc<ProducerHandle>>,
    receipts: Vec<Receipt>,
    bytes: u64,
}

impl Receipts {
    fn add(&mut self, producer: Arc<ProducerHandle>, receipt: Receipt, bytes: u64, flushes: &mut Flushes) {
        if !self.producer.as_ref().is_some_and(|current| Arc::ptr_eq(current, &producer)) {
            self.send(flushes);
            self.producer = Some(producer.clone());
        }
        self.bytes += bytes;
        self.receipts.push(Receipt { producer_id: producer.producer_id, ..receipt });
    }

    fn send(&mut self, flushes: &mut Flushes) {
        if let Some(producer) = self.producer.take() {
            producer.peer.receipts(&self.receipts);
            flushes.add(&producer.peer);
            producer.finished(self.receipts.len(), std::mem::take(&mut self.bytes));
            self.receipts.clear();
        }
    }
}
