//! Figures of auto-recovery, under the names that BookKeeper's dashboards look for where it has the same figure
//! (`ReplicationStats` of BookKeeper 4.17).

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_metadata::AuditRecord;
use geminga_observe::{Histogram, Metrics, family, sample};
use geminga_replicated_ledgers::CopyMeter;
use parking_lot::Mutex;

#[derive(Default)]
pub struct Figures {
    /// How long each repair of a ledger took that was well afterwards.
    pub(crate) repaired: Histogram,
    pub(crate) audit_time: Histogram,
    pub(crate) failed_repairs: AtomicU64,
    pub(crate) lost_nodes: AtomicU64,
    pub(crate) checked_ledgers: AtomicU64,
    pub(crate) unknown_ledgers: AtomicU64,
    audit: Mutex<AuditRecord>,
    meter: OnceLock<Arc<CopyMeter>>,
}

impl Figures {
    pub(crate) fn audited(&self, record: &AuditRecord, took: Duration) {
        self.audit_time.record(took);
        *self.audit.lock() = record.clone();
    }

    pub(crate) fn show_copies(&self, meter: Arc<CopyMeter>) {
        let _ = self.meter.set(meter);
    }

    /// Copies of entries that this node has written to others or itself.
    pub fn entries_written(&self) -> u64 {
        self.meter.get().map_or(0, |meter| meter.entries_written.load(Ordering::Relaxed))
    }

    /// Adds the figures to a page of metrics.
    pub fn show(self: &Arc<Self>, metrics: &Metrics) {
        metrics.register(|registry| {
            let times = [
                ("replication_worker_rereplicate", "Repairs of ledgers that are well since.", &self.repaired),
                ("auditor_CHECK_ALL_LEDGERS_TIME", "Audits of all ledgers by this node.", &self.audit_time),
            ];
            times.into_iter().for_each(|(name, help, time)| registry.register(name, help, time.clone()));
        });
        let figures = self.clone();
        metrics.add_source(move |page| figures.render(page));
    }

    fn render(&self, page: &mut String) {
        let audit = self.audit.lock().clone();
        let gauges = [
            ("auditor_NUM_UNDER_REPLICATED_LEDGERS", "In this node's last audit.", audit.under_replicated),
            ("auditor_NUM_LEDGERS_CHECKED", "In this node's last audit.", audit.ledgers),
            (
                "auditor_NUM_LEDGERS_NOT_ADHERING_TO_PLACEMENT_POLICY",
                "Ledgers in fewer zones than they could be, in this node's last audit.",
                audit.misplaced,
            ),
            (
                "geminga_auditor_ledgers_waiting_for_writers",
                "Open ledgers whose writer writes to a node that should go, in this node's last audit.",
                audit.waiting_for_writers,
            ),
            (
                "geminga_auditor_lost_nodes",
                "Nodes that this node as auditor has given up.",
                self.lost_nodes.load(Ordering::Relaxed),
            ),
            (
                "geminga_repair_unknown_ledgers",
                "Ledgers of which this node could not tell what it has when it compared that with what it should have.",
                self.unknown_ledgers.load(Ordering::Relaxed),
            ),
        ];
        for (name, help, value) in gauges {
            family(page, name, "gauge", help);
            sample(page, name, &[], value);
        }
        let copies = self.meter.get();
        let copied =
            |counter: fn(&CopyMeter) -> &AtomicU64| copies.map_or(0, |meter| counter(meter).load(Ordering::Relaxed));
        let counters = [
            ("replication_worker_NUM_ENTRIES_READ", "Entries read to be copied.", copied(|meter| &meter.entries_read)),
            ("replication_worker_NUM_BYTES_READ", "Bytes of them.", copied(|meter| &meter.bytes_read)),
            (
                "replication_worker_NUM_ENTRIES_WRITTEN",
                "Copies of entries written, counted for each node.",
                copied(|meter| &meter.entries_written),
            ),
            ("replication_worker_NUM_BYTES_WRITTEN", "Bytes of them.", copied(|meter| &meter.bytes_written)),
            (
                "replication_worker_NUM_ENTRIES_UNABLE_TO_READ_FOR_REPLICATION",
                "Reads that gave no good copy, so that another node was asked.",
                copied(|meter| &meter.failed_reads),
            ),
            (
                "replication_worker_NUM_DEFER_LEDGER_LOCK_RELEASE_OF_FAILED_LEDGER",
                "Attempts after which a ledger was not well yet.",
                self.failed_repairs.load(Ordering::Relaxed),
            ),
            (
                "geminga_repair_self_checked_ledgers",
                "Ledgers of which this node has compared what it has with what it should have.",
                self.checked_ledgers.load(Ordering::Relaxed),
            ),
        ];
        for (name, help, value) in counters {
            family(page, name, "counter", help);
            sample(page, name, &[], value);
        }
    }
}
