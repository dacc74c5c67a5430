//! Consumers come and go; subscriptions are created, moved and deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use geminga_ledger::cursor::Cursor;
use geminga_ledger::ledger_list::LedgerList;
use geminga_metadata::{MetadataError, SubscriptionRecord};
use geminga_model::Position;
use geminga_topic::{ConsumerKey, ConsumerSpec, SubscribeError, Subscription, SubscriptionOptions};

use super::deduplication::DEDUP_CURSOR;
use super::liveness::Refusal;
use super::record_turn::RecordTurn;
use super::{ConsumerHandle, Flushes, Sub, Topic, TopicState};
use crate::error::{BrokerError, Result};
use crate::peer::Peer;
use crate::shared::now_ms;
use geminga_flow::Budget;

/// Where a new subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialPosition {
    Latest,
    Earliest,
    /// Everything up to and including this position counts as acknowledged.
    After(Position),
}

/// A consumer's wish to join a subscription.
pub struct SubscribeRequest {
    pub subscription: Arc<str>,
    /// `key` and `connected_at` are filled in by the topic.
    pub consumer: ConsumerSpec,
    pub durable: bool,
    pub initial: InitialPosition,
    /// A new subscription starts with the messages of the last so many milliseconds.
    pub rollback_ms: u64,
    pub properties: BTreeMap<String, String>,
    /// Whether a durable subscription that does not exist may be created.
    pub may_create: bool,
    /// A durable subscription is marked as one to be replicated, if it is not yet.
    pub replicated: bool,
}

impl Sub {
    /// One whose cursor is kept in the cursor log.
    pub(super) fn durable(
        core: Subscription,
        cursor_id: u64,
        initial: Position,
        properties: BTreeMap<String, String>,
    ) -> Self {
        Self { cursor_id: Some(cursor_id), initial, properties, ..Self::unstored(core, false) }
    }

    /// One that is in memory only.
    fn unstored(core: Subscription, ephemeral: bool) -> Self {
        Self {
            initial: core.cursor().mark_delete(),
            core,
            cursor_id: None,
            ephemeral,
            properties: BTreeMap::new(),
            replicated: false,
            replay: Default::default(),
            awaits_read: false,
            read_failure: None,
            dirty: false,
            timer_at: 0,
            dispatch_limit: None,
            unused_since: now_ms(),
            dropped: 0,
            expired: 0,
            expired_at: 0,
        }
    }

    /// Takes a consumer off. With the last one goes what was read for them: the next reads from the start.
    fn remove_consumer(&mut self, key: ConsumerKey, ledgers: &LedgerList, read_ahead: &Budget) {
        self.core.remove_consumer(key, ledgers, now_ms());
        self.unused_since = now_ms();
        if !self.core.has_consumers() {
            self.replay.clear(read_ahead);
        }
    }
}

impl InitialPosition {
    /// The mark-delete position that makes a subscription begin here.
    pub(super) fn mark_delete(self, ledgers: &LedgerList) -> Position {
        match self {
            Self::Latest => ledgers.last_position(),
            Self::Earliest => ledgers.before_first(),
            Self::After(position) if position > ledgers.last_position() => ledgers.last_position(),
            Self::After(position) => position.max(ledgers.before_first()),
        }
    }
}

impl Topic {
    /// Adds a consumer. The caller answers the client first and then calls [`Topic::consumer_ready`].
    pub async fn subscribe(&self, request: SubscribeRequest, peer: Arc<dyn Peer>) -> Result<Arc<ConsumerHandle>> {
        let SubscribeRequest { subscription, consumer, durable, mut initial, rollback_ms, properties, .. } = request;
        let is_new = {
            let mut state = self.state.lock();
            self.check_may_subscribe(&mut state, &consumer)?;
            // Before the subscription comes into being for nothing.
            self.check_consumer_limits(&state, &subscription)?;
            !state.subscriptions.contains_key(&subscription)
        };
        if is_new && rollback_ms > 0 && self.name.is_persistent() {
            initial = self.initial_at_time(now_ms().saturating_sub(rollback_ms)).await?;
        }
        if is_new && durable {
            if !request.may_create {
                return Err(self.not_found(&subscription));
            }
            self.create_subscription(&subscription, initial, properties.clone(), false).await?;
        } else if durable && self.name.is_persistent() {
            self.bundle.confirm().await?;
        }
        if request.replicated && durable && self.name.is_persistent() && !self.is_replicated(&subscription)? {
            self.set_replicated(&subscription, true).await?;
        }
        let join = || self.join_subscription(&subscription, consumer.clone(), durable, initial, &properties, &peer);
        match join() {
            Ok(handle) => Ok(handle),
            Err(refusal) => {
                refusal.unless_gone().await?;
                join().map_err(|refusal| refusal.error)
            }
        }
    }

    /// What policies say about a consumer, whoever else is there.
    fn check_may_subscribe(&self, state: &mut TopicState, consumer: &ConsumerSpec) -> Result<()> {
        let sub_type = consumer.sub_type.name();
        if !state.policies.allows_subscription_type(sub_type) {
            return Err(BrokerError::NotAllowed(format!("Topic[{}] doesn't support {sub_type} sub type!", self.name)));
        }
        let host = consumer.address.rsplit_once(':').map_or(&*consumer.address, |(host, _)| host);
        self.check_subscribe_rate(state, format!("{host} {} {}", consumer.name, consumer.consumer_id))
    }

    /// The position that lets a subscription begin at the first message published at or after a time.
    async fn initial_at_time(&self, time_ms: u64) -> Result<InitialPosition> {
        let first = self.position_at_time(time_ms).await?;
        if first == Position::LATEST {
            return Ok(InitialPosition::Latest);
        }
        let before = self.state.lock().ledger.list().previous(first);
        Ok(before.map_or(InitialPosition::Earliest, InitialPosition::After))
    }

    /// One attempt to add a consumer; a subscription that goes with its consumers comes into being.
    fn join_subscription(
        &self,
        subscription: &Arc<str>,
        mut consumer: ConsumerSpec,
        durable: bool,
        initial: InitialPosition,
        properties: &BTreeMap<String, String>,
        peer: &Arc<dyn Peer>,
    ) -> std::result::Result<Arc<ConsumerHandle>, Refusal> {
        let consumer_id = consumer.consumer_id;
        let key = super::next_key();
        consumer.key = key;
        consumer.connected_at = now_ms();
        let mut state = self.state.lock();
        state.check_serving(&self.name)?;
        self.check_consumer_limits(&state, subscription)?;
        let is_new = !durable && !state.subscriptions.contains_key(subscription);
        if is_new {
            self.check_subscription_limit(&state)?;
            self.insert_unstored(&mut state, subscription, initial, properties.clone(), true);
        }
        let sub = state.subscriptions.get_mut(subscription).ok_or_else(|| self.not_found(subscription))?;
        if sub.ephemeral == durable {
            let other = if durable { "NonDurable" } else { "Durable" };
            return Err(
                BrokerError::NotAllowed(format!("{other} subscription with the same name already exists.")).into()
            );
        }
        if let Err(error) = sub.core.add_consumer(consumer, now_ms()) {
            if is_new {
                // No consumer will leave it and take it along.
                state.subscriptions.remove(subscription);
            }
            let present = state.consumers.values().filter(|other| other.subscription == *subscription);
            return Err(Refusal::because_of(subscribe_error(error), peer, present.map(|other| &other.peer)));
        }
        let handle = Arc::new(ConsumerHandle {
            key,
            consumer_id,
            subscription: subscription.clone(),
            topic: self.arc(),
            peer: peer.clone(),
            listens: AtomicBool::new(false),
        });
        state.consumers.insert(key, handle.clone());
        Ok(handle)
    }

    /// The client knows that its consumer exists: it may be told events and get messages.
    pub fn consumer_ready(&self, consumer: &ConsumerHandle) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        if state.ledger.terminated().is_some()
            && let Some(sub) = state.subscriptions.get_mut(&consumer.subscription)
        {
            sub.core.terminated();
        }
        self.dispatch(&mut state, &consumer.subscription, &mut flushes);
        let failover = state
            .subscriptions
            .get(&consumer.subscription)
            .is_some_and(|sub| sub.core.is_active(consumer.key).is_some());
        drop(state);
        flushes.run();
        if failover {
            self.introduce_later(consumer.key);
        }
    }

    pub fn has_consumer(&self, consumer: &ConsumerHandle) -> bool {
        self.state.lock().consumers.contains_key(&consumer.key)
    }

    /// Takes a consumer off; what it had not acknowledged goes to the others. A non-durable subscription goes with its
    /// last consumer.
    pub fn remove_consumer(&self, consumer: &ConsumerHandle) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        let name = &consumer.subscription;
        if state.consumers.remove(&consumer.key).is_some() {
            state.last_active_at = now_ms();
            let TopicState { subscriptions, ledger, .. } = &mut *state;
            if let Some(sub) = subscriptions.get_mut(name) {
                sub.remove_consumer(consumer.key, ledger.list(), &self.shared.memory.read_ahead);
                if sub.ephemeral && !sub.core.has_consumers() {
                    subscriptions.remove(name);
                } else {
                    self.flush_cursor(&mut state, name, None);
                    self.dispatch(&mut state, name, &mut flushes);
                }
            }
            self.trim_cache(&mut state);
        }
        drop(state);
        flushes.run();
    }

    fn insert_unstored(
        &self,
        state: &mut TopicState,
        name: &Arc<str>,
        initial: InitialPosition,
        properties: BTreeMap<String, String>,
        ephemeral: bool,
    ) {
        let cursor = Cursor::new(initial.mark_delete(state.ledger.list()));
        let core = Subscription::new(name.clone(), cursor, self.options(state, false));
        let sub = Sub { properties, ..Sub::unstored(core, ephemeral) };
        state.subscriptions.insert(name.clone(), Box::new(sub));
    }

    /// Creates a subscription that stays: durable, or on a non-persistent topic as long as that is loaded. With
    /// `must_be_new`, one that exists is an error.
    pub async fn create_subscription(
        &self,
        name: &Arc<str>,
        initial: InitialPosition,
        properties: BTreeMap<String, String>,
        must_be_new: bool,
    ) -> Result<()> {
        let mut turn = self.record_turn.lock().await;
        let mark_delete = {
            let mut state = self.state.lock();
            state.check_serving(&self.name)?;
            if state.subscriptions.contains_key(name) {
                return if must_be_new { Err(already_exists(name)) } else { Ok(()) };
            }
            self.check_subscription_limit(&state)?;
            if !self.name.is_persistent() {
                self.insert_unstored(&mut state, name, initial, properties, false);
                return Ok(());
            }
            initial.mark_delete(state.ledger.list())
        };
        let cursor_id = self.bundle.metadata.next_cursor_id().await?;
        let record =
            SubscriptionRecord { cursor_id, initial: mark_delete, properties, created_at: now_ms(), replicated: false };
        let record = self.create_record(&mut turn, name, record).await?;
        let is_new = record.cursor_id == cursor_id;
        self.insert_stored(&mut self.state.lock(), name.clone(), record);
        if must_be_new && !is_new {
            return Err(already_exists(name));
        }
        Ok(())
    }

    /// Writes the record of a new subscription. An earlier attempt may have come through without anybody learning of it: then the
    /// answer is its record.
    async fn create_record(
        &self,
        turn: &mut RecordTurn,
        name: &str,
        record: SubscriptionRecord,
    ) -> Result<SubscriptionRecord> {
        let metadata = self.begin_commit(turn)?;
        let created = metadata.create_subscription(&self.name, name, record).await;
        self.committed(turn, &created);
        match created {
            Ok(created) => Ok(created.value),
            Err(error @ MetadataError::AlreadyExists { .. }) if name != DEDUP_CURSOR => {
                let found = metadata.get_subscription(&self.name, name).await?;
                found.map(|found| found.value).ok_or_else(|| error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a subscription. Unless forced, only the consumer `by` (or nobody) may be connected.
    pub async fn delete_subscription(&self, name: &str, by: Option<u64>, force: bool) -> Result<()> {
        let mut turn = self.record_turn.lock().await;
        let cursor_id = {
            let state = self.state.lock();
            let (key, sub) = state.subscriptions.get_key_value(name).ok_or_else(|| self.not_found(name))?;
            let others = state.consumers.values().any(|c| c.subscription == *key && Some(c.key) != by);
            if others && !force {
                return Err(BrokerError::PreconditionFailed(format!(
                    "subscription {name} has active connected consumers"
                )));
            }
            sub.cursor_id
        };
        if cursor_id.is_some() {
            let deleted = self.begin_commit(&mut turn)?.delete_subscription(&self.name, name).await;
            self.committed(&mut turn, &deleted);
            match deleted {
                // An earlier attempt came through, and nobody learned of it.
                Err(error) if error.is_not_found() => {}
                deleted => deleted?,
            }
        }
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        state.last_active_at = now_ms();
        self.disconnect_consumers(&mut state, name, by, None, &mut flushes);
        if let Some(mut sub) = state.subscriptions.remove(name) {
            sub.replay.clear(&self.shared.memory.read_ahead);
        }
        if let Some(id) = cursor_id {
            self.bundle.cursors.drop_cursor(id);
        }
        drop(state);
        flushes.run();
        self.trim();
        Ok(())
    }

    /// Sends the consumers of a subscription (but `except`) away to subscribe again.
    pub(super) fn disconnect_consumers(
        &self,
        state: &mut TopicState,
        name: &str,
        except: Option<u64>,
        moved_to: Option<&str>,
        flushes: &mut Flushes,
    ) {
        let gone: Vec<Arc<ConsumerHandle>> = state
            .consumers
            .values()
            .filter(|consumer| &*consumer.subscription == name && Some(consumer.key) != except)
            .cloned()
            .collect();
        let TopicState { subscriptions, consumers, ledger, .. } = state;
        for consumer in gone {
            consumers.remove(&consumer.key);
            if let Some(sub) = subscriptions.get_mut(name) {
                sub.remove_consumer(consumer.key, ledger.list(), &self.shared.memory.read_ahead);
            }
            consumer.peer.close_consumer(consumer.consumer_id, moved_to);
            flushes.add(&consumer.peer);
        }
    }

    pub(super) fn options(&self, state: &TopicState, durable: bool) -> SubscriptionOptions {
        let config = &self.shared.config;
        SubscriptionOptions {
            durable,
            max_unacked_per_consumer: state.policies.max_unacked_per_consumer(config.max_unacked_per_consumer),
            max_unacked_per_subscription: state
                .policies
                .max_unacked_per_subscription(config.max_unacked_per_subscription),
            delayed_delivery: state.policies.delayed_delivery(),
            partition_index: self.name.partition_index(),
            topic: self.name.shared(),
            delayed_budget: self.shared.memory.delayed.clone(),
            unacked_budget: self.shared.memory.unacked.clone(),
            ..Default::default()
        }
    }

    fn check_subscription_limit(&self, state: &TopicState) -> Result<()> {
        match state.policies.max_subscriptions_per_topic() {
            Some(max) if state.subscriptions.len() >= max => Err(BrokerError::NotAllowed(format!(
                "Exceed the maximum number of subscriptions of the topic: {}",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    fn check_consumer_limits(&self, state: &TopicState, subscription: &Arc<str>) -> Result<()> {
        if let Some(max) = state.policies.max_consumers_per_topic()
            && state.consumers.len() >= max
        {
            return Err(BrokerError::ConsumerBusy("Topic reached max consumers limit".into()));
        }
        if let Some(max) = state.policies.max_consumers_per_subscription()
            && state.consumers.values().filter(|consumer| consumer.subscription == *subscription).count() >= max
        {
            return Err(BrokerError::ConsumerBusy("Subscription reached max consumers limit".into()));
        }
        Ok(())
    }

    /// Position and batch size of the last message, and the subscription's mark-delete position.
    pub async fn last_message(&self, consumer: &ConsumerHandle) -> Result<LastMessage> {
        self.needs_storage("GetLastMessageId")?;
        let (last, known, mark_delete) = {
            let state = self.state.lock();
            let sub = state
                .subscriptions
                .get(&consumer.subscription)
                .ok_or_else(|| self.not_found(&consumer.subscription))?;
            (state.ledger.list().last_position(), state.last_entry, sub.core.cursor().mark_delete())
        };
        let meta = match known {
            Some((position, meta)) if position == last => Some(meta),
            _ if last.entry_id < 0 => None,
            _ => Some(self.read_one(last).await?.meta),
        };
        Ok(LastMessage { position: last, meta, mark_delete })
    }
}

/// Answer of [`Topic::last_message`].
pub struct LastMessage {
    /// `entry_id` is -1 when the topic holds nothing.
    pub position: Position,
    pub meta: Option<geminga_topic::EntryMeta>,
    pub mark_delete: Position,
}

fn already_exists(subscription: &str) -> BrokerError {
    BrokerError::AlreadyExists(format!("subscription {subscription} already exists for topic"))
}

fn subscribe_error(error: SubscribeError) -> BrokerError {
    match error {
        SubscribeError::RangeConflict(_) | SubscribeError::InvalidRanges(_) => {
            BrokerError::ConsumerAssign(error.to_string())
        }
        _ => BrokerError::ConsumerBusy(error.to_string()),
    }
}
