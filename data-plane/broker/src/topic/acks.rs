//! Acknowledgements: into the cursor at once, into the cursor log with others, a receipt when that is durable.

use std::sync::Arc;
use std::time::Instant;

use geminga_model::Position;
use geminga_topic::AckRequest;

use super::{ConsumerHandle, Flushes, Life, Topic, TopicState};
use crate::error::BrokerError;

impl Topic {
    /// Acknowledges for a consumer; with a `request_id` the peer is told when it is durable, or that too much waits for
    /// that already.
    pub fn acknowledge(&self, consumer: &ConsumerHandle, request: AckRequest, request_id: Option<u64>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        let result = match request_id {
            Some(_) if self.bundle.cursors.is_overloaded() => Err(BrokerError::ServiceNotReady(
                "too many acknowledgements wait to become durable; acknowledge again later".into(),
            )),
            _ => self.apply_ack(&mut state, consumer, request),
        };
        match (result, request_id) {
            (Ok(()), Some(request_id)) => self.receipt_when_durable(&mut state, consumer, request_id, &mut flushes),
            (Ok(()), None) => self.flush_later(&mut state, &consumer.subscription),
            (Err(error), Some(request_id)) => {
                consumer.peer.acknowledged(consumer.consumer_id, request_id, Err(error));
                flushes.add(&consumer.peer);
            }
            (Err(error), None) => {
                tracing::debug!(topic = %self.name, subscription = %consumer.subscription, %error, "acknowledgement refused");
            }
        }
        self.dispatch(&mut state, &consumer.subscription, &mut flushes);
        drop(state);
        flushes.run();
    }

    fn apply_ack(
        &self,
        state: &mut TopicState,
        consumer: &ConsumerHandle,
        request: AckRequest,
    ) -> Result<(), BrokerError> {
        if !self.name.is_persistent() {
            return Ok(());
        }
        // Whoever has loaded the topic since would not know of it.
        if state.life == Life::Closed {
            return state.check_serving(&self.name);
        }
        // It was sent away, as by a seek, which this would undo.
        if !state.consumers.contains_key(&consumer.key) {
            return Err(BrokerError::ServiceNotReady("the consumer was closed meanwhile".into()));
        }
        let sub = state
            .subscriptions
            .get_mut(&consumer.subscription)
            .ok_or_else(|| self.not_found(&consumer.subscription))?;
        sub.core
            .ack(consumer.key, request, state.ledger.list(), crate::shared::now_ms())
            .map_err(|error| BrokerError::NotAllowed(error.to_string()))?;
        Ok(())
    }

    fn receipt_when_durable(
        &self,
        state: &mut TopicState,
        consumer: &ConsumerHandle,
        request_id: u64,
        flushes: &mut Flushes,
    ) {
        let peer = consumer.peer.clone();
        let consumer_id = consumer.consumer_id;
        let (stage, started) = (self.shared.stages.ack.clone(), Instant::now());
        let told = self.flush_cursor(
            state,
            &consumer.subscription,
            Some(Box::new(move |result| {
                stage.record(started.elapsed());
                peer.acknowledged(consumer_id, request_id, result);
                peer.flush();
            })),
        );
        if !told {
            consumer.peer.acknowledged(consumer_id, request_id, Ok(()));
            flushes.add(&consumer.peer);
        }
    }

    /// Writes what has changed in a cursor to the cursor log. False when the subscription is not durable, and `done`
    /// will not be called.
    pub(super) fn flush_cursor(
        &self,
        state: &mut TopicState,
        name: &Arc<str>,
        done: Option<crate::cursors::CursorDone>,
    ) -> bool {
        let Some(sub) = state.subscriptions.get_mut(name) else { return false };
        let Some(cursor_id) = sub.cursor_id else { return false };
        sub.dirty = false;
        match (sub.core.take_delta(), done) {
            (Some(delta), done) => self.bundle.cursors.append(cursor_id, delta, done),
            // Nothing new: durable when all that was written before is.
            (None, Some(done)) => self.bundle.cursors.after_queued(done),
            (None, None) => {}
        }
        true
    }

    fn flush_later(&self, state: &mut TopicState, name: &Arc<str>) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        if sub.cursor_id.is_some() && !sub.dirty {
            sub.dirty = true;
            self.shared.ack_flusher.add(self.me.clone(), name.clone());
        }
    }

    /// The flusher's turn for a subscription. While too much waits to become durable, its changes stay in the cursor,
    /// where they take a bit each.
    pub(crate) fn flush_acks(&self, name: &Arc<str>) {
        let mut state = self.state.lock();
        if state.life == Life::Closed {
            // Whoever has loaded the topic since writes to the log now.
            return;
        }
        if self.bundle.cursors.is_overloaded() {
            if let Some(sub) = state.subscriptions.get_mut(name) {
                sub.dirty = false;
                self.flush_later(&mut state, name);
            }
            return;
        }
        self.flush_cursor(&mut state, name, None);
    }

    /// Delivers messages again: the given ones, or all that the consumer holds.
    pub fn redeliver(&self, consumer: &ConsumerHandle, epoch: Option<u64>, positions: Option<&[Position]>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        let TopicState { subscriptions, ledger, .. } = &mut *state;
        if let Some(sub) = subscriptions.get_mut(&consumer.subscription) {
            sub.core.redeliver(consumer.key, epoch, positions, ledger.list(), crate::shared::now_ms());
            self.dispatch(&mut state, &consumer.subscription, &mut flushes);
        }
        drop(state);
        flushes.run();
    }
}
