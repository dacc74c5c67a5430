//! Leases on top of compare-and-set, the same for every backend.
//!
//! Watches under `leases/` are told of leases that are acquired and released, not of renewals in time: whoever wants to know reads
//! when a lease would have run out. A renewal that comes when that is over, or soon, is told.

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
    /// Of its record.
    pub version: u64,
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
    fn holder(&self, name: &str, version: u64, now_ms: u64) -> Option<Lease> {
        let owner = self.owner.clone()?;
        (self.expires_at_ms > now_ms).then(|| Lease {
            name: name.to_owned(),
            owner,
            epoch: self.epoch,
            expires_at_ms: self.expires_at_ms,
            version,
        })
    }

    fn of(lease: &Lease) -> Self {
        LeaseRecord { owner: Some(lease.owner.clone()), epoch: lease.epoch, expires_at_ms: lease.expires_at_ms }
    }

    /// It is held as this lease says, whatever has been renewed since.
    fn is_of(&self, lease: &Lease) -> bool {
        self.epoch == lease.epoch && self.owner.as_deref() == Some(&lease.owner)
    }
}

/// A lease's record as it stands, whether anybody holds it or not.
pub(crate) struct Standing {
    pub name: String,
    pub epoch: u64,
    /// Not released. It may have expired.
    pub is_held: bool,
    pub expires_at_ms: u64,
    /// Of the record.
    pub version: u64,
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
                version: record.version,
            });
        }
        if is_last {
            return Ok(found);
        }
        after = records.into_iter().next_back().map(|(key, _)| key);
    }
}

/// Of a lease's record; of a prefix of names, that of their keys.
pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The record, if there is one, with its version.
async fn read<S: MetadataStore + ?Sized>(store: &S, name: &str) -> Result<Option<(LeaseRecord, u64)>, MetadataError> {
    let key = key(name);
    let Some(record) = store.get(&key).await? else { return Ok(None) };
    Ok(Some((codec::decode(&key, &record.value)?, record.version)))
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
        let current = read(store, name).await?;
        if let Some(held) = current.as_ref().and_then(|(record, version)| record.holder(name, *version, now_ms))
            && held.owner != owner
        {
            return Ok(LeaseOutcome::Held(held));
        }
        let expect = current.as_ref().map_or(Expect::Absent, |(_, version)| Expect::Version(*version));
        let lease = Lease {
            name: name.to_owned(),
            owner: owner.to_owned(),
            epoch: current.map_or(1, |(record, _)| record.epoch + 1),
            expires_at_ms: deadline(now_ms, ttl),
            version: 0,
        };
        let put = Op::put(key(name), codec::encode(&LeaseRecord::of(&lease))?, expect);
        match store.commit(vec![put]).await {
            Ok(versions) => return Ok(LeaseOutcome::Acquired(Lease { version: versions[0], ..lease })),
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
    let is_late = lease.expires_at_ms <= deadline(store.now_ms(), ttl / 2);
    let mut lease = lease.clone();
    loop {
        lease.expires_at_ms = deadline(store.now_ms(), ttl);
        let record = codec::encode(&LeaseRecord::of(&lease))?;
        let (key, expect) = (key(&lease.name), Expect::Version(lease.version));
        let put = if is_late { Op::put(key, record, expect) } else { Op::put_quietly(key, record, expect) };
        match store.commit(vec![put]).await {
            Ok(versions) => return Ok(Lease { version: versions[0], ..lease }),
            Err(error) if error.is_conflict() => match read(store, &lease.name).await? {
                // A renewal that got no answer was applied.
                Some((record, version)) if record.is_of(&lease) => lease.version = version,
                _ => return Err(MetadataError::LeaseLost { name: lease.name }),
            },
            Err(error) => return Err(error),
        }
    }
}

pub(crate) async fn release<S: MetadataStore + ?Sized>(store: &S, lease: &Lease) -> Result<(), MetadataError> {
    let Some((mut record, version)) = read(store, &lease.name).await? else { return Ok(()) };
    if record.epoch != lease.epoch {
        return Ok(());
    }
    record.owner = None;
    let put = Op::put(key(&lease.name), codec::encode(&record)?, Expect::Version(version));
    match store.commit(vec![put]).await {
        Err(error) if error.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}

pub(crate) async fn holder<S: MetadataStore + ?Sized>(store: &S, name: &str) -> Result<Option<Lease>, MetadataError> {
    let current = read(store, name).await?;
    Ok(current.and_then(|(record, version)| record.holder(name, version, store.now_ms())))
}
