//! Group commit: commits and allocations that share a transaction of a database.

use std::collections::BTreeMap;

use async_trait::async_trait;
use geminga_metadata::{MetadataError, Op};

use crate::overlay::{Footprint, Overlay, Writes};

/// What a batch needs of an open transaction in which nobody else changes anything.
#[async_trait]
pub(crate) trait Transaction: Send {
    /// Those of the keys that exist, with their versions.
    async fn versions(&mut self, keys: &[&str]) -> Result<Vec<(String, u64)>, sqlx::Error>;

    /// The first `limit` keys under a prefix, with their versions.
    async fn versions_under(&mut self, prefix: &str, limit: usize) -> Result<Vec<(String, u64)>, sqlx::Error>;

    /// Writes what later commits of the batch are decided by.
    async fn write(&mut self, writes: &Writes) -> Result<(), sqlx::Error>;

    /// The first of `count` new ids of a sequence.
    async fn allocate(&mut self, sequence: &str, count: u64) -> Result<u64, sqlx::Error>;
}

#[derive(Default)]
pub(crate) struct Batch {
    pub commits: Vec<Vec<Op>>,
    /// Sequences and numbers of ids.
    pub allocations: Vec<(String, u64)>,
}

/// What becomes of a batch when its transaction commits.
pub(crate) struct Decision {
    /// For each commit of the batch. Each succeeds or fails on its own.
    pub commits: Vec<Result<Vec<u64>, MetadataError>>,
    /// For each allocation, its first id.
    pub allocations: Vec<u64>,
    /// Keys that watches are to be told of, with the version of the commit, in the order in which that happened.
    pub changes: Vec<(u64, String)>,
    /// The last version that was given.
    pub version: u64,
    /// What is still to be written, before the transaction ends.
    pub writes: Writes,
    /// Some record was changed, be it that nobody is told.
    has_written: bool,
}

impl Decision {
    /// Whether the transaction has written nothing, so that it need not be committed.
    pub fn is_read_only(&self) -> bool {
        !self.has_written && self.allocations.is_empty()
    }
}

impl Batch {
    /// Decides everything, and writes all but [`Decision::writes`]. `last_version` is the last one that the store has given.
    pub async fn decide(&self, transaction: &mut impl Transaction, last_version: u64) -> Result<Decision, sqlx::Error> {
        let allocations = self.allocate(transaction).await?;
        let commits = Vec::with_capacity(self.commits.len());
        let mut decision = Decision {
            commits,
            allocations,
            changes: Vec::new(),
            version: last_version,
            writes: Writes::default(),
            has_written: false,
        };
        let plain = |ops: &Vec<Op>| !Footprint::needs_prefixes(ops);
        for group in self.commits.chunk_by(|one, next| plain(one) && plain(next)) {
            transaction.write(&std::mem::take(&mut decision.writes)).await?;
            let mut overlay = load(transaction, group).await?;
            for ops in group {
                let version = Op::version_after(decision.version, ops);
                let result = overlay.apply(ops, version).map(|applied| {
                    decision.version = version;
                    decision.has_written |= applied.has_written;
                    decision.changes.extend(applied.told.into_iter().map(|key| (version, key)));
                    applied.versions
                });
                decision.commits.push(result);
            }
            decision.writes = overlay.into_writes();
        }
        Ok(decision)
    }

    /// Takes the ids of each sequence at once, and hands them out in the order of the requests.
    async fn allocate(&self, transaction: &mut impl Transaction) -> Result<Vec<u64>, sqlx::Error> {
        let mut next_ids = BTreeMap::<&str, u64>::new();
        for (sequence, count) in &self.allocations {
            *next_ids.entry(sequence).or_default() += count;
        }
        for (sequence, next) in &mut next_ids {
            *next = transaction.allocate(sequence, *next).await?;
        }
        let take = |(sequence, count): &(String, u64)| {
            let next = next_ids.get_mut(sequence.as_str()).expect("every sequence has an entry");
            *next += count;
            *next - count
        };
        Ok(self.allocations.iter().map(take).collect())
    }
}

async fn load(transaction: &mut impl Transaction, commits: &[Vec<Op>]) -> Result<Overlay, sqlx::Error> {
    let mut overlay = Overlay::default();
    let mut footprint = Footprint::default();
    commits.iter().for_each(|ops| footprint.add(ops));
    let probe_limit = footprint.probe_limit();
    footprint.keys.sort_unstable();
    footprint.keys.dedup();
    for key in &footprint.keys {
        overlay.load((*key).to_owned(), None);
    }
    if !footprint.keys.is_empty() {
        overlay.load_all(transaction.versions(&footprint.keys).await?);
    }
    for prefix in &footprint.prefixes {
        overlay.load_all(transaction.versions_under(prefix, usize::MAX).await?);
    }
    for prefix in &footprint.probes {
        overlay.load_all(transaction.versions_under(prefix, probe_limit).await?);
    }
    Ok(overlay)
}
