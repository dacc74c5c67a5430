//! Settings of every role that serves topics.

use figment::Figment;
use serde::{Deserialize, Serialize};

use super::listeners::Listeners;
use super::units::{ByteSize, Duration};
use super::{ProcessOptions, part};

/// Field names are the keys of the config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServingOptions {
    #[serde(flatten, skip_deserializing)]
    pub process: ProcessOptions,
    pub pulsar_addr: String,
    pub http_addr: String,
    pub advertised_address: Option<String>,
    pub advertised_listeners: Listeners,
    pub memory_limit: ByteSize,
    pub cluster: String,
    pub delete_inactive_topics: bool,
    pub inactive_topics_after: Duration,
    pub delete_inactive_partitioned_topics: bool,
    pub auto_create_topics: bool,
    pub auto_create_partitions: u32,
    pub auto_create_subscriptions: bool,
    pub deduplication: bool,
    pub max_message_size: ByteSize,
    pub max_unacked_per_consumer: u32,
    pub max_unacked_per_subscription: u32,
    pub max_pending_acks: ByteSize,
    pub max_ledger_size: ByteSize,
    pub max_ledger_age: Duration,
    pub unload_idle_topics_after: Duration,
    pub housekeeping_interval: Duration,
    pub liveness_timeout: Duration,
    pub metrics_per_topic: Option<bool>,
}

impl Default for ServingOptions {
    fn default() -> Self {
        ServingOptions {
            process: ProcessOptions::default(),
            pulsar_addr: "127.0.0.1:6650".into(),
            http_addr: "127.0.0.1:8080".into(),
            advertised_address: None,
            advertised_listeners: Listeners::default(),
            memory_limit: ByteSize::mib(512),
            cluster: "standalone".into(),
            delete_inactive_topics: true,
            inactive_topics_after: Duration::from_secs(60),
            delete_inactive_partitioned_topics: false,
            auto_create_topics: true,
            auto_create_partitions: 0,
            auto_create_subscriptions: true,
            deduplication: false,
            max_message_size: ByteSize::mib(5),
            max_unacked_per_consumer: 50_000,
            max_unacked_per_subscription: 200_000,
            max_pending_acks: ByteSize::mib(64),
            max_ledger_size: ByteSize::mib(1024),
            max_ledger_age: Duration::from_secs(4 * 3600),
            unload_idle_topics_after: Duration::from_secs(600),
            housekeeping_interval: Duration::from_secs(10),
            liveness_timeout: Duration::from_secs(5),
            metrics_per_topic: None,
        }
    }
}

impl ServingOptions {
    pub(super) fn extract(layers: &Figment) -> anyhow::Result<Self> {
        // As in `StandaloneOptions`.
        Ok(Self { process: part(layers)?, ..part(layers)? })
    }
}
