//! Exclusive and Failover: one consumer gets everything, in order.
//!
//! Facts from Pulsar's `AbstractDispatcherSingleActiveConsumer`: the active Failover consumer is chosen among those of the
//! highest priority, sorted by name: by partition index modulo their number, or on a topic without partitions by the
//! hash of its name on a ring of 100 points per consumer. On a change, delivery restarts at the first unacknowledged entry.
//! Pulsar always waits a second before that, so that the previous consumer's acknowledgements arrive; we wait only
//! while that one is connected and holds unacknowledged entries.

use geminga_ledger::ledger_list::LedgerList;

use super::Budget;
use crate::entry::{BlockReason, Delivery, DispatchWait, EntryReader, Ready};
use crate::hash::{sticky_key_hash, sticky_slot};
use crate::subscription::consumers::{Consumers, Slot};
use crate::subscription::core::Core;
use crate::subscription::{Event, SubscriptionOptions};

const RING_POINTS: u32 = 100;

#[derive(Debug, Default)]
pub(crate) struct SingleActive {
    failover: bool,
    pub active: Option<Slot>,
    /// A new active consumer may start at this time, or as soon as nothing is outstanding.
    pub start_at: Option<u64>,
    /// The one whose acknowledgements it waits for.
    previous: Option<Slot>,
    /// Slots that an Exclusive consumer restricts itself to, sorted and apart.
    ranges: Vec<(u32, u32)>,
}

impl SingleActive {
    pub fn new(failover: bool, mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        SingleActive { failover, ranges, ..SingleActive::default() }
    }

    pub fn added(&mut self, core: &mut Core, slot: Slot, now: u64) {
        let before = self.active;
        self.choose(core, now);
        if self.failover && self.active == before {
            core.events
                .push_back(Event::ActiveConsumerChanged { consumer: core.consumers[slot].spec.key, is_active: false });
        }
    }

    pub fn removed(&mut self, core: &mut Core, slot: Slot, now: u64) {
        if self.active == Some(slot) {
            self.active = None;
        }
        if self.previous == Some(slot) {
            self.previous = None;
            self.start_at = self.start_at.map(|at| at.min(now));
        }
        self.choose(core, now);
    }

    fn choose(&mut self, core: &mut Core, now: u64) {
        let chosen = choose_active(&core.consumers, &core.options);
        if chosen == self.active {
            return;
        }
        // While a change is still waiting, the one before it is who has entries.
        let previous = if self.start_at.is_some() { self.previous } else { self.active };
        self.previous = previous.filter(|&previous| Some(previous) != chosen);
        self.active = chosen;
        core.totals.active_changed_at = now;
        self.start_at = self.previous.map(|_| now + core.options.failover_delay_ms);
        if self.start_at.is_none() {
            core.start_over();
        }
        if self.failover {
            let keys: Vec<_> = core.consumers.iter().map(|(slot, c)| (c.spec.key, Some(slot) == chosen)).collect();
            core.events.extend(
                keys.into_iter().map(|(consumer, is_active)| Event::ActiveConsumerChanged { consumer, is_active }),
            );
        }
    }

    /// Only the active consumer may ask for redelivery, and always gets everything from the first unacknowledged entry on.
    pub fn redeliver(&mut self, core: &mut Core, slot: Slot, epoch: Option<u64>) {
        if self.active != Some(slot) {
            return;
        }
        let consumer = &mut core.consumers[slot];
        if epoch < consumer.epoch && epoch.is_some() {
            return;
        }
        consumer.epoch = epoch.or(consumer.epoch);
        core.feed.reset(core.cursor.mark_delete());
    }

    pub fn dispatch(
        &mut self,
        core: &mut Core,
        now: u64,
        reader: &mut dyn EntryReader,
        max_bytes: usize,
        out: &mut Vec<Delivery>,
    ) -> DispatchWait {
        let Some(slot) = self.active else { return DispatchWait::NoConsumers };
        if let Some(at) = self.start_at {
            if now < at && outstanding(core, reader.ledgers()) > 0 {
                return DispatchWait::Timer(at);
            }
            self.start_at = None;
            core.feed.reset(core.cursor.mark_delete());
        }
        let mut budget = Budget::new(max_bytes, core.max_messages);
        loop {
            let permits = core.consumers[slot].permits();
            if !core.consumers[slot].writable {
                return DispatchWait::Blocked(BlockReason::NotWritable);
            }
            if permits <= 0 {
                return DispatchWait::NoPermits;
            }
            if budget.is_spent() {
                return DispatchWait::MoreWork;
            }
            let max_entries = core.feed.entries_for(permits);
            match core.feed.fill(&core.cursor, reader, max_entries, budget.left()) {
                Ready::Entries => {}
                Ready::NeedRead(from) => return DispatchWait::NeedRead { from, max_entries },
                Ready::CaughtUp => {
                    core.tell_end_of_topic(reader.ledgers());
                    return DispatchWait::CaughtUp;
                }
            }
            while core.consumers[slot].permits() > 0 && !budget.is_spent() {
                let Some(entry) = core.feed.pop() else { break };
                budget.spend(&entry);
                let skip = core.cursor.is_acked(entry.position)
                    || core.swallow_marker(reader.ledgers(), &entry)
                    || !self.in_ranges(entry.meta.sticky_key_hash);
                if !skip {
                    core.deliver(now, slot, entry, None, out);
                }
            }
        }
    }

    pub fn in_ranges(&self, hash: u32) -> bool {
        let slot = u32::from(sticky_slot(hash));
        let at = self.ranges.partition_point(|&(_, end)| end < slot);
        self.ranges.is_empty() || self.ranges.get(at).is_some_and(|&(start, _)| start <= slot)
    }
}

/// Entries that were delivered and are not acknowledged.
pub(crate) fn outstanding(core: &Core, list: &LedgerList) -> u64 {
    match core.cursor.next_unacked(list, core.cursor.mark_delete()) {
        Some(first) if first < core.feed.next() => list.entries_between(first, core.feed.next().previous()) + 1,
        _ => 0,
    }
}

fn choose_active(consumers: &Consumers, options: &SubscriptionOptions) -> Option<Slot> {
    let order = consumers.order();
    let priority = consumers[*order.first()?].spec.priority;
    let mut best: Vec<Slot> =
        order.iter().copied().take_while(|&slot| consumers[slot].spec.priority == priority).collect();
    if best.len() == 1 {
        return best.pop();
    }
    best.sort_by(|&a, &b| consumers[a].spec.name.cmp(&consumers[b].spec.name));
    if let Some(partition) = options.partition_index {
        return Some(best[partition as usize % best.len()]);
    }
    let target = sticky_key_hash(options.topic.as_bytes());
    // Of two points with the same hash the later one counts; the first at or after the target is chosen, around the ring.
    let points = best.iter().flat_map(|&slot| {
        let name = &consumers[slot].spec.name;
        (0..RING_POINTS).map(move |point| (sticky_key_hash(format!("{name}{point}").as_bytes()), slot))
    });
    points
        .reduce(|chosen, point| {
            let distance = |hash: u32| hash.wrapping_sub(target) & 0x7fff_ffff;
            if distance(point.0) <= distance(chosen.0) { point } else { chosen }
        })
        .map(|point| point.1)
}
