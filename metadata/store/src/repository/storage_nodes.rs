//! Storage nodes: `storage-nodes/<id>`. A node that is alive holds the lease `storage-node/<id>`.
//!
//! The id is that of the node's disk, not of its address: an empty disk has another, so that nobody takes it for one that has
//! what the old one had.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::{Expect, Lease, LeaseOutcome, MetadataError, Op, codec};

const PREFIX: &str = "storage-nodes/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageNodeRecord {
    /// `HOST:PORT` for brokers; may change.
    pub address: String,
    /// Nodes of one zone fail together.
    pub zone: String,
    pub region: String,
    /// It serves what it has and takes nothing new.
    #[serde(default)]
    pub read_only: bool,
}

fn lease_name(id: &str) -> String {
    format!("storage-node/{id}")
}

impl Metadata {
    pub async fn put_storage_node(&self, id: &str, record: &StorageNodeRecord) -> Result<(), MetadataError> {
        let put = Op::put(format!("{PREFIX}{id}"), codec::encode(record)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    pub async fn list_storage_nodes(&self) -> Result<Vec<(String, StorageNodeRecord)>, MetadataError> {
        let mut nodes = Vec::new();
        for id in self.list_names(PREFIX).await? {
            if let Some(found) = self.read(&format!("{PREFIX}{id}")).await? {
                nodes.push((id, found.value));
            }
        }
        Ok(nodes)
    }

    /// Says that the node is alive for `ttl` from now on. Another process that holds the lease is answered.
    pub async fn acquire_storage_node(
        &self,
        id: &str,
        owner: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, MetadataError> {
        self.store.acquire_lease(&lease_name(id), owner, ttl).await
    }

    pub async fn renew_storage_node(&self, lease: &Lease, ttl: Duration) -> Result<Lease, MetadataError> {
        self.store.renew_lease(lease, ttl).await
    }

    pub async fn storage_node_is_alive(&self, id: &str) -> Result<bool, MetadataError> {
        Ok(self.store.lease(&lease_name(id)).await?.is_some())
    }
}
