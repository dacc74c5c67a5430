//! Why a subscription does not deliver, or not to somebody: from its own state.

use std::collections::BTreeSet;

use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;

use super::Dispatcher;
use super::single_active::outstanding;
use crate::entry::{BlockReason, DispatchWait};
use crate::subscription::{Subscription, SubscriptionType};

/// At most so many draining hashes are listed, those with the most waiting entries first.
const MAX_HASHES: usize = 1000;

#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    pub subscription: String,
    #[serde(rename = "type")]
    pub sub_type: Option<SubscriptionType>,
    /// One sentence on the whole.
    pub summary: String,
    pub mark_delete: Position,
    /// The first entry that is not acknowledged, and who has it.
    pub first_unacked: Option<Position>,
    pub first_unacked_is: Option<String>,
    pub backlog: u64,
    pub read_position: Position,
    pub unacked_messages: u64,
    pub max_unacked_messages: u32,
    /// Entries put aside for consumers that could not take them.
    pub waiting_entries: u64,
    /// Of these, how many have a key in a hash range that no consumer covers.
    pub uncovered_entries: u64,
    pub delayed_entries: u64,
    /// Milliseconds since the epoch.
    pub next_delayed_at: Option<u64>,
    pub consumers: Vec<ConsumerExplanation>,
    pub draining_hashes: Vec<HashBlock>,
    pub draining_hashes_total: usize,
}

#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerExplanation {
    pub name: String,
    pub consumer_id: u64,
    pub address: String,
    pub permits: i64,
    pub unacked_messages: u64,
    pub writable: bool,
    /// Why it gets nothing now; `None` if it could take an entry.
    pub waits_for: Option<String>,
    /// Entries that wait for it.
    pub waiting_entries: u64,
    /// So many wait that those from here on will be read again when it has caught up.
    pub reads_again_from: Option<Position>,
    pub last_consumed_at: u64,
    pub last_acked_at: u64,
    pub ranges: Vec<RangeExplanation>,
}

/// Hash slots of one consumer.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RangeExplanation {
    pub start: u16,
    pub end: u16,
    /// Slots of the range that wait until somebody else is done with them.
    pub draining: usize,
}

/// A hash slot that waits for its previous consumer.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HashBlock {
    pub hash: u16,
    pub held_by: String,
    pub held_entries: u32,
    pub wanted_by: Option<String>,
    pub waiting_entries: u64,
    /// Milliseconds since the epoch.
    pub since: u64,
    pub for_ms: u64,
    pub released_by: String,
}

impl Subscription {
    pub fn explain(&self, list: &LedgerList, now: u64) -> Explanation {
        let core = &self.core;
        let first_unacked = core.cursor.next_unacked(list, core.cursor.mark_delete());
        let mut explanation = Explanation {
            subscription: core.name.to_string(),
            sub_type: self.sub_type(),
            summary: String::new(),
            mark_delete: core.cursor.mark_delete(),
            first_unacked,
            first_unacked_is: first_unacked.map(|position| self.whereabouts(position)),
            backlog: core.cursor.unacked_entries(list),
            read_position: core.feed.next(),
            unacked_messages: core.unacked,
            max_unacked_messages: core.options.max_unacked_per_subscription,
            waiting_entries: 0,
            uncovered_entries: 0,
            delayed_entries: core.delayed.len() as u64,
            next_delayed_at: core.delayed.next_due(),
            consumers: self.explain_consumers(),
            draining_hashes: Vec::new(),
            draining_hashes_total: 0,
        };
        match &self.dispatcher {
            Some(Dispatcher::SingleActive(_)) => explanation.unacked_messages = outstanding(core, list),
            Some(Dispatcher::Shared(shared)) => explanation.waiting_entries = shared.waiting() as u64,
            Some(Dispatcher::KeyShared(keyed)) => {
                explanation.waiting_entries = keyed.waiting() as u64;
                explanation.uncovered_entries = keyed.unassigned() as u64;
                self.explain_hashes(&mut explanation, now);
            }
            None => {}
        }
        explanation.summary = self.summary(&explanation, now);
        explanation
    }

    fn whereabouts(&self, position: Position) -> String {
        let core = &self.core;
        if let Some(pending) = core.pending.get(&position) {
            return format!("held by {}", core.consumers[pending.slot].spec.name);
        }
        match &self.dispatcher {
            None => "no consumer is connected".into(),
            _ if position >= core.feed.next() => "not read yet".into(),
            Some(Dispatcher::SingleActive(single)) => match single.active {
                Some(slot) => format!("sent to {}", core.consumers[slot].spec.name),
                None => "no consumer is active".into(),
            },
            Some(_) => "put aside: its time has not come, it is to be delivered again, or its consumer is busy".into(),
        }
    }

    fn explain_consumers(&self) -> Vec<ConsumerExplanation> {
        let core = &self.core;
        let mut consumers: Vec<ConsumerExplanation> = core
            .consumers
            .iter()
            .map(|(slot, consumer)| ConsumerExplanation {
                name: consumer.spec.name.clone(),
                consumer_id: consumer.spec.consumer_id,
                address: consumer.spec.address.clone(),
                permits: consumer.permits(),
                unacked_messages: consumer.unacked,
                writable: consumer.writable,
                waits_for: self.consumer_waits_for(slot),
                waiting_entries: match &self.dispatcher {
                    Some(Dispatcher::KeyShared(keyed)) => keyed.waiting_for(slot) as u64,
                    _ => 0,
                },
                reads_again_from: match &self.dispatcher {
                    Some(Dispatcher::KeyShared(keyed)) => keyed.overflow_of(slot),
                    _ => None,
                },
                last_consumed_at: consumer.last_consumed_at,
                last_acked_at: consumer.last_acked_at,
                ranges: Vec::new(),
            })
            .collect();
        let Some(Dispatcher::KeyShared(keyed)) = &self.dispatcher else { return consumers };
        let draining: BTreeSet<u16> =
            keyed.held.iter().filter(|(_, held)| held.draining.is_some()).map(|(&hash, _)| hash).collect();
        for assignment in keyed.selector.assignments() {
            let Some(index) = core.consumers.order().iter().position(|&slot| slot == assignment.slot) else { continue };
            consumers[index].ranges.push(RangeExplanation {
                start: assignment.start,
                end: assignment.end,
                draining: draining.range(assignment.start..=assignment.end).count(),
            });
        }
        consumers
    }

    fn consumer_waits_for(&self, slot: u32) -> Option<String> {
        let core = &self.core;
        let consumer = &core.consumers[slot];
        if let Some(Dispatcher::SingleActive(single)) = &self.dispatcher
            && single.active != Some(slot)
        {
            return Some("it is not the active consumer: that one has to leave".into());
        }
        if consumer.permits() <= 0 {
            return Some(
                "it has no permits: its application has to receive what it has, so that the client asks for more"
                    .into(),
            );
        }
        if !consumer.writable {
            return Some("its connection is full: the client has to read from it".into());
        }
        let max = core.options.max_unacked_per_consumer;
        if self.sub_type().is_some_and(SubscriptionType::is_individual) && consumer.at_unacked_limit(max) {
            return Some(format!(
                "it holds {} unacknowledged messages of at most {max}: it has to acknowledge",
                consumer.unacked
            ));
        }
        None
    }

    fn explain_hashes(&self, explanation: &mut Explanation, now: u64) {
        let Some(Dispatcher::KeyShared(keyed)) = &self.dispatcher else { return };
        let name = |slot: u32| self.core.consumers[slot].spec.name.clone();
        let blocks = keyed.held.iter().filter_map(|(&hash, held)| {
            let draining = held.draining.as_ref()?;
            let holder = name(held.holder);
            Some(HashBlock {
                hash,
                held_entries: held.entries,
                wanted_by: keyed.selector.select(hash).map(name),
                waiting_entries: draining.waiting.len() as u64,
                since: draining.since,
                for_ms: now.saturating_sub(draining.since),
                released_by: format!("{holder} acknowledges or gives back {} entries, or disconnects", held.entries),
                held_by: holder,
            })
        });
        explanation.draining_hashes = blocks.collect();
        explanation.draining_hashes_total = explanation.draining_hashes.len();
        explanation.draining_hashes.sort_by_key(|block| (std::cmp::Reverse(block.waiting_entries), block.hash));
        explanation.draining_hashes.truncate(MAX_HASHES);
    }

    fn summary(&self, explanation: &Explanation, now: u64) -> String {
        let core = &self.core;
        if explanation.backlog == 0 {
            return "everything is acknowledged".into();
        }
        let Some(dispatcher) = &self.dispatcher else { return "no consumer is connected".into() };
        if let Dispatcher::SingleActive(single) = dispatcher {
            if let Some(at) = single.start_at.filter(|&at| at > now && explanation.unacked_messages > 0) {
                return format!(
                    "the active consumer changed; waiting {} ms for the previous one's acknowledgements",
                    at - now
                );
            }
            let waits = single.active.and_then(|slot| self.consumer_waits_for(slot));
            return waits.map_or("delivering".into(), |waits| format!("the active consumer waits: {waits}"));
        }
        if core.available_permits() > 0 && !core.is_full() {
            return match explanation.draining_hashes_total {
                0 => "delivering".into(),
                count => format!("delivering, except {count} hashes that drain"),
            };
        }
        match core.why_unavailable() {
            DispatchWait::Blocked(BlockReason::SubscriptionUnacked) => format!(
                "{} messages are unacknowledged of at most {}: consumers have to acknowledge",
                core.unacked, core.options.max_unacked_per_subscription
            ),
            DispatchWait::Blocked(BlockReason::Memory) => {
                let budget = core.charge.budget();
                format!(
                    "this server's memory for unacknowledged messages is used up: {} of {} bytes, {} of them here; consumers have to \
                     acknowledge, those of this subscription or of others",
                    budget.used(),
                    budget.limit(),
                    core.charge.bytes()
                )
            }
            DispatchWait::Blocked(BlockReason::ConsumersUnacked) => {
                "all consumers with permits hold as many unacknowledged messages as they may".into()
            }
            DispatchWait::Blocked(BlockReason::NotWritable) => {
                "the connections of all consumers with permits are full".into()
            }
            _ => "no consumer has permits".into(),
        }
    }
}
