//! Where a storage node gets what it has lost: from the other nodes of the cluster.

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError};
use geminga_replicated_ledgers::{Copy, Membership, ReplicaReader};
use geminga_storage_node::{Fetched, Fetching, Replicas};
use tokio::task::JoinSet;

/// A node that takes longer for an entry is given up.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// Copies for one node.
pub struct OtherNodes {
    id: String,
    reader: ReplicaReader,
}

impl OtherNodes {
    /// `tasks` follow which nodes there are.
    ///
    /// # Errors
    /// Metadata could not be read.
    pub async fn of(id: &str, metadata: Metadata, tasks: &mut JoinSet<()>) -> Result<Arc<Self>, MetadataError> {
        let membership = Membership::open(metadata.clone()).await?;
        tasks.spawn(membership.clone().follow(|| ()));
        let reader = ReplicaReader::new(metadata, Arc::new(membership), NODE_TIMEOUT);
        Ok(Arc::new(Self { id: id.to_owned(), reader }))
    }
}

impl Replicas for OtherNodes {
    fn fetch(&self, ledger: u64, entry: u64) -> Fetching {
        let (id, reader) = (self.id.clone(), self.reader.clone());
        Box::pin(async move {
            match reader.copy_for(&id, ledger, entry).await {
                Ok(Copy::Entry(body)) => Fetched::Entry(body),
                Ok(Copy::NoLedger | Copy::NotItsEntry) => Fetched::NotNeeded,
                Ok(Copy::Unavailable(reason)) => Fetched::Unavailable(reason),
                Err(error) => Fetched::Unavailable(error.to_string()),
            }
        })
    }
}
