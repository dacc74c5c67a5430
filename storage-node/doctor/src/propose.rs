//! What would repair it.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::{NodeId, Quorum};

use crate::cluster::{Cluster, Contents, Held, Label, Owner, Record};
use crate::examine::{Finding, partition_of};
use crate::plan::Step;

/// Ids that were given between a node's last look and the end of what was lost, at most.
const CURSOR_IDS_MARGIN: u64 = 10_000;

/// What to do about findings. Nothing is deleted from storage, nothing is taken out of a list unless somebody confirms it, and what fits
/// is left alone.
pub fn propose(cluster: &Cluster, findings: &BTreeSet<Finding>) -> Vec<Step> {
    let mut proposal = Proposal::new(cluster);
    for finding in findings {
        match proposal.answer(finding) {
            Some(steps) => proposal.steps.extend(steps),
            None => drop(proposal.steps.insert(Step::Look { finding: finding.clone() })),
        }
    }
    proposal.finish()
}

struct Proposal<'c> {
    cluster: &'c Cluster,
    held: BTreeMap<u64, Vec<(&'c NodeId, &'c Held)>>,
    usual: Option<Quorum>,
    steps: BTreeSet<Step>,
    /// Ledgers that belong into topics' lists.
    topics: BTreeMap<String, Vec<u64>>,
    /// Bundles whose cursor logs have ledgers that metadata do not know.
    bundles: BTreeSet<String>,
}

impl<'c> Proposal<'c> {
    fn new(cluster: &'c Cluster) -> Self {
        let (held, usual) = (cluster.held(), usual_quorum(cluster));
        let (steps, topics, bundles) = Default::default();
        Self { cluster, held, usual, steps, topics, bundles }
    }

    /// None: somebody has to look.
    fn answer(&mut self, finding: &Finding) -> Option<Vec<Step>> {
        match finding {
            Finding::IdsInUse => Some(self.raise(0)),
            Finding::Restored { node } => {
                let remembered = self.cluster.restored.get(node)?;
                let mut steps = self.raise(remembered.ledger_ids_end);
                steps.push(Step::Settle { node: node.clone(), seen: remembered.version });
                Some(steps)
            }
            Finding::DeletionOfReferenced { ledger, .. } => Some(vec![Step::DropDeletion { ledger: *ledger }]),
            Finding::NoRecord { ledger, .. } => self.restore(*ledger).map(|step| vec![step]),
            Finding::Lost { ledger, owner: Some(owner) } => self.bring_back(*ledger, owner),
            Finding::Doubtful { ledger, owner: Some(owner) } if self.may_be_new(*ledger, owner) => {
                self.bring_back(*ledger, owner)
            }
            Finding::Nowhere { ledger, owner } => self.forget(*ledger, owner),
            Finding::Elsewhere { ledger } => self.widen(*ledger).map(|step| vec![step]),
            // What it has acknowledged stays so; what is new has to come behind it.
            Finding::CursorAhead { ledger, .. } => Some(self.raise(ledger + 1)),
            Finding::NotPartitioned { topic } => self.partitioned(topic).map(|step| vec![step]),
            Finding::FewerEntries { ledger, node } => {
                Some(vec![Step::Replicate { ledger: *ledger, node: node.clone() }])
            }
            Finding::SharedLedger { .. }
            | Finding::Lost { owner: None, .. }
            | Finding::Doubtful { .. }
            | Finding::UnreadableRecord { .. }
            | Finding::Orphan { .. }
            | Finding::NotAsked { .. }
            | Finding::KnowsNotAll { .. }
            | Finding::UnknownNode { .. } => None,
        }
    }

    /// Ids above those that are in use, and above those that any node has seen.
    fn raise(&self, ledgers: u64) -> Vec<Step> {
        let seen = self.cluster.restored.values();
        let ledgers = seen.clone().map(|seen| seen.ledger_ids_end).fold(ledgers, u64::max);
        let ledgers = self.cluster.last_used().map_or(ledgers, |last| ledgers.max(last + 1));
        let mut steps = Vec::new();
        if ledgers > self.cluster.ledger_ids_end {
            steps.push(Step::RaiseLedgerIds { to: ledgers });
        }
        if let Some(cursors) = seen.map(|seen| seen.cursor_ids_end).max() {
            let to = cursors.max(self.cluster.cursor_ids_end) + CURSOR_IDS_MARGIN;
            steps.push(Step::RaiseCursorIds { to });
        }
        steps
    }

    /// Where nobody knows the topic, a ledger may be of a time after the dump: a topic that comes back although it was deleted is better
    /// than one that is lost.
    fn may_be_new(&self, ledger: u64, owner: &Owner) -> bool {
        match owner {
            Owner::Topic(topic) => !self.cluster.topics.contains_key(topic),
            Owner::CursorLog(bundle) => {
                self.newest_of_log(bundle).is_some_and(|(_, ledgers)| ledgers.contains(&ledger))
            }
        }
    }

    fn bring_back(&mut self, ledger: u64, owner: &Owner) -> Option<Vec<Step>> {
        let restored = self.restore(ledger)?;
        match owner {
            Owner::Topic(topic) => self.topics.entry(topic.clone()).or_default().push(ledger),
            Owner::CursorLog(bundle) => {
                // What the newest ledger of the log does not name was dropped before it began.
                self.newest_of_log(bundle).filter(|(_, ledgers)| ledgers.contains(&ledger))?;
                self.bundles.insert(bundle.clone());
            }
        }
        Some(vec![restored])
    }

    /// Only when every node was asked: an entry that was acknowledged is on some of them, nobody knows which.
    fn restore(&self, ledger: u64) -> Option<Step> {
        let copies = self.held.get(&ledger).filter(|_| self.cluster.all_is_known())?;
        let last_entry = copies.iter().filter_map(|(_, held)| held.last_entry).max();
        let nodes = self.filled_up(copies.iter().map(|(node, _)| (*node).clone()).collect());
        Some(Step::RestoreRecord { ledger, ack: self.ack_of(&nodes), nodes, last_entry })
    }

    fn widen(&self, ledger: u64) -> Option<Step> {
        let copies = self.held.get(&ledger).filter(|_| self.cluster.all_is_known())?;
        let Some(Record::Read { metadata, version }) = self.cluster.records.get(&ledger) else { return None };
        let named = metadata.fragments.iter().flat_map(|fragment| &fragment.ensemble);
        let named = named.filter(|node| self.cluster.nodes.contains_key(*node));
        let nodes: BTreeSet<NodeId> = copies.iter().map(|(node, _)| *node).chain(named).cloned().collect();
        let nodes = self.filled_up(nodes.into_iter().collect());
        Some(Step::WidenRecord { ledger, ack: self.ack_of(&nodes), nodes, seen: *version })
    }

    /// With other nodes, as long as there are fewer than ledgers have copies here.
    fn filled_up(&self, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        let wanted = self.usual.map_or(0, |quorum| quorum.write as usize);
        let others: Vec<&NodeId> = self.cluster.nodes.keys().filter(|node| !nodes.contains(node)).collect();
        nodes.extend(others.into_iter().take(wanted.saturating_sub(nodes.len())).cloned().collect::<Vec<_>>());
        nodes
    }

    fn ack_of(&self, nodes: &[NodeId]) -> u32 {
        self.usual.map_or(1, |quorum| quorum.ack).min(nodes.len() as u32)
    }

    fn forget(&self, ledger: u64, owner: &Owner) -> Option<Vec<Step>> {
        let seen = match owner {
            Owner::Topic(topic) => self.cluster.topics.get(topic)?.version,
            Owner::CursorLog(bundle) => {
                // Taken out with the list that is made anew.
                if self.bundles.contains(bundle) {
                    return Some(Vec::new());
                }
                self.cluster.cursor_logs.get(bundle)?.version
            }
        };
        Some(vec![Step::ForgetLedger { owner: owner.clone(), ledger, seen, confirmed: false }])
    }

    fn partitioned(&self, topic: &str) -> Option<Step> {
        let labels = self.held.values().flatten().filter_map(|(_, held)| match &held.label {
            Some(Label::Topic(topic)) => Some(topic),
            _ => None,
        });
        let all = self.cluster.topics.keys().chain(labels).filter_map(|topic| partition_of(topic));
        let last = all.filter(|(base, _)| *base == topic).map(|(_, index)| index).max()?;
        Some(Step::CreatePartitioned { topic: topic.to_owned(), partitions: last.checked_add(1)? })
    }

    /// The ledger of a bundle's cursor log that was begun last, by what it says of itself, and the ledgers that the log had then.
    fn newest_of_log(&self, bundle: &str) -> Option<(u64, &'c [u64])> {
        self.held.iter().rev().find_map(|(ledger, copies)| {
            copies.iter().find_map(|(_, held)| match &held.label {
                Some(Label::CursorLog { bundle: of, ledgers }) if of == bundle => Some((*ledger, &ledgers[..])),
                _ => None,
            })
        })
    }

    fn finish(mut self) -> Vec<Step> {
        for (topic, ledgers) in std::mem::take(&mut self.topics) {
            // A topic's ledgers are in the order of their ids, whatever was found first.
            let ledgers: Vec<u64> = BTreeSet::from_iter(ledgers).into_iter().collect();
            let seen = self.cluster.topics.get(&topic).map(|topic| topic.version);
            self.steps.insert(Step::ExtendTopic { topic, ledgers, seen });
        }
        for bundle in std::mem::take(&mut self.bundles) {
            let Some((_, listed)) = self.newest_of_log(&bundle) else { continue };
            // One that is nowhere was dropped after the newest began: nodes remember, and would not have lost it all of them.
            let ledgers = listed.iter().copied().filter(|ledger| !self.cluster.is_nowhere(*ledger)).collect();
            let seen = self.cluster.cursor_logs.get(&bundle).map(|log| log.version);
            self.steps.insert(Step::RestoreCursorLog { bundle, ledgers, seen });
        }
        self.steps.into_iter().collect()
    }
}

/// The quorum that most ledgers have.
fn usual_quorum(cluster: &Cluster) -> Option<Quorum> {
    let mut counts: BTreeMap<(u32, u32), (u32, Quorum)> = BTreeMap::new();
    for record in cluster.records.values() {
        if let Record::Read { metadata, .. } = record {
            let quorum = metadata.quorum;
            counts.entry((quorum.write, quorum.ack)).or_insert((0, quorum)).0 += 1;
        }
    }
    let readable = cluster.nodes.values().filter(|node| matches!(node.contents, Contents::Read(_))).count();
    let usual = counts.into_values().max_by_key(|(count, _)| *count).map(|(_, quorum)| quorum);
    usual.filter(|quorum| quorum.write as usize <= readable)
}
