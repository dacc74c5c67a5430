//! A topic's statistics, with the field names of Pulsar's JSON.
//!
//! Everything is counted as totals. Rates are differences of totals between two samples, which housekeeping takes every
//! few seconds and a request takes when the last one is old enough; a topic without traffic keeps no sample.

#[cfg(test)]
mod fields;
mod internal;
mod rates;
mod view;

pub use internal::{CursorStats, InternalStats, LedgerStats};
pub(super) use rates::Rates;
pub use view::{ConsumerStats, ConsumerStatsView, PublisherStats, SubscriptionStats, TopicStats};

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;
use geminga_topic::producers::AccessMode;

use self::rates::{Consumed, OfTopic, Published, Sample};
use super::admin::{backlog_size, entry_time};
use super::writes::{Latencies, Sizes};
use super::{ConsumerHandle, ProducerHandle, Sub, Topic, TopicState};
use crate::error::Result;
use crate::metrics::SUBSCRIPTION_FIGURES_LEN;
use crate::shared::now_ms;

/// What a request for statistics wants beside the usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatsOptions {
    /// Reads the first unacknowledged entry of each subscription for its publish time.
    pub earliest_time_in_backlog: bool,
    pub exclude_publishers: bool,
    pub exclude_consumers: bool,
}

/// Totals and gauges of one topic, for metrics.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TopicFigures {
    pub producers: u64,
    pub consumers: u64,
    pub subscriptions: u64,
    pub rate_in: f64,
    pub throughput_in: f64,
    pub rate_out: f64,
    pub throughput_out: f64,
    pub messages_in: u64,
    pub bytes_in: u64,
    pub messages_out: u64,
    pub bytes_out: u64,
    /// Sum of the subscriptions' unacknowledged entries.
    pub backlog: u64,
    pub storage_bytes: u64,
    pub backlog_bytes: u64,
    /// -1 without one.
    pub backlog_quota_bytes: i64,
    /// -1 without one.
    pub backlog_quota_seconds: i64,
    pub delayed_index_bytes: u64,
    /// How often producers were held back by the topic's rate.
    pub publish_throttled: u64,
    /// Entries per second, as the one below.
    pub write_rate: f64,
    /// From storage, so not of what the caches had.
    pub read_rate: f64,
    pub write_latencies: Latencies,
    pub read_latencies: Latencies,
    pub entry_sizes: Sizes,
}

impl TopicFigures {
    /// What only grows.
    pub(crate) fn counters(self) -> Self {
        let Self { messages_in, bytes_in, messages_out, bytes_out, .. } = self;
        let Self { write_latencies, read_latencies, entry_sizes, .. } = self;
        let totals = Self { messages_in, bytes_in, messages_out, bytes_out, ..Self::default() };
        Self { write_latencies, read_latencies, entry_sizes, ..totals }
    }
}

impl Topic {
    /// Takes a sample for rates, if something happened since the last.
    pub(crate) fn sample_rates(&self) {
        let state = self.state.lock();
        self.rates.sample(now_ms(), self.totals(), || sample(&state));
    }

    fn totals(&self) -> OfTopic {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let [messages_in, bytes_in] = [read(&counters.messages_in), read(&counters.bytes_in)];
        let [messages_out, bytes_out] = [read(&counters.messages_out), read(&counters.bytes_out)];
        [messages_in, bytes_in, messages_out, bytes_out, self.writes.durable_entries(), self.reads.read().1]
    }

    pub async fn stats(&self, options: &StatsOptions) -> Result<TopicStats> {
        self.sample_rates();
        let (mut stats, first_unacked) = {
            let state = self.state.lock();
            self.collect(&state, options)
        };
        if options.earliest_time_in_backlog {
            for sub in stats.subscriptions.values_mut() {
                sub.earliest_msg_publish_time_in_backlog = -1;
            }
            for (name, position) in first_unacked {
                let time = self.read_one(position).await?.meta.publish_time as i64;
                let Some(sub) = stats.subscriptions.get_mut(&name) else { continue };
                sub.earliest_msg_publish_time_in_backlog = time;
                if sub.durable {
                    let earliest = &mut stats.earliest_msg_publish_time_in_backlogs;
                    *earliest = earlier(*earliest, time);
                }
            }
        }
        Ok(stats)
    }

    fn collect(&self, state: &TopicState, options: &StatsOptions) -> (TopicStats, Vec<(String, Position)>) {
        let list = state.ledger.list();
        let persistent = self.name.is_persistent();
        let [messages_in, bytes_in, messages_out, bytes_out, ..] = self.totals();
        let rates = self.rates.topic();
        let oldest = oldest_in_backlog(state, now_ms());
        let mut stats = TopicStats {
            msg_rate_in: rates[0],
            msg_throughput_in: rates[1],
            msg_rate_out: rates[2],
            msg_throughput_out: rates[3],
            msg_in_counter: messages_in,
            bytes_in_counter: bytes_in,
            msg_out_counter: messages_out,
            bytes_out_counter: bytes_out,
            average_msg_size: if rates[0] > 0.0 { rates[1] / rates[0] } else { 0.0 },
            msg_chunk_published: self.counters.chunked.load(Ordering::Relaxed),
            storage_size: list.total_size(),
            backlog_size: backlog_size(state),
            backlog_quota_limit_size: if persistent { quota_bytes(state) } else { 0 },
            backlog_quota_limit_time: if persistent { quota_seconds(state) } else { 0 },
            oldest_backlog_message_age_seconds: if persistent { oldest.map_or(-1, |(age, _)| age) } else { 0 },
            oldest_backlog_message_subscription_name: oldest.map(|(_, name)| name.to_string()),
            publish_rate_limited_times: state.publish_throttled,
            waiting_publishers: state.joining.len() as u64,
            deduplication_status: persistent
                .then(|| if state.dedup.is_some() { "Enabled" } else { "Disabled" }.to_owned()),
            topic_epoch: state.record.current.epoch,
            owner_broker: Some(self.shared.config.advertised_http.clone()),
            msg_drop_rate: self.drop_rate(0.0),
            ..TopicStats::default()
        };
        let mut first_unacked = Vec::new();
        for (name, sub) in &state.subscriptions {
            let view = self.subscription(name, sub, list, options);
            stats.non_contiguous_deleted_messages_ranges += view.non_contiguous_deleted_messages_ranges;
            stats.delayed_message_index_size_in_bytes += view.delayed_message_index_size_in_bytes;
            if let (Some(sum), Some(rate)) = (&mut stats.msg_drop_rate, view.msg_drop_rate) {
                *sum += rate;
            }
            if let Some(first) = sub.core.cursor().next_unacked(list, sub.core.cursor().mark_delete()) {
                first_unacked.push((name.to_string(), first));
            }
            stats.subscriptions.insert(name.to_string(), view);
        }
        if !options.exclude_publishers {
            stats.publishers = state.producer_handles.values().map(|producer| self.publisher(producer)).collect();
            stats.publishers.sort_by(|a, b| a.producer_name.cmp(&b.producer_name));
        }
        (stats, first_unacked)
    }

    /// Persistent topics drop nothing and don't speak of it.
    fn drop_rate(&self, rate: f64) -> Option<f64> {
        (!self.name.is_persistent()).then_some(rate)
    }

    fn publisher(&self, producer: &ProducerHandle) -> PublisherStats {
        let rates = self.rates.producer(producer.key);
        PublisherStats {
            access_mode: match producer.access_mode {
                AccessMode::Shared => "Shared",
                AccessMode::Exclusive => "Exclusive",
                AccessMode::WaitForExclusive => "WaitForExclusive",
                AccessMode::ExclusiveWithFencing => "ExclusiveWithFencing",
            }
            .to_owned(),
            msg_rate_in: rates[0],
            msg_throughput_in: rates[1],
            average_msg_size: if rates[0] > 0.0 { rates[1] / rates[0] } else { 0.0 },
            chunked_message_rate: rates[2],
            producer_id: producer.producer_id,
            producer_name: producer.name.to_string(),
            address: format!("/{}", producer.peer.address()),
            connected_since: iso_date(producer.connected_at),
            client_version: producer.client_version.clone(),
            supports_partial_producer: producer.supports_partial,
            metadata: Some(producer.metadata.clone()),
            msg_drop_rate: self.drop_rate(0.0),
        }
    }

    fn subscription(&self, name: &str, sub: &Sub, list: &LedgerList, options: &StatsOptions) -> SubscriptionStats {
        let known = sub.core.stats(list);
        let cursor = sub.core.cursor();
        let rates = self.rates.subscription(name);
        let delayed = known.msg_delayed.min(known.msg_backlog);
        SubscriptionStats {
            msg_rate_out: rates[0],
            msg_throughput_out: rates[1],
            msg_rate_redeliver: rates[2],
            message_ack_rate: rates[3],
            chunked_message_rate: rates[5],
            msg_out_counter: known.msg_out_counter,
            bytes_out_counter: known.bytes_out_counter,
            msg_backlog: known.msg_backlog,
            total_msg_expired: sub.expired,
            last_expire_timestamp: sub.expired_at,
            last_mark_delete_advanced_timestamp: known.last_mark_delete_advanced_timestamp,
            backlog_size: list.size_between(cursor.mark_delete(), list.last_position()) as i64,
            msg_backlog_no_delayed: known.msg_backlog - delayed,
            blocked_subscription_on_unacked_msgs: known.blocked_subscription_on_unacked_msgs,
            msg_delayed: known.msg_delayed,
            msg_in_replay: known.msg_in_replay,
            unacked_messages: known.unacked_messages,
            sub_type: known.sub_type.map_or("None", |sub_type| sub_type.name()).to_owned(),
            active_consumer_name: known.active_consumer_name,
            last_consumed_flow_timestamp: known.last_consumed_flow_timestamp,
            last_consumed_timestamp: known.last_consumed_timestamp,
            last_acked_timestamp: known.last_acked_timestamp,
            consumers: if options.exclude_consumers {
                Vec::new()
            } else {
                known.consumers.into_iter().map(|consumer| self.consumer(consumer)).collect()
            },
            is_replicated: sub.replicated,
            replicated: sub.replicated,
            is_durable: known.is_durable,
            durable: known.is_durable,
            allow_out_of_order_delivery: known.allow_out_of_order_delivery,
            key_shared_mode: known.key_shared_mode.map(str::to_owned),
            draining_hashes_count: known.draining_hashes_count,
            draining_hashes_cleared_total: known.draining_hashes_cleared_total,
            draining_hashes_unacked_messages: known.draining_hashes_unacked_messages,
            non_contiguous_deleted_messages_ranges: cursor.holes(),
            delayed_message_index_size_in_bytes: known.delayed_index_bytes,
            subscription_properties: sub.properties.clone(),
            msg_drop_rate: self.drop_rate(rates[4]),
            ..SubscriptionStats::default()
        }
    }

    fn consumer(&self, known: geminga_topic::ConsumerStats) -> ConsumerStats {
        let rates = self.rates.consumer(known.key);
        ConsumerStats {
            msg_rate_out: rates[0],
            msg_throughput_out: rates[1],
            msg_rate_redeliver: rates[2],
            message_ack_rate: rates[3],
            chunked_message_rate: rates[5],
            msg_out_counter: known.msg_out_counter,
            bytes_out_counter: known.bytes_out_counter,
            consumer_name: known.consumer_name,
            available_permits: known.available_permits,
            unacked_messages: known.unacked_messages,
            avg_messages_per_entry: known.avg_messages_per_entry,
            blocked_consumer_on_unacked_msgs: known.blocked_consumer_on_unacked_msgs,
            draining_hashes_count: known.draining_hashes_count,
            draining_hashes_cleared_total: known.draining_hashes_cleared_total,
            draining_hashes_unacked_messages: known.draining_hashes_unacked_messages,
            draining_hashes: known.draining_hashes,
            address: format!("/{}", known.address),
            connected_since: iso_date(known.connected_since),
            client_version: known.client_version,
            last_acked_timestamp: known.last_acked_timestamp,
            last_consumed_timestamp: known.last_consumed_timestamp,
            last_consumed_flow_timestamp: known.last_consumed_flow_timestamp,
            last_acked_time: iso_date(known.last_acked_timestamp),
            last_consumed_time: iso_date(known.last_consumed_timestamp),
            first_messages_sent_timestamp: known.first_message_sent_timestamp,
            key_hash_ranges: known
                .key_hash_range_arrays
                .iter()
                .map(|[start, end]| format!("[{start}, {end}]"))
                .collect(),
            key_hash_range_arrays: known.key_hash_range_arrays,
            metadata: known.metadata,
            ..ConsumerStats::default()
        }
    }

    /// One consumer's statistics, as the Pulsar protocol asks for them.
    pub fn consumer_stats(&self, consumer: &ConsumerHandle) -> Result<ConsumerStatsView> {
        self.sample_rates();
        let state = self.state.lock();
        let sub =
            state.subscriptions.get(&consumer.subscription).ok_or_else(|| self.not_found(&consumer.subscription))?;
        let stats = sub.core.stats(state.ledger.list());
        let known = stats.consumers.into_iter().find(|known| known.key == consumer.key).unwrap_or_default();
        let rates = self.rates.consumer(consumer.key);
        Ok(ConsumerStatsView {
            msg_rate_out: rates[0],
            msg_throughput_out: rates[1],
            msg_rate_redeliver: rates[2],
            name: known.consumer_name,
            available_permits: known.available_permits,
            unacked_messages: known.unacked_messages,
            blocked_on_unacked: known.blocked_consumer_on_unacked_msgs,
            connected_since: iso_date(known.connected_since),
            subscription_type: stats.sub_type.map_or("None", |sub_type| sub_type.name()),
            backlog: stats.msg_backlog,
        })
    }

    pub(crate) fn figures(&self) -> TopicFigures {
        let state = self.state.lock();
        let list = state.ledger.list();
        let [messages_in, bytes_in, messages_out, bytes_out, ..] = self.totals();
        let rates = self.rates.topic();
        let (write_latencies, entry_sizes) = self.writes.read();
        let (read_latencies, _) = self.reads.read();
        TopicFigures {
            write_rate: rates[4],
            read_rate: rates[5],
            write_latencies,
            read_latencies,
            entry_sizes,
            producers: state.producer_handles.len() as u64,
            consumers: state.consumers.len() as u64,
            subscriptions: state.subscriptions.len() as u64,
            rate_in: rates[0],
            throughput_in: rates[1],
            rate_out: rates[2],
            throughput_out: rates[3],
            messages_in,
            bytes_in,
            messages_out,
            bytes_out,
            backlog: state.subscriptions.values().map(|sub| sub.core.cursor().unacked_entries(list)).sum(),
            storage_bytes: list.total_size(),
            backlog_bytes: backlog_size(&state),
            backlog_quota_bytes: quota_bytes(&state),
            backlog_quota_seconds: quota_seconds(&state),
            delayed_index_bytes: state.subscriptions.values().map(|sub| sub.core.stats(list).delayed_index_bytes).sum(),
            publish_throttled: state.publish_throttled,
        }
    }

    /// Per subscription its name, and figures in the order of those that metrics.rs names.
    pub(crate) fn subscription_figures(&self) -> Vec<(std::sync::Arc<str>, [f64; SUBSCRIPTION_FIGURES_LEN])> {
        let state = self.state.lock();
        let list = state.ledger.list();
        let figures = |name: &std::sync::Arc<str>, sub: &Sub| {
            let stats = sub.core.stats(list);
            let rates = self.rates.subscription(name);
            let figures = [
                stats.msg_backlog as f64,
                stats.msg_delayed as f64,
                stats.unacked_messages as f64,
                stats.consumers.len() as f64,
                rates[0],
                rates[1],
                rates[2],
                stats.msg_backlog.saturating_sub(stats.msg_delayed) as f64,
                f64::from(u8::from(stats.blocked_subscription_on_unacked_msgs)),
                stats.msg_in_replay as f64,
                rates[3],
                rates[4],
                sub.expired as f64,
                sub.expired_at as f64,
                stats.last_acked_timestamp as f64,
                stats.last_consumed_timestamp as f64,
                stats.last_consumed_flow_timestamp as f64,
                stats.last_mark_delete_advanced_timestamp as f64,
                stats.delayed_index_bytes as f64,
                stats.msg_out_counter as f64,
                stats.bytes_out_counter as f64,
            ];
            (name.clone(), figures)
        };
        state.subscriptions.iter().map(|(name, sub)| figures(name, sub)).collect()
    }
}

/// How many seconds old the first message of a durable subscription's backlog is, of the one that is furthest behind, and its name.
/// Nothing is read for that: what is not cached is at least as old as its ledger is closed, as Pulsar reckons too.
fn oldest_in_backlog(state: &TopicState, now: u64) -> Option<(i64, &std::sync::Arc<str>)> {
    let list = state.ledger.list();
    let first = |sub: &Sub| sub.core.cursor().next_unacked(list, sub.core.cursor().mark_delete());
    let durable = state.subscriptions.iter().filter(|(_, sub)| sub.cursor_id.is_some());
    let (first, name) = durable.filter_map(|(name, sub)| Some((first(sub)?, name))).min()?;
    let time = match state.cache.get(first) {
        Some(entry) => entry_time(&entry.meta),
        None if first.ledger_id == list.last_span()?.ledger_id => return None,
        None => list.get(first.ledger_id)?.timestamp_ms,
    };
    Some((now.saturating_sub(time) as i64 / 1000, name))
}

/// Of two times those that are known; 0 is none, and so is what is negative.
fn earlier(one: i64, other: i64) -> i64 {
    [one, other].into_iter().filter(|time| *time > 0).min().unwrap_or(0)
}

fn quota_bytes(state: &TopicState) -> i64 {
    state.policies.backlog_quota().map_or(-1, |(bytes, _)| i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// Totals of everybody on a topic.
fn sample(state: &TopicState) -> Sample {
    let list = state.ledger.list();
    let mut sample = Sample::default();
    for producer in state.producer_handles.values() {
        let totals: Published =
            [&producer.messages, &producer.bytes, &producer.chunks].map(|total| total.load(Ordering::Relaxed));
        sample.producers.push((producer.key, totals));
    }
    for (name, sub) in &state.subscriptions {
        let stats = sub.core.stats(list);
        let chunks = stats.consumers.iter().map(|consumer| consumer.chunked_message_counter).sum();
        let totals: Consumed = [
            stats.msg_out_counter,
            stats.bytes_out_counter,
            stats.redelivered_counter,
            stats.ack_counter,
            sub.dropped,
            chunks,
        ];
        sample.subscriptions.push((name.clone(), totals));
        for consumer in &stats.consumers {
            let totals: Consumed = [
                consumer.msg_out_counter,
                consumer.bytes_out_counter,
                consumer.redelivered_counter,
                consumer.ack_counter,
                0,
                consumer.chunked_message_counter,
            ];
            sample.consumers.push((consumer.key, totals));
        }
    }
    sample
}

fn quota_seconds(state: &TopicState) -> i64 {
    state.policies.backlog_age_quota().map_or(-1, |(seconds, _)| i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// A time as Pulsar prints it: ISO 8601 with milliseconds, in UTC.
pub fn iso_date(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days as i64);
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar: years are taken to begin
/// in March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, u32, u32) {
    const DAYS_OF_ERA: i64 = 146_097;
    let from_march_0000 = days + 719_468;
    let (era, of_era) = (from_march_0000.div_euclid(DAYS_OF_ERA), from_march_0000.rem_euclid(DAYS_OF_ERA));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + later, month as u32, day as u32)
}

/// A name as Pulsar's cursors have it: encoded like a form value.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b' ' => text.push('+'),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'*' | b'_') => {
                text.push(char::from(byte));
            }
            byte => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

type Properties = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_iso_8601() {
        assert_eq!(iso_date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso_date(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(iso_date(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(iso_date(1_795_519_700_129), "2026-11-24T11:28:20.129Z");
        assert_eq!(iso_date(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn cursor_names_are_encoded() {
        assert_eq!(encoded("s/x y"), "s%2Fx+y");
    }
}
