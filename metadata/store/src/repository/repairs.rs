//! Ledgers that are to be repaired: `repairs/<ledger>`, one record each, gone once all is well; who finds them: `audit`; and what
//! each node has done about them: `repair-workers/<node>`.
//!
//! Who works on a ledger is written into its record, for a time, so that others take another one. It is no protection: two that
//! work on the same ledger do each other no harm.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Metadata, Versioned};
use crate::{Expect, MetadataError, Op, Watch, codec};

const REPAIRS: &str = "repairs/";
const WORKERS: &str = "repair-workers/";
const AUDIT: &str = "audit";

/// Times are milliseconds since 1970, by the clock of the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRecord {
    /// When it was found.
    pub since_ms: u64,
    /// Nodes that were given up when it was found; one that is back is not taken for lost.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lost: BTreeSet<String>,
    /// Why the last attempt did not do all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
    /// Since when a writer is waited for that writes to a node which should go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer_awaited_since_ms: Option<u64>,
    /// Nobody takes it before. With a claim: when that began, or 0 if it was noted since then that things have changed.
    #[serde(default)]
    pub not_before_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<RepairClaim>,
}

/// Somebody works on it, or has stopped to and nobody noticed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairClaim {
    pub node: String,
    pub until_ms: u64,
}

impl RepairRecord {
    /// Whether it may be worked on at this time.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.not_before_ms <= now_ms && self.claim.as_ref().is_none_or(|claim| claim.until_ms <= now_ms)
    }
}

/// What one node has done since its process started, and what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairWorkerRecord {
    pub since_ms: u64,
    pub updated_ms: u64,
    pub ledgers: u64,
    pub entries: u64,
    pub bytes: u64,
    /// Each ledger that it works on, and what that waits for.
    pub doing: BTreeMap<String, String>,
}

/// What the last complete look at all ledgers has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The node that looked.
    pub node: String,
    pub started_ms: u64,
    pub finished_ms: u64,
    pub ledgers: u64,
    /// Ledgers with a copy less than they should have.
    pub under_replicated: u64,
    /// Ledgers in fewer zones than they could be.
    pub misplaced: u64,
    /// Open ledgers whose writer writes to a node that should go.
    pub waiting_for_writers: u64,
    /// Nodes that are given up.
    pub lost: BTreeSet<String>,
    /// For each node that is to be emptied, how many ledgers depend on it still.
    pub draining: BTreeMap<String, u64>,
}

pub(super) fn worker_key(node: &str) -> String {
    format!("{WORKERS}{node}")
}

fn key(ledger: u64) -> String {
    format!("{REPAIRS}{ledger:020}")
}

impl Metadata {
    /// Notes that a ledger is to be repaired, and that these nodes are lost. With `at_once` an attempt that failed before is not
    /// waited after: things have changed. Whether that was news.
    ///
    /// A record with a claim is written in any case, so that it gets another version: whoever works on the ledger has perhaps looked
    /// before there was what is noted, and learns by that to look again.
    pub async fn note_repair(
        &self,
        ledger: u64,
        lost: &BTreeSet<String>,
        at_once: bool,
    ) -> Result<bool, MetadataError> {
        loop {
            let now_ms = self.store.now_ms();
            let (record, expect, is_news) = match self.read::<RepairRecord>(&key(ledger)).await? {
                None => {
                    let record = RepairRecord {
                        since_ms: now_ms,
                        lost: lost.clone(),
                        blocked: None,
                        writer_awaited_since_ms: None,
                        not_before_ms: 0,
                        claim: None,
                    };
                    (record, Expect::Absent, true)
                }
                Some(Versioned { value, version }) => {
                    let is_news = !lost.is_subset(&value.lost) || (at_once && value.not_before_ms > now_ms);
                    if !is_news && value.claim.is_none() {
                        return Ok(false);
                    }
                    let all = value.lost.union(lost).cloned().collect();
                    // Also for who works on it: an attempt that fails is not to be waited after.
                    let is_due = is_news || at_once;
                    let not_before_ms = if is_due { 0 } else { value.not_before_ms };
                    (RepairRecord { lost: all, not_before_ms, ..value }, Expect::Version(version), is_news)
                }
            };
            match self.store.commit(vec![Op::put(key(ledger), codec::encode(&record)?, expect)]).await {
                Ok(_) => return Ok(is_news),
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells of ledgers that are to be repaired, and of what becomes of that.
    pub async fn watch_repairs(&self) -> Result<Watch, MetadataError> {
        self.store.watch(REPAIRS).await
    }

    /// At most `limit` ledgers that are to be repaired, in order, from `first` on. Fewer mean that there are no more.
    pub async fn list_repairs(
        &self,
        first: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Versioned<RepairRecord>)>, MetadataError> {
        let before = first.checked_sub(1).map(key);
        let records = self.store.scan(REPAIRS, before.as_deref(), limit).await?;
        let decoded = records.iter().map(|(key, record)| {
            let ledger = key[REPAIRS.len()..].parse().map_err(|_| MetadataError::Corrupt {
                subject: format!("record '{key}'"),
                reason: "its key is no ledger's".to_owned(),
            })?;
            Ok((ledger, Versioned { value: codec::decode(key, &record.value)?, version: record.version }))
        });
        decoded.collect()
    }

    pub async fn get_repair(&self, ledger: u64) -> Result<Option<Versioned<RepairRecord>>, MetadataError> {
        self.read(&key(ledger)).await
    }

    /// Writes the record if its version is `version`, and answers the new one.
    pub async fn put_repair(&self, ledger: u64, record: &RepairRecord, version: u64) -> Result<u64, MetadataError> {
        let put = Op::put(key(ledger), codec::encode(record)?, Expect::Version(version));
        Ok(self.store.commit(vec![put]).await?[0])
    }

    /// Forgets the record if its version is `version`: what was noted since then is to be looked at again.
    pub async fn finish_repair(&self, ledger: u64, version: u64) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::delete(key(ledger), Expect::Version(version))]).await.map(drop)
    }

    pub async fn put_repair_worker(&self, node: &str, record: &RepairWorkerRecord) -> Result<(), MetadataError> {
        let put = Op::put(worker_key(node), codec::encode(record)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    pub async fn list_repair_workers(&self) -> Result<Vec<(String, RepairWorkerRecord)>, MetadataError> {
        let found = self.list(WORKERS).await?;
        Ok(found.into_iter().map(|(node, record)| (node, record.value)).collect())
    }

    pub async fn put_audit(&self, record: &AuditRecord) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::put(AUDIT, codec::encode(record)?, Expect::Any)]).await.map(drop)
    }

    /// `None` before the first audit has ended.
    pub async fn audit(&self) -> Result<Option<AuditRecord>, MetadataError> {
        Ok(self.read(AUDIT).await?.map(|found| found.value))
    }
}
