//! What a node does after a start that found holes: places of its log where durable records cannot be read.
//!
//! Holes leave open which entries, fences and whole ledgers there were. Until that is settled everything that is not found is
//! "I don't know", no writer may go on with a ledger that was there before, and nothing is compacted. Metadata and the other
//! nodes settle it, ledger by ledger:
//! * Entries that this node has to have of finished fragments, and lacks, are copied from the others.
//! * A ledger that is closed is fenced here: whether it was, nobody knows, and no writer of it may be let in.
//! * A ledger that is open and may still be written to here cannot be settled: nobody else knows what was acknowledged with the
//!   help of this node. Its writer, who hears "I don't know", soon goes on elsewhere; one that has nothing to write does not,
//!   so after a while the ledger is closed by a recovery, and its writer begins another one.
//!
//! Then the holes hide nothing any more. Ledgers that are neither here nor in metadata stay in limbo for good if metadata had
//! given out their ids by then: a fence of theirs may be lost.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::node::StorageNode;
use crate::repair::{Fetched, Replicas};

/// Pause between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Ledgers that are looked up together.
const TOGETHER: usize = 256;

/// What this node has to have of a ledger, according to metadata.
#[derive(Debug)]
pub struct Duty {
    pub ledger: u64,
    /// First entry and number of entries, in order.
    pub stretches: Vec<(u64, u64)>,
    /// Nothing more will be written here.
    pub is_settled: bool,
    pub is_closed: bool,
}

/// Some duties, and the ledger id to go on with, if there are more.
pub type Duties = (Vec<Duty>, Option<u64>);

pub type Asking<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// What metadata know, and what is done about a ledger as a whole.
pub trait Ledgers: Replicas {
    /// A ledger id that is greater than all that were given out.
    fn horizon(&self) -> Asking<u64>;
    /// What this node has to have, of at most `limit` ledgers from this id on.
    fn duties(&self, from: u64, limit: usize) -> Asking<Duties>;
    /// Fences and closes a ledger.
    fn close(&self, ledger: u64) -> Asking<()>;
}

/// Settles what holes hide, and returns when that is done; at once if there are none. `close_after`: ledgers that are open are
/// closed after so long.
pub async fn heal(node: Arc<StorageNode>, ledgers: Arc<dyn Ledgers>, close_after: Duration) {
    if node.log.stats().holes == 0 {
        return;
    }
    let since = Instant::now();
    let pause = ROUND.min(close_after.max(Duration::from_millis(100)));
    // Ledgers that come into being later have nothing to do with the damage.
    let horizon = loop {
        match ledgers.horizon().await {
            Ok(horizon) => break horizon,
            Err(error) => tracing::warn!(error, "could not find out which ledgers damage may hide"),
        }
        tokio::time::sleep(pause).await;
    };
    // Instead of all of them.
    node.log.set_limbo_below(horizon);
    let mut said = None;
    loop {
        let closing = since.elapsed() >= close_after;
        match round(&node, &*ledgers, horizon, closing).await {
            Ok(Round { copied, open: 0, unavailable: 0, .. }) => match node.log.forgive_holes(horizon) {
                Ok(()) => {
                    return tracing::info!(copied, "what was damaged is settled: this node takes entries as ever");
                }
                Err(error) => tracing::error!(%error, "could not note that the damage is settled"),
            },
            Ok(Round { copied, open, unavailable, reason, .. }) => {
                if said.replace((open, unavailable)) != Some((open, unavailable)) {
                    tracing::warn!(
                        copied,
                        open,
                        unavailable,
                        reason,
                        "damage is not settled yet: ledgers are open, or entries unavailable"
                    );
                }
            }
            Err(error) => tracing::warn!(error, "could not find out what damage hides"),
        }
        tokio::time::sleep(pause).await;
    }
}

#[derive(Default)]
struct Round {
    copied: u64,
    open: u64,
    unavailable: u64,
    /// Of the first that is unavailable.
    reason: String,
}

async fn round(node: &Arc<StorageNode>, ledgers: &dyn Ledgers, horizon: u64, closing: bool) -> Result<Round, String> {
    let mut round = Round::default();
    let mut next = Some(0);
    while let Some(from) = next {
        let (duties, more) = ledgers.duties(from, TOGETHER).await?;
        next = more.filter(|next| *next < horizon);
        for duty in duties.into_iter().filter(|duty| duty.ledger < horizon) {
            if !duty.is_settled && closing {
                tracing::warn!(ledger = duty.ledger, "closing a ledger of which this node may have lost entries");
                if let Err(error) = ledgers.close(duty.ledger).await {
                    tracing::warn!(ledger = duty.ledger, error, "could not close a ledger");
                }
            }
            // One that was just closed is looked at in the next round.
            round.open += u64::from(!duty.is_settled);
            settle(node, ledgers, &duty, &mut round).await?;
        }
    }
    Ok(round)
}

async fn settle(node: &Arc<StorageNode>, ledgers: &dyn Ledgers, duty: &Duty, round: &mut Round) -> Result<(), String> {
    let ledger = duty.ledger;
    for entry in node.lacking(ledger, duty.stretches.clone()).await {
        match ledgers.fetch(ledger, entry).await {
            Fetched::Entry(body) => {
                node.write_copy(ledger, entry, body).await.map_err(|error| error.to_string())?;
                round.copied += 1;
            }
            // The ledger is another one than when duties were read; the next round reads them anew.
            Fetched::NotNeeded => {
                round.open += 1;
                return Ok(());
            }
            Fetched::Unavailable(reason) => {
                if round.unavailable == 0 {
                    round.reason = reason;
                }
                round.unavailable += 1;
            }
        }
    }
    if duty.is_closed && node.log.replica(ledger).is_some_and(|(is_fenced, _)| !is_fenced) {
        node.fence_closed(ledger).await?;
    }
    Ok(())
}

impl StorageNode {
    /// Entries of the stretches that the index does not have.
    async fn lacking(self: &Arc<Self>, ledger: u64, wanted: Vec<(u64, u64)>) -> Vec<u64> {
        let node = self.clone();
        let look = move || match node.log.stretches(ledger) {
            Ok(held) => without(&wanted, &held),
            Err(_) => without(&wanted, &[]),
        };
        // A thread that ended has looked at nothing; the next round does.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn fence_closed(&self, ledger: u64) -> Result<(), String> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let key = self.log.key(ledger).unwrap_or_else(crate::repair::default_key);
        self.log.fence_replica(ledger, key, Box::new(move |result| drop(sender.send(result))));
        match receiver.await {
            // What its last entry is, is what is being found out.
            Ok(Ok(_) | Err(geminga_log::FenceError::Unknown(_))) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the log is closed".to_owned()),
        }
    }
}

/// Entries of `wanted` that are in none of `held`; both in order.
fn without(wanted: &[(u64, u64)], held: &[(u64, u64)]) -> Vec<u64> {
    let is_held = |entry: u64| {
        let after = held.partition_point(|(first, _)| *first <= entry);
        after > 0 && entry - held[after - 1].0 < held[after - 1].1
    };
    wanted.iter().flat_map(|(first, count)| *first..first + count).filter(|entry| !is_held(*entry)).collect()
}

#[cfg(test)]
mod tests {
    use geminga_log::{Log, LogOptions};

    use super::*;
    use crate::node::NodeOptions;
    use crate::repair::Fetching;

    /// Of each entry it says that this node need not have it.
    struct MovedOn;

    impl Replicas for MovedOn {
        fn fetch(&self, _ledger: u64, _entry: u64) -> Fetching {
            Box::pin(async { Fetched::NotNeeded })
        }
    }

    impl Ledgers for MovedOn {
        fn horizon(&self) -> Asking<u64> {
            Box::pin(async { Ok(10) })
        }

        fn duties(&self, _from: u64, _limit: usize) -> Asking<Duties> {
            let duty = Duty { ledger: 7, stretches: vec![(0, 3)], is_settled: true, is_closed: true };
            Box::pin(async { Ok((vec![duty], None)) })
        }

        fn close(&self, _ledger: u64) -> Asking<()> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn a_ledger_of_which_the_duties_changed_is_not_settled() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(folder.path(), options).expect("it opens");
        let node = StorageNode::new(log, NodeOptions::new(64 << 20));
        let round = round(&node, &MovedOn, 10, false).await.expect("metadata answer");
        assert_eq!((round.copied, round.open, round.unavailable), (0, 1, 0));
        node.close();
    }

    #[test]
    fn what_is_held_is_not_copied() {
        assert_eq!(without(&[(0, 4), (10, 2)], &[(1, 2), (11, 50)]), [0, 3, 10]);
        assert_eq!(without(&[(5, 2)], &[]), [5, 6]);
        assert_eq!(without(&[], &[(0, 9)]), [0; 0]);
    }
}
