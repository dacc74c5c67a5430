//! What does not fit.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::{LedgerMetadata, LedgerState, NodeId};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Contents, Held, Label, Owner, Record};
use crate::expected::expected;

/// Something that does not fit. It says nothing that changes while it lasts, so that two looks can be compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub enum Finding {
    /// Metadata would give ids again that are in use: they are older than storage, as after a restore. Dangerous.
    IdsInUse,
    /// What is in a list is noted to be deleted from storage. Dangerous.
    DeletionOfReferenced { ledger: u64, owner: Owner },
    /// A storage node remembers newer metadata than these, which are a restored dump: brokers wait until that is settled. Dangerous.
    Restored { node: NodeId },
    /// Two lists have it, or one has it twice. Dangerous.
    SharedLedger { ledger: u64 },
    /// A list names it, and there is no record that says where it is.
    NoRecord { ledger: u64, owner: Owner },
    /// It is on nodes, metadata do not know it, and it is newer than what they know of its topic or of anything.
    Lost { ledger: u64, owner: Option<Owner> },
    /// A list names it, it is on no node, and all were asked: what was in it is gone, unless it was trimmed after the dump.
    Nowhere { ledger: u64, owner: Owner },
    /// Nodes that its record does not name have entries of it: it went on there after the dump.
    Elsewhere { ledger: u64 },
    /// A subscription has acknowledged something in a ledger that is newer than all that its topic ever had.
    CursorAhead { topic: String, subscription: String, ledger: u64 },
    /// Topics are named as its partitions, and metadata do not know it.
    NotPartitioned { topic: String },
    /// It is on nodes, metadata do not know it and are, or were, older than storage: whether it was deleted nobody can say.
    Doubtful { ledger: u64, owner: Option<Owner> },
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
    findings.extend(cluster.restored.keys().map(|node| Finding::Restored { node: node.clone() }));
    findings.extend(of_nodes(cluster));
    findings.extend(of_references(cluster, &references));
    findings.extend(of_cursors(cluster));
    findings.extend(of_records(cluster, &references));
    findings.extend(of_unknown_ledgers(cluster, &references));
    if cluster.is_restored() {
        findings.extend(of_partitions(cluster));
    }
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
        match cluster.records.get(&ledger) {
            None if cluster.is_nowhere(ledger) => findings.push(Finding::Nowhere { ledger, owner: owner() }),
            None => findings.push(Finding::NoRecord { ledger, owner: owner() }),
            Some(Record::Read { metadata, .. }) if has_entries(cluster, metadata) && cluster.is_nowhere(ledger) => {
                findings.push(Finding::Nowhere { ledger, owner: owner() });
            }
            Some(_) => {}
        }
    }
    findings
}

fn of_cursors(cluster: &Cluster) -> impl Iterator<Item = Finding> + '_ {
    cluster.acknowledged.iter().filter_map(|((topic, subscription), ledger)| {
        let is_ahead = cluster.topics.get(topic).is_some_and(|topic| *ledger > topic.last_ledger);
        is_ahead.then(|| Finding::CursorAhead {
            topic: topic.clone(),
            subscription: subscription.clone(),
            ledger: *ledger,
        })
    })
}

fn of_records(cluster: &Cluster, references: &BTreeMap<u64, Vec<Owner>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let held = cluster.held();
    for (&ledger, record) in &cluster.records {
        if !references.contains_key(&ledger) && !cluster.deletions.contains(&ledger) {
            findings.push(Finding::Orphan { ledger });
        }
        let Record::Read { metadata, .. } = record else {
            findings.push(Finding::UnreadableRecord { ledger });
            continue;
        };
        if went_on_elsewhere(cluster, held.get(&ledger), metadata) {
            findings.push(Finding::Elsewhere { ledger });
        }
        // Whoever takes over a ledger that was never begun closes it as empty, on no node in particular.
        let is_empty = matches!(metadata.state, LedgerState::Closed { entries: 0, .. });
        let members = metadata.fragments.iter().flat_map(|fragment| &fragment.ensemble);
        let strangers: BTreeSet<&NodeId> =
            members.filter(|node| !is_empty && !cluster.nodes.contains_key(*node)).collect();
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
        None => count > 0,
        Some(Held { entries, .. }) => entries.is_some_and(|entries| entries < count),
    }
}

/// Usually such a ledger was deleted, and its nodes are about to find that out. It is another matter if metadata cannot know it.
fn of_unknown_ledgers(cluster: &Cluster, references: &BTreeMap<u64, Vec<Owner>>) -> Vec<Finding> {
    let are_old = cluster.is_restored();
    let mut findings = Vec::new();
    for (ledger, copies) in cluster.held() {
        let is_known = cluster.records.contains_key(&ledger) || references.contains_key(&ledger);
        if is_known || cluster.deletions.contains(&ledger) {
            continue;
        }
        let owner = copies.iter().find_map(|(_, held)| held.label.as_ref()).map(Label::owner);
        let known = owner.as_ref().and_then(|owner| cluster.last_known(owner));
        // Ledgers of a cursor log come and go: one is lost only where metadata are old.
        let is_newer = known.is_some_and(|last| ledger > last);
        let is_of_topic = matches!(owner, Some(Owner::Topic(_)));
        if ledger >= cluster.ledger_ids_end || is_newer && (is_of_topic || are_old) {
            findings.push(Finding::Lost { ledger, owner });
        } else if (are_old && known.is_none()) || copies.iter().any(|(_, held)| held.is_doubtful) {
            findings.push(Finding::Doubtful { ledger, owner });
        }
    }
    findings
}

/// Whether nodes should have something of a ledger. Of an open one that is not known: it may be about to get its first entry.
fn has_entries(cluster: &Cluster, metadata: &LedgerMetadata) -> bool {
    match metadata.state {
        LedgerState::Closed { entries, .. } => entries > 0,
        LedgerState::Open | LedgerState::InRecovery => cluster.is_restored(),
    }
}

/// Whether a ledger that metadata from before call open has entries on nodes that were not its last ones then.
fn went_on_elsewhere(cluster: &Cluster, copies: Option<&Vec<(&NodeId, &Held)>>, metadata: &LedgerMetadata) -> bool {
    let is_open = !matches!(metadata.state, LedgerState::Closed { .. });
    let (true, true, Some(last), Some(copies)) = (is_open, cluster.is_restored(), metadata.fragments.last(), copies)
    else {
        return false;
    };
    let is_stranger = |node: &NodeId| !last.ensemble.contains(node);
    copies.iter().any(|(node, held)| is_stranger(node) && held.last_entry >= Some(last.first_entry))
}

/// Topics whose names are those of partitions, of partitioned topics that metadata do not know.
fn of_partitions(cluster: &Cluster) -> BTreeSet<Finding> {
    let topics = cluster.topics.keys().map(String::as_str);
    let labels = cluster.held().into_values().flatten().filter_map(|(_, held)| match &held.label {
        Some(Label::Topic(topic)) => Some(topic.as_str()),
        _ => None,
    });
    let partitions = topics.chain(labels).filter_map(partition_of).map(|(base, _)| base);
    let unknown = partitions.filter(|base| !cluster.partitioned.contains(*base));
    unknown.map(|base| Finding::NotPartitioned { topic: base.to_owned() }).collect()
}

/// The partitioned topic that a topic's name says it is a partition of, and which one.
pub(crate) fn partition_of(topic: &str) -> Option<(&str, u32)> {
    let (base, index) = topic.rsplit_once("-partition-")?;
    Some((base, index.parse().ok()?))
}
