//! What was read.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::{LedgerMetadata, NodeId};
use serde::{Deserialize, Serialize};

/// Metadata, and what nodes have.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub nodes: BTreeMap<NodeId, Node>,
    pub topics: BTreeMap<String, Topic>,
    /// Where bundles' cursor logs are, by bundle.
    pub cursor_logs: BTreeMap<String, CursorLog>,
    /// By topic and subscription, the greatest ledger that anything is acknowledged in, as far as cursor logs could be read without closing
    /// them.
    pub acknowledged: BTreeMap<(String, String), u64>,
    /// The names of partitioned topics.
    pub partitioned: BTreeSet<String>,
    pub records: BTreeMap<u64, Record>,
    /// Ledgers that storage is to delete.
    pub deletions: BTreeSet<u64>,
    /// Every id that metadata have given out is below.
    pub ledger_ids_end: u64,
    pub cursor_ids_end: u64,
    /// What nodes remember of newer metadata than these.
    pub restored: BTreeMap<NodeId, Remembered>,
}

/// What a node remembers of the metadata that these were before they were restored from a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Of the record that says so.
    pub version: u64,
    pub ledger_ids_end: u64,
    pub cursor_ids_end: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topic {
    pub ledgers: Vec<u64>,
    /// The greatest id that ever was in the list.
    pub last_ledger: u64,
    /// Of its record.
    pub version: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CursorLog {
    pub ledgers: Vec<u64>,
    /// Of its record.
    pub version: u64,
}

/// A ledger's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Read {
        metadata: LedgerMetadata,
        version: u64,
    },
    /// It is there, and cannot be understood.
    Unreadable(String),
}

#[derive(Debug, Clone)]
pub struct Node {
    pub contents: Contents,
    /// Whether an entry that it does not list is not there: nothing is damaged, and no directory missing, that is not settled.
    pub knows_all: bool,
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
    /// What its first entry here says that it belongs to.
    pub label: Option<Label>,
    /// Metadata did not know it when they were older than storage, and the node does not delete it.
    pub is_doubtful: bool,
}

/// What a ledger says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Label {
    Topic(String),
    /// With the ledgers that the log had when this one was begun, which is the last of them.
    CursorLog {
        bundle: String,
        ledgers: Vec<u64>,
    },
}

impl Label {
    pub fn owner(&self) -> Owner {
        match self {
            Label::Topic(topic) => Owner::Topic(topic.clone()),
            Label::CursorLog { bundle, .. } => Owner::CursorLog(bundle.clone()),
        }
    }
}

/// Whose a ledger is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
        for (bundle, log) in &self.cursor_logs {
            for ledger in &log.ledgers {
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

    /// Whether metadata are older than storage, as after a restore.
    pub(crate) fn is_restored(&self) -> bool {
        !self.restored.is_empty() || self.last_used().is_some_and(|last| last >= self.ledger_ids_end)
    }

    /// Whether a ledger is on no node, which can be said only when every node was asked and knows all that it has.
    pub(crate) fn is_nowhere(&self, ledger: u64) -> bool {
        self.nodes.values().all(|node| match &node.contents {
            Contents::Read(ledgers) => node.knows_all && !ledgers.contains_key(&ledger),
            Contents::Unread(_) => false,
        })
    }

    /// Whether every node was asked and knows all that it has.
    pub(crate) fn all_is_known(&self) -> bool {
        self.nodes.values().all(|node| node.knows_all && matches!(node.contents, Contents::Read(_)))
    }

    /// The greatest ledger that metadata have ever listed for an owner; none if they do not know the owner.
    pub(crate) fn last_known(&self, owner: &Owner) -> Option<u64> {
        match owner {
            Owner::Topic(topic) => self.topics.get(topic).map(|topic| topic.last_ledger),
            Owner::CursorLog(bundle) => {
                self.cursor_logs.get(bundle).map(|log| log.ledgers.iter().copied().max().unwrap_or(0))
            }
        }
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
