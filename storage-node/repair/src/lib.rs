//! Auto-recovery: storage nodes find by themselves which ledgers have too few copies, and make them.
//!
//! Every storage node of a cluster runs [`run`]:
//!
//! * auditor.rs: one of them at a time, by a lease, looks at which nodes are missing or to be emptied, and at all ledgers'
//!   metadata when that changes, and notes those ledgers that need a repair;
//! * self_check.rs: each node notes the ledgers of which it lacks entries itself, after a start and from time to time;
//! * worker.rs: each node takes noted ledgers, one claim at a time, and repairs them.
//!
//! What has to be done about one ledger is decided by the pure state machine of `geminga_ensemble::repair`. The lease and the
//! claims only keep nodes from doing the same work; nothing depends on them.

mod auditor;
mod claim;
mod figures;
mod nodes;
mod self_check;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::Metadata;
use geminga_replicated_ledgers::{CopyMeter, ReplicatedLedgers};
use tokio::task::JoinSet;

pub use figures::Figures;

/// Ledgers that one node repairs at the same time. They share the rate.
const WORKERS: usize = 2;

#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// The node that this is.
    pub node: String,
    /// A node that is missing for so long is given up, and what it had is copied from others.
    pub lost_after: Duration,
    /// How long a writer has to leave a node that should go, before its ledger is closed under it.
    pub open_ledger_grace: Duration,
    /// All ledgers' metadata are looked at so often although no node came or went.
    pub audit_interval: Duration,
    /// How often the node compares what it has with what it should have.
    pub self_check_interval: Duration,
    /// Copies are written at this rate at most.
    pub bytes_per_second: u64,
}

/// What all parts of one node's auto-recovery share.
struct Shared {
    metadata: Metadata,
    ledgers: ReplicatedLedgers,
    options: RepairOptions,
    meter: Arc<CopyMeter>,
    figures: Arc<Figures>,
}

/// Starts auto-recovery on a node; it goes on until what is answered is dropped.
pub fn run(
    metadata: Metadata,
    ledgers: ReplicatedLedgers,
    options: RepairOptions,
    figures: &Arc<Figures>,
) -> JoinSet<()> {
    let meter = Arc::new(CopyMeter::new(options.bytes_per_second));
    figures.show_copies(meter.clone());
    let shared = Arc::new(Shared { metadata, ledgers, options, meter, figures: figures.clone() });
    let mut tasks = JoinSet::new();
    tasks.spawn(auditor::run(shared.clone()));
    tasks.spawn(self_check::run(shared.clone()));
    let log = Arc::new(worker::Log::new(shared.clone()));
    for _ in 0..WORKERS {
        tasks.spawn(worker::run(shared.clone(), log.clone()));
    }
    tasks.spawn(async move { log.publish().await });
    tasks
}
