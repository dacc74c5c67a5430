//! The auditor: which nodes are given up, and which ledgers that and other things leave with too few copies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use geminga_ensemble::placement::Place;
use geminga_ensemble::repair::survey::{self, Cause};
use geminga_ensemble::repair::{Absences, NodeTable, Standing};
use geminga_ensemble::{LedgerMetadata, NodeId};
use geminga_metadata::{AuditRecord, Lease, LeaseOutcome, MetadataError, StorageNodeStatus};

use crate::Shared;
use crate::nodes;

/// The lease of whoever audits. It says who should; two at once would note the same ledgers.
const LEASE: &str = "auditor";
const LEASE_FOR: Duration = Duration::from_secs(15);
const LEASE_RENEWED_AFTER: Duration = Duration::from_secs(5);
/// How often nodes are looked at; a quarter of the time after which they are given up if that is shorter.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Ledgers read at a time.
const PAGE: usize = 500;
/// While an audit finds something, the next one comes after this, or after this many times what the last one took.
const FOLLOW_UP: Duration = Duration::from_secs(30);
const FOLLOW_UP_TIMES: u32 = 10;

/// What the ledgers are judged by: when it changes, all are to be looked at again.
#[derive(Debug, PartialEq, Eq)]
struct Situation {
    leaving: BTreeSet<NodeId>,
    /// Nodes that could take something.
    takers: BTreeMap<NodeId, Place>,
}

impl Situation {
    fn of(nodes: &NodeTable) -> Self {
        let leaving = nodes.iter().filter(|(node, _)| nodes.must_leave(node)).map(|(node, _)| node.clone()).collect();
        let takers = nodes.iter().filter(|(_, view)| view.standing == Standing::Writable);
        Self { leaving, takers: takers.map(|(node, view)| (node.clone(), view.place.clone())).collect() }
    }
}

/// An audit that came to its end.
struct Audited {
    situation: Situation,
    at: Instant,
    took: Duration,
    /// There was something to be done, so that it pays to look again soon.
    found: bool,
}

impl Audited {
    fn is_stale(&self, situation: &Situation, interval: Duration) -> bool {
        let follow_up = FOLLOW_UP.max(self.took * FOLLOW_UP_TIMES).min(interval);
        let wait = if self.found { follow_up } else { interval };
        self.situation != *situation || self.at.elapsed() >= wait
    }
}

/// How ledgers are looked at.
struct Looking<'n> {
    nodes: &'n NodeTable,
    /// Since the last time; what could not be repaired then perhaps can.
    has_changed: bool,
}

/// Audits whenever the lease can be had, for ever.
pub async fn run(shared: Arc<Shared>) {
    loop {
        audit_in_turn(&shared).await;
        tokio::time::sleep(LEASE_FOR / 2).await;
    }
}

/// Audits for as long as this node has the lease, if it can be had now.
async fn audit_in_turn(shared: &Shared) {
    match shared.metadata.store().acquire_lease(LEASE, &shared.options.node, LEASE_FOR).await {
        Ok(LeaseOutcome::Acquired(lease)) => {
            tracing::info!("this node audits ledgers");
            let ended = Auditor::new(shared, lease).hold().await;
            tracing::info!(error = %ended, "this node does not audit ledgers any more");
        }
        Ok(LeaseOutcome::Held(_)) => (),
        Err(error) => tracing::warn!(%error, "could not ask who audits ledgers"),
    }
}

struct Auditor<'s> {
    shared: &'s Shared,
    lease: Lease,
    renewed: Instant,
    /// The beginning of its time.
    since: Instant,
    absences: Absences,
    audited: Option<Audited>,
}

impl<'s> Auditor<'s> {
    fn new(shared: &'s Shared, lease: Lease) -> Self {
        let absences = Absences::new(shared.options.lost_after);
        Self { shared, lease, renewed: Instant::now(), since: Instant::now(), absences, audited: None }
    }

    /// Audits until the lease is somebody else's.
    async fn hold(mut self) -> MetadataError {
        let pause = LOOK_EVERY.min(self.shared.options.lost_after / 4).max(Duration::from_millis(100));
        loop {
            match self.look().await {
                Ok(()) => (),
                Err(error @ MetadataError::LeaseLost { .. }) => return error,
                Err(error) => {
                    self.absences.could_not_look();
                    tracing::warn!(%error, "could not audit ledgers");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn keep_lease(&mut self) -> Result<(), MetadataError> {
        if self.renewed.elapsed() >= LEASE_RENEWED_AFTER {
            self.lease = self.shared.metadata.store().renew_lease(&self.lease, LEASE_FOR).await?;
            self.renewed = Instant::now();
        }
        Ok(())
    }

    /// Looks at the nodes, and at the ledgers if there is a reason to.
    async fn look(&mut self) -> Result<(), MetadataError> {
        self.keep_lease().await?;
        // What they say of ledgers may be from before.
        if self.shared.metadata.is_restored().await? {
            self.absences.could_not_look();
            return Ok(());
        }
        let statuses = self.shared.metadata.storage_node_statuses().await?;
        let missing = statuses.iter().filter(|status| !status.is_alive).map(|status| status.id.clone()).collect();
        let lost = self.absences.look(self.since.elapsed(), &missing);
        self.shared.figures.lost_nodes.store(lost.len() as u64, Ordering::Relaxed);
        let nodes = nodes::table(&statuses, &lost, &BTreeMap::new());
        let situation = Situation::of(&nodes);
        let interval = self.shared.options.audit_interval;
        if self.audited.as_ref().is_some_and(|audited| !audited.is_stale(&situation, interval)) {
            return Ok(());
        }
        tracing::info!(leaving = ?situation.leaving, takers = situation.takers.len(), "auditing all ledgers");
        let began = Instant::now();
        let has_changed = self.audited.as_ref().is_none_or(|audited| audited.situation != situation);
        let record = self.audit(&statuses, Looking { nodes: &nodes, has_changed }, lost).await?;
        tracing::info!(?record, "audited all ledgers");
        self.shared.figures.audited(&record, began.elapsed());
        let found = record.under_replicated + record.misplaced + record.waiting_for_writers > 0
            || record.draining.values().any(|left| *left > 0);
        self.audited = Some(Audited { situation, at: Instant::now(), took: began.elapsed(), found });
        Ok(())
    }

    /// Looks at the metadata of every ledger, notes those that need a repair, and publishes what it has seen.
    async fn audit(
        &mut self,
        statuses: &[StorageNodeStatus],
        looking: Looking<'_>,
        lost: BTreeSet<NodeId>,
    ) -> Result<AuditRecord, MetadataError> {
        let shared = self.shared;
        let metadata = &shared.metadata;
        let draining = statuses.iter().filter(|status| status.decommissioned_ms.is_some());
        let mut record = AuditRecord {
            node: self.shared.options.node.clone(),
            started_ms: metadata.store().now_ms(),
            draining: draining.map(|status| (status.id.clone(), 0)).collect(),
            lost,
            ..AuditRecord::default()
        };
        let mut next = Some(0);
        while let Some(first) = next {
            let page = metadata.scan_ledgers::<LedgerMetadata>(first, PAGE).await?;
            next = page.last().filter(|_| page.len() == PAGE).and_then(|(ledger, _)| ledger.checked_add(1));
            for (ledger, found) in page {
                let known = found.map(|found| found.value).and_then(|known| match known.check() {
                    Ok(()) => Ok(known),
                    Err(error) => {
                        Err(MetadataError::Corrupt { subject: format!("ledger {ledger}"), reason: error.to_string() })
                    }
                });
                match known {
                    Ok(known) => self.examine(ledger, &known, &looking, &mut record).await?,
                    // It hides nothing but itself, and nothing of it is touched.
                    Err(error) => tracing::error!(ledger, %error, "a ledger's metadata cannot be understood"),
                }
            }
            self.keep_lease().await?;
        }
        record.finished_ms = metadata.store().now_ms();
        metadata.put_audit(&record).await?;
        Ok(record)
    }

    async fn examine(
        &mut self,
        ledger: u64,
        metadata: &LedgerMetadata,
        looking: &Looking<'_>,
        record: &mut AuditRecord,
    ) -> Result<(), MetadataError> {
        let nodes = looking.nodes;
        record.ledgers += 1;
        for (node, left) in &mut record.draining {
            *left += u64::from(survey::depends_on(metadata, node));
        }
        let flaws = survey::flaws(metadata, nodes);
        let writers_end = survey::writers_end(metadata, nodes);
        if flaws.is_empty() && writers_end.is_empty() {
            return Ok(());
        }
        let is_short = flaws.iter().any(|flaw| flaw.cause != Cause::Misplaced);
        record.under_replicated += u64::from(is_short);
        record.misplaced += u64::from(!is_short && !flaws.is_empty());
        record.waiting_for_writers += u64::from(!writers_end.is_empty());
        let members: BTreeSet<&NodeId> = metadata.fragments.iter().flat_map(|fragment| &fragment.ensemble).collect();
        let lost = record.lost.iter().filter(|node| members.contains(node)).cloned().collect();
        // Commits may be slow, and a page has many ledgers.
        self.keep_lease().await?;
        self.shared.metadata.note_repair(ledger, &lost, looking.has_changed).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use geminga_ensemble::Quorum;
    use geminga_metadata::{ManualClock, MemoryStore, Metadata};
    use geminga_replicated_ledgers::{Membership, ReplicatedLedgers, ReplicationOptions};

    use super::*;
    use crate::{Figures, RepairOptions};

    const HOUR: Duration = Duration::from_secs(3600);

    async fn shared(metadata: &Metadata) -> Shared {
        let membership = Membership::open(metadata.clone()).await.unwrap();
        let replication = ReplicationOptions::of_existing(HOUR, 1 << 20, None);
        Shared {
            metadata: metadata.clone(),
            ledgers: ReplicatedLedgers::new(metadata.clone(), Arc::new(membership), replication),
            options: RepairOptions {
                node: "me".to_owned(),
                lost_after: HOUR,
                open_ledger_grace: HOUR,
                audit_interval: HOUR,
                self_check_interval: HOUR,
                bytes_per_second: 1,
            },
            meter: Arc::new(geminga_replicated_ledgers::CopyMeter::new(1)),
            figures: Arc::new(Figures::default()),
        }
    }

    fn ledger() -> LedgerMetadata {
        let members = ["a", "b", "c"].map(str::to_owned).into();
        LedgerMetadata::new(Quorum { ensemble: 3, write: 3, ack: 2 }, members, BTreeMap::new())
    }

    #[tokio::test]
    async fn another_node_audits_once_the_auditor_is_gone() {
        let clock = ManualClock::starting_at_ms(1);
        let metadata = Metadata::new(Arc::new(MemoryStore::with_clock(clock.clone())));
        let store = metadata.store();
        // Nobody knows its nodes any more.
        metadata.put_ledger(7, &ledger(), None).await.unwrap();
        let LeaseOutcome::Acquired(lease) = store.acquire_lease(LEASE, "other", LEASE_FOR).await.unwrap() else {
            panic!("nobody else is there")
        };
        let shared = shared(&metadata).await;
        audit_in_turn(&shared).await;
        assert!(metadata.audit().await.unwrap().is_none(), "the other one is there");
        clock.advance_ms(LEASE_FOR.as_millis() as u64 + 1);
        let audited = async {
            while metadata.audit().await.unwrap().is_none_or(|audit| audit.node != "me") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = audit_in_turn(&shared) => panic!("it goes on"),
            found = tokio::time::timeout(Duration::from_secs(10), audited) => found.expect("it audits"),
        }
        assert_eq!(metadata.list_repairs(0, 10).await.unwrap().len(), 1);
        assert!(store.renew_lease(&lease, LEASE_FOR).await.is_err(), "the other one learns of it");
    }

    #[tokio::test]
    async fn the_lease_is_kept_while_ledgers_are_noted() {
        let clock = ManualClock::starting_at_ms(1);
        let metadata = Metadata::new(Arc::new(MemoryStore::with_clock(clock.clone())));
        let shared = shared(&metadata).await;
        let store = metadata.store();
        let LeaseOutcome::Acquired(lease) = store.acquire_lease(LEASE, "me", LEASE_FOR).await.unwrap() else {
            panic!("nobody else is there")
        };
        let mut auditor = Auditor::new(&shared, lease);
        let (nodes, mut record) = (nodes::table(&[], &BTreeSet::new(), &BTreeMap::new()), AuditRecord::default());
        let looking = Looking { nodes: &nodes, has_changed: false };
        let ledger = ledger();
        // A page of them, as slowly as commits may come: all together it takes longer than the lease lasts.
        for noted in 0..5 {
            clock.advance_ms(6000);
            auditor.renewed = Instant::now().checked_sub(Duration::from_secs(6)).expect("the machine runs for longer");
            auditor.examine(noted, &ledger, &looking, &mut record).await.unwrap();
        }
        assert_eq!(metadata.list_repairs(0, 10).await.unwrap().len(), 5, "{record:?}");
        assert!(store.lease(LEASE).await.unwrap().is_some_and(|lease| lease.owner == "me"));
    }
}
