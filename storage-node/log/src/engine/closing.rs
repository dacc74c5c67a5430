//! Ledgers that take no more entries though no record says so yet.

use rustc_hash::FxHashMap;

use crate::error::AppendError;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its fence or tombstone is on its way.
    Ending,
    /// A write to it failed or was refused: there must never be a gap before an acknowledged entry.
    Failed,
}

/// See the module's head. A fence or deletion that is durable settles it.
#[derive(Default)]
pub(super) struct Closing(FxHashMap<u64, Why>);

impl Closing {
    pub fn end(&mut self, ledger: u64) {
        self.0.insert(ledger, Why::Ending);
    }

    pub fn fail(&mut self, ledgers: impl IntoIterator<Item = u64>) {
        for ledger in ledgers {
            self.0.entry(ledger).or_insert(Why::Failed);
        }
    }

    pub fn settled(&mut self, ledger: u64) {
        self.0.remove(&ledger);
    }

    pub fn contains(&self, ledger: u64) -> bool {
        self.0.contains_key(&ledger)
    }

    /// "Fenced" is only what somebody else did: a writer that hears it has lost its place.
    pub fn check(&self, ledger: u64) -> Result<(), AppendError> {
        match self.0.get(&ledger) {
            None => Ok(()),
            Some(Why::Ending) => Err(AppendError::Fenced),
            Some(Why::Failed) => Err(AppendError::GivenUp),
        }
    }
}
