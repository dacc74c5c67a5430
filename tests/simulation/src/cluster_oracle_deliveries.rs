//! What must be true of what consumers are given, counted without asking the dispatchers: nothing without a permit, no permit lost, and
//! of each key of a Key_Shared subscription nothing while another consumer has an earlier message of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::Excluded;

use geminga_model::Position;
use geminga_topic::SubscriptionStats;

use crate::cluster_oracle::Existing;
use crate::ledger_oracle::Entry;

/// A subscription of a topic, as the owner of one ownership has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnedSub {
    pub topic: usize,
    pub sub: usize,
    pub ownership: u64,
}

struct Consumer {
    of: OwnedSub,
    granted: u64,
    delivered: u64,
    /// Given to it and not given back.
    held: BTreeSet<Position>,
}

#[derive(Default)]
struct Acked {
    entries: BTreeSet<Position>,
    /// By key: up to here all are acknowledged.
    up_to: BTreeMap<u64, Position>,
}

#[derive(Default)]
pub struct Deliveries {
    /// By connection, as long as the broker has them.
    consumers: BTreeMap<u64, Consumer>,
    acked: BTreeMap<OwnedSub, Acked>,
}

impl Deliveries {
    /// An owner begins, and knows these acknowledgements.
    pub fn begin(&mut self, of: OwnedSub, acked: impl IntoIterator<Item = Position>) {
        self.acked.insert(of, Acked { entries: acked.into_iter().collect(), up_to: BTreeMap::new() });
    }

    pub fn acked(&mut self, of: OwnedSub, positions: &[Position]) {
        self.acked.entry(of).or_default().entries.extend(positions);
    }

    pub fn joined(&mut self, connection: u64, of: OwnedSub) {
        self.consumers.insert(connection, Consumer { of, granted: 0, delivered: 0, held: BTreeSet::new() });
    }

    pub fn left(&mut self, connection: u64) {
        self.consumers.remove(&connection);
    }

    pub fn granted(&mut self, connection: u64, permits: u32) {
        if let Some(consumer) = self.consumers.get_mut(&connection) {
            consumer.granted += u64::from(permits);
        }
    }

    pub fn gave_back(&mut self, connection: u64, positions: &[Position]) {
        if let Some(consumer) = self.consumers.get_mut(&connection) {
            consumer.held.retain(|position| !positions.contains(position));
        }
    }

    /// An entry is on its way to a consumer. The rest of a batch needs no permits.
    pub fn given(&mut self, connection: u64, position: Position, entry: &Entry) {
        let consumer = self.consumers.get_mut(&connection).expect("it has joined");
        let Consumer { granted, delivered, .. } = *consumer;
        assert!(
            granted > delivered,
            "{position} goes to {connection}, which has got {delivered} of {granted} messages"
        );
        consumer.delivered += u64::from(entry.messages);
        consumer.held.insert(position);
    }

    /// Whatever of its key comes before it in the topic is acknowledged, or was given to the same consumer.
    pub fn check_key(&mut self, connection: u64, position: Position, key: u64, entries: &BTreeMap<Position, Existing>) {
        let consumer = &self.consumers[&connection];
        let acked = self.acked.get_mut(&consumer.of).expect("its owner has begun");
        let up_to = acked.up_to.entry(key).or_insert(Position::EARLIEST);
        let mut all_acked = true;
        let earlier = entries.range((Excluded(*up_to), Excluded(position)));
        for (earlier, _) in earlier.filter(|(_, existing)| existing.key == key) {
            if !acked.entries.contains(earlier) {
                all_acked = false;
                assert!(
                    consumer.held.contains(earlier),
                    "{position} goes to {connection}, and {earlier} of its key is neither there nor acknowledged"
                );
            } else if all_acked {
                *up_to = *earlier;
            }
        }
    }

    /// The dispatcher says that nobody has permits.
    pub fn check_nobody_has_permits(&self, connection: u64) {
        let Some(Consumer { granted, delivered, .. }) = self.consumers.get(&connection) else { return };
        assert!(granted <= delivered, "{connection} has got {delivered} of {granted} messages, and gets no more");
    }

    /// What the product says is what was counted.
    pub fn check_permits(&self, stats: &SubscriptionStats) {
        for shown in &stats.consumers {
            let Consumer { granted, delivered, .. } = self.consumers[&shown.key];
            let permits = granted as i64 - delivered as i64;
            assert_eq!(shown.available_permits, permits, "permits of {}", shown.consumer_name);
        }
    }
}
