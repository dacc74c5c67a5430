//! Leases on top of compare-and-set, the same for every backend.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::{Expect, MetadataStore, Op};
use crate::{MetadataError, codec};

const PREFIX: &str = "leases/";
/// Records read at a time.
const SCAN_RECORDS: usize = 1000;

/// A lease that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub owner: String,
    /// Grows with every acquisition of the lease, and survives releases.
    pub epoch: u64,
    /// By the clock of the store, in milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
}

/// The answer to an attempt to take a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseOutcome {
    Acquired(Lease),
    /// Somebody else holds it.
    Held(Lease),
}

#[derive(Serialize, Deserialize)]
struct LeaseRecord {
    /// None: released.
    owner: Option<String>,
    epoch: u64,
    expires_at_ms: u64,
}

impl LeaseRecord {
    fn holder(&self, name: &str, now_ms: u64) -> Option<Lease> {
        let owner = self.owner.clone()?;
        (self.expires_at_ms > now_ms).then(|| Lease {
            name: name.to_owned(),
            owner,
            epoch: self.epoch,
            expires_at_ms: self.expires_at_ms,
        })
    }
}

/// A lease's record as it stands, whether anybody holds it or not.
pub(crate) struct Standing {
    pub name: String,
    pub epoch: u64,
    /// Not released. It may have expired.
    pub is_held: bool,
    pub expires_at_ms: u64,
}

/// Every lease whose name starts with `prefix`.
pub(crate) async fn all<S: MetadataStore + ?Sized>(store: &S, prefix: &str) -> Result<Vec<Standing>, MetadataError> {
    let full = key(prefix);
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let records = store.scan(&full, after.as_deref(), SCAN_RECORDS).await?;
        let is_last = records.len() < SCAN_RECORDS;
        for (key, record) in &records {
            let lease: LeaseRecord = codec::decode(key, &record.value)?;
            found.push(Standing {
                name: key[PREFIX.len()..].to_owned(),
                epoch: lease.epoch,
                is_held: lease.owner.is_some(),
                expires_at_ms: lease.expires_at_ms,
            });
        }
        if is_last {
            return Ok(found);
        }
        after = records.into_iter().next_back().map(|(key, _)| key);
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

async fn read<S: MetadataStore + ?Sized>(
    store: &S,
    name: &str,
) -> Result<(Option<LeaseRecord>, Expect), MetadataError> {
    let key = key(name);
    match store.get(&key).await? {
        None => Ok((None, Expect::Absent)),
        Some(record) => Ok((Some(codec::decode(&key, &record.value)?), Expect::Version(record.version))),
    }
}

async fn write<S: MetadataStore + ?Sized>(
    store: &S,
    name: &str,
    record: &LeaseRecord,
    expect: Expect,
) -> Result<(), MetadataError> {
    store.commit(vec![Op::put(key(name), codec::encode(record)?, expect)]).await.map(drop)
}

fn deadline(now_ms: u64, ttl: Duration) -> u64 {
    now_ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
}

pub(crate) async fn acquire<S: MetadataStore + ?Sized>(
    store: &S,
    name: &str,
    owner: &str,
    ttl: Duration,
) -> Result<LeaseOutcome, MetadataError> {
    loop {
        let now_ms = store.now_ms();
        let (current, expect) = read(store, name).await?;
        if let Some(held) = current.as_ref().and_then(|record| record.holder(name, now_ms))
            && held.owner != owner
        {
            return Ok(LeaseOutcome::Held(held));
        }
        let record = LeaseRecord {
            owner: Some(owner.to_owned()),
            epoch: current.map_or(1, |record| record.epoch + 1),
            expires_at_ms: deadline(now_ms, ttl),
        };
        match write(store, name, &record, expect).await {
            Ok(()) => {
                return Ok(LeaseOutcome::Acquired(Lease {
                    name: name.to_owned(),
                    owner: owner.to_owned(),
                    epoch: record.epoch,
                    expires_at_ms: record.expires_at_ms,
                }));
            }
            Err(error) if error.is_conflict() => continue,
            Err(error) => return Err(error),
        }
    }
}

pub(crate) async fn renew<S: MetadataStore + ?Sized>(
    store: &S,
    lease: &Lease,
    ttl: Duration,
) -> Result<Lease, MetadataError> {
    let lost = || MetadataError::LeaseLost { name: lease.name.clone() };
    let (current, expect) = read(store, &lease.name).await?;
    let mut record = current.ok_or_else(lost)?;
    if record.epoch != lease.epoch || record.owner.as_deref() != Some(&lease.owner) {
        return Err(lost());
    }
    record.expires_at_ms = deadline(store.now_ms(), ttl);
    match write(store, &lease.name, &record, expect).await {
        Ok(()) => Ok(Lease { expires_at_ms: record.expires_at_ms, ..lease.clone() }),
        Err(error) if error.is_conflict() => Err(lost()),
        Err(error) => Err(error),
    }
}

pub(crate) async fn release<S: MetadataStore + ?Sized>(store: &S, lease: &Lease) -> Result<(), MetadataError> {
    let (current, expect) = read(store, &lease.name).await?;
    let Some(mut record) = current else { return Ok(()) };
    if record.epoch != lease.epoch {
        return Ok(());
    }
    record.owner = None;
    match write(store, &lease.name, &record, expect).await {
        Err(error) if error.is_conflict() => Ok(()),
        other => other,
    }
}

pub(crate) async fn holder<S: MetadataStore + ?Sized>(store: &S, name: &str) -> Result<Option<Lease>, MetadataError> {
    let (current, _) = read(store, name).await?;
    Ok(current.and_then(|record| record.holder(name, store.now_ms())))
}
