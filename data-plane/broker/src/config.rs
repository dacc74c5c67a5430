//! The broker's settings.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::balancing::BalanceSettings;

/// Everything a broker can be told. `Default` is right for a standalone.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Name of the cluster this broker belongs to.
    pub cluster: String,
    /// `host:port` that lookups answer for the Pulsar protocol.
    pub advertised_pulsar: String,
    /// URLs that lookups answer to clients that name a listener (Pulsar's `advertisedListeners`).
    pub advertised_listeners: BTreeMap<String, String>,
    /// `host:port` that lookups answer for HTTP.
    pub advertised_http: String,
    /// Bound for all that the broker holds in memory, in bytes.
    pub memory_limit: u64,
    /// Largest message with its metadata, in bytes (Pulsar's `maxMessageSize`).
    pub max_message_bytes: usize,
    /// Topics come into being when a client asks for them, unless the namespace says otherwise.
    pub auto_create_topics: bool,
    /// Partitions of an automatically created topic; 0 makes it non-partitioned.
    pub auto_create_partitions: u32,
    /// Subscriptions come into being when a consumer asks for them, unless the namespace says otherwise.
    pub auto_create_subscriptions: bool,
    /// Prefix each entry with its index and the broker's time.
    pub broker_entry_metadata: bool,
    /// Drop messages that a producer sends again, unless the namespace says otherwise.
    pub deduplication: bool,
    /// Entries between two deduplication snapshots (Pulsar's `brokerDeduplicationEntriesInterval`).
    pub deduplication_snapshot_entries: u64,
    /// How long unreceipted acknowledgements may wait to be written together.
    pub ack_flush_interval: Duration,
    /// Acknowledgements that may wait to become durable, in bytes; beyond, those whose receipt was asked for are refused, and
    /// the others stay in their cursors.
    pub max_pending_ack_bytes: u64,
    /// A ledger is closed and the next one begun at this size, in bytes.
    pub max_ledger_bytes: u64,
    /// … or at this age.
    pub max_ledger_age: Duration,
    /// Messages one consumer may hold unacknowledged (Shared and Key_Shared).
    pub max_unacked_per_consumer: u32,
    /// The same for all consumers of a subscription.
    pub max_unacked_per_subscription: u32,
    /// Topics that nobody uses are deleted, unless a policy says otherwise (Pulsar's `brokerDeleteInactiveTopicsEnabled`):
    /// those without a subscription after `max_topic_inactivity`.
    pub delete_inactive_topics: bool,
    pub max_topic_inactivity: Duration,
    /// With its last partition, an inactive partitioned topic goes too (Pulsar's
    /// `brokerDeleteInactivePartitionedTopicMetadataEnabled`).
    pub delete_inactive_partitioned_topics: bool,
    /// A topic that nobody uses leaves memory after this time, until somebody asks for it; zero: never.
    pub idle_topics_unloaded_after: Duration,
    /// How often topics roll over, trim, expire, and are looked at for inactivity.
    pub housekeeping_interval: Duration,
    /// A client that is quiet for so long is asked for a sign of life, and given up after two rounds without one (Pulsar's
    /// `keepAliveIntervalSeconds`).
    pub keep_alive: Duration,
    /// How long a connection that holds what another client wants may take to answer a ping (Pulsar's
    /// `connectionLivenessCheckTimeoutMillis`).
    pub liveness_timeout: Duration,
    /// When the broker stops, how long connections may take until what they have taken is durable and answered.
    pub finish_timeout: Duration,
    /// How load is spread over brokers, when there are several.
    pub balance: BalanceSettings,
    /// Show metrics of each topic and subscription instead of each namespace; `None`: as long as they are few.
    pub metrics_per_topic: Option<bool>,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            cluster: "standalone".into(),
            advertised_pulsar: "127.0.0.1:6650".into(),
            advertised_listeners: BTreeMap::new(),
            advertised_http: "127.0.0.1:8080".into(),
            memory_limit: 512 << 20,
            max_message_bytes: 5 << 20,
            auto_create_topics: true,
            auto_create_partitions: 0,
            auto_create_subscriptions: true,
            broker_entry_metadata: true,
            deduplication: false,
            deduplication_snapshot_entries: 1000,
            ack_flush_interval: Duration::from_millis(20),
            max_pending_ack_bytes: 64 << 20,
            max_ledger_bytes: 1 << 30,
            max_ledger_age: Duration::from_secs(4 * 3600),
            max_unacked_per_consumer: 50_000,
            max_unacked_per_subscription: 200_000,
            delete_inactive_topics: true,
            max_topic_inactivity: Duration::from_secs(60),
            delete_inactive_partitioned_topics: false,
            idle_topics_unloaded_after: Duration::from_secs(600),
            housekeeping_interval: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            liveness_timeout: Duration::from_secs(5),
            finish_timeout: Duration::from_secs(20),
            balance: BalanceSettings::default(),
            metrics_per_topic: None,
        }
    }
}

impl BrokerConfig {
    /// In ms; `None`: they stay, as they do where each has metrics of its own, which would come and go.
    pub(crate) fn unload_idle_topics_after(&self) -> Option<u64> {
        let after_ms = self.idle_topics_unloaded_after.as_millis() as u64;
        (after_ms > 0 && self.metrics_per_topic != Some(true)).then_some(after_ms)
    }
}
