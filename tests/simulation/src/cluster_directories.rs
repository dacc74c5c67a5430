//! The data directories of a simulated storage node: one may be missing for a while, or be given up. What the node answers meanwhile, and
//! until when, is what `limbo.rs` and `healing.rs` of `storage-node/server` say.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::Share;
use rand::Rng;

use crate::cluster_model::{Model, Replica};
use crate::cluster_plant::Plant;
use crate::cluster_sim::{Micros, SECOND};

/// How long the writers of open ledgers have to leave a node that may have lost what it has of them, before they are closed.
pub const CLOSE_AFTER: Micros = 20 * SECOND;
/// Of what may have been lost while metadata cannot be asked.
pub const UNKNOWN: u64 = u64::MAX;

#[derive(Default)]
pub struct Limbo {
    /// Ledgers with smaller ids may have been here.
    pub below: u64,
    pub settled_below: u64,
    unfinished: BTreeSet<u64>,
    away: Option<Away>,
    /// Since when it is not settled.
    since: Option<Micros>,
    /// Ledgers that keep it from being settled, for so long that they are to be closed.
    pub to_close: BTreeSet<u64>,
}

/// A directory that is missing, and may come back.
struct Away {
    replicas: BTreeMap<u64, Replica>,
    deleted: BTreeSet<u64>,
    below: u64,
    settled_below: u64,
}

impl Limbo {
    pub fn is_settled(&self) -> bool {
        self.settled_below >= self.below
    }

    pub fn is_unfinished(&self, ledger: u64) -> bool {
        self.unfinished.contains(&ledger)
    }

    pub fn misses_directory(&self) -> bool {
        self.away.is_some()
    }

    pub fn away(&self) -> impl Iterator<Item = &BTreeMap<u64, Replica>> {
        self.away.iter().map(|away| &away.replicas)
    }

    /// Open ledgers that may be here keep it from being settled; after some time they are to be closed.
    pub fn wait_for(&mut self, now: Micros, open: BTreeSet<u64>) {
        if now - *self.since.get_or_insert(now) > CLOSE_AFTER {
            self.to_close = open;
        }
    }

    pub fn waits_for_nothing(&mut self) {
        self.since = None;
        self.to_close.clear();
    }

    /// The disk is gone with all that it was.
    pub fn clear(&mut self) {
        *self = Limbo::default();
    }
}

impl Model {
    fn directory_of(&self, ledger: u64) -> u64 {
        (ledger ^ self.salt) % self.directories
    }

    pub fn is_in_limbo(&self, ledger: u64) -> bool {
        ledger < self.limbo.below && !self.replicas.contains_key(&ledger) && !self.deleted.contains(&ledger)
    }

    /// One that the machine starts without. `horizon`: the next ledger id of the metadata, if they can be asked.
    pub fn put_directory_away(&mut self, horizon: Option<u64>) {
        let directory = self.rng.random_range(0..self.directories);
        let (replicas, deleted) = self.take_directory(directory);
        let Limbo { below, settled_below, .. } = self.limbo;
        self.limbo.away = Some(Away { replicas, deleted, below, settled_below });
        if self.plant != Plant::LostDirectoryIsEmpty {
            (self.limbo.below, self.limbo.settled_below) = (horizon.unwrap_or(UNKNOWN).max(below), 0);
        }
    }

    /// It is there again, after another start.
    pub fn take_directory_back(&mut self) {
        let Some(Away { replicas, deleted, below, settled_below }) = self.limbo.away.take() else { return };
        for (ledger, replica) in replicas {
            if let Some(other) = self.replicas.insert(ledger, replica) {
                assert_eq!(self.plant, Plant::LostDirectoryIsEmpty, "ledger {ledger} is in two directories");
                self.replicas.entry(ledger).and_modify(|replica| replica.join(other));
            }
        }
        self.deleted.extend(deleted);
        (self.limbo.below, self.limbo.settled_below) = (below, settled_below);
    }

    /// A directory, the one that is missing if one is, is gone for good, and an empty one takes its place.
    pub fn lose_directory(&mut self, horizon: u64) {
        let below = match self.limbo.away.take() {
            Some(away) => away.below,
            None => {
                let directory = self.rng.random_range(0..self.directories);
                drop(self.take_directory(directory));
                self.limbo.below
            }
        };
        if self.plant != Plant::LostDirectoryIsEmpty {
            (self.limbo.below, self.limbo.settled_below) = (horizon.max(below), 0);
        }
    }

    fn take_directory(&mut self, directory: u64) -> (BTreeMap<u64, Replica>, BTreeSet<u64>) {
        let there = |ledger: &u64| self.directory_of(*ledger) == directory;
        let ledgers: Vec<u64> = self.replicas.keys().copied().filter(there).collect();
        let deleted: BTreeSet<u64> = self.deleted.iter().copied().filter(there).collect();
        self.deleted.retain(|ledger| !deleted.contains(ledger));
        let take = |ledger| (ledger, self.replicas.remove(&ledger).expect("it was listed"));
        (ledgers.into_iter().map(take).collect(), deleted)
    }

    /// What a look at metadata settles. `shares`: what they say that this node has to have, of every ledger that names it. Answers how many
    /// things were settled.
    pub fn settle_losses(&mut self, now: Micros, horizon: u64, shares: &BTreeMap<u64, Share>) -> u64 {
        if self.limbo.below == UNKNOWN {
            self.limbo.below = horizon;
        }
        self.forgive_holes(shares) + self.settle_limbo(now, shares) + self.finish(shares)
    }

    fn settle_limbo(&mut self, now: Micros, shares: &BTreeMap<u64, Share>) -> u64 {
        self.limbo.to_close.clear();
        if self.limbo.is_settled() || self.limbo.away.is_some() {
            // What a missing directory hides nobody can settle.
            self.limbo.since = None;
            return 0;
        }
        let hidden: Vec<(u64, &Share)> = shares
            .iter()
            .map(|(ledger, share)| (*ledger, share))
            .filter(|(ledger, _)| self.is_in_limbo(*ledger))
            .collect();
        let open: BTreeSet<u64> =
            hidden.iter().filter(|(_, share)| !share.is_settled).map(|(ledger, _)| *ledger).collect();
        if !open.is_empty() && self.plant != Plant::OpenIsSettled {
            self.limbo.wait_for(now, open);
            return 0;
        }
        let lacking = hidden.iter().filter(|(_, share)| !share.stretches.is_empty()).map(|(ledger, _)| *ledger);
        self.limbo.unfinished.extend(lacking);
        self.limbo.settled_below = self.limbo.below;
        self.limbo.since = None;
        1
    }

    /// Ledgers of which everything is here again.
    fn finish(&mut self, shares: &BTreeMap<u64, Share>) -> u64 {
        let lacks =
            |ledger: &u64| shares.get(ledger).is_some_and(|share| !share.is_settled || self.lacks(*ledger, share));
        let left: BTreeSet<u64> = self.limbo.unfinished.iter().copied().filter(lacks).collect();
        let finished = self.limbo.unfinished.len() - left.len();
        self.limbo.unfinished = left;
        finished as u64
    }

    fn lacks(&self, ledger: u64, share: &Share) -> bool {
        let mut wanted = share.stretches.iter().flat_map(|(first, count)| *first..first + count);
        wanted.any(|entry| !self.replicas.get(&ledger).is_some_and(|replica| replica.has(entry)))
    }

    /// Holes hide nothing of a ledger any more once all is here that has to be, and nothing more will be written here.
    fn forgive_holes(&mut self, shares: &BTreeMap<u64, Share>) -> u64 {
        let with_holes = self.replicas.iter().filter(|(_, replica)| replica.has_holes).map(|(ledger, _)| *ledger);
        let is_settled = |ledger: &u64| {
            let share = shares.get(ledger);
            share.is_some_and(|share| share.is_settled && !self.lacks(*ledger, share))
        };
        let settled: Vec<u64> = with_holes.filter(is_settled).collect();
        for ledger in &settled {
            let replica = self.replicas.get_mut(ledger).expect("it was just seen");
            replica.has_holes = false;
            if shares[ledger].is_closed {
                (replica.fenced, replica.fencing) = (true, true);
            }
        }
        settled.len() as u64
    }
}
