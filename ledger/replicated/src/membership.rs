//! The storage nodes that metadata name, and which of them are alive.

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError};
use parking_lot::RwLock;

use crate::nodes::{NodeDirectory, NodeInfo};

/// How often metadata are looked at without being told to.
const REFRESH: Duration = Duration::from_secs(1);

/// A [`NodeDirectory`] that follows the registrations in metadata.
#[derive(Clone)]
pub struct Membership {
    metadata: Metadata,
    nodes: Arc<RwLock<Vec<NodeInfo>>>,
}

impl NodeDirectory for Membership {
    fn nodes(&self) -> Vec<NodeInfo> {
        self.nodes.read().clone()
    }
}

impl Membership {
    /// # Errors
    /// Metadata could not be read.
    pub async fn open(metadata: Metadata) -> Result<Self, MetadataError> {
        let membership = Self { metadata, nodes: Arc::default() };
        membership.refresh().await?;
        Ok(membership)
    }

    /// Whether anything has changed.
    async fn refresh(&self) -> Result<bool, MetadataError> {
        let mut found = Vec::new();
        for (id, record) in self.metadata.list_storage_nodes().await? {
            // Nodes that are not alive still have entries: they are known, and not chosen.
            let is_alive = self.metadata.storage_node_is_alive(&id).await?;
            found.push(NodeInfo {
                id,
                address: record.address,
                zone: record.zone,
                is_writable: is_alive && !record.read_only,
            });
        }
        let mut nodes = self.nodes.write();
        let has_changed = *nodes != found;
        *nodes = found;
        Ok(has_changed)
    }

    /// Follows the registrations until the process ends; `changed` is called when there are others.
    pub async fn follow(self, changed: impl Fn()) {
        loop {
            tokio::time::sleep(REFRESH).await;
            match self.refresh().await {
                Ok(true) => {
                    tracing::info!(nodes = ?self.nodes(), "storage nodes");
                    changed();
                }
                Ok(false) => (),
                // What is known goes on to be used.
                Err(error) => tracing::warn!(%error, "could not read which storage nodes there are"),
            }
        }
    }
}
