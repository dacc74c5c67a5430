//! What a node does after a start that found something missing: see limbo.rs for what it answers meanwhile.
//!
//! *Holes* are places of its log where durable records cannot be read. They leave open which entries, fences and whole ledgers
//! there were. Until that is settled everything that is not found is "I don't know", no writer may go on with a ledger that was
//! there before, and nothing is compacted. Metadata and the other nodes settle it, ledger by ledger:
//! * Entries that this node has to have of finished fragments, and lacks, are copied from the others.
//! * A ledger that is closed is fenced here: whether it was, nobody knows, and no writer of it may be let in.
//! * A ledger that is open and may still be written to here cannot be settled: nobody else knows what was acknowledged with the
//!   help of this node. Its writer, who hears "I don't know", soon goes on elsewhere; one that has nothing to write does not,
//!   so after a while the ledger is closed by a recovery, and its writer begins another one.
//!
//! Then the holes hide nothing any more.
//!
//! A *data directory that was given up* hides only ledgers of which there is nothing here: what the other directories have is
//! whole. Of these only the open ones have to be settled, in the same way. What the others lack is too much to be copied one by
//! one: it is noted, auto-recovery copies it, and here it is only looked at from time to time which of them have everything.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::node::StorageNode;
use crate::repair::{Fetched, Replicas};

/// Pause between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Ledgers that are looked up together.
const TOGETHER: usize = 256;
/// Between two looks at what lacks entries, this many times what one takes.
const FINISH_PAUSE_TIMES: u32 = 10;

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

/// Settles what is missing, and returns when nothing is; at once if nothing was. `close_after`: ledgers that are open are
/// closed after so long.
pub async fn heal(node: Arc<StorageNode>, ledgers: Arc<dyn Ledgers>, close_after: Duration) {
    let has_holes = node.log.stats().holes > 0;
    if has_holes || !node.log.is_settled() {
        settle_all(&node, &*ledgers, has_holes, close_after).await;
    }
    finish_all(&node, &*ledgers, close_after).await;
}

async fn settle_all(node: &Arc<StorageNode>, ledgers: &dyn Ledgers, has_holes: bool, close_after: Duration) {
    let since = Instant::now();
    let pause = pause(close_after);
    let horizon = if has_holes { horizon(node, ledgers, pause).await } else { node.log.limbo_below() };
    let mut said = None;
    loop {
        let closing = since.elapsed() >= close_after;
        let round = match has_holes {
            true => round(node, ledgers, horizon, closing).await,
            false => round_of_limbo(node, ledgers, horizon, closing).await,
        };
        match round {
            Ok(Round { copied, open: 0, unavailable: 0, lacking, .. }) => match node.log.settle(horizon, &lacking) {
                Ok(()) if has_holes => {
                    return tracing::info!(copied, "what was damaged is settled: this node takes entries as ever");
                }
                Ok(()) => {
                    let ledgers = lacking.len();
                    return tracing::info!(
                        ledgers,
                        "what was given up is settled: this node takes copies of what it lacks"
                    );
                }
                Err(error) => tracing::error!(%error, "could not note that what was missing is settled"),
            },
            Ok(Round { copied, open, unavailable, reason, .. }) => {
                if said.replace((open, unavailable)) != Some((open, unavailable)) {
                    tracing::warn!(
                        copied,
                        open,
                        unavailable,
                        reason,
                        "what is missing is not settled yet: ledgers are open, or entries unavailable"
                    );
                }
            }
            Err(error) => tracing::warn!(error, "could not find out what is missing"),
        }
        tokio::time::sleep(pause).await;
    }
}

fn pause(close_after: Duration) -> Duration {
    ROUND.min(close_after.max(Duration::from_millis(100)))
}

/// Ledgers that come into being later have nothing to do with the damage.
async fn horizon(node: &StorageNode, ledgers: &dyn Ledgers, pause: Duration) -> u64 {
    loop {
        match ledgers.horizon().await {
            Ok(horizon) => {
                // Instead of all of them.
                node.log.set_limbo_below(horizon);
                return node.log.limbo_below();
            }
            Err(error) => tracing::warn!(error, "could not find out which ledgers damage may hide"),
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
    /// Ledgers of which entries are missing that others are to copy.
    lacking: BTreeSet<u64>,
}

async fn round(node: &Arc<StorageNode>, ledgers: &dyn Ledgers, horizon: u64, closing: bool) -> Result<Round, String> {
    let mut round = Round::default();
    let mut next = Some(0);
    while let Some(from) = next {
        let (duties, more) = ledgers.duties(from, TOGETHER).await?;
        next = more.filter(|next| *next < horizon);
        for duty in duties.into_iter().filter(|duty| duty.ledger < horizon) {
            if !duty.is_settled && closing {
                close(ledgers, duty.ledger).await;
            }
            // One that was just closed is looked at in the next round.
            round.open += u64::from(!duty.is_settled);
            settle(node, ledgers, &duty, &mut round).await?;
        }
    }
    Ok(round)
}

/// Of ledgers of which there is nothing here.
async fn round_of_limbo(
    node: &StorageNode,
    ledgers: &dyn Ledgers,
    horizon: u64,
    closing: bool,
) -> Result<Round, String> {
    let mut round = Round::default();
    let mut next = Some(0);
    while let Some(from) = next {
        let (duties, more) = ledgers.duties(from, TOGETHER).await?;
        next = more.filter(|next| *next < horizon);
        for duty in duties.into_iter().filter(|duty| node.log.is_in_limbo(duty.ledger)) {
            if !duty.is_settled {
                round.open += 1;
                if closing {
                    close(ledgers, duty.ledger).await;
                }
            } else if !duty.stretches.is_empty() {
                round.lacking.insert(duty.ledger);
            }
        }
    }
    Ok(round)
}

async fn close(ledgers: &dyn Ledgers, ledger: u64) {
    tracing::warn!(ledger, "closing a ledger of which this node may have lost entries");
    if let Err(error) = ledgers.close(ledger).await {
        tracing::warn!(ledger, error, "could not close a ledger");
    }
}

/// Looks from time to time which of the ledgers that lacked entries have all of them, until all have.
async fn finish_all(node: &Arc<StorageNode>, ledgers: &dyn Ledgers, close_after: Duration) {
    let mut pause = pause(close_after);
    loop {
        let unfinished = node.log.unfinished();
        if unfinished.is_empty() {
            return;
        }
        let began = Instant::now();
        match complete(node, ledgers, &unfinished).await {
            Ok(complete) if complete.is_empty() => (),
            Ok(complete) => match node.log.finish(&complete) {
                Ok(()) => tracing::info!(
                    complete = complete.len(),
                    left = node.log.unfinished_count(),
                    "ledgers of a directory that was given up have all of their entries here again"
                ),
                Err(error) => tracing::warn!(%error, "could not note which ledgers have all of their entries"),
            },
            Err(error) => tracing::warn!(error, "could not find out which ledgers lack entries"),
        }
        pause = pause.max(began.elapsed() * FINISH_PAUSE_TIMES);
        tokio::time::sleep(pause).await;
    }
}

/// Those that lack nothing, or that this node has nothing to do with any more.
async fn complete(
    node: &Arc<StorageNode>,
    ledgers: &dyn Ledgers,
    unfinished: &BTreeSet<u64>,
) -> Result<BTreeSet<u64>, String> {
    let mut complete = unfinished.clone();
    let mut next = unfinished.first().copied();
    while let Some(from) = next {
        let (duties, more) = ledgers.duties(from, TOGETHER).await?;
        for duty in duties.into_iter().filter(|duty| unfinished.contains(&duty.ledger)) {
            if !duty.is_settled || !node.lacking(duty.ledger, duty.stretches).await?.is_empty() {
                complete.remove(&duty.ledger);
            }
        }
        next = more.and_then(|more| unfinished.range(more..).next().copied());
    }
    Ok(complete)
}

async fn settle(node: &Arc<StorageNode>, ledgers: &dyn Ledgers, duty: &Duty, round: &mut Round) -> Result<(), String> {
    let ledger = duty.ledger;
    if !duty.is_settled && node.log.is_in_limbo(ledger) {
        // The first copy would fence it, and it will be closed soon.
        return Ok(());
    }
    for entry in node.lacking(ledger, duty.stretches.clone()).await? {
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
    async fn lacking(self: &Arc<Self>, ledger: u64, wanted: Vec<(u64, u64)>) -> Result<Vec<u64>, String> {
        let node = self.clone();
        let look = move || match node.log.stretches(ledger) {
            Ok(held) => without(&wanted, &held),
            Err(_) => without(&wanted, &[]),
        };
        tokio::task::spawn_blocking(look).await.map_err(|error| error.to_string())
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use geminga_log::{Log, LogOptions};
    use geminga_wire_bookkeeper::{Digest, DigestKind};

    use super::*;
    use crate::directories::{Directories, Directory};
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

    /// Ledgers 1 and 2, of which this node has to have two entries each, and the second is open until it is closed.
    #[derive(Default)]
    struct TwoLedgers {
        is_closed: AtomicBool,
    }

    impl Replicas for TwoLedgers {
        fn fetch(&self, _ledger: u64, _entry: u64) -> Fetching {
            panic!("that is left to others")
        }
    }

    impl Ledgers for TwoLedgers {
        fn horizon(&self) -> Asking<u64> {
            panic!("it is known from when the directory was given up")
        }

        fn duties(&self, from: u64, limit: usize) -> Asking<Duties> {
            let is_closed = self.is_closed.load(Ordering::Relaxed);
            let duty = |ledger, is_settled| Duty {
                ledger,
                stretches: if is_settled { vec![(0, 2)] } else { Vec::new() },
                is_settled,
                is_closed: is_settled,
            };
            let all = [duty(1, true), duty(2, is_closed), duty(70, false)];
            let duties: Vec<Duty> = all.into_iter().filter(|duty| duty.ledger >= from).take(limit).collect();
            let next = duties.last().map(|duty| duty.ledger + 1);
            Box::pin(async move { Ok((duties, next)) })
        }

        fn close(&self, ledger: u64) -> Asking<()> {
            assert_eq!(ledger, 2, "the others are closed, or came later");
            self.is_closed.store(true, Ordering::Relaxed);
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn what_was_given_up_is_settled_when_no_open_ledger_is_written_here_and_finished_when_it_is_copied() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(folder.path(), options).expect("it opens");
        let directory = Directory { path: folder.path().to_owned(), log };
        let node = StorageNode::new(Directories::new(vec![directory], 50).expect("one"), NodeOptions::new(64 << 20));
        let round = round_of_limbo(&node, &TwoLedgers::default(), 50, false).await.expect("metadata answer");
        assert_eq!((round.open, round.lacking), (1, BTreeSet::from([1])));
        let healing = tokio::spawn(heal(node.clone(), Arc::new(TwoLedgers::default()), Duration::from_millis(300)));
        let wait_until = async |is_so: &dyn Fn() -> bool| {
            let since = Instant::now();
            while !is_so() {
                assert!(since.elapsed() < Duration::from_secs(20), "waited for too long");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!node.log.is_settled());
        wait_until(&|| node.log.is_settled()).await;
        assert_eq!(node.log.unfinished(), BTreeSet::from([1, 2]));
        let copy = async |ledger: u64, entry: u64| {
            let head = Digest::new(ledger as i64, DigestKind::Crc32c, b"").entry_head(entry as i64, -1, 0, &[]);
            node.write_copy(ledger, entry, Bytes::from(head.to_vec())).await.expect("it is written");
        };
        for (ledger, entry) in [(1, 0), (2, 0), (2, 1)] {
            copy(ledger, entry).await;
        }
        wait_until(&|| node.log.unfinished() == BTreeSet::from([1])).await;
        copy(1, 1).await;
        tokio::time::timeout(Duration::from_secs(20), healing).await.expect("it ends").expect("in good order");
        assert_eq!(node.log.unfinished_count(), 0);
        node.close();
    }

    #[test]
    fn what_is_held_is_not_copied() {
        assert_eq!(without(&[(0, 4), (10, 2)], &[(1, 2), (11, 50)]), [0, 3, 10]);
        assert_eq!(without(&[(5, 2)], &[]), [5, 6]);
        assert_eq!(without(&[], &[(0, 9)]), [0; 0]);
    }
}
