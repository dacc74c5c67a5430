//! Who owns a bundle: `bundles/<tenant>/<namespace>/<low>_<high>`.
//!
//! The record's version is the proof of ownership: it changes with every change of the owner, and what an owner writes is
//! written only while it has not ([`Metadata::guarded_by_bundle`]). An owner whose session is over owns nothing any more, though
//! the record stands until somebody takes the bundle. A bundle that is given up keeps its record, so that its versions and its
//! epoch go on.

use geminga_model::BundleName;
use serde::{Deserialize, Serialize};

use super::brokers::{OverSession, session_key};
use super::{Metadata, Versioned, cursor_logs, garbage, namespaces};
use crate::{Expect, MetadataError, Op, Policies, codec};

pub(super) const PREFIX: &str = "bundles/";
pub(super) const REQUESTS: &str = "bundle-requests/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// The broker that owns it; none: whoever is asked for it next may take it.
    pub owner: Option<String>,
    /// Of the owner's session.
    pub incarnation: u64,
    /// Grows with every change of the owner.
    pub epoch: u64,
    #[serde(flatten)]
    pub balanced: Balanced,
}

/// When a bundle was moved to spread load, by the store's clock in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balanced {
    /// From a broker that had more than its share, the last time.
    #[serde(rename = "balanced_at_ms", default, skip_serializing_if = "Option::is_none")]
    pub levelled_ms: Option<u64>,
    /// To a broker that had far less than its share, as after its start, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filled_ms: Option<u64>,
}

/// Why a bundle goes to another broker, as far as it should rest there for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedFor {
    /// It moves so that load is spread.
    #[serde(rename = "for_balance", default)]
    pub balance: bool,
    /// That is so that the other broker gets its share, as after its start.
    #[serde(rename = "fills", default, skip_serializing_if = "std::ops::Not::not")]
    pub filling: bool,
}

impl MovedFor {
    pub const LEVELLING: Self = Self { balance: true, filling: false };
    pub const FILLING: Self = Self { balance: true, filling: true };
}

impl Balanced {
    pub fn after_move(mut self, reason: MovedFor, now_ms: u64) -> Self {
        if reason.balance {
            let moved_ms = if reason.filling { &mut self.filled_ms } else { &mut self.levelled_ms };
            *moved_ms = Some(now_ms);
        }
        self
    }
}

/// Somebody asks something of the owner of a bundle: `bundle-requests/<tenant>/<namespace>/<low>_<high>`. A record of its own,
/// so that asking does not change the owner's proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRequest {
    /// Of the ownership that is meant. With another one the request means nothing.
    pub epoch: u64,
    pub wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Hand the bundle over to this broker; none: to whichever suits.
    Handover {
        to: Option<String>,
        #[serde(flatten)]
        reason: MovedFor,
    },
    /// Cut it into smaller ones.
    Split,
}

/// What takes the place of a bundle.
#[derive(Debug)]
pub struct BundleSplit<'a> {
    /// Of the namespace, with the boundaries of the parts.
    pub policies: &'a Policies,
    pub policies_version: u64,
    pub parts: &'a [BundleName],
    /// Of the bundle's cursor log when what the parts have was taken from it.
    pub log_version: Option<u64>,
    /// The record of each part; none where bundles have no owners.
    pub owner: Option<&'a BundleRecord>,
}

pub(super) fn key(name: &BundleName) -> String {
    format!("{PREFIX}{name}")
}

impl Metadata {
    pub async fn get_bundle(&self, name: &BundleName) -> Result<Option<Versioned<BundleRecord>>, MetadataError> {
        self.read(&key(name)).await
    }

    /// Writes the record if its version is `version` (none: there must be none yet), and answers the new version.
    pub async fn put_bundle(
        &self,
        name: &BundleName,
        record: &BundleRecord,
        version: Option<u64>,
    ) -> Result<u64, MetadataError> {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        Ok(self.store.commit(vec![Op::put(key(name), codec::encode(record)?, expect)]).await?[0])
    }

    /// Makes somebody the owner of a bundle whose owner's session is over: refused as [`put_bundle`](Self::put_bundle) is, and when the
    /// session has been renewed since, whose broker then goes on as the owner.
    pub async fn take_bundle(
        &self,
        name: &BundleName,
        record: &BundleRecord,
        version: u64,
        over: Option<&OverSession>,
    ) -> Result<u64, MetadataError> {
        let mut ops = vec![Op::put(key(name), codec::encode(record)?, Expect::Version(version))];
        ops.extend(over.map(|over| Op::check(session_key(&over.broker), Expect::Version(over.version))));
        Ok(self.store.commit(ops).await?[0])
    }

    /// The first record of a bundle, if its namespace's policies have that version still: it may have been split since they were read,
    /// with its record.
    pub async fn create_bundle(
        &self,
        name: &BundleName,
        record: &BundleRecord,
        policies_version: u64,
    ) -> Result<u64, MetadataError> {
        let put = Op::put(key(name), codec::encode(record)?, Expect::Absent);
        let exists = Op::check(namespaces::key(&name.namespace), Expect::Version(policies_version));
        Ok(self.store.commit(vec![put, exists]).await?[0])
    }

    /// Makes somebody else the owner, or nobody, on the owner's own behalf: refused when its record has another version. Whatever
    /// was asked of it is done with that.
    pub async fn pass_bundle(
        &self,
        name: &BundleName,
        record: &BundleRecord,
        version: u64,
    ) -> Result<u64, MetadataError> {
        let pass = Op::put(key(name), codec::encode(record)?, Expect::Version(version));
        let done = Op::delete(format!("{REQUESTS}{name}"), Expect::Any);
        Ok(self.store.commit(vec![pass, done]).await?[0])
    }

    /// Puts the parts of a bundle in its place, with the policies that have their boundaries: refused with
    /// [`MetadataError::Conflict`] when the policies have another version, and with [`MetadataError::OwnershipLost`] when the bundle's
    /// cursor log has: its owner has begun anew since, not knowing that this commit was on its way, and may have confirmed
    /// acknowledgements that the parts lack. The cursor logs of the parts must be there; that of the bundle goes, and its ledgers are
    /// noted as garbage.
    pub async fn split_bundle(
        &self,
        name: &BundleName,
        split: BundleSplit<'_>,
        ledgers: &[u64],
    ) -> Result<(), MetadataError> {
        let policies = codec::encode(split.policies)?;
        let log = cursor_logs::key(&name.to_string());
        let mut ops = vec![
            Op::put(namespaces::key(&name.namespace), policies, Expect::Version(split.policies_version)),
            Op::delete(&*log, split.log_version.map_or(Expect::Absent, Expect::Version)),
            Op::delete(format!("{REQUESTS}{name}"), Expect::Any),
            Op::delete(key(name), Expect::Any),
        ];
        if let Some(owner) = split.owner {
            for part in split.parts {
                ops.push(Op::put(key(part), codec::encode(owner)?, Expect::Any));
            }
        }
        ops.extend(garbage::note(ledgers)?);
        match self.store.commit(ops).await {
            Err(MetadataError::Conflict { key }) if key == log => {
                Err(MetadataError::OwnershipLost { name: name.to_string() })
            }
            committed => committed.map(drop),
        }
    }

    pub async fn put_bundle_request(&self, name: &BundleName, request: &BundleRequest) -> Result<(), MetadataError> {
        let put = Op::put(format!("{REQUESTS}{name}"), codec::encode(request)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    pub async fn get_bundle_request(&self, name: &BundleName) -> Result<Option<BundleRequest>, MetadataError> {
        Ok(self.read(&format!("{REQUESTS}{name}")).await?.map(|found| found.value))
    }

    pub async fn list_bundle_requests(&self) -> Result<Vec<(BundleName, BundleRequest)>, MetadataError> {
        let records = self.list(REQUESTS).await?;
        records.into_iter().map(|(name, record)| Ok((name.parse()?, record.value))).collect()
    }

    /// Every bundle that has, or had, an owner.
    pub async fn list_bundles(&self) -> Result<Vec<(BundleName, Versioned<BundleRecord>)>, MetadataError> {
        let records = self.list(PREFIX).await?;
        records.into_iter().map(|(name, record)| Ok((name.parse::<BundleName>()?, record))).collect()
    }

    /// The prefixes of the keys of all bundles and of what is asked of their owners, for [`crate::MetadataStore::watch`];
    /// [`Metadata::bundle_of_key`] reads the keys of both.
    pub fn bundles_prefix() -> &'static str {
        PREFIX
    }

    pub fn bundle_requests_prefix() -> &'static str {
        REQUESTS
    }

    pub fn bundle_of_key(key: &str) -> Option<BundleName> {
        key.strip_prefix(PREFIX).or_else(|| key.strip_prefix(REQUESTS))?.parse().ok()
    }

    /// These metadata for the owner of a bundle: every commit is refused with [`MetadataError::OwnershipLost`] once the
    /// bundle's record has another version than `version`.
    pub fn guarded_by_bundle(&self, name: &BundleName, version: u64) -> Metadata {
        self.guarded(key(name), version, name.to_string())
    }
}
