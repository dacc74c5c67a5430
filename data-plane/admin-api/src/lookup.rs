//! `/lookup/v2`: where a topic is served.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use geminga_broker::{BrokerError, Owner};
use geminga_model::{TopicDomain, TopicName, topic_hash};
use serde_json::json;

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::namespaces;

/// Pulsar's port where nobody says otherwise.
const DEFAULT_PORT: u16 = 6650;

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let (name, rest) = match path {
        ["topic", domain, tenant, local, topic, rest @ ..] => {
            let domain: TopicDomain = domain.parse()?;
            (TopicName::new(domain, namespaces::name(tenant, local)?, topic)?, rest)
        }
        _ => return call.unsupported(),
    };
    let owner = match call.broker.lookup(&name).await {
        Err(BrokerError::NamespaceNotFound(_)) => return Err(ApiError::not_found("Namespace not found")),
        other => other?,
    };
    match (call.method(), rest) {
        ("GET", []) => {
            if !call.broker.is_reachable(&name).await? {
                return Err(ApiError::not_found("Topic not found"));
            }
            let (native, http) = match owner {
                Owner::Me(_) => (pulsar_url(call).await?, http_url(call)),
                Owner::Other(broker) => {
                    let url = at_listener(call, &broker.record.listeners)?;
                    (url.unwrap_or(broker.record.pulsar_url), broker.record.http_url)
                }
            };
            Ok(Answer::Json(json!({
                "brokerUrl": native,
                "httpUrl": http,
                "nativeUrl": native,
                "brokerUrlSsl": "",
            })))
        }
        ("GET", ["bundle"]) => bundle(call, &name).await,
        _ => call.unsupported(),
    }
}

/// Where this client reaches the broker. A broker that listens on all addresses is told to this client under the name
/// by which it came, with the port that the cluster's record has.
async fn pulsar_url(call: &Call) -> Result<String> {
    let config = call.broker.config();
    if let Some(url) = at_listener(call, &config.advertised_listeners)? {
        return Ok(url);
    }
    if !config.advertised_pulsar.is_empty() {
        return Ok(format!("pulsar://{}", config.advertised_pulsar));
    }
    let cluster = call.broker.metadata().get_cluster(&config.cluster).await?;
    let url = cluster.and_then(|cluster| cluster.value.broker_service_url).unwrap_or_default();
    let port = url.rsplit_once(':').and_then(|(_, port)| port.trim_end_matches('/').parse::<u16>().ok());
    Ok(format!("pulsar://{}:{}", host_only(&call.host), port.unwrap_or(DEFAULT_PORT)))
}

/// The URL of the listener that the client names.
fn at_listener(call: &Call, listeners: &BTreeMap<String, String>) -> Result<Option<String>> {
    let Some(listener) = call.query("listenerName").filter(|listener| !listener.is_empty()) else { return Ok(None) };
    let unknown = || format!("the broker has no listener {listener}");
    let url = listeners.get(listener).cloned();
    url.map(Some).ok_or_else(|| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, unknown()))
}

fn http_url(call: &Call) -> String {
    let advertised = call.broker.config().advertised_http.as_str();
    let everywhere = ["0.0.0.0:", "[::]:"].iter().any(|prefix| advertised.starts_with(prefix));
    format!("http://{}", if everywhere && !call.host.is_empty() { &call.host } else { advertised })
}

/// A host without its port; an IPv6 address keeps its brackets.
fn host_only(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The hash range that the topic is in.
async fn bundle(call: &Call, name: &TopicName) -> Result<Answer> {
    let policies = call.broker.namespace_policies(name.namespace()).await?;
    Ok(Answer::Text(policies.bundle_range(topic_hash(name.as_str())).to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_their_port() {
        for (host, name) in [("h:80", "h"), ("h", "h"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")] {
            assert_eq!(host_only(host), name);
        }
    }
}
