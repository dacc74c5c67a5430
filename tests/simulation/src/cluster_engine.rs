//! What a storage node of a simulated cluster stores with: the storage engine on a simulated disk, and around it what
//! `storage-node/server` does with it: `directories.rs` (with one directory), `reading.rs`, `garbage.rs`, `scrub.rs`, `healing.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use geminga_ensemble::Share;
use geminga_log::disk::Disk;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::Request;
use geminga_log::{Admission, Append, AppendError, FenceError, LogOptions, MasterKey, ReadError};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::cluster_directories::{Limbo, UNKNOWN};
use crate::cluster_messages::{Answer, Call};
use crate::cluster_node::{Answers, ReplyTo, Store};
use crate::cluster_plant::Plant;
use crate::cluster_sim::{MS, Micros, Seen};
use crate::engine_driver::{Driver, segment_name};

const DISK_BYTES: u64 = 64 << 20;
const RESERVE_BYTES: u64 = 512 << 10;
const KEY: MasterKey = [3; 20];

/// What the engine has told.
enum Told {
    Answer(ReplyTo, Answer),
    /// A ledger is fenced, and this may be answered.
    Fenced(ReplyTo, Call),
    /// A ledger in limbo is fenced, and may get its first copy, for which somebody may wait.
    Settled(Option<ReplyTo>, Append),
}

/// See the module's head.
pub struct OnEngine {
    log: Driver,
    told: Arc<Mutex<Vec<Told>>>,
    limbo: Limbo,
    /// Entries that are here and cannot be read.
    damaged: BTreeSet<(u64, u64)>,
    /// Ledgers that were in no metadata when it looked last.
    missing: BTreeSet<u64>,
    /// Of the disk, while it has any.
    faults: Faults,
    /// Bits were turned, or other things of the disk are not what they were.
    is_hurt: bool,
    seen: Seen,
    plant: Plant,
    rng: SmallRng,
}

impl OnEngine {
    pub fn new(plant: Plant, mut rng: SmallRng) -> OnEngine {
        let disk = SimDisk::new(rng.random(), DISK_BYTES);
        let options = LogOptions {
            segment_bytes: rng.random_range(8..=24) * 4096,
            commit_bytes: rng.random_range(1..=8) * 4096,
            reserve_bytes: RESERVE_BYTES,
            index_memory_bytes: rng.random_range(4 << 10..64 << 10),
            compact_below: rng.random_range(0.1..0.9),
            only_replicas: true,
            ..LogOptions::default()
        };
        let mut log = Driver::new(disk, options, rng.random_range(1..=2));
        log.ignores_errors = plant == Plant::IgnoreSyncError;
        OnEngine {
            log,
            told: Arc::default(),
            limbo: Limbo::default(),
            damaged: BTreeSet::new(),
            missing: BTreeSet::new(),
            faults: Faults::default(),
            is_hurt: false,
            seen: Seen::new(),
            plant,
            rng,
        }
    }

    fn count(&mut self, what: &'static str, times: u64) {
        *self.seen.entry(what).or_default() += times;
    }

    fn is_in_limbo(&self, ledger: u64) -> bool {
        let engine = &self.log.engine;
        ledger < self.limbo.below && !engine.knows(ledger) && !engine.has_deleted(ledger)
    }

    fn append(&mut self, reply: Option<ReplyTo>, entry: Append, recovery: bool) {
        let told = self.told.clone();
        let done = Box::new(move |result: Result<(), AppendError>| {
            let answer = result.map_or_else(|error| of_append(&error), |()| Answer::Added);
            told.lock().extend(reply.map(|reply| Told::Answer(reply, answer)));
        });
        let admission = Admission::Replica { key: KEY, recovery };
        self.log.queue.push_back(Request::Append { entries: vec![entry], admission, done });
    }

    /// A ledger in limbo may have been fenced, so it is before anything of it is here.
    fn append_copy(&mut self, reply: Option<ReplyTo>, entry: Append) {
        if !self.is_in_limbo(entry.ledger) {
            return self.append(reply, entry, true);
        }
        let (ledger, told) = (entry.ledger, self.told.clone());
        self.fence(ledger, move |result| match result {
            // What its last entry is does not matter.
            Ok(_) | Err(FenceError::Unknown(_)) => told.lock().push(Told::Settled(reply, entry)),
            Err(FenceError::NotDurable(error)) => {
                told.lock().extend(reply.map(|reply| Told::Answer(reply, of_append(&error))));
            }
        });
    }

    fn fence(&mut self, ledger: u64, done: impl FnOnce(Result<Option<u64>, FenceError>) + Send + 'static) {
        self.log.queue.push_back(Request::Fence { ledger, key: Some(KEY), done: Box::new(done) });
    }

    /// What needs no write.
    fn look(&mut self, call: &Call) -> Answer {
        match *call {
            Call::Add { .. } => unreachable!("it is written"),
            Call::Last { ledger, .. } => self.last(ledger),
            Call::Read { ledger, entry, .. } => {
                let answer = self.read(ledger, entry);
                if answer == Answer::Unknown && self.log.engine.lists(ledger, entry) {
                    self.damaged.insert((ledger, entry));
                }
                answer
            }
            Call::List { ledger } => self.list(ledger),
        }
    }

    fn last(&self, ledger: u64) -> Answer {
        if self.is_in_limbo(ledger) {
            return Answer::Unknown;
        }
        match self.log.engine.last_entry(ledger) {
            Ok(Some(last)) => self.read(ledger, last),
            Ok(None) => Answer::Absent,
            Err(error) => self.of_read(&error),
        }
    }

    fn list(&self, ledger: u64) -> Answer {
        if self.is_in_limbo(ledger) && !self.limbo.is_settled() {
            return Answer::Unknown;
        }
        match self.log.engine.stretches(ledger) {
            Ok(stretches) => {
                Answer::Listed(stretches.iter().flat_map(|(first, count)| *first..first + count).collect())
            }
            Err(ReadError::NoSuchLedger { .. }) => Answer::Listed(BTreeSet::new()),
            Err(_) => Answer::Unknown,
        }
    }

    fn of_read(&self, error: &ReadError) -> Answer {
        match error {
            ReadError::NoSuchLedger { .. } | ReadError::NoSuchEntry { .. } => Answer::Absent,
            ReadError::Corrupt { .. } if self.plant == Plant::DamagedIsAbsent => Answer::Absent,
            ReadError::Corrupt { .. } | ReadError::Io(_) => Answer::Unknown,
        }
    }

    fn take_told(&mut self) -> Answers {
        let mut answers = Vec::new();
        let told = std::mem::take(&mut *self.told.lock());
        for told in told {
            match told {
                Told::Answer(reply, answer) => answers.push((reply, answer)),
                Told::Fenced(reply, call) => answers.push((reply, self.look(&call))),
                Told::Settled(reply, entry) => self.append(reply, entry, true),
            }
        }
        answers
    }

    /// Entries of the share that the index does not have.
    fn lacking(&self, ledger: u64, share: &Share) -> Vec<u64> {
        let held = match self.log.engine.stretches(ledger) {
            Ok(stretches) => stretches.iter().flat_map(|(first, count)| *first..first + count).collect(),
            Err(_) => BTreeSet::new(),
        };
        stretched(share).filter(|entry| !held.contains(entry)).collect()
    }

    fn has_losses(&self) -> bool {
        self.log.engine.stats().holes > 0 || !self.limbo.is_settled()
    }

    /// What may be damaged: at first whatever is known to have been durable, then only segments before the one that is written now. That
    /// one proves how far they go, so that damage is told from a torn end, however often there is some.
    fn proven(&self) -> (u32, u64) {
        let proven = self.log.proven();
        if self.is_hurt { (proven.0, 0) } else { proven }
    }
}

fn of_append(error: &AppendError) -> Answer {
    match error {
        AppendError::Fenced | AppendError::GivenUp => Answer::Fenced,
        AppendError::Unknown => Answer::Unknown,
        _ => Answer::Failed,
    }
}

fn stretched(share: &Share) -> impl Iterator<Item = u64> {
    share.stretches.iter().flat_map(|(first, count)| *first..first + count)
}

fn to_append(ledger: u64, entry: u64, body: Bytes, reserve: bool) -> Append {
    Append { ledger, entry, parts: [body, Bytes::new(), Bytes::new()], reserve }
}

impl Store for OnEngine {
    fn ask(&mut self, reply: ReplyTo, call: Call) -> Answers {
        match call {
            Call::Add { ledger, entry, body, recovery } => {
                let is_in_limbo = self.is_in_limbo(ledger);
                if is_in_limbo && !(recovery && self.limbo.is_settled()) {
                    return vec![(reply, Answer::Unknown)];
                }
                let entry = to_append(ledger, entry, body, recovery);
                if self.plant == Plant::AckBeforeSync {
                    self.append(None, entry, recovery);
                    return vec![(reply, Answer::Added)];
                }
                match recovery {
                    true => self.append_copy(Some(reply), entry),
                    false => self.append(Some(reply), entry, false),
                }
                Vec::new()
            }
            Call::Last { ledger, fences: true } | Call::Read { ledger, fences: true, .. } => {
                if self.is_in_limbo(ledger) {
                    return vec![(reply, Answer::Unknown)];
                }
                let told = self.told.clone();
                self.fence(ledger, move |result| {
                    told.lock().push(match result {
                        Ok(_) => Told::Fenced(reply, call),
                        Err(_) => Told::Answer(reply, Answer::Unknown),
                    });
                });
                Vec::new()
            }
            call => vec![(reply, self.look(&call))],
        }
    }

    fn begin_sync(&mut self) -> Option<Micros> {
        self.log.begin().then(|| self.rng.random_range(MS / 10..MS))
    }

    fn synced(&mut self) -> Answers {
        self.log.write_one(&mut self.rng);
        while let Some(is_good) = self.log.finish_one() {
            self.count(if is_good { "commits" } else { "commits that failed" }, 1);
        }
        if self.rng.random_bool(0.05) {
            self.log.maintain(&mut self.rng);
        }
        if !self.log.is_busy() && self.rng.random_bool(0.1) {
            self.log.mark();
        }
        self.take_told()
    }

    fn read(&self, ledger: u64, entry: u64) -> Answer {
        if self.is_in_limbo(ledger) {
            return Answer::Unknown;
        }
        self.log.engine.read(ledger, entry).map_or_else(|error| self.of_read(&error), Answer::Here)
    }

    fn holds(&self, ledger: u64, entry: u64, body: &dyn Fn(&Bytes) -> bool) -> bool {
        self.log.engine.read(ledger, entry).is_ok_and(|found| body(&found))
    }

    /// Often in the middle of a write or a sync, and of the recovery that follows.
    fn crash(&mut self) {
        self.told = Arc::default();
        self.log.disk.set_faults(Faults::default());
        let is_power_lost = self.rng.random_bool(0.6);
        if is_power_lost && self.rng.random_bool(0.7) {
            self.log.disk.crash_after(self.rng.random_range(1..5));
            self.log.write_all();
        }
        self.log.stop(is_power_lost);
        let crash_after = self.rng.random_bool(0.2).then(|| self.rng.random_range(1..12));
        let report = self.log.open(crash_after).unwrap_or_else(|error| panic!("{error}"));
        let has_cause = self.is_hurt || report.damage.is_empty();
        assert!(has_cause, "the log is damaged without a cause: {:?}", report.damage);
        self.log.disk.set_faults(self.faults);
        self.count("starts of the engine", 1);
        if self.log.engine.stats().holes > 0 {
            self.count("starts of the engine that find holes", 1);
            (self.limbo.below, self.limbo.settled_below) = (UNKNOWN, 0);
        }
    }

    fn lose(&mut self) {
        self.limbo.clear();
    }

    /// Something else takes the disk, but for a part of the reserve.
    fn set_full(&mut self, is_full: bool) {
        self.log.disk.set_capacity(DISK_BYTES);
        if is_full {
            let free = self.log.disk.space().expect("it is in memory").free_bytes;
            let left = self.rng.random_range(RESERVE_BYTES / 2..RESERVE_BYTES);
            self.log.disk.set_capacity(DISK_BYTES - free.saturating_sub(left));
        }
        self.log.engine.check_space();
    }

    fn set_sync_failures(&mut self, share: f64) {
        self.faults = Faults { sync_error: share, write_error: share / 4.0, ..Faults::default() };
        self.log.disk.set_faults(self.faults);
    }

    fn flip_bit(&mut self) -> bool {
        let flipped = self.log.disk.flip_proven_bit(self.proven(), &mut self.rng).is_some();
        self.is_hurt |= flipped;
        flipped
    }

    /// A block cannot be read any more, or a write went to the place of another.
    fn forget_entries(&mut self, only_the_last: bool) -> bool {
        let proven = self.proven();
        let is_hurt = if only_the_last {
            self.log.disk.misdirect_proven_write(proven, &mut self.rng).is_some()
        } else {
            let old: Vec<u32> = self.log.segments().filter(|segment| *segment < proven.0).collect();
            let at = self.rng.random_range(0..old.len().max(1));
            old.get(at).is_some_and(|segment| {
                let name = segment_name(*segment);
                let byte = self.rng.random_range(0..self.log.disk.file_length(&name).max(1));
                self.log.disk.fail_reads(&name, byte);
                true
            })
        };
        self.is_hurt |= is_hurt;
        is_hurt
    }

    fn sweep(&mut self, exists: &dyn Fn(u64) -> bool) -> u64 {
        let engine = &self.log.engine;
        engine.check_space();
        let _ = engine.try_again();
        let segments = engine.scrub_order();
        if !segments.is_empty()
            && self.rng.random_bool(0.3)
            && let Ok(Some(found)) = engine.scrub(segments[self.rng.random_range(0..segments.len())], &mut |_| true)
        {
            self.damaged.extend(found.damaged_entries);
        }
        let gaps = engine.deleted_gaps().into_iter().filter(|(first, last)| !(*first..=*last).any(exists));
        engine.fill_deleted_gaps(&gaps.collect::<Vec<_>>());
        let missing: BTreeSet<u64> = engine.ledgers().into_iter().filter(|ledger| !exists(*ledger)).collect();
        let gone: Vec<u64> = missing.intersection(&self.missing).copied().collect();
        let count = gone.len() as u64;
        if count > 0 {
            self.log.queue.push_back(Request::Delete { ledgers: gone, done: Box::new(|_| ()) });
        }
        self.missing = missing;
        count
    }

    fn settle(&mut self, now: Micros, horizon: u64, shares: &BTreeMap<u64, Share>) -> u64 {
        if !self.has_losses() {
            self.limbo.waits_for_nothing();
            return 0;
        }
        if self.limbo.below == UNKNOWN {
            self.limbo.below = horizon;
        }
        let below = self.limbo.below;
        let open: BTreeSet<u64> =
            shares.range(..below).filter(|(_, share)| !share.is_settled).map(|(ledger, _)| *ledger).collect();
        let is_unfenced = |ledger: &u64| self.log.engine.replica(*ledger).is_some_and(|(is_fenced, _)| !is_fenced);
        let closed = shares.range(..below).filter(|(_, share)| share.is_closed).map(|(ledger, _)| *ledger);
        let unfenced: Vec<u64> = closed.filter(is_unfenced).collect();
        let lacks = |(ledger, share): (&u64, &Share)| !self.lacking(*ledger, share).is_empty();
        let is_done = open.is_empty() && unfenced.is_empty() && !shares.range(..below).any(lacks);
        unfenced.into_iter().for_each(|ledger| self.fence(ledger, |_| ()));
        self.limbo.to_close.clear();
        if !is_done {
            self.limbo.wait_for(now, open);
            return 0;
        }
        self.log.engine.forgive_holes();
        self.limbo.settled_below = below;
        self.limbo.waits_for_nothing();
        self.count("holes that were settled", 1);
        1
    }

    fn wants_closed(&self, ledger: u64) -> bool {
        self.limbo.to_close.contains(&ledger)
    }

    fn wants(&mut self, shares: &BTreeMap<u64, Share>) -> Vec<(u64, u64)> {
        let is_duty = |(ledger, entry): &(u64, u64)| {
            shares.get(ledger).is_some_and(|share| stretched(share).any(|of| of == *entry))
        };
        let damaged = std::mem::take(&mut self.damaged);
        self.count("damaged entries found by storage nodes", damaged.len() as u64);
        let mut wanted: Vec<(u64, u64)> = damaged.into_iter().filter(is_duty).collect();
        if self.has_losses() {
            for (&ledger, share) in shares.range(..self.limbo.below) {
                // The first copy would fence it, and it will be closed soon.
                if share.is_settled || !self.is_in_limbo(ledger) {
                    wanted.extend(self.lacking(ledger, share).into_iter().map(|entry| (ledger, entry)));
                }
            }
        }
        wanted
    }

    fn give(&mut self, ledger: u64, entry: u64, body: Bytes) {
        self.append_copy(None, to_append(ledger, entry, body, true));
    }

    fn take_seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    fn digest(&self) -> Option<u64> {
        Some(self.log.digest())
    }
}
