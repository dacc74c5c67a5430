//! `/admin/v2/clusters`

use geminga_metadata::ClusterData;

use crate::call::{Answer, Call};
use crate::cluster_parts;
use crate::error::{ApiError, Result};

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", []) => Answer::json(broker.metadata().list_clusters().await?),
        ("GET", [name]) => Answer::json(described(get(call, name).await?)),
        ("PUT", [name]) => {
            let data: Option<ClusterData> = call.json_or_default()?;
            let data = data.ok_or_else(|| ApiError::bad_request("cluster data is required"))?;
            check_urls(&data)?;
            broker.create_cluster(name, &data).await?;
            Ok(Answer::Unset)
        }
        ("POST", [name]) => {
            let data: ClusterData = call.json()?;
            check_urls(&data)?;
            broker
                .update_cluster(name, move |cluster| {
                    let old = std::mem::replace(cluster, data.clone());
                    cluster_parts::keep(old, cluster);
                })
                .await?;
            Ok(Answer::Unset)
        }
        ("DELETE", [name]) => {
            broker.delete_cluster(name).await?;
            Ok(Answer::Nothing)
        }
        ("GET", [name, "peers"]) => Answer::optional(get(call, name).await?.peer_cluster_names),
        ("POST", [name, "peers"]) => {
            let peers: Vec<String> = call.json()?;
            for peer in &peers {
                if peer == name {
                    return Err(ApiError::precondition(format!("{name} itself can't be part of peer-list")));
                }
                if broker.metadata().get_cluster(peer).await?.is_none() {
                    return Err(ApiError::precondition(format!("Peer cluster {peer} does not exist")));
                }
            }
            broker.update_cluster(name, move |cluster| cluster.peer_cluster_names = Some(peers.clone())).await?;
            Ok(Answer::Nothing)
        }
        (_, [name, part @ ("failureDomains" | "namespaceIsolationPolicies"), rest @ ..]) => {
            cluster_parts::serve(call, name, part, rest).await
        }
        _ => call.unsupported(),
    }
}

/// A cluster as it is shown: with the flags that clients expect to be there.
fn described(mut cluster: ClusterData) -> ClusterData {
    cluster_parts::strip(&mut cluster);
    for kind in ["brokerClientTlsKeyStoreType", "brokerClientTlsTrustStoreType"] {
        cluster.extra.entry(kind).or_insert("JKS".into());
    }
    for flag in ["brokerClientTlsEnabled", "tlsAllowInsecureConnection", "brokerClientTlsEnabledWithKeyStore"] {
        cluster.extra.entry(flag).or_insert(false.into());
    }
    cluster
}

/// URLs that no client of the cluster could use.
fn check_urls(cluster: &ClusterData) -> Result<()> {
    let urls = [
        (&cluster.service_url, "http://", "Illegal service url, example: http://pulsar.example.com:8080"),
        (&cluster.service_url_tls, "https://", "Illegal service tls url, example: https://pulsar.example.com:8443"),
        (
            &cluster.broker_service_url,
            "pulsar://",
            "Illegal broker service url, example: pulsar://pulsar.example.com:6650",
        ),
        (
            &cluster.broker_service_url_tls,
            "pulsar+ssl://",
            "Illegal broker service tls url, example: pulsar+ssl://pulsar.example.com:6651",
        ),
    ];
    let wrong = urls.into_iter().find(|(url, scheme, _)| {
        url.as_ref().is_some_and(|url| !url.is_empty() && !url.to_ascii_lowercase().starts_with(scheme))
    });
    wrong.map_or(Ok(()), |(_, _, reason)| Err(ApiError::bad_request(reason)))
}

pub(crate) async fn get(call: &Call, name: &str) -> Result<ClusterData> {
    let found = call.broker.metadata().get_cluster(name).await?;
    found.map(|cluster| cluster.value).ok_or_else(|| ApiError::not_found("Cluster does not exist"))
}
