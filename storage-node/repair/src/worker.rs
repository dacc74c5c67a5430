//! A worker: takes ledgers that were noted, and repairs them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use geminga_ensemble::repair::{NodeTable, RepairReport, survey};
use geminga_ensemble::{LedgerMetadata, NodeId};
use geminga_ledger_client::LedgerError;
use geminga_metadata::{MetadataError, RepairWorkerRecord, Watch};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Shared;
use crate::claim::{self, Claim, Found, Outcome};
use crate::nodes::{self, FreeSpace};

/// How often it looks for work when there was none to be done yet, and when it may hear of some; and at the nodes while it copies.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it looks when there was none at all, if nothing is heard.
const LOOK_WITHOUT_NEWS: Duration = Duration::from_secs(10);
/// A ledger that could not be repaired is tried again after this, or after the time in which nodes are given up if that is
/// shorter; later after a quarter of the time for which it is known, up to a bound. Other nodes make it due at once.
const RETRY_AFTER: Duration = Duration::from_secs(30);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// How often the node tells the others what it does, if that has changed.
const PUBLISH_EVERY: Duration = Duration::from_secs(2);

/// What the workers of this node do and have done.
pub struct Log {
    shared: Arc<Shared>,
    since_ms: u64,
    ledgers: AtomicU64,
    doing: Mutex<BTreeMap<u64, String>>,
    free_space: FreeSpace,
}

impl Log {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            since_ms: shared.metadata.store().now_ms(),
            ledgers: AtomicU64::new(0),
            doing: Mutex::default(),
            free_space: FreeSpace::default(),
            shared,
        }
    }

    fn record(&self) -> RepairWorkerRecord {
        RepairWorkerRecord {
            since_ms: self.since_ms,
            updated_ms: 0,
            ledgers: self.ledgers.load(Ordering::Relaxed),
            entries: self.shared.meter.entries_written.load(Ordering::Relaxed),
            bytes: self.shared.meter.bytes_written.load(Ordering::Relaxed),
            doing: self.doing.lock().iter().map(|(ledger, what)| (ledger.to_string(), what.clone())).collect(),
        }
    }

    /// Tells what the node does, for as long as it runs.
    pub async fn publish(&self) {
        let mut published = RepairWorkerRecord { since_ms: self.since_ms, ..RepairWorkerRecord::default() };
        loop {
            tokio::time::sleep(PUBLISH_EVERY).await;
            let record = self.record();
            if record == published {
                continue;
            }
            let stamped = RepairWorkerRecord { updated_ms: self.shared.metadata.store().now_ms(), ..record.clone() };
            match self.shared.metadata.put_repair_worker(&self.shared.options.node, &stamped).await {
                Ok(()) => published = record,
                Err(error) => tracing::warn!(%error, "could not say what is being repaired"),
            }
        }
    }
}

/// Tells when there may be work where there was none.
struct News {
    watch: Option<Watch>,
    without: Duration,
}

impl News {
    async fn listen(shared: &Shared) -> Self {
        let is_told = shared.metadata.store().hears_other_processes();
        let watch = shared.metadata.watch_repairs().await.ok().filter(|_| is_told);
        let without = if watch.is_some() { LOOK_WITHOUT_NEWS } else { LOOK_EVERY };
        Self { watch, without: without.min(shared.options.lost_after) }
    }

    async fn wait(self) {
        match self.watch {
            Some(mut watch) => drop(tokio::time::timeout(self.without, watch.next()).await),
            None => tokio::time::sleep(self.without).await,
        }
    }
}

fn look_every(shared: &Shared) -> Duration {
    LOOK_EVERY.min(shared.options.lost_after)
}

/// Repairs one ledger after the other, for ever.
pub async fn run(shared: Arc<Shared>, log: Arc<Log>) {
    let mut cursor = 0;
    let look_every = look_every(&shared);
    loop {
        // From before the look, so that nothing is missed in between.
        let news = News::listen(&shared).await;
        let looked_at = Instant::now();
        match claim::take(&shared.metadata, &shared.options.node, &mut cursor).await {
            Ok(Found::Claim(claim)) => {
                let ledger = claim.ledger;
                log.doing.lock().insert(ledger, "begins".to_owned());
                if let Err(error) = work(&shared, &log, claim).await {
                    shared.figures.failed_repairs.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(ledger, %error, "could not repair a ledger");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                log.doing.lock().remove(&ledger);
            }
            Ok(Found::NothingDue) => tokio::time::sleep(look_every).await,
            Ok(Found::Nothing) => {
                news.wait().await;
                // Whatever is noted at the same time is looked at together.
                tokio::time::sleep(look_every.saturating_sub(looked_at.elapsed())).await;
            }
            Err(error) => {
                tracing::warn!(%error, "could not look for ledgers to repair");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Repairs a ledger, keeping the claim meanwhile, and settles it.
async fn work(shared: &Shared, log: &Log, mut claim: Claim) -> Result<(), MetadataError> {
    let began = Instant::now();
    let ledger = claim.ledger;
    // A writer that was waited for before is still, unless it is found not to be.
    let awaited_since_ms = claim.record.writer_awaited_since_ms;
    let attempt = Attempt { shared, log, ledger, lost: claim.record.lost.clone(), awaited_since_ms };
    let mut attempt = Box::pin(attempt.run());
    let (verdict, awaited_since_ms) = loop {
        tokio::select! {
            result = &mut attempt => break result?,
            () = tokio::time::sleep(claim::RENEWED_AFTER) => {
                if let Err(error) = claim.renew(&shared.metadata, &shared.options.node).await {
                    tracing::warn!(ledger, %error, "could not keep a claim");
                }
            }
        }
    };
    claim.record.writer_awaited_since_ms = awaited_since_ms;
    let outcome = match verdict {
        Verdict::Well => {
            log.ledgers.fetch_add(1, Ordering::Relaxed);
            shared.figures.repaired.record(began.elapsed());
            Outcome::Done
        }
        Verdict::Gone => Outcome::Done,
        Verdict::Blocked(reason) => {
            shared.figures.failed_repairs.fetch_add(1, Ordering::Relaxed);
            tracing::info!(ledger, reason, "a ledger is not repaired yet");
            let known_ms = shared.metadata.store().now_ms().saturating_sub(claim.record.since_ms);
            let first = RETRY_AFTER.min(shared.options.lost_after);
            let retry_after = Duration::from_millis(known_ms / 4).clamp(first, RETRY_AFTER_MAX);
            Outcome::Blocked { reason, retry_after }
        }
        Verdict::Waiting { reason, retry_after } => Outcome::Blocked { reason, retry_after },
    };
    claim.settle(&shared.metadata, outcome).await
}

/// What has become of a ledger.
enum Verdict {
    Well,
    /// It was deleted.
    Gone,
    Blocked(String),
    /// For the ledger's writer.
    Waiting {
        reason: String,
        retry_after: Duration,
    },
}

/// One attempt at a ledger.
struct Attempt<'s> {
    shared: &'s Shared,
    log: &'s Log,
    ledger: u64,
    /// Nodes that the auditor has given up.
    lost: BTreeSet<NodeId>,
    awaited_since_ms: Option<u64>,
}

impl Attempt<'_> {
    /// The verdict, and since when a writer is waited for.
    async fn run(mut self) -> Result<(Verdict, Option<u64>), MetadataError> {
        let nodes = self.nodes().await?;
        let Some(metadata) = self.metadata().await? else { return Ok((Verdict::Gone, None)) };
        let waiting = match self.writers_end(&metadata, &nodes) {
            WritersEnd::Nothing => None,
            WritersEnd::Wait { reason, retry_after } => Some(Verdict::Waiting { reason, retry_after }),
            WritersEnd::Over => {
                tracing::info!(ledger = self.ledger, "closing a ledger whose writer has not left nodes that should go");
                match self.shared.ledgers.recover_existing(self.ledger).await {
                    Ok(()) => None,
                    Err(LedgerError::NoSuchLedger(_)) => return Ok((Verdict::Gone, None)),
                    Err(error) => return Ok((Verdict::Blocked(error.to_string()), self.awaited_since_ms)),
                }
            }
        };
        let doing = |what| drop(self.log.doing.lock().insert(self.ledger, what));
        let (newest, nodes) = watch::channel(nodes);
        let repaired = tokio::select! {
            repaired = self.shared.ledgers.repair(self.ledger, nodes, &self.shared.meter, doing) => repaired,
            never = self.keep_looking(&newest) => match never {},
        };
        let verdict = match repaired {
            Ok(report) => self.judge(report).await?,
            Err(error) => Verdict::Blocked(error.to_string()),
        };
        let verdict = match (verdict, waiting) {
            (Verdict::Well, Some(waiting)) => waiting,
            (verdict, _) => verdict,
        };
        Ok((verdict, self.awaited_since_ms))
    }

    async fn nodes(&self) -> Result<NodeTable, MetadataError> {
        let statuses = self.shared.metadata.storage_node_statuses().await?;
        let free = self.log.free_space.get(&self.shared.ledgers, &statuses).await;
        Ok(nodes::table(&statuses, &self.lost, &free))
    }

    /// While copies are made: who is back needs none.
    async fn keep_looking(&self, newest: &watch::Sender<NodeTable>) -> Infallible {
        loop {
            tokio::time::sleep(look_every(self.shared)).await;
            match self.nodes().await {
                Ok(nodes) => drop(newest.send_replace(nodes)),
                Err(error) => tracing::debug!(%error, "could not look at the nodes again"),
            }
        }
    }

    async fn metadata(&self) -> Result<Option<LedgerMetadata>, MetadataError> {
        Ok(self.shared.metadata.get_ledger(self.ledger).await?.map(|found| found.value))
    }

    /// Whether the ledger's writer has to leave nodes, and has had the time to.
    fn writers_end(&mut self, metadata: &LedgerMetadata, nodes: &NodeTable) -> WritersEnd {
        let leaving = survey::writers_end(metadata, nodes);
        if leaving.is_empty() {
            self.awaited_since_ms = None;
            return WritersEnd::Nothing;
        }
        let now_ms = self.shared.metadata.store().now_ms();
        let since_ms = *self.awaited_since_ms.get_or_insert(now_ms);
        let waited = Duration::from_millis(now_ms.saturating_sub(since_ms));
        let left = self.shared.options.open_ledger_grace.saturating_sub(waited);
        if left.is_zero() {
            return WritersEnd::Over;
        }
        let names = leaving.join(", ");
        WritersEnd::Wait { reason: format!("its writer writes to {names} and has time to leave"), retry_after: left }
    }

    /// Whether the ledger is well now, by metadata and nodes as they are by now.
    async fn judge(&self, report: RepairReport) -> Result<Verdict, MetadataError> {
        if report.is_gone {
            return Ok(Verdict::Gone);
        }
        if report.copied + report.replaced > 0 {
            tracing::info!(ledger = self.ledger, ?report, "repaired a ledger");
        }
        if !report.blockers.is_empty() {
            let reasons: Vec<String> = report.blockers.iter().map(ToString::to_string).collect();
            return Ok(Verdict::Blocked(reasons.join("; ")));
        }
        let Some(metadata) = self.metadata().await? else { return Ok(Verdict::Gone) };
        let nodes = self.nodes().await?;
        Ok(match survey::flaws(&metadata, &nodes).first() {
            None => Verdict::Well,
            Some(flaw) => Verdict::Blocked(format!(
                "entries from {} on: the node in place {} is {:?}, and whoever could take it has bad copies or does not answer",
                flaw.first_entry, flaw.slot, flaw.cause
            )),
        })
    }
}

enum WritersEnd {
    Nothing,
    Wait { reason: String, retry_after: Duration },
    Over,
}
