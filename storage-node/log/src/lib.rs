//! The storage engine of a node: one write-once segmented log of ledger entries.
//!
//! What it promises:
//! * An append is answered `Ok` after everything in it has been written and synced, never before, and never after a sync
//!   of its segment failed.
//! * After any crash every acknowledged entry is there and identical, a fenced ledger stays fenced with the same last
//!   entry, a deleted one stays deleted. What was not acknowledged may be there, from its beginning on, or not.
//! * Damage is told apart from absence: [`ReadError::Corrupt`] means "unknown", and only what was certainly never
//!   acknowledged is "no such entry". The one exception that a disk with a single copy cannot avoid: damage to the very
//!   last commit before a crash, if it hits before the next one or the mark that follows within 200 ms.
//! * Entries are written once; memory for the index is bounded; no call but the reading ones and [`Log::fence`] blocks.
//!
//! A ledger is either *whole* or a *replica* ([`Admission`]). A whole one has a single writer in this process, whose entries
//! come in ascending order; its fence says what its last entry is. Of a replica, writers elsewhere add entries in any
//! order, with gaps and again; each proves itself with the ledger's master key, and its fence only says that nobody but a
//! recovery may add any more. Ledger ids are not used again after a deletion, which is remembered for good.
//!
//! Start reading at [`Log`], then `engine/mod.rs`; the bytes on disk are in docs/formats.md.

mod buffer;
mod deleted;
pub mod disk;
pub mod engine;
mod error;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod housekeeping;
mod index;
mod log;
mod options;
mod planted;
mod replica;

pub use engine::{Admission, Append, Done, FenceDone, LogStats, RecoveryReport, Scrubbed};
pub use error::{AppendError, FenceError, OpenError, ReadError};
pub use log::Log;
pub use options::LogOptions;
pub use planted::{Bug, plant};
pub use replica::{EXPLICIT_LAC_BYTES_MAX, ExplicitLac, MasterKey};
