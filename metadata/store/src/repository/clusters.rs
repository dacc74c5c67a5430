//! Clusters: `clusters/<name>`.

use geminga_model::check_entity_name;
use serde::{Deserialize, Serialize};

use super::{Metadata, Versioned};
use crate::policies::Extra;
use crate::{Expect, MetadataError, Op};

const WHAT: &str = "cluster";
const PREFIX: &str = "clusters/";

/// Pulsar's `ClusterData`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterData {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_url_tls: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_service_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_service_url_tls: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_cluster_names: Option<Vec<String>>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Metadata {
    pub async fn create_cluster(&self, name: &str, data: &ClusterData) -> Result<(), MetadataError> {
        check_entity_name(name)?;
        self.create(WHAT, name, &format!("{PREFIX}{name}"), data, None).await.map(drop)
    }

    pub async fn get_cluster(&self, name: &str) -> Result<Option<Versioned<ClusterData>>, MetadataError> {
        self.read(&format!("{PREFIX}{name}")).await
    }

    pub async fn update_cluster<F>(&self, name: &str, change: F) -> Result<Versioned<ClusterData>, MetadataError>
    where
        F: FnMut(&mut ClusterData) -> Result<(), MetadataError> + Send,
    {
        self.update(WHAT, name, &format!("{PREFIX}{name}"), change).await
    }

    pub async fn delete_cluster(&self, name: &str) -> Result<(), MetadataError> {
        let key = format!("{PREFIX}{name}");
        self.delete(WHAT, name, &key, vec![Op::delete(&*key, Expect::Present)]).await
    }

    pub async fn list_clusters(&self) -> Result<Vec<String>, MetadataError> {
        self.list_names(PREFIX).await
    }
}
