//! The end of a topic's life in this broker, and the upkeep until then.

use std::sync::Arc;

use geminga_metadata::{MetadataError, TopicRecord};

use super::{Flushes, Life, Topic, TopicState};
use crate::bundle::Bundle;
use crate::error::{BrokerError, Result};
use crate::policies::EffectivePolicies;

impl Topic {
    pub fn is_serving(&self) -> bool {
        self.state.lock().life == Life::Serving
    }

    /// Nothing in this broker but its map knows the topic any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().life == Life::Closed
    }

    pub fn policies(&self) -> Arc<EffectivePolicies> {
        self.state.lock().policies.clone()
    }

    /// Whether somebody works with the topic, so that its schema matters.
    pub fn has_schema_users(&self) -> bool {
        let state = self.state.lock();
        !state.producer_handles.is_empty() || !state.consumers.is_empty() || !state.ledger.list().is_empty()
    }

    /// New policies: limits hold from now on, what is connected stays.
    pub(crate) async fn set_policies(&self, policies: EffectivePolicies) -> Result<()> {
        {
            let mut state = self.state.lock();
            state.producers.set_max_producers(policies.max_producers().unwrap_or(0));
            state.policies = Arc::new(policies);
            state.backlog_too_old = false;
            self.refresh_limits(&mut state);
            let options = [self.options(&state, false), self.options(&state, true)];
            for sub in state.subscriptions.values_mut() {
                *sub.core.options_mut() = options[usize::from(sub.cursor_id.is_some())].clone();
            }
        }
        self.load_deduplication().await
    }

    /// The ledger that messages go to, or went to last.
    pub(crate) fn newest_ledger(&self) -> Option<u64> {
        self.state.lock().ledger.list().spans().next_back().map(|span| span.ledger_id)
    }

    /// Whether a producer or consumer is connected.
    pub fn has_clients(&self) -> bool {
        let state = self.state.lock();
        !state.producer_handles.is_empty() || !state.consumers.is_empty()
    }

    /// Stops serving for a deletion, if that is allowed: unless forced, only when nobody is connected.
    pub(crate) fn close_for_deletion(&self, force: bool) -> Result<()> {
        let mut state = self.state.lock();
        state.check_serving(&self.name)?;
        if !force && (!state.producer_handles.is_empty() || !state.consumers.is_empty()) {
            return Err(BrokerError::PreconditionFailed(format!(
                "Topic has {} connected producers/consumers",
                state.producer_handles.len() + state.consumers.len()
            )));
        }
        state.life = Life::Deleting;
        Ok(())
    }

    /// The deletion did not come through. What has been closed in the meantime stays closed.
    pub(crate) fn serve_again(&self) {
        let mut state = self.state.lock();
        if state.life == Life::Deleting {
            state.life = Life::Serving;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Makes metadata forget the topic.
    pub(crate) async fn delete_records(&self) -> std::result::Result<TopicRecord, MetadataError> {
        let mut turn = self.record_turn.lock().await;
        let deleted = self.begin_commit(&mut turn)?.delete_topic(&self.name).await;
        self.committed(&mut turn, &deleted);
        deleted
    }

    /// Metadata has forgotten the topic: so do its clients, its cursors and storage.
    pub(crate) fn deleted(&self, record: &TopicRecord) {
        self.tell_closed(None);
        let (cursor_ids, dedup): (Vec<u64>, Option<u64>) = {
            let state = self.state.lock();
            (state.subscriptions.values().filter_map(|sub| sub.cursor_id).collect(), state.dedup_stored.cursor_id)
        };
        cursor_ids.into_iter().for_each(|id| self.bundle.cursors.drop_cursor(id));
        dedup.into_iter().for_each(|id| self.bundle.cursors.drop_blob(id));
        let ledgers: Vec<u64> = record.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
        if !ledgers.is_empty() {
            self.delete_ledgers(ledgers);
        }
    }

    /// Takes nothing more in and waits for what is in flight.
    pub(crate) async fn close(&self) {
        let producers: Vec<_> = {
            let mut state = self.state.lock();
            if state.life == Life::Closed {
                return;
            }
            state.life = Life::Closing;
            state.producer_handles.values().cloned().collect()
        };
        for producer in producers {
            producer.drain().await;
        }
        let mut state = self.state.lock();
        let names: Vec<Arc<str>> = state.subscriptions.keys().cloned().collect();
        for name in names {
            self.flush_cursor(&mut state, &name, None);
        }
    }

    /// Somebody else has written the topic: what this broker knows of it is old. Closes it, so that the next lookup loads
    /// it again.
    pub(super) fn leave(&self, state: &mut TopicState) {
        state.life = Life::Closing;
        let topic = self.arc();
        tokio::spawn(async move {
            topic.close().await;
            topic.tell_closed(None);
        });
    }

    pub(crate) fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// Sends the clients away: to the broker at `moved_to` (a `pulsar://` URL), or to look the topic up again.
    pub(crate) fn tell_closed(&self, moved_to: Option<&str>) {
        let mut flushes = Flushes::default();
        self.depart();
        let mut state = self.state.lock();
        for (_, producer) in state.producer_handles.drain() {
            producer.peer.close_producer(producer.producer_id, moved_to);
            flushes.add(&producer.peer);
        }
        state.joining.clear();
        let names: Vec<Arc<str>> = state.subscriptions.keys().cloned().collect();
        for name in names {
            self.disconnect_consumers(&mut state, &name, None, moved_to, &mut flushes);
            if let Some(sub) = state.subscriptions.get_mut(&name) {
                sub.replay.clear(&self.shared.memory.read_ahead);
            }
        }
        self.shared.memory.tail_cache.give_back(state.cache.clear() as u64);
        state.read_back.clear(&self.shared.memory.read_ahead);
        drop(state);
        self.changed.notify_waiters();
        flushes.run();
    }

    /// Nothing is written or counted here any more.
    pub(crate) fn depart(&self) {
        {
            let mut state = self.state.lock();
            if state.life == Life::Closed {
                return;
            }
            self.end_commits(&mut state);
        }
        self.shared.departed.add(self);
    }

    /// Waits until a topic that is being closed is closed, or serves again.
    pub(crate) async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if !matches!(self.state.lock().life, Life::Deleting | Life::Closing) {
                return;
            }
            let pause = std::time::Duration::from_millis(100);
            let _ = tokio::time::timeout(pause, changed).await;
        }
    }

    /// Upkeep, every few seconds: roll over, trim, expire.
    pub(crate) fn housekeeping(&self) {
        if !self.is_serving() {
            return;
        }
        self.sample_rates();
        {
            let mut state = self.state.lock();
            if state.limits.is_some() {
                self.refresh_limits(&mut state);
            }
        }
        self.expire_by_policy();
        self.expire_subscriptions();
        self.trim();
        self.give_back_spare();
    }

    /// Frees what traffic that is over has left behind.
    fn give_back_spare(&self) {
        let mut state = self.state.lock();
        let needed = state.first_needed();
        let stuck = std::mem::replace(&mut state.was_needed, needed) == needed;
        let budget = &self.shared.memory.tail_cache;
        if stuck && budget.used() > budget.limit() / 2 {
            // Somebody does not read on: topics where everybody does have more use for the memory.
            budget.give_back(state.cache.clear() as u64);
        }
        state.cache.give_back_spare();
        state.read_back.give_back_spare(&self.shared.memory.read_ahead);
        shrink_empty(&mut state.producer_handles);
        shrink_empty(&mut state.joining);
        shrink_empty(&mut state.consumers);
        shrink_empty(&mut state.subscriptions);
        for sub in state.subscriptions.values_mut() {
            sub.core.give_back_spare();
            sub.replay.give_back_spare();
        }
    }
}

pub(super) fn shrink_empty<K: Eq + std::hash::Hash, V>(map: &mut rustc_hash::FxHashMap<K, V>) {
    if map.is_empty() {
        map.shrink_to_fit();
    }
}
