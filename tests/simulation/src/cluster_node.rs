//! A storage node of a simulated cluster: the machine, and what it stores with: a model ([`Model`]), or the storage engine on a
//! simulated disk ([`OnEngine`]).

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_ensemble::Share;
use rand::rngs::SmallRng;

use crate::cluster_engine::OnEngine;
use crate::cluster_messages::{Answer, Call};
use crate::cluster_model::Model;
use crate::cluster_plant::Plant;
use crate::cluster_sim::{Life, Micros, Seen};
use crate::ensemble_simulation::Storage;

#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    pub broker: usize,
    pub life: Life,
    pub number: u64,
}

pub type Answers = Vec<(ReplyTo, Answer)>;

/// What a node does upon a request.
pub struct Outcome {
    pub answers: Answers,
    /// Begin to sync, which takes so long.
    pub sync: Option<Micros>,
}

/// What a node has on its disk, and on its way there.
pub trait Store {
    /// What can be answered at once. The rest waits for a sync.
    fn ask(&mut self, reply: ReplyTo, call: Call) -> Answers;
    /// Begins to sync what waits, if it may by now: how long that takes on a disk that is not slow.
    fn begin_sync(&mut self) -> Option<Micros>;
    /// A sync under way ends.
    fn synced(&mut self) -> Answers;
    fn read(&self, ledger: u64, entry: u64) -> Answer;
    /// Whether the entry would be there after a crash, as it was written.
    fn holds(&self, ledger: u64, entry: u64, body: &dyn Fn(&Bytes) -> bool) -> bool;
    /// Power is lost, or the process ends.
    fn crash(&mut self);
    /// The disk is gone with all that it was.
    fn lose(&mut self);
    fn set_full(&mut self, is_full: bool);
    /// So many syncs fail from now on.
    fn set_sync_failures(&mut self, share: f64);
    /// One bit flips.
    fn flip_bit(&mut self) -> bool;
    /// Something else is not where it was: the index no longer says where some entries are, or the last ones were cut off.
    fn forget_entries(&mut self, only_the_last: bool) -> bool;
    /// Ledgers that are here and were in no metadata, twice, go.
    fn sweep(&mut self, exists: &dyn Fn(u64) -> bool) -> u64;
    /// What a look at metadata settles. `shares`: what they say that this node has to have, of every ledger that names it. Answers how
    /// many things were settled.
    fn settle(&mut self, now: Micros, horizon: u64, shares: &BTreeMap<u64, Share>) -> u64;
    /// Whether a ledger keeps the node from being settled, for so long that it is to be closed.
    fn wants_closed(&self, ledger: u64) -> bool;

    /// Ledgers and entries that it should have, and looks for on other nodes itself.
    fn wants(&mut self, _shares: &BTreeMap<u64, Share>) -> Vec<(u64, u64)> {
        Vec::new()
    }

    /// One of these.
    fn give(&mut self, _ledger: u64, _entry: u64, _body: Bytes) {}

    /// Several data directories, of which one may be missing for a while, or be given up.
    fn has_directories(&self) -> bool {
        false
    }

    fn misses_directory(&self) -> bool {
        false
    }

    fn miss_directory(&mut self, _horizon: Option<u64>) {}

    fn find_directory(&mut self) {}

    fn give_up_directory(&mut self, _horizon: u64) {}

    /// What happened how often since this was asked last.
    fn take_seen(&mut self) -> Seen {
        Seen::new()
    }

    /// Of all that is on the disk.
    fn digest(&self) -> Option<u64> {
        None
    }
}

pub struct Node {
    pub life: Life,
    pub is_up: bool,
    /// Its disk is gone for good.
    pub is_lost: bool,
    /// Which node came empty to its address, under an id of its own.
    pub heir: Option<usize>,
    /// May be damaged: of these there are fewer than copies that count.
    pub is_victim: bool,
    /// Syncs take so many times longer.
    pub slowness: u64,
    pub store: Box<dyn Store>,
}

impl Node {
    pub fn new(storage: Storage, plant: Plant, rng: SmallRng) -> Node {
        let store: Box<dyn Store> = match storage {
            Storage::Model => Box::new(Model::new(plant, rng)),
            Storage::Engine => Box::new(OnEngine::new(plant, rng)),
        };
        Node { life: 0, is_up: true, is_lost: false, heir: None, is_victim: false, slowness: 1, store }
    }

    pub fn ask(&mut self, reply: ReplyTo, call: Call) -> Outcome {
        let answers = self.store.ask(reply, call);
        self.go_on(answers)
    }

    pub fn synced(&mut self) -> Outcome {
        let answers = self.store.synced();
        self.go_on(answers)
    }

    /// Something that nobody waits for may have to be written.
    pub fn go_on(&mut self, answers: Answers) -> Outcome {
        let sync = self.store.begin_sync().map(|time| time * self.slowness);
        Outcome { answers, sync }
    }

    pub fn holds(&self, ledger: u64, entry: u64, body: impl Fn(&Bytes) -> bool) -> bool {
        !self.is_lost && self.store.holds(ledger, entry, &body)
    }

    pub fn crash(&mut self) {
        self.life += 1;
        self.is_up = false;
        self.store.crash();
    }

    pub fn lose_disk(&mut self) {
        self.crash();
        self.is_lost = true;
        self.store.lose();
    }

    /// The machine starts again without one of its directories.
    pub fn miss_directory(&mut self, horizon: Option<u64>) -> bool {
        if !self.is_up || !self.store.has_directories() || self.store.misses_directory() {
            return false;
        }
        self.start_again();
        self.store.miss_directory(horizon);
        true
    }

    pub fn find_directory(&mut self) {
        if !self.store.misses_directory() {
            return;
        }
        self.start_again();
        self.store.find_directory();
    }

    pub fn give_up_directory(&mut self, horizon: u64) -> bool {
        if self.is_lost || !self.store.has_directories() {
            return false;
        }
        let was_up = self.is_up;
        self.crash();
        self.is_up = was_up;
        self.store.give_up_directory(horizon);
        true
    }

    /// If it runs.
    pub fn start_again(&mut self) {
        if self.is_up {
            self.crash();
            self.is_up = true;
        }
    }
}
