//! A ledger that this node has taken on itself to repair.

use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError, RepairClaim, RepairRecord, Versioned};
use rand::seq::SliceRandom;

/// A claim that was not renewed for so long is anybody's.
const CLAIMED_FOR: Duration = Duration::from_secs(30);
pub const RENEWED_AFTER: Duration = Duration::from_secs(10);
/// Records looked at together.
const PAGE: usize = 200;

pub struct Claim {
    pub ledger: u64,
    pub record: RepairRecord,
    version: u64,
}

/// What a look for work has found.
pub enum Found {
    Claim(Claim),
    /// Nothing to be done now; it will be due, or others are at it.
    NothingDue,
    /// No ledger is to be repaired.
    Nothing,
}

/// What is to become of the record.
pub enum Outcome {
    /// The ledger is well.
    Done,
    /// It is not, and why; it may be tried again after so long.
    Blocked { reason: String, retry_after: Duration },
}

fn claim_of(node: &str, now_ms: u64) -> RepairClaim {
    RepairClaim { node: node.to_owned(), until_ms: now_ms + CLAIMED_FOR.as_millis() as u64 }
}

/// Takes a ledger that is due, looking from `cursor` on to the end and moving it.
pub async fn take(metadata: &Metadata, node: &str, cursor: &mut u64) -> Result<Found, MetadataError> {
    let mut is_checked = false;
    loop {
        let page = metadata.list_repairs(*cursor, PAGE).await?;
        let is_last = page.len() < PAGE;
        if page.is_empty() && *cursor == 0 {
            return Ok(Found::Nothing);
        }
        let now_ms = metadata.store().now_ms();
        let last = page.last().map(|(ledger, _)| *ledger);
        let mut due: Vec<_> = page.into_iter().filter(|(_, found)| found.value.is_due(now_ms)).collect();
        // Several nodes look at the same page.
        due.shuffle(&mut rand::rng());
        if !due.is_empty() && !is_checked {
            if metadata.is_restored().await? {
                return Ok(Found::NothingDue);
            }
            is_checked = true;
        }
        for (ledger, Versioned { mut value, version }) in due {
            value.claim = Some(claim_of(node, now_ms));
            match metadata.put_repair(ledger, &value, version).await {
                Ok(version) => return Ok(Found::Claim(Claim { ledger, record: value, version })),
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
        }
        *cursor = last.filter(|_| !is_last).map_or(0, |last| last + 1);
        if is_last {
            return Ok(Found::NothingDue);
        }
    }
}

impl Claim {
    /// Says that the work goes on, and takes over what others have noted meanwhile.
    ///
    /// # Errors
    /// Metadata could not be written. The work may go on all the same: others that begin it too do no harm.
    pub async fn renew(&mut self, metadata: &Metadata, node: &str) -> Result<(), MetadataError> {
        loop {
            self.record.claim = Some(claim_of(node, metadata.store().now_ms()));
            match metadata.put_repair(self.ledger, &self.record, self.version).await {
                Ok(version) => {
                    self.version = version;
                    return Ok(());
                }
                Err(error) if error.is_conflict() => {
                    let Some(found) = metadata.get_repair(self.ledger).await? else { return Ok(()) };
                    (self.record, self.version) = (found.value, found.version);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the claim back. What others have noted since the claim was last renewed is to be looked at again.
    pub async fn settle(mut self, metadata: &Metadata, outcome: Outcome) -> Result<(), MetadataError> {
        let written = match outcome {
            Outcome::Done => metadata.finish_repair(self.ledger, self.version).await,
            Outcome::Blocked { reason, retry_after } => {
                self.record.blocked = Some(reason);
                self.record.not_before_ms = metadata.store().now_ms() + retry_after.as_millis() as u64;
                self.record.claim = None;
                metadata.put_repair(self.ledger, &self.record, self.version).await.map(drop)
            }
        };
        match written {
            Err(error) if error.is_conflict() => {
                let Some(found) = metadata.get_repair(self.ledger).await? else { return Ok(()) };
                let free = RepairRecord { claim: None, not_before_ms: 0, ..found.value };
                match metadata.put_repair(self.ledger, &free, found.version).await {
                    // The claim expires by itself.
                    Err(error) if error.is_conflict() => Ok(()),
                    other => other.map(drop),
                }
            }
            other => other,
        }
    }
}
