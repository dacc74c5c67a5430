//! The policies of a topic, one path each, by a table as in namespace_policies.rs. `?applied=true` answers what holds: the
//! topic's own, else its namespace's, else the broker's default.

use geminga_broker::BrokerError;
use geminga_metadata::policies::{BACKLOG_QUOTA_AGE, BACKLOG_QUOTA_SIZE, BacklogQuota, SubscriptionPolicies};
use geminga_metadata::{Policies, TopicPolicies};
use geminga_model::TopicName;
use serde_json::{Map, Value, json};

use crate::call::{Answer, Call, subscription_name};
use crate::error::{ApiError, Result};
use crate::namespace_policies::{note_effect, parse_quota, quota_type};
use crate::policy_checks::*;

struct Policy {
    path: &'static str,
    /// Field of the topic's stored JSON.
    field: &'static str,
    /// Field of the namespace's.
    inherited: &'static str,
    /// Whether the namespace's field is a map by cluster.
    by_cluster: bool,
    /// What holds where nobody says anything; JSON.
    default: &'static str,
    /// Answer 204 instead of an empty 200 for a value that is not set.
    no_content: bool,
    check: fn(&Value) -> Result<()>,
}

const fn policy(path: &'static str, field: &'static str, inherited: &'static str, default: &'static str) -> Policy {
    Policy { path, field, inherited, by_cluster: false, default, no_content: false, check: |_| Ok(()) }
}

impl Policy {
    const fn by_cluster(self) -> Self {
        Policy { by_cluster: true, ..self }
    }

    const fn no_content(self) -> Self {
        Policy { no_content: true, ..self }
    }

    const fn checked(self, check: fn(&Value) -> Result<()>) -> Self {
        Policy { check, ..self }
    }
}

const NO_RATE: &str = r#"{"dispatchThrottlingRateInMsg":0,"dispatchThrottlingRateInByte":0,"relativeToPublishRate":false,"ratePeriodInSecond":1}"#;

static POLICIES: &[Policy] = &[
    policy(
        "retention",
        "retentionPolicies",
        "retention_policies",
        r#"{"retentionTimeInMinutes":0,"retentionSizeInMB":0}"#,
    )
    .checked(check_retention),
    policy(
        "persistence",
        "persistence",
        "persistence",
        r#"{"bookkeeperEnsemble":1,"bookkeeperWriteQuorum":1,"bookkeeperAckQuorum":1,"managedLedgerMaxMarkDeleteRate":0.1}"#,
    )
    .checked(check_persistence),
    policy("maxProducers", "maxProducerPerTopic", "max_producers_per_topic", "0")
        .checked(|v| not_negative("maxProducers", v)),
    policy("maxConsumers", "maxConsumerPerTopic", "max_consumers_per_topic", "0")
        .checked(|v| not_negative("maxConsumers", v)),
    policy("maxConsumersPerSubscription", "maxConsumersPerSubscription", "max_consumers_per_subscription", "null")
        .no_content()
        .checked(|v| not_below_0("Invalid value for maxConsumersPerSubscription", v)),
    policy("maxSubscriptionsPerTopic", "maxSubscriptionsPerTopic", "max_subscriptions_per_topic", "null")
        .no_content()
        .checked(|v| not_negative("maxSubscriptionsPerTopic", v)),
    policy("maxUnackedMessagesOnConsumer", "maxUnackedMessagesOnConsumer", "max_unacked_messages_per_consumer", "50000")
        .checked(|v| not_negative("maxUnackedNum", v)),
    policy(
        "maxUnackedMessagesOnSubscription",
        "maxUnackedMessagesOnSubscription",
        "max_unacked_messages_per_subscription",
        "200000",
    )
    .checked(|v| not_negative("maxUnackedNum", v)),
    policy("maxMessageSize", "maxMessageSize", "", "null").no_content().checked(check_message_size),
    policy("messageTTL", "messageTTLInSeconds", "message_ttl_in_seconds", "0").checked(check_ttl),
    policy("deduplicationEnabled", "deduplicationEnabled", "deduplicationEnabled", "false"),
    policy("deduplication", "deduplicationEnabled", "deduplicationEnabled", "false"),
    policy(
        "deduplicationSnapshotInterval",
        "deduplicationSnapshotIntervalSeconds",
        "deduplicationSnapshotIntervalSeconds",
        "null",
    )
    .checked(|v| not_negative("interval", v)),
    policy(
        "inactiveTopicPolicies",
        "inactiveTopicPolicies",
        "inactive_topic_policies",
        r#"{"inactiveTopicDeleteMode":"delete_when_no_subscriptions","maxInactiveDurationSeconds":60,"deleteWhileInactive":true}"#,
    ),
    policy("dispatchRate", "dispatchRate", "topicDispatchRate", NO_RATE).by_cluster(),
    policy("subscriptionDispatchRate", "subscriptionDispatchRate", "subscriptionDispatchRate", NO_RATE).by_cluster(),
    policy("replicatorDispatchRate", "replicatorDispatchRate", "replicatorDispatchRate", NO_RATE).by_cluster(),
    policy("publishRate", "publishRate", "publishMaxMessageRate", "null").by_cluster().no_content(),
    policy(
        "subscribeRate",
        "subscribeRate",
        "clusterSubscribeRate",
        r#"{"subscribeThrottlingRatePerConsumer":0,"ratePeriodInSecond":30}"#,
    )
    .by_cluster(),
    policy("compactionThreshold", "compactionThreshold", "compaction_threshold", "0")
        .checked(|v| not_below_0("Invalid value for compactionThreshold", v)),
    policy("offloadPolicies", "offloadPolicies", "offload_policies", "null").checked(check_offload),
    policy("replication", "replicationClusters", "replication_clusters", "null"),
    policy("schemaCompatibilityStrategy", "schemaCompatibilityStrategy", "schema_compatibility_strategy", "\"FULL\""),
    policy("schemaValidationEnforced", "schemaValidationEnforced", "schema_validation_enforced", "false"),
    policy("subscriptionTypesEnabled", "subscriptionTypesEnabled", "subscription_types_enabled", "[]")
        .checked(check_subscription_types),
    policy("entryFilters", "entryFilters", "entryFilters", r#"{"entryFilterNames":""}"#).checked(no_entry_filter),
    policy(
        "autoSubscriptionCreation",
        "autoSubscriptionCreationOverride",
        "autoSubscriptionCreationOverride",
        r#"{"allowAutoSubscriptionCreation":true}"#,
    ),
    policy(
        "dispatcherPauseOnAckStatePersistent",
        "dispatcherPauseOnAckStatePersistentEnabled",
        "dispatcherPauseOnAckStatePersistentEnabled",
        "false",
    ),
    policy("shadowTopics", "shadowTopics", "", "null"),
];

/// Paths whose value is `false` rather than unset.
const FLAGS: &[&str] = &["schemaValidationEnforced", "dispatcherPauseOnAckStatePersistent"];

pub(crate) async fn serve(call: &Call, name: &TopicName, path: &[&str]) -> Result<Answer> {
    if let [subscription, "dispatchRate"] = path {
        check_topic(call, name).await?;
        return dispatch_rate_of(call, name, &subscription_name(subscription)).await;
    }
    let [path] = path else { return call.unsupported() };
    let known = POLICIES.iter().find(|policy| policy.path == *path);
    if known.is_none() && !["backlogQuotaMap", "backlogQuota", "delayedDelivery"].contains(path) {
        return call.unsupported();
    }
    check_topic(call, name).await?;
    match (call.method(), *path) {
        (_, "backlogQuotaMap" | "backlogQuota") => return backlog_quota(call, name).await,
        (_, "delayedDelivery") => return delayed_delivery(call, name).await,
        _ => {}
    }
    let Some(policy) = known else { return call.unsupported() };
    match call.method() {
        "GET" => get(call, name, policy).await,
        "POST" | "PUT" => {
            let wanted = match call.query("messageTTL") {
                Some(ttl) if policy.path == "messageTTL" => json!(crate::call::number::<i64>(ttl)?),
                _ if policy.path == "dispatcherPauseOnAckStatePersistent" => json!(true),
                _ => call.json_or_default()?,
            };
            change(call, name, policy, Some(wanted).filter(|wanted| !wanted.is_null())).await
        }
        "DELETE" => change(call, name, policy, None).await,
        _ => call.unsupported(),
    }
}

async fn check_topic(call: &Call, name: &TopicName) -> Result<()> {
    if name.is_partition() {
        return Err(ApiError::precondition("Not allowed to set/get topic policy for a partition"));
    }
    let metadata = call.broker.metadata();
    call.broker.namespace_policies(name.namespace()).await?;
    if metadata.get_topic(name).await?.is_none() && metadata.get_partitioned_topic(name).await?.is_none() {
        return Err(ApiError::not_found(format!("Topic {name} not found")));
    }
    Ok(())
}

async fn get(call: &Call, name: &TopicName, policy: &Policy) -> Result<Answer> {
    let mut own = to_fields(&call.broker.topic_policies(name).await?)?;
    let mut value = own.remove(policy.field).filter(|value| !value.is_null());
    if value.is_none() && call.flag("applied") {
        value = applied(call, name, policy).await?;
    }
    Ok(match value {
        Some(value) => Answer::Json(value),
        None if policy.path == "subscriptionTypesEnabled" => Answer::Json(json!([])),
        None if FLAGS.contains(&policy.path) => Answer::Json(json!(false)),
        None if policy.no_content => Answer::Nothing,
        None => Answer::Unset,
    })
}

/// What holds for a topic without a policy of its own.
async fn applied(call: &Call, name: &TopicName, policy: &Policy) -> Result<Option<Value>> {
    let namespace = call.broker.namespace_policies(name.namespace()).await?;
    let mut inherited = namespace_fields(&namespace)?.remove(policy.inherited).unwrap_or_default();
    if policy.by_cluster {
        inherited = inherited.get_mut(call.broker.config().cluster.as_str()).map(Value::take).unwrap_or_default();
    }
    let is_set = match &inherited {
        Value::Null => false,
        Value::Array(values) => !values.is_empty(),
        Value::String(text) => text != "UNDEFINED",
        _ => true,
    };
    if is_set {
        return Ok(Some(inherited));
    }
    let default: Value = serde_json::from_str(policy.default)
        .map_err(|error| ApiError::bad_request(format!("{}: {error}", policy.path)))?;
    Ok(Some(default).filter(|default| !default.is_null()))
}

async fn change(call: &Call, name: &TopicName, policy: &Policy, wanted: Option<Value>) -> Result<Answer> {
    if let Some(wanted) = &wanted {
        (policy.check)(wanted)?;
        if policy.path == "replication" {
            check_replication(wanted, &call.broker.config().cluster)?;
        }
    }
    let wanted = wanted.map(|wanted| normalized(policy.path, wanted));
    let namespace = call.broker.namespace_policies(name.namespace()).await?;
    call.broker
        .update_topic_policies(name, |policies| {
            let mut fields = to_fields(policies).map_err(|error| BrokerError::BadRequest(error.reason))?;
            match &wanted {
                Some(wanted) => drop(fields.insert(policy.field.to_owned(), wanted.clone())),
                None => drop(fields.remove(policy.field)),
            }
            *policies = serde_json::from_value(Value::Object(fields))
                .map_err(|error| BrokerError::BadRequest(format!("{}: {error}", policy.path)))?;
            check_quota_fits(policies, &namespace)
        })
        .await?;
    note_effect(name, policy.path, wanted.as_ref());
    Ok(Answer::Nothing)
}

/// A backlog quota that what is retained anyway would exceed is taken for a mistake, as in Pulsar.
fn check_quota_fits(policies: &TopicPolicies, namespace: &Policies) -> geminga_broker::Result<()> {
    let Some(retention) = &policies.retention_policies else { return Ok(()) };
    let kind = BACKLOG_QUOTA_SIZE;
    let quota = policies.backlog_quota_map.get(kind).or_else(|| namespace.backlog_quota_map.get(kind));
    let limit = quota.and_then(|quota| quota.limit_size.or(quota.limit)).unwrap_or(-1);
    if retention.retention_size_in_mb > 0 && limit > 0 && limit >= retention.retention_size_in_mb << 20 {
        return Err(BrokerError::PreconditionFailed(
            "Retention Quota must exceed configured backlog quota for topic. Please increase retention quota and retry"
                .into(),
        ));
    }
    Ok(())
}

/// The rate of one subscription, before that of all.
async fn dispatch_rate_of(call: &Call, name: &TopicName, subscription: &str) -> Result<Answer> {
    let wanted = match call.method() {
        "GET" => {
            let mut own = call.broker.topic_policies(name).await?;
            let rate = own.subscription_policies.remove(subscription).and_then(|policies| policies.dispatch_rate);
            if rate.is_none() && call.flag("applied") {
                let all = POLICIES.iter().find(|policy| policy.path == "subscriptionDispatchRate");
                return match all {
                    Some(policy) => get(call, name, policy).await,
                    None => call.unsupported(),
                };
            }
            return Answer::optional(rate);
        }
        "POST" => Some(call.json()?),
        "DELETE" => None,
        _ => return call.unsupported(),
    };
    call.broker
        .update_topic_policies(name, |policies| {
            let all = &mut policies.subscription_policies;
            all.entry(subscription.to_owned()).or_default().dispatch_rate.clone_from(&wanted);
            all.retain(|_, policies| *policies != SubscriptionPolicies::default());
            Ok(())
        })
        .await?;
    Ok(Answer::Nothing)
}

/// The local cluster is among those of a topic here.
fn check_replication(wanted: &Value, local: &str) -> Result<()> {
    match wanted.as_array() {
        Some(clusters) if clusters.iter().any(|cluster| cluster == local) => Ok(()),
        Some(clusters) if !clusters.is_empty() => Err(ApiError::precondition(
            "Can not remove local cluster from the local topic-level replication clusters policy",
        )),
        _ => Err(ApiError::precondition("ClusterIds should not be null or empty")),
    }
}

async fn backlog_quota(call: &Call, name: &TopicName) -> Result<Answer> {
    let kind = quota_type(call)?.to_owned();
    let namespace = call.broker.namespace_policies(name.namespace()).await?;
    let wanted = match call.method() {
        "GET" => {
            let mut quotas = call.broker.topic_policies(name).await?.backlog_quota_map;
            if call.flag("applied") && quotas.is_empty() {
                for (kind, quota) in namespace.backlog_quota_map {
                    quotas.entry(kind).or_insert(quota);
                }
                for kind in [BACKLOG_QUOTA_SIZE, BACKLOG_QUOTA_AGE] {
                    quotas.entry(kind.to_owned()).or_insert_with(no_quota);
                }
            }
            return Answer::json(quotas);
        }
        "POST" => Some(parse_quota(call, name.namespace())?),
        "DELETE" => None,
        _ => return call.unsupported(),
    };
    call.broker
        .update_topic_policies(name, |policies| {
            match &wanted {
                Some(quota) => drop(policies.backlog_quota_map.insert(kind.clone(), quota.clone())),
                None => drop(policies.backlog_quota_map.remove(&kind)),
            }
            check_quota_fits(policies, &namespace)
        })
        .await?;
    Ok(Answer::Nothing)
}

fn no_quota() -> BacklogQuota {
    BacklogQuota {
        limit: Some(-1),
        limit_size: Some(-1),
        limit_time: Some(-1),
        policy: Some("producer_request_hold".into()),
        ..BacklogQuota::default()
    }
}

/// One object for clients, three fields in store.
async fn delayed_delivery(call: &Call, name: &TopicName) -> Result<Answer> {
    let wanted: Option<geminga_metadata::policies::DelayedDeliveryPolicies> = match call.method() {
        "GET" => {
            let own = call.broker.topic_policies(name).await?;
            if let Some(active) = own.delayed_delivery_enabled {
                return Ok(Answer::Json(json!({
                    "tickTime": own.delayed_delivery_tick_time_millis.unwrap_or(1000),
                    "active": active,
                    "maxDeliveryDelayInMillis": own.delayed_delivery_max_delay_in_millis.unwrap_or(0),
                })));
            }
            if !call.flag("applied") {
                return Ok(Answer::Unset);
            }
            let namespace = call.broker.namespace_policies(name.namespace()).await?;
            return match namespace.delayed_delivery_policies {
                Some(policies) => Answer::json(policies),
                None => Ok(Answer::Json(json!({ "tickTime": 1000, "active": true, "maxDeliveryDelayInMillis": 0 }))),
            };
        }
        "POST" => Some(call.json()?),
        "DELETE" => None,
        _ => return call.unsupported(),
    };
    call.broker
        .update_topic_policies(name, |policies| {
            policies.delayed_delivery_enabled = wanted.as_ref().map(|wanted| wanted.active);
            policies.delayed_delivery_tick_time_millis = wanted.as_ref().map(|wanted| wanted.tick_time);
            policies.delayed_delivery_max_delay_in_millis =
                wanted.as_ref().map(|wanted| wanted.max_delivery_delay_in_millis);
            Ok(())
        })
        .await?;
    Ok(Answer::Nothing)
}

fn check_ttl(value: &Value) -> Result<()> {
    match value.as_i64() {
        Some(ttl) if ttl < 0 => Err(ApiError::precondition("Invalid value for message TTL")),
        _ => Ok(()),
    }
}

fn to_fields(policies: &TopicPolicies) -> Result<Map<String, Value>> {
    object(serde_json::to_value(policies))
}

fn namespace_fields(policies: &Policies) -> Result<Map<String, Value>> {
    object(serde_json::to_value(policies))
}

fn object(value: serde_json::Result<Value>) -> Result<Map<String, Value>> {
    match value {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::bad_request("policies are not an object")),
        Err(error) => Err(ApiError::bad_request(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_table_is_a_field_of_the_policies() {
        for policy in POLICIES {
            serde_json::from_str::<Value>(policy.default).unwrap_or_else(|error| panic!("{}: {error}", policy.path));
            if policy.path == "shadowTopics" {
                continue;
            }
            // A field of the wrong type is refused; one that is unknown would be kept.
            let wrong = json!({ policy.field: [[{}]] });
            assert!(serde_json::from_value::<TopicPolicies>(wrong).is_err(), "{}", policy.field);
            if !policy.inherited.is_empty() {
                let wrong = json!({ policy.inherited: [[{}]] });
                assert!(serde_json::from_value::<Policies>(wrong).is_err(), "{}", policy.inherited);
            }
        }
    }
}
