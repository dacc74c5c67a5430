//! `/lookup/v2`: where a topic is served.

use geminga_broker::BrokerError;
use geminga_model::{TopicDomain, TopicName};
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
    match call.broker.lookup(&name).await {
        Err(BrokerError::NamespaceNotFound(_)) => return Err(ApiError::not_found("Namespace not found")),
        other => other?,
    }
    match (call.method(), rest) {
        ("GET", []) => {
            let native = pulsar_url(call).await?;
            Ok(Answer::Json(json!({
                "brokerUrl": native,
                "httpUrl": http_url(call),
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
    if !config.advertised_pulsar.is_empty() {
        return Ok(format!("pulsar://{}", config.advertised_pulsar));
    }
    let cluster = call.broker.metadata().get_cluster(&config.cluster).await?;
    let url = cluster.and_then(|cluster| cluster.value.broker_service_url).unwrap_or_default();
    let port = url.rsplit_once(':').and_then(|(_, port)| port.trim_end_matches('/').parse::<u16>().ok());
    Ok(format!("pulsar://{}:{}", host_only(&call.host), port.unwrap_or(DEFAULT_PORT)))
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

/// The hash range that the topic is in, by the CRC-32 of its name, as in Pulsar.
async fn bundle(call: &Call, name: &TopicName) -> Result<Answer> {
    let bundles = call.broker.namespace_policies(name.namespace()).await?.bundles;
    let boundaries = bundles.map(|bundles| bundles.boundaries).unwrap_or_default();
    let hash = u64::from(crc32(name.as_str().as_bytes()));
    let parse = |text: &String| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
    let range = boundaries.windows(2).find(|pair| {
        let (low, high) = (parse(&pair[0]), parse(&pair[1]));
        // The last range includes its end.
        hash >= low && (hash < high || (high == 0xffff_ffff && hash == high))
    });
    let range = range.ok_or_else(|| ApiError::not_found("the namespace has no bundle for this topic"))?;
    Ok(Answer::Text(format!("{}_{}", range[0], range[1])))
}

/// CRC-32 (ISO-HDLC), bit by bit: names are short.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
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

    #[test]
    fn the_hash_is_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        // Apache Pulsar 4.0.8 places this one into 0xc0000000_0xffffffff.
        assert!(crc32(b"persistent://public/default/a") >= 0xc000_0000);
    }
}
