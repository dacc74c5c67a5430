use clap::Args;
use serde::Serialize;

use super::ProcessArguments;
use crate::options::listeners::Listeners;
use crate::options::units::{ByteSize, Duration};

/// What every role has that serves topics. As [`super::StandaloneArguments`].
#[derive(Args, Serialize)]
pub struct ServingArguments {
    #[command(flatten)]
    #[serde(flatten)]
    pub process: ProcessArguments,

    /// Where to listen for Pulsar clients; port 0 takes a free one [default: 127.0.0.1:6650]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_PULSAR_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pulsar_addr: Option<String>,

    /// Where to listen for HTTP: admin REST, metrics, health [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_HTTP_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    http_addr: Option<String>,

    /// Host that lookups tell clients to connect to [default: the host that is listened on]
    #[arg(long, value_name = "HOST", env = "GEMINGA_ADVERTISED_ADDRESS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertised_address: Option<String>,

    /// Addresses for clients that ask for a listener by name, like internal:pulsar://10.0.0.1:6650,external:pulsar://example.org:6650
    #[arg(long, value_name = "NAME:URL,…", env = "GEMINGA_ADVERTISED_LISTENERS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertised_listeners: Option<Listeners>,

    /// Bound for what the server keeps in memory, like 512MiB or 1GB [default: 512MiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_MEMORY_LIMIT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<ByteSize>,

    /// Name of the cluster [default: standalone]
    #[arg(long, value_name = "NAME", env = "GEMINGA_CLUSTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,

    /// Delete topics that nobody uses, unless a policy says otherwise [default: true]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_DELETE_INACTIVE_TOPICS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_inactive_topics: Option<bool>,

    /// How long a topic without subscriptions and producers is kept then [default: 60s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_INACTIVE_TOPICS_AFTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    inactive_topics_after: Option<Duration>,

    /// Delete a partitioned topic with its last partition [default: false]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_DELETE_INACTIVE_PARTITIONED_TOPICS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_inactive_partitioned_topics: Option<bool>,

    /// Create topics that clients ask for, unless a policy says otherwise [default: true]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_AUTO_CREATE_TOPICS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_create_topics: Option<bool>,

    /// Partitions of a topic that is created so; 0 for a topic without partitions [default: 0]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_AUTO_CREATE_PARTITIONS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_create_partitions: Option<u32>,

    /// Create subscriptions that consumers ask for, unless a policy says otherwise [default: true]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_AUTO_CREATE_SUBSCRIPTIONS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_create_subscriptions: Option<bool>,

    /// Drop messages that a producer sends again, unless a policy says otherwise [default: false]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_DEDUPLICATION", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    deduplication: Option<bool>,

    /// Largest message with its metadata [default: 5MiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_MAX_MESSAGE_SIZE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_message_size: Option<ByteSize>,

    /// Messages that one shared consumer may hold unacknowledged; 0 for any number [default: 50000]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_MAX_UNACKED_PER_CONSUMER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_unacked_per_consumer: Option<u32>,

    /// The same for all consumers of a subscription [default: 200000]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_MAX_UNACKED_PER_SUBSCRIPTION", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_unacked_per_subscription: Option<u32>,

    /// Acknowledgements that may wait for the disk; beyond, those that want a receipt are refused [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_MAX_PENDING_ACKS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_pending_acks: Option<ByteSize>,

    /// A ledger is closed at this size; space is freed by whole ledgers [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_MAX_LEDGER_SIZE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ledger_size: Option<ByteSize>,

    /// A ledger is closed at this age [default: 4h]
    #[arg(long, value_name = "TIME", env = "GEMINGA_MAX_LEDGER_AGE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_ledger_age: Option<Duration>,

    /// How long a topic that nobody uses stays in memory; 0s, or --metrics-per-topic true: for good. Whoever asks for it loads it [default: 10m]
    #[arg(long, value_name = "TIME", env = "GEMINGA_UNLOAD_IDLE_TOPICS_AFTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    unload_idle_topics_after: Option<Duration>,

    /// How often topics are trimmed, expired and looked at for inactivity [default: 10s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_HOUSEKEEPING_INTERVAL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    housekeeping_interval: Option<Duration>,

    /// How long a connection may take to answer a ping when another client wants its place [default: 5s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_LIVENESS_TIMEOUT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    liveness_timeout: Option<Duration>,

    /// Show metrics of each topic and subscription instead of each namespace [default: as long as they are few]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_METRICS_PER_TOPIC", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_per_topic: Option<bool>,
}
