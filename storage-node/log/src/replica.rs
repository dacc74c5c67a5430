//! What a node keeps, beside entries, of a ledger whose writer is somewhere else: a *replica* of the ledger.
//!
//! Its entries come in any order, with gaps and again, from writers, recoveries and re-replications that prove themselves
//! with the ledger's master key. A writer may also say how far the ledger is confirmed without adding an entry.

use crate::planted::{Bug, is_planted};

/// What the first request about a replica brings, and every other has to repeat.
pub type MasterKey = [u8; 20];

/// Ledger, last add confirmed and the longest digest.
pub const EXPLICIT_LAC_BYTES_MAX: usize = 36;

/// The end of a fence that says nothing about entries: recovery and re-replication still add some.
pub const FENCE_WITHOUT_END: u64 = u64::MAX;

/// A last add confirmed that came without an entry, with the bytes in which its writer put it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExplicitLac {
    pub last_add_confirmed: i64,
    length: u8,
    bytes: [u8; EXPLICIT_LAC_BYTES_MAX],
}

impl ExplicitLac {
    /// `None` if `body` has more than [`EXPLICIT_LAC_BYTES_MAX`].
    pub fn new(last_add_confirmed: i64, body: &[u8]) -> Option<Self> {
        let mut bytes = [0; EXPLICIT_LAC_BYTES_MAX];
        bytes.get_mut(..body.len())?.copy_from_slice(body);
        Some(Self { last_add_confirmed, length: body.len() as u8, bytes })
    }

    pub fn body(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The greater of two: it never goes back, whatever order segments are read in.
pub(crate) fn later(one: Option<ExplicitLac>, other: Option<ExplicitLac>) -> Option<ExplicitLac> {
    match (one, other) {
        (Some(one), Some(other))
            if other.last_add_confirmed >= one.last_add_confirmed || is_planted(Bug::LacGoesBack) =>
        {
            Some(other)
        }
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}
