//! The objects that policies are made of.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Fields that this version does not know.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// Action names per role, as in `pulsar-admin namespaces grant-permission`.
pub type RolePermissions = BTreeMap<String, BTreeSet<String>>;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthPolicies {
    pub namespace_auth: RolePermissions,
    pub destination_auth: BTreeMap<String, RolePermissions>,
    pub subscription_auth_roles: BTreeMap<String, BTreeSet<String>>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Boundaries of a namespace's hash ranges, as `0x` and eight hexadecimal digits; one more than bundles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundlesData {
    pub boundaries: Vec<String>,
    #[serde(rename = "numBundles")]
    pub bundle_count: u32,
}

impl BundlesData {
    /// Equal hash ranges that cover all of them, cut as Pulsar cuts them.
    pub fn even(bundle_count: u32) -> Self {
        let count = bundle_count.max(1);
        let step = (1_u64 << 32) / u64::from(count);
        let mut boundaries: Vec<String> =
            (0..u64::from(count)).map(|index| format!("0x{:08x}", index * step)).collect();
        boundaries.push("0xffffffff".to_owned());
        BundlesData { boundaries, bundle_count: count }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RetentionPolicies {
    /// -1: for ever, 0: not beyond acknowledgement.
    pub retention_time_in_minutes: i64,
    /// -1: no limit, 0: not beyond acknowledgement.
    #[serde(rename = "retentionSizeInMB")]
    pub retention_size_in_mb: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Key of [`BacklogQuota`] in the map of quotas for the quota by size.
pub const BACKLOG_QUOTA_SIZE: &str = "destination_storage";
/// Key of [`BacklogQuota`] in the map of quotas for the quota by age.
pub const BACKLOG_QUOTA_AGE: &str = "message_age";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BacklogQuota {
    /// In bytes; the old name of `limit_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// In bytes; negative: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_size: Option<i64>,
    /// In seconds; negative: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_time: Option<i64>,
    /// `producer_request_hold`, `producer_exception` or `consumer_backlog_eviction`.
    pub policy: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PersistencePolicies {
    pub bookkeeper_ensemble: i64,
    pub bookkeeper_write_quorum: i64,
    pub bookkeeper_ack_quorum: i64,
    pub managed_ledger_max_mark_delete_rate: f64,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DispatchRate {
    pub dispatch_throttling_rate_in_msg: i64,
    pub dispatch_throttling_rate_in_byte: i64,
    pub relative_to_publish_rate: bool,
    pub rate_period_in_second: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a topic's policies say about one of its subscriptions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscriptionPolicies {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatch_rate: Option<DispatchRate>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubscribeRate {
    pub subscribe_throttling_rate_per_consumer: i64,
    pub rate_period_in_second: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PublishRate {
    pub publish_throttling_rate_in_msg: i64,
    pub publish_throttling_rate_in_byte: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AutoTopicCreationOverride {
    pub allow_auto_topic_creation: bool,
    /// `partitioned` or `non-partitioned`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_num_partitions: Option<i64>,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AutoSubscriptionCreationOverride {
    pub allow_auto_subscription_creation: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DelayedDeliveryPolicies {
    /// In milliseconds.
    pub tick_time: i64,
    pub active: bool,
    /// 0: no limit.
    pub max_delivery_delay_in_millis: i64,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InactiveTopicPolicies {
    /// `delete_when_no_subscriptions` or `delete_when_subscriptions_caught_up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inactive_topic_delete_mode: Option<String>,
    pub max_inactive_duration_seconds: i64,
    pub delete_while_inactive: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EntryFilters {
    /// Comma-separated.
    pub entry_filter_names: String,
    #[serde(flatten)]
    pub extra: Extra,
}
