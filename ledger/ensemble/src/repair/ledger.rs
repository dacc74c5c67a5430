//! The repair of one ledger, by one worker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::copying::{Copying, Holdings, Home, Shortfall};
use super::nodes::{NodeTable, Standing};
use super::survey::{self, Stretch};
use crate::metadata::{LedgerMetadata, NodeId};
use crate::planted::{Bug, is_planted};
use crate::writer::MetadataOutcome;

/// How often it looks again after somebody else has changed the metadata, before it leaves the ledger to a later repair.
const CONFLICTS_MAX: u32 = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairAction {
    /// Ask which entries of the ledger the node has; tell [`LedgerRepair::listed`].
    List { node: NodeId },
    /// Read the entry and check its digest; tell [`LedgerRepair::read`]. Its bytes are kept until the actions that follow from
    /// that are carried out.
    Read { entry: u64, node: NodeId },
    /// Write the entry that was just read, as a recovery; tell [`LedgerRepair::added`] of each node.
    Add { entry: u64, nodes: Vec<NodeId> },
    /// As [`crate::WriterAction::WriteMetadata`]; tell [`LedgerRepair::metadata_written`].
    WriteMetadata { metadata: LedgerMetadata, expected_version: u64 },
    /// The end.
    Done(RepairReport),
}

/// Which entries of a ledger a node has.
pub trait Listing: fmt::Debug + Send {
    fn contains(&self, entry: u64) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyFailure {
    /// The node is there, and does not take it.
    Refused,
    /// It does not answer.
    Unreachable,
}

/// Why something is left as it was. It can be tried again later, by anybody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Blocker {
    #[error("no node is there to take the place of {0}")]
    NoSuccessor(NodeId),
    #[error("no node has a good copy of entry {0}")]
    Unreadable(u64),
    #[error("{0} does not say what it has, or does not take what it lacks")]
    Silent(NodeId),
    #[error("somebody else changes the ledger's metadata all the time")]
    Contended,
}

/// What a repair has come to. Without blockers each entry was, when its stretch was looked at, on every node that should have
/// it and is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RepairReport {
    /// Entries that a node was given, counted for each node.
    pub copied: u64,
    /// Places that have another node now.
    pub replaced: u64,
    pub blockers: BTreeSet<Blocker>,
    /// The ledger was deleted meanwhile.
    pub is_gone: bool,
}

#[derive(Debug)]
enum Phase {
    /// Goes on with the first stretch that begins at or behind an entry.
    Between {
        next: u64,
    },
    /// Nodes are asked what they have, for the stretch with the places as they are to be.
    Listing {
        stretch: Stretch,
        planned: Vec<NodeId>,
        waiting: BTreeSet<NodeId>,
    },
    Copying {
        planned: Vec<NodeId>,
        stretch: Stretch,
        copying: Copying,
    },
    Writing {
        metadata: LedgerMetadata,
        replaced: u64,
        next: u64,
    },
    Ended,
}

/// See the module's head. Time and chance come in from outside, and so do nodes: the table is as it was when the repair began, or when
/// [`LedgerRepair::nodes_changed`] was last told.
#[derive(Debug)]
pub struct LedgerRepair {
    metadata: LedgerMetadata,
    version: u64,
    nodes: NodeTable,
    random: u64,
    phase: Phase,
    holdings: Holdings,
    /// Members that do not take what they lack: as good as lost.
    refusing: BTreeSet<NodeId>,
    /// Nodes that nothing is given to any more.
    avoid: BTreeSet<NodeId>,
    /// Who is to come into a place, kept so that nothing is copied twice after looking again.
    successors: BTreeMap<(u64, usize), NodeId>,
    conflicts: u32,
    report: RepairReport,
    actions: Vec<RepairAction>,
}

impl LedgerRepair {
    /// Begins with the metadata as they were just read. `random` decides between nodes that are equally good.
    pub fn new(metadata: LedgerMetadata, version: u64, nodes: NodeTable, random: u64) -> Self {
        let mut repair = Self {
            metadata,
            version,
            nodes,
            random,
            phase: Phase::Between { next: 0 },
            holdings: BTreeMap::new(),
            refusing: BTreeSet::new(),
            avoid: BTreeSet::new(),
            successors: BTreeMap::new(),
            conflicts: 0,
            report: RepairReport::default(),
            actions: Vec::new(),
        };
        repair.go_on();
        repair
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Vec<RepairAction> {
        std::mem::take(&mut self.actions)
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// What it waits for, since its last action.
    pub fn explain(&self) -> String {
        match &self.phase {
            Phase::Listing { waiting, .. } => format!("asks what nodes have: {waiting:?} have not answered"),
            Phase::Copying { stretch, copying, .. } => copying.explain(stretch),
            Phase::Writing { .. } => "writes the ledger's metadata".to_owned(),
            Phase::Between { .. } => "begins".to_owned(),
            Phase::Ended => "has ended".to_owned(),
        }
    }

    fn done(&mut self) {
        self.phase = Phase::Ended;
        self.actions.push(RepairAction::Done(std::mem::take(&mut self.report)));
    }

    /// As far as it can without waiting. A ledger may have any number of stretches.
    fn go_on(&mut self) {
        while self.step() {}
    }

    /// Whether that has changed the phase, so that more may be possible.
    fn step(&mut self) -> bool {
        match &mut self.phase {
            Phase::Between { next } => {
                let next = *next;
                let stretch = survey::stretches(&self.metadata).find(|stretch| stretch.first >= next);
                match stretch {
                    Some(stretch) => self.begin(stretch),
                    None => self.done(),
                }
                true
            }
            Phase::Listing { waiting, .. } if waiting.is_empty() => {
                self.copy_what_is_missing();
                true
            }
            Phase::Copying { copying, .. } => {
                copying.advance(&self.holdings, &mut self.actions);
                let is_done = copying.is_done() || is_planted(Bug::NameBeforeCopied);
                if is_done {
                    self.finish_stretch();
                }
                is_done
            }
            Phase::Listing { .. } | Phase::Writing { .. } | Phase::Ended => false,
        }
    }

    fn begin(&mut self, stretch: Stretch) {
        let planned = self.plan(stretch);
        let ensemble = &self.metadata.fragments[stretch.fragment].ensemble;
        let mut waiting = BTreeSet::new();
        for node in ensemble.iter().chain(&planned).filter(|node| !self.holdings.contains_key(*node)) {
            let is_there = !matches!(self.nodes.standing(node), Standing::Away | Standing::Lost);
            if is_there && waiting.insert(node.clone()) {
                self.actions.push(RepairAction::List { node: node.clone() });
            }
        }
        self.phase = Phase::Listing { stretch, planned, waiting };
    }

    /// The stretch's ensemble as it is to be.
    fn plan(&mut self, stretch: Stretch) -> Vec<NodeId> {
        let mut planned = self.metadata.fragments[stretch.fragment].ensemble.clone();
        let leaves = |node: &NodeId| self.nodes.must_leave(node) || self.refusing.contains(node);
        let leaving: Vec<usize> = (0..planned.len()).filter(|slot| leaves(&planned[*slot])).collect();
        for &slot in &leaving {
            match self.successor(stretch, &planned, slot) {
                Some(node) => planned[slot] = node,
                None => drop(self.report.blockers.insert(Blocker::NoSuccessor(planned[slot].clone()))),
            }
        }
        if leaving.is_empty() {
            for _ in 0..planned.len() {
                let Some(slot) = self.nodes.crowded(&planned, &self.avoid) else { break };
                let Some(node) = self.successor(stretch, &planned, slot) else { break };
                planned[slot] = node;
            }
        }
        planned
    }

    fn successor(&mut self, stretch: Stretch, planned: &[NodeId], slot: usize) -> Option<NodeId> {
        let place = (stretch.first, slot);
        let before = self.successors.get(&place).filter(|node| !planned.contains(node) && !self.avoid.contains(*node));
        if let Some(node) = before {
            return Some(node.clone());
        }
        // Any sequence that differs from place to place will do.
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let node = self.nodes.successor(planned, slot, &self.avoid, self.random >> 16)?;
        self.successors.insert(place, node.clone());
        Some(node)
    }

    /// The nodes as they are by now. Whether copies that were asked for are wanted no more: a member whose place they were to fill is
    /// back. Each is still to be answered for, done or not.
    pub fn nodes_changed(&mut self, nodes: NodeTable) -> bool {
        let before = std::mem::replace(&mut self.nodes, nodes);
        let (Phase::Listing { stretch, planned, .. } | Phase::Copying { stretch, planned, .. }) = &self.phase else {
            return false;
        };
        let (first, ensemble) = (stretch.first, &self.metadata.fragments[stretch.fragment].ensemble);
        let is_back = |node: &NodeId| before.must_leave(node) && !self.nodes.must_leave(node);
        if !ensemble.iter().zip(planned).any(|(member, node)| member != node && is_back(member)) {
            return false;
        }
        match &mut self.phase {
            Phase::Copying { copying, .. } => copying.is_stopped = true,
            _ => self.phase = Phase::Between { next: first },
        }
        self.go_on();
        true
    }

    /// A node's answer, `None` if it gave none or does not know.
    pub fn listed(&mut self, node: &NodeId, listing: Option<Box<dyn Listing>>) {
        let Phase::Listing { waiting, .. } = &mut self.phase else { return };
        if waiting.remove(node) {
            self.holdings.insert(node.clone(), listing);
            self.go_on();
        }
    }

    /// Everybody has answered.
    fn copy_what_is_missing(&mut self) {
        let Phase::Listing { stretch, planned, .. } = &self.phase else { return };
        let (stretch, planned) = (*stretch, planned.clone());
        let ensemble = self.metadata.fragments[stretch.fragment].ensemble.clone();
        let is_silent = |node: &NodeId| self.holdings.get(node).is_none_or(Option::is_none);
        let silent_successors: Vec<NodeId> =
            planned.iter().filter(|node| !ensemble.contains(node) && is_silent(node)).cloned().collect();
        if !silent_successors.is_empty() {
            self.avoid.extend(silent_successors);
            self.phase = Phase::Between { next: stretch.first };
            return;
        }
        let mut homes = Vec::new();
        for (slot, node) in planned.iter().enumerate() {
            let is_member = ensemble[slot] == *node;
            let waits = is_member && matches!(self.nodes.standing(node), Standing::Away | Standing::Lost);
            if is_silent(node) && !waits && !self.nodes.must_leave(node) {
                self.report.blockers.insert(Blocker::Silent(node.clone()));
            }
            // Nobody adds to a member that has to go and cannot, or of which nobody knows what it has.
            let takes_nothing = is_member && self.nodes.must_leave(node) || self.refusing.contains(node);
            if !is_silent(node) && !takes_nothing {
                homes.push(Home { slot, node: node.clone(), shortfall: None });
            }
        }
        let copying = Copying::new(self.metadata.quorum, stretch, ensemble, homes);
        self.phase = Phase::Copying { planned, stretch, copying };
    }

    /// What came of a read: how many bytes a good copy has, or `None` for whatever else.
    pub fn read(&mut self, entry: u64, node: &NodeId, good: Option<u64>) {
        let Phase::Copying { copying, .. } = &mut self.phase else { return };
        copying.read(entry, node, good, &mut self.actions);
        self.go_on();
    }

    pub fn added(&mut self, entry: u64, node: &NodeId, result: Result<(), CopyFailure>) {
        let Phase::Copying { copying, .. } = &mut self.phase else { return };
        copying.added(entry, node, result);
        self.go_on();
    }

    /// All that could be copied is.
    fn finish_stretch(&mut self) {
        let Phase::Copying { planned, stretch, copying } = std::mem::replace(&mut self.phase, Phase::Ended) else {
            unreachable!("just seen")
        };
        self.report.copied += copying.copied;
        if copying.is_stopped || self.note_shortfalls(&copying) {
            for node in copying.changed() {
                self.holdings.remove(&node);
            }
            self.phase = Phase::Between { next: stretch.first };
            return;
        }
        self.name_successors(stretch, &planned, &copying);
    }

    /// Whether the stretch has to be planned anew, with other nodes.
    fn note_shortfalls(&mut self, copying: &Copying) -> bool {
        let mut plan_anew = false;
        for Home { node, shortfall, .. } in &copying.homes {
            let is_member = copying.has_member(node);
            match *shortfall {
                None => (),
                Some(Shortfall::Unreadable(entry)) => drop(self.report.blockers.insert(Blocker::Unreadable(entry))),
                Some(Shortfall::NotTaken(CopyFailure::Unreachable)) if is_member => {
                    self.report.blockers.insert(Blocker::Silent(node.clone()));
                }
                Some(Shortfall::NotTaken(_)) => {
                    if is_member {
                        self.refusing.insert(node.clone());
                    }
                    plan_anew |= self.avoid.insert(node.clone());
                }
            }
        }
        plan_anew
    }

    /// Every entry that the successors should have is there: now metadata may say so.
    fn name_successors(&mut self, stretch: Stretch, planned: &[NodeId], copying: &Copying) {
        let mut ensemble = self.metadata.fragments[stretch.fragment].ensemble.clone();
        let mut replaced = 0;
        for home in copying.homes.iter().filter(|home| home.shortfall.is_none()) {
            debug_assert_eq!(planned[home.slot], home.node);
            replaced += u64::from(ensemble[home.slot] != home.node);
            ensemble[home.slot].clone_from(&home.node);
        }
        let next = stretch.first + 1;
        if replaced == 0 {
            self.phase = Phase::Between { next };
            return;
        }
        let mut metadata = self.metadata.clone();
        metadata.fragments[stretch.fragment].ensemble = ensemble;
        self.actions.push(RepairAction::WriteMetadata { metadata: metadata.clone(), expected_version: self.version });
        self.phase = Phase::Writing { metadata, replaced, next };
    }

    /// `None` if the ledger is not in the metadata any more.
    pub fn metadata_written(&mut self, outcome: Option<MetadataOutcome>) {
        let Phase::Writing { metadata, replaced, next } = std::mem::replace(&mut self.phase, Phase::Ended) else {
            return;
        };
        match outcome {
            None => {
                self.report.is_gone = true;
                self.done();
            }
            Some(MetadataOutcome::Written { version }) => self.named(metadata, version, replaced, next),
            Some(MetadataOutcome::Found { metadata: found, version }) if found == metadata => {
                self.named(metadata, version, replaced, next);
            }
            Some(MetadataOutcome::Found { version, .. }) if is_planted(Bug::OverwriteConflicts) => {
                self.version = version;
                self.actions
                    .push(RepairAction::WriteMetadata { metadata: metadata.clone(), expected_version: version });
                self.phase = Phase::Writing { metadata, replaced, next };
            }
            Some(MetadataOutcome::Found { metadata, version }) => {
                (self.metadata, self.version) = (metadata, version);
                self.conflicts += 1;
                if self.conflicts > CONFLICTS_MAX {
                    self.report.blockers.insert(Blocker::Contended);
                    return self.done();
                }
                self.holdings.clear();
                self.report.blockers.clear();
                self.phase = Phase::Between { next: 0 };
            }
        }
        self.go_on();
    }

    fn named(&mut self, metadata: LedgerMetadata, version: u64, replaced: u64, next: u64) {
        (self.metadata, self.version) = (metadata, version);
        self.report.replaced += replaced;
        self.phase = Phase::Between { next };
    }
}
