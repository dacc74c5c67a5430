//! The log as a synchronous engine over a [`Disk`]: no thread, no clock. [`crate::Log`] puts threads around it, the
//! simulation drives it directly.
//!
//! Order of locks: `writer`, then `catalog`, then `cache`. None is held while the disk is written, except by
//! [`Engine::begin`] when it has to open a segment that was not prepared.

mod batch;
mod catalog;
mod closing;
mod commit;
mod compact;
mod copies;
mod forgetting;
mod maintain;
mod read;
mod recovery;
mod scan;
mod scrub;
mod zero;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Condvar, Mutex, RwLock};

pub use batch::{Admission, Append, Done, FenceDone, Request};
pub use commit::{Begin, Commit, Outcome};
pub use compact::CompactionPlan;
pub use recovery::RecoveryReport;
pub use scrub::Scrubbed;
pub use zero::{ZeroFirst, Zeros};

use crate::buffer::ReadBuffers;
use crate::disk::Disk;
use crate::index::cache::IndexCache;
use crate::options::LogOptions;
use catalog::Catalog;
use commit::Writer;

pub struct Engine<D: Disk> {
    disk: D,
    options: LogOptions,
    catalog: RwLock<Catalog<D::File>>,
    cache: Mutex<IndexCache>,
    writer: Mutex<Writer<D::File>>,
    /// Told when [`Writer::zeroing`] has come to its end.
    zeroed: Condvar,
    /// Files that were segments and can become new ones.
    spares: Mutex<Vec<String>>,
    /// Only the reserve is left.
    full: AtomicBool,
    /// Less than a quarter of the disk is free, and less than a sixteenth.
    short: AtomicBool,
    scarce: AtomicBool,
    pending: maintain::Pending<D::File>,
    read_buffers: ReadBuffers,
    /// How often something was read.
    reads: AtomicU64,
}

/// A segment file, as long as anyone reads or writes it.
pub(crate) struct Segment<F> {
    pub id: u32,
    pub kind: crate::format::SegmentKind,
    pub file: F,
}

pub(crate) type SharedSegment<F> = Arc<Segment<F>>;

fn segment_name(id: u32) -> String {
    format!("segment-{id:08x}")
}

pub(crate) fn segment_id(name: &str) -> Option<u32> {
    id_after("segment-", name)
}

fn spare_name(id: u32) -> String {
    format!("spare-{id:08x}")
}

/// The id of the segment that a spare file was.
fn spare_id(name: &str) -> Option<u32> {
    id_after("spare-", name)
}

fn id_after(prefix: &str, name: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// What the log holds and does, for metrics.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogStats {
    pub segments: usize,
    pub ledgers: usize,
    /// Ranges of ids of deleted ledgers, which are remembered.
    pub deleted_ranges: usize,
    /// Bytes of records, and of those that belong to ledgers which exist.
    pub data_bytes: u64,
    pub live_bytes: u64,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub index_cache_bytes: usize,
    pub open_index_bytes: usize,
    pub full: bool,
    pub read_only: bool,
    /// Places where durable records can't be read: with any of these, "no such entry" becomes "corrupt" where in doubt.
    pub holes: usize,
    pub commits: u64,
    pub committed_bytes: u64,
    pub queued_bytes: usize,
    pub failed_commits: u64,
}
