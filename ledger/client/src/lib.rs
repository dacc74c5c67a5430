//! The broker's way to ledgers: append, read, recover and delete, whatever stores them.
//!
//! [`LedgerClient`] is the whole of what the layers above know of storage. [`EmbeddedLedgers`] serves it from the
//! storage engine in this process; a client of remote storage nodes stands behind the same trait.
//!
//! Contract of every implementation:
//! * one ledger has one writer, which numbers its entries 0, 1, 2, … without a gap;
//! * `done` of [`LedgerClient::append`] runs once, in the order of the calls for that ledger, and `Ok` means that every
//!   entry of the call survives a crash;
//! * after the first failed append to a ledger its writer gives the ledger up ([`LedgerClient::recover`], new ledger);
//! * [`LedgerClient::recover`] fences: once it has answered, no append to that ledger is acknowledged any more;
//! * "could not be read" is an error and never looks like "is not there".

mod embedded;
mod memory;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use geminga_metadata::{Metadata, Op};

pub use embedded::EmbeddedLedgers;
pub use memory::MemoryLedgers;

/// An answer that comes later.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, LedgerError>> + Send>>;

/// Called once an append is durable or has failed; runs on a thread of the storage, so it only hands over.
pub type AppendDone = Box<dyn FnOnce(Result<(), LedgerError>) + Send>;

/// The bytes of one entry, in up to two pieces that are stored one after the other.
pub type EntryParts = [Bytes; 2];

/// One entry as it was read back.
#[derive(Debug, Clone)]
pub struct StoredEntry {
    pub entry_id: u64,
    pub data: Bytes,
}

/// Who may still write when the disk is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendClass {
    /// Messages: refused once only the reserve is left.
    Message,
    /// Acknowledgements and other records that let data be freed: may use the reserve.
    Reserved,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    #[error("storage is full")]
    DiskFull,
    #[error("ledger {0} is fenced")]
    Fenced(u64),
    #[error("storage has too many bytes queued")]
    Overloaded,
    #[error("ledger {0} is not known to storage")]
    NoSuchLedger(u64),
    #[error("ledger {0} is listed, and metadata have no record of it: run 'geminga doctor' to find out what was lost")]
    NoRecord(u64),
    #[error("entry {ledger_id}:{entry_id} does not exist")]
    NoSuchEntry { ledger_id: u64, entry_id: u64 },
    #[error("ledger {ledger_id}: {detail}")]
    Corrupt { ledger_id: u64, detail: String },
    #[error("storage failed: {0}")]
    Io(String),
    #[error("storage is closed")]
    Closed,
}

pub trait LedgerClient: Send + Sync + 'static {
    /// The ledger comes into being by commits of `metadata`, which are refused once its owner is deposed. To be called before its first
    /// append. Otherwise an owner that slept meanwhile could bring a ledger into being that the next owner has recovered (as
    /// one that never was) and deleted, and write to it.
    fn owned_by(&self, _ledger_id: u64, _metadata: &Metadata) {}

    /// Queues `entries` as `first_entry`, `first_entry + 1`, … of the ledger. Never blocks.
    fn append(&self, ledger_id: u64, first_entry: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone);

    /// Entries from `first` to at most `last`, in order, ending early after `max_bytes`; at least one when it exists.
    fn read(&self, ledger_id: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>>;

    /// Fences the ledger and answers its last entry, `None` when it has none.
    fn recover(&self, ledger_id: u64) -> Pending<Option<u64>>;

    /// What is to be in metadata from the commit on that names the ledger in a list, so that a missing record is never taken for
    /// a ledger that was not begun; to be written with that commit. None where metadata know nothing of ledgers.
    fn announcement(&self, _ledger_id: u64) -> Option<Op> {
        None
    }

    /// The same as [`recover`](Self::recover) of a ledger that was announced: that there is no record of it is an error, and
    /// not a ledger without entries.
    fn recover_announced(&self, ledger_id: u64) -> Pending<Option<u64>> {
        self.recover(ledger_id)
    }

    /// Whoever wrote these ledgers will not write to them any more, and all that it appended was answered. Where they end is noted, so
    /// that the next owner has nothing to recover; what cannot be noted soon is left to recovery. Ids of other ledgers do no harm.
    fn finish(&self, _ledger_ids: Vec<u64>) -> Pending<()> {
        Box::pin(async { Ok(()) })
    }

    /// Deletes ledgers for good; those that are gone already are no error.
    fn delete(&self, ledger_ids: Vec<u64>) -> Pending<()>;

    /// Bytes stored of a ledger, about; 0 when that is not known.
    fn size(&self, ledger_id: u64) -> u64;
}
