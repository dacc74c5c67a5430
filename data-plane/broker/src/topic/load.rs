//! Loading a topic: its record, the end of its last ledger, its subscriptions and what deduplication knew.

use std::sync::Arc;

use geminga_ledger::cursor::Cursor;
use geminga_ledger::managed_ledger::{ManagedLedger, ManagedLedgerConfig};
use geminga_metadata::{TopicRecord, Versioned};
use geminga_model::{Position, TopicName};
use geminga_topic::Subscription;
use geminga_topic::dedup::Deduplication;
use geminga_topic::producers::Producers;
use geminga_topic::tail_cache::TailCache;
use parking_lot::Mutex;

use super::ledger_io::managed_record;
use super::{Life, RecordState, Sub, Topic, TopicState};
use crate::error::{BrokerError, Result};
use crate::policies::EffectivePolicies;
use crate::shared::{Shared, now_ms};

/// Bytes read at once while deduplication is brought up to date.
const REPLAY_BYTES: usize = 4 << 20;
/// Name under which a topic's deduplication state is kept beside its subscriptions, as Pulsar calls that cursor.
const DEDUP_CURSOR: &str = "pulsar.dedup";

impl Topic {
    /// Makes a topic serve. Whoever wrote to it before is fenced.
    pub(crate) async fn load(
        shared: Arc<Shared>,
        name: TopicName,
        record: Versioned<TopicRecord>,
        policies: EffectivePolicies,
    ) -> Result<Arc<Topic>> {
        let config = ManagedLedgerConfig {
            max_ledger_bytes: shared.config.max_ledger_bytes,
            max_ledger_age_ms: shared.config.max_ledger_age.as_millis() as u64,
            ..ManagedLedgerConfig::default()
        };
        let ledger = ManagedLedger::new(managed_record(&record.value), config);
        let state = TopicState {
            life: Life::Serving,
            ledger,
            producers: Producers::new(record.value.epoch, policies.max_producers().unwrap_or(0)),
            producer_handles: Default::default(),
            joining: Default::default(),
            last_active_at: now_ms(),
            record: RecordState { current: record.value, version: record.version },
            policies: Arc::new(policies),
            dedup: None,
            entries_since_snapshot: 0,
            dedup_cursor: None,
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
            me: me.clone(),
            state: Mutex::new(state),
            record_turn: tokio::sync::Mutex::new(()),
            asked_at: Default::default(),
            changed: tokio::sync::Notify::new(),
            counters: Default::default(),
            writes: Default::default(),
            rates: Default::default(),
        });
        topic.refresh_limits(&mut topic.state.lock());
        topic.recover_last_ledger().await?;
        topic.load_subscriptions().await?;
        topic.load_deduplication().await?;
        Ok(topic)
    }

    async fn recover_last_ledger(&self) -> Result<()> {
        let Some(ledger_id) = self.state.lock().ledger.needs_recovery() else { return Ok(()) };
        let last = self.shared.ledgers.recover(ledger_id).await?;
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
        let records = self.shared.metadata.list_subscriptions(&self.name).await?;
        let mut state = self.state.lock();
        for (name, record) in records {
            let record = record.value;
            if name == DEDUP_CURSOR {
                state.dedup_cursor = Some(record.cursor_id);
                continue;
            }
            let cursor = match self.shared.cursors.state(record.cursor_id) {
                Some(snapshot) => Cursor::from_snapshot(snapshot),
                None => Cursor::new(record.initial),
            };
            let name: Arc<str> = name.into();
            let core = Subscription::new(name.clone(), cursor, self.options(&state, true));
            let sub = Sub::durable(core, record.cursor_id, record.initial, record.properties);
            state.subscriptions.insert(name, Box::new(sub));
        }
        Ok(())
    }

    /// Turns deduplication on or off as the policies say.
    pub(super) async fn load_deduplication(&self) -> Result<()> {
        let (wanted, on) = {
            let state = self.state.lock();
            let wanted = state.policies.deduplication(self.shared.config.deduplication);
            (wanted && self.name.is_persistent(), state.dedup.is_some())
        };
        if !wanted {
            self.state.lock().dedup = None;
            return Ok(());
        }
        if on {
            return Ok(());
        }
        let known = self.state.lock().dedup_cursor;
        let cursor_id = match known {
            Some(id) => id,
            None => self.create_dedup_cursor().await?,
        };
        let (mut dedup, from) = match self.shared.cursors.blob(cursor_id) {
            Some(snapshot) => {
                let (dedup, position) = Deduplication::decode(&snapshot, now_ms())
                    .map_err(|error| BrokerError::Metadata(format!("deduplication snapshot: {error}")))?;
                (dedup, position)
            }
            // A crash took the first snapshot: all that is stored counts.
            None => (Deduplication::new(), Position::EARLIEST),
        };
        self.replay_deduplication(&mut dedup, from).await?;
        let mut state = self.state.lock();
        state.dedup_cursor = Some(cursor_id);
        state.dedup = Some(dedup);
        Ok(())
    }

    async fn create_dedup_cursor(&self) -> Result<u64> {
        let cursor_id = self.shared.metadata.next_cursor_id().await?;
        let record = geminga_metadata::SubscriptionRecord {
            cursor_id,
            initial: Position::EARLIEST,
            properties: Default::default(),
            created_at: now_ms(),
            replicated: false,
        };
        self.shared.metadata.create_subscription(&self.name, DEDUP_CURSOR, record).await?;
        // An empty snapshot at the present end: what comes after a crash is replayed from here.
        let position = self.last_confirmed();
        self.shared.cursors.put_blob(cursor_id, Deduplication::new().encode(position).into());
        Ok(cursor_id)
    }

    /// Reads what was stored after the last snapshot.
    async fn replay_deduplication(&self, dedup: &mut Deduplication, after: Position) -> Result<()> {
        let mut at = after;
        loop {
            let (next, last) = {
                let state = self.state.lock();
                let list = state.ledger.list();
                let Some(next) = list.next_after(at) else { return Ok(()) };
                let Some(span) = list.get(next.ledger_id) else { return Ok(()) };
                (next, span.entries.saturating_sub(1))
            };
            let entries = self.shared.ledgers.read(next.ledger_id, next.entry_id as u64, last, REPLAY_BYTES).await?;
            if entries.is_empty() {
                return Err(BrokerError::Metadata(format!("no entries at {next} to bring deduplication up to date")));
            }
            for stored in entries {
                at = Position { ledger_id: next.ledger_id, entry_id: stored.entry_id as i64 };
                let view = geminga_wire_pulsar::parse_payload(&stored.data)
                    .map_err(|error| BrokerError::Metadata(format!("entry {at}: {error}")))?;
                if view.meta.chunk.is_some_and(|chunk| chunk.id + 1 < chunk.num_chunks) {
                    continue;
                }
                dedup.replayed(view.producer_name(), view.meta.last_sequence_id(), at, now_ms());
            }
        }
    }

    /// Stores what deduplication knows every so many entries, so that little is to be read after a crash.
    pub(super) fn snapshot_deduplication(&self, state: &mut TopicState) {
        if state.entries_since_snapshot < self.shared.config.deduplication_snapshot_entries {
            return;
        }
        state.entries_since_snapshot = 0;
        let position = state.ledger.list().last_position();
        if let (Some(dedup), Some(cursor_id)) = (&mut state.dedup, state.dedup_cursor) {
            dedup.expire(now_ms());
            self.shared.cursors.put_blob(cursor_id, dedup.encode(position).into());
        }
    }

    /// Reads one entry, from the cache or from storage.
    pub(super) async fn read_one(&self, at: Position) -> Result<geminga_topic::Entry> {
        if let Some(entry) = self.state.lock().cache.get(at) {
            return Ok(entry.clone());
        }
        let entry_id = at.entry_id as u64;
        let stored = self.shared.ledgers.read(at.ledger_id, entry_id, entry_id, 1).await?;
        let stored = stored
            .into_iter()
            .next()
            .ok_or(geminga_ledger_client::LedgerError::NoSuchEntry { ledger_id: at.ledger_id, entry_id })?;
        super::reading::decode_stored(at.ledger_id, stored.entry_id, stored.data).map_err(|detail| {
            BrokerError::Persistence(geminga_ledger_client::LedgerError::Corrupt { ledger_id: at.ledger_id, detail })
        })
    }
}
