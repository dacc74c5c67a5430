//! Policies as a topic asks for them: its own, else its namespace's, else the broker's default.

use std::sync::{Arc, LazyLock, Weak};

use geminga_ledger::managed_ledger::Retention;
use geminga_metadata::policies::{
    BACKLOG_QUOTA_AGE, BACKLOG_QUOTA_SIZE, BacklogQuota, DispatchRate, InactiveTopicPolicies,
};
use geminga_metadata::{Policies, TopicPolicies, Versioned};
use geminga_model::NamespaceName;
use geminga_topic::rate_limit::Rate;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

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
    /// Producers are refused until there is room, and told to try again (`producer_request_hold`).
    HoldProducers,
    /// Producers are refused until there is room, and told that this is an error (`producer_exception`).
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

/// The policies of each namespace once in memory, however many topics they hold for.
#[derive(Default)]
pub(crate) struct SharedPolicies(Mutex<FxHashMap<NamespaceName, (u64, Weak<Policies>)>>);

impl SharedPolicies {
    /// What was read, or the same as somebody already has it.
    pub fn share(&self, name: &NamespaceName, read: Versioned<Policies>) -> Arc<Policies> {
        let mut known = self.0.lock();
        if let Some((version, policies)) = known.get(name)
            && *version == read.version
            && let Some(policies) = policies.upgrade()
        {
            return policies;
        }
        let policies = Arc::new(read.value);
        known.retain(|_, (_, policies)| policies.strong_count() > 0);
        known.insert(name.clone(), (read.version, Arc::downgrade(&policies)));
        policies
    }
}

/// The policies of a topic; those without any share one.
pub(crate) fn own_policies(read: Option<Versioned<TopicPolicies>>) -> Arc<TopicPolicies> {
    static NONE: LazyLock<Arc<TopicPolicies>> = LazyLock::new(Arc::default);
    read.map_or_else(|| NONE.clone(), |policies| Arc::new(policies.value))
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
        let quota = self.quota(BACKLOG_QUOTA_SIZE)?;
        let bytes = quota.limit_size.or(quota.limit).filter(|bytes| *bytes >= 0)?;
        Some((bytes as u64, quota_action(quota)))
    }

    /// Seconds that a message may stay in a backlog, and what happens to older ones.
    pub fn backlog_age_quota(&self) -> Option<(u64, QuotaAction)> {
        let quota = self.quota(BACKLOG_QUOTA_AGE)?;
        let seconds = quota.limit_time.filter(|seconds| *seconds > 0)?;
        Some((seconds as u64, quota_action(quota)))
    }

    fn quota(&self, kind: &str) -> Option<&BacklogQuota> {
        self.topic.backlog_quota_map.get(kind).or_else(|| self.namespace.backlog_quota_map.get(kind))
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

    /// What may be published; unlimited without a policy.
    pub fn publish_rate(&self, cluster: &str) -> Rate {
        let own = self.topic.publish_rate.as_ref().or_else(|| self.namespace.publish_max_message_rate.get(cluster));
        own.map_or(Rate::default(), |rate| Rate {
            messages: rate.publish_throttling_rate_in_msg.max(0) as u64,
            bytes: rate.publish_throttling_rate_in_byte.max(0) as u64,
            period_ms: 1000,
        })
    }

    /// What may be delivered of the topic; `publishing` are the messages and bytes per second that come in.
    pub fn dispatch_rate(&self, cluster: &str, publishing: [f64; 2]) -> Rate {
        let own = self.topic.dispatch_rate.as_ref().or_else(|| self.namespace.topic_dispatch_rate.get(cluster));
        own.map_or(Rate::default(), |policy| dispatch_rate(policy, publishing))
    }

    /// What may be delivered of each subscription.
    pub fn subscription_dispatch_rate(&self, cluster: &str, publishing: [f64; 2]) -> Rate {
        let namespace = || self.namespace.subscription_dispatch_rate.get(cluster);
        let own = self.topic.subscription_dispatch_rate.as_ref().or_else(namespace);
        own.map_or(Rate::default(), |policy| dispatch_rate(policy, publishing))
    }

    /// What may be delivered of subscriptions that have a rate of their own.
    pub fn single_dispatch_rates(&self, publishing: [f64; 2]) -> Vec<(String, Rate)> {
        let own = self.topic.subscription_policies.iter();
        let rates = own.filter_map(|(name, policies)| Some((name, policies.dispatch_rate.as_ref()?)));
        rates.map(|(name, rate)| (name.clone(), dispatch_rate(rate, publishing))).collect()
    }

    /// How often one consumer may subscribe.
    pub fn subscribe_rate(&self, cluster: &str) -> Rate {
        let own = self.topic.subscribe_rate.as_ref().or_else(|| self.namespace.cluster_subscribe_rate.get(cluster));
        own.map_or(Rate::default(), |rate| Rate {
            messages: rate.subscribe_throttling_rate_per_consumer.max(0) as u64,
            bytes: 0,
            period_ms: rate.rate_period_in_second.max(1) as u64 * 1000,
        })
    }

    /// Whether consumers of this type (as Pulsar spells it) may subscribe.
    pub fn allows_subscription_type(&self, name: &str) -> bool {
        let own = [&self.topic.subscription_types_enabled, &self.namespace.subscription_types_enabled];
        own.into_iter().find(|types| !types.is_empty()).is_none_or(|types| types.contains(name))
    }

    /// Whether messages may ask to be delivered later.
    pub fn delayed_delivery(&self) -> bool {
        let namespace = self.namespace.delayed_delivery_policies.as_ref().map(|policy| policy.active);
        self.topic.delayed_delivery_enabled.or(namespace).unwrap_or(true)
    }

    /// How much later, at most.
    pub fn max_delay_ms(&self) -> Option<u64> {
        let namespace =
            self.namespace.delayed_delivery_policies.as_ref().map(|policy| policy.max_delivery_delay_in_millis);
        let own = self.topic.delayed_delivery_max_delay_in_millis.or(namespace);
        own.and_then(|delay| u64::try_from(delay).ok()).filter(|delay| *delay > 0)
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

fn quota_action(quota: &BacklogQuota) -> QuotaAction {
    match quota.policy.as_deref() {
        Some("consumer_backlog_eviction") => QuotaAction::EvictBacklog,
        Some("producer_exception") => QuotaAction::RefuseProducers,
        _ => QuotaAction::HoldProducers,
    }
}

fn dispatch_rate(policy: &DispatchRate, publishing: [f64; 2]) -> Rate {
    let seconds = policy.rate_period_in_second.max(1) as u64;
    let limit = |own: i64, publishing: f64| match u64::try_from(own) {
        Err(_) | Ok(0) => 0,
        Ok(own) if policy.relative_to_publish_rate => own + publishing as u64 * seconds,
        Ok(own) => own,
    };
    Rate {
        messages: limit(policy.dispatch_throttling_rate_in_msg, publishing[0]),
        bytes: limit(policy.dispatch_throttling_rate_in_byte, publishing[1]),
        period_ms: seconds * 1000,
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
