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

/// Entries that are under way at once, and about how many bytes; one is always.
const ENTRIES_MAX: usize = 32;
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

/// One entry on its way.
#[derive(Debug)]
struct Flight {
    /// Indices of the homes that lack it.
    to: Vec<usize>,
    /// Whom to ask next.
    sources: VecDeque<NodeId>,
    /// Who is asked, until somebody has it.
    asked: Option<NodeId>,
}

#[derive(Debug)]
pub(super) struct Copying {
    quorum: Quorum,
    stretch: Stretch,
    ensemble: Vec<NodeId>,
    pub homes: Vec<Home>,
    next: u64,
    flights: BTreeMap<u64, Flight>,
    /// Entries that are read from a newcomer to see that they are good, each with the home.
    checks: BTreeSet<(u64, usize)>,
    /// Bytes of the largest entry so far.
    largest: Option<u64>,
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
            flights: BTreeMap::new(),
            checks: BTreeSet::new(),
            largest: None,
            copied: 0,
        }
    }

    pub fn is_done(&self) -> bool {
        self.under_way() == 0 && self.next >= self.stretch.end
    }

    fn under_way(&self) -> usize {
        self.flights.len() + self.checks.len()
    }

    fn has_room(&self) -> bool {
        let bytes = (self.under_way() as u64 + 1).saturating_mul(self.largest.unwrap_or(FIRST_GUESS_BYTES));
        self.under_way() == 0 || self.under_way() < ENTRIES_MAX && bytes <= BYTES_MAX
    }

    /// Begins with further entries as far as there is room.
    pub fn advance(&mut self, holdings: &Holdings, actions: &mut Vec<RepairAction>) {
        while self.next < self.stretch.end && self.has_room() {
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
                self.flights.insert(entry, Flight { to, sources, asked: None });
                self.ask(entry, actions);
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

    fn ask(&mut self, entry: u64, actions: &mut Vec<RepairAction>) {
        let flight = self.flights.get_mut(&entry).expect("it is on its way");
        flight.asked = flight.sources.pop_front();
        match flight.asked.clone() {
            Some(node) => actions.push(RepairAction::Read { entry, node }),
            None => {
                for at in self.flights.remove(&entry).expect("just seen").to {
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
        let Some(flight) = self.flights.get_mut(&entry).filter(|flight| flight.asked.as_ref() == Some(node)) else {
            return;
        };
        let Some(bytes) = good else { return self.ask(entry, actions) };
        flight.asked = None;
        self.largest = self.largest.max(Some(bytes));
        flight.to.retain(|at| self.homes[*at].shortfall.is_none());
        if flight.to.is_empty() {
            self.flights.remove(&entry);
            return;
        }
        let nodes = flight.to.iter().map(|at| self.homes[*at].node.clone()).collect();
        actions.push(RepairAction::Add { entry, nodes });
    }

    pub fn added(&mut self, entry: u64, node: &NodeId, result: Result<(), CopyFailure>) {
        let Some(at) = self.homes.iter().position(|home| home.node == *node) else { return };
        let Some(flight) = self.flights.get_mut(&entry).filter(|flight| flight.to.contains(&at)) else { return };
        flight.to.retain(|waiting| *waiting != at);
        if flight.to.is_empty() {
            self.flights.remove(&entry);
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
        let waiting = self.flights.iter().next().map(|(entry, flight)| match &flight.asked {
            Some(node) => format!(", waits for entry {entry} from {node}"),
            None => format!(", waits until entry {entry} is written"),
        });
        let Stretch { first, end, .. } = stretch;
        format!("copies entries {first} to {}, is at {}{}", end - 1, self.next, waiting.unwrap_or_default())
    }

    /// The nodes whose listing is out of date by now.
    pub fn changed(&self) -> BTreeSet<NodeId> {
        self.homes.iter().map(|home| home.node.clone()).collect()
    }
}
