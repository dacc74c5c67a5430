//! What must hold of a subscription's deliveries, whatever its consumers do.
//!
//! The oracle knows who holds what from deliveries and acknowledgements alone. It checks each delivery when it is made, and
//! after a dispatch that has nothing left to read, that everything which was not delivered has a reason.

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::Position;
use geminga_topic::hash::{auto_split_slot, sticky_slot};
use geminga_topic::{ConsumerKey, Delivery, Subscription, SubscriptionStats, SubscriptionType};

use crate::dispatch_topic::SimTopic;

pub struct SimConsumer {
    pub name: String,
    pub granted: i64,
    pub delivered: i64,
    pub writable: bool,
    pub held: BTreeSet<Position>,
}

pub struct Oracle {
    pub sub_type: SubscriptionType,
    pub sticky: bool,
    pub out_of_order: bool,
    pub consumers: BTreeMap<ConsumerKey, SimConsumer>,
    /// Exclusive and Failover: what was sent since delivery last started over.
    sent: BTreeSet<Position>,
    last_sent: Option<Position>,
    redeliveries: BTreeMap<Position, u32>,
    max_unacked: (u32, u32),
}

/// Entries that consumers of a subscription may hold when there is no memory for more.
const ALWAYS: usize = 64;

impl Oracle {
    pub fn new(sub_type: SubscriptionType, max_unacked: (u32, u32)) -> Self {
        Oracle {
            sub_type,
            sticky: false,
            out_of_order: false,
            consumers: BTreeMap::new(),
            sent: BTreeSet::new(),
            last_sent: None,
            redeliveries: BTreeMap::new(),
            max_unacked,
        }
    }

    pub fn slot_of(&self, topic: &SimTopic, position: Position) -> u16 {
        self.slot_of_hash(topic.entry(position).expect("an entry of the topic").meta.sticky_key_hash)
    }

    fn slot_of_hash(&self, hash: u32) -> u16 {
        if self.sticky { sticky_slot(hash) } else { auto_split_slot(hash) }
    }

    pub fn added(&mut self, key: ConsumerKey, name: String) {
        let consumer = SimConsumer { name, granted: 0, delivered: 0, writable: true, held: BTreeSet::new() };
        if self.consumers.is_empty() {
            self.started_over();
        }
        self.consumers.insert(key, consumer);
    }

    pub fn removed(&mut self, key: ConsumerKey) {
        self.consumers.remove(&key);
        if self.consumers.is_empty() {
            self.started_over();
        }
    }

    pub fn gave_back(&mut self, positions: impl IntoIterator<Item = Position>) {
        for position in positions {
            *self.redeliveries.entry(position).or_default() += 1;
        }
    }

    pub fn started_over(&mut self) {
        self.restarted();
        self.redeliveries.clear();
        for consumer in self.consumers.values_mut() {
            consumer.held.clear();
        }
    }

    /// Exclusive and Failover go back to the first unacknowledged entry.
    pub fn restarted(&mut self) {
        self.sent.clear();
        self.last_sent = None;
    }

    /// Something was acknowledged or trimmed: nobody holds it any more.
    pub fn acked(&mut self, sub: &Subscription, topic: &SimTopic) {
        let gone = |position| sub.cursor().is_acked(position) || topic.entry(position).is_none();
        for consumer in self.consumers.values_mut() {
            consumer.held.retain(|&position| !gone(position));
        }
        self.redeliveries.retain(|&position, _| !gone(position));
    }

    pub fn delivered(&mut self, sub: &Subscription, topic: &SimTopic, now: u64, delivery: &Delivery) {
        let position = delivery.entry.position;
        let stored = topic.entry(position).expect("what is delivered exists");
        assert!(!sub.cursor().is_acked(position), "{position} is acknowledged");
        assert!(!stored.meta.flags.is_marker, "{position} is a marker");
        assert_eq!(
            delivery.ack_set.as_deref().map(<[i64]>::to_vec),
            sub.cursor().remaining_set(position),
            "{position}"
        );
        if self.sub_type.is_individual() {
            self.check_shared(sub, topic, now, delivery);
        } else {
            self.check_single(sub, topic, position);
        }
        let messages = match &delivery.ack_set {
            Some(words) => words.iter().map(|word| word.count_ones()).sum(),
            None => stored.meta.num_messages,
        };
        let consumer = self.consumers.get_mut(&delivery.consumer).expect("the consumer is connected");
        assert!(consumer.granted > consumer.delivered, "{} had no permits for {position}", consumer.name);
        assert!(consumer.writable, "{} takes no more", consumer.name);
        consumer.delivered += i64::from(messages);
        consumer.held.insert(position);
    }

    fn check_shared(&self, sub: &Subscription, topic: &SimTopic, now: u64, delivery: &Delivery) {
        let position = delivery.entry.position;
        for consumer in self.consumers.values() {
            assert!(!consumer.held.contains(&position), "{position} is held by {}", consumer.name);
        }
        assert!(delivery.entry.meta.deliver_at <= now, "{position} is too early");
        let expected = self.redeliveries.get(&position).copied().unwrap_or(0);
        assert_eq!(delivery.redelivery_count, expected, "redeliveries of {position}");
        if self.sub_type == SubscriptionType::KeyShared && !self.out_of_order {
            self.check_key_order(sub, topic, delivery);
        }
    }

    /// Everything before it of the same key slot is acknowledged or with the same consumer. Delayed messages have an order of
    /// their own, but they too are never with two consumers.
    fn check_key_order(&self, sub: &Subscription, topic: &SimTopic, delivery: &Delivery) {
        let position = delivery.entry.position;
        let delayed = delivery.entry.meta.deliver_at > 0;
        let slot = self.slot_of_hash(delivery.entry.meta.sticky_key_hash);
        let mark = sub.cursor().mark_delete();
        for earlier in topic.entries_after(mark).take_while(|entry| entry.position < position) {
            let other = self.slot_of_hash(earlier.meta.sticky_key_hash) != slot;
            if other || sub.cursor().is_acked(earlier.position) {
                continue;
            }
            let holder = self.consumers.iter().find(|(_, consumer)| consumer.held.contains(&earlier.position));
            match holder {
                Some((key, consumer)) => assert_eq!(
                    *key, delivery.consumer,
                    "{position} goes to another consumer while {} holds {}",
                    consumer.name, earlier.position
                ),
                None => assert!(
                    delayed || earlier.meta.deliver_at > 0 || earlier.meta.flags.is_marker,
                    "{position} overtakes {} of its key",
                    earlier.position
                ),
            }
        }
    }

    fn check_single(&mut self, sub: &Subscription, topic: &SimTopic, position: Position) {
        assert!(self.last_sent.is_none_or(|last| last < position), "{position} is not in order");
        let mark = sub.cursor().mark_delete();
        for earlier in topic.entries_after(mark).take_while(|e| e.position < position) {
            let known = sub.cursor().is_acked(earlier.position) || self.sent.contains(&earlier.position);
            assert!(known || earlier.meta.flags.is_marker, "{position} overtakes {}", earlier.position);
        }
        self.last_sent = Some(position);
        self.sent.insert(position);
    }

    /// Permits and unacknowledged messages are what they are derived from.
    pub fn check_accounts(&self, stats: &SubscriptionStats) {
        assert_eq!(stats.consumers.len(), self.consumers.len());
        for shown in &stats.consumers {
            let consumer = &self.consumers[&shown.key];
            assert_eq!(shown.available_permits, consumer.granted - consumer.delivered, "permits of {}", consumer.name);
        }
    }

    /// Nothing is left to read: each entry that nobody has is somewhere for a reason.
    pub fn check_nothing_stalls(&self, sub: &Subscription, topic: &SimTopic, stats: &SubscriptionStats, now: u64) {
        if stats.consumers.is_empty() {
            return;
        }
        if stats.blocked_subscription_on_unacked_msgs {
            let held: usize = self.consumers.values().map(|consumer| consumer.held.len()).sum();
            let few = held < ALWAYS && stats.unacked_messages < u64::from(self.max_unacked.1);
            assert!(!few, "blocked although consumers hold {held} entries only");
            return;
        }
        let available: BTreeSet<ConsumerKey> = stats
            .consumers
            .iter()
            .filter(|c| c.available_permits > 0 && c.writable && !c.blocked_consumer_on_unacked_msgs)
            .map(|c| c.key)
            .collect();
        let mut ranges: Vec<(u32, u32, ConsumerKey)> = Vec::new();
        for consumer in &stats.consumers {
            ranges.extend(consumer.key_hash_range_arrays.iter().map(|r| (r[0], r[1], consumer.key)));
        }
        let mark = sub.cursor().mark_delete();
        let held: BTreeMap<Position, ConsumerKey> = (self.consumers.iter())
            .flat_map(|(&key, consumer)| consumer.held.iter().map(move |&position| (position, key)))
            .collect();
        let mut holders: BTreeMap<u16, BTreeSet<ConsumerKey>> = BTreeMap::new();
        for (&position, &key) in &held {
            holders.entry(self.slot_of(topic, position)).or_default().insert(key);
        }
        for entry in topic.entries_after(mark) {
            let position = entry.position;
            let elsewhere = sub.cursor().is_acked(position)
                || entry.meta.deliver_at > now
                || (held.contains_key(&position) && self.sub_type.is_individual());
            if elsewhere {
                continue;
            }
            let reason = match self.sub_type {
                SubscriptionType::KeyShared => {
                    let slot = self.slot_of(topic, position);
                    let target = ranges.iter().find(|r| (r.0..=r.1).contains(&u32::from(slot))).map(|r| r.2);
                    let drains = target.is_none_or(|target| {
                        holders.get(&slot).is_some_and(|holders| holders.iter().any(|&holder| holder != target))
                    });
                    target.is_none_or(|target| !available.contains(&target)) || (drains && !self.out_of_order)
                }
                SubscriptionType::Shared => available.is_empty() || entry.meta.num_chunks > 1,
                _ => {
                    let active =
                        stats.consumers.iter().find(|c| stats.active_consumer_name.as_ref() == Some(&c.consumer_name));
                    active.is_none_or(|active| !available.contains(&active.key))
                        || self.sent.contains(&position)
                        || self.sub_type == SubscriptionType::Failover
                }
            };
            assert!(reason, "{position} was not delivered although it could be");
        }
        assert!(self.max_unacked.0 > 0 && self.max_unacked.1 > 0);
    }
}
