//! Rates and bounds that policies set on what passes through a topic.
//!
//! A producer above its topic's rate has its connection left unread until the rate is kept; a subscription above its own
//! or its topic's waits with dispatching. Non-persistent topics have no dispatch rates, as in Pulsar.

use std::time::Duration;

use geminga_topic::rate_limit::{Rate, RateLimit};
use rustc_hash::FxHashMap;

use super::{Flushes, ProducerHandle, Publish, Sub, Topic, TopicState};
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

/// What policies limit; a topic without any of it has none of this.
pub(super) struct Limits {
    publish: Option<RateLimit>,
    dispatch: Option<RateLimit>,
    subscription_dispatch: Rate,
    /// Rates of single subscriptions, before the one of all.
    single_dispatch: Vec<(String, Rate)>,
    subscribe: Rate,
    /// Consumers that subscribed lately.
    subscribers: FxHashMap<String, RateLimit>,
    max_message_bytes: Option<usize>,
    max_delay_ms: Option<u64>,
    encrypted_only: bool,
}

impl Limits {
    fn refusal(&self, publish: &Publish, now: u64) -> Option<BrokerError> {
        // The chunks of one message may together be of any size.
        if self.max_message_bytes.is_some_and(|max| publish.payload.len() > max) && publish.meta.num_chunks <= 1 {
            return Some(BrokerError::NotAllowed("Exceed maximum message size".into()));
        }
        if self.encrypted_only && !publish.meta.flags.encrypted {
            return Some(BrokerError::PreconditionFailed("Messages must be encrypted".into()));
        }
        let max = self.max_delay_ms?;
        (publish.meta.deliver_at > now.saturating_add(max))
            .then(|| BrokerError::NotAllowed(format!("Exceeds max allowed delivery delay of {max} milliseconds")))
    }
}

impl Topic {
    /// Takes over what the policies say now; what has passed already still counts.
    pub(super) fn refresh_limits(&self, state: &mut TopicState) {
        let cluster = &self.shared.config.cluster;
        let policies = &state.policies;
        let [messages_in, bytes_in, ..] = self.rates.topic();
        let dispatch = policies.dispatch_rate(cluster, [messages_in, bytes_in]);
        let subscription_dispatch = policies.subscription_dispatch_rate(cluster, [messages_in, bytes_in]);
        let (publish, subscribe) = (policies.publish_rate(cluster), policies.subscribe_rate(cluster));
        let (max_message_bytes, max_delay_ms) = (policies.max_message_bytes(), policies.max_delay_ms());
        let single_dispatch = policies.single_dispatch_rates([messages_in, bytes_in]);
        let encrypted_only = policies.encryption_required();
        let limited = [publish, dispatch, subscription_dispatch, subscribe].iter().any(Rate::is_limited);
        let bounded = max_message_bytes.is_some() || max_delay_ms.is_some() || encrypted_only;
        if !limited && single_dispatch.is_empty() && !bounded {
            state.limits = None;
            return;
        }
        let old = state.limits.take().map(|old| *old);
        let (old_publish, old_dispatch, subscribers) =
            old.map_or_else(Default::default, |old| (old.publish, old.dispatch, old.subscribers));
        state.limits = Some(Box::new(Limits {
            publish: adapted(old_publish, publish),
            dispatch: adapted(old_dispatch, dispatch),
            subscription_dispatch,
            single_dispatch,
            subscribe,
            subscribers,
            max_message_bytes,
            max_delay_ms,
            encrypted_only,
        }));
    }

    /// Answers messages that are out of bounds, and holds the producer's connection back as the rate demands.
    pub(super) fn throttle(
        &self,
        state: &mut TopicState,
        producer: &ProducerHandle,
        batch: &mut Vec<Publish>,
        flushes: &mut Flushes,
    ) {
        let Some(limits) = &mut state.limits else { return };
        let now = now_ms();
        batch.retain(|publish| {
            let refusal = limits.refusal(publish, now);
            if let Some(error) = &refusal {
                producer.peer.send_failed(producer.producer_id, publish.highest_sequence_id, error);
                flushes.add(&producer.peer);
            }
            refusal.is_none()
        });
        let Some(limit) = &mut limits.publish else { return };
        let messages = batch.iter().map(|publish| u64::from(publish.meta.num_messages)).sum();
        let bytes = batch.iter().map(|publish| publish.payload.len() as u64).sum();
        limit.take(now, messages, bytes);
        let pause = limit.wait_ms(now);
        if pause > 0 {
            state.publish_throttled += 1;
            producer.peer.hold_back(Duration::from_millis(pause));
        }
    }

    /// Refuses a consumer that subscribes too often; `who` stays the same when it comes back.
    pub(super) fn check_subscribe_rate(&self, state: &mut TopicState, who: String) -> Result<()> {
        let Some(limits) = &mut state.limits else { return Ok(()) };
        if !limits.subscribe.is_limited() {
            return Ok(());
        }
        let now = now_ms();
        limits.subscribers.retain(|_, limit| !limit.is_full(now));
        let rate = limits.subscribe;
        let limit = limits.subscribers.entry(who).or_insert_with(|| RateLimit::new(rate, now));
        if limit.wait_ms(now) > 0 {
            return Err(BrokerError::NotAllowed("Subscribe limited by subscribe rate limit per consumer.".into()));
        }
        limit.take(now, 1, 0);
        Ok(())
    }
}

/// The limit for a rate, with what is left of the one before it.
fn adapted(old: Option<RateLimit>, rate: Rate) -> Option<RateLimit> {
    match old {
        _ if !rate.is_limited() => None,
        Some(mut old) => {
            old.change(rate, now_ms());
            Some(old)
        }
        None => Some(RateLimit::new(rate, now_ms())),
    }
}

/// Messages and bytes that a subscription may deliver now, or the milliseconds until it may deliver some.
pub(super) fn allowance(
    limits: &mut Option<Box<Limits>>,
    name: &str,
    sub: &mut Sub,
    now: u64,
) -> std::result::Result<(u64, u64), u64> {
    let Some(limits) = limits else { return Ok((u64::MAX, u64::MAX)) };
    let single = limits.single_dispatch.iter().find(|(known, _)| known == name);
    let own = single.map_or(limits.subscription_dispatch, |(_, rate)| *rate);
    if sub.dispatch_limit.as_ref().map_or(Rate::default(), |limit| limit.rate()) != own {
        sub.dispatch_limit = adapted(sub.dispatch_limit.take().map(|limit| *limit), own).map(Box::new);
    }
    let mut room = (u64::MAX, u64::MAX);
    for limit in [limits.dispatch.as_mut(), sub.dispatch_limit.as_deref_mut()].into_iter().flatten() {
        let wait = limit.wait_ms(now);
        if wait > 0 {
            return Err(wait);
        }
        let (messages, bytes) = limit.room(now);
        room = (room.0.min(messages), room.1.min(bytes));
    }
    Ok(room)
}

/// So much was delivered.
pub(super) fn spend(limits: &mut Option<Box<Limits>>, sub: &mut Sub, messages: u64, bytes: u64) {
    let Some(limits) = limits else { return };
    for limit in [limits.dispatch.as_mut(), sub.dispatch_limit.as_deref_mut()].into_iter().flatten() {
        limit.take(now_ms(), messages, bytes);
    }
}
