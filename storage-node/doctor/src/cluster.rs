//! What was read.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::{LedgerMetadata, NodeId};
use serde::Serialize;

/// Metadata, and what nodes have.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    pub topics: BTreeMap<String, Topic>,
    /// Ledgers of bundles' cursor logs, by bundle.
    pub cursor_logs: BTreeMap<String, Vec<u64>>,
    pub records: BTreeMap<u64, Record>,
    /// Ledgers that storage is to delete.
    pub deletions: BTreeSet<u64>,
    /// Every id that metadata have given out is below.
    pub ledger_ids_end: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topic {
    pub ledgers: Vec<u64>,
    /// The greatest id that ever was in the list.
    pub last_ledger: u64,
}

/// A ledger's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Read(LedgerMetadata),
    /// It is there, and cannot be understood.
    Unreadable(String),
}

#[derive(Debug, Clone)]
pub struct Node {
    pub contents: Contents,
    /// Whether an entry that it does not list is not there: nothing is damaged and unsettled.
    pub knows_all: bool,
    /// Of ledgers with smaller ids that it does not list the node does not know whether it had them.
    pub limbo_below: u64,
}

#[derive(Debug, Clone)]
pub enum Contents {
    Read(BTreeMap<u64, Held>),
    /// Why not.
    Unread(String),
}

/// What a node has of a ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// How many; none if that could not be read.
    pub entries: Option<u64>,
    pub last_entry: Option<u64>,
    /// The topic that its first entry here names.
    pub topic: Option<String>,
    /// Metadata did not know it when they were older than storage, and the node does not delete it.
    pub is_doubtful: bool,
}

/// Whose a ledger is by metadata.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    Topic(String),
    /// The cursor log of a bundle.
    CursorLog(String),
}

impl Cluster {
    /// Every ledger that something refers to, with whatever does, in order.
    pub(crate) fn references(&self) -> BTreeMap<u64, Vec<Owner>> {
        let mut references: BTreeMap<u64, Vec<Owner>> = BTreeMap::new();
        for (name, topic) in &self.topics {
            for ledger in &topic.ledgers {
                references.entry(*ledger).or_default().push(Owner::Topic(name.clone()));
            }
        }
        for (bundle, ledgers) in &self.cursor_logs {
            for ledger in ledgers {
                references.entry(*ledger).or_default().push(Owner::CursorLog(bundle.clone()));
            }
        }
        references
    }

    /// What nodes that were read have of each ledger.
    pub(crate) fn held(&self) -> BTreeMap<u64, Vec<(&NodeId, &Held)>> {
        let mut held: BTreeMap<u64, Vec<(&NodeId, &Held)>> = BTreeMap::new();
        for (id, node) in &self.nodes {
            let Contents::Read(ledgers) = &node.contents else { continue };
            for (ledger, what) in ledgers {
                held.entry(*ledger).or_default().push((id, what));
            }
        }
        held
    }

    /// The greatest ledger id that is used anywhere.
    pub(crate) fn last_used(&self) -> Option<u64> {
        let by_nodes = self.held().into_keys().next_back();
        let by_lists = self.references().into_keys().next_back();
        let by_records = self.records.keys().next_back().copied();
        let once = self.topics.values().map(|topic| topic.last_ledger).max();
        [by_nodes, by_lists, by_records, once].into_iter().flatten().max()
    }
}
