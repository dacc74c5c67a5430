use std::collections::{BTreeMap, BTreeSet};

use geminga_model::BundleRange;
use serde::{Deserialize, Serialize};

use super::parts::*;

/// The policies of a namespace. Maps of rates have cluster names as keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policies {
    pub auth_policies: AuthPolicies,
    pub replication_clusters: BTreeSet<String>,
    pub allowed_clusters: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundles: Option<BundlesData>,
    /// Keys are [`BACKLOG_QUOTA_SIZE`] and [`BACKLOG_QUOTA_AGE`].
    pub backlog_quota_map: BTreeMap<String, BacklogQuota>,
    #[serde(rename = "clusterDispatchRate")]
    pub cluster_dispatch_rate: BTreeMap<String, DispatchRate>,
    #[serde(rename = "topicDispatchRate")]
    pub topic_dispatch_rate: BTreeMap<String, DispatchRate>,
    #[serde(rename = "subscriptionDispatchRate")]
    pub subscription_dispatch_rate: BTreeMap<String, DispatchRate>,
    #[serde(rename = "replicatorDispatchRate")]
    pub replicator_dispatch_rate: BTreeMap<String, DispatchRate>,
    #[serde(rename = "clusterSubscribeRate")]
    pub cluster_subscribe_rate: BTreeMap<String, SubscribeRate>,
    #[serde(rename = "publishMaxMessageRate")]
    pub publish_max_message_rate: BTreeMap<String, PublishRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistence: Option<PersistencePolicies>,
    #[serde(rename = "deduplicationEnabled", skip_serializing_if = "Option::is_none")]
    pub deduplication_enabled: Option<bool>,
    #[serde(rename = "deduplicationSnapshotIntervalSeconds", skip_serializing_if = "Option::is_none")]
    pub deduplication_snapshot_interval_seconds: Option<i64>,
    #[serde(rename = "autoTopicCreationOverride", skip_serializing_if = "Option::is_none")]
    pub auto_topic_creation_override: Option<AutoTopicCreationOverride>,
    #[serde(rename = "autoSubscriptionCreationOverride", skip_serializing_if = "Option::is_none")]
    pub auto_subscription_creation_override: Option<AutoSubscriptionCreationOverride>,
    pub latency_stats_sample_rate: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_ttl_in_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_expiration_time_minutes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_policies: Option<RetentionPolicies>,
    /// Set while the namespace is being deleted: nothing may be created in it.
    pub deleted: bool,
    pub encryption_required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delayed_delivery_policies: Option<DelayedDeliveryPolicies>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_topic_policies: Option<InactiveTopicPolicies>,
    /// `None` or `Prefix`.
    pub subscription_auth_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_producers_per_topic: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consumers_per_topic: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consumers_per_subscription: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unacked_messages_per_consumer: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unacked_messages_per_subscription: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_subscriptions_per_topic: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_topics_per_namespace: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compaction_threshold: Option<i64>,
    /// In bytes; -1: unset.
    pub offload_threshold: i64,
    /// -1: unset.
    pub offload_threshold_in_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_deletion_lag_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_policies: Option<Extra>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_auto_update_compatibility_strategy: Option<String>,
    pub schema_compatibility_strategy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_allow_auto_update_schema: Option<bool>,
    pub schema_validation_enforced: bool,
    pub subscription_types_enabled: BTreeSet<String>,
    pub properties: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_group_name: Option<String>,
    pub migrated: bool,
    #[serde(rename = "dispatcherPauseOnAckStatePersistentEnabled", skip_serializing_if = "Option::is_none")]
    pub dispatcher_pause_on_ack_state_persistent_enabled: Option<bool>,
    #[serde(rename = "entryFilters", skip_serializing_if = "Option::is_none")]
    pub entry_filters: Option<EntryFilters>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for Policies {
    fn default() -> Self {
        Policies {
            auth_policies: AuthPolicies::default(),
            replication_clusters: BTreeSet::new(),
            allowed_clusters: BTreeSet::new(),
            bundles: None,
            backlog_quota_map: BTreeMap::new(),
            cluster_dispatch_rate: BTreeMap::new(),
            topic_dispatch_rate: BTreeMap::new(),
            subscription_dispatch_rate: BTreeMap::new(),
            replicator_dispatch_rate: BTreeMap::new(),
            cluster_subscribe_rate: BTreeMap::new(),
            publish_max_message_rate: BTreeMap::new(),
            persistence: None,
            deduplication_enabled: None,
            deduplication_snapshot_interval_seconds: None,
            auto_topic_creation_override: None,
            auto_subscription_creation_override: None,
            latency_stats_sample_rate: BTreeMap::new(),
            message_ttl_in_seconds: None,
            subscription_expiration_time_minutes: None,
            retention_policies: None,
            deleted: false,
            encryption_required: false,
            delayed_delivery_policies: None,
            inactive_topic_policies: None,
            subscription_auth_mode: "None".to_owned(),
            max_producers_per_topic: None,
            max_consumers_per_topic: None,
            max_consumers_per_subscription: None,
            max_unacked_messages_per_consumer: None,
            max_unacked_messages_per_subscription: None,
            max_subscriptions_per_topic: None,
            max_topics_per_namespace: None,
            compaction_threshold: None,
            offload_threshold: -1,
            offload_threshold_in_seconds: -1,
            offload_deletion_lag_ms: None,
            offload_policies: None,
            schema_auto_update_compatibility_strategy: None,
            schema_compatibility_strategy: "UNDEFINED".to_owned(),
            is_allow_auto_update_schema: None,
            schema_validation_enforced: false,
            subscription_types_enabled: BTreeSet::new(),
            properties: BTreeMap::new(),
            resource_group_name: None,
            migrated: false,
            dispatcher_pause_on_ack_state_persistent_enabled: None,
            entry_filters: None,
            extra: Extra::new(),
        }
    }
}

impl Policies {
    /// What a namespace gets that is created without policies of its own.
    pub fn new_namespace(cluster: &str, bundle_count: u32) -> Self {
        Policies {
            replication_clusters: BTreeSet::from([cluster.to_owned()]),
            bundles: Some(BundlesData::even(bundle_count)),
            ..Policies::default()
        }
    }

    /// The hash ranges of the namespace's bundles.
    pub fn bundle_ranges(&self) -> Vec<BundleRange> {
        BundleRange::of_namespace(self.bundles.as_ref().map(|bundles| &bundles.boundaries[..]))
    }

    /// The one that a topic's hash is in.
    pub fn bundle_range(&self, hash: u32) -> BundleRange {
        let boundaries = self.bundles.as_ref().map_or(&[][..], |bundles| &bundles.boundaries);
        BundleRange::of_hash(hash, boundaries).unwrap_or(BundleRange::ALL)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_survive() {
        let text = json!({
            "retention_policies": {"retentionTimeInMinutes": 10, "retentionSizeInMB": -1, "new": 1},
            "backlog_quota_map": {"destination_storage": {"limitSize": 5, "policy": "producer_exception"}},
            "someday": {"a": [1, 2]},
        });
        let policies: Policies = serde_json::from_value(text).unwrap();
        let written = serde_json::to_value(&policies).unwrap();
        assert_eq!(written["someday"], json!({"a": [1, 2]}));
        assert_eq!(written["retention_policies"]["new"], json!(1));
        assert_eq!(written["retention_policies"]["retentionSizeInMB"], json!(-1));
        assert!(written.get("message_ttl_in_seconds").is_none());
        assert_eq!(serde_json::from_value::<Policies>(written).unwrap(), policies);
        assert_eq!(policies.backlog_quota_map[BACKLOG_QUOTA_SIZE].limit_size, Some(5));
    }

    #[test]
    fn bundles_are_cut_evenly() {
        let bundles = BundlesData::even(4);
        assert_eq!(bundles.boundaries, ["0x00000000", "0x40000000", "0x80000000", "0xc0000000", "0xffffffff"]);
        assert_eq!(BundlesData::even(1).boundaries, ["0x00000000", "0xffffffff"]);
        assert_eq!(BundlesData::even(3).boundaries.len(), 4);
    }
}
