//! What Pulsar's topic stats show of a subscription. Rates are the broker's to compute: here are totals.

use std::collections::BTreeMap;

use geminga_ledger::ledger_list::LedgerList;

use super::consumers::{Consumer, Slot};
use super::spec::{ConsumerKey, SubscriptionType};
use super::{Dispatcher, Subscription};

#[derive(Clone, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerStats {
    #[serde(skip)]
    pub key: ConsumerKey,
    pub consumer_id: u64,
    pub consumer_name: String,
    pub priority: i32,
    pub address: String,
    pub client_version: String,
    pub metadata: BTreeMap<String, String>,
    /// Milliseconds since the epoch, as all times here; 0 if it never happened.
    pub connected_since: u64,
    pub available_permits: i64,
    pub unacked_messages: u64,
    pub blocked_consumer_on_unacked_msgs: bool,
    pub writable: bool,
    pub msg_out_counter: u64,
    pub bytes_out_counter: u64,
    pub entries_out_counter: u64,
    pub chunked_message_counter: u64,
    pub ack_counter: u64,
    pub redelivered_counter: u64,
    pub avg_messages_per_entry: u64,
    pub last_acked_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub first_message_sent_timestamp: u64,
    /// `[start, end]` of the hash slots, for Key_Shared.
    pub key_hash_range_arrays: Vec<[u32; 2]>,
    pub draining_hashes_count: u64,
    pub draining_hashes_cleared_total: u64,
    pub draining_hashes_unacked_messages: u64,
    pub draining_hashes: Vec<DrainingHashStats>,
}

/// A hash slot whose entries this consumer still holds, and that belongs to another one (PIP-379).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainingHashStats {
    pub hash: u32,
    pub unack_msgs: u64,
    pub blocked_attempts: u64,
}

#[derive(Clone, Debug, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStats {
    #[serde(rename = "type")]
    pub sub_type: Option<SubscriptionType>,
    pub is_durable: bool,
    pub active_consumer_name: Option<String>,
    /// `Some` for Key_Shared.
    pub key_shared_mode: Option<&'static str>,
    pub allow_out_of_order_delivery: bool,
    pub msg_out_counter: u64,
    pub bytes_out_counter: u64,
    pub entries_out_counter: u64,
    pub redelivered_counter: u64,
    pub ack_counter: u64,
    /// Entries, as Pulsar counts it.
    pub msg_backlog: u64,
    pub msg_delayed: u64,
    pub delayed_index_bytes: u64,
    pub unacked_messages: u64,
    pub blocked_subscription_on_unacked_msgs: bool,
    /// Entries that wait to be delivered again or for the consumer of their key.
    pub msg_in_replay: u64,
    pub last_acked_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub last_active_changed_timestamp: u64,
    pub last_mark_delete_advanced_timestamp: u64,
    pub draining_hashes_count: u64,
    pub draining_hashes_unacked_messages: u64,
    pub draining_hashes_cleared_total: u64,
    pub consumers: Vec<ConsumerStats>,
}

impl Subscription {
    pub fn stats(&self, list: &LedgerList) -> SubscriptionStats {
        let core = &self.core;
        let totals = &core.totals;
        let mut stats = SubscriptionStats {
            sub_type: self.sub_type,
            is_durable: core.options.durable,
            msg_out_counter: totals.messages_out,
            bytes_out_counter: totals.bytes_out,
            entries_out_counter: totals.entries_out,
            redelivered_counter: totals.redelivered,
            ack_counter: totals.acked,
            msg_backlog: core.cursor.unacked_entries(list),
            msg_delayed: core.delayed.len() as u64,
            delayed_index_bytes: core.delayed.bytes() as u64,
            unacked_messages: core.unacked,
            blocked_subscription_on_unacked_msgs: core.is_full(),
            last_acked_timestamp: totals.last_acked_at,
            last_consumed_timestamp: totals.last_consumed_at,
            last_consumed_flow_timestamp: totals.last_flow_at,
            last_active_changed_timestamp: totals.active_changed_at,
            last_mark_delete_advanced_timestamp: totals.mark_delete_moved_at,
            consumers: core.consumers.iter().map(|(_, consumer)| self.consumer_stats(consumer)).collect(),
            ..SubscriptionStats::default()
        };
        match &self.dispatcher {
            Some(Dispatcher::SingleActive(single)) => {
                stats.active_consumer_name = single.active.map(|slot| core.consumers[slot].spec.name.clone());
                // In the order in which they are chosen.
                stats.consumers.sort_by(|a, b| (a.priority, &a.consumer_name).cmp(&(b.priority, &b.consumer_name)));
            }
            Some(Dispatcher::Shared(shared)) => stats.msg_in_replay = shared.waiting() as u64,
            Some(Dispatcher::KeyShared(keyed)) => {
                stats.msg_in_replay = keyed.waiting() as u64;
                stats.key_shared_mode = Some(keyed.mode());
                stats.allow_out_of_order_delivery = keyed.allow_out_of_order;
                self.add_hashes(&mut stats);
            }
            None => {}
        }
        for consumer in &stats.consumers {
            stats.draining_hashes_count += consumer.draining_hashes_count;
            stats.draining_hashes_unacked_messages += consumer.draining_hashes_unacked_messages;
            stats.draining_hashes_cleared_total += consumer.draining_hashes_cleared_total;
        }
        stats
    }

    fn consumer_stats(&self, consumer: &Consumer) -> ConsumerStats {
        let spec = &consumer.spec;
        ConsumerStats {
            key: spec.key,
            consumer_id: spec.consumer_id,
            consumer_name: spec.name.clone(),
            priority: spec.priority,
            address: spec.address.clone(),
            client_version: spec.client_version.clone(),
            metadata: spec.properties.clone(),
            connected_since: spec.connected_at,
            available_permits: consumer.permits(),
            unacked_messages: consumer.unacked,
            blocked_consumer_on_unacked_msgs: consumer.at_unacked_limit(self.core.options.max_unacked_per_consumer),
            writable: consumer.writable,
            msg_out_counter: consumer.delivered,
            bytes_out_counter: consumer.bytes_out,
            entries_out_counter: consumer.entries_out,
            chunked_message_counter: consumer.chunks_out,
            ack_counter: consumer.acked,
            redelivered_counter: consumer.redelivered,
            avg_messages_per_entry: consumer.delivered.checked_div(consumer.entries_out).unwrap_or(0),
            last_acked_timestamp: consumer.last_acked_at,
            last_consumed_timestamp: consumer.last_consumed_at,
            last_consumed_flow_timestamp: consumer.last_flow_at,
            first_message_sent_timestamp: consumer.first_sent_at,
            draining_hashes_cleared_total: consumer.drained_hashes,
            ..ConsumerStats::default()
        }
    }

    /// Hash ranges and draining hashes, which are per consumer.
    fn add_hashes(&self, stats: &mut SubscriptionStats) {
        let Some(Dispatcher::KeyShared(keyed)) = &self.dispatcher else { return };
        let index_of = |slot: Slot| self.core.consumers.order().iter().position(|&other| other == slot);
        for assignment in keyed.selector.assignments() {
            if let Some(index) = index_of(assignment.slot) {
                let range = [u32::from(assignment.start), u32::from(assignment.end)];
                stats.consumers[index].key_hash_range_arrays.push(range);
            }
        }
        for (&hash, held) in &keyed.held {
            let (Some(draining), Some(index)) = (&held.draining, index_of(held.holder)) else { continue };
            let consumer = &mut stats.consumers[index];
            let unack_msgs = u64::from(held.entries);
            consumer.draining_hashes_count += 1;
            consumer.draining_hashes_unacked_messages += unack_msgs;
            consumer.draining_hashes.push(DrainingHashStats {
                hash: u32::from(hash),
                unack_msgs,
                blocked_attempts: draining.attempts,
            });
        }
        for consumer in &mut stats.consumers {
            consumer.draining_hashes.sort_unstable_by_key(|draining| draining.hash);
        }
    }
}
