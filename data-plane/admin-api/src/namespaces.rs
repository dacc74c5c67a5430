//! `/admin/v2/namespaces`: namespaces themselves; namespace_policies.rs has their policies one by one.

use axum::http::StatusCode;
use geminga_broker::{BrokerError, SplitAt};
use geminga_metadata::Policies;
use geminga_model::{BundleName, BundleRange, NamespaceName, TopicDomain, TopicName, topic_hash};
use serde_json::{Value, json};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::routing::at_owner;
use crate::{bundles, clusters, namespace_policies, policy_checks, routing};

/// Boundaries of bundles begin and end with these.
const FIRST_BOUNDARY: &str = "0x00000000";
const LAST_BOUNDARY: &str = "0xffffffff";

const SPLIT_ALGORITHMS: &[&str] =
    &["range_equally_divide", "topic_count_equally_divide", "specified_positions_divide", "flow_or_qps_equally_divide"];

/// Of a namespace's policies.
const ANTI_AFFINITY: &str = "antiAffinityGroup";

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", [tenant]) => Answer::json(broker.namespaces(tenant).await?),
        ("GET", [cluster, "antiAffinity", group]) => in_anti_affinity_group(call, cluster, group).await,
        ("GET", [tenant, local]) => Answer::json(described(broker.namespace_policies(&name(tenant, local)?).await?)),
        ("PUT", [tenant, local]) => {
            let name = name(tenant, local)?;
            let policies = new_policies(call)?;
            match broker.create_namespace(&name, policies).await {
                Err(BrokerError::NotAllowed(reason)) => {
                    return Err(ApiError::new(StatusCode::FORBIDDEN, reason));
                }
                other => other?,
            }
            Ok(Answer::Nothing)
        }
        ("DELETE", [tenant, local]) => {
            let name = name(tenant, local)?;
            if call.flag("force") && !broker.forced_namespace_deletion_allowed() {
                return Err(ApiError::not_allowed("Broker doesn't allow forced deletion of namespaces"));
            }
            if call.flag("force") && broker.ownership().is_shared() {
                routing::delete_topics_of(call, &name).await?;
            }
            broker.delete_namespace(&name, call.flag("force")).await?;
            Ok(Answer::Nothing)
        }
        (_, [tenant, local, rest @ ..]) => {
            let name = name(tenant, local)?;
            match rest {
                ["topics"] if call.method() == "GET" => topics(call, &name).await,
                ["permissions", rest @ ..] => permissions(call, &name, rest).await,
                ["bundles"] if call.method() == "GET" => Answer::json(broker.namespace_policies(&name).await?.bundles),
                [bundle @ bundles::LARGEST, "split"] => {
                    let bundle = bundles::to_split(call, &name, bundle).await?;
                    of_bundle(call, &name, Some(bundle), &["split"]).await
                }
                [bundle, rest @ ..] if bundles::is_bundle(bundle) => {
                    let policies = broker.namespace_policies(&name).await?;
                    let bundle = bundles::named(&policies, &name, bundle)?;
                    of_bundle(call, &name, Some(bundle), rest).await
                }
                ["unload" | "clearBacklog" | "unsubscribe", ..] => of_bundle(call, &name, None, rest).await,
                ["antiAffinity"] => anti_affinity(call, &name).await,
                _ => namespace_policies::serve(call, &name, rest).await,
            }
        }
        _ => call.unsupported(),
    }
}

/// What concerns the topics of a namespace, or of one of its bundles.
async fn of_bundle(call: &Call, name: &NamespaceName, bundle: Option<BundleRange>, path: &[&str]) -> Result<Answer> {
    match (call.method(), path, bundle) {
        ("PUT", ["unload"], _) => unload(call, name, bundle).await,
        ("PUT", ["split"], Some(range)) => split(call, &BundleName { namespace: name.clone(), range }).await,
        ("POST", ["clearBacklog"], _) => clear_backlog(call, name, bundle, None).await,
        ("POST", ["clearBacklog", subscription], _) => clear_backlog(call, name, bundle, Some(subscription)).await,
        ("POST", ["unsubscribe", subscription], _) => unsubscribe(call, name, bundle, subscription).await,
        _ => call.unsupported(),
    }
}

/// The namespaces of a tenant (the query's `tenant`, once `property`) that are in the group.
async fn in_anti_affinity_group(call: &Call, cluster: &str, group: &str) -> Result<Answer> {
    if group.trim().is_empty() {
        return Err(ApiError::precondition("anti-affinity group can't be empty."));
    }
    clusters::get(call, cluster).await?;
    let mut members = Vec::new();
    let tenant = call.query("tenant").or_else(|| call.query("property"));
    let tenant = tenant.ok_or_else(|| ApiError::bad_request("Tenant should not be null"))?;
    for namespace in call.broker.namespaces(tenant).await? {
        // It may have been deleted meanwhile.
        let Some(policies) = call.broker.metadata().get_namespace(&namespace).await? else { continue };
        if policies.value.extra.get(ANTI_AFFINITY).and_then(Value::as_str) == Some(group) {
            members.push(namespace.to_string());
        }
    }
    Answer::json(members)
}

/// A group of namespaces that should be on different brokers: kept, as there is one broker.
async fn anti_affinity(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let group = match call.method() {
        "GET" => {
            let mut policies = call.broker.namespace_policies(name).await?;
            let group = policies.extra.remove(ANTI_AFFINITY).filter(|group| !group.is_null());
            return Ok(group.map_or(Answer::Nothing, |group| match group.as_str() {
                Some(text) => Answer::Text(text.to_owned()),
                None => Answer::Json(group),
            }));
        }
        "POST" => Some(call.text()?.to_owned()),
        "DELETE" => None,
        _ => return call.unsupported(),
    };
    call.broker
        .update_namespace_policies(name, |policies| {
            match &group {
                Some(group) => drop(policies.extra.insert(ANTI_AFFINITY.to_owned(), json!(group))),
                None => drop(policies.extra.remove(ANTI_AFFINITY)),
            }
            Ok(())
        })
        .await?;
    Ok(Answer::Nothing)
}

pub(crate) fn name(tenant: &str, local: &str) -> Result<NamespaceName> {
    NamespaceName::new(tenant, local).map_err(|_| ApiError::precondition("Namespace name is not valid"))
}

/// The policies of a namespace to be created. Bundles may be given by their number alone.
fn new_policies(call: &Call) -> Result<Policies> {
    let mut body: Value = call.json_or_default()?;
    if body.is_null() {
        return Ok(Policies::default());
    }
    if let Some(bundles) = body.get_mut("bundles").and_then(Value::as_object_mut) {
        bundles.entry("boundaries").or_insert_with(|| json!([]));
        // Without a number that makes sense the default holds.
        if bundles.get("numBundles").and_then(Value::as_i64).is_none_or(|count| count <= 0) {
            bundles.insert("numBundles".to_owned(), json!(geminga_broker::DEFAULT_BUNDLES));
        }
        if bundles["boundaries"].is_null() {
            bundles["boundaries"] = json!([]);
        }
        // Where there are boundaries, they say how many there are.
        if let Some(boundaries) = bundles["boundaries"].as_array().filter(|boundaries| !boundaries.is_empty()) {
            let (first, last) = (&boundaries[0], &boundaries[boundaries.len() - 1]);
            if first != FIRST_BOUNDARY || last != LAST_BOUNDARY {
                return Err(ApiError::bad_request(format!(
                    "Input bundles do not cover the whole hash range. first:{}, last:{}",
                    first.as_str().unwrap_or_default(),
                    last.as_str().unwrap_or_default()
                )));
            }
            let count = boundaries.len() - 1;
            bundles.insert("numBundles".to_owned(), json!(count));
        }
    }
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    policy_checks::check_new(&body)?;
    serde_json::from_value(body).map_err(|error| ApiError::bad_request(format!("malformed policies: {error}")))
}

/// Policies as they are shown: with the default of what clients expect to be there.
fn described(mut policies: Policies) -> Policies {
    policies.is_allow_auto_update_schema.get_or_insert(true);
    if let (1, Some(only)) = (policies.replication_clusters.len(), policies.replication_clusters.first()) {
        policies.extra.insert("clusterThatCanDeleteNamespace".to_owned(), json!(only));
    }
    policies.extra.remove(namespace_policies::BOOKIE_AFFINITY.field);
    policies
}

async fn topics(call: &Call, name: &NamespaceName) -> Result<Answer> {
    let domains: &[TopicDomain] = match call.query("mode").unwrap_or("PERSISTENT") {
        "PERSISTENT" => &[TopicDomain::Persistent],
        "NON_PERSISTENT" => &[TopicDomain::NonPersistent],
        "ALL" => &TopicDomain::ALL,
        other => return Err(ApiError::not_found(format!("unknown mode '{other}'"))),
    };
    list(call, name, domains).await
}

/// Topics of a namespace; those that Pulsar uses for itself only when asked for.
pub(crate) async fn list(call: &Call, name: &NamespaceName, domains: &[TopicDomain]) -> Result<Answer> {
    let bundle = match call.query("bundle") {
        Some(bundle) => Some(bundles::named(&call.broker.namespace_policies(name).await?, name, bundle)?),
        None => None,
    };
    let mut topics = call.broker.topics(name, domains).await?;
    topics.retain(|topic| is_in(bundle, topic));
    if !call.flag("includeSystemTopic") {
        topics.retain(|topic| TopicName::parse(topic).is_ok_and(|topic| !topic.is_system()));
    }
    Answer::names(&topics)
}

/// Topics of a bundle that the path names.
pub(crate) async fn list_bundle(
    call: &Call,
    name: &NamespaceName,
    domain: TopicDomain,
    bundle: &str,
) -> Result<Answer> {
    let bundle = bundles::named(&call.broker.namespace_policies(name).await?, name, bundle)?;
    let topics = call.broker.topics(name, &[domain]).await?;
    Answer::names(&topics.into_iter().filter(|topic| bundle.contains(topic_hash(topic))).collect::<Vec<_>>())
}

/// Grants are kept and shown; they are enforced once authorization is on.
async fn permissions(call: &Call, name: &NamespaceName, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", []) => Answer::json(broker.namespace_policies(name).await?.auth_policies.namespace_auth),
        ("GET", ["subscription"]) => {
            Answer::json(broker.namespace_policies(name).await?.auth_policies.subscription_auth_roles)
        }
        ("POST", [role]) => {
            let actions: std::collections::BTreeSet<String> = call.json()?;
            broker
                .update_namespace_policies(name, |policies| {
                    policies.auth_policies.namespace_auth.insert((*role).to_owned(), actions.clone());
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", [role]) => {
            broker
                .update_namespace_policies(name, |policies| {
                    policies.auth_policies.namespace_auth.remove(*role);
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        ("POST", ["subscription", subscription]) => {
            let roles: std::collections::BTreeSet<String> = call.json()?;
            broker
                .update_namespace_policies(name, |policies| {
                    let auth = &mut policies.auth_policies.subscription_auth_roles;
                    auth.entry((*subscription).to_owned()).or_default().extend(roles.iter().cloned());
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", [subscription, role]) => {
            broker
                .update_namespace_policies(name, |policies| {
                    let auth = &mut policies.auth_policies.subscription_auth_roles;
                    if let Some(roles) = auth.get_mut(*subscription) {
                        roles.remove(*role);
                    }
                    auth.retain(|_, roles| !roles.is_empty());
                    Ok(())
                })
                .await?;
            Ok(Answer::Nothing)
        }
        _ => call.unsupported(),
    }
}

/// Cuts a bundle as the query's `splitAlgorithmName` says; with `unload`, the parts are spread over other brokers.
async fn split(call: &Call, bundle: &BundleName) -> Result<Answer> {
    let at = match call.query("splitAlgorithmName").unwrap_or("range_equally_divide") {
        "range_equally_divide" | "" => SplitAt::Middle,
        "topic_count_equally_divide" | "flow_or_qps_equally_divide" => SplitAt::Topics,
        "specified_positions_divide" => {
            let positions: Vec<i64> = call.json_or_default()?;
            SplitAt::Positions(positions.into_iter().filter_map(|at| u32::try_from(at).ok()).collect())
        }
        _ => {
            return Err(ApiError::precondition(format!(
                "Unsupported namespace bundle split algorithm, supported algorithms are [{}]",
                SPLIT_ALGORITHMS.join(", ")
            )));
        }
    };
    let parts = call.broker.split_bundle(bundle, &at).await?;
    if call.flag("unload") {
        for part in &parts[1..] {
            call.broker.unload_bundle(part, None).await?;
        }
    }
    Ok(Answer::Nothing)
}

/// Unloads a bundle, or all of them, at whoever has them.
async fn unload(call: &Call, name: &NamespaceName, bundle: Option<BundleRange>) -> Result<Answer> {
    let policies = call.broker.namespace_policies(name).await?;
    let ranges = bundle.map_or_else(|| policies.bundle_ranges(), |range| vec![range]);
    let to = call.query("destinationBroker").filter(|broker| !broker.is_empty());
    for range in ranges {
        call.broker.unload_bundle(&BundleName { namespace: name.clone(), range }, to).await?;
    }
    Ok(Answer::Nothing)
}

fn is_in(bundle: Option<BundleRange>, topic: &str) -> bool {
    bundle.is_none_or(|bundle| bundle.contains(topic_hash(topic)))
}

/// The persistent topics of a namespace, or of one of its bundles, with their subscriptions.
async fn subscribed(
    call: &Call,
    name: &NamespaceName,
    bundle: Option<BundleRange>,
) -> Result<Vec<(TopicName, Vec<String>)>> {
    let mut topics = Vec::new();
    for topic in call.broker.topics(name, &[TopicDomain::Persistent]).await? {
        if is_in(bundle, &topic) {
            let topic = TopicName::parse(&topic)?;
            let subscriptions = call.broker.metadata().list_subscriptions(&topic).await?;
            let names = subscriptions.into_iter().map(|(name, _)| name).filter(|name| !name.starts_with("pulsar."));
            topics.push((topic, names.collect()));
        }
    }
    Ok(topics)
}

async fn clear_backlog(
    call: &Call,
    name: &NamespaceName,
    bundle: Option<BundleRange>,
    subscription: Option<&str>,
) -> Result<Answer> {
    for (topic, subscriptions) in subscribed(call, name, bundle).await? {
        for existing in subscriptions.iter().filter(|existing| subscription.is_none_or(|wanted| wanted == *existing)) {
            at_owner(call, "POST", &topic, &["subscription", existing, "skip_all"]).await?;
        }
    }
    Ok(Answer::Nothing)
}

async fn unsubscribe(
    call: &Call,
    name: &NamespaceName,
    bundle: Option<BundleRange>,
    subscription: &str,
) -> Result<Answer> {
    for (topic, subscriptions) in subscribed(call, name, bundle).await? {
        if subscriptions.iter().any(|existing| existing == subscription) {
            at_owner(call, "DELETE", &topic, &["subscription", subscription]).await?;
        }
    }
    Ok(Answer::Nothing)
}
