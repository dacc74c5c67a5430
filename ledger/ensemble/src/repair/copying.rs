//! Copying what is missing of one stretch of a ledger.

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
    /// Bytes of the largest entry so far.
    largest: Option<u64>,
    pub copied: u64,
}

impl Copying {
    pub fn new(quorum: Quorum, stretch: Stretch, ensemble: Vec<NodeId>, homes: Vec<Home>) -> Self {
        let (next, flights) = (stretch.first, BTreeMap::new());
        Self { quorum, stretch, ensemble, homes, next, flights, largest: None, copied: 0 }
    }

    pub fn is_done(&self) -> bool {
        self.flights.is_empty() && self.next >= self.stretch.end
    }

    fn has_room(&self) -> bool {
        let bytes = (self.flights.len() as u64 + 1).saturating_mul(self.largest.unwrap_or(FIRST_GUESS_BYTES));
        self.flights.is_empty() || self.flights.len() < ENTRIES_MAX && bytes <= BYTES_MAX
    }

    /// Begins with further entries as far as there is room.
    pub fn advance(&mut self, holdings: &Holdings, actions: &mut Vec<RepairAction>) {
        while self.next < self.stretch.end && self.has_room() {
            let entry = self.next;
            self.next += 1;
            let to = self.lacking(entry, holdings);
            if !to.is_empty() {
                let sources = self.sources(entry, holdings);
                self.flights.insert(entry, Flight { to, sources, asked: None });
                self.ask(entry, actions);
            }
        }
    }

    /// Homes that should have the entry and lack it.
    fn lacking(&self, entry: u64, holdings: &Holdings) -> Vec<usize> {
        let write_set = match is_planted(Bug::CopyHalfTheStripes) {
            true => write_order(self.quorum, entry).take(1).collect(),
            false => write_set(self.quorum, entry),
        };
        let has_it = |node: &NodeId| holdings.get(node).and_then(Option::as_ref).is_some_and(|has| has.contains(entry));
        let homes = self.homes.iter().enumerate();
        let lacking =
            homes.filter(|(_, home)| home.shortfall.is_none() && write_set.contains(home.slot) && !has_it(&home.node));
        lacking.map(|(at, _)| at).collect()
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
