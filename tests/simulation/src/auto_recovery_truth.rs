//! What is stored where and what metadata say, with what must be true of both.

use std::collections::BTreeSet;

use geminga_ensemble::repair::survey;
use geminga_ensemble::{LedgerMetadata, LedgerState, MetadataOutcome, NodeId, distribution};

use crate::ensemble_node::{AddAnswer, Node, ReadResult, Stored};

/// An entry as it is on its way or on a disk; a bad one has a digest that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    pub stored: Stored,
    pub is_good: bool,
}

/// A node with its disk.
pub struct Store {
    node: Box<dyn Node>,
    pub up: bool,
    /// For good.
    pub is_gone: bool,
    /// Entries whose bytes are not what they were, and those of them that were hurt here.
    bad: BTreeSet<u64>,
    hurt: BTreeSet<u64>,
}

impl Store {
    pub fn new(node: Box<dyn Node>) -> Self {
        Self { node, up: true, is_gone: false, bad: BTreeSet::new(), hurt: BTreeSet::new() }
    }

    pub fn is_there(&self) -> bool {
        self.up && !self.is_gone
    }

    pub fn add(&mut self, entry: u64, body: Body, recovery: bool) -> AddAnswer {
        let had_it = matches!(self.node.read(entry), ReadResult::Here(_));
        let answer = self.node.add(entry, body.stored, recovery);
        if answer == AddAnswer::Ok && !had_it && !body.is_good {
            self.bad.insert(entry);
        }
        answer
    }

    pub fn fence(&mut self) -> Option<u64> {
        self.node.fence()
    }

    pub fn read(&mut self, entry: u64) -> Result<Body, ReadResult> {
        match self.node.read(entry) {
            ReadResult::Here(stored) => Ok(Body { stored, is_good: !self.bad.contains(&entry) }),
            other => Err(other),
        }
    }

    /// Those of the first `count` entries that it has, damaged ones too; `None` if it does not know.
    pub fn list(&mut self, count: u64) -> Option<BTreeSet<u64>> {
        let mut list = BTreeSet::new();
        for entry in 0..count {
            match self.node.read(entry) {
                ReadResult::Here(_) => drop(list.insert(entry)),
                ReadResult::Absent => (),
                ReadResult::Unknown => return None,
            }
        }
        Some(list)
    }

    pub fn crash(&mut self) {
        self.up = false;
        self.node.crash();
    }

    /// A bit of the entry turns.
    pub fn hurt(&mut self, entry: u64) {
        self.bad.insert(entry);
        self.hurt.insert(entry);
    }

    pub fn has_good(&mut self, entry: u64) -> bool {
        self.read(entry).is_ok_and(|body| body.is_good)
    }

    /// Whether it has the entry as it came here.
    pub fn is_hurt(&self) -> bool {
        !self.hurt.is_empty()
    }

    fn has_what_it_was_given(&mut self, entry: u64) -> bool {
        self.has_good(entry) || self.hurt.contains(&entry) && self.read(entry).is_ok()
    }
}

pub fn name(node: usize) -> NodeId {
    format!("node-{node}")
}

pub fn number_of(node: &NodeId) -> usize {
    node.strip_prefix("node-").and_then(|number| number.parse().ok()).expect("a name of ours")
}

/// The ledger as metadata and its writer's acknowledgements have it.
pub struct Truth {
    pub metadata: LedgerMetadata,
    pub version: u64,
    /// Payload up to each entry, as the writer numbered them.
    pub written: Vec<u64>,
    /// Entries below were acknowledged.
    pub confirmed: u64,
    pub closed: Option<LedgerState>,
}

impl Truth {
    pub fn new(metadata: LedgerMetadata) -> Self {
        Self { metadata, version: 1, written: Vec::new(), confirmed: 0, closed: None }
    }

    /// Compare-and-set.
    pub fn write(
        &mut self,
        metadata: LedgerMetadata,
        expected_version: u64,
        by_repair: bool,
        stores: &mut [Store],
    ) -> MetadataOutcome {
        if self.version != expected_version {
            return MetadataOutcome::Found { metadata: self.metadata.clone(), version: self.version };
        }
        assert_eq!(metadata.check(), Ok(()));
        if let Some(closed) = &self.closed {
            assert_eq!(*closed, metadata.state, "a closed ledger changes");
        }
        if let LedgerState::Closed { entries, .. } = metadata.state {
            assert!(entries >= self.confirmed, "closed with {entries} entries, {} are confirmed", self.confirmed);
            assert!(entries <= self.written.len() as u64, "closed with entries that nobody wrote");
            self.closed = Some(metadata.state);
        }
        if by_repair {
            self.check_newcomers(&metadata, stores);
        }
        (self.metadata, self.version) = (metadata, self.version + 1);
        MetadataOutcome::Written { version: self.version }
    }

    /// Whoever comes into a place has every entry that it should have.
    fn check_newcomers(&self, metadata: &LedgerMetadata, stores: &mut [Store]) {
        for stretch in survey::stretches(metadata) {
            let ensemble = &metadata.fragments[stretch.fragment].ensemble;
            let before = &self.metadata.fragment_of(stretch.first).ensemble;
            for entry in stretch.first..stretch.end {
                for slot in distribution::write_order(metadata.quorum, entry) {
                    let newcomer = &ensemble[slot];
                    let has_it = stores[number_of(newcomer)].has_what_it_was_given(entry);
                    assert!(before[slot] == *newcomer || has_it, "{newcomer} is named and lacks entry {entry}");
                }
            }
        }
    }

    /// Good copies of an entry on members of its write set that may still be asked one day.
    pub fn good_copies(&self, entry: u64, stores: &mut [Store]) -> Vec<usize> {
        let ensemble = &self.metadata.fragment_of(entry).ensemble;
        let members = distribution::write_order(self.metadata.quorum, entry).map(|slot| number_of(&ensemble[slot]));
        members.filter(|node| !stores[*node].is_gone && stores[*node].has_good(entry)).collect()
    }

    /// Entries below are in the ledger for good: acknowledged, or found when it was closed.
    pub fn kept(&self) -> u64 {
        match self.closed {
            Some(LedgerState::Closed { entries, .. }) => entries,
            _ => self.confirmed,
        }
    }

    /// What is in the ledger can be read, whatever else has happened.
    pub fn check_readable(&self, stores: &mut [Store]) {
        for entry in 0..self.kept() {
            assert!(!self.good_copies(entry, stores).is_empty(), "entry {entry} is in the ledger and on no node");
        }
    }

    /// The writer acknowledges what an ack quorum has.
    pub fn confirm(&mut self, up_to: u64, stores: &mut [Store]) {
        assert!(up_to + 1 >= self.confirmed, "confirmed out of order");
        if let Some(LedgerState::Closed { entries, .. }) = self.closed {
            assert!(up_to < entries, "confirmed {up_to} after the ledger was closed with {entries} entries");
        }
        let quorum = self.metadata.quorum;
        for entry in self.confirmed..=up_to {
            let ensemble = &self.metadata.fragment_of(entry).ensemble;
            let holders = distribution::write_order(quorum, entry).map(|slot| number_of(&ensemble[slot]));
            let count = holders.filter(|node| stores[*node].read(entry).is_ok()).count();
            assert!(count >= quorum.ack as usize, "entry {entry} is confirmed and on {count} nodes only");
        }
        self.confirmed = up_to + 1;
    }

    /// The first thing that a complete repair would have left otherwise.
    pub fn unrepaired(&self, stores: &mut [Store], leaving: &BTreeSet<NodeId>) -> Option<String> {
        for stretch in survey::stretches(&self.metadata) {
            let ensemble = &self.metadata.fragments[stretch.fragment].ensemble;
            if let Some(node) = ensemble.iter().find(|node| leaving.contains(*node)) {
                return Some(format!("{node} is a member still"));
            }
            for entry in stretch.first..stretch.end {
                for slot in distribution::write_order(self.metadata.quorum, entry) {
                    if !stores[number_of(&ensemble[slot])].has_what_it_was_given(entry) {
                        return Some(format!("{} lacks entry {entry}", ensemble[slot]));
                    }
                }
            }
        }
        None
    }
}
