//! Ledgers that are here and in no metadata any more.
//!
//! A ledger is in metadata before its first entry is anywhere, so one that is not there was deleted. It goes when it was missing
//! in two rounds, some time apart; where metadata could not be read, nothing goes. Nor does anything while storage has ledgers
//! with ids that metadata have not given yet: then metadata are older than storage, as after a restore.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError};

use crate::node::StorageNode;

/// Looks for garbage every `interval`, until the process ends.
pub async fn collect_garbage(node: Arc<StorageNode>, metadata: Metadata, interval: Duration) {
    let mut missing: BTreeSet<u64> = BTreeSet::new();
    loop {
        tokio::time::sleep(interval).await;
        match missing_ledgers(&node, &metadata).await {
            Ok(found) => {
                let gone: Vec<u64> = found.intersection(&missing).copied().collect();
                missing = found;
                if gone.is_empty() {
                    continue;
                }
                tracing::info!(ledgers = gone.len(), "deleting ledgers that are in no metadata");
                if let Err(error) = node.delete_ledgers(gone).await {
                    tracing::warn!(%error, "could not delete ledgers");
                }
            }
            Err(error) => {
                missing.clear();
                tracing::warn!(%error, "could not read which ledgers there are");
            }
        }
    }
}

async fn missing_ledgers(node: &StorageNode, metadata: &Metadata) -> Result<BTreeSet<u64>, MetadataError> {
    let here: BTreeSet<u64> = node.log.ledgers().into_iter().collect();
    let Some((&first, &last)) = here.first().zip(here.last()) else { return Ok(BTreeSet::new()) };
    let mut missing = here;
    let mut next = first;
    loop {
        let page = metadata.list_ledgers(next, 1000).await?;
        for ledger in &page {
            missing.remove(ledger);
        }
        match page.last() {
            Some(&end) if end < last => next = end + 1,
            _ => break,
        }
    }
    if !missing.is_empty() && metadata.fresh_ledger_id().await? <= last {
        tracing::error!(last, "metadata are older than what is stored here: no ledger is deleted");
        missing.clear();
    }
    Ok(missing)
}
