//! What a managed ledger asks for besides writing: new ledgers, its record in metadata, sealing and deleting.
//!
//! Each runs as a task and reports back under the topic's lock. Writers of the topic's record take turns.

use geminga_ledger::ledger_list::LedgerSpan;
use geminga_ledger::managed_ledger::ManagedLedgerRecord;
use geminga_ledger_client::LedgerError;
use geminga_metadata::{LedgerInfo, MetadataError, Op, TopicRecord};
use geminga_model::Position;

use super::{Flushes, Topic, TopicState};
use crate::error::BrokerError;
use crate::shared::now_ms;

/// The managed ledger's part of a topic's record.
pub(super) fn managed_record(record: &TopicRecord) -> ManagedLedgerRecord {
    ManagedLedgerRecord {
        spans: record
            .ledgers
            .iter()
            .map(|info| LedgerSpan {
                ledger_id: info.ledger_id,
                entries: info.entries,
                size: info.size,
                timestamp_ms: info.timestamp,
                first_index: info.first_index,
            })
            .collect(),
        last_open: record.last_open,
        next_index: record.next_index,
        terminated: record.terminated,
        last_ledger: record.greatest_ledger(),
    }
}

fn put_managed_record(record: &mut TopicRecord, managed: ManagedLedgerRecord) {
    record.ledgers = managed
        .spans
        .iter()
        .map(|span| LedgerInfo {
            ledger_id: span.ledger_id,
            entries: span.entries,
            size: span.size,
            timestamp: span.timestamp_ms,
            first_index: span.first_index,
        })
        .collect();
    record.last_open = managed.last_open;
    record.next_index = managed.next_index;
    record.terminated = managed.terminated;
    record.set_greatest_ledger(managed.last_ledger);
}

impl Topic {
    /// Allocates a ledger, stores it in the topic's record, then lets the managed ledger write to it.
    pub(super) fn create_ledger(&self) {
        let topic = self.arc();
        tokio::spawn(async move {
            let result = topic.store_new_ledger().await;
            let mut flushes = Flushes::default();
            let mut state = topic.state.lock();
            match result {
                Ok(id) => {
                    topic.shared.ledgers.owned_by(id, &topic.bundle.metadata);
                    state.ledger.ledger_created(now_ms(), id);
                }
                // The topic is another's, or closed.
                Err(error) if error.is_deposed() => state.ledger.fence(),
                Err(error) => {
                    tracing::error!(topic = %topic.name, %error, "could not create a ledger");
                    state.ledger.ledger_create_failed(&error.to_string());
                }
            }
            topic.carry_out(&mut state, &mut flushes);
            drop(state);
            flushes.run();
        });
    }

    async fn store_new_ledger(&self) -> Result<u64, MetadataError> {
        let after = self.state.lock().ledger.last_ledger_id();
        let id = self.bundle.metadata.next_ledger_id(after).await?;
        let now = now_ms();
        let announced = self.shared.ledgers.announcement(id);
        let is_announced = announced.is_some();
        let change = |record: &mut TopicRecord, state: &TopicState| {
            put_managed_record(record, state.ledger.record_with(id, now));
            if is_announced {
                record.announced_from.get_or_insert(id);
            }
        };
        self.write_record(change, announced).await?;
        Ok(id)
    }

    /// Writes the topic's record as `change` makes it, if nobody else has written it since.
    async fn write_record(
        &self,
        change: impl FnOnce(&mut TopicRecord, &TopicState) + Send,
        announced: Option<Op>,
    ) -> Result<(), MetadataError> {
        let mut turn = self.record_turn.lock().await;
        let (record, version, dropped) = {
            let state = self.state.lock();
            let mut record = state.record.current.clone();
            change(&mut record, &state);
            let kept = |id| record.ledgers.iter().any(|ledger| ledger.ledger_id == id);
            let before = state.record.current.ledgers.iter();
            let dropped: Vec<u64> = before.map(|ledger| ledger.ledger_id).filter(|id| !kept(*id)).collect();
            (record, state.record.version, dropped)
        };
        let metadata = self.begin_commit(&mut turn)?;
        let replaced = metadata.replace_topic(&self.name, &record, version, &dropped, announced).await;
        self.committed(&mut turn, &replaced);
        let version = replaced?;
        turn.settled();
        let mut state = self.state.lock();
        state.record.current = record;
        state.record.version = version;
        Ok(())
    }

    pub(super) fn save_record(&self) {
        let topic = self.arc();
        tokio::spawn(async move {
            let result =
                topic.write_record(|record, state| put_managed_record(record, state.ledger.record()), None).await;
            let mut flushes = Flushes::default();
            let mut state = topic.state.lock();
            match result {
                Ok(()) => state.ledger.record_saved(),
                // The topic is another's, or closed.
                Err(error) if error.is_deposed() => state.ledger.fence(),
                Err(error) => {
                    tracing::error!(topic = %topic.name, %error, "could not save the list of ledgers");
                    state.ledger.record_save_failed();
                }
            }
            if let Some(last) = state.ledger.terminated() {
                topic.tell_terminated(&mut state, last, &mut flushes);
            }
            topic.carry_out(&mut state, &mut flushes);
            drop(state);
            flushes.run();
        });
    }

    fn tell_terminated(&self, state: &mut TopicState, last: Position, flushes: &mut Flushes) {
        tracing::debug!(topic = %self.name, %last, "topic is terminated");
        self.close_producers(state, flushes);
        for sub in state.subscriptions.values_mut() {
            sub.core.terminated();
        }
        self.dispatch_all(state, flushes);
        self.changed.notify_waiters();
    }

    /// Changes other fields of the topic's record durably.
    pub(super) async fn change_record(&self, change: impl FnOnce(&mut TopicRecord) + Send) -> Result<(), BrokerError> {
        Ok(self.write_record(|record, _| change(record), None).await?)
    }

    /// Fences a ledger that was given up; its end is in the record already, so a failure costs nothing but a line.
    pub(super) fn seal(&self, ledger_id: u64) {
        let sealed = self.shared.ledgers.recover(ledger_id);
        let name = self.name.clone();
        tokio::spawn(async move {
            match sealed.await {
                // It was deleted since.
                Ok(_) | Err(LedgerError::NoSuchLedger(_)) => {}
                Err(error) => {
                    tracing::warn!(topic = %name, ledger_id, %error, "could not fence a ledger that was closed")
                }
            }
        });
    }

    /// Deletes ledgers that the record no longer names; what fails here is found again by the sweep of garbage.
    pub(super) fn delete_ledgers(&self, ledgers: Vec<u64>) {
        let topic = self.arc();
        tokio::spawn(async move {
            if let Err(error) = topic.shared.ledgers.delete(ledgers.clone()).await {
                tracing::warn!(topic = %topic.name, ?ledgers, %error, "could not delete ledgers; the sweep will");
                return;
            }
            if let Err(error) = topic.bundle.metadata.forget_garbage(&ledgers).await {
                tracing::debug!(topic = %topic.name, ?ledgers, %error, "deleted ledgers stay noted as garbage");
            }
        });
    }

    /// Lets retention free what no subscription needs; called on a timer and when a subscription goes.
    pub(crate) fn trim(&self) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        state.ledger.tick(now_ms());
        let slowest = self.slowest_durable(&state);
        let limit = self.trim_limit(&mut state, slowest);
        let retention = state.policies.retention();
        let TopicState { ledger, subscriptions, .. } = &mut *state;
        if ledger.trim(now_ms(), limit, retention) > 0 {
            for sub in subscriptions.values_mut() {
                sub.core.on_trimmed(ledger.list());
            }
        }
        self.carry_out(&mut state, &mut flushes);
        drop(state);
        flushes.run();
    }

    /// The lowest mark-delete position of the durable subscriptions that is itself durable.
    pub(super) fn slowest_durable(&self, state: &TopicState) -> Option<Position> {
        state
            .subscriptions
            .values()
            .filter_map(|sub| sub.cursor_id.map(|id| self.bundle.cursors.durable_mark_delete(id, sub.initial)))
            .min()
    }
}
