//! Ledgers that take no more entries though no record says so yet.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::error::AppendError;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its fence is on its way.
    Fencing,
    /// Its tombstone is on its way.
    Deleting,
    /// A write to it failed or was refused: there must never be a gap before an acknowledged entry.
    Failed,
}

/// See the module's head. A fence or deletion that is durable settles it.
#[derive(Default)]
pub(super) struct Closing {
    why: FxHashMap<u64, Why>,
    /// Replicas of which a write failed: they take entries, but something may be there that is not known.
    doubtful: FxHashSet<u64>,
}

impl Closing {
    pub fn fence(&mut self, ledger: u64) {
        self.why.insert(ledger, Why::Fencing);
    }

    pub fn delete(&mut self, ledger: u64) {
        self.why.insert(ledger, Why::Deleting);
    }

    pub fn fail(&mut self, ledgers: impl IntoIterator<Item = u64>) {
        for ledger in ledgers {
            self.why.entry(ledger).or_insert(Why::Failed);
        }
    }

    pub fn settled(&mut self, ledger: u64) {
        self.why.remove(&ledger);
        self.doubtful.remove(&ledger);
    }

    pub fn doubt(&mut self, replicas: impl IntoIterator<Item = u64>) {
        self.doubtful.extend(replicas);
    }

    /// Whether a recovery may add to it.
    pub fn allows_recovery(&self, ledger: u64) -> bool {
        self.why.get(&ledger) != Some(&Why::Deleting)
    }

    pub fn contains(&self, ledger: u64) -> bool {
        self.why.contains_key(&ledger) || self.doubtful.contains(&ledger)
    }

    /// "Fenced" is only what somebody else did: a writer that hears it has lost its place.
    pub fn check(&self, ledger: u64) -> Result<(), AppendError> {
        match self.why.get(&ledger) {
            None => Ok(()),
            Some(Why::Fencing | Why::Deleting) => Err(AppendError::Fenced),
            Some(Why::Failed) => Err(AppendError::GivenUp),
        }
    }
}
