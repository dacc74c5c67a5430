//! A node's own look at what it lacks.
//!
//! A node that was away has missed entries of ledgers whose metadata name it: an ack quorum had them without it. Nobody but
//! itself can tell cheaply which, so it compares its lists of entries with the metadata after a start and from time to time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_ensemble::LedgerMetadata;
use geminga_ensemble::repair::survey;
use geminga_metadata::MetadataError;

use crate::Shared;

/// After a start: the node serves by then.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// When metadata could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(10);
const PAGE: usize = 500;

/// Checks for ever.
pub async fn run(shared: Arc<Shared>) {
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        let pause = match check(&shared).await {
            Ok(short) => {
                tracing::info!(
                    ledgers = short,
                    "compared what is here with what should be: so many ledgers lack entries"
                );
                shared.options.self_check_interval
            }
            Err(error) => {
                tracing::warn!(%error, "could not compare what is here with what should be");
                RETRY_AFTER.min(shared.options.self_check_interval)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How many ledgers lack entries on this node.
async fn check(shared: &Shared) -> Result<u64, MetadataError> {
    let me = &shared.options.node;
    if shared.metadata.is_restored().await? {
        return Ok(0);
    }
    let (mut next, mut short) = (Some(0), 0);
    while let Some(first) = next {
        let page = shared.metadata.scan_ledgers::<LedgerMetadata>(first, PAGE).await?;
        next = page.last().filter(|_| page.len() == PAGE).and_then(|(ledger, _)| ledger.checked_add(1));
        for (ledger, found) in page {
            // What cannot be understood the auditor complains of.
            let Ok(found) = found else { continue };
            let metadata = found.value;
            if metadata.check().is_err() || survey::stretches_of(&metadata, me).next().is_none() {
                continue;
            }
            shared.figures.checked_ledgers.fetch_add(1, Ordering::Relaxed);
            // A node that cannot tell what it has says so elsewhere; nothing follows from it here.
            let Some(listing) = shared.ledgers.list_entries(ledger, me).await else { continue };
            if survey::lacks(&metadata, me, listing.as_ref()) {
                short += 1;
                shared.metadata.note_repair(ledger, &BTreeSet::new(), false).await?;
            }
        }
    }
    Ok(short)
}
