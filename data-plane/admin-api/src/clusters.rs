//! `/admin/v2/clusters`

use geminga_metadata::ClusterData;
use serde_json::json;

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let broker = &call.broker;
    match (call.method(), path) {
        ("GET", []) => Answer::json(broker.metadata().list_clusters().await?),
        ("GET", [name]) => Answer::json(described(get(call, name).await?)),
        ("PUT", [name]) => {
            broker.create_cluster(name, &call.json()?).await?;
            Ok(Answer::Unset)
        }
        ("POST", [name]) => {
            let data: ClusterData = call.json()?;
            broker.update_cluster(name, move |cluster| cluster.clone_from(&data)).await?;
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
                if broker.metadata().get_cluster(peer).await?.is_none() {
                    return Err(ApiError::precondition(format!("Peer cluster {peer} does not exist")));
                }
            }
            broker.update_cluster(name, move |cluster| cluster.peer_cluster_names = Some(peers.clone())).await?;
            Ok(Answer::Nothing)
        }
        ("GET", [name, "failureDomains"]) => {
            get(call, name).await?;
            Ok(Answer::Json(json!({})))
        }
        ("GET", [name, "namespaceIsolationPolicies"]) => {
            Err(ApiError::not_found(format!("NamespaceIsolationPolicies for cluster {name} does not exist")))
        }
        _ => call.unsupported(),
    }
}

/// A cluster as it is shown: with the flags that clients expect to be there.
fn described(mut cluster: ClusterData) -> ClusterData {
    for flag in ["brokerClientTlsEnabled", "tlsAllowInsecureConnection", "brokerClientTlsEnabledWithKeyStore"] {
        cluster.extra.entry(flag).or_insert(false.into());
    }
    cluster
}

async fn get(call: &Call, name: &str) -> Result<ClusterData> {
    let found = call.broker.metadata().get_cluster(name).await?;
    found.map(|cluster| cluster.value).ok_or_else(|| ApiError::not_found("Cluster does not exist"))
}
