//! Random consumers on one subscription: they come and go, grant permits, acknowledge whole entries and parts of batches, give
//! back, stop reading, and sometimes somebody seeks.

use geminga_ledger::Cursor;
use geminga_model::Position;
use geminga_topic::{
    AckRequest, ConsumerSpec, DelayedBudget, DispatchWait, EntryFlags, EntryMeta, Event, IndividualAck, KeySharedMode,
    KeySharedSpec, Subscription, SubscriptionOptions, SubscriptionType, UnackedBudget,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::dispatch_oracle::Oracle;
use crate::dispatch_topic::SimTopic;

const STEPS: usize = 150;
const MAX_ENTRIES: usize = 600;

struct World {
    rng: SmallRng,
    topic: SimTopic,
    sub: Subscription,
    oracle: Oracle,
    now: u64,
    next_key: u64,
    entries: usize,
    keys: u32,
    delays: bool,
    chunks: bool,
    /// Consumers that were told that the topic has ended.
    ends: usize,
    /// Hash of all that happened.
    trace: u64,
}

/// Runs one seed; panics when something does not hold. Returns a hash of all that happened.
pub fn run(seed: u64, sub_type: SubscriptionType) -> u64 {
    let mut world = World::new(seed, sub_type);
    for _ in 0..STEPS {
        world.step();
        if world.rng.random_bool(0.7) {
            world.dispatch();
        }
        world.check();
    }
    world.finish();
    world.trace
}

impl World {
    fn new(seed: u64, sub_type: SubscriptionType) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let small = rng.random_bool(0.4);
        let max_unacked =
            if rng.random_bool(0.3) { (rng.random_range(1..30), rng.random_range(1..60)) } else { (5000, 9000) };
        let options = SubscriptionOptions {
            max_unacked_per_consumer: max_unacked.0,
            max_unacked_per_subscription: max_unacked.1,
            partition_index: rng.random_bool(0.5).then(|| rng.random_range(0..5)),
            topic: "persistent://public/default/simulated".into(),
            failover_delay_ms: rng.random_range(0..3) * 50,
            unacked_budget: UnackedBudget::new(if rng.random_bool(0.3) { 0 } else { 1 << 20 }),
            delayed_budget: DelayedBudget::new(if small { 200 } else { 1 << 20 }),
            look_ahead_bytes: if small { 500 } else { 1 << 20 },
            ..SubscriptionOptions::default()
        };
        let cold = [0, 20, 80][rng.random_range(0..3)];
        let mut oracle = Oracle::new(sub_type, max_unacked);
        oracle.sticky = rng.random_bool(0.2);
        oracle.out_of_order = rng.random_bool(0.1);
        let topic = SimTopic::new(rng.random(), cold, 100);
        World {
            sub: Subscription::new("sim", Cursor::new(topic.list().before_first()), options),
            topic,
            oracle,
            now: 1000,
            next_key: 1,
            entries: 0,
            keys: [1, 3, 50, 10_000][rng.random_range(0..4)],
            delays: sub_type.is_individual() && rng.random_bool(0.3),
            chunks: sub_type == SubscriptionType::Shared && rng.random_bool(0.3),
            ends: 0,
            rng,
            trace: seed,
        }
    }

    fn note(&mut self, value: u64) {
        self.trace = (self.trace.rotate_left(7) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn any_consumer(&mut self) -> Option<u64> {
        let count = self.oracle.consumers.len();
        let index = if count == 0 { return None } else { self.rng.random_range(0..count) };
        self.oracle.consumers.keys().nth(index).copied()
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..22 => self.append(),
            22..30 => self.add_consumer(),
            30..34 => self.remove_consumer(),
            34..54 => self.flow(),
            54..76 => self.ack(),
            76..84 => self.redeliver(),
            84..88 => self.toggle_writable(),
            88..97 => self.now += self.rng.random_range(0..100),
            97 if self.rng.random_bool(0.6) => self.topic.roll_over(),
            97 => self.trim(),
            98 => self.reset(),
            _ => self.skip(),
        }
    }

    fn append(&mut self) {
        let count = self.rng.random_range(1..30).min(MAX_ENTRIES - self.entries.min(MAX_ENTRIES));
        self.entries += count;
        let batches = self.rng.random_bool(0.5);
        let mut metas = Vec::new();
        while metas.len() < count {
            let num_messages = if batches { self.rng.random_range(1..80) } else { 1 };
            let key = self.rng.random_range(0..self.keys);
            let mut meta = EntryMeta {
                num_messages,
                sticky_key_hash: geminga_topic::hash::sticky_key_hash(&key.to_le_bytes()),
                flags: EntryFlags {
                    has_key: true,
                    is_marker: self.rng.random_bool(0.02),
                    batch: num_messages > 1,
                    encrypted: false,
                },
                ..EntryMeta::default()
            };
            if self.delays && self.rng.random_bool(0.5) {
                meta.deliver_at = self.now + self.rng.random_range(0..300);
            }
            if self.chunks && self.rng.random_bool(0.3) {
                let uuid = self.rng.random_range(1..u64::MAX);
                let num_chunks = self.rng.random_range(2..5);
                let chunk = |chunk_id| EntryMeta {
                    num_messages: 1,
                    chunk_uuid_hash: uuid,
                    chunk_id,
                    num_chunks,
                    deliver_at: 0,
                    flags: EntryFlags::default(),
                    ..meta
                };
                metas.extend((0..num_chunks).map(chunk));
            } else {
                metas.push(meta);
            }
        }
        self.topic.append(metas);
    }

    fn spec(&mut self, key: u64) -> ConsumerSpec {
        let third = 65_536 / 3;
        let range = self.rng.random_range(0..3);
        let mode = match self.oracle.sticky {
            true => KeySharedMode::Sticky(vec![(range * third, (range + 1) * third - 1)]),
            false => KeySharedMode::AutoSplit,
        };
        let keyed = self.oracle.sub_type == SubscriptionType::KeyShared;
        let key_shared = keyed.then_some(KeySharedSpec { mode, allow_out_of_order: self.oracle.out_of_order });
        ConsumerSpec {
            key,
            consumer_id: key,
            name: format!("c{}-{key}", self.rng.random_range(0..4)),
            priority: if self.rng.random_bool(0.2) { 1 } else { 0 },
            sub_type: self.oracle.sub_type,
            key_shared,
            ..ConsumerSpec::default()
        }
    }

    fn add_consumer(&mut self) {
        if self.oracle.consumers.len() >= 6 {
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        let spec = self.spec(key);
        let name = spec.name.clone();
        match self.sub.add_consumer(spec, self.now) {
            Ok(()) => self.oracle.added(key, name),
            Err(error) => {
                let alone = self.oracle.consumers.is_empty();
                let may_fail = self.oracle.sub_type == SubscriptionType::Exclusive || self.oracle.sticky;
                assert!(!alone && may_fail, "refused: {error}");
            }
        }
    }

    fn remove_consumer(&mut self) {
        if let Some(key) = self.any_consumer() {
            self.sub.remove_consumer(key, self.topic.list(), self.now);
            self.oracle.removed(key);
        }
    }

    fn flow(&mut self) {
        if let Some(key) = self.any_consumer() {
            let permits = self.rng.random_range(1..60);
            self.sub.flow(key, permits);
            self.oracle.consumers.get_mut(&key).expect("it was just chosen").granted += i64::from(permits);
        }
    }

    fn ack(&mut self) {
        let Some(key) = self.any_consumer() else { return };
        let held: Vec<Position> = self.oracle.consumers[&key].held.iter().copied().collect();
        if held.is_empty() {
            return;
        }
        let individual = self.oracle.sub_type.is_individual() || self.rng.random_bool(0.5);
        let request = if individual {
            let share = self.rng.random_range(0.0..1.0);
            let mut acks = Vec::new();
            for position in held {
                if self.rng.random_bool(share) {
                    acks.push(self.individual_ack(position));
                }
            }
            AckRequest::Individual(acks)
        } else {
            let position = held[self.rng.random_range(0..held.len())];
            AckRequest::Cumulative { position, ack_set: self.individual_ack(position).ack_set }
        };
        // Sometimes another consumer acknowledges.
        let by = if self.rng.random_bool(0.1) { self.any_consumer().unwrap_or(key) } else { key };
        self.sub.ack(by, request, self.topic.list(), self.now).expect("a valid acknowledgement");
        self.oracle.acked(&self.sub, &self.topic);
    }

    fn individual_ack(&mut self, position: Position) -> IndividualAck {
        let messages = self.topic.entry(position).expect("it was delivered").meta.num_messages;
        if messages == 1 || self.rng.random_bool(0.7) {
            return IndividualAck { position, ack_set: Vec::new(), batch_size: None };
        }
        let mut ack_set: Vec<i64> = (0..messages.div_ceil(64)).map(|_| self.rng.random::<i64>() | 1).collect();
        if !messages.is_multiple_of(64) {
            *ack_set.last_mut().expect("a batch has messages") &= (1u64 << (messages % 64)).wrapping_sub(1) as i64;
        }
        IndividualAck { position, ack_set, batch_size: Some(messages) }
    }

    fn redeliver(&mut self) {
        let Some(key) = self.any_consumer() else { return };
        let held: Vec<Position> = self.oracle.consumers[&key].held.iter().copied().collect();
        let some: Vec<Position> = held.iter().copied().filter(|_| self.rng.random_bool(0.3)).collect();
        let positions = if self.rng.random_bool(0.6) && !some.is_empty() { Some(some) } else { None };
        self.sub.redeliver(key, None, positions.as_deref(), self.topic.list(), self.now);
        if self.oracle.sub_type.is_individual() {
            let back = positions.unwrap_or(held);
            let consumer = self.oracle.consumers.get_mut(&key).expect("it was just chosen");
            back.iter().for_each(|position| {
                consumer.held.remove(position);
            });
            self.oracle.gave_back(back);
        } else if self.is_active(key) {
            self.oracle.restarted();
        }
    }

    fn is_active(&self, key: u64) -> bool {
        let stats = self.sub.stats(self.topic.list());
        stats.active_consumer_name.as_ref() == Some(&self.oracle.consumers[&key].name)
    }

    fn toggle_writable(&mut self) {
        if let Some(key) = self.any_consumer() {
            let writable = self.rng.random_bool(0.6);
            self.sub.set_writable(key, writable);
            self.oracle.consumers.get_mut(&key).expect("it was just chosen").writable = writable;
        }
    }

    fn reset(&mut self) {
        let count = self.topic.entries().count();
        if count > 0 {
            let index = self.rng.random_range(0..count);
            let target = self.topic.entries().nth(index).expect("there are as many").position;
            self.sub.reset(target, self.topic.list());
            self.oracle.started_over();
        }
    }

    fn trim(&mut self) {
        self.topic.trim();
        self.sub.on_trimmed(self.topic.list());
        self.oracle.acked(&self.sub, &self.topic);
    }

    fn skip(&mut self) {
        self.sub.skip(self.rng.random_range(1..10), self.topic.list());
        self.oracle.acked(&self.sub, &self.topic);
    }

    /// Runs the dispatcher; mostly until it has nothing to read.
    fn dispatch(&mut self) -> Option<DispatchWait> {
        for _ in 0..2000 {
            let budget = self.rng.random_range(1..20_000);
            let mut out = Vec::new();
            let wait = self.sub.dispatch(self.now, &mut self.topic, budget, &mut out);
            self.tell_events();
            for delivery in &out {
                self.oracle.delivered(&self.sub, &self.topic, self.now, delivery);
                self.note(delivery.consumer << 32 ^ delivery.entry.position.entry_id as u64);
            }
            self.oracle.acked(&self.sub, &self.topic);
            if !self.topic.serve(&wait) {
                let stats = self.sub.stats(self.topic.list());
                self.oracle.check_nothing_stalls(&self.sub, &self.topic, &stats, self.now);
                return Some(wait);
            }
            if self.rng.random_bool(0.02) {
                return None;
            }
        }
        panic!("the dispatcher does not come to an end");
    }

    /// A new active consumer starts at the first unacknowledged entry.
    fn tell_events(&mut self) {
        while let Some(event) = self.sub.poll_event() {
            match event {
                Event::ActiveConsumerChanged { is_active: true, .. } => self.oracle.restarted(),
                Event::ActiveConsumerChanged { .. } => {}
                Event::EndOfTopic { .. } => self.ends += 1,
            }
        }
    }

    fn check(&mut self) {
        self.tell_events();
        self.sub.check_invariants();
        let stats = self.sub.stats(self.topic.list());
        self.oracle.check_accounts(&stats);
        if self.rng.random_bool(0.05) {
            let explanation = self.sub.explain(self.topic.list(), self.now);
            assert!(!explanation.summary.is_empty());
        }
    }

    /// Everybody behaves: everything is delivered and acknowledged in the end.
    fn finish(&mut self) {
        if self.oracle.sticky && self.oracle.sub_type == SubscriptionType::KeyShared {
            for key in self.oracle.consumers.keys().copied().collect::<Vec<_>>() {
                self.sub.remove_consumer(key, self.topic.list(), self.now);
                self.oracle.removed(key);
            }
            let mut spec = self.spec(self.next_key);
            let mode = KeySharedMode::Sticky(vec![(0, 65_535)]);
            spec.key_shared = Some(KeySharedSpec { mode, allow_out_of_order: self.oracle.out_of_order });
            let name = spec.name.clone();
            self.sub.add_consumer(spec, self.now).expect("nobody else is there");
            self.oracle.added(self.next_key, name);
        }
        while self.oracle.consumers.is_empty() {
            self.add_consumer();
        }
        self.sub.terminated();
        for key in self.oracle.consumers.keys().copied().collect::<Vec<_>>() {
            self.sub.set_writable(key, true);
            self.sub.flow(key, 1_000_000);
            let consumer = self.oracle.consumers.get_mut(&key).expect("it is there");
            consumer.writable = true;
            consumer.granted += 1_000_000;
        }
        // What they hold from before is given back first, as clients do that reconnect.
        for key in self.oracle.consumers.keys().copied().collect::<Vec<_>>() {
            let active = !self.oracle.sub_type.is_individual() && self.is_active(key);
            self.sub.redeliver(key, None, None, self.topic.list(), self.now);
            let consumer = self.oracle.consumers.get_mut(&key).expect("it is there");
            let held = std::mem::take(&mut consumer.held);
            if self.oracle.sub_type.is_individual() {
                self.oracle.gave_back(held);
            } else if active {
                self.oracle.restarted();
            }
        }
        for round in 0.. {
            assert!(round < 2000, "not everything is delivered: {:#?}", self.sub.explain(self.topic.list(), self.now));
            self.now += 100;
            self.dispatch();
            self.check();
            for key in self.oracle.consumers.keys().copied().collect::<Vec<_>>() {
                let held = &self.oracle.consumers[&key].held;
                let acks: Vec<IndividualAck> = held
                    .iter()
                    .map(|&position| IndividualAck { position, ack_set: Vec::new(), batch_size: None })
                    .collect();
                self.sub.ack(key, AckRequest::Individual(acks), self.topic.list(), self.now).expect("valid");
            }
            self.oracle.acked(&self.sub, &self.topic);
            if self.sub.cursor().unacked_entries(self.topic.list()) == 0 {
                break;
            }
        }
        let mut out = Vec::new();
        loop {
            let wait = self.sub.dispatch(self.now, &mut self.topic, 1000, &mut out);
            if !self.topic.serve(&wait) {
                break;
            }
        }
        assert!(out.is_empty());
        self.tell_events();
        assert_eq!(self.ends, self.oracle.consumers.len(), "each consumer is told once that the topic has ended");
        self.check();
    }
}
