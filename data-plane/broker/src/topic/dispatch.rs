//! From the log to the consumers: runs the subscriptions' dispatchers and hands what they choose to the connections.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use geminga_topic::{BlockReason, ConsumerKey, Delivery, DispatchWait, Event};
use rustc_hash::FxHashMap;

use super::reading::Reader;
use super::throttle::{allowance, spend};
use super::{ConsumerHandle, Flushes, Topic, TopicState};
use crate::shared::now_ms;

/// Bytes a dispatcher may choose before the connections are looked at again.
const DISPATCH_BYTES: usize = 1 << 20;
/// Rounds of one subscription before the topic's lock is released for others.
const DISPATCH_ROUNDS: usize = 64;
/// A subscription that waits for memory looks again so often.
const MEMORY_RETRY_MS: u64 = 500;
/// A Failover consumer that sends no FLOW learns after this time whether it is active.
const INTRODUCTION: Duration = Duration::from_secs(1);

impl Topic {
    pub(super) fn dispatch_all(&self, state: &mut TopicState, flushes: &mut Flushes) {
        if state.consumers.is_empty() {
            return;
        }
        let names: Vec<Arc<str>> = state
            .subscriptions
            .iter()
            .filter(|(_, sub)| sub.core.has_consumers())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.dispatch(state, &name, flushes);
        }
        self.trim_cache(state);
    }

    /// Lets one subscription deliver what it can.
    pub(super) fn dispatch(&self, state: &mut TopicState, name: &Arc<str>, flushes: &mut Flushes) {
        let now = now_ms();
        let mut deliveries = Vec::new();
        for round in 0.. {
            let started = Instant::now();
            let Some(mut sub) = state.subscriptions.get_mut(name) else { return };
            if sub.core.has_events() {
                // Before it gets messages a consumer learns that it is the active one.
                self.tell_events(state, name, flushes);
                let Some(again) = state.subscriptions.get_mut(name) else { return };
                sub = again;
            }
            let (messages, bytes) = match allowance(&mut state.limits, name, sub, now) {
                Ok(room) => room,
                Err(wait_ms) => {
                    self.set_timer(state, name, now + wait_ms, now);
                    break;
                }
            };
            sub.core.limit_messages(messages);
            let mut reader = Reader {
                tail: &state.cache,
                read_back: &mut state.read_back,
                replay: &mut sub.replay,
                ledgers: state.ledger.list(),
                ahead: None,
            };
            let wait = sub.core.dispatch(now, &mut reader, DISPATCH_BYTES.min(bytes as usize), &mut deliveries);
            let ahead = reader.ahead;
            sub.replay.give_back(&self.shared.memory.read_ahead);
            let passed = ahead.is_some_and(|end| sub.core.read_position() >= end);
            if !deliveries.is_empty() {
                self.deliver(state, name, &mut deliveries, flushes);
                self.shared.stages.dispatch.record(started.elapsed());
            }
            if let Some(end) = ahead {
                self.read_ahead(state, end);
            }
            if passed {
                self.trim_read_back(state);
            }
            match wait {
                DispatchWait::MoreWork if round < DISPATCH_ROUNDS => continue,
                DispatchWait::MoreWork => self.dispatch_soon(name, Duration::ZERO),
                DispatchWait::NeedRead { from, max_entries } => self.read_from(state, name, from, max_entries),
                DispatchWait::NeedEntries(positions) => self.read_entries(state, name, positions),
                DispatchWait::Timer(at) => self.set_timer(state, name, at, now),
                // Others give back what it waits for, and do not know of it.
                DispatchWait::Blocked(BlockReason::Memory) => self.set_timer(state, name, now + MEMORY_RETRY_MS, now),
                DispatchWait::CaughtUp
                | DispatchWait::NoPermits
                | DispatchWait::NoConsumers
                | DispatchWait::Blocked(_) => {}
            }
            break;
        }
        self.tell_events(state, name, flushes);
    }

    pub(super) fn deliver(
        &self,
        state: &mut TopicState,
        name: &Arc<str>,
        deliveries: &mut Vec<Delivery>,
        flushes: &mut Flushes,
    ) {
        let (mut messages, mut bytes) = (0u64, 0u64);
        let mut per_consumer: FxHashMap<ConsumerKey, Vec<Delivery>> = FxHashMap::default();
        let only = deliveries.first().map(|first| first.consumer);
        let single = deliveries.iter().all(|delivery| Some(delivery.consumer) == only);
        for delivery in deliveries.iter() {
            messages += u64::from(delivery.entry.meta.num_messages);
            bytes += delivery.entry.data.len() as u64;
        }
        self.counters.messages_out.fetch_add(messages, Ordering::Relaxed);
        self.counters.bytes_out.fetch_add(bytes, Ordering::Relaxed);
        if let Some(sub) = state.subscriptions.get_mut(name) {
            spend(&mut state.limits, sub, messages, bytes);
        }
        if single {
            let key = only.unwrap_or_default();
            self.deliver_to(state, name, key, &mut deliveries.drain(..), flushes);
            return;
        }
        for delivery in deliveries.drain(..) {
            per_consumer.entry(delivery.consumer).or_default().push(delivery);
        }
        for (key, list) in per_consumer {
            self.deliver_to(state, name, key, &mut list.into_iter(), flushes);
        }
    }

    fn deliver_to(
        &self,
        state: &mut TopicState,
        name: &Arc<str>,
        key: ConsumerKey,
        deliveries: &mut dyn Iterator<Item = Delivery>,
        flushes: &mut Flushes,
    ) {
        let Some(consumer) = state.consumers.get(&key) else { return };
        consumer.peer.deliver(consumer.consumer_id, self.partition, deliveries);
        flushes.add(&consumer.peer);
        if !consumer.peer.writable()
            && let Some(sub) = state.subscriptions.get_mut(name)
        {
            sub.core.set_writable(key, false);
        }
    }

    /// The connection of a consumer has room again.
    pub fn consumer_writable(&self, consumer: &ConsumerHandle) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        if let Some(sub) = state.subscriptions.get_mut(&consumer.subscription) {
            sub.core.set_writable(consumer.key, true);
            self.dispatch(&mut state, &consumer.subscription, &mut flushes);
        }
        drop(state);
        flushes.run();
    }

    /// Grants permits to a consumer.
    pub fn flow(&self, consumer: &ConsumerHandle, permits: u32) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        if let Some(sub) = state.subscriptions.get_mut(&consumer.subscription) {
            sub.core.flow(consumer.key, permits);
            self.introduce(&mut state, consumer, &mut flushes);
            self.dispatch(&mut state, &consumer.subscription, &mut flushes);
        }
        drop(state);
        flushes.run();
    }

    pub(super) fn tell_events(&self, state: &mut TopicState, name: &Arc<str>, flushes: &mut Flushes) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        while let Some(event) = sub.core.poll_event() {
            let key = match &event {
                Event::ActiveConsumerChanged { consumer, .. } | Event::EndOfTopic { consumer } => *consumer,
            };
            let Some(consumer) = state.consumers.get(&key) else { continue };
            match event {
                // It learns of its state when it listens.
                Event::ActiveConsumerChanged { .. } if !consumer.listens.load(Ordering::Relaxed) => continue,
                Event::ActiveConsumerChanged { is_active, .. } => {
                    consumer.peer.active_consumer_changed(consumer.consumer_id, is_active);
                }
                Event::EndOfTopic { .. } => consumer.peer.end_of_topic(consumer.consumer_id),
            }
            flushes.add(&consumer.peer);
        }
    }

    /// Tells a consumer whether it is the active one, now that its client listens: some clients (Go's) forget what they are told
    /// between the answer to SUBSCRIBE and their first FLOW. Pulsar tells it a second late, for other reasons.
    fn introduce(&self, state: &mut TopicState, consumer: &ConsumerHandle, flushes: &mut Flushes) {
        if consumer.listens.load(Ordering::Relaxed) {
            return;
        }
        // Else it would be told again what has come to it before it listened.
        self.tell_events(state, &consumer.subscription, flushes);
        consumer.listens.store(true, Ordering::Relaxed);
        let sub = state.subscriptions.get(&consumer.subscription);
        if let Some(active) = sub.and_then(|sub| sub.core.is_active(consumer.key)) {
            consumer.peer.active_consumer_changed(consumer.consumer_id, active);
            flushes.add(&consumer.peer);
        }
    }

    /// Tells a Failover consumer that sends no FLOW whether it is active.
    pub(super) fn introduce_later(&self, key: ConsumerKey) {
        let topic = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(INTRODUCTION).await;
            let Some(topic) = topic.upgrade() else { return };
            let mut flushes = Flushes::default();
            let mut state = topic.state.lock();
            if let Some(consumer) = state.consumers.get(&key).cloned() {
                topic.introduce(&mut state, &consumer, &mut flushes);
            }
            drop(state);
            flushes.run();
        });
    }

    fn set_timer(&self, state: &mut TopicState, name: &Arc<str>, at: u64, now: u64) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        if sub.timer_at > now && sub.timer_at <= at {
            return;
        }
        sub.timer_at = at;
        let (topic, name) = (self.me.clone(), name.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(at.saturating_sub(now))).await;
            let Some(topic) = topic.upgrade() else { return };
            // It has run out also when the clock was set back meanwhile, and is set anew then.
            if let Some(sub) = topic.state.lock().subscriptions.get_mut(&name)
                && sub.timer_at == at
            {
                sub.timer_at = 0;
            }
            topic.dispatch_again(&name);
        });
    }

    /// Dispatches a subscription again after a while.
    pub(super) fn dispatch_soon(&self, name: &Arc<str>, after: Duration) {
        let (topic, name) = (self.me.clone(), name.clone());
        tokio::spawn(async move {
            if after.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(after).await;
            }
            if let Some(topic) = topic.upgrade() {
                topic.dispatch_again(&name);
            }
        });
    }

    pub(super) fn dispatch_again(&self, name: &Arc<str>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        self.dispatch(&mut state, name, &mut flushes);
        self.trim_cache(&mut state);
        drop(state);
        flushes.run();
    }

    /// Forgets cached entries that every connected subscription has read.
    pub(super) fn trim_cache(&self, state: &mut TopicState) {
        if state.cache.bytes() == 0 {
            return;
        }
        let freed = match state.first_needed() {
            Some(position) => state.cache.evict_below(position),
            None => state.cache.clear(),
        };
        self.shared.memory.tail_cache.give_back(freed as u64);
    }
}
