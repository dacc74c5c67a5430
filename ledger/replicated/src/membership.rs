//! The storage nodes that metadata name, and which of them are alive.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_ensemble::placement::Place;
use geminga_metadata::{Metadata, MetadataError, StorageNodeStatus};
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
        let found = directory_of(self.metadata.storage_node_statuses().await?);
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

/// Nodes that are not alive still have entries, so they are known, and not chosen.
///
/// Where several nodes were registered with one address, the last one is there: a disk was replaced by another. The others
/// are left out, because the new disk's "no such entry" would be taken for theirs.
fn directory_of(statuses: Vec<StorageNodeStatus>) -> Vec<NodeInfo> {
    let mut latest: HashMap<String, u64> = HashMap::new();
    for status in &statuses {
        let version = latest.entry(status.record.address.clone()).or_default();
        *version = status.version.max(*version);
    }
    let is_there = |status: &StorageNodeStatus| latest[&status.record.address] == status.version;
    let info = |status: StorageNodeStatus| NodeInfo {
        is_alive: status.is_alive,
        is_draining: status.decommissioned_ms.is_some(),
        is_writable: status.is_alive && !status.record.read_only && status.decommissioned_ms.is_none(),
        id: status.id,
        address: status.record.address,
        place: Place { region: status.record.region, zone: status.record.zone },
    };
    statuses.into_iter().filter(is_there).map(info).collect()
}

#[cfg(test)]
mod tests {
    use geminga_metadata::StorageNodeRecord;

    use super::*;

    fn status(id: &str, address: &str, version: u64) -> StorageNodeStatus {
        let record = StorageNodeRecord {
            address: address.to_owned(),
            zone: "a".to_owned(),
            region: "b".to_owned(),
            read_only: false,
            control: None,
        };
        StorageNodeStatus { id: id.to_owned(), record, version, is_alive: true, decommissioned_ms: None }
    }

    #[test]
    fn a_disk_that_was_replaced_is_not_looked_for_where_the_new_one_is() {
        let draining = StorageNodeStatus { decommissioned_ms: Some(1), ..status("draining", "y:1", 3) };
        let found = directory_of(vec![status("old", "x:1", 4), status("new", "x:1", 9), draining]);
        let found: Vec<(&str, bool)> = found.iter().map(|info| (info.id.as_str(), info.is_writable)).collect();
        assert_eq!(found, [("new", true), ("draining", false)]);
    }
}
