//! Where a storage node gets what it has lost: from the other nodes of the cluster.

use std::sync::Arc;
use std::time::Duration;

use geminga_ledger_client::LedgerError;
use geminga_metadata::Metadata;
use geminga_replicated_ledgers::{Copy, Membership, NodeTls, ReplicaReader, ReplicatedLedgers, ReplicationOptions};
use geminga_storage_node::{Asking, Duties, Duty, Fetched, Fetching, Ledgers, Replicas};

/// A node that takes longer for an entry is given up.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that may wait to be sent to others while a ledger is closed.
const OUTBOUND_BYTES: u64 = 16 << 20;

/// What one node may ask of the others.
pub struct OtherNodes {
    id: String,
    metadata: Metadata,
    ledgers: ReplicatedLedgers,
    reader: ReplicaReader,
}

impl OtherNodes {
    pub fn of(id: &str, metadata: Metadata, membership: Membership, tls: Option<NodeTls>) -> Arc<Self> {
        let reader = ReplicaReader::new(metadata.clone(), Arc::new(membership.clone()), NODE_TIMEOUT, tls.clone());
        let options = ReplicationOptions::of_existing(NODE_TIMEOUT, OUTBOUND_BYTES, tls);
        let ledgers = ReplicatedLedgers::new(metadata.clone(), Arc::new(membership), options);
        Arc::new(Self { id: id.to_owned(), metadata, ledgers, reader })
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

impl Ledgers for OtherNodes {
    fn horizon(&self) -> Asking<u64> {
        let metadata = self.metadata.clone();
        Box::pin(async move {
            are_current(&metadata).await?;
            metadata.fresh_ledger_id().await.map_err(|error| error.to_string())
        })
    }

    fn duties(&self, from: u64, limit: usize) -> Asking<Duties> {
        let (id, reader, metadata) = (self.id.clone(), self.reader.clone(), self.metadata.clone());
        Box::pin(async move {
            are_current(&metadata).await?;
            let (shares, next) = reader.shares_of(&id, from, limit).await.map_err(|error| error.to_string())?;
            let duty = |(ledger, share): (u64, geminga_replicated_ledgers::Share)| Duty {
                ledger,
                stretches: share.stretches,
                is_settled: share.is_settled,
                is_closed: share.is_closed,
            };
            Ok((shares.into_iter().map(duty).collect(), next))
        })
    }

    fn close(&self, ledger: u64) -> Asking<()> {
        let ledgers = self.ledgers.clone();
        Box::pin(async move {
            match ledgers.recover_existing(ledger).await {
                // It was deleted since its duties were read, and must not come back as one that was never begun.
                Ok(()) | Err(LedgerError::NoSuchLedger(_)) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}

/// Nothing is settled by metadata that are older than what some node remembers.
async fn are_current(metadata: &Metadata) -> Result<(), String> {
    match metadata.is_restored().await {
        Ok(false) => Ok(()),
        Ok(true) => Err("metadata were restored from an older dump".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use geminga_metadata::{MemoryStore, RestoredRecord, Witness};

    use super::*;

    #[tokio::test]
    async fn a_ledger_that_was_deleted_is_closed_and_does_not_come_back() {
        let metadata = Metadata::new(Arc::new(MemoryStore::default()));
        let membership = Membership::open(metadata.clone()).await.expect("metadata");
        let nodes = OtherNodes::of("node", metadata.clone(), membership, None);
        assert_eq!(nodes.close(7).await, Ok(()));
        assert!(metadata.get_ledger::<serde_json::Value>(7).await.expect("metadata").is_none());
    }

    #[tokio::test]
    async fn metadata_from_a_dump_bound_nothing_until_the_doctor_has_settled_them() {
        let metadata = Metadata::new(Arc::new(MemoryStore::default()));
        let membership = Membership::open(metadata.clone()).await.expect("metadata");
        let nodes = OtherNodes::of("node", metadata.clone(), membership, None);
        let remembered = Witness { count: 9, ..Witness::default() };
        metadata.note_restored("other", &RestoredRecord { since_ms: 1, remembered }, None).await.expect("noted");
        assert!(nodes.horizon().await.is_err() && nodes.duties(0, 9).await.is_err());
        let (name, noted) = metadata.restored().await.expect("metadata").remove(0);
        metadata.settle_restored(&name, &noted).await.expect("settled");
        assert!(nodes.horizon().await.is_ok() && nodes.duties(0, 9).await.is_ok());
    }
}
