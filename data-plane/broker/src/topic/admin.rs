//! What operators (and SEEK) do to a topic: move its subscriptions, look at its messages, end it.
//!
//! A subscription that was moved is durable where it is now before the call returns. Consumers are sent away before a
//! seek, as in Pulsar: they subscribe again and start from the new position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::cursor::Cursor;
use geminga_ledger::ledger_list::{LedgerList, TimeSeek};
use geminga_metadata::SubscriptionRecord;
use geminga_model::Position;
use geminga_topic::{AckRequest, EntryMeta, IndividualAck};
use geminga_wire_pulsar::{parse_payload, proto};
use tokio::sync::oneshot;

use super::subscribing::InitialPosition;
use super::{Flushes, Topic, TopicState};
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

/// Positions that one request may step over while it looks for a message behind holes.
const PEEK_STEPS_MAX: u64 = 100_000;
/// Entries that one analysis of a backlog reads, as in Pulsar.
const ANALYZE_ENTRIES_MAX: u64 = 10_000;
const ANALYZE_READ_BYTES: usize = 1 << 20;
/// How long a non-durable subscription waits for its consumer to come back after a seek.
const RETURN_AFTER_SEEK: Duration = Duration::from_secs(60);
/// How long a termination may take to reach metadata.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(30);

/// One stored message or batch, taken apart for an operator.
#[derive(Debug, Clone)]
pub struct PeekedMessage {
    pub position: Position,
    pub metadata: proto::MessageMetadata,
    /// Milliseconds since the epoch when the broker took it in, if the broker notes that.
    pub broker_timestamp: Option<u64>,
    pub index: Option<u64>,
    /// As the producer sent it: maybe a batch, compressed, encrypted.
    pub payload: Bytes,
}

/// What the backlog of a subscription consists of, with Pulsar's names.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BacklogAnalysis {
    pub entries: u64,
    pub messages: u64,
    pub filter_rejected_entries: u64,
    pub filter_accepted_entries: u64,
    pub filter_rescheduled_entries: u64,
    pub filter_rejected_messages: u64,
    pub filter_accepted_messages: u64,
    pub filter_rescheduled_messages: u64,
    /// There is more than was looked at.
    pub aborted: bool,
    /// As `ledger:entry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_message_id: Option<String>,
}

/// Resolves when what was stored for it is durable.
type Stored = Option<oneshot::Receiver<Result<()>>>;

async fn stored(waiting: Stored) -> Result<()> {
    match waiting {
        None => Ok(()),
        Some(receiver) => {
            receiver.await.unwrap_or_else(|_| Err(BrokerError::ServiceNotReady("the broker is shutting down".into())))
        }
    }
}

impl Topic {
    /// Starts delivery again at the first message published at or after a time, in milliseconds since the epoch.
    pub async fn reset_to_time(&self, subscription: &str, time_ms: u64) -> Result<()> {
        self.key_of(&self.state.lock(), subscription)?;
        if !self.name.is_persistent() {
            return Ok(());
        }
        let target = self.position_at_time(time_ms).await?;
        self.seek(subscription, target, &[]).await
    }

    /// Position of the first message published at or after a time, or behind the last.
    pub async fn position_at_time(&self, time_ms: u64) -> Result<Position> {
        self.needs_storage("Get message ID by timestamp")?;
        let mut search = TimeSeek::new(self.state.lock().ledger.list(), time_ms);
        while let Some(probe) = search.next_probe() {
            let entry = self.read_one(probe).await?;
            search.probe_result(entry_time(&entry.meta));
        }
        Ok(search.final_position().unwrap_or(Position::LATEST))
    }

    /// Starts delivery again at `position`, which is delivered next. With an `ack_set` (a bit for each message that is not
    /// acknowledged) the earlier messages of that batch stay acknowledged. A topic that keeps nothing has nothing to do.
    pub async fn seek(&self, subscription: &str, position: Position, ack_set: &[i64]) -> Result<()> {
        if !self.name.is_persistent() {
            return self.key_of(&self.state.lock(), subscription).map(drop);
        }
        let batch_size = self.batch_size(position, ack_set).await?;
        let mut flushes = Flushes::default();
        let waiting = {
            let mut state = self.state.lock();
            state.check_serving(&self.name)?;
            let name = self.key_of(&state, subscription)?;
            self.disconnect_consumers(&mut state, &name, None, None, &mut flushes);
            let TopicState { subscriptions, ledger, .. } = &mut *state;
            let sub = subscriptions.get_mut(&name).ok_or_else(|| self.not_found(subscription))?;
            sub.core.reset(position, ledger.list());
            sub.replay.clear(&self.shared.memory.read_ahead);
            if let Some(batch_size) = batch_size {
                let ack = IndividualAck { position, ack_set: ack_set.to_vec(), batch_size: Some(batch_size) };
                // No consumer does it: key 0 is nobody's.
                let acked = sub.core.ack(0, AckRequest::Individual(vec![ack]), ledger.list(), now_ms());
                acked.map_err(|error| BrokerError::NotAllowed(error.to_string()))?;
            }
            if sub.ephemeral {
                self.remove_unless_used(name.clone());
            }
            self.store_cursor(&mut state, &name)
        };
        flushes.run();
        stored(waiting).await
    }

    /// Messages in the batch at a position that a seek goes into; `None` when it is to be delivered as a whole.
    async fn batch_size(&self, position: Position, ack_set: &[i64]) -> Result<Option<u32>> {
        if ack_set.is_empty() || !self.state.lock().ledger.list().contains(position) {
            return Ok(None);
        }
        let meta = self.read_one(position).await?.meta;
        Ok(meta.is_batch().then_some(meta.num_messages))
    }

    /// A non-durable subscription outlives the consumers that a seek sends away, but not for ever.
    fn remove_unless_used(&self, name: Arc<str>) {
        let topic = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETURN_AFTER_SEEK).await;
            let Some(topic) = topic.upgrade() else { return };
            let mut state = topic.state.lock();
            let unused = state.subscriptions.get(&name).is_some_and(|s| s.ephemeral && !s.core.has_consumers());
            if unused && let Some(mut sub) = state.subscriptions.remove(&name) {
                sub.replay.clear(&topic.shared.memory.read_ahead);
            }
        });
    }

    /// Acknowledges the next `count` entries.
    pub async fn skip_messages(&self, subscription: &str, count: u64) -> Result<()> {
        self.advance(subscription, |_, _| count).await.map(drop)
    }

    /// Acknowledges everything.
    pub async fn clear_backlog(&self, subscription: &str) -> Result<()> {
        self.advance(subscription, |_, _| u64::MAX).await.map(drop)
    }

    /// Acknowledges as many of the next unacknowledged entries as `count` says.
    pub(super) async fn advance(
        &self,
        subscription: &str,
        count: impl FnOnce(&Cursor, &LedgerList) -> u64,
    ) -> Result<u64> {
        self.needs_storage("Skip messages")?;
        let mut flushes = Flushes::default();
        let (entries, waiting) = {
            let mut state = self.state.lock();
            state.check_serving(&self.name)?;
            let name = self.key_of(&state, subscription)?;
            let TopicState { subscriptions, ledger, .. } = &mut *state;
            let sub = subscriptions.get_mut(&name).ok_or_else(|| self.not_found(subscription))?;
            let count = count(sub.core.cursor(), ledger.list());
            let advance = sub.core.skip(count, ledger.list());
            let waiting = self.store_cursor(&mut state, &name);
            self.dispatch(&mut state, &name, &mut flushes);
            (advance.entries_acked, waiting)
        };
        flushes.run();
        stored(waiting).await?;
        Ok(entries)
    }

    /// Writes a cursor's changes; the answer comes when they are durable.
    fn store_cursor(&self, state: &mut TopicState, name: &Arc<str>) -> Stored {
        let (sender, receiver) = oneshot::channel();
        let told = self.flush_cursor(
            state,
            name,
            Some(Box::new(move |result| {
                // Whoever asked may have gone.
                let _ = sender.send(result);
            })),
        );
        told.then_some(receiver)
    }

    fn key_of(&self, state: &TopicState, subscription: &str) -> Result<Arc<str>> {
        let found = state.subscriptions.get_key_value(subscription);
        found.map(|(name, _)| name.clone()).ok_or_else(|| self.not_found(subscription))
    }

    /// The `nth` (from 1) message that a subscription has not acknowledged; `None` if there are fewer. As in Pulsar, one
    /// that does not exist is created at the beginning of the topic.
    pub async fn peek(&self, subscription: &str, nth: u64) -> Result<Option<PeekedMessage>> {
        self.needs_storage("Peek messages")?;
        if !self.state.lock().subscriptions.contains_key(subscription) {
            self.create_subscription(&Arc::from(subscription), InitialPosition::Earliest, BTreeMap::new(), false)
                .await?;
        }
        let position = {
            let state = self.state.lock();
            let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
            nth_unacked(sub.core.cursor(), state.ledger.list(), nth)?
        };
        match position {
            Some(position) => self.read_message(position).await.map(Some),
            None => Ok(None),
        }
    }

    /// The message at a position.
    pub async fn read_message(&self, position: Position) -> Result<PeekedMessage> {
        self.needs_storage("Get message by ID")?;
        if !self.state.lock().ledger.list().contains(position) {
            return Err(BrokerError::NotFound("Message id not found".into()));
        }
        let entry = self.read_one(position).await?;
        let malformed =
            |error: geminga_wire_pulsar::PayloadError| BrokerError::Metadata(format!("{position}: {error}"));
        let view = parse_payload(&entry.data).map_err(malformed)?;
        let metadata = view.full_metadata().map_err(malformed)?;
        Ok(PeekedMessage {
            position,
            metadata,
            broker_timestamp: Some(entry.meta.broker_timestamp).filter(|time| *time > 0),
            index: entry.meta.index,
            payload: entry.data.slice(view.payload_offset..),
        })
    }

    /// The `nth` (from 1) message of the topic, from its beginning or from its end.
    pub async fn examine(&self, from_end: bool, nth: u64) -> Result<PeekedMessage> {
        self.needs_storage("Examine messages")?;
        let position = {
            let state = self.state.lock();
            let list = state.ledger.list();
            let total = list.total_entries();
            if total == 0 {
                return Err(BrokerError::PreconditionFailed(
                    "Could not examine messages due to the total message is zero".into(),
                ));
            }
            // Out of range is the last in that direction, as in Pulsar.
            let nth = nth.clamp(1, total);
            list.nth_after(list.before_first(), if from_end { total - nth + 1 } else { nth })
        };
        match position {
            Some(position) => self.read_message(position).await,
            None => Err(BrokerError::NotFound("Message not found".into())),
        }
    }

    /// The last entry, if the topic holds any; otherwise the position before the first.
    pub async fn last_entry(&self) -> Result<(Position, Option<EntryMeta>)> {
        self.needs_storage("GetLastMessageId")?;
        let last = self.last_confirmed();
        if last.entry_id < 0 {
            return Ok((last, None));
        }
        let known = self.state.lock().last_entry.filter(|(position, _)| *position == last);
        match known {
            Some((_, meta)) => Ok((last, Some(meta))),
            None => Ok((last, Some(self.read_one(last).await?.meta))),
        }
    }

    /// Bytes stored behind a position, estimated from the ledgers' average entries.
    pub fn backlog_size_after(&self, position: Position) -> u64 {
        let state = self.state.lock();
        let list = state.ledger.list();
        list.size_between(position, list.last_position())
    }

    /// Reads a subscription's backlog, up to a bound, and counts what is in it; from `start` on it counts what is acknowledged too.
    pub async fn analyze_backlog(&self, subscription: &str, start: Option<Position>) -> Result<BacklogAnalysis> {
        self.needs_storage("Analyze backlog")?;
        let (cursor, list) = {
            let state = self.state.lock();
            let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
            let cursor = match start {
                Some(start) => Cursor::new(start.previous()),
                None => Cursor::from_snapshot(sub.core.cursor().snapshot()),
            };
            (cursor, state.ledger.list().clone())
        };
        let mut analysis = BacklogAnalysis::default();
        let mut looked_at = 0;
        let mut next = cursor.next_unacked(&list, cursor.mark_delete());
        while let Some(from) = next {
            if looked_at >= ANALYZE_ENTRIES_MAX {
                analysis.aborted = true;
                break;
            }
            let last = list.get(from.ledger_id).map_or(0, |span| span.entries.saturating_sub(1));
            let read = self.shared.ledgers.read(from.ledger_id, from.entry_id as u64, last, ANALYZE_READ_BYTES);
            let mut at = from;
            for stored in read.await? {
                looked_at += 1;
                at.entry_id = stored.entry_id as i64;
                let entry = super::reading::decode_stored(at.ledger_id, stored.entry_id, stored.data)
                    .map_err(BrokerError::Metadata)?;
                if !cursor.is_acked(at) {
                    analysis.first_message_id.get_or_insert_with(|| at.to_string());
                    analysis.last_message_id = Some(at.to_string());
                    analysis.entries += 1;
                    analysis.messages += u64::from(entry.meta.num_messages);
                }
            }
            next = list.next_after(at).and_then(|after| cursor.next_unacked(&list, after));
        }
        analysis.filter_accepted_entries = analysis.entries;
        analysis.filter_accepted_messages = analysis.messages;
        Ok(analysis)
    }

    /// Ends the topic: nothing can be published any more. Answers its last position once that is stored.
    pub async fn terminate(&self) -> Result<Position> {
        self.needs_storage("Termination")?;
        let mut flushes = Flushes::default();
        {
            let mut state = self.state.lock();
            state.check_serving(&self.name)?;
            state.ledger.terminate();
            self.carry_out(&mut state, &mut flushes);
        }
        flushes.run();
        let ended = tokio::time::timeout(TERMINATE_TIMEOUT, self.terminated()).await;
        ended.unwrap_or_else(|_| {
            let reason = format!("the termination of topic {} could not be stored in time", self.name);
            Err(BrokerError::ServiceNotReady(reason))
        })
    }

    /// Waits until the termination is stored, or cannot be.
    async fn terminated(&self) -> Result<Position> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                if let Some(last) = state.ledger.terminated() {
                    return Ok(last);
                }
                state.check_serving(&self.name)?;
            }
            // Looks again from time to time: the first of several changes may not be the one.
            let _ = tokio::time::timeout(Duration::from_millis(100), changed).await;
        }
    }

    /// Acknowledges everything for everybody and drops all messages.
    pub async fn truncate(&self) -> Result<()> {
        self.needs_storage("Truncation")?;
        for name in self.subscription_names() {
            self.clear_backlog(&name).await?;
        }
        self.store_deduplication().await?;
        let mut flushes = Flushes::default();
        {
            let mut state = self.state.lock();
            state.check_serving(&self.name)?;
            state.ledger.truncate();
            self.carry_out(&mut state, &mut flushes);
            let TopicState { subscriptions, ledger, .. } = &mut *state;
            for sub in subscriptions.values_mut() {
                sub.core.on_trimmed(ledger.list());
            }
        }
        flushes.run();
        Ok(())
    }

    /// Lets retention free what it may, now.
    pub fn trim_now(&self) {
        self.trim();
    }

    /// Names of all subscriptions, sorted.
    pub fn subscription_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = self.state.lock().subscriptions.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    pub fn has_subscription(&self, name: &str) -> bool {
        self.state.lock().subscriptions.contains_key(name)
    }

    /// Unacknowledged entries of each subscription.
    pub fn backlogs(&self) -> Vec<(String, u64)> {
        let state = self.state.lock();
        let list = state.ledger.list();
        let mut backlogs: Vec<_> = state
            .subscriptions
            .iter()
            .map(|(name, sub)| (name.to_string(), sub.core.cursor().unacked_entries(list)))
            .collect();
        backlogs.sort_unstable();
        backlogs
    }

    /// What each consumer of a subscription has, and what it waits for.
    pub fn explain(&self, subscription: &str) -> Result<serde_json::Value> {
        let state = self.state.lock();
        let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
        let explanation = sub.core.explain(state.ledger.list(), now_ms());
        let mut value =
            serde_json::to_value(explanation).map_err(|error| BrokerError::BadRequest(error.to_string()))?;
        value["topic"] = self.name.as_str().into();
        value["readFailure"] = sub.read_failure.clone().into();
        Ok(value)
    }

    pub fn properties(&self) -> BTreeMap<String, String> {
        self.state.lock().record.current.properties.clone()
    }

    /// Changes the topic's properties durably.
    pub async fn change_properties(&self, change: impl Fn(&mut BTreeMap<String, String>) + Send + Sync) -> Result<()> {
        self.change_record(|record| change(&mut record.properties)).await
    }

    pub fn subscription_properties(&self, subscription: &str) -> Result<BTreeMap<String, String>> {
        let state = self.state.lock();
        let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
        Ok(sub.properties.clone())
    }

    pub async fn set_subscription_properties(
        &self,
        subscription: &str,
        properties: BTreeMap<String, String>,
    ) -> Result<()> {
        self.update_record(subscription, |record| record.properties.clone_from(&properties)).await?;
        if let Some(sub) = self.state.lock().subscriptions.get_mut(subscription) {
            sub.properties = properties;
        }
        Ok(())
    }

    /// Whether an operator wants the subscription's position to be replicated.
    pub fn is_replicated(&self, subscription: &str) -> Result<bool> {
        let state = self.state.lock();
        state.subscriptions.get(subscription).map(|sub| sub.replicated).ok_or_else(|| self.not_found(subscription))
    }

    pub async fn set_replicated(&self, subscription: &str, replicated: bool) -> Result<()> {
        self.update_record(subscription, |record| record.replicated = replicated).await?;
        if let Some(sub) = self.state.lock().subscriptions.get_mut(subscription) {
            sub.replicated = replicated;
        }
        Ok(())
    }

    /// Changes what is stored of a subscription, if anything is.
    async fn update_record(
        &self,
        subscription: &str,
        change: impl Fn(&mut SubscriptionRecord) + Send + Sync,
    ) -> Result<()> {
        let durable = {
            let state = self.state.lock();
            let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
            sub.cursor_id.is_some()
        };
        if !durable {
            return Ok(());
        }
        let mut turn = self.record_turn.lock().await;
        let metadata = self.begin_commit(&mut turn)?;
        let change = |record: &mut SubscriptionRecord| {
            change(record);
            Ok(())
        };
        let updated = metadata.update_subscription(&self.name, subscription, change).await;
        self.committed(&mut turn, &updated);
        match updated {
            Err(error) if error.is_not_found() => Err(self.not_found(subscription)),
            other => Ok(other.map(drop)?),
        }
    }
}

/// When an entry was published, by the broker's clock where it is known, as Pulsar compares.
pub(super) fn entry_time(meta: &EntryMeta) -> u64 {
    if meta.broker_timestamp > 0 { meta.broker_timestamp } else { meta.publish_time }
}

/// Bytes between the slowest durable subscription and the end; 0 without one.
pub(super) fn backlog_size(state: &TopicState) -> u64 {
    let durable = state.subscriptions.values().filter(|sub| sub.cursor_id.is_some());
    let slowest = durable.map(|sub| sub.core.cursor().mark_delete()).min();
    let list = state.ledger.list();
    slowest.map_or(0, |mark| list.size_between(mark, list.last_position()))
}

/// The `nth` entry that is not acknowledged.
fn nth_unacked(cursor: &Cursor, list: &LedgerList, nth: u64) -> Result<Option<Position>> {
    let unacked = cursor.unacked_entries(list);
    if nth > unacked {
        return Ok(None);
    }
    let mark = cursor.mark_delete();
    if unacked == list.entries_between(mark, list.last_position()) {
        return Ok(list.nth_after(mark, nth));
    }
    if nth > PEEK_STEPS_MAX {
        return Err(BrokerError::BadRequest(format!(
            "message {nth} lies behind holes in the subscription: at most {PEEK_STEPS_MAX} are stepped over"
        )));
    }
    let mut at = cursor.next_unacked(list, mark);
    for _ in 1..nth {
        at = at.and_then(|position| list.next_after(position)).and_then(|next| cursor.next_unacked(list, next));
    }
    Ok(at)
}
