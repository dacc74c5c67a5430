//! Storage nodes: `storage-nodes/<id>`. A node that is alive holds the lease `storage-node/<id>`.
//!
//! The id is that of the node's disk, not of its address: an empty disk has another, so that nobody takes it for one that has
//! what the old one had. A node that is to be emptied has a record `decommissions/<id>`: nothing new goes to it, and what it has
//! is copied to others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::{Expect, Lease, LeaseOutcome, MetadataError, Op, codec, lease};

const PREFIX: &str = "storage-nodes/";
const DECOMMISSIONS: &str = "decommissions/";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageNodeRecord {
    /// `HOST:PORT` for brokers; may change.
    pub address: String,
    /// Nodes of one zone fail together.
    pub zone: String,
    pub region: String,
    /// It serves what it has and takes nothing new.
    #[serde(default)]
    pub read_only: bool,
    /// `HOST:PORT` of its control path, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
}

/// A registered node, with what else metadata say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageNodeStatus {
    pub id: String,
    pub record: StorageNodeRecord,
    /// Of the last change of the registration.
    pub version: u64,
    /// It holds its lease.
    pub is_alive: bool,
    /// When it was to be emptied, if it is, in milliseconds since 1970.
    pub decommissioned_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DecommissionRecord {
    since_ms: u64,
}

fn lease_name(id: &str) -> String {
    format!("storage-node/{id}")
}

impl Metadata {
    pub async fn put_storage_node(&self, id: &str, record: &StorageNodeRecord) -> Result<(), MetadataError> {
        let put = Op::put(format!("{PREFIX}{id}"), codec::encode(record)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    /// Every registered node, in the order of their ids.
    pub async fn storage_node_statuses(&self) -> Result<Vec<StorageNodeStatus>, MetadataError> {
        let registered = self.list::<StorageNodeRecord>(PREFIX).await?;
        let now_ms = self.store.now_ms();
        let leases = lease::all(self.store.as_ref(), &lease_name("")).await?;
        let leases = leases.into_iter().filter(|lease| lease.is_held && lease.expires_at_ms > now_ms);
        let alive: BTreeSet<String> = leases.map(|lease| lease.name[lease_name("").len()..].to_owned()).collect();
        let decommissions: BTreeMap<String, DecommissionRecord> = {
            let found = self.list::<DecommissionRecord>(DECOMMISSIONS).await?;
            found.into_iter().map(|(id, record)| (id, record.value)).collect()
        };
        let status = |(id, found): (String, super::Versioned<StorageNodeRecord>)| StorageNodeStatus {
            is_alive: alive.contains(&id),
            decommissioned_ms: decommissions.get(&id).map(|record| record.since_ms),
            record: found.value,
            version: found.version,
            id,
        };
        Ok(registered.into_iter().map(status).collect())
    }

    /// Marks a node to be emptied. Marking it again changes nothing.
    ///
    /// # Errors
    /// [`MetadataError::NotFound`] if no such node is registered.
    pub async fn decommission_storage_node(&self, id: &str) -> Result<(), MetadataError> {
        let record = DecommissionRecord { since_ms: self.store.now_ms() };
        let parent = super::Parent { what: "storage node", name: id, key: format!("{PREFIX}{id}") };
        let key = format!("{DECOMMISSIONS}{id}");
        match self.create("decommission", id, &key, &record, Some(parent)).await {
            Ok(_) | Err(MetadataError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the mark away again; a node without it is no error.
    pub async fn recommission_storage_node(&self, id: &str) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::delete(format!("{DECOMMISSIONS}{id}"), Expect::Any)]).await.map(drop)
    }

    /// Forgets a node and its mark. Whoever calls knows that it is not alive and that no ledger depends on it.
    ///
    /// # Errors
    /// [`MetadataError::NotFound`] if no such node is registered; [`MetadataError::Conflict`] if its registration has another
    /// version than the one that was looked at.
    pub async fn forget_storage_node(&self, node: &StorageNodeStatus) -> Result<(), MetadataError> {
        let ops = vec![
            Op::delete(format!("{PREFIX}{}", node.id), Expect::Version(node.version)),
            Op::delete(format!("{DECOMMISSIONS}{}", node.id), Expect::Any),
            Op::delete(super::repairs::worker_key(&node.id), Expect::Any),
        ];
        self.store.commit(ops).await.map(drop)
    }

    /// Says that the node is alive for `ttl` from now on. Another process that holds the lease is answered.
    pub async fn acquire_storage_node(
        &self,
        id: &str,
        owner: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, MetadataError> {
        self.store.acquire_lease(&lease_name(id), owner, ttl).await
    }

    pub async fn renew_storage_node(&self, lease: &Lease, ttl: Duration) -> Result<Lease, MetadataError> {
        self.store.renew_lease(lease, ttl).await
    }

    pub async fn storage_node_is_alive(&self, id: &str) -> Result<bool, MetadataError> {
        Ok(self.store.lease(&lease_name(id)).await?.is_some())
    }
}
