//! What deduplication knows of a topic, across restarts: snapshots in the cursor log, and what was stored since.

use std::sync::Arc;

use geminga_model::Position;
use geminga_topic::dedup::{Deduplication, snapshot_holds_up_trimming};
use parking_lot::Mutex;

use super::{Topic, TopicState};
use crate::cursors::CursorDone;
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

/// Bytes read at once while deduplication is brought up to date.
const REPLAY_BYTES: usize = 4 << 20;
/// Name under which a topic's deduplication state is kept beside its subscriptions, as Pulsar calls that cursor.
pub(super) const DEDUP_CURSOR: &str = "pulsar.dedup";

/// Where what deduplication knows is stored.
pub(super) struct Stored {
    pub cursor_id: Option<u64>,
    /// Entries since the last snapshot.
    pub entries_since: u64,
    /// Of the last snapshot that is durable.
    pub durable: Arc<Mutex<Position>>,
}

impl Default for Stored {
    fn default() -> Self {
        Self { cursor_id: None, entries_since: 0, durable: Arc::new(Mutex::new(Position::EARLIEST)) }
    }
}

impl Topic {
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
        let known = self.state.lock().dedup_stored.cursor_id;
        let cursor_id = match known {
            Some(id) => id,
            None => self.create_dedup_cursor().await?,
        };
        let (mut dedup, from) = match self.bundle.cursors.blob(cursor_id) {
            Some(snapshot) => Deduplication::decode(&snapshot, now_ms())
                .map_err(|error| BrokerError::Metadata(format!("deduplication snapshot: {error}")))?,
            // A crash took the first snapshot: all that is stored counts.
            None => (Deduplication::new(), Position::EARLIEST),
        };
        let replayed = self.replay_deduplication(&mut dedup, from).await?;
        let durable: Arc<Mutex<Position>> = Arc::new(Mutex::new(Position::EARLIEST));
        let mut state = self.state.lock();
        state.dedup_stored = Stored { cursor_id: Some(cursor_id), entries_since: replayed, durable: durable.clone() };
        state.dedup = Some(dedup);
        drop(state);
        self.bundle.cursors.after_queued(becomes_durable(durable, from));
        Ok(())
    }

    async fn create_dedup_cursor(&self) -> Result<u64> {
        let cursor_id = self.bundle.metadata.next_cursor_id().await?;
        let record = geminga_metadata::SubscriptionRecord {
            cursor_id,
            initial: Position::EARLIEST,
            properties: Default::default(),
            created_at: now_ms(),
            replicated: false,
        };
        self.bundle.metadata.create_subscription(&self.name, DEDUP_CURSOR, record).await?;
        // An empty snapshot at the present end: what comes after a crash is replayed from here.
        let position = self.last_confirmed();
        let snapshot = Deduplication::new().encode(position).into();
        self.bundle.cursors.put_blob(cursor_id, snapshot, Box::new(|_| ()));
        Ok(cursor_id)
    }

    /// Reads what was stored after the last snapshot. Returns how many entries that were.
    async fn replay_deduplication(&self, dedup: &mut Deduplication, after: Position) -> Result<u64> {
        let mut at = after;
        let mut count = 0;
        loop {
            let (next, last) = {
                let state = self.state.lock();
                let list = state.ledger.list();
                let Some(next) = list.next_after(at) else { return Ok(count) };
                let Some(span) = list.get(next.ledger_id) else { return Ok(count) };
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
