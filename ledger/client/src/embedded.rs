//! Ledgers in the storage engine of this process.

use std::sync::Arc;

use bytes::Bytes;
use geminga_log::{Append, AppendError, FenceError, Log, ReadError};
use tokio::sync::Semaphore;

use crate::{AppendClass, AppendDone, EntryParts, LedgerClient, LedgerError, Pending, StoredEntry};

/// How many blocking reads may be under way at once: enough to keep a disk's queue busy.
const CONCURRENT_READS: usize = 8;

/// Serves [`LedgerClient`] from a [`Log`] without a network between.
#[derive(Clone)]
pub struct EmbeddedLedgers {
    log: Log,
    reads: Arc<Semaphore>,
}

impl EmbeddedLedgers {
    pub fn new(log: Log) -> Self {
        Self { log, reads: Arc::new(Semaphore::new(CONCURRENT_READS)) }
    }

    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Log) -> Result<T, LedgerError> + Send + 'static,
    ) -> Pending<T> {
        let (log, reads) = (self.log.clone(), self.reads.clone());
        Box::pin(async move {
            let _turn = reads.acquire().await.map_err(|_| LedgerError::Closed)?;
            tokio::task::spawn_blocking(move || work(&log))
                .await
                .map_err(|error| LedgerError::Io(format!("storage thread ended: {error}")))?
        })
    }
}

impl LedgerClient for EmbeddedLedgers {
    fn append(&self, ledger_id: u64, first_entry: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone) {
        let batch = entries
            .into_iter()
            .zip(first_entry..)
            .map(|([head, body], entry)| Append {
                ledger: ledger_id,
                entry,
                parts: [head, body, Bytes::new()],
                reserve: class == AppendClass::Reserved,
            })
            .collect();
        self.log.append(batch, Box::new(move |result| done(result.map_err(|error| append_error(ledger_id, error)))));
    }

    fn read(&self, ledger_id: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>> {
        self.blocking(move |log| {
            let entries = log.read_range(ledger_id, first, last, max_bytes).map_err(|e| read_error(ledger_id, e))?;
            Ok(entries.into_iter().map(|(entry_id, data)| StoredEntry { entry_id, data }).collect())
        })
    }

    fn recover(&self, ledger_id: u64) -> Pending<Option<u64>> {
        self.blocking(move |log| match log.fence(ledger_id) {
            Ok(last) => Ok(last),
            Err(FenceError::Unknown(error)) => Err(read_error(ledger_id, error)),
            Err(FenceError::NotDurable(error)) => Err(append_error(ledger_id, error)),
        })
    }

    fn delete(&self, ledger_ids: Vec<u64>) -> Pending<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.log.delete_ledgers(
            &ledger_ids,
            Box::new(move |result| {
                // The caller may have gone; the deletion stands all the same.
                let _ = sender.send(result.map_err(|error| append_error(0, error)));
            }),
        );
        Box::pin(async move { receiver.await.unwrap_or(Err(LedgerError::Closed)) })
    }

    fn size(&self, ledger_id: u64) -> u64 {
        self.log.ledger_bytes(ledger_id)
    }
}

fn append_error(ledger_id: u64, error: AppendError) -> LedgerError {
    match error {
        AppendError::DiskFull => LedgerError::DiskFull,
        AppendError::Fenced => LedgerError::Fenced(ledger_id),
        AppendError::Overloaded => LedgerError::Overloaded,
        AppendError::Closed => LedgerError::Closed,
        other => LedgerError::Io(other.to_string()),
    }
}

fn read_error(ledger_id: u64, error: ReadError) -> LedgerError {
    match error {
        ReadError::NoSuchLedger { .. } => LedgerError::NoSuchLedger(ledger_id),
        ReadError::NoSuchEntry { entry, .. } => LedgerError::NoSuchEntry { ledger_id, entry_id: entry },
        ReadError::Corrupt { .. } => LedgerError::Corrupt { ledger_id, detail: error.to_string() },
        other => LedgerError::Io(other.to_string()),
    }
}
