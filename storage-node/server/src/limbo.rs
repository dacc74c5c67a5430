//! Which ledgers this node may have had and does not find: those of a data directory that is missing or was given up, and those
//! that damage hides. Their ids are below a bound, the next id of the metadata when that was noticed; as metadata may be an older dump,
//! it is at least what the node remembers of newer ones (witness.rs).
//!
//! The node goes through these states:
//! * **Unsettled**, from the start that finds a directory missing, is told to give one up, or finds holes in a log. Of a ledger
//!   below the bound that is nowhere here it says "I don't know" to everything, its list of entries included, and takes nothing
//!   of it: it may be fenced, and this node may be one of those that acknowledged its end. A directory that is missing and not
//!   given up leaves the node here, as it may come back.
//! * **Settled**, when healing.rs has seen that no writer may still count on what is gone: in the metadata no ledger in limbo that
//!   is open is written to here. That is written down (`settled_below` in [`Identity`](crate::Identity)). What such a ledger
//!   lacks is unknown no more, so lists of entries say what is here: auto-recovery finds out, and copies. Reads of what is not
//!   here, fences and writers are still answered "I don't know", for good: that costs nothing, and a writer that slept through
//!   the end of its ledger must not be let in. Copies are taken, also of ledgers that come to this node; a fence is written
//!   before the first one of each.
//! * **Unfinished** is a single ledger of which the node has to have entries that it lacks when it becomes settled. These are
//!   noted before. Until all of them are here, what is not stays "I don't know", although a part of the ledger is here; then
//!   the ledger is as any other. Ledgers of which copies come without that say "not here" as ever of the rest: when it was settled,
//!   metadata named other nodes for what this one may have acknowledged, and no writer was let in since.
//!
//! **Ids that brokers took before the bound, and use after it**, are of ledgers that were never here, and the node cannot know that: what
//! metadata say of a ledger looks the same if it was here, was fenced, and was lost. So their entries are refused, as those of a
//! writer that slept; the writer goes on with another node in its place, or with the two that it has until auto-recovery brings a
//! copy. That ends with the first such ledger: its process gives up the rest of the block of ids (ledger/replicated's writing.rs), and what it
//! takes then is above the bound.
//!
//! A directory that is given up later begins all of it anew, with a greater bound.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::noted::{Noted, UNFINISHED};
use crate::state_file::StateFileError;

/// See the module's head.
#[derive(Default)]
pub(crate) struct Limbo {
    below: AtomicU64,
    /// The bound is never less.
    least: u64,
    settled_below: AtomicU64,
    unfinished: Mutex<Noted>,
    /// How many there are, so that nobody waits for the lock where there are none.
    unfinished_count: AtomicUsize,
}

impl Limbo {
    pub fn new(below: u64) -> Self {
        Self { below: AtomicU64::new(below), ..Self::default() }
    }

    /// Ledgers below `least` may have been here, whatever metadata say of the ids that they gave.
    pub fn set_least(&mut self, least: u64) {
        self.least = least;
        self.below.fetch_max(least, Ordering::AcqRel);
    }

    /// What was written down before: how far the node was settled, and in these folders, which ledgers are unfinished.
    ///
    /// # Errors
    /// A note cannot be read.
    pub fn recall(&self, settled_below: u64, folders: Vec<PathBuf>) -> Result<(), StateFileError> {
        let noted = Noted::read(UNFINISHED, folders)?;
        self.unfinished_count.store(noted.ledgers().len(), Ordering::Release);
        *self.unfinished.lock() = noted;
        self.settled_below.store(settled_below, Ordering::Release);
        Ok(())
    }

    pub fn below(&self) -> u64 {
        self.below.load(Ordering::Acquire)
    }

    pub fn set_below(&self, bound: u64) {
        self.below.store(bound.max(self.least), Ordering::Release);
    }

    pub fn settled_below(&self) -> u64 {
        self.settled_below.load(Ordering::Acquire)
    }

    pub fn set_settled_below(&self, bound: u64) {
        self.settled_below.store(bound, Ordering::Release);
    }

    pub fn is_settled(&self) -> bool {
        self.settled_below() >= self.below()
    }

    pub fn is_unfinished(&self, ledger: u64) -> bool {
        self.unfinished_count() > 0 && self.unfinished.lock().ledgers().contains(&ledger)
    }

    pub fn unfinished_count(&self) -> usize {
        self.unfinished_count.load(Ordering::Acquire)
    }

    pub fn unfinished(&self) -> BTreeSet<u64> {
        self.unfinished.lock().ledgers().clone()
    }

    /// These are unfinished from now on, durably.
    ///
    /// # Errors
    /// That could not be written down.
    pub fn note_unfinished(&self, ledgers: &BTreeSet<u64>) -> Result<(), StateFileError> {
        let mut noted = self.unfinished.lock();
        let result = noted.note(ledgers);
        self.unfinished_count.store(noted.ledgers().len(), Ordering::Release);
        result
    }

    /// Of these everything is here.
    ///
    /// # Errors
    /// That could not be written down, and they stay unfinished.
    pub fn finish(&self, ledgers: &BTreeSet<u64>) -> Result<(), StateFileError> {
        let mut noted = self.unfinished.lock();
        let left = noted.ledgers().difference(ledgers).copied().collect();
        let result = noted.keep(&left);
        self.unfinished_count.store(noted.ledgers().len(), Ordering::Release);
        result
    }
}
