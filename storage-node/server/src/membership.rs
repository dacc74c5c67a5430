//! A node's place among the others: where it is, and that it is alive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use geminga_metadata::{Lease, LeaseOutcome, Metadata, MetadataError, StorageNodeRecord};

use crate::node::StorageNode;

/// A node that has not been heard of for so long gets no new ledgers.
const ALIVE_FOR: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(3);
/// While metadata cannot be reached.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    #[error("storage node {id} is alive in another process ({owner}): a disk must not be used twice")]
    InUse { id: String, owner: String },
    #[error("could not register with the metadata: {0}")]
    Metadata(#[from] MetadataError),
}

/// A registration that is held.
pub struct Registration {
    metadata: Metadata,
    id: String,
    record: StorageNodeRecord,
    owner: String,
    lease: Lease,
}

impl Registration {
    /// Registers the node under its id; `owner` says where it is, and of two processes at one place only one can be alive.
    /// Waits for a registration from elsewhere to expire.
    ///
    /// # Errors
    /// Another process is the node, or metadata cannot be reached.
    pub async fn open(
        metadata: Metadata,
        id: &str,
        record: StorageNodeRecord,
        owner: &str,
    ) -> Result<Self, RegistrationError> {
        let since = Instant::now();
        let lease = loop {
            match metadata.acquire_storage_node(id, owner, ALIVE_FOR).await? {
                LeaseOutcome::Acquired(lease) => break lease,
                LeaseOutcome::Held(other) if since.elapsed() > ALIVE_FOR + HEARTBEAT => {
                    return Err(RegistrationError::InUse { id: id.to_owned(), owner: other.owner });
                }
                LeaseOutcome::Held(other) => {
                    tracing::info!(id, owner = other.owner, "waiting for another process's registration to expire");
                    tokio::time::sleep(HEARTBEAT).await;
                }
            }
        };
        let before = metadata.storage_node_address(id).await?;
        if let Some(from) = before.as_ref().filter(|from| **from != record.address) {
            tracing::warn!(id, "this storage node has moved from {from} to {}", record.address);
        }
        metadata.put_storage_node(id, &record).await?;
        if before.is_none_or(|before| before != record.address) {
            warn_of_others_at(&record.address, id, &metadata).await?;
        }
        Ok(Self { metadata, id: id.to_owned(), record, owner: owner.to_owned(), lease })
    }

    /// Keeps the node alive in metadata, and says when it takes no entries. Without metadata the node goes on serving.
    pub async fn keep(mut self, node: Arc<StorageNode>) {
        loop {
            let pause = match self.beat(&node).await {
                Ok(()) => {
                    node.registered.store(true, Ordering::Relaxed);
                    HEARTBEAT
                }
                Err(error) => {
                    node.registered.store(false, Ordering::Relaxed);
                    tracing::warn!(%error, "could not say that this storage node is alive");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn beat(&mut self, node: &StorageNode) -> Result<(), MetadataError> {
        self.lease = match self.metadata.renew_storage_node(&self.lease, ALIVE_FOR).await {
            Err(MetadataError::LeaseLost { .. }) => {
                match self.metadata.acquire_storage_node(&self.id, &self.owner, ALIVE_FOR).await? {
                    LeaseOutcome::Acquired(lease) => lease,
                    LeaseOutcome::Held(other) => {
                        tracing::error!(id = self.id, owner = other.owner, "another process is this storage node");
                        return Ok(());
                    }
                }
            }
            renewed => renewed?,
        };
        let read_only = node.is_read_only();
        if read_only != self.record.read_only {
            tracing::warn!(read_only, "this storage node changes");
            let record = StorageNodeRecord { read_only, ..self.record.clone() };
            self.metadata.put_storage_node(&self.id, &record).await?;
            // Not before: what could not be written is written with the next beat.
            self.record = record;
        }
        Ok(())
    }
}

/// A disk that was swapped, or lost, looks like that.
async fn warn_of_others_at(address: &str, id: &str, metadata: &Metadata) -> Result<(), MetadataError> {
    for other in metadata.storage_node_statuses().await? {
        if other.id != id && other.record.address == address {
            tracing::warn!(
                id,
                "storage node {} was at {address} before: its disk is not here, and this is another node. What it had is copied from \
                 others once it is missed for too long, or served again if its disk comes back",
                other.id
            );
        }
    }
    Ok(())
}
