//! Figures for whoever looks after a node.

use std::sync::atomic::{AtomicU64, Ordering};

use geminga_log::LogStats;
use geminga_observe::{family, sample};

use crate::node::StorageNode;

/// What a node has done since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub added_bytes: u64,
    pub read_bytes: u64,
    pub failed_adds: u64,
    pub failed_reads: u64,
    pub fences: u64,
}

/// How far the scrub is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Of the pass under way or the last one.
    pub segments: u64,
    pub segments_left: u64,
    pub passes: u64,
    /// When the last full pass ended, in seconds since 1970; 0 for never.
    pub last_pass_seconds: u64,
    pub read_bytes: u64,
    pub damaged_entries_found: u64,
    pub repaired_entries: u64,
    /// Entries that cannot be read and are not repaired.
    pub damaged_entries: u64,
}

/// Appends what there is to say of a log to a page of metrics.
pub fn show_log(log: &LogStats, page: &mut String) {
    let gauges = [
        ("geminga_log_segments", "Segments of the log.", log.segments as u64),
        ("geminga_log_live_bytes", "Bytes of records of ledgers that exist.", log.live_bytes),
        ("geminga_log_data_bytes", "Bytes of all records.", log.data_bytes),
        ("geminga_log_queued_bytes", "Bytes that wait to be written.", log.queued_bytes as u64),
        ("geminga_log_holes", "Places where durable records cannot be read.", log.holes as u64),
        ("geminga_log_free_bytes", "Free space of the disk, in bytes.", log.free_bytes),
        ("geminga_log_disk_bytes", "Size of the disk, in bytes.", log.total_bytes),
        ("geminga_log_full", "1: the disk takes no messages.", u64::from(log.full)),
        (
            "geminga_log_deleted_ranges",
            "Ranges of ids of deleted ledgers, which are remembered.",
            log.deleted_ranges as u64,
        ),
    ];
    let counters = [
        ("geminga_log_commits", "Group commits that were written and synced.", log.commits),
        ("geminga_log_committed_bytes", "Bytes that they wrote.", log.committed_bytes),
        ("geminga_log_failed_commits", "Group commits that failed.", log.failed_commits),
    ];
    let gauges = gauges.map(|figure| ("gauge", figure));
    for (kind, (name, help, value)) in gauges.into_iter().chain(counters.map(|figure| ("counter", figure))) {
        family(page, name, kind, help);
        sample(page, name, &[], value);
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl StorageNode {
    pub fn done(&self) -> Done {
        Done {
            added_bytes: read(&self.stats.added_bytes),
            read_bytes: read(&self.stats.read_bytes),
            failed_adds: read(&self.stats.failed_adds),
            failed_reads: read(&self.stats.failed_reads),
            fences: read(&self.stats.fences),
        }
    }

    pub fn scrub_progress(&self) -> ScrubProgress {
        let counts = &self.damage.counts;
        ScrubProgress {
            segments: read(&counts.segments),
            segments_left: read(&counts.segments_left),
            passes: read(&counts.passes),
            last_pass_seconds: read(&counts.last_pass),
            read_bytes: read(&counts.scrubbed_bytes),
            damaged_entries_found: read(&counts.found),
            repaired_entries: read(&counts.repaired),
            damaged_entries: self.damage.entries() as u64,
        }
    }
}
