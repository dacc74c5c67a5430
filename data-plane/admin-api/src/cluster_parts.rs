//! What else is kept with a cluster: failure domains and namespace isolation policies. They say which brokers are used for
//! what; here one broker serves everything, so they are kept for the tools that set them and change nothing.

use geminga_metadata::ClusterData;
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::call::{Answer, Call};
use crate::clusters;
use crate::error::{ApiError, Result};

const DOMAINS: &str = "failureDomains";
const ISOLATION: &str = "namespaceIsolationPolicies";

/// Takes them over from the cluster's record before it was replaced.
pub(crate) fn keep(mut old: ClusterData, new: &mut ClusterData) {
    for part in [DOMAINS, ISOLATION] {
        if let Some(kept) = old.extra.remove(part) {
            new.extra.insert(part.to_owned(), kept);
        }
    }
}

/// Leaves the cluster's own data.
pub(crate) fn strip(cluster: &mut ClusterData) {
    for part in [DOMAINS, ISOLATION] {
        cluster.extra.remove(part);
    }
}

pub(crate) async fn serve(call: &Call, cluster: &str, part: &str, path: &[&str]) -> Result<Answer> {
    let mut known = clusters::get(call, cluster).await?;
    let all = match known.extra.remove(part) {
        Some(Value::Object(all)) => all,
        _ => Map::new(),
    };
    let none = || ApiError::not_found(format!("NamespaceIsolationPolicies for cluster {cluster} does not exist"));
    let is_domain = part == DOMAINS;
    match (call.method(), path) {
        ("GET", _) if !is_domain && all.is_empty() => Err(none()),
        ("GET", []) => Ok(Answer::Json(Value::Object(all))),
        ("GET", ["brokers"]) if !is_domain => {
            Ok(Answer::Json(json!([of_broker(&call.broker.config().advertised_http, &all)])))
        }
        ("GET", ["brokers", name]) if !is_domain => Ok(Answer::Json(of_broker(name, &all))),
        ("GET", [name]) => all.get(*name).cloned().map(Answer::Json).ok_or_else(|| {
            ApiError::not_found(if is_domain {
                format!("Domain {name} for cluster {cluster} does not exist")
            } else {
                format!("Cannot find NamespaceIsolationPolicy {name} for cluster {cluster}")
            })
        }),
        ("POST", [name]) => {
            let wanted: Map<String, Value> = call.json()?;
            if is_domain {
                check_domain(name, &wanted, &all)?;
            } else {
                check_policy(name, &wanted)?;
            }
            change(call, cluster, part, |parts| drop(parts.insert((*name).to_owned(), json!(wanted)))).await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", [name]) if is_domain => {
            if !all.contains_key(*name) {
                return Err(ApiError::not_found(format!("Domain-name {name} or cluster {cluster} does not exist")));
            }
            change(call, cluster, part, |parts| drop(parts.remove(*name))).await?;
            Ok(Answer::Unset)
        }
        ("DELETE", [name]) => {
            change(call, cluster, part, |parts| drop(parts.remove(*name))).await?;
            Ok(Answer::Nothing)
        }
        _ => call.unsupported(),
    }
}

/// The strings of a list, none where there is no such list.
fn strings<'a>(fields: &'a Map<String, Value>, list: &str) -> impl Iterator<Item = &'a str> {
    fields.get(list).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// What the policies say about a broker: they name brokers by patterns.
fn of_broker(broker: &str, policies: &Map<String, Value>) -> Value {
    let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
    let mut answer = json!({ "brokerName": broker, "namespaceRegex": [], "primary": false });
    let mut namespaces = Vec::new();
    for (name, policy) in policies.iter().filter_map(|(name, policy)| Some((name, policy.as_object()?))) {
        let names = |list: &str| {
            strings(policy, list).any(|pattern| {
                Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|it| it.is_match(broker) || it.is_match(host))
            })
        };
        let is_primary = names("primary");
        if is_primary || names("secondary") {
            namespaces.extend(strings(policy, "namespaces"));
            answer["policyName"] = json!(name);
        }
        if is_primary {
            answer["primary"] = json!(true);
        }
    }
    answer["namespaceRegex"] = json!(namespaces);
    answer
}

/// Refuses a policy without namespaces, primary brokers or a way to fail over.
fn check_policy(name: &str, policy: &Map<String, Value>) -> Result<()> {
    let number = |parameters: &Value, name: &str| match parameters.get(name) {
        Some(Value::String(text)) => text.parse::<i64>().is_ok(),
        Some(value) => value.is_i64(),
        None => false,
    };
    let fails_over = policy.get("auto_failover_policy").is_some_and(|failover| {
        failover.get("policy_type").and_then(Value::as_str) == Some("min_available")
            && failover.get("parameters").is_some_and(|of| number(of, "min_limit") && number(of, "usage_threshold"))
    });
    let has_both = ["namespaces", "primary"].iter().all(|list| strings(policy, list).next().is_some());
    if has_both && fails_over {
        return Ok(());
    }
    let data = json!(policy);
    Err(ApiError::bad_request(format!("Invalid format of input policy data. policy: {name}; data: {data}")))
}

/// A broker is in one domain.
fn check_domain(name: &str, domain: &Map<String, Value>, all: &Map<String, Value>) -> Result<()> {
    for (other, taken) in all.iter().filter(|(other, _)| *other != name) {
        let Some(taken) = taken.as_object() else { continue };
        let both: Vec<&str> =
            strings(domain, "brokers").filter(|broker| strings(taken, "brokers").any(|it| it == *broker)).collect();
        if !both.is_empty() {
            return Err(ApiError::conflict(format!("[{}] already exists in {other}", both.join(", "))));
        }
    }
    Ok(())
}

async fn change(
    call: &Call,
    cluster: &str,
    part: &str,
    change: impl Fn(&mut Map<String, Value>) + Send + Sync,
) -> Result<()> {
    let updated = call.broker.update_cluster(cluster, |data| {
        let parts = data.extra.entry(part).or_insert_with(|| json!({}));
        if let Some(parts) = parts.as_object_mut() {
            change(parts);
        }
    });
    Ok(updated.await?)
}
