//! What goes into and comes out of a managed ledger.

use geminga_model::Position;
use serde::{Deserialize, Serialize};

use crate::ledger_list::LedgerSpan;

/// An entry on its way to storage; the payload is the driver's.
pub trait EntryBytes {
    /// Bytes it will take in storage.
    fn size(&self) -> usize;
    /// Messages in it (of a batch), by which the message index grows.
    fn num_messages(&self) -> u32 {
        1
    }
}

/// When a ledger is closed and the next one begun.
///
/// Pulsar's defaults (50,000 entries but not before 10 minutes, 240 minutes at most, 2 GiB) keep its ledgers small because
/// each cursor ledger and each trim depends on them. Here a ledger costs one row and one bitmap per cursor, so that only two
/// things count: how finely space is freed (a whole ledger at a time: hence 1 GiB), and how long an almost idle topic
/// keeps what everybody has read (hence 4 hours, as in Pulsar).
#[derive(Clone, Copy, Debug)]
pub struct ManagedLedgerConfig {
    pub max_ledger_bytes: u64,
    /// At most 2^31: cursors hold entry ids in 32 bits.
    pub max_ledger_entries: u64,
    pub max_ledger_age_ms: u64,
}

impl Default for ManagedLedgerConfig {
    fn default() -> ManagedLedgerConfig {
        ManagedLedgerConfig {
            max_ledger_bytes: 1 << 30,
            max_ledger_entries: 1 << 31,
            max_ledger_age_ms: 240 * 60 * 1000,
        }
    }
}

/// How long acknowledged ledgers are kept: a ledger goes when it is older than `time_ms`, or when what is behind it alone
/// exceeds `size_bytes`. -1 is without limit, 0 keeps nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub time_ms: i64,
    pub size_bytes: i64,
}

impl Retention {
    pub const NONE: Retention = Retention { time_ms: 0, size_bytes: 0 };
    pub const INFINITE: Retention = Retention { time_ms: -1, size_bytes: -1 };
}

/// What a topic's record in metadata says about its ledgers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedLedgerRecord {
    pub spans: Vec<LedgerSpan>,
    /// The last span may have grown since: its length has to be recovered (fence it, ask for its last entry).
    #[serde(default)]
    pub last_open: bool,
    /// Index of the next message; meaningless while `last_open`.
    #[serde(default)]
    pub next_index: u64,
    /// Nothing can be appended any more; the last position there ever was.
    #[serde(default)]
    pub terminated: Option<Position>,
    /// The greatest id of all ledgers that were ever in the list, as far as it was not trimmed: cursors and clients know
    /// positions in it, behind which everything new has to be.
    #[serde(default)]
    pub last_ledger: u64,
}

impl ManagedLedgerRecord {
    /// Whether it can be a record of ours. One that is not must not be served: what it says of the ledgers is not known.
    pub fn check(&self) -> Result<(), String> {
        let mut totals = (0u64, 0u64);
        for (at, span) in self.spans.iter().enumerate() {
            if at > 0 && self.spans[at - 1].ledger_id >= span.ledger_id {
                return Err(format!("ledger {} does not come after the one before it", span.ledger_id));
            }
            let sum = totals.0.checked_add(span.entries).zip(totals.1.checked_add(span.size));
            let possible = span.entries <= 1 << 32 && span.ledger_id <= i64::MAX as u64;
            let Some(sum) = sum.filter(|_| possible) else {
                return Err(format!("ledger {} has {} entries and {} bytes", span.ledger_id, span.entries, span.size));
            };
            totals = sum;
        }
        Ok(())
    }
}

/// Why a write failed, as far as that changes what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Another owner has fenced the ledger: this one must give the topic up.
    #[error("ledger was fenced by another owner")]
    Fenced,
    #[error("storage is full")]
    Full,
    #[error("could not write: {0}")]
    Failed(String),
}

/// Why entries failed that were never written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailReason {
    #[error("topic was terminated")]
    Terminated,
    #[error("could not create a ledger: {0}")]
    Create(String),
    #[error("storage refused the last ledger; another is tried in a moment")]
    Paused,
    #[error("an entry before it failed: {0}")]
    Write(#[from] WriteError),
}

/// What the driver is to do; see the module's head.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<E> {
    /// Allocate a ledger id above [`last_ledger_id`](super::ManagedLedger::last_ledger_id), save [`record_with`](super::ManagedLedger::record_with) that id by compare-and-set, then call
    /// `ledger_created` or `ledger_create_failed`.
    CreateLedger,
    /// Write to the open ledger, then call `written`; writes are handed out in order, many may be under way. `first_index` is the
    /// message index of the first entry, for its broker entry metadata.
    Write { ledger_id: u64, first_entry: i64, first_index: u64, entries: Vec<E> },
    /// Tell their producers, after those that `written` reported as failed.
    Fail { entries: Vec<E>, reason: FailReason },
    /// Save [`record`](super::ManagedLedger::record) by compare-and-set, then call `record_saved` or `record_save_failed`.
    SaveRecord,
    /// Fence a closed ledger and let go of what is held for writing it; best effort.
    Seal { ledger_id: u64, last_entry: i64 },
    /// The saved record no longer names these. Best effort: what stays is found by a sweep.
    DeleteLedgers(Vec<u64>),
}

/// What a completed write changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The last confirmed entry of the ledger, if it moved.
    pub lac: Option<Position>,
    /// Entries that became confirmed.
    pub confirmed: u64,
    /// All entries of the ledger from this one on have failed and were not reported as such before.
    pub failed_from: Option<Position>,
}

/// What the machine waits for; see [`waiting_for`](super::ManagedLedger::waiting_for).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingFor {
    /// The driver's `recovered`.
    Recovery { ledger_id: u64 },
    /// The driver's `ledger_created`.
    LedgerCreation,
    /// The driver's `record_saved`.
    RecordSave,
    /// The driver's `written`; a close or termination may wait behind it.
    Writes { ledger_id: u64, first_entry: i64 },
    /// `tick`, after saving the record failed.
    RecordSaveRetry,
}
