//! The policies of a namespace, one path each. Most get, set and clear one field of the stored policies: a table says
//! which. A field that is not set is answered by an empty body, as Pulsar does.

use axum::http::StatusCode;
use geminga_broker::BrokerError;
use geminga_metadata::Policies;
use geminga_metadata::policies::{BACKLOG_QUOTA_AGE, BACKLOG_QUOTA_SIZE, BacklogQuota};
use geminga_model::NamespaceName;
use serde_json::{Map, Value, json};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::policy_checks::*;

/// One path below a namespace.
pub(crate) struct Policy {
    path: &'static str,
    /// Field of the stored JSON.
    pub field: &'static str,
    kind: Kind,
    check: fn(&Value) -> Result<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Value,
    /// Shown as this when it is not set.
    Number(i64),
    Flag(bool),
    /// A map by cluster, of which the path concerns the local one.
    OfCluster,
}

const fn value(path: &'static str, field: &'static str) -> Policy {
    Policy { path, field, kind: Kind::Value, check: anything }
}

const fn checked(path: &'static str, field: &'static str, check: fn(&Value) -> Result<()>) -> Policy {
    Policy { path, field, kind: Kind::Value, check }
}

const fn of_cluster(path: &'static str, field: &'static str) -> Policy {
    Policy { path, field, kind: Kind::OfCluster, check: anything }
}

static POLICIES: &[Policy] = &[
    checked("messageTTL", "message_ttl_in_seconds", check_ttl),
    checked("subscriptionExpirationTime", "subscription_expiration_time_minutes", check_expiration),
    value("deduplication", "deduplicationEnabled"),
    checked("deduplicationSnapshotInterval", "deduplicationSnapshotIntervalSeconds", check_interval),
    checked("autoTopicCreation", "autoTopicCreationOverride", check_auto_creation),
    value("autoSubscriptionCreation", "autoSubscriptionCreationOverride"),
    checked("persistence", "persistence", check_persistence),
    checked("retention", "retention_policies", check_retention),
    value("subscriptionAuthMode", "subscription_auth_mode"),
    value("encryptionRequired", "encryption_required"),
    value("delayedDelivery", "delayed_delivery_policies"),
    value("inactiveTopicPolicies", "inactive_topic_policies"),
    checked("maxProducersPerTopic", "max_producers_per_topic", |v| not_negative("maxProducersPerTopic", v)),
    checked("maxConsumersPerTopic", "max_consumers_per_topic", |v| not_negative("maxConsumersPerTopic", v)),
    checked("maxConsumersPerSubscription", "max_consumers_per_subscription", |v| {
        not_negative("maxConsumersPerSubscription", v)
    }),
    checked("maxUnackedMessagesPerConsumer", "max_unacked_messages_per_consumer", |v| {
        not_negative("maxUnackedMessagesPerConsumer", v)
    }),
    checked("maxUnackedMessagesPerSubscription", "max_unacked_messages_per_subscription", |v| {
        not_negative("maxUnackedMessagesPerSubscription", v)
    }),
    checked("maxSubscriptionsPerTopic", "max_subscriptions_per_topic", |v| not_negative("maxSubscriptionsPerTopic", v)),
    Policy {
        path: "maxTopicsPerNamespace",
        field: "max_topics_per_namespace",
        kind: Kind::Number(0),
        check: |v| not_negative("maxTopicsPerNamespace", v),
    },
    checked("compactionThreshold", "compaction_threshold", |v| not_negative("compactionThreshold", v)),
    value("offloadThreshold", "offload_threshold"),
    value("offloadThresholdInSeconds", "offload_threshold_in_seconds"),
    value("offloadDeletionLagMs", "offload_deletion_lag_ms"),
    checked("offloadPolicies", "offload_policies", check_offload),
    value("schemaAutoUpdateCompatibilityStrategy", "schema_auto_update_compatibility_strategy"),
    value("schemaCompatibilityStrategy", "schema_compatibility_strategy"),
    Policy {
        path: "isAllowAutoUpdateSchema",
        field: "is_allow_auto_update_schema",
        kind: Kind::Flag(true),
        check: anything,
    },
    value("schemaValidationEnforced", "schema_validation_enforced"),
    checked("subscriptionTypesEnabled", "subscription_types_enabled", check_subscription_types),
    value("resourcegroup", "resource_group_name"),
    value("properties", "properties"),
    checked("entryFilters", "entryFilters", no_entry_filter),
    value("allowedClusters", "allowed_clusters"),
    value("replication", "replication_clusters"),
    value("latencyStatsSampleRate", "latency_stats_sample_rate"),
    Policy {
        path: "dispatcherPauseOnAckStatePersistent",
        field: "dispatcherPauseOnAckStatePersistentEnabled",
        kind: Kind::Flag(false),
        check: anything,
    },
    of_cluster("dispatchRate", "topicDispatchRate"),
    of_cluster("subscriptionDispatchRate", "subscriptionDispatchRate"),
    of_cluster("replicatorDispatchRate", "replicatorDispatchRate"),
    of_cluster("subscribeRate", "clusterSubscribeRate"),
    of_cluster("publishRate", "publishMaxMessageRate"),
];

/// Kept for the tools that set it. Pulsar too heeds it only with a placement policy of that kind.
pub(crate) static BOOKIE_AFFINITY: Policy = value("persistence/bookieAffinity", "bookieAffinityGroup");

/// Policies that are kept for tools that set them, and change nothing: what they are about does not exist here.
const WITHOUT_EFFECT: &[&str] = &[
    "allowedClusters",
    "compactionThreshold",
    "deduplicationSnapshotInterval",
    "latencyStatsSampleRate",
    "offloadDeletionLagMs",
    "offloadPolicies",
    "offloadThreshold",
    "offloadThresholdInSeconds",
    "replication",
    "replicatorDispatchRate",
    "resourcegroup",
    "shadowTopics",
    "subscriptionAuthMode",
];

/// Says in the log that a policy which was just set changes nothing.
pub(crate) fn note_effect(of: &dyn std::fmt::Display, path: &str, wanted: Option<&Value>) {
    if let Some(wanted) = wanted
        && WITHOUT_EFFECT.contains(&path)
    {
        tracing::warn!(%of, policy = path, value = %wanted, "policy is kept but has no effect");
    }
}

pub(crate) async fn serve(call: &Call, name: &NamespaceName, path: &[&str]) -> Result<Answer> {
    match (call.method(), path) {
        ("GET", ["persistence", "bookieAffinity"]) => Ok(or_nothing(get(call, name, &BOOKIE_AFFINITY).await?)),
        ("GET", [path @ "schemaAutoUpdateCompatibilityStrategy"]) => {
            Ok(or_nothing(get(call, name, find(path)?).await?))
        }
        ("POST", ["persistence", "bookieAffinity"]) => change(call, name, &BOOKIE_AFFINITY, Some(call.json()?)).await,
        ("DELETE", ["persistence", "bookieAffinity"]) => change(call, name, &BOOKIE_AFFINITY, None).await,
        ("POST", ["replication"]) => set_replication(call, name).await,
        // Pulsar has no such path, and takes the word for the name of a bundle.
        ("DELETE", ["replication"]) => Err(ApiError::precondition("Invalid bundle range: replication")),
        ("POST", ["allowedClusters"]) => set_allowed_clusters(call, name).await,
        ("PUT", ["properties"]) => add_properties(call, name).await,
        ("PUT", [path @ "offloadThresholdInSeconds"]) => {
            change(call, name, find(path)?, Some(call.json()?)).await?;
            Ok(Answer::Unset)
        }
        ("POST", ["resourcegroup", _]) => Err(ApiError::precondition("ResourceGroup does not exist")),
        (_, ["backlogQuotaMap" | "backlogQuota"]) => backlog_quota(call, name).await,
        (_, ["property", key, rest @ ..]) => property(call, name, key, rest).await,
        ("DELETE", ["removeOffloadPolicies"]) => change(call, name, find("offloadPolicies")?, None).await,
        ("POST" | "PUT", ["dispatcherPauseOnAckStatePersistent"]) => {
            change(call, name, find("dispatcherPauseOnAckStatePersistent")?, Some(json!(true))).await
        }
        (method, [path]) => {
            let Ok(policy) = find(path) else { return call.unsupported() };
            match method {
                "GET" => get(call, name, policy).await,
                "POST" | "PUT" => {
                    let wanted: Value = call.json_or_default()?;
                    let wanted = Some(wanted).filter(|wanted| !wanted.is_null());
                    change(call, name, policy, wanted).await
                }
                "DELETE" => change(call, name, policy, None).await,
                _ => call.unsupported(),
            }
        }
        _ => call.unsupported(),
    }
}

fn find(path: &str) -> Result<&'static Policy> {
    POLICIES
        .iter()
        .find(|policy| policy.path == path)
        .ok_or_else(|| ApiError::unsupported(format_args!("policy {path}")))
}

async fn get(call: &Call, name: &NamespaceName, policy: &Policy) -> Result<Answer> {
    let mut fields = to_fields(&call.broker.namespace_policies(name).await?)?;
    let mut value = fields.remove(policy.field).unwrap_or_default();
    if policy.kind == Kind::OfCluster {
        value = value.get_mut(call.broker.config().cluster.as_str()).map(Value::take).unwrap_or_default();
    }
    Ok(match (value, policy.kind) {
        (Value::Null, Kind::Number(default)) => Answer::Json(json!(default)),
        (Value::Null, Kind::Flag(default)) => Answer::Json(json!(default)),
        (Value::Null, _) => Answer::Unset,
        (value, _) => Answer::Json(value),
    })
}

/// Sets a field, or without a value returns it to its default.
async fn change(call: &Call, name: &NamespaceName, policy: &Policy, wanted: Option<Value>) -> Result<Answer> {
    if let Some(wanted) = &wanted {
        (policy.check)(wanted)?;
    }
    let cluster = call.broker.config().cluster.clone();
    call.broker
        .update_namespace_policies(name, |policies| {
            let mut fields = to_fields(policies).map_err(|error| BrokerError::BadRequest(error.reason))?;
            match (policy.kind, &wanted) {
                (Kind::OfCluster, wanted) => set_of_cluster(&mut fields, policy.field, &cluster, wanted.clone()),
                (_, Some(wanted)) => {
                    drop(fields.insert(policy.field.to_owned(), normalized(policy.path, wanted.clone())))
                }
                (_, None) => drop(fields.remove(policy.field)),
            }
            *policies = serde_json::from_value(Value::Object(fields))
                .map_err(|error| BrokerError::BadRequest(format!("{}: {error}", policy.path)))?;
            if policy.path == "retention" { check_quota_fits(policies) } else { Ok(()) }
        })
        .await?;
    note_effect(name, policy.path, wanted.as_ref());
    Ok(Answer::Nothing)
}

fn set_of_cluster(fields: &mut Map<String, Value>, field: &str, cluster: &str, wanted: Option<Value>) {
    let by_cluster = fields.entry(field).or_insert_with(|| json!({}));
    let Some(by_cluster) = by_cluster.as_object_mut() else { return };
    match wanted {
        Some(wanted) => drop(by_cluster.insert(cluster.to_owned(), wanted)),
        None => drop(by_cluster.remove(cluster)),
    }
}

fn to_fields(policies: &Policies) -> Result<Map<String, Value>> {
    match serde_json::to_value(policies) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(ApiError::bad_request("policies are not an object")),
        Err(error) => Err(ApiError::bad_request(error.to_string())),
    }
}

async fn set_replication(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let clusters: Vec<String> = call.json_or_default()?;
    if clusters.is_empty() {
        return Err(ApiError::precondition("ClusterIds should not be null or empty"));
    }
    if clusters.iter().any(|cluster| cluster == "global") {
        return Err(ApiError::precondition("Cannot specify global in the list of replication clusters"));
    }
    for cluster in &clusters {
        if call.broker.metadata().get_cluster(cluster).await?.is_none() {
            return Err(ApiError::new(StatusCode::FORBIDDEN, format!("Invalid cluster id: {cluster}")));
        }
    }
    call.broker
        .update_namespace_policies(name, |policies| {
            policies.replication_clusters = clusters.iter().cloned().collect();
            Ok(())
        })
        .await?;
    Ok(Answer::Unset)
}

async fn set_allowed_clusters(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let clusters: std::collections::BTreeSet<String> = call.json()?;
    let tenant = call.broker.metadata().get_tenant(name.tenant()).await?;
    let tenant = tenant.map(|tenant| tenant.value.allowed_clusters).unwrap_or_default();
    let policies = call.broker.namespace_policies(name).await?;
    if let Some(cluster) = clusters.iter().find(|cluster| !tenant.contains(*cluster)) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            format!("Cluster [{cluster}] is not in the list of allowed clusters list for tenant [{}]", name.tenant()),
        ));
    }
    if let Some(cluster) = policies.replication_clusters.iter().find(|cluster| !clusters.contains(*cluster)) {
        return Err(ApiError::bad_request(format!(
            "Allowed clusters do not contain the replication cluster [{cluster}]. Please remove the replication cluster \
             if the cluster is not allowed for this namespace"
        )));
    }
    change(call, name, find("allowedClusters")?, Some(json!(clusters))).await?;
    Ok(Answer::Unset)
}

/// Properties that are there already stay.
async fn add_properties(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let more: std::collections::BTreeMap<String, String> = call.json()?;
    call.broker
        .update_namespace_policies(name, |policies| {
            policies.properties.extend(more.clone());
            Ok(())
        })
        .await?;
    Ok(Answer::Nothing)
}

/// A value that is not set as 204, which some paths answer.
fn or_nothing(answer: Answer) -> Answer {
    match answer {
        Answer::Unset => Answer::Nothing,
        other => other,
    }
}

/// The kind of quota that a request is about.
pub(crate) fn quota_type(call: &Call) -> Result<&str> {
    match call.query("backlogQuotaType").unwrap_or(BACKLOG_QUOTA_SIZE) {
        kind @ (BACKLOG_QUOTA_SIZE | BACKLOG_QUOTA_AGE) => Ok(kind),
        other => Err(ApiError::not_found(format!("there is no backlog quota type '{other}'"))),
    }
}

/// A quota with the fields that clients expect; `limit` is the old name of `limitSize`.
pub(crate) fn parse_quota(call: &Call, name: &NamespaceName) -> Result<BacklogQuota> {
    let mut quota: BacklogQuota = call.json()?;
    let size = quota.limit_size.or(quota.limit);
    quota.limit_size = size.or(Some(0));
    quota.limit = quota.limit_size;
    quota.limit_time.get_or_insert(0);
    match quota.policy.as_deref() {
        Some("producer_request_hold" | "producer_exception" | "consumer_backlog_eviction") => Ok(quota),
        _ => Err(ApiError::bad_request(format!(
            "Set namespace[{name}] backlog quota failed because the data validation failed. the attribute policy cannot \
             be null"
        ))),
    }
}

async fn backlog_quota(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let kind = quota_type(call)?.to_owned();
    let wanted = match call.method() {
        "GET" => return Answer::json(call.broker.namespace_policies(name).await?.backlog_quota_map),
        "POST" => Some(parse_quota(call, name)?),
        "DELETE" => None,
        _ => return call.unsupported(),
    };
    call.broker
        .update_namespace_policies(name, |policies| {
            let Some(quota) = &wanted else {
                policies.backlog_quota_map.remove(&kind);
                return Ok(());
            };
            if let Some(retention) = &policies.retention_policies
                && exceeds(retention, quota)
            {
                return Err(BrokerError::PreconditionFailed(
                    "Backlog Quota exceeds configured retention quota for namespace. Please increase retention quota \
                     and retry"
                        .into(),
                ));
            }
            policies.backlog_quota_map.insert(kind.clone(), quota.clone());
            Ok(())
        })
        .await?;
    Ok(Answer::Nothing)
}

/// Whether a backlog may grow larger than what retention keeps anyway, which Pulsar takes for a mistake.
fn exceeds(retention: &geminga_metadata::policies::RetentionPolicies, quota: &BacklogQuota) -> bool {
    let size = quota.limit_size.unwrap_or(-1);
    retention.retention_size_in_mb > 0 && size >= 0 && size >= retention.retention_size_in_mb << 20
}

fn check_quota_fits(policies: &Policies) -> geminga_broker::Result<()> {
    let Some(retention) = &policies.retention_policies else { return Ok(()) };
    match policies.backlog_quota_map.get(BACKLOG_QUOTA_SIZE) {
        Some(quota) if exceeds(retention, quota) => Err(BrokerError::PreconditionFailed(
            "Retention Quota must exceed configured backlog quota for namespace.".into(),
        )),
        _ => Ok(()),
    }
}

async fn property(call: &Call, name: &NamespaceName, key: &str, rest: &[&str]) -> Result<Answer> {
    let change = match (call.method(), rest) {
        ("GET", []) => {
            let properties = call.broker.namespace_policies(name).await?.properties;
            return Ok(properties.get(key).map_or(Answer::Unset, |value| Answer::Text(value.clone())));
        }
        ("PUT", [value]) => Some((*value).to_owned()),
        ("DELETE", []) => None,
        _ => return call.unsupported(),
    };
    let removed = call.broker.namespace_policies(name).await?.properties.remove(key);
    call.broker
        .update_namespace_policies(name, |policies| {
            match &change {
                Some(value) => policies.properties.insert(key.to_owned(), value.clone()),
                None => policies.properties.remove(key),
            };
            Ok(())
        })
        .await?;
    match (change, removed) {
        (None, Some(removed)) => Ok(Answer::Text(removed)),
        (None, None) => Ok(Answer::Unset),
        _ => Ok(Answer::Nothing),
    }
}
