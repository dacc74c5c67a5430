//! Storage nodes: `storage-nodes/<id>`. A node that is alive holds the lease `storage-node/<id>`.
//!
//! The id is that of the node's disk, not of its address: an empty disk has another, so that nobody takes it for one that has
//! what the old one had. A node that is to be emptied has a record `decommissions/<id>`: nothing new goes to it, and what it has
//! is copied to others.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::{Expect, Lease, LeaseOutcome, MetadataError, Op, Watch, codec, lease};

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
    /// When its lease runs out or ran out, by the store's clock in milliseconds since 1970; 0 if it has none.
    pub lease_ends_ms: u64,
    /// When it was to be emptied, if it is, in milliseconds since 1970.
    pub decommissioned_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DecommissionRecord {
    since_ms: u64,
}

/// Tells that [`Metadata::storage_node_statuses`] may have changed, except of leases that run out or are renewed: how long they
/// last they say themselves.
#[derive(Debug)]
pub struct StorageNodeWatch {
    registrations: Watch,
    decommissions: Watch,
    leases: Watch,
}

impl StorageNodeWatch {
    /// Waits for the next change. Whether there was one: false when the store is closed. Safe to cancel.
    pub async fn changed(&mut self) -> bool {
        let event = tokio::select! {
            event = self.registrations.next() => event,
            event = self.decommissions.next() => event,
            event = self.leases.next() => event,
        };
        event.is_some()
    }
}

fn lease_name(id: &str) -> String {
    format!("storage-node/{id}")
}

impl Metadata {
    pub async fn put_storage_node(&self, id: &str, record: &StorageNodeRecord) -> Result<(), MetadataError> {
        let put = Op::put(format!("{PREFIX}{id}"), codec::encode(record)?, Expect::Any);
        self.store.commit(vec![put]).await.map(drop)
    }

    /// Where the node was when it registered last.
    pub async fn storage_node_address(&self, id: &str) -> Result<Option<String>, MetadataError> {
        let found = self.read::<StorageNodeRecord>(&format!("{PREFIX}{id}")).await?;
        Ok(found.map(|found| found.value.address))
    }

    pub async fn watch_storage_nodes(&self) -> Result<StorageNodeWatch, MetadataError> {
        Ok(StorageNodeWatch {
            registrations: self.store.watch(PREFIX).await?,
            decommissions: self.store.watch(DECOMMISSIONS).await?,
            leases: self.store.watch(&lease::key(&lease_name(""))).await?,
        })
    }

    /// Every registered node, in the order of their ids.
    pub async fn storage_node_statuses(&self) -> Result<Vec<StorageNodeStatus>, MetadataError> {
        let registered = self.list::<StorageNodeRecord>(PREFIX).await?;
        let decommissions: BTreeMap<String, DecommissionRecord> = {
            let found = self.list::<DecommissionRecord>(DECOMMISSIONS).await?;
            found.into_iter().map(|(id, record)| (id, record.value)).collect()
        };
        let status = |(id, found): (String, super::Versioned<StorageNodeRecord>)| StorageNodeStatus {
            is_alive: false,
            lease_ends_ms: 0,
            decommissioned_ms: decommissions.get(&id).map(|record| record.since_ms),
            record: found.value,
            version: found.version,
            id,
        };
        let mut statuses: Vec<_> = registered.into_iter().map(status).collect();
        self.read_node_leases(&mut statuses).await?;
        Ok(statuses)
    }

    /// Finds out anew which of these nodes hold their leases, and nothing else of them.
    pub async fn read_node_leases(&self, statuses: &mut [StorageNodeStatus]) -> Result<(), MetadataError> {
        let now_ms = self.store.now_ms();
        let leases = lease::all(self.store.as_ref(), &lease_name("")).await?;
        let held = leases.iter().filter(|lease| lease.is_held);
        let ends: BTreeMap<&str, u64> =
            held.map(|lease| (&lease.name[lease_name("").len()..], lease.expires_at_ms)).collect();
        for status in statuses {
            status.lease_ends_ms = ends.get(&*status.id).copied().unwrap_or(0);
            status.is_alive = status.lease_ends_ms > now_ms;
        }
        Ok(())
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
