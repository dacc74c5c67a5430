//! The consumers of one subscription, in stable slots.

use rustc_hash::FxHashMap;

use super::spec::{ConsumerKey, ConsumerSpec};

/// Index of a consumer in [`Consumers`]; free again once the consumer is gone.
pub(crate) type Slot = u32;

#[derive(Debug)]
pub(crate) struct Consumer {
    pub spec: ConsumerSpec,
    /// Messages the consumer asked for, and messages sent to it. Their difference is its permits: nothing else is kept.
    pub granted: u64,
    pub delivered: u64,
    /// Messages and entries that it holds (Shared and Key_Shared).
    pub unacked: u64,
    pub pending_entries: u64,
    pub writable: bool,
    pub epoch: Option<u64>,
    pub told_end: bool,
    pub bytes_out: u64,
    pub entries_out: u64,
    pub chunks_out: u64,
    pub acked: u64,
    pub redelivered: u64,
    /// Milliseconds since the epoch; 0 if it never happened.
    pub last_consumed_at: u64,
    pub last_acked_at: u64,
    pub last_flow_at: u64,
    pub first_sent_at: u64,
    pub drained_hashes: u64,
}

impl Consumer {
    fn new(spec: ConsumerSpec) -> Self {
        Consumer {
            epoch: spec.epoch,
            spec,
            granted: 0,
            delivered: 0,
            unacked: 0,
            pending_entries: 0,
            writable: true,
            told_end: false,
            bytes_out: 0,
            entries_out: 0,
            chunks_out: 0,
            acked: 0,
            redelivered: 0,
            last_consumed_at: 0,
            last_acked_at: 0,
            last_flow_at: 0,
            first_sent_at: 0,
            drained_hashes: 0,
        }
    }

    /// Messages that may be sent; below zero by at most one batch.
    pub fn permits(&self) -> i64 {
        self.granted as i64 - self.delivered as i64
    }

    pub fn at_unacked_limit(&self, max_unacked: u32) -> bool {
        max_unacked > 0 && self.unacked >= u64::from(max_unacked)
    }

    /// Whether an entry may be sent now.
    pub fn is_available(&self, max_unacked: u32) -> bool {
        self.delivered < self.granted && self.writable && !self.at_unacked_limit(max_unacked)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Consumers {
    slots: Vec<Option<Consumer>>,
    by_key: FxHashMap<ConsumerKey, Slot>,
    /// By priority, then in the order they came.
    order: Vec<Slot>,
}

impl Consumers {
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn add(&mut self, spec: ConsumerSpec) -> Slot {
        let (key, priority) = (spec.key, spec.priority);
        let consumer = Some(Consumer::new(spec));
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(free) => {
                self.slots[free] = consumer;
                free as Slot
            }
            None => {
                self.slots.push(consumer);
                (self.slots.len() - 1) as Slot
            }
        };
        self.by_key.insert(key, slot);
        let at = self.order.partition_point(|&other| self[other].spec.priority <= priority);
        self.order.insert(at, slot);
        slot
    }

    pub fn remove(&mut self, key: ConsumerKey) -> Option<(Slot, Consumer)> {
        let slot = self.by_key.remove(&key)?;
        self.order.retain(|&other| other != slot);
        let consumer = self.slots[slot as usize].take()?;
        Some((slot, consumer))
    }

    pub fn slot(&self, key: ConsumerKey) -> Option<Slot> {
        self.by_key.get(&key).copied()
    }

    pub fn get(&self, slot: Slot) -> Option<&Consumer> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Consumer> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Slots by priority, then in the order the consumers came.
    pub fn order(&self) -> &[Slot] {
        &self.order
    }

    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Consumer)> {
        self.order.iter().map(|&slot| (slot, &self[slot]))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Consumer> {
        self.slots.iter_mut().flatten()
    }
}

impl std::ops::Index<Slot> for Consumers {
    type Output = Consumer;

    fn index(&self, slot: Slot) -> &Consumer {
        self.get(slot).expect("slots in use are those of connected consumers")
    }
}

impl std::ops::IndexMut<Slot> for Consumers {
    fn index_mut(&mut self, slot: Slot) -> &mut Consumer {
        self.get_mut(slot).expect("slots in use are those of connected consumers")
    }
}
