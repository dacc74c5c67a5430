//! Loading a topic: its record, the end of its last ledger, its subscriptions and what deduplication knew.

use std::sync::Arc;

use geminga_ledger::cursor::Cursor;
use geminga_ledger::managed_ledger::{ManagedLedger, ManagedLedgerConfig};
use geminga_ledger_client::LedgerError;
use geminga_metadata::{SubscriptionRecord, TopicRecord, Versioned};
use geminga_model::{Position, TopicName};
use geminga_topic::Subscription;
use geminga_topic::producers::Producers;
use geminga_topic::tail_cache::TailCache;
use parking_lot::Mutex;

use super::deduplication::DEDUP_CURSOR;
use super::ledger_io::managed_record;
use super::{Life, RecordState, Sub, Topic, TopicState};
use crate::bundle::Bundle;
use crate::error::{BrokerError, Result};
use crate::policies::EffectivePolicies;
use crate::shared::{Shared, now_ms};

impl Topic {
    /// Makes a topic serve. Whoever wrote to it before is fenced.
    pub(crate) async fn load(
        shared: Arc<Shared>,
        bundle: Arc<Bundle>,
        name: TopicName,
        record: Versioned<TopicRecord>,
        policies: EffectivePolicies,
    ) -> Result<Arc<Topic>> {
        let config = ManagedLedgerConfig {
            max_ledger_bytes: shared.config.max_ledger_bytes,
            max_ledger_age_ms: shared.config.max_ledger_age.as_millis() as u64,
            ..ManagedLedgerConfig::default()
        };
        let managed = managed_record(&record.value);
        managed.check().map_err(|wrong| BrokerError::Metadata(format!("record of {name}: {wrong}")))?;
        let ledger = ManagedLedger::new(managed, config);
        let state = TopicState {
            life: Life::Serving,
            ledger,
            producers: Producers::new(record.value.epoch, policies.max_producers().unwrap_or(0)),
            producer_handles: Default::default(),
            joining: Default::default(),
            last_active_at: now_ms(),
            clients_seen_at: now_ms(),
            record: RecordState { current: record.value, version: record.version },
            policies: Arc::new(policies),
            dedup: None,
            dedup_stored: Default::default(),
            cache: TailCache::new(),
            read_back: Default::default(),
            was_needed: None,
            subscriptions: Default::default(),
            consumers: Default::default(),
            last_entry: None,
            limits: None,
            publish_throttled: 0,
            backlog_too_old: false,
            next_unstored: Position { ledger_id: now_ms(), entry_id: 0 },
        };
        let topic = Arc::new_cyclic(|me| Topic {
            partition: name.partition_index().map_or(-1, |index| index as i32),
            name,
            shared,
            bundle,
            me: me.clone(),
            state: Mutex::new(state),
            record_turn: Default::default(),
            asked_at: Default::default(),
            changed: tokio::sync::Notify::new(),
            counters: Default::default(),
            writes: Default::default(),
            reads: Default::default(),
            rates: Default::default(),
        });
        topic.refresh_limits(&mut topic.state.lock());
        topic.recover_last_ledger().await?;
        topic.load_subscriptions().await?;
        topic.load_deduplication().await?;
        Ok(topic)
    }

    async fn recover_last_ledger(&self) -> Result<()> {
        let (ledger_id, announced_from) = {
            let state = self.state.lock();
            let Some(ledger_id) = state.ledger.needs_recovery() else { return Ok(()) };
            (ledger_id, state.record.current.announced_from)
        };
        let recovered = match announced_from.is_some_and(|first| ledger_id >= first) {
            true => self.shared.ledgers.recover_announced(ledger_id).await,
            false => self.shared.ledgers.recover(ledger_id).await,
        };
        let last = recovered.inspect_err(|error| {
            if let LedgerError::NoRecord(_) = error {
                tracing::error!(topic = %self.name, %error, "the topic is not served");
            }
        })?;
        let (last_entry, next_index) = match last {
            None => (-1, None),
            Some(last) => {
                let entry = self.read_one(Position { ledger_id, entry_id: last as i64 }).await?;
                // The index in an entry is that of its last message.
                let next_index = entry.meta.index.map(|index| index + 1);
                self.state.lock().last_entry = Some((entry.position, entry.meta));
                (last as i64, next_index)
            }
        };
        let size = self.shared.ledgers.size(ledger_id);
        self.state.lock().ledger.recovered(now_ms(), ledger_id, last_entry, size, next_index);
        Ok(())
    }

    async fn load_subscriptions(&self) -> Result<()> {
        let records = self.bundle.metadata.list_subscriptions(&self.name).await?;
        let mut state = self.state.lock();
        for (name, record) in records {
            let record = record.value;
            if name == DEDUP_CURSOR {
                state.dedup_stored.cursor_id = Some(record.cursor_id);
                state.dedup_stored.initial = record.initial;
                continue;
            }
            self.insert_stored(&mut state, name.into(), record);
        }
        Ok(())
    }

    /// Adds a subscription that metadata has, with what it has acknowledged.
    pub(super) fn insert_stored(&self, state: &mut TopicState, name: Arc<str>, record: SubscriptionRecord) {
        let cursor = match self.bundle.cursors.state(record.cursor_id) {
            Some(snapshot) => {
                self.stay_behind(state, &name, snapshot.last_ledger());
                Cursor::from_snapshot(snapshot)
            }
            None => Cursor::new(record.initial),
        };
        let core = Subscription::new(name.clone(), cursor, self.options(state, true));
        let replicated = record.replicated;
        let sub = Sub { replicated, ..Sub::durable(core, record.cursor_id, record.initial, record.properties) };
        state.subscriptions.insert(name, Box::new(sub));
    }

    /// What is written from now on is behind all that a subscription has acknowledged, also where the list has lost ledgers: else it
    /// would count as acknowledged.
    fn stay_behind(&self, state: &mut TopicState, subscription: &str, ledger_id: u64) {
        let last_known = state.ledger.last_ledger_id();
        if ledger_id > last_known && ledger_id != Position::LATEST.ledger_id {
            tracing::warn!(
                topic = %self.name,
                subscription,
                ledger_id,
                last_known,
                "acknowledgements name a ledger that the topic's list does not: 'geminga doctor' may know more"
            );
            state.ledger.knows_of_ledger(ledger_id);
        }
    }

    /// Reads one entry, from the cache or from storage.
    pub(super) async fn read_one(&self, at: Position) -> Result<geminga_topic::Entry> {
        if let Some(entry) = self.state.lock().cache.get(at) {
            return Ok(entry.clone());
        }
        let entry_id = at.entry_id as u64;
        let stored = self.shared.ledgers.read(at.ledger_id, entry_id, entry_id, 1).await?;
        let stored = stored.into_iter().next().ok_or(LedgerError::NoSuchEntry { ledger_id: at.ledger_id, entry_id })?;
        super::reading::decode_stored(at.ledger_id, stored.entry_id, stored.data)
            .map_err(|detail| BrokerError::Persistence(LedgerError::Corrupt { ledger_id: at.ledger_id, detail }))
    }
}
