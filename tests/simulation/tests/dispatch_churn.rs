//! Key_Shared with 100 consumers of which one joins or leaves all the time and some never acknowledge: everybody else's keys
//! flow as if nothing happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use geminga_ledger::Cursor;
use geminga_model::Position;
use geminga_simulation::dispatch_topic::SimTopic;
use geminga_topic::hash::{auto_split_slot, sticky_key_hash};
use geminga_topic::{
    AckRequest, ConsumerKey, ConsumerSpec, EntryMeta, IndividualAck, Subscription, SubscriptionOptions,
    SubscriptionType,
};

const CONSUMERS: u64 = 100;
const NEVER_ACK: u64 = 5;
const PERMITS: u32 = 500;
const TICKS: u64 = 600;
const PER_TICK: u64 = 500;
const KEYS: u64 = 1_000_000;

struct Run {
    topic: SimTopic,
    sub: Subscription,
    /// Entries to acknowledge in the next tick, by consumer.
    held: BTreeMap<ConsumerKey, Vec<Position>>,
    /// Entries that a leaver held: they come again.
    left: BTreeSet<Position>,
    published_to_others: u64,
    delivered_to_others: u64,
    last_slot: BTreeMap<u16, Position>,
    now: u64,
}

impl Run {
    fn new() -> Self {
        let topic = SimTopic::new(1, 0, 1024);
        let cursor = Cursor::new(topic.list().before_first());
        let options = SubscriptionOptions { max_unacked_per_subscription: 0, ..SubscriptionOptions::default() };
        Run {
            sub: Subscription::new("churn", cursor, options),
            topic,
            held: BTreeMap::new(),
            left: BTreeSet::new(),
            published_to_others: 0,
            delivered_to_others: 0,
            last_slot: BTreeMap::new(),
            now: 0,
        }
    }

    fn join(&mut self, key: ConsumerKey) {
        let spec =
            ConsumerSpec { key, name: format!("c{key}"), sub_type: SubscriptionType::KeyShared, ..Default::default() };
        self.sub.add_consumer(spec, self.now).unwrap();
        self.sub.flow(key, PERMITS);
        self.held.insert(key, Vec::new());
    }

    fn leave(&mut self, key: ConsumerKey) {
        self.sub.remove_consumer(key, self.topic.list(), self.now);
        self.left.extend(self.held.remove(&key).unwrap_or_default());
    }

    /// Publishes, dispatches, and acknowledges what came in the tick before.
    fn tick(&mut self, random: &mut u64) {
        for (&key, positions) in &mut self.held {
            if key > NEVER_ACK && !positions.is_empty() {
                let ack = |position| IndividualAck { position, ack_set: Vec::new(), batch_size: None };
                self.sub.flow(key, positions.len() as u32);
                let request = AckRequest::Individual(positions.drain(..).map(ack).collect());
                self.sub.ack(key, request, self.topic.list(), self.now).unwrap();
            }
        }
        let stats = self.sub.stats(self.topic.list());
        let mut uninvolved = vec![false; 65_536];
        for consumer in stats.consumers.iter().filter(|consumer| consumer.key > NEVER_ACK) {
            for range in &consumer.key_hash_range_arrays {
                uninvolved[range[0] as usize..=range[1] as usize].fill(true);
            }
        }
        for draining in stats.consumers.iter().flat_map(|consumer| &consumer.draining_hashes) {
            uninvolved[draining.hash as usize] = false;
        }
        let mut metas = Vec::new();
        for _ in 0..PER_TICK {
            *random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let hash = sticky_key_hash(&(*random >> 33).rem_euclid(KEYS).to_le_bytes());
            self.published_to_others += u64::from(uninvolved[auto_split_slot(hash) as usize]);
            metas.push(EntryMeta { sticky_key_hash: hash, ..EntryMeta::default() });
        }
        self.topic.append(metas);
        self.dispatch(&uninvolved);
    }

    fn dispatch(&mut self, uninvolved: &[bool]) {
        let mut out = Vec::new();
        loop {
            let wait = self.sub.dispatch(self.now, &mut self.topic, 1 << 20, &mut out);
            if !self.topic.serve(&wait) {
                break;
            }
        }
        for delivery in out {
            let slot = auto_split_slot(delivery.entry.meta.sticky_key_hash);
            let position = delivery.entry.position;
            let comes_again = self.left.remove(&position);
            if !comes_again {
                let last = self.last_slot.insert(slot, position);
                assert!(last.is_none_or(|last| last < position), "{position} is out of order");
            }
            self.delivered_to_others += u64::from(uninvolved[slot as usize] && !comes_again);
            self.held.get_mut(&delivery.consumer).expect("a connected consumer").push(position);
        }
    }
}

#[test]
fn a_hundred_consumers_with_one_coming_and_going() {
    let mut run = Run::new();
    (1..=CONSUMERS).for_each(|key| run.join(key));
    let mut random = 7;
    let mut next = 1000;
    let started = Instant::now();
    for tick in 0..TICKS {
        run.now = tick * 10;
        if tick % 10 == 0 {
            match tick / 10 % 2 {
                0 => run.join(next),
                _ => {
                    run.leave(next);
                    next += 1;
                }
            }
        }
        run.tick(&mut random);
        if tick % 50 == 0 {
            run.sub.check_invariants();
        }
    }
    let share = run.delivered_to_others as f64 / run.published_to_others as f64;
    let explanation = run.sub.explain(run.topic.list(), run.now);
    println!(
        "{} of {} ({share:.4}) delivered at once, {:?} in all; {}, {} wait",
        run.delivered_to_others,
        run.published_to_others,
        started.elapsed(),
        explanation.summary,
        explanation.waiting_entries
    );
    assert!(share >= 0.95, "keys that are not involved get {share} of their throughput");
    assert!(run.published_to_others > TICKS * PER_TICK * 8 / 10);
    // Whoever never acknowledges and has no permits is named.
    for stuck in explanation.consumers.iter().filter(|consumer| consumer.name.len() == 2 && consumer.permits <= 0) {
        assert!(stuck.waits_for.is_some() && stuck.unacked_messages >= u64::from(PERMITS));
    }
}
