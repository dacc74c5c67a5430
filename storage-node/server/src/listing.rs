//! What is here, for whoever compares it with metadata.

use std::collections::BTreeSet;

use bytes::Bytes;
use geminga_log::ReadError;

use crate::node::StorageNode;

/// What is given of an entry at most.
const HEAD_BYTES: usize = 4096;

/// A ledger of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerSummary {
    pub ledger: u64,
    /// Different ones that are here.
    pub entries: u64,
    pub first_and_last: Option<(u64, u64)>,
    pub is_fenced: bool,
    /// On disk.
    pub bytes: u64,
    /// The beginning of its first entry, with the head that BookKeeper gives it; empty if it was not asked for.
    pub head: Bytes,
    /// Metadata did not know it when they were older than storage.
    pub is_doubtful: bool,
    /// What could not be read, of which nothing is known then.
    pub unreadable: Option<String>,
}

impl StorageNode {
    /// Ids of all ledgers, in order.
    pub fn ledgers(&self) -> Vec<u64> {
        self.log.ledgers()
    }

    /// The ledgers that are doubtful from now on.
    pub(crate) fn set_doubtful(&self, ledgers: BTreeSet<u64>) {
        *self.doubtful.lock() = ledgers;
    }

    /// Nothing if it is not here. Blocks.
    pub fn summary(&self, ledger: u64, with_head: bool) -> Option<LedgerSummary> {
        let mut summary = LedgerSummary {
            ledger,
            is_fenced: self.log.replica(ledger).is_some_and(|(is_fenced, _)| is_fenced),
            bytes: self.log.ledger_bytes(ledger),
            is_doubtful: self.doubtful.lock().contains(&ledger),
            ..LedgerSummary::default()
        };
        match self.complete(&mut summary, with_head) {
            Ok(()) => {}
            Err(ReadError::NoSuchLedger { .. }) => return None,
            Err(error) => summary.unreadable = Some(error.to_string()),
        }
        Some(summary)
    }

    fn complete(&self, summary: &mut LedgerSummary, with_head: bool) -> Result<(), ReadError> {
        let stretches = self.log.stretches(summary.ledger)?;
        summary.entries = stretches.iter().map(|(_, count)| count).sum();
        let (first, last) = match (stretches.first(), stretches.last()) {
            (Some((first, _)), Some((start, count))) => (*first, start + count - 1),
            _ => return Ok(()),
        };
        summary.first_and_last = Some((first, last));
        if with_head {
            let entry = self.log.read(summary.ledger, first)?;
            // A copy, so that a large entry is not held for its beginning.
            summary.head = Bytes::copy_from_slice(&entry[..entry.len().min(HEAD_BYTES)]);
        }
        Ok(())
    }
}
