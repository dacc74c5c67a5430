use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::parts::*;

/// The policies of one topic; each overrides its namespace's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TopicPolicies {
    /// Keys are [`BACKLOG_QUOTA_SIZE`] and [`BACKLOG_QUOTA_AGE`].
    #[serde(rename = "backLogQuotaMap", skip_serializing_if = "BTreeMap::is_empty")]
    pub backlog_quota_map: BTreeMap<String, BacklogQuota>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub subscription_types_enabled: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_clusters: Option<BTreeSet<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_policies: Option<RetentionPolicies>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistence: Option<PersistencePolicies>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication_snapshot_interval_seconds: Option<i64>,
    #[serde(rename = "messageTTLInSeconds", skip_serializing_if = "Option::is_none")]
    pub message_ttl_in_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_producer_per_topic: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consumer_per_topic: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consumers_per_subscription: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unacked_messages_on_consumer: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unacked_messages_on_subscription: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_subscriptions_per_topic: Option<i64>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction_threshold: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delayed_delivery_enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delayed_delivery_tick_time_millis: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delayed_delivery_max_delay_in_millis: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_topic_policies: Option<InactiveTopicPolicies>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatch_rate: Option<DispatchRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_dispatch_rate: Option<DispatchRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicator_dispatch_rate: Option<DispatchRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_rate: Option<PublishRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribe_rate: Option<SubscribeRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_compatibility_strategy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_validation_enforced: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_subscription_creation_override: Option<AutoSubscriptionCreationOverride>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_policies: Option<Extra>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry_filters: Option<EntryFilters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatcher_pause_on_ack_state_persistent_enabled: Option<bool>,
    /// By name of the subscription.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subscription_policies: BTreeMap<String, SubscriptionPolicies>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}
