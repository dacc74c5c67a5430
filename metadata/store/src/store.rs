use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::lease::{self, Lease, LeaseOutcome};
use crate::{MetadataError, Watch};

/// A value with the version of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub value: Bytes,
    pub version: u64,
}

/// Longest key, in bytes.
pub const KEY_LENGTH_MAX: usize = 64 * 1024;

/// Databases count in 63 bits; far below is room for ever.
const VERSION_MAX: u64 = 1 << 62;

/// What must be true of a record for a commit to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Any,
    Absent,
    /// The record exists, whatever its version.
    Present,
    Version(u64),
}

impl Expect {
    /// Whether a record with this version (none: there is no record) meets the condition.
    pub fn holds(self, version: Option<u64>) -> bool {
        match self {
            Expect::Any => true,
            Expect::Absent => version.is_none(),
            Expect::Present => version.is_some(),
            Expect::Version(expected) => version == Some(expected),
        }
    }
}

/// One step of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        expect: Expect,
        /// Watches are not told: for what is written again and again, and read by whoever wants to know.
        is_quiet: bool,
    },
    /// Deleting an absent record is no error when `expect` allows it.
    Delete { key: String, expect: Expect },
    /// Changes nothing, and refuses the commit when `expect` does not hold.
    Check { key: String, expect: Expect },
    /// Changes nothing, and refuses the commit when some key starts with `prefix`.
    CheckEmpty { prefix: String },
    /// Deletes every record whose key starts with `prefix`, which must not be empty.
    DeletePrefix { prefix: String },
    /// The commit gets a version that is above `above`: a store that was restored has given smaller ones than it once had.
    RaiseVersion { above: u64 },
}

impl Op {
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>, expect: Expect) -> Op {
        Op::Put { key: key.into(), value: value.into(), expect, is_quiet: false }
    }

    /// A put that watches are not told of.
    pub fn put_quietly(key: impl Into<String>, value: impl Into<Bytes>, expect: Expect) -> Op {
        Op::Put { key: key.into(), value: value.into(), expect, is_quiet: true }
    }

    pub fn delete(key: impl Into<String>, expect: Expect) -> Op {
        Op::Delete { key: key.into(), expect }
    }

    pub fn check(key: impl Into<String>, expect: Expect) -> Op {
        Op::Check { key: key.into(), expect }
    }

    pub fn check_empty(prefix: impl Into<String>) -> Op {
        Op::CheckEmpty { prefix: prefix.into() }
    }

    pub fn delete_prefix(prefix: impl Into<String>) -> Op {
        Op::DeletePrefix { prefix: prefix.into() }
    }

    /// The version that a commit of these steps gets in a store that has given `last`.
    pub fn version_after(last: u64, ops: &[Op]) -> u64 {
        let above = |op: &Op| if let Op::RaiseVersion { above } = op { *above } else { 0 };
        ops.iter().map(above).fold(last, u64::max) + 1
    }

    /// Refuses what no backend accepts: empty keys and prefixes, keys with a NUL, and keys above [`KEY_LENGTH_MAX`].
    pub fn validate(&self) -> Result<(), MetadataError> {
        let key = match self {
            Op::RaiseVersion { above } if *above < VERSION_MAX => return Ok(()),
            Op::RaiseVersion { above } => {
                return Err(MetadataError::Invalid(format!("{above} is no version of a metadata store")));
            }
            Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => key,
            Op::CheckEmpty { prefix } | Op::DeletePrefix { prefix } => prefix,
        };
        if key.is_empty() {
            return Err(MetadataError::Invalid("a metadata key must not be empty".into()));
        }
        if key.len() > KEY_LENGTH_MAX {
            return Err(MetadataError::Invalid(format!(
                "a metadata key of {} bytes is above the limit of {KEY_LENGTH_MAX}",
                key.len()
            )));
        }
        if key.contains('\0') {
            return Err(MetadataError::Invalid("a metadata key must not contain a NUL".into()));
        }
        Ok(())
    }
}

/// A store of versioned records, ordered by key (bytewise).
///
/// - A commit is atomic and durable when it returns. Its steps apply in order, each seeing the ones before.
/// - A commit's records get one version, greater than every version the store has given before. So a record that was
///   deleted and created again never shows a version that it had.
/// - Reads see every commit that returned before they began.
/// - A read that fails is an error, never "absent".
/// - A commit or an allocation that fails has changed nothing, unless the error is [`MetadataError::OutcomeUnknown`].
#[async_trait]
pub trait MetadataStore: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError>;

    /// At most `limit` records whose key starts with `prefix`, in order of the key, from the first key greater
    /// than `after`. Fewer than `limit` means that there are no more.
    async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, MetadataError>;

    /// Applies all steps or none. Answers the version of each put record, and 0 for the other steps.
    /// The first condition that does not hold is reported as [`MetadataError::Conflict`].
    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError>;

    /// The first of `count` (at least 1) consecutive ids that this sequence has never given and never will again.
    /// Ids start at 1 and grow; they may have gaps.
    async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError>;

    /// What [`allocate`](Self::allocate) would give now, without giving it: every id that was given is below.
    async fn next_of(&self, sequence: &str) -> Result<u64, MetadataError>;

    /// The keys under `prefix` that change from now on, except by [quiet](Op::put_quietly) puts. See [`Watch`] for what may
    /// be missed.
    async fn watch(&self, prefix: &str) -> Result<Watch, MetadataError>;

    /// Whether watches tell also of what other processes commit. Where they do not, whoever shares the store has to look.
    fn hears_other_processes(&self) -> bool {
        true
    }

    /// Milliseconds since the Unix epoch, by the store's clock, which is the same for all processes that share the
    /// store. Leases expire by it. It may step back a little, as clocks do that follow another one.
    fn now_ms(&self) -> u64;

    /// Finishes what has been asked for and lets go of files and connections. Later calls fail as unavailable.
    async fn close(&self) {}

    /// Takes the lease when nobody holds it, its holder let it expire, or `owner` holds it already.
    ///
    /// The epoch grows with every acquisition, also by the same owner: it is a new incarnation. A lease only says
    /// who should try; safety comes from fencing with the epoch or the ledger.
    async fn acquire_lease(&self, name: &str, owner: &str, ttl: Duration) -> Result<LeaseOutcome, MetadataError> {
        lease::acquire(self, name, owner, ttl).await
    }

    /// Extends a lease from now on. Fails with [`MetadataError::LeaseLost`] when it has another epoch by now.
    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease, MetadataError> {
        lease::renew(self, lease, ttl).await
    }

    /// Gives a lease up, so that others need not wait for it to expire. Not an error when it is lost already.
    async fn release_lease(&self, lease: &Lease) -> Result<(), MetadataError> {
        lease::release(self, lease).await
    }

    /// The lease as it is held now; none when it is free or expired.
    async fn lease(&self, name: &str) -> Result<Option<Lease>, MetadataError> {
        lease::holder(self, name).await
    }
}

/// The smallest string greater than every string with this prefix, as bytes; none when there is no such string.
pub fn prefix_end(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}
