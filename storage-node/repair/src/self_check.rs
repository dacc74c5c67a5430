//! A node's own look at what it lacks.
//!
//! A node that was away has missed entries of ledgers whose metadata name it: an ack quorum had them without it. Nobody but
//! itself can tell cheaply which, so it compares its lists of entries with the metadata after a start and from time to time; soon
//! again, as long as it cannot tell of some ledgers what it has, as a data directory or a part of its log was lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use geminga_ensemble::LedgerMetadata;
use geminga_ensemble::repair::survey;
use geminga_metadata::MetadataError;

use crate::Shared;

/// After a start: the node serves by then.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// When metadata could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// While there are ledgers of which the node does not know what it has: after this, or after this many times what the last
/// look took.
const FOLLOW_UP: Duration = Duration::from_secs(30);
const FOLLOW_UP_TIMES: u32 = 10;
const PAGE: usize = 500;

/// Ledgers that this node should have something of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Checked {
    /// They lack entries here.
    short: u64,
    /// What is here of them the node does not know.
    unknown: u64,
}

/// Checks for ever.
pub async fn run(shared: Arc<Shared>) {
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        let began = Instant::now();
        let pause = match check(&shared).await {
            Ok(Checked { short, unknown }) => {
                tracing::info!(
                    ledgers = short,
                    unknown,
                    "compared what is here with what should be: so many ledgers lack entries"
                );
                shared.figures.unknown_ledgers.store(unknown, Ordering::Relaxed);
                let follow_up = FOLLOW_UP.max(began.elapsed() * FOLLOW_UP_TIMES);
                if unknown > 0 {
                    follow_up.min(shared.options.self_check_interval)
                } else {
                    shared.options.self_check_interval
                }
            }
            Err(error) => {
                tracing::warn!(%error, "could not compare what is here with what should be");
                RETRY_AFTER.min(shared.options.self_check_interval)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn check(shared: &Shared) -> Result<Checked, MetadataError> {
    let me = &shared.options.node;
    if shared.metadata.is_restored().await? {
        return Ok(Checked::default());
    }
    let (mut next, mut checked) = (Some(0), Checked::default());
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
            let Some(listing) = shared.ledgers.list_entries(ledger, me).await else {
                checked.unknown += 1;
                continue;
            };
            if survey::lacks(&metadata, me, listing.as_ref()) {
                checked.short += 1;
                shared.metadata.note_repair(ledger, &BTreeSet::new(), false).await?;
            }
        }
    }
    Ok(checked)
}
