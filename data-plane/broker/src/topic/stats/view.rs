//! The JSON of `GET …/stats`, field by field as Pulsar 4.0 writes it.

use geminga_topic::DrainingHashStats;
use serde::{Deserialize, Serialize};

use super::{Properties, earlier};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
pub struct TopicStats {
    /// Messages per second, as all rates of messages here.
    pub msg_rate_in: f64,
    /// Bytes per second.
    pub msg_throughput_in: f64,
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    /// Since the topic was loaded, as all counters here.
    pub bytes_in_counter: u64,
    pub msg_in_counter: u64,
    pub system_topic_bytes_in_counter: u64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub bytes_out_internal_counter: u64,
    pub average_msg_size: f64,
    pub msg_chunk_published: bool,
    pub storage_size: u64,
    pub backlog_size: u64,
    pub backlog_quota_limit_size: i64,
    pub backlog_quota_limit_time: i64,
    pub oldest_backlog_message_age_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_backlog_message_subscription_name: Option<String>,
    pub publish_rate_limited_times: u64,
    pub earliest_msg_publish_time_in_backlogs: i64,
    pub offloaded_storage_size: u64,
    pub last_offload_ledger_id: u64,
    pub last_offload_success_time_stamp: u64,
    pub last_offload_failure_time_stamp: u64,
    pub ongoing_txn_count: u64,
    pub aborted_txn_count: u64,
    pub committed_txn_count: u64,
    pub publishers: Vec<PublisherStats>,
    pub waiting_publishers: u64,
    pub subscriptions: std::collections::BTreeMap<String, SubscriptionStats>,
    pub replication: std::collections::BTreeMap<String, ()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_epoch: Option<u64>,
    pub non_contiguous_deleted_messages_ranges: u64,
    pub non_contiguous_deleted_messages_ranges_serialized_size: u64,
    pub delayed_message_index_size_in_bytes: u64,
    pub compaction: CompactionStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_broker: Option<String>,
    /// Of a non-persistent topic: messages that no consumer could take, summed over the subscriptions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_drop_rate: Option<f64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
pub struct CompactionStats {
    pub last_compaction_removed_event_count: u64,
    pub last_compaction_succeed_timestamp: u64,
    pub last_compaction_failed_timestamp: u64,
    pub last_compaction_duration_time_in_mills: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
pub struct PublisherStats {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access_mode: String,
    pub msg_rate_in: f64,
    pub msg_throughput_in: f64,
    pub average_msg_size: f64,
    pub chunked_message_rate: f64,
    pub producer_id: u64,
    pub supports_partial_producer: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub producer_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub connected_since: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_version: String,
    /// `None` where producers of several partitions are added up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Properties>,
    /// Of a non-persistent topic; always 0: producers are held back, not robbed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_drop_rate: Option<f64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStats {
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub msg_rate_redeliver: f64,
    pub message_ack_rate: f64,
    pub chunked_message_rate: f64,
    /// Entries.
    pub msg_backlog: u64,
    pub backlog_size: i64,
    pub earliest_msg_publish_time_in_backlog: i64,
    pub msg_backlog_no_delayed: u64,
    pub blocked_subscription_on_unacked_msgs: bool,
    pub msg_delayed: u64,
    pub msg_in_replay: u64,
    pub unacked_messages: u64,
    #[serde(rename = "type")]
    pub sub_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_consumer_name: Option<String>,
    pub msg_rate_expired: f64,
    pub total_msg_expired: u64,
    pub last_expire_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_acked_timestamp: u64,
    pub last_mark_delete_advanced_timestamp: u64,
    pub consumers: Vec<ConsumerStats>,
    pub is_durable: bool,
    pub is_replicated: bool,
    pub allow_out_of_order_delivery: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_shared_mode: Option<String>,
    pub consumers_after_mark_delete_position: Properties,
    pub draining_hashes_count: u64,
    pub draining_hashes_cleared_total: u64,
    pub draining_hashes_unacked_messages: u64,
    pub non_contiguous_deleted_messages_ranges: u64,
    pub non_contiguous_deleted_messages_ranges_serialized_size: u64,
    pub delayed_message_index_size_in_bytes: u64,
    pub subscription_properties: Properties,
    pub filter_processed_msg_count: u64,
    pub filter_accepted_msg_count: u64,
    pub filter_rejected_msg_count: u64,
    pub filter_rescheduled_msg_count: u64,
    pub dispatch_throttled_msg_events_by_subscription_limit: u64,
    pub dispatch_throttled_bytes_events_by_subscription_limit: u64,
    pub dispatch_throttled_msg_events_by_topic_limit: u64,
    pub dispatch_throttled_bytes_events_by_topic_limit: u64,
    pub dispatch_throttled_msg_events_by_broker_limit: u64,
    pub dispatch_throttled_bytes_events_by_broker_limit: u64,
    /// The same as `is_durable`: Pulsar writes both.
    pub durable: bool,
    pub replicated: bool,
    /// Of a non-persistent topic: messages that no consumer could take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msg_drop_rate: Option<f64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerStats {
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub bytes_out_counter: u64,
    pub msg_out_counter: u64,
    pub msg_rate_redeliver: f64,
    pub message_ack_rate: f64,
    pub chunked_message_rate: f64,
    pub consumer_name: String,
    pub available_permits: i64,
    pub unacked_messages: u64,
    pub avg_messages_per_entry: u64,
    pub blocked_consumer_on_unacked_msgs: bool,
    pub draining_hashes_count: u64,
    pub draining_hashes_cleared_total: u64,
    pub draining_hashes_unacked_messages: u64,
    pub draining_hashes: Vec<DrainingHashStats>,
    pub address: String,
    pub connected_since: String,
    pub client_version: String,
    pub last_acked_timestamp: u64,
    pub last_consumed_timestamp: u64,
    pub last_consumed_flow_timestamp: u64,
    pub last_acked_time: String,
    pub last_consumed_time: String,
    pub first_messages_sent_timestamp: u64,
    pub first_consumed_flow_timestamp: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_hash_ranges: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key_hash_range_arrays: Vec<[u32; 2]>,
    pub metadata: Properties,
}

/// What the Pulsar protocol's CONSUMER_STATS answers.
#[derive(Debug, Clone)]
pub struct ConsumerStatsView {
    pub msg_rate_out: f64,
    pub msg_throughput_out: f64,
    pub msg_rate_redeliver: f64,
    pub name: String,
    pub available_permits: i64,
    pub unacked_messages: u64,
    pub blocked_on_unacked: bool,
    pub connected_since: String,
    pub subscription_type: &'static str,
    pub backlog: u64,
}

impl TopicStats {
    /// Adds a partition's statistics to those of its topic.
    pub fn add(&mut self, other: &TopicStats) {
        let parts = self.msg_rate_in + other.msg_rate_in;
        self.average_msg_size = if parts > 0.0 {
            (self.average_msg_size * self.msg_rate_in + other.average_msg_size * other.msg_rate_in) / parts
        } else {
            0.0
        };
        self.msg_rate_in = parts;
        self.msg_throughput_in += other.msg_throughput_in;
        self.msg_rate_out += other.msg_rate_out;
        self.msg_throughput_out += other.msg_throughput_out;
        self.bytes_in_counter += other.bytes_in_counter;
        self.msg_in_counter += other.msg_in_counter;
        self.bytes_out_counter += other.bytes_out_counter;
        self.msg_out_counter += other.msg_out_counter;
        add_rate(&mut self.msg_drop_rate, other.msg_drop_rate);
        self.storage_size += other.storage_size;
        self.publish_rate_limited_times += other.publish_rate_limited_times;
        self.backlog_size += other.backlog_size;
        self.waiting_publishers += other.waiting_publishers;
        self.backlog_quota_limit_size = other.backlog_quota_limit_size;
        self.backlog_quota_limit_time = other.backlog_quota_limit_time;
        if other.oldest_backlog_message_age_seconds > self.oldest_backlog_message_age_seconds {
            self.oldest_backlog_message_age_seconds = other.oldest_backlog_message_age_seconds;
            self.oldest_backlog_message_subscription_name = other.oldest_backlog_message_subscription_name.clone();
        }
        self.non_contiguous_deleted_messages_ranges += other.non_contiguous_deleted_messages_ranges;
        self.delayed_message_index_size_in_bytes += other.delayed_message_index_size_in_bytes;
        let earliest = &mut self.earliest_msg_publish_time_in_backlogs;
        *earliest = earlier(*earliest, other.earliest_msg_publish_time_in_backlogs);
        for (index, publisher) in other.publishers.iter().enumerate() {
            self.add_publisher(index, publisher);
        }
        for (name, sub) in &other.subscriptions {
            self.subscriptions.entry(name.clone()).or_default().add(sub);
        }
    }
}

impl TopicStats {
    /// Adds up the parts of one producer by its name; those of clients that don't say so by place, as in Pulsar.
    fn add_publisher(&mut self, index: usize, publisher: &PublisherStats) {
        let partial = publisher.supports_partial_producer;
        let known = match partial {
            true => self.publishers.iter_mut().find(|known| known.producer_name == publisher.producer_name),
            false => self.publishers.iter_mut().filter(|known| !known.supports_partial_producer).nth(index),
        };
        match known {
            Some(known) => known.add(publisher),
            None => self.publishers.push(PublisherStats {
                producer_name: if partial { publisher.producer_name.clone() } else { String::new() },
                access_mode: String::new(),
                address: String::new(),
                connected_since: String::new(),
                client_version: String::new(),
                producer_id: 0,
                metadata: None,
                ..publisher.clone()
            }),
        }
    }
}

impl PublisherStats {
    fn add(&mut self, other: &PublisherStats) {
        let parts = self.msg_rate_in + other.msg_rate_in;
        if parts > 0.0 {
            let sizes = self.average_msg_size * self.msg_rate_in + other.average_msg_size * other.msg_rate_in;
            self.average_msg_size = sizes / parts;
        }
        self.msg_rate_in = parts;
        self.msg_throughput_in += other.msg_throughput_in;
    }
}

fn add_rate(sum: &mut Option<f64>, other: Option<f64>) {
    if let Some(other) = other {
        *sum.get_or_insert(0.0) += other;
    }
}

impl SubscriptionStats {
    fn add(&mut self, other: &SubscriptionStats) {
        self.msg_rate_out += other.msg_rate_out;
        self.msg_throughput_out += other.msg_throughput_out;
        self.bytes_out_counter += other.bytes_out_counter;
        self.msg_out_counter += other.msg_out_counter;
        self.msg_rate_redeliver += other.msg_rate_redeliver;
        self.message_ack_rate += other.message_ack_rate;
        add_rate(&mut self.msg_drop_rate, other.msg_drop_rate);
        self.chunked_message_rate += other.chunked_message_rate;
        self.total_msg_expired += other.total_msg_expired;
        self.msg_backlog += other.msg_backlog;
        self.backlog_size += other.backlog_size;
        let earliest = &mut self.earliest_msg_publish_time_in_backlog;
        *earliest = earlier(*earliest, other.earliest_msg_publish_time_in_backlog);
        self.msg_backlog_no_delayed += other.msg_backlog_no_delayed;
        self.msg_delayed += other.msg_delayed;
        self.msg_in_replay += other.msg_in_replay;
        self.unacked_messages += other.unacked_messages;
        self.blocked_subscription_on_unacked_msgs |= other.blocked_subscription_on_unacked_msgs;
        if self.sub_type.is_empty() || self.sub_type == "None" {
            self.sub_type.clone_from(&other.sub_type);
        }
        self.is_durable |= other.is_durable;
        self.is_replicated |= other.is_replicated;
        self.replicated |= other.replicated;
        self.durable |= other.durable;
        self.allow_out_of_order_delivery |= other.allow_out_of_order_delivery;
        self.non_contiguous_deleted_messages_ranges += other.non_contiguous_deleted_messages_ranges;
        self.delayed_message_index_size_in_bytes += other.delayed_message_index_size_in_bytes;
        self.subscription_properties.extend(other.subscription_properties.clone());
        // Partitions have the same consumers most of the time: their figures are added up by place, as in Pulsar.
        for (index, consumer) in other.consumers.iter().enumerate() {
            match self.consumers.get_mut(index) {
                Some(known) => known.add(consumer),
                None => self.consumers.push(consumer.clone()),
            }
        }
    }
}

impl ConsumerStats {
    fn add(&mut self, other: &ConsumerStats) {
        self.msg_rate_out += other.msg_rate_out;
        self.msg_throughput_out += other.msg_throughput_out;
        self.bytes_out_counter += other.bytes_out_counter;
        self.msg_out_counter += other.msg_out_counter;
        self.msg_rate_redeliver += other.msg_rate_redeliver;
        self.message_ack_rate += other.message_ack_rate;
        self.available_permits += other.available_permits;
        self.unacked_messages += other.unacked_messages;
        self.blocked_consumer_on_unacked_msgs |= other.blocked_consumer_on_unacked_msgs;
    }
}
