//! What would repair it.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::NodeId;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::examine::Finding;

/// In the order in which steps are to be taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Before anything is started again: give no id below this one.
    RaiseLedgerIds { to: u64 },
    /// Before a broker starts: forget that the ledger is to be deleted.
    DropDeletion { ledger: u64 },
    /// Write a record anew, from what these nodes have: open, to be recovered.
    RestoreRecord { ledger: u64, nodes: Vec<NodeId>, last_entry: Option<u64> },
    /// Put ledgers at the end of a topic's list, in this order; the topic may have to be made first.
    ExtendTopic { topic: String, ledgers: Vec<u64>, is_new: bool },
    /// Copy what the node lacks from the others; auto-recovery does that.
    Replicate { ledger: u64, node: NodeId },
    /// Nothing can be proposed: somebody has to look.
    Look { finding: Finding },
}

/// What to do about findings. Nothing is deleted, and what fits is left alone.
pub fn propose(cluster: &Cluster, findings: &BTreeSet<Finding>) -> Vec<Step> {
    let held = cluster.held();
    let mut steps = BTreeSet::new();
    let mut lost: BTreeMap<&String, Vec<u64>> = BTreeMap::new();
    let restore = |ledger: u64| {
        let copies = held.get(&ledger)?;
        let nodes = copies.iter().map(|(node, _)| (*node).clone()).collect();
        let last_entry = copies.iter().filter_map(|(_, held)| held.last_entry).max();
        Some(Step::RestoreRecord { ledger, nodes, last_entry })
    };
    for finding in findings {
        let step = match finding {
            Finding::IdsInUse => cluster.last_used().map(|last| Step::RaiseLedgerIds { to: last + 1 }),
            Finding::DeletionOfReferenced { ledger, .. } => Some(Step::DropDeletion { ledger: *ledger }),
            Finding::NoRecord { ledger, .. } => restore(*ledger),
            Finding::Lost { ledger, topic: Some(topic) } => {
                lost.entry(topic).or_default().push(*ledger);
                restore(*ledger)
            }
            Finding::FewerEntries { ledger, node } => Some(Step::Replicate { ledger: *ledger, node: node.clone() }),
            Finding::SharedLedger { .. }
            | Finding::Lost { topic: None, .. }
            | Finding::Doubtful { .. }
            | Finding::UnreadableRecord { .. }
            | Finding::Orphan { .. }
            | Finding::NotAsked { .. }
            | Finding::KnowsNotAll { .. }
            | Finding::UnknownNode { .. } => None,
        };
        steps.insert(step.unwrap_or_else(|| Step::Look { finding: finding.clone() }));
    }
    // A topic's ledgers are in the order of their ids, and so are findings.
    for (topic, ledgers) in lost {
        let is_new = !cluster.topics.contains_key(topic);
        steps.insert(Step::ExtendTopic { topic: topic.clone(), ledgers, is_new });
    }
    steps.into_iter().collect()
}
