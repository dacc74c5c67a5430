//! A ledger that this node has taken on itself to repair.

use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError, RepairClaim, RepairRecord, Versioned};
use rand::seq::SliceRandom;

/// A claim that was not renewed for so long is anybody's.
const CLAIMED_FOR: Duration = Duration::from_secs(30);
pub const RENEWED_AFTER: Duration = Duration::from_secs(10);
/// How often a claim is given back while others go on to note the ledger.
const SETTLED_AT_MOST: usize = 8;
/// Records looked at together.
const PAGE: usize = 200;

pub struct Claim {
    pub ledger: u64,
    pub record: RepairRecord,
    version: u64,
    /// Somebody has noted the ledger since it was taken, of which an attempt that was under way knew nothing.
    is_noted_again: bool,
    /// And with something that another attempt may fare better by.
    has_news: bool,
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
            value.not_before_ms = now_ms;
            match metadata.put_repair(ledger, &value, version).await {
                Ok(version) => return Ok(Found::Claim(Claim::new(ledger, value, version))),
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
    fn new(ledger: u64, record: RepairRecord, version: u64) -> Self {
        Self { ledger, record, version, is_noted_again: false, has_news: false }
    }

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
                    if !self.read_again(metadata).await? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes over what others have noted. `false`: the record is gone.
    async fn read_again(&mut self, metadata: &Metadata) -> Result<bool, MetadataError> {
        let Some(Versioned { value, version }) = metadata.get_repair(self.ledger).await? else { return Ok(false) };
        self.is_noted_again = true;
        self.has_news |= value.lost != self.record.lost || value.not_before_ms < self.record.not_before_ms;
        let writer_awaited_since_ms = self.record.writer_awaited_since_ms;
        (self.record, self.version) = (RepairRecord { writer_awaited_since_ms, ..value }, version);
        Ok(true)
    }

    /// Gives the claim back. What others have noted since it was taken is to be looked at again.
    pub async fn settle(mut self, metadata: &Metadata, outcome: Outcome) -> Result<(), MetadataError> {
        for _ in 0..SETTLED_AT_MOST {
            let settled = match &outcome {
                Outcome::Done if !self.is_noted_again => metadata.finish_repair(self.ledger, self.version).await,
                outcome => {
                    let free = self.free(outcome, metadata.store().now_ms());
                    metadata.put_repair(self.ledger, &free, self.version).await.map(drop)
                }
            };
            match settled {
                Err(error) if error.is_conflict() => {
                    if !self.read_again(metadata).await? {
                        return Ok(());
                    }
                }
                other => return other,
            }
        }
        // The claim expires by itself.
        Ok(())
    }

    /// The record for whoever takes the ledger next.
    fn free(&self, outcome: &Outcome, now_ms: u64) -> RepairRecord {
        let (blocked, not_before_ms) = match outcome {
            Outcome::Done => (None, 0),
            Outcome::Blocked { reason, .. } if self.has_news => (Some(reason.clone()), 0),
            Outcome::Blocked { reason, retry_after } => (Some(reason.clone()), now_ms + retry_after.as_millis() as u64),
        };
        RepairRecord { claim: None, blocked, not_before_ms, ..self.record.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use geminga_metadata::{ManualClock, MemoryStore};

    use super::*;

    async fn taken(metadata: &Metadata) -> Claim {
        metadata.note_repair(7, &BTreeSet::from(["x".to_owned()]), false).await.unwrap();
        match take(metadata, "me", &mut 0).await.unwrap() {
            Found::Claim(claim) => claim,
            _ => panic!("it is due"),
        }
    }

    fn metadata() -> (Metadata, ManualClock) {
        let clock = ManualClock::starting_at_ms(1000);
        (Metadata::new(Arc::new(MemoryStore::with_clock(clock.clone()))), clock)
    }

    fn blocked() -> Outcome {
        Outcome::Blocked { reason: "nobody answers".to_owned(), retry_after: Duration::from_secs(60) }
    }

    #[tokio::test]
    async fn what_is_noted_during_an_attempt_is_looked_at_again() {
        let (metadata, clock) = metadata();
        let also = BTreeSet::from(["y".to_owned()]);
        for (lost, at_once) in [(&also, false), (&BTreeSet::new(), true), (&BTreeSet::new(), false)] {
            for (is_renewed, is_done) in [(true, true), (false, true), (true, false), (false, false)] {
                let case = format!("{lost:?}, {at_once}, renewed: {is_renewed}, done: {is_done}");
                let mut claim = taken(&metadata).await;
                clock.advance_ms(10);
                metadata.note_repair(7, lost, at_once).await.unwrap();
                if is_renewed {
                    claim.renew(&metadata, "me").await.unwrap();
                }
                claim.settle(&metadata, if is_done { Outcome::Done } else { blocked() }).await.unwrap();
                let left = metadata.get_repair(7).await.unwrap().expect("it is noted still");
                assert!(left.value.claim.is_none() && lost.is_subset(&left.value.lost), "{case}: {left:?}");
                // Only what could make an attempt fare better saves one that failed from waiting.
                let is_due = is_done || at_once || !lost.is_empty();
                assert_eq!(left.value.is_due(metadata.store().now_ms()), is_due, "{case}: {left:?}");
                metadata.finish_repair(7, left.version).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_ledger_that_is_well_and_was_not_noted_again_is_forgotten() {
        let (metadata, _) = metadata();
        let mut claim = taken(&metadata).await;
        claim.renew(&metadata, "me").await.unwrap();
        claim.settle(&metadata, Outcome::Done).await.unwrap();
        assert!(metadata.get_repair(7).await.unwrap().is_none());
        let claim = taken(&metadata).await;
        claim.settle(&metadata, blocked()).await.unwrap();
        let left = metadata.get_repair(7).await.unwrap().expect("it is blocked").value;
        assert!(!left.is_due(metadata.store().now_ms()) && left.claim.is_none());
        assert_eq!(left.blocked.as_deref(), Some("nobody answers"));
    }
}
