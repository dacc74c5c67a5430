//! Figures for whoever looks after a node.

use std::sync::atomic::{AtomicU64, Ordering};

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
