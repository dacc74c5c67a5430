//! What deduplication knows of a topic, across restarts: snapshots in the cursor log, and what was stored since.

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{MetadataError, SubscriptionRecord};
use geminga_model::Position;
use geminga_topic::dedup::{Deduplication, snapshot_holds_up_trimming};
use parking_lot::Mutex;

use super::record_turn::RecordTurn;
use super::{Life, Topic, TopicState};
use crate::cursors::CursorDone;
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

/// Bytes read at once while deduplication is brought up to date.
const REPLAY_BYTES: usize = 4 << 20;
/// Pause before metadata is told again to forget it.
const RETRY: Duration = Duration::from_secs(2);
/// Name under which a topic's deduplication state is kept beside its subscriptions, as Pulsar calls that cursor.
pub(super) const DEDUP_CURSOR: &str = "pulsar.dedup";

/// Where what deduplication knows is stored.
pub(super) struct Stored {
    pub cursor_id: Option<u64>,
    /// Entries after this count while there is no snapshot.
    pub initial: Position,
    /// Metadata is to forget it, and may have done so.
    pub forgetting: bool,
    /// Entries since the last snapshot.
    pub entries_since: u64,
    /// Of the last snapshot that is durable.
    pub durable: Arc<Mutex<Position>>,
}

impl Default for Stored {
    fn default() -> Self {
        Self {
            cursor_id: None,
            initial: Position::EARLIEST,
            forgetting: false,
            entries_since: 0,
            durable: Arc::new(Mutex::new(Position::EARLIEST)),
        }
    }
}

impl Topic {
    /// Turns deduplication on or off as the policies say.
    pub(super) async fn load_deduplication(&self) -> Result<()> {
        let (wanted, forgetting) = {
            let state = self.state.lock();
            (self.wants_deduplication(&state), state.dedup_stored.forgetting)
        };
        if !wanted || forgetting {
            self.forget_deduplication().await?;
        }
        if !wanted || self.state.lock().dedup.is_some() {
            return Ok(());
        }
        let (cursor_id, initial) = self.dedup_cursor().await?;
        let (mut dedup, from) = match self.bundle.cursors.blob(cursor_id) {
            Some(snapshot) => Deduplication::decode(&snapshot, now_ms())
                .map_err(|error| BrokerError::Metadata(format!("deduplication snapshot: {error}")))?,
            // A crash took the first snapshot: all that was stored since it was switched on counts.
            None => (Deduplication::new(), initial),
        };
        let durable: Arc<Mutex<Position>> = Arc::new(Mutex::new(Position::EARLIEST));
        let (mut at, mut replayed) = (from, 0);
        let mut state = loop {
            let (end, count) = self.replay_deduplication(&mut dedup, at).await?;
            (at, replayed) = (end, replayed + count);
            let state = self.state.lock();
            // Some may have become durable since, and been seen by nobody.
            if state.ledger.list().next_after(at).is_none() {
                break state;
            }
        };
        if state.dedup_stored.cursor_id != Some(cursor_id) || state.dedup.is_some() {
            // Policies have changed meanwhile.
            return Ok(());
        }
        state.dedup_stored.entries_since = replayed;
        state.dedup_stored.durable = durable.clone();
        state.dedup = Some(dedup);
        drop(state);
        self.bundle.cursors.after_queued(becomes_durable(durable, from));
        Ok(())
    }

    fn wants_deduplication(&self, state: &TopicState) -> bool {
        self.name.is_persistent() && state.policies.deduplication(self.shared.config.deduplication)
    }

    /// Switches it off. From then on messages pass unseen, and what was stored would call those repeated that a producer numbers
    /// anew: it is on until metadata has forgotten where that is, also when this fails.
    async fn forget_deduplication(&self) -> Result<()> {
        let mut turn = self.record_turn.lock().await;
        let cursor_id = {
            let mut state = self.state.lock();
            let Some(cursor_id) = state.dedup_stored.cursor_id else { return Ok(()) };
            let wanted_again = self.wants_deduplication(&state) && !state.dedup_stored.forgetting;
            if wanted_again || matches!(state.life, Life::Closing | Life::Closed) {
                return Ok(());
            }
            state.dedup_stored.forgetting = true;
            cursor_id
        };
        match self.delete_dedup_record(&mut turn).await {
            Ok(()) => {}
            // An earlier attempt came through, and nobody learned of it.
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(topic = %self.name, %error, "could not switch deduplication off; trying again");
                self.forget_later();
                return Err(error.into());
            }
        }
        let mut state = self.state.lock();
        state.dedup = None;
        state.dedup_stored = Stored::default();
        self.bundle.cursors.drop_blob(cursor_id);
        Ok(())
    }

    async fn delete_dedup_record(&self, turn: &mut RecordTurn) -> std::result::Result<(), MetadataError> {
        let deleted = self.begin_commit(turn)?.delete_subscription(&self.name, DEDUP_CURSOR).await;
        self.committed(turn, &deleted);
        deleted
    }

    async fn create_dedup_record(
        &self,
        turn: &mut RecordTurn,
        record: SubscriptionRecord,
    ) -> std::result::Result<(), MetadataError> {
        let created = self.begin_commit(turn)?.create_subscription(&self.name, DEDUP_CURSOR, record).await;
        self.committed(turn, &created);
        created.map(drop)
    }

    fn forget_later(&self) {
        let topic = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETRY).await;
            let Some(topic) = topic.upgrade() else { return };
            if let Err(error) = topic.load_deduplication().await {
                tracing::debug!(topic = %topic.name, %error, "deduplication is not yet as policies say");
            }
        });
    }

    /// Where it is stored, and the position after which entries count while there is no snapshot.
    async fn dedup_cursor(&self) -> Result<(u64, Position)> {
        let mut turn = self.record_turn.lock().await;
        {
            let stored = &self.state.lock().dedup_stored;
            if let Some(cursor_id) = stored.cursor_id {
                return Ok((cursor_id, stored.initial));
            }
        }
        let cursor_id = self.bundle.metadata.next_cursor_id().await?;
        let record = SubscriptionRecord {
            cursor_id,
            initial: self.last_confirmed(),
            properties: Default::default(),
            created_at: now_ms(),
            replicated: false,
        };
        let initial = record.initial;
        match self.create_dedup_record(&mut turn, record.clone()).await {
            // An earlier attempt came through, and nobody learned of it: messages have passed unseen since.
            Err(MetadataError::AlreadyExists { .. }) => {
                self.delete_dedup_record(&mut turn).await?;
                self.create_dedup_record(&mut turn, record).await?
            }
            created => created?,
        };
        // An empty snapshot: what comes after a crash is replayed from here, with what has come since.
        let snapshot = Deduplication::new().encode(initial).into();
        self.bundle.cursors.put_blob(cursor_id, snapshot, Box::new(|_| ()));
        let mut state = self.state.lock();
        state.dedup_stored.cursor_id = Some(cursor_id);
        state.dedup_stored.initial = initial;
        Ok((cursor_id, initial))
    }

    /// Reads what was stored after a position. Returns that of the last, and how many entries they were.
    async fn replay_deduplication(&self, dedup: &mut Deduplication, after: Position) -> Result<(Position, u64)> {
        let mut at = after;
        let mut count = 0;
        loop {
            let (next, last) = {
                let state = self.state.lock();
                let list = state.ledger.list();
                let Some(next) = list.next_after(at) else { return Ok((at, count)) };
                let Some(span) = list.get(next.ledger_id) else { return Ok((at, count)) };
                (next, span.entries.saturating_sub(1))
            };
            let entries = self.shared.ledgers.read(next.ledger_id, next.entry_id as u64, last, REPLAY_BYTES).await?;
            if entries.is_empty() {
                return Err(BrokerError::Metadata(format!("no entries at {next} to bring deduplication up to date")));
            }
            count += entries.len() as u64;
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

    /// Entries were stored. Every so many, what deduplication knows is, too, so that little is to be read after a crash.
    pub(super) fn count_for_deduplication(&self, state: &mut TopicState, entries: u64) {
        state.dedup_stored.entries_since += entries;
        if state.dedup_stored.entries_since >= self.shared.config.deduplication_snapshot_entries {
            self.snapshot_deduplication(state);
        }
    }

    /// Stores what deduplication knows.
    fn snapshot_deduplication(&self, state: &mut TopicState) {
        let position = state.ledger.list().last_position();
        let Some(cursor_id) = state.dedup_stored.cursor_id else { return };
        let Some(dedup) = &mut state.dedup else { return };
        state.dedup_stored.entries_since = 0;
        dedup.expire(now_ms());
        let durable = state.dedup_stored.durable.clone();
        self.bundle.cursors.put_blob(cursor_id, dedup.encode(position).into(), becomes_durable(durable, position));
    }

    /// How far the topic may be trimmed: not beyond the last snapshot that is durable, from which entries are read again
    /// after a crash. When that alone holds it up, the next one is taken.
    pub(super) fn trim_limit(&self, state: &mut TopicState, slowest: Option<Position>) -> Option<Position> {
        if state.dedup.is_none() {
            return slowest;
        }
        let durable = *state.dedup_stored.durable.lock();
        let held_up = snapshot_holds_up_trimming(state.ledger.list(), slowest, durable);
        if held_up && state.dedup_stored.entries_since > 0 {
            self.snapshot_deduplication(state);
        }
        Some(slowest.map_or(durable, |slowest| slowest.min(durable)))
    }

    /// Waits until what deduplication knows now is durable, as the entries are about to go.
    pub(super) async fn store_deduplication(&self) -> Result<()> {
        {
            let mut state = self.state.lock();
            if state.dedup.is_none() {
                return Ok(());
            }
            self.snapshot_deduplication(&mut state);
        }
        self.bundle.cursors.flushed().await
    }
}

fn becomes_durable(durable: Arc<Mutex<Position>>, position: Position) -> CursorDone {
    Box::new(move |result| {
        if result.is_ok() {
            let mut durable = durable.lock();
            *durable = position.max(*durable);
        }
    })
}
