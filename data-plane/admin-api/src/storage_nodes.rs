//! `/admin/geminga`: the storage nodes of the cluster, emptying them, and what is being repaired. Not Pulsar's.
//!
//! | | |
//! | --- | --- |
//! | `GET storage-nodes` | every registered node, and how far emptying it is |
//! | `PUT storage-nodes/ID/decommission` | empties a node: nothing new goes there, and what it has is copied |
//! | `DELETE storage-nodes/ID/decommission` | uses it again |
//! | `DELETE storage-nodes/ID` | forgets a node that was emptied and is stopped |
//! | `GET recovery` | ledgers with too few copies, who repairs them, and what stands in the way |
//!
//! `/admin/v2/bookies` answers from the same records.

use std::collections::BTreeMap;

use geminga_metadata::{AuditRecord, Metadata, StorageNodeStatus};
use serde_json::{Value, json};

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};

/// An audit that began so long after a node was to be emptied has seen every ledger that brokers put there before they knew.
const BROKERS_KNOW_AFTER_MS: u64 = 5_000;
/// Ledgers to be repaired that are counted, and read at a time; with more, the answer says that it is at least so many.
const REPAIRS_COUNTED_MAX: usize = 100_000;
const PAGE: usize = 1_000;
/// Of each reason and of each node only so many ledgers are named.
const LEDGERS_NAMED: usize = 10;

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let metadata = call.broker.metadata();
    match (call.method(), path) {
        ("GET", ["storage-nodes"]) => list(metadata).await,
        ("PUT", ["storage-nodes", id, "decommission"]) => {
            metadata.decommission_storage_node(id).await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", ["storage-nodes", id, "decommission"]) => {
            metadata.recommission_storage_node(id).await?;
            Ok(Answer::Nothing)
        }
        ("DELETE", ["storage-nodes", id]) => forget(metadata, id).await,
        ("GET", ["recovery"]) => recovery(metadata).await,
        _ => call.unsupported(),
    }
}

/// How many ledgers depend on a node that is to be emptied, if an audit knows.
fn ledgers_left(status: &StorageNodeStatus, audit: Option<&AuditRecord>) -> Option<u64> {
    let since_ms = status.decommissioned_ms?;
    let audit = audit.filter(|audit| audit.started_ms >= since_ms + BROKERS_KNOW_AFTER_MS)?;
    audit.draining.get(&status.id).copied()
}

async fn list(metadata: &Metadata) -> Result<Answer> {
    let audit = metadata.audit().await?;
    let shown = |status: StorageNodeStatus| {
        let left = ledgers_left(&status, audit.as_ref());
        let decommission = status.decommissioned_ms.map(|since_ms| {
            let waits_for = match left {
                None => Some("an audit that begins after all brokers know of it"),
                Some(0) => None,
                Some(_) => Some("its ledgers to be copied: see recovery"),
            };
            json!({ "since_ms": since_ms, "ledgers_left": left, "done": left == Some(0), "waits_for": waits_for })
        });
        json!({
            "id": status.id,
            "address": status.record.address,
            "zone": status.record.zone,
            "region": status.record.region,
            "alive": status.is_alive,
            "read_only": status.record.read_only,
            "given_up": audit.as_ref().is_some_and(|audit| !status.is_alive && audit.lost.contains(&status.id)),
            "decommission": decommission,
        })
    };
    let nodes: Vec<Value> = metadata.storage_node_statuses().await?.into_iter().map(shown).collect();
    Ok(Answer::Json(json!(nodes)))
}

async fn forget(metadata: &Metadata, id: &str) -> Result<Answer> {
    let statuses = metadata.storage_node_statuses().await?;
    let Some(status) = statuses.iter().find(|status| status.id == id) else {
        return Err(ApiError::not_found(format!("storage node not found: {id}")));
    };
    if status.is_alive {
        return Err(ApiError::conflict(format!("storage node {id} is alive: stop it first")));
    }
    match ledgers_left(status, metadata.audit().await?.as_ref()) {
        Some(0) => {
            metadata.forget_storage_node(status).await?;
            Ok(Answer::Nothing)
        }
        Some(left) => Err(ApiError::conflict(format!("{left} ledgers depend on storage node {id}"))),
        None => Err(ApiError::conflict(format!(
            "storage node {id} was not decommissioned, or it is not known yet \
             whether ledgers depend on it"
        ))),
    }
}

#[derive(Default)]
struct Waiting {
    ledgers: u64,
    since_ms: u64,
    some: Vec<u64>,
}

impl Waiting {
    fn add(&mut self, ledger: u64, since_ms: u64) {
        self.since_ms = if self.ledgers == 0 { since_ms } else { self.since_ms.min(since_ms) };
        self.ledgers += 1;
        if self.some.len() < LEDGERS_NAMED {
            self.some.push(ledger);
        }
    }
}

async fn recovery(metadata: &Metadata) -> Result<Answer> {
    let mut counted = 0;
    let mut oldest_ms: Option<u64> = None;
    let mut blocked: BTreeMap<String, Waiting> = BTreeMap::new();
    let mut next = Some(0);
    while let Some(first) = next.filter(|_| counted < REPAIRS_COUNTED_MAX) {
        let page = metadata.list_repairs(first, PAGE).await?;
        next = page.last().filter(|_| page.len() == PAGE).map(|(ledger, _)| ledger + 1);
        counted += page.len();
        for (ledger, found) in page {
            let since_ms = found.value.since_ms;
            oldest_ms = Some(oldest_ms.map_or(since_ms, |oldest| oldest.min(since_ms)));
            if let Some(reason) = found.value.blocked {
                blocked.entry(reason).or_default().add(ledger, since_ms);
            }
        }
    }
    let blocked: Vec<Value> = blocked
        .into_iter()
        .map(|(reason, Waiting { ledgers, since_ms, some })| {
            json!({ "reason": reason, "ledgers": ledgers, "since_ms": since_ms, "some": some })
        })
        .collect();
    let workers: BTreeMap<_, _> = metadata.list_repair_workers().await?.into_iter().collect();
    Ok(Answer::Json(json!({
        "ledgers_to_repair": counted,
        "there_are_more": next.is_some(),
        "oldest_since_ms": oldest_ms,
        "blocked": blocked,
        "auditor": metadata.store().lease("auditor").await?.map(|lease| lease.owner),
        "last_audit": metadata.audit().await?,
        "workers": workers,
    })))
}

/// `/admin/v2/bookies`
pub(crate) async fn bookies(call: &Call, path: &[&str]) -> Result<Answer> {
    let statuses = call.broker.metadata().storage_node_statuses().await?;
    let rack = |status: &StorageNodeStatus| {
        let place = format!("/{}/{}", status.record.region, status.record.zone);
        json!({ "rack": place, "hostname": status.record.address })
    };
    match (call.method(), path) {
        ("GET", ["racks-info"]) if statuses.is_empty() => Ok(Answer::Json(json!({}))),
        ("GET", ["racks-info"]) => {
            let racks: BTreeMap<_, _> =
                statuses.iter().map(|status| (status.record.address.clone(), rack(status))).collect();
            Ok(Answer::Json(json!({ "default": racks })))
        }
        ("GET", ["racks-info", bookie]) => match statuses.iter().find(|status| status.record.address == *bookie) {
            Some(status) => Ok(Answer::Json(rack(status))),
            None => Err(ApiError::not_found(format!("Bookie rack placement configuration not found: {bookie}"))),
        },
        // A process that is its own storage.
        ("GET", ["all"]) if statuses.is_empty() => Ok(Answer::Json(json!({ "bookies": [{ "bookieId": "embedded" }] }))),
        ("GET", ["all"]) => {
            let bookies: Vec<_> = statuses.iter().map(|status| json!({ "bookieId": status.record.address })).collect();
            Ok(Answer::Json(json!({ "bookies": bookies })))
        }
        _ => call.unsupported(),
    }
}
