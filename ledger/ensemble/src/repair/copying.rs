//! Copying what is missing of one stretch of a ledger.
//!
//! A list says that a node has an entry, not that the entry is good. So what a node that comes in says to have already, from a
//! time when it was a member, is read and checked before it counts; a node with a bad entry is not taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::ledger::{CopyFailure, Listing, RepairAction};
use super::survey::Stretch;
use crate::distribution::{write_order, write_set};
use crate::metadata::{NodeId, Quorum};
use crate::planted::{Bug, is_planted};

/// Entries that are read at once: how large they are is not known yet.
const READS_MAX: usize = 32;
/// Entries that are under way at once. Most of them wait until they are written, and nodes sync together what comes together.
const ENTRIES_MAX: usize = 1024;
/// About how many bytes these have; one entry is always under way.
const BYTES_MAX: u64 = 4 << 20;
/// What an entry is taken to have before one was seen.
const FIRST_GUESS_BYTES: u64 = 1 << 20;

/// What each node has of the ledger, `None` if it did not say.
pub(super) type Holdings = BTreeMap<NodeId, Option<Box<dyn Listing>>>;

/// Why a place did not get everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortfall {
    /// No node has a good copy of this entry.
    Unreadable(u64),
    /// Its node did not take an entry.
    NotTaken(CopyFailure),
}

/// Who is to have the entries of a place.
#[derive(Debug)]
pub(super) struct Home {
    pub slot: usize,
    pub node: NodeId,
    pub shortfall: Option<Shortfall>,
}

/// An entry that is being read.
#[derive(Debug)]
struct Reading {
    /// Indices of the homes that lack it.
    to: Vec<usize>,
    asked: NodeId,
    /// Whom to ask next.
    sources: VecDeque<NodeId>,
}

/// An entry that is being written.
#[derive(Debug)]
struct Writing {
    /// Indices of the homes that have not answered.
    to: Vec<usize>,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Copying {
    quorum: Quorum,
    stretch: Stretch,
    ensemble: Vec<NodeId>,
    pub homes: Vec<Home>,
    next: u64,
    reading: BTreeMap<u64, Reading>,
    writing: BTreeMap<u64, Writing>,
    writing_bytes: u64,
    /// Entries that are read from a newcomer to see that they are good, each with the home.
    checks: BTreeSet<(u64, usize)>,
    /// Bytes of the largest entry so far.
    largest: Option<u64>,
    /// It is not wanted any more: nothing is begun, and what is under way comes to its end.
    pub is_stopped: bool,
    pub copied: u64,
}

impl Copying {
    pub fn new(quorum: Quorum, stretch: Stretch, ensemble: Vec<NodeId>, homes: Vec<Home>) -> Self {
        Self {
            quorum,
            stretch,
            ensemble,
            homes,
            next: stretch.first,
            reading: BTreeMap::new(),
            writing: BTreeMap::new(),
            writing_bytes: 0,
            checks: BTreeSet::new(),
            largest: None,
            is_stopped: false,
            copied: 0,
        }
    }

    pub fn is_done(&self) -> bool {
        self.under_way() == 0 && (self.is_stopped || self.next >= self.stretch.end)
    }

    fn under_way(&self) -> usize {
        self.reading.len() + self.writing.len() + self.checks.len()
    }

    fn has_room(&self) -> bool {
        let (reads, under_way) = (self.reading.len() + self.checks.len(), self.under_way());
        let read_bytes = (reads as u64 + 1).saturating_mul(self.largest.unwrap_or(FIRST_GUESS_BYTES));
        let fits = self.writing_bytes.saturating_add(read_bytes) <= BYTES_MAX;
        under_way == 0 || reads < READS_MAX && under_way < ENTRIES_MAX && fits
    }

    /// Begins with further entries as far as there is room.
    pub fn advance(&mut self, holdings: &Holdings, actions: &mut Vec<RepairAction>) {
        while !self.is_stopped && self.next < self.stretch.end && self.has_room() {
            let entry = self.next;
            self.next += 1;
            let (having, to) = self.homes_of(entry, holdings);
            for at in having {
                let node = self.homes[at].node.clone();
                if !self.has_member(&node) && !is_planted(Bug::TrustLists) {
                    self.checks.insert((entry, at));
                    actions.push(RepairAction::Read { entry, node });
                }
            }
            if !to.is_empty() {
                let sources = self.sources(entry, holdings);
                self.ask(entry, to, sources, actions);
            }
        }
    }

    /// Homes that should have the entry: those that say that they have it, and those that lack it.
    fn homes_of(&self, entry: u64, holdings: &Holdings) -> (Vec<usize>, Vec<usize>) {
        let write_set = match is_planted(Bug::CopyHalfTheStripes) {
            true => write_order(self.quorum, entry).take(1).collect(),
            false => write_set(self.quorum, entry),
        };
        let should_have = |at: &usize| self.homes[*at].shortfall.is_none() && write_set.contains(self.homes[*at].slot);
        let listing = |at: &usize| holdings.get(&self.homes[*at].node).and_then(Option::as_ref);
        let has_it = |at: &usize| listing(at).is_some_and(|has| has.contains(entry));
        (0..self.homes.len()).filter(should_have).partition(has_it)
    }

    /// Those that say that they have it, then those of which nobody knows.
    fn sources(&self, entry: u64, holdings: &Holdings) -> VecDeque<NodeId> {
        let members: Vec<&NodeId> = write_order(self.quorum, entry).map(|slot| &self.ensemble[slot]).collect();
        let listing = |node: &NodeId| holdings.get(node).and_then(Option::as_ref);
        let having = members.iter().filter(|node| listing(node).is_some_and(|has| has.contains(entry)));
        let silent = members.iter().filter(|node| listing(node).is_none());
        having.chain(silent).map(|node| (*node).clone()).collect()
    }

    /// Reads the entry from the first of these nodes; without any, its homes do not get it.
    fn ask(&mut self, entry: u64, to: Vec<usize>, mut sources: VecDeque<NodeId>, actions: &mut Vec<RepairAction>) {
        match sources.pop_front() {
            Some(node) => {
                actions.push(RepairAction::Read { entry, node: node.clone() });
                self.reading.insert(entry, Reading { to, asked: node, sources });
            }
            None => {
                for at in to {
                    self.homes[at].shortfall.get_or_insert(Shortfall::Unreadable(entry));
                }
            }
        }
    }

    /// What came of asking a node for an entry: the bytes of a good copy, or none.
    pub fn read(&mut self, entry: u64, node: &NodeId, good: Option<u64>, actions: &mut Vec<RepairAction>) {
        if let Some(at) = self.homes.iter().position(|home| home.node == *node)
            && self.checks.remove(&(entry, at))
        {
            self.largest = self.largest.max(good);
            if good.is_none() {
                self.homes[at].shortfall.get_or_insert(Shortfall::NotTaken(CopyFailure::Refused));
            }
            return;
        }
        if self.reading.get(&entry).is_none_or(|reading| reading.asked != *node) {
            return;
        }
        let Reading { mut to, sources, .. } = self.reading.remove(&entry).expect("just seen");
        if self.is_stopped {
            return;
        }
        let Some(bytes) = good else { return self.ask(entry, to, sources, actions) };
        self.largest = self.largest.max(good);
        to.retain(|at| self.homes[*at].shortfall.is_none());
        if to.is_empty() {
            return;
        }
        let nodes = to.iter().map(|at| self.homes[*at].node.clone()).collect();
        actions.push(RepairAction::Add { entry, nodes });
        self.writing_bytes += bytes;
        self.writing.insert(entry, Writing { to, bytes });
    }

    pub fn added(&mut self, entry: u64, node: &NodeId, result: Result<(), CopyFailure>) {
        let Some(at) = self.homes.iter().position(|home| home.node == *node) else { return };
        let Some(writing) = self.writing.get_mut(&entry).filter(|writing| writing.to.contains(&at)) else { return };
        writing.to.retain(|waiting| *waiting != at);
        if writing.to.is_empty() {
            self.writing_bytes -= writing.bytes;
            self.writing.remove(&entry);
        }
        match result {
            Ok(()) => self.copied += 1,
            Err(failure) => drop(self.homes[at].shortfall.get_or_insert(Shortfall::NotTaken(failure))),
        }
    }

    pub fn has_member(&self, node: &NodeId) -> bool {
        self.ensemble.contains(node)
    }

    pub fn explain(&self, stretch: &Stretch) -> String {
        let waiting = match (self.reading.first_key_value(), self.writing.first_key_value()) {
            (Some((entry, reading)), _) => format!(", waits for entry {entry} from {}", reading.asked),
            (None, Some((entry, _))) => format!(", waits until entry {entry} is written"),
            (None, None) => String::new(),
        };
        let Stretch { first, end, .. } = stretch;
        format!("copies entries {first} to {}, is at {}{}", end - 1, self.next, waiting)
    }

    /// The nodes whose listing is out of date by now.
    pub fn changed(&self) -> BTreeSet<NodeId> {
        self.homes.iter().map(|home| home.node.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct All;

    impl Listing for All {
        fn contains(&self, _: u64) -> bool {
            true
        }
    }

    /// Of 5000 entries with so many bytes, the most that are read at once, and that are under way. What is written is answered only
    /// when nothing else can be done.
    fn most_under_way(bytes: u64) -> (usize, usize) {
        let stretch = Stretch { fragment: 0, first: 0, end: 5000 };
        let home = Home { slot: 1, node: "new".to_owned(), shortfall: None };
        let holdings: Holdings = [("old".to_owned(), Some(Box::new(All) as Box<dyn Listing>))].into();
        let quorum = Quorum { ensemble: 2, write: 2, ack: 2 };
        let mut copying = Copying::new(quorum, stretch, vec!["old".to_owned(), "gone".to_owned()], vec![home]);
        let (mut reads, mut adds, mut actions) = (VecDeque::new(), VecDeque::new(), Vec::new());
        let mut most = (0, 0);
        loop {
            copying.advance(&holdings, &mut actions);
            for action in actions.drain(..) {
                match action {
                    RepairAction::Read { entry, node } => reads.push_back((entry, node)),
                    RepairAction::Add { entry, .. } => adds.push_back(entry),
                    other => panic!("{other:?}"),
                }
            }
            most = (reads.len().max(most.0), (reads.len() + adds.len()).max(most.1));
            if let Some((entry, node)) = reads.pop_front() {
                copying.read(entry, &node, Some(bytes), &mut actions);
            } else if let Some(entry) = adds.pop_front() {
                copying.added(entry, &"new".to_owned(), Ok(()));
            } else {
                assert!(copying.is_done());
                assert_eq!((copying.copied, copying.writing_bytes), (5000, 0));
                return most;
            }
        }
    }

    #[test]
    fn small_entries_wait_together_for_being_written_and_large_ones_are_few() {
        assert_eq!(most_under_way(100), (READS_MAX, ENTRIES_MAX));
        assert_eq!(most_under_way(256 << 10).1, 16);
        assert_eq!(most_under_way(100 << 20).1, (BYTES_MAX / FIRST_GUESS_BYTES) as usize, "before one was seen");
    }
}
