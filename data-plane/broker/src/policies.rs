//! Policies as a topic asks for them: its own, else its namespace's, else the broker's default.

use std::sync::Arc;

use geminga_ledger::managed_ledger::Retention;
use geminga_metadata::policies::{BACKLOG_QUOTA_SIZE, BacklogQuota, InactiveTopicPolicies};
use geminga_metadata::{Policies, TopicPolicies};

use crate::config::BrokerConfig;

/// What applies to one topic. Made from records that were read; never assumed when they could not be.
#[derive(Debug, Clone, Default)]
pub struct EffectivePolicies {
    pub namespace: Arc<Policies>,
    pub topic: Arc<TopicPolicies>,
}

/// What happens to producers when a topic's backlog is over its quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaAction {
    /// Producers are refused until there is room (`producer_request_hold` and `producer_exception`).
    RefuseProducers,
    /// The slowest subscriptions skip what is over.
    EvictBacklog,
}

/// When a topic counts as inactive, and is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inactivity {
    /// Without producers and consumers for so long.
    pub after_ms: u64,
    /// Subscriptions without a backlog do not keep it; otherwise every subscription does.
    pub caught_up_suffices: bool,
}

const MINUTE_MS: i64 = 60_000;

impl EffectivePolicies {
    pub fn retention(&self) -> Retention {
        let own = self.topic.retention_policies.as_ref().or(self.namespace.retention_policies.as_ref());
        let Some(policy) = own else { return Retention::NONE };
        let scale = |value: i64, unit: i64| if value < 0 { -1 } else { value.saturating_mul(unit) };
        Retention {
            time_ms: scale(policy.retention_time_in_minutes, MINUTE_MS),
            size_bytes: scale(policy.retention_size_in_mb, 1 << 20),
        }
    }

    pub fn deduplication(&self, default: bool) -> bool {
        self.topic.deduplication_enabled.or(self.namespace.deduplication_enabled).unwrap_or(default)
    }

    pub fn max_unacked_per_consumer(&self, default: u32) -> u32 {
        limit(self.topic.max_unacked_messages_on_consumer, self.namespace.max_unacked_messages_per_consumer)
            .map_or(default, |limit| limit as u32)
    }

    pub fn max_unacked_per_subscription(&self, default: u32) -> u32 {
        limit(self.topic.max_unacked_messages_on_subscription, self.namespace.max_unacked_messages_per_subscription)
            .map_or(default, |limit| limit as u32)
    }

    pub fn max_producers(&self) -> Option<usize> {
        positive(limit(self.topic.max_producer_per_topic, self.namespace.max_producers_per_topic))
    }

    pub fn max_consumers_per_topic(&self) -> Option<usize> {
        positive(limit(self.topic.max_consumer_per_topic, self.namespace.max_consumers_per_topic))
    }

    pub fn max_consumers_per_subscription(&self) -> Option<usize> {
        positive(limit(self.topic.max_consumers_per_subscription, self.namespace.max_consumers_per_subscription))
    }

    pub fn max_subscriptions_per_topic(&self) -> Option<usize> {
        positive(limit(self.topic.max_subscriptions_per_topic, self.namespace.max_subscriptions_per_topic))
    }

    /// In bytes.
    pub fn max_message_bytes(&self) -> Option<usize> {
        positive(self.topic.max_message_size.map(|size| size.max(0) as u64))
    }

    pub fn message_ttl_ms(&self) -> Option<u64> {
        limit(self.topic.message_ttl_in_seconds, self.namespace.message_ttl_in_seconds)
            .filter(|seconds| *seconds > 0)
            .map(|seconds| seconds * 1000)
    }

    pub fn auto_subscription_creation(&self, default: bool) -> bool {
        self.topic
            .auto_subscription_creation_override
            .as_ref()
            .or(self.namespace.auto_subscription_creation_override.as_ref())
            .map_or(default, |policy| policy.allow_auto_subscription_creation)
    }

    pub fn encryption_required(&self) -> bool {
        self.namespace.encryption_required
    }

    /// Bytes of backlog allowed, and what happens beyond.
    pub fn backlog_quota(&self) -> Option<(u64, QuotaAction)> {
        let quota: &BacklogQuota = self
            .topic
            .backlog_quota_map
            .get(BACKLOG_QUOTA_SIZE)
            .or_else(|| self.namespace.backlog_quota_map.get(BACKLOG_QUOTA_SIZE))?;
        let bytes = quota.limit_size.or(quota.limit).filter(|bytes| *bytes >= 0)?;
        let action = match quota.policy.as_deref() {
            Some("consumer_backlog_eviction") => QuotaAction::EvictBacklog,
            _ => QuotaAction::RefuseProducers,
        };
        Some((bytes as u64, action))
    }

    /// `None` for a topic that is to be kept.
    pub fn inactivity(&self, config: &BrokerConfig) -> Option<Inactivity> {
        let own: Option<&InactiveTopicPolicies> =
            self.topic.inactive_topic_policies.as_ref().or(self.namespace.inactive_topic_policies.as_ref());
        let Some(policy) = own else {
            let after_ms = config.max_topic_inactivity.as_millis() as u64;
            return config.delete_inactive_topics.then_some(Inactivity { after_ms, caught_up_suffices: false });
        };
        let mode = policy.inactive_topic_delete_mode.as_deref();
        policy.delete_while_inactive.then_some(Inactivity {
            after_ms: policy.max_inactive_duration_seconds.max(0) as u64 * 1000,
            caught_up_suffices: mode == Some("delete_when_subscriptions_caught_up"),
        })
    }

    /// Subscriptions without consumers for so long are deleted.
    pub fn subscription_expiration_ms(&self) -> Option<u64> {
        let minutes = self.namespace.subscription_expiration_time_minutes.filter(|minutes| *minutes > 0)?;
        Some(minutes as u64 * MINUTE_MS as u64)
    }

    pub fn schema_validation_enforced(&self) -> bool {
        self.topic.schema_validation_enforced.unwrap_or(self.namespace.schema_validation_enforced)
    }

    /// Whether producers may bring schemas of their own.
    pub fn allow_auto_update_schema(&self) -> bool {
        self.namespace.is_allow_auto_update_schema.unwrap_or(true)
    }
}

/// The topic's own limit, else the namespace's; negative means unset.
fn limit(topic: Option<i64>, namespace: Option<i64>) -> Option<u64> {
    topic.or(namespace).and_then(|limit| u64::try_from(limit).ok())
}

/// Limits where 0 means none.
fn positive(limit: Option<u64>) -> Option<usize> {
    limit.filter(|limit| *limit > 0).map(|limit| limit as usize)
}
