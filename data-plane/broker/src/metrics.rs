//! What a broker shows to Prometheus, with the names and labels of Pulsar's dashboards.
//!
//! By topic and subscription, as long as they are few or if the configuration wants that, else by namespace; what is not in memory is
//! then without a topic's name, so that sums are right. The busiest topics are always shown, under names of our own.

use std::collections::BTreeMap;

use geminga_observe::{Histogram, Labels, family, sample, sample_histogram};

use crate::broker::Broker;
use crate::connections::{Connections, Counts};
use crate::topic::TopicFigures;
use crate::topic::writes::{Distribution, LATENCIES, SIZES};

/// Topics that are shown whatever the configuration says.
const TOP_TOPICS: usize = 10;
/// Topics and subscriptions that are shown one by one where the configuration says nothing: some megabytes of text.
const SHOWN_MAX: u64 = 2000;

/// Times of a message's stages in the broker.
#[derive(Debug, Default)]
pub struct Stages {
    /// From the hand-over to storage until it is durable.
    pub append: Histogram,
    /// From durable until its receipt is queued.
    pub receipt: Histogram,
    /// One choice of a dispatcher and its hand-over to connections.
    pub dispatch: Histogram,
    /// One read from storage for consumers that are behind.
    pub read: Histogram,
    /// From an acknowledgement that wants a receipt until it is durable.
    pub ack: Histogram,
}

/// One family of gauges or counters over topics or namespaces.
struct Figure {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: fn(&TopicFigures) -> f64,
}

const fn gauge(name: &'static str, help: &'static str, of: fn(&TopicFigures) -> f64) -> Figure {
    Figure { name, kind: "gauge", help, of }
}

const fn counter(name: &'static str, help: &'static str, of: fn(&TopicFigures) -> f64) -> Figure {
    Figure { name, kind: "counter", help, of }
}

static FIGURES: &[Figure] = &[
    gauge("pulsar_subscriptions_count", "Subscriptions", |f| f.subscriptions as f64),
    gauge("pulsar_producers_count", "Connected producers", |f| f.producers as f64),
    gauge("pulsar_consumers_count", "Connected consumers", |f| f.consumers as f64),
    gauge("pulsar_rate_in", "Messages per second coming in", |f| f.rate_in),
    gauge("pulsar_rate_out", "Messages per second going out", |f| f.rate_out),
    gauge("pulsar_throughput_in", "Bytes per second coming in", |f| f.throughput_in),
    gauge("pulsar_throughput_out", "Bytes per second going out", |f| f.throughput_out),
    gauge("pulsar_average_msg_size", "Bytes of a message coming in", |f| {
        if f.rate_in > 0.0 { f.throughput_in / f.rate_in } else { 0.0 }
    }),
    counter("pulsar_in_messages_total", "Messages that came in", |f| f.messages_in as f64),
    counter("pulsar_in_bytes_total", "Bytes that came in", |f| f.bytes_in as f64),
    counter("pulsar_out_messages_total", "Messages that went out", |f| f.messages_out as f64),
    counter("pulsar_out_bytes_total", "Bytes that went out", |f| f.bytes_out as f64),
    gauge("pulsar_msg_backlog", "Entries that subscriptions have not acknowledged", |f| f.backlog as f64),
    gauge("pulsar_storage_size", "Bytes stored", |f| f.storage_bytes as f64),
    gauge("pulsar_storage_logical_size", "Bytes stored, without replicas", |f| f.storage_bytes as f64),
    gauge("pulsar_storage_backlog_size", "Bytes behind the slowest subscription", |f| f.backlog_bytes as f64),
    gauge("pulsar_storage_backlog_quota_limit", "Backlog quota in bytes, -1 without", |f| f.backlog_quota_bytes as f64),
    gauge("pulsar_storage_backlog_quota_limit_time", "Backlog quota in seconds, -1 without", |f| {
        f.backlog_quota_seconds as f64
    }),
    gauge("pulsar_delayed_message_index_size_bytes", "Bytes of memory for messages whose time has not come", |f| {
        f.delayed_index_bytes as f64
    }),
    gauge("pulsar_publish_rate_limit_times", "How often producers were held back by the topic's rate", |f| {
        f.publish_throttled as f64
    }),
    gauge("pulsar_storage_offloaded_size", "Bytes in tiered storage", |_| 0.0),
    gauge("pulsar_storage_write_rate", "Entries per second that became durable", |f| f.write_rate),
    gauge("pulsar_storage_read_rate", "Entries per second read from storage, and not from the caches", |f| f.read_rate),
];

static SUBSCRIPTION_FIGURES: [(&str, &str); SUBSCRIPTION_GAUGES] = [
    ("pulsar_subscription_back_log", "Entries that are not acknowledged"),
    ("pulsar_subscription_delayed", "Messages whose time has not come"),
    ("pulsar_subscription_unacked_messages", "Messages that consumers hold"),
    ("pulsar_subscription_consumers_count", "Connected consumers"),
    ("pulsar_subscription_msg_rate_out", "Messages per second going out"),
    ("pulsar_subscription_msg_throughput_out", "Bytes per second going out"),
    ("pulsar_subscription_msg_rate_redeliver", "Messages per second delivered again"),
    ("pulsar_subscription_back_log_no_delayed", "Entries that are not acknowledged and whose time has come"),
    ("pulsar_subscription_blocked_on_unacked_messages", "1 while consumers hold too many messages"),
    ("pulsar_subscription_in_replay", "Entries that wait to be delivered again"),
    ("pulsar_subscription_msg_ack_rate", "Messages acknowledged per second"),
    ("pulsar_subscription_msg_drop_rate", "Messages per second that no consumer could take"),
    ("pulsar_subscription_total_msg_expired", "Entries that expired"),
    ("pulsar_subscription_last_expire_timestamp", "When messages were last expired"),
    ("pulsar_subscription_last_acked_timestamp", "When a message was last acknowledged"),
    ("pulsar_subscription_last_consumed_timestamp", "When a message was last delivered"),
    ("pulsar_subscription_last_consumed_flow_timestamp", "When a consumer last asked for messages"),
    (
        "pulsar_subscription_last_mark_delete_advanced_timestamp",
        "When the first unacknowledged entry was last another one",
    ),
    ("pulsar_subscription_delayed_message_index_size_bytes", "Bytes of memory for messages whose time has not come"),
];

/// Figures of topics that are shown by subscription, where these are shown: as in Pulsar one by one, and nowhere else.
type OfSubscription = (&'static str, &'static str, fn(&TopicFigures) -> u64);

static BY_SUBSCRIPTION: [OfSubscription; 2] = [
    ("pulsar_out_messages_total", "Messages that went out", |f| f.messages_out),
    ("pulsar_out_bytes_total", "Bytes that went out", |f| f.bytes_out),
];

/// How many figures a subscription has: gauges, and then counters.
pub(crate) const SUBSCRIPTION_FIGURES_LEN: usize = SUBSCRIPTION_GAUGES + BY_SUBSCRIPTION.len();
const SUBSCRIPTION_GAUGES: usize = 19;

/// Appends the broker's metrics in Prometheus' text format.
pub fn render(broker: &Broker, page: &mut String) {
    let cluster = broker.config().cluster.as_str();
    let mut topics: Vec<_> = broker.loaded_topics();
    topics.retain(|topic| !topic.is_closed());
    let resting = resting(broker);
    let figures: Vec<(String, String, TopicFigures)> = topics
        .iter()
        .map(|topic| (topic.name().namespace().to_string(), topic.name().to_string(), topic.figures()))
        .collect();

    family(page, "pulsar_version_info", "gauge", "Version of this broker");
    let version = concat!("Geminga-", env!("CARGO_PKG_VERSION"));
    sample(page, "pulsar_version_info", &[("cluster", cluster), ("version", version)], 1);
    family(page, "geminga_build_info", "gauge", "What this server was built from");
    let version = env!("CARGO_PKG_VERSION");
    let build = if cfg!(debug_assertions) { "development" } else { "release" };
    sample(page, "geminga_build_info", &[("version", version), ("build", build)], 1);
    topics_count(page, cluster, &figures, &resting);
    let shown = figures.iter().map(|(_, _, of)| 1 + of.subscriptions).sum::<u64>();
    if broker.config().metrics_per_topic.unwrap_or(shown <= SHOWN_MAX) {
        let of_topics = figures.iter().map(|(namespace, topic, of)| (namespace.as_str(), Some(topic.as_str()), of));
        let of_resting = resting.iter().map(|(namespace, (_, of))| (namespace.as_str(), Some(""), of));
        let all: Vec<_> = of_topics.chain(of_resting).collect();
        let by_topic = |figure: &&Figure| BY_SUBSCRIPTION.iter().all(|(name, ..)| *name != figure.name);
        for figure in FIGURES.iter().filter(by_topic) {
            family(page, figure.name, figure.kind, figure.help);
            for (namespace, topic, of) in &all {
                let topic = topic.unwrap_or_default();
                let labels: Labels = &[("cluster", cluster), ("namespace", namespace), ("topic", topic)];
                sample(page, figure.name, labels, (figure.of)(of));
            }
        }
        write_figures(page, cluster, &all);
        subscriptions(page, cluster, &topics, &resting);
    } else {
        let mut namespaces: BTreeMap<&str, TopicFigures> = BTreeMap::new();
        for (namespace, _, of_topic) in &figures {
            namespaces.entry(namespace).or_default().add(of_topic);
        }
        for (namespace, (_, of_resting)) in &resting {
            namespaces.entry(namespace).or_default().add(of_resting);
        }
        for figure in FIGURES {
            family(page, figure.name, figure.kind, figure.help);
            for (namespace, sum) in &namespaces {
                sample(page, figure.name, &[("cluster", cluster), ("namespace", namespace)], (figure.of)(sum));
            }
        }
        let writes: Vec<_> = namespaces.iter().map(|(namespace, sum)| (*namespace, None, sum)).collect();
        write_figures(page, cluster, &writes);
    }
    broker_level(page, cluster, broker, &figures, &resting);
    top_topics(page, cluster, figures);
    connections(page, cluster, &broker.connections);
    stages(page, cluster, broker);
    publish_latency(page, cluster, &broker.shared.stages.append);
}

/// Entries by size and by the time until they were durable, and reads by theirs. As in Pulsar each bucket is a gauge of its own,
/// and counts only what is above the bound before it.
fn write_figures(page: &mut String, cluster: &str, all: &[(&str, Option<&str>, &TopicFigures)]) {
    distribution(
        page,
        cluster,
        all,
        &OfTopics {
            name: "pulsar_storage_write_latency",
            help: "Entries by the milliseconds until they were durable",
            bounds: LATENCIES.map(|(name, _)| name),
            overflow: "overflow",
            unit: 1000.0,
            of: |figures| Some(figures.write_latencies),
        },
    );
    distribution(
        page,
        cluster,
        all,
        &OfTopics {
            name: "pulsar_storage_read_latency",
            help: "Reads from storage by the milliseconds that they took, where there were any",
            bounds: LATENCIES.map(|(name, _)| name),
            overflow: "overflow",
            unit: 1000.0,
            of: |figures| Some(figures.read_latencies).filter(|reads| reads.count() > 0),
        },
    );
    distribution(
        page,
        cluster,
        all,
        &OfTopics {
            name: "pulsar_entry_size",
            help: "Entries by their size in bytes",
            bounds: SIZES.map(|(name, _)| name),
            overflow: "le_overflow",
            unit: 1.0,
            of: |figures| Some(figures.entry_sizes),
        },
    );
}

/// What is shown of topics by buckets.
struct OfTopics<const BOUNDS: usize, const BUCKETS: usize> {
    name: &'static str,
    help: &'static str,
    bounds: [&'static str; BOUNDS],
    overflow: &'static str,
    /// In how many of what was measured the sum is shown.
    unit: f64,
    of: fn(&TopicFigures) -> Option<Distribution<BUCKETS>>,
}

fn distribution<const BOUNDS: usize, const BUCKETS: usize>(
    page: &mut String,
    cluster: &str,
    all: &[(&str, Option<&str>, &TopicFigures)],
    shown: &OfTopics<BOUNDS, BUCKETS>,
) {
    let mut one = |suffix: &str, value: &dyn Fn(&Distribution<BUCKETS>) -> f64| {
        let name = format!("{}_{suffix}", shown.name);
        family(page, &name, "gauge", shown.help);
        for (namespace, topic, figures) in all {
            let Some(figures) = (shown.of)(figures) else { continue };
            let labels = [("cluster", cluster), ("namespace", *namespace), ("topic", topic.unwrap_or_default())];
            let named = if topic.is_some() { 3 } else { 2 };
            sample(page, &name, &labels[..named], value(&figures));
        }
    };
    for (index, bucket) in shown.bounds.into_iter().chain([shown.overflow]).enumerate() {
        one(bucket, &|of| of.buckets[index] as f64);
    }
    one("count", &|of| of.count() as f64);
    one("sum", &|of| of.sum as f64 / shown.unit);
}

/// By namespace, of topics that are not in memory: how many rest, and their figures together with what those counted that have left.
type OfResting = BTreeMap<String, (u64, TopicFigures)>;

fn resting(broker: &Broker) -> OfResting {
    let mut all = OfResting::new();
    for bundle in broker.bundles.all() {
        let (count, figures) = bundle.resting.lock().figures();
        if count > 0 {
            let (counted, sum) = all.entry(bundle.name.namespace.to_string()).or_default();
            *counted += count;
            sum.add(&figures);
        }
    }
    broker.shared.departed.each(|namespace, figures| all.entry(namespace.to_string()).or_default().1.add(figures));
    all
}

fn topics_count(page: &mut String, cluster: &str, figures: &[(String, String, TopicFigures)], resting: &OfResting) {
    let mut counts: BTreeMap<&str, u64> =
        resting.iter().map(|(namespace, (count, _))| (namespace.as_str(), *count)).collect();
    for (namespace, _, _) in figures {
        *counts.entry(namespace).or_default() += 1;
    }
    family(page, "pulsar_topics_count", "gauge", "Topics that are served");
    for (namespace, count) in counts {
        sample(page, "pulsar_topics_count", &[("cluster", cluster), ("namespace", namespace)], count);
    }
}

fn subscriptions(
    page: &mut String,
    cluster: &str,
    topics: &[std::sync::Arc<crate::topic::Topic>],
    resting: &OfResting,
) {
    let all: Vec<_> = topics.iter().map(|topic| (topic.name().clone(), topic.subscription_figures())).collect();
    let each = |page: &mut String, name: &str, index: usize| {
        for (topic, subscriptions) in &all {
            for (subscription, figures) in subscriptions {
                let labels: Labels = &[
                    ("cluster", cluster),
                    ("namespace", topic.namespace().as_str()),
                    ("topic", topic.as_str()),
                    ("subscription", subscription),
                ];
                sample(page, name, labels, figures[index]);
            }
        }
    };
    for (index, (name, help)) in SUBSCRIPTION_FIGURES.iter().enumerate() {
        family(page, name, "gauge", help);
        each(page, name, index);
    }
    for (index, (name, help, of)) in BY_SUBSCRIPTION.iter().enumerate() {
        family(page, name, "counter", help);
        each(page, name, SUBSCRIPTION_GAUGES + index);
        for (namespace, (_, figures)) in resting {
            let labels: Labels = &[("cluster", cluster), ("namespace", namespace), ("topic", ""), ("subscription", "")];
            sample(page, name, labels, of(figures));
        }
    }
}

fn broker_level(
    page: &mut String,
    cluster: &str,
    broker: &Broker,
    figures: &[(String, String, TopicFigures)],
    resting: &OfResting,
) {
    let mut sum = TopicFigures::default();
    for of_topic in figures.iter().map(|(_, _, of)| of).chain(resting.values().map(|(_, of)| of)) {
        sum.add(of_topic);
    }
    let resting: u64 = resting.values().map(|(count, _)| count).sum();
    let of_broker: [(&str, &str, f64); 14] = [
        ("pulsar_broker_subscriptions_count", "Subscriptions", sum.subscriptions as f64),
        ("pulsar_broker_throughput_in", "Bytes per second coming in", sum.throughput_in),
        ("pulsar_broker_throughput_out", "Bytes per second going out", sum.throughput_out),
        ("pulsar_broker_topics_count", "Topics that are served", (figures.len() as u64 + resting) as f64),
        ("geminga_topics_resting", "Topics among them that are not in memory, as nobody uses them", resting as f64),
        ("pulsar_broker_producers_count", "Connected producers", sum.producers as f64),
        ("pulsar_broker_consumers_count", "Connected consumers", sum.consumers as f64),
        ("pulsar_broker_rate_in", "Messages per second coming in", sum.rate_in),
        ("pulsar_broker_rate_out", "Messages per second going out", sum.rate_out),
        ("pulsar_broker_msg_backlog", "Entries that are not acknowledged", sum.backlog as f64),
        ("pulsar_broker_storage_size", "Bytes stored", sum.storage_bytes as f64),
        ("pulsar_broker_storage_logical_size", "Bytes stored, without replicas", sum.storage_bytes as f64),
        ("pulsar_broker_storage_write_rate", "Entries per second that became durable", sum.write_rate),
        ("pulsar_broker_storage_read_rate", "Entries per second read from storage", sum.read_rate),
    ];
    for (name, help, value) in of_broker {
        family(page, name, "gauge", help);
        sample(page, name, &[("cluster", cluster)], value);
    }
    let budgets = broker.memory().budgets();
    family(page, "geminga_memory_used_bytes", "gauge", "Bytes held, by purpose");
    for (purpose, used, _) in budgets {
        sample(page, "geminga_memory_used_bytes", &[("purpose", purpose)], used);
    }
    family(page, "geminga_memory_limit_bytes", "gauge", "Bytes that may be held, by purpose");
    for (purpose, _, limit) in budgets {
        sample(page, "geminga_memory_limit_bytes", &[("purpose", purpose)], limit);
    }
}

fn top_topics(page: &mut String, cluster: &str, mut figures: Vec<(String, String, TopicFigures)>) {
    figures.retain(|(_, _, of)| of.rate_in + of.rate_out > 0.0);
    figures.sort_by(|a, b| (b.2.rate_in + b.2.rate_out).total_cmp(&(a.2.rate_in + a.2.rate_out)));
    figures.truncate(TOP_TOPICS);
    type Figure = fn(&TopicFigures) -> f64;
    let shown: [(&str, &str, Figure); 3] = [
        ("geminga_top_topic_rate_in", "Messages per second into the busiest topics", |of| of.rate_in),
        ("geminga_top_topic_rate_out", "Messages per second out of the busiest topics", |of| of.rate_out),
        ("geminga_top_topic_msg_backlog", "Backlog of the busiest topics", |of| of.backlog as f64),
    ];
    for (name, help, of) in shown {
        family(page, name, "gauge", help);
        for (namespace, topic, of_topic) in &figures {
            sample(page, name, &[("cluster", cluster), ("namespace", namespace), ("topic", topic)], of(of_topic));
        }
    }
}

fn stages(page: &mut String, cluster: &str, broker: &Broker) {
    let stages = &broker.shared.stages;
    let all = [
        ("append", &stages.append),
        ("receipt", &stages.receipt),
        ("dispatch", &stages.dispatch),
        ("read", &stages.read),
        ("ack", &stages.ack),
    ];
    family(page, "geminga_stage_seconds", "histogram", "Time that a stage of a message's way takes");
    for (stage, histogram) in all {
        sample_histogram(page, "geminga_stage_seconds", &[("cluster", cluster), ("stage", stage)], histogram);
    }
}

/// Under Pulsar's name: quantiles since the start, as the upper bounds of the histogram's buckets.
fn publish_latency(page: &mut String, cluster: &str, append: &Histogram) {
    const NAME: &str = "pulsar_broker_publish_latency";
    family(
        page,
        NAME,
        "summary",
        "Milliseconds until messages were durable, rounded up to a power of two of microseconds",
    );
    let (sum, buckets) = append.snapshot();
    let count: u64 = buckets.iter().map(|(_, count)| count).sum();
    for label in ["0.0", "0.5", "0.95", "0.99", "0.999", "0.9999", "1.0"] {
        let quantile: f64 = label.parse().expect("these are numbers");
        let rank = (quantile * count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        let bound = buckets.iter().find_map(|(bound, count)| {
            below += count;
            (below >= rank).then_some(bound * 1000.0)
        });
        sample(page, NAME, &[("cluster", cluster), ("quantile", label)], bound.unwrap_or(f64::NAN));
    }
    sample(page, &format!("{NAME}_count"), &[("cluster", cluster)], count);
    sample(page, &format!("{NAME}_sum"), &[("cluster", cluster)], sum * 1000.0);
}

fn connections(page: &mut String, cluster: &str, connections: &Connections) {
    let Counts { created, accepted, refused, closed } = connections.counts();
    let all = [
        ("pulsar_active_connections", "gauge", "Connections of clients", created.saturating_sub(closed)),
        ("pulsar_connection_created_total_count", "counter", "Connections that came", created),
        ("pulsar_connection_create_success_count", "counter", "Connections whose client said hello", accepted),
        (
            "pulsar_connection_create_fail_count",
            "counter",
            "Connections that ended before their client said hello",
            refused,
        ),
        ("pulsar_connection_closed_total_count", "counter", "Connections that ended", closed),
    ];
    for (name, kind, help, value) in all {
        family(page, name, kind, help);
        sample(page, name, &[("cluster", cluster)], value);
    }
}

impl TopicFigures {
    pub(crate) fn add(&mut self, other: &TopicFigures) {
        self.producers += other.producers;
        self.consumers += other.consumers;
        self.subscriptions += other.subscriptions;
        self.rate_in += other.rate_in;
        self.throughput_in += other.throughput_in;
        self.rate_out += other.rate_out;
        self.throughput_out += other.throughput_out;
        self.messages_in += other.messages_in;
        self.bytes_in += other.bytes_in;
        self.messages_out += other.messages_out;
        self.bytes_out += other.bytes_out;
        self.backlog += other.backlog;
        self.storage_bytes += other.storage_bytes;
        self.backlog_bytes += other.backlog_bytes;
        self.write_rate += other.write_rate;
        self.read_rate += other.read_rate;
        self.write_latencies.add(&other.write_latencies);
        self.read_latencies.add(&other.read_latencies);
        self.entry_sizes.add(&other.entry_sizes);
        self.backlog_quota_bytes = self.backlog_quota_bytes.max(other.backlog_quota_bytes);
        self.backlog_quota_seconds = self.backlog_quota_seconds.max(other.backlog_quota_seconds);
        self.delayed_index_bytes += other.delayed_index_bytes;
        self.publish_throttled += other.publish_throttled;
    }
}
