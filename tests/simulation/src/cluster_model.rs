//! A model of what a storage node has on its disk, what only waits to be synced, and what it answers.
//!
//! It keeps the promises of the storage engine: an answer means durable; reads see only what is durable; what it may have lost
//! it does not deny. `storage-node/log/tests/simulation` holds the engine itself to them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use geminga_ensemble::Share;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::cluster_directories::Limbo;
use crate::cluster_messages::{Answer, Call};
use crate::cluster_node::{ReplyTo, Store};
use crate::cluster_plant::Plant;
use crate::cluster_sim::{MS, Micros};

struct Stored {
    body: Bytes,
    /// False if it is only in the page cache: a sync failed, and the node has not minded.
    durable: bool,
    /// The node's own checksum does not fit.
    damaged: bool,
}

#[derive(Default)]
pub struct Replica {
    entries: BTreeMap<u64, Stored>,
    /// Durably.
    pub fenced: bool,
    /// Asked for; no entry of the ledger's writer is taken from then on.
    pub fencing: bool,
    /// Something is missing that was there: whatever is not here may have been.
    pub has_holes: bool,
}

impl Replica {
    pub fn join(&mut self, other: Replica) {
        self.entries.extend(other.entries);
        self.fenced |= other.fenced;
        self.fencing |= other.fencing;
        self.has_holes |= other.has_holes;
    }

    /// Durably, and whole as far as the node knows.
    pub fn has(&self, entry: u64) -> bool {
        self.entries.get(&entry).is_some_and(|stored| stored.durable && !stored.damaged)
    }
}

/// A request that is answered when it is synced.
struct Queued {
    reply: ReplyTo,
    call: Call,
}

pub struct Model {
    is_full: bool,
    sync_failures: f64,
    pub replicas: BTreeMap<u64, Replica>,
    pub deleted: BTreeSet<u64>,
    /// How many, and what decides in which a ledger is.
    pub directories: u64,
    pub salt: u64,
    pub limbo: Limbo,
    /// Not in metadata when it looked last.
    missing: BTreeSet<u64>,
    waiting: Vec<Queued>,
    syncing: Vec<Queued>,
    pub plant: Plant,
    pub rng: SmallRng,
}

impl Model {
    pub fn new(plant: Plant, mut rng: SmallRng) -> Model {
        Model {
            directories: rng.random_range(1..4),
            salt: rng.random(),
            limbo: Limbo::default(),
            is_full: false,
            sync_failures: 0.0,
            replicas: BTreeMap::new(),
            deleted: BTreeSet::new(),
            missing: BTreeSet::new(),
            waiting: Vec::new(),
            syncing: Vec::new(),
            plant,
            rng,
        }
    }

    fn refusal(&self, ledger: u64, recovery: bool) -> Option<Answer> {
        if self.deleted.contains(&ledger) && self.plant != Plant::DeletedIsForgotten {
            return Some(Answer::Fenced);
        }
        let is_refused_in_limbo = !recovery || !self.limbo.is_settled();
        let may_be_lost =
            self.is_in_limbo(ledger) && is_refused_in_limbo || self.limbo.is_unfinished(ledger) && !recovery;
        if may_be_lost {
            return Some(Answer::Unknown);
        }
        match self.replicas.get(&ledger) {
            Some(replica) if replica.fencing && !recovery => Some(Answer::Fenced),
            _ if self.is_full && !recovery => Some(Answer::Failed),
            _ => None,
        }
    }

    /// Whether no fence has to become durable first.
    fn begin_fence(&mut self, ledger: u64, fences: bool) -> bool {
        if !fences {
            return true;
        }
        let replica = self.replicas.entry(ledger).or_default();
        replica.fencing = true;
        replica.fenced
    }

    fn apply(&mut self, call: &Call, fails: bool) -> Answer {
        match call {
            // It may be on the disk all the same, and nobody may rely on it.
            Call::Add { ledger, entry, body, .. } if fails => match self.plant {
                Plant::IgnoreSyncError => {
                    self.put(*ledger, *entry, body, false);
                    Answer::Added
                }
                _ => {
                    if self.rng.random_bool(0.3) {
                        self.put(*ledger, *entry, body, true);
                    }
                    Answer::Failed
                }
            },
            Call::Add { ledger, entry, body, .. } => {
                self.put(*ledger, *entry, body, true);
                Answer::Added
            }
            Call::List { ledger } => self.list(*ledger),
            Call::Last { .. } | Call::Read { .. } if fails => Answer::Unknown,
            Call::Last { ledger, .. } => {
                self.replicas.entry(*ledger).or_default().fenced = true;
                self.last(*ledger)
            }
            Call::Read { ledger, entry, .. } => {
                self.replicas.entry(*ledger).or_default().fenced = true;
                self.read(*ledger, *entry)
            }
        }
    }

    /// What is there already stays: it is the same.
    fn put(&mut self, ledger: u64, entry: u64, body: &Bytes, durable: bool) {
        if self.deleted.contains(&ledger) && self.plant != Plant::DeletedIsForgotten {
            return;
        }
        let was_in_limbo = self.is_in_limbo(ledger);
        let replica = self.replicas.entry(ledger).or_default();
        if was_in_limbo {
            // It may have been fenced where nothing can be read.
            (replica.fenced, replica.fencing) = (true, true);
        }
        let stored = Stored { body: body.clone(), durable, damaged: false };
        match replica.entries.get(&entry) {
            Some(there) if there.durable && !there.damaged => (),
            _ => drop(replica.entries.insert(entry, stored)),
        }
    }

    fn last(&self, ledger: u64) -> Answer {
        if self.limbo.is_unfinished(ledger) {
            return Answer::Unknown;
        }
        let last = self.replicas.get(&ledger).and_then(|replica| replica.entries.last_key_value());
        match last {
            Some((entry, _)) => self.read(ledger, *entry),
            None => self.read(ledger, 0),
        }
    }

    fn list(&self, ledger: u64) -> Answer {
        if self.is_in_limbo(ledger) && !self.limbo.is_settled() {
            return Answer::Unknown;
        }
        let entries = self.replicas.get(&ledger).into_iter().flat_map(|replica| &replica.entries);
        Answer::Listed(
            entries.filter(|(_, stored)| stored.durable && !stored.damaged).map(|(entry, _)| *entry).collect(),
        )
    }

    fn any_replica(&mut self) -> Option<&mut Replica> {
        let at = self.rng.random_range(0..self.replicas.len().max(1));
        self.replicas.values_mut().nth(at).filter(|replica| !replica.entries.is_empty())
    }
}

impl Store for Model {
    fn ask(&mut self, reply: ReplyTo, call: Call) -> Vec<(ReplyTo, Answer)> {
        let answer = match &call {
            Call::Add { ledger, recovery, .. } => match self.refusal(*ledger, *recovery) {
                Some(refusal) => Some(refusal),
                None if self.plant == Plant::AckBeforeSync => Some(Answer::Added),
                None => None,
            },
            Call::Last { ledger, .. } | Call::Read { ledger, .. } if self.is_in_limbo(*ledger) => Some(Answer::Unknown),
            Call::Last { ledger, fences } => self.begin_fence(*ledger, *fences).then(|| self.last(*ledger)),
            Call::Read { ledger, entry, fences } => {
                self.begin_fence(*ledger, *fences).then(|| self.read(*ledger, *entry))
            }
            Call::List { ledger } => Some(self.list(*ledger)),
        };
        let is_refused = !matches!(answer, None | Some(Answer::Added));
        if !is_refused {
            self.waiting.push(Queued { reply, call });
        }
        answer.map(|answer| (reply, answer)).into_iter().collect()
    }

    fn begin_sync(&mut self) -> Option<Micros> {
        if self.waiting.is_empty() || !self.syncing.is_empty() {
            return None;
        }
        self.syncing = std::mem::take(&mut self.waiting);
        Some(self.rng.random_range(MS / 10..MS))
    }

    fn synced(&mut self) -> Vec<(ReplyTo, Answer)> {
        let fails = self.sync_failures > 0.0 && self.rng.random_bool(self.sync_failures);
        let mut answers = Vec::new();
        for Queued { reply, call } in std::mem::take(&mut self.syncing) {
            answers.push((reply, self.apply(&call, fails)));
        }
        if self.plant == Plant::AckBeforeSync {
            answers.retain(|(_, answer)| !matches!(answer, Answer::Added | Answer::Failed));
        }
        answers
    }

    fn read(&self, ledger: u64, entry: u64) -> Answer {
        let denies = self.plant == Plant::DamagedIsAbsent;
        let may_be_lost = self.is_in_limbo(ledger) || self.limbo.is_unfinished(ledger);
        let Some(replica) = self.replicas.get(&ledger) else {
            return if may_be_lost { Answer::Unknown } else { Answer::Absent };
        };
        match replica.entries.get(&entry) {
            Some(stored) if !stored.damaged => Answer::Here(stored.body.clone()),
            Some(_) if denies => Answer::Absent,
            None if !may_be_lost && !replica.has_holes || denies => Answer::Absent,
            _ => Answer::Unknown,
        }
    }

    fn holds(&self, ledger: u64, entry: u64, body: &dyn Fn(&Bytes) -> bool) -> bool {
        let mut there = std::iter::once(&self.replicas).chain(self.limbo.away());
        let stored = there.find_map(|replicas| replicas.get(&ledger)).and_then(|replica| replica.entries.get(&entry));
        stored.is_some_and(|stored| stored.durable && !stored.damaged && body(&stored.body))
    }

    /// Of what was not synced some is there, in no order.
    fn crash(&mut self) {
        let unsynced = std::mem::take(&mut self.syncing).into_iter().chain(std::mem::take(&mut self.waiting));
        for Queued { call, .. } in unsynced.collect::<Vec<_>>() {
            if self.rng.random_bool(0.4) {
                self.apply(&call, false);
            }
        }
        for replica in self.replicas.values_mut() {
            replica.entries.retain(|_, stored| stored.durable);
            replica.fencing = replica.fenced;
        }
        self.replicas.retain(|_, replica| replica.fenced || replica.has_holes || !replica.entries.is_empty());
    }

    fn lose(&mut self) {
        self.replicas.clear();
        self.limbo.clear();
    }

    /// Of an entry. The node notices, or whoever reads it does.
    fn flip_bit(&mut self) -> bool {
        let (nth, at, bit, is_noticed) = (self.rng.random::<u64>(), self.rng.random::<u64>(), 0..8, self.rng.random());
        let bit = self.rng.random_range(bit);
        let Some(replica) = self.any_replica() else { return false };
        let nth = nth as usize % replica.entries.len();
        let stored = replica.entries.values_mut().nth(nth).expect("there are more");
        let mut body = stored.body.to_vec();
        let at = at as usize % body.len();
        body[at] ^= 1 << bit;
        stored.body = body.into();
        stored.damaged = is_noticed;
        true
    }

    fn forget_entries(&mut self, only_the_last: bool) -> bool {
        let (first, count) = (self.rng.random::<u64>(), self.rng.random_range(1..6));
        let Some(replica) = self.any_replica() else { return false };
        let (&low, &high) = (
            replica.entries.first_key_value().expect("there are some").0,
            replica.entries.last_key_value().expect("there are some").0,
        );
        let first = if only_the_last { high.saturating_sub(count - 1) } else { low + first % (high - low + 1) };
        replica.entries.retain(|entry, _| !(first..first + count).contains(entry));
        replica.has_holes = true;
        true
    }

    fn sweep(&mut self, exists: &dyn Fn(u64) -> bool) -> u64 {
        let missing: BTreeSet<u64> = self.replicas.keys().copied().filter(|ledger| !exists(*ledger)).collect();
        let gone: Vec<u64> = missing.intersection(&self.missing).copied().collect();
        for ledger in &gone {
            self.replicas.remove(ledger);
            self.deleted.insert(*ledger);
        }
        self.missing = missing;
        gone.len() as u64
    }

    fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    fn set_sync_failures(&mut self, share: f64) {
        self.sync_failures = share;
    }

    fn settle(&mut self, now: Micros, horizon: u64, shares: &BTreeMap<u64, Share>) -> u64 {
        self.settle_losses(now, horizon, shares)
    }

    fn wants_closed(&self, ledger: u64) -> bool {
        self.limbo.to_close.contains(&ledger)
    }

    fn has_directories(&self) -> bool {
        self.directories > 1
    }

    fn misses_directory(&self) -> bool {
        self.limbo.misses_directory()
    }

    fn miss_directory(&mut self, horizon: Option<u64>) {
        self.put_directory_away(horizon);
    }

    fn find_directory(&mut self) {
        self.take_directory_back();
    }

    fn give_up_directory(&mut self, horizon: u64) {
        self.lose_directory(horizon);
    }
}
