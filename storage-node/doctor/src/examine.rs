//! What does not fit.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::NodeId;
use serde::Serialize;

use crate::cluster::{Cluster, Contents, Held, Owner, Record};
use crate::expected::expected;

/// Something that does not fit. It says nothing that changes while it lasts, so that two looks can be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub enum Finding {
    /// Metadata would give ids again that are in use: they are older than storage, as after a restore. Dangerous.
    IdsInUse,
    /// What is in a list is noted to be deleted from storage. Dangerous.
    DeletionOfReferenced { ledger: u64, owner: Owner },
    /// Two lists have it, or one has it twice. Dangerous.
    SharedLedger { ledger: u64 },
    /// A list names it, and there is no record that says where it is.
    NoRecord { ledger: u64, owner: Owner },
    /// It is on nodes, metadata do not know it, and it is newer than what they know of its topic or of anything.
    Lost { ledger: u64, topic: Option<String> },
    /// It is on nodes, metadata do not know it and are, or were, older than storage: whether it was deleted nobody can say.
    Doubtful { ledger: u64, topic: Option<String> },
    /// Its record cannot be understood.
    UnreadableRecord { ledger: u64 },
    /// There is a record, and nothing refers to it or is about to delete it.
    Orphan { ledger: u64 },
    /// The node should have entries of a closed ledger that it does not have.
    FewerEntries { ledger: u64, node: NodeId },
    /// A node that is registered could not be asked.
    NotAsked { node: NodeId },
    /// The node does not know all it has: something is damaged.
    KnowsNotAll { node: NodeId },
    /// The record names a node that is not registered.
    UnknownNode { ledger: u64, node: NodeId },
}

/// What two looks have both found.
pub fn confirmed(first: &BTreeSet<Finding>, second: &BTreeSet<Finding>) -> BTreeSet<Finding> {
    first.intersection(second).cloned().collect()
}

/// What does not fit in one look.
pub fn examine(cluster: &Cluster) -> BTreeSet<Finding> {
    let references = cluster.references();
    let mut findings = BTreeSet::new();
    if cluster.last_used().is_some_and(|last| last >= cluster.ledger_ids_end) {
        findings.insert(Finding::IdsInUse);
    }
    findings.extend(of_nodes(cluster));
    findings.extend(of_references(cluster, &references));
    findings.extend(of_records(cluster, &references));
    findings.extend(of_unknown_ledgers(cluster, &references));
    findings
}

fn of_nodes(cluster: &Cluster) -> impl Iterator<Item = Finding> + '_ {
    cluster.nodes.iter().filter_map(|(node, found)| match found.contents {
        Contents::Unread(_) => Some(Finding::NotAsked { node: node.clone() }),
        Contents::Read(_) if !found.knows_all => Some(Finding::KnowsNotAll { node: node.clone() }),
        Contents::Read(_) => None,
    })
}

fn of_references(cluster: &Cluster, references: &BTreeMap<u64, Vec<Owner>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (&ledger, owners) in references {
        let owner = || owners[0].clone();
        if owners.len() > 1 {
            findings.push(Finding::SharedLedger { ledger });
        }
        if cluster.deletions.contains(&ledger) {
            findings.push(Finding::DeletionOfReferenced { ledger, owner: owner() });
        }
        if !cluster.records.contains_key(&ledger) {
            findings.push(Finding::NoRecord { ledger, owner: owner() });
        }
    }
    findings
}

fn of_records(cluster: &Cluster, references: &BTreeMap<u64, Vec<Owner>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (&ledger, record) in &cluster.records {
        if !references.contains_key(&ledger) && !cluster.deletions.contains(&ledger) {
            findings.push(Finding::Orphan { ledger });
        }
        let Record::Read(metadata) = record else {
            findings.push(Finding::UnreadableRecord { ledger });
            continue;
        };
        let members = metadata.fragments.iter().flat_map(|fragment| &fragment.ensemble);
        let strangers: BTreeSet<&NodeId> = members.filter(|node| !cluster.nodes.contains_key(*node)).collect();
        findings.extend(strangers.into_iter().map(|node| Finding::UnknownNode { ledger, node: node.clone() }));
        for (node, count) in expected(metadata).unwrap_or_default() {
            if lacks(cluster, node, ledger, count) {
                findings.push(Finding::FewerEntries { ledger, node: node.clone() });
            }
        }
    }
    findings
}

/// Whether a node surely has fewer entries of a ledger.
fn lacks(cluster: &Cluster, node: &NodeId, ledger: u64, count: u64) -> bool {
    let Some(node) = cluster.nodes.get(node).filter(|node| node.knows_all) else { return false };
    let Contents::Read(ledgers) = &node.contents else { return false };
    match ledgers.get(&ledger) {
        None => count > 0 && ledger >= node.limbo_below,
        Some(Held { entries, .. }) => entries.is_some_and(|entries| entries < count),
    }
}

/// Usually such a ledger was deleted, and its nodes are about to find that out. It is another matter if metadata cannot know it.
fn of_unknown_ledgers(cluster: &Cluster, references: &BTreeMap<u64, Vec<Owner>>) -> Vec<Finding> {
    let are_old = cluster.last_used().is_some_and(|last| last >= cluster.ledger_ids_end);
    let mut findings = Vec::new();
    for (ledger, copies) in cluster.held() {
        let is_known = cluster.records.contains_key(&ledger) || references.contains_key(&ledger);
        if is_known || cluster.deletions.contains(&ledger) {
            continue;
        }
        let topic = copies.iter().find_map(|(_, held)| held.topic.clone());
        let known = topic.as_ref().and_then(|topic| cluster.topics.get(topic));
        if ledger >= cluster.ledger_ids_end || known.is_some_and(|known| ledger > known.last_ledger) {
            findings.push(Finding::Lost { ledger, topic });
        } else if (are_old && known.is_none()) || copies.iter().any(|(_, held)| held.is_doubtful) {
            findings.push(Finding::Doubtful { ledger, topic });
        }
    }
    findings
}
