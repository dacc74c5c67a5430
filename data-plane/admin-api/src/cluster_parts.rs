//! What else is kept with a cluster: failure domains and namespace isolation policies. They say which brokers are used for
//! what; here one broker serves everything, so they are kept for the tools that set them and change nothing.

use geminga_metadata::ClusterData;
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
        ("GET", ["brokers"]) if !is_domain => Ok(Answer::Json(json!([broker(call, &all)]))),
        ("GET", ["brokers", _]) if !is_domain => Ok(Answer::Json(broker(call, &all))),
        ("GET", [name]) => all.get(*name).cloned().map(Answer::Json).ok_or_else(|| {
            ApiError::not_found(if is_domain {
                format!("Domain {name} for cluster {cluster} does not exist")
            } else {
                format!("Cannot find NamespaceIsolationPolicy {name} for cluster {cluster}")
            })
        }),
        ("POST", [name]) => {
            let wanted: Map<String, Value> = call.json()?;
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

/// What the policies say about the one broker.
fn broker(call: &Call, policies: &Map<String, Value>) -> Value {
    let regexes: Vec<&Value> =
        policies.values().filter_map(|policy| policy.get("namespaces")?.as_array()).flatten().collect();
    json!({ "brokerName": call.broker.config().advertised_http, "namespaceRegex": regexes, "primary": false })
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
