//! A seed's life of a log of replicas: entries in any order, with gaps and again, fences that recoveries pass, keys and
//! explicit confirmations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::engine::Request;
use geminga_log::{Admission, Append, AppendError, ExplicitLac, FenceError, MasterKey, ReadError};
use rand::Rng;

use crate::machine::{Machine, Stop};
use crate::model::content;
use crate::world::Outcome;

const STEPS: usize = 160;
const LEDGERS: u64 = 8;
const ENTRIES: u64 = 40;

/// What must be true of a replica.
#[derive(Debug, Default)]
struct Replica {
    /// Entries that somebody asked to write.
    asked: BTreeSet<u64>,
    /// Entries that were acknowledged, or seen after a recovery.
    kept: BTreeSet<u64>,
    fence_asked: bool,
    /// The number of the call that fenced it.
    fenced_by: Option<u64>,
    lac_asked: i64,
    lac_kept: i64,
    deletion_asked: bool,
    deleted: bool,
    /// There was something to be deleted, so that nothing of that name will be again.
    gone_for_good: bool,
    /// Entries that damage may hide. What can be read some day is there.
    unknown: BTreeSet<u64>,
    /// Damage hides all of it, or its key. A node takes nothing for it then; the log would.
    is_hidden: bool,
}

impl Replica {
    /// Something of it is durable, so its key is.
    fn has_key(&self) -> bool {
        !self.kept.is_empty() || self.fenced_by.is_some() || self.lac_kept > 0
    }
}

enum Answer {
    Append {
        call: u64,
        ledger: u64,
        entries: Vec<u64>,
        recovery: bool,
        right_key: bool,
        result: Result<(), AppendError>,
    },
    Fence {
        call: u64,
        ledger: u64,
        result: Result<Option<u64>, FenceError>,
    },
    Confirm {
        ledger: u64,
        lac: i64,
        result: Result<(), AppendError>,
    },
    Delete {
        ledger: u64,
        result: Result<(), AppendError>,
    },
}

struct World {
    machine: Machine,
    answers: Arc<Mutex<Vec<Answer>>>,
    replicas: BTreeMap<u64, Replica>,
    next_ledger: u64,
    next_call: u64,
    /// Entries that were acknowledged since the last damage was seen.
    fresh: BTreeSet<(u64, u64)>,
    damages_seen: usize,
}

fn key_of(ledger: u64) -> MasterKey {
    [ledger as u8; 20]
}

pub fn run(seed: u64) -> Outcome {
    let mut world = World {
        machine: Machine::new(seed, true),
        answers: Arc::default(),
        replicas: BTreeMap::new(),
        next_ledger: 1,
        next_call: 0,
        fresh: BTreeSet::new(),
        damages_seen: 0,
    };
    for _ in 0..STEPS {
        world.step();
    }
    world.end();
    Outcome { trace: std::mem::take(&mut world.machine.trace), files: world.machine.disk.contents() }
}

impl World {
    fn step(&mut self) {
        match self.machine.rng.random_range(0..100) {
            0..26 => self.append(),
            26..30 => self.fence(),
            30..34 => self.confirm(),
            34..36 => self.delete(),
            36 => self.fill_gaps(),
            37..56 => {
                self.machine.begin();
            }
            56..70 => self.machine.write_one(),
            70..84 => self.machine.finish_one(),
            84..91 => self.machine.maintain(),
            91 => self.machine.lose_block(),
            92..94 => self.check(false),
            94..96 => self.repair(),
            96..98 => {
                let changes = self.machine.rng.random_range(1..20);
                self.machine.disk.crash_after(changes);
                self.machine.note(format_args!("will crash after {changes}"));
            }
            98 => self.restart(Stop::Kill),
            _ => self.restart(Stop::Close),
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.take_answers();
        if self.machine.disk.has_crashed() {
            self.restart(Stop::Crash);
        } else {
            self.read_lacs();
        }
    }

    /// Whoever asks for the last add confirmed is told at least what anybody was told before, whatever comes in between: it is kept as
    /// soon as it is told.
    fn read_lacs(&mut self) {
        let damage = self.machine.damages() > 0;
        for (&ledger, known) in self.replicas.iter_mut().filter(|(_, known)| !known.deletion_asked) {
            let Some((_, Some(lac))) = self.machine.engine.replica(ledger) else {
                assert!(known.lac_kept == 0 || damage, "ledger {ledger}: confirmed up to nothing");
                continue;
            };
            let lac = lac.last_add_confirmed;
            assert!(lac >= known.lac_kept || damage, "ledger {ledger}: confirmed up to {lac}, was {}", known.lac_kept);
            known.lac_kept = lac;
        }
    }

    /// One of the last few, so that old ones rest in sealed and compacted segments.
    fn any_ledger(&mut self) -> u64 {
        if self.next_ledger <= LEDGERS || self.machine.rng.random_bool(0.03) {
            self.next_ledger += 1;
        }
        let ledger = self.machine.rng.random_range(1..self.next_ledger);
        self.replicas.entry(ledger).or_default();
        ledger
    }

    fn call(&mut self) -> u64 {
        self.next_call += 1;
        self.next_call - 1
    }

    fn append(&mut self) {
        let ledger = self.any_ledger();
        let count = self.machine.rng.random_range(1..8);
        // A writer goes on, a recovery or re-replication comes from anywhere.
        let next = self.replicas[&ledger].asked.last().map_or(0, |last| last + 1);
        let stride = self.machine.rng.random_range(1..3);
        let from = if self.machine.rng.random_bool(0.7) { next } else { self.machine.rng.random_range(0..ENTRIES) };
        let mut entries: Vec<u64> = (0..count).map(|n| from + n * stride).collect();
        if self.machine.rng.random_bool(0.1) {
            entries.reverse();
        }
        let recovery = self.machine.rng.random_bool(0.3);
        let right_key = self.machine.rng.random_bool(0.97);
        // A stranger before the owner would own the ledger.
        let is_owned = self.replicas[&ledger].has_key() && !self.replicas[&ledger].is_hidden;
        let right_key = right_key || !is_owned;
        self.append_to(ledger, entries, recovery, right_key);
    }

    fn append_to(&mut self, ledger: u64, entries: Vec<u64>, recovery: bool, right_key: bool) {
        let call = self.call();
        if right_key {
            self.replicas.get_mut(&ledger).expect("it is there").asked.extend(&entries);
        }
        let appends = entries.iter().map(|&entry| {
            let parts = [Bytes::from(content(ledger, entry)), Bytes::new(), Bytes::new()];
            Append { ledger, entry, parts, reserve: recovery }
        });
        let appends = appends.collect();
        let key = key_of(if right_key { ledger } else { ledger + 100 });
        self.machine.note(format_args!("append {ledger}:{entries:?} recovery {recovery} key {right_key}"));
        let answers = self.answers.clone();
        let done = Box::new(move |result| {
            answers.lock().unwrap().push(Answer::Append { call, ledger, entries, recovery, right_key, result });
        });
        let admission = Admission::Replica { key, recovery };
        self.machine.queue.push_back(Request::Append { entries: appends, admission, done });
    }

    fn fence(&mut self) {
        let (ledger, call, answers) = (self.any_ledger(), self.call(), self.answers.clone());
        self.replicas.get_mut(&ledger).expect("it is there").fence_asked = true;
        self.machine.note(format_args!("fence {ledger}"));
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Fence { call, ledger, result }));
        self.machine.queue.push_back(Request::Fence { ledger, key: Some(key_of(ledger)), done });
    }

    fn confirm(&mut self) {
        let (ledger, answers) = (self.any_ledger(), self.answers.clone());
        let known = self.replicas.get_mut(&ledger).expect("it is there");
        let lac = self.machine.rng.random_range(1..60);
        known.lac_asked = known.lac_asked.max(lac);
        self.machine.note(format_args!("confirm {ledger}: {lac}"));
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Confirm { ledger, lac, result }));
        let explicit = ExplicitLac::new(lac, &lac.to_be_bytes()).expect("it is short");
        self.machine.queue.push_back(Request::ExplicitLac { ledger, key: key_of(ledger), lac: explicit, done });
    }

    fn delete(&mut self) {
        let ledger = self.any_ledger();
        self.ask_deletion(ledger);
    }

    fn ask_deletion(&mut self, ledger: u64) {
        self.replicas.entry(ledger).or_default().deletion_asked = true;
        self.machine.note(format_args!("delete {ledger}"));
        let answers = self.answers.clone();
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Delete { ledger, result }));
        self.machine.queue.push_back(Request::Delete { ledgers: vec![ledger], done });
    }

    /// As if metadata had none of the ledgers between deleted ones. What is there, or on its way, is kept all the same.
    fn fill_gaps(&mut self) {
        let mut gaps = self.machine.engine.deleted_gaps();
        gaps.retain(|_| self.machine.rng.random_bool(0.7));
        self.machine.note(format_args!("fill {gaps:?}"));
        self.machine.engine.fill_deleted_gaps(&gaps);
    }

    fn take_answers(&mut self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        for answer in answers {
            match answer {
                Answer::Append { call, ledger, entries, recovery, right_key, result } => {
                    self.machine.note(format_args!("appended {ledger}:{entries:?}: {result:?}"));
                    let known = self.replicas.get_mut(&ledger).expect("it is there");
                    let is_gone = known.gone_for_good && self.machine.damages() == 0;
                    assert!(result.is_err() || !is_gone, "ledger {ledger}: takes entries after its deletion");
                    if result.is_err() || known.deletion_asked {
                        continue;
                    }
                    assert!(
                        right_key || self.machine.damages() > 0,
                        "ledger {ledger}: acknowledged a stranger's entry"
                    );
                    let fenced_before = known.fenced_by.is_some_and(|fence| fence < call);
                    let is_fenced = fenced_before && !known.is_hidden;
                    assert!(recovery || !is_fenced, "ledger {ledger}: acknowledged after a fence");
                    if right_key {
                        known.kept.extend(&entries);
                        self.fresh.extend(entries.into_iter().map(|entry| (ledger, entry)));
                    }
                }
                Answer::Fence { call, ledger, result } => {
                    self.machine.note(format_args!("fenced {ledger}: {result:?}"));
                    let known = self.replicas.get_mut(&ledger).expect("it is there");
                    match result {
                        _ if known.deletion_asked => (),
                        Ok(last) => {
                            // Behind the fence, a recovery of which the answer is on its way may have added some.
                            assert!(last >= known.kept.last().copied(), "ledger {ledger}: fenced at {last:?}");
                            assert!(last.is_none_or(|last| known.asked.contains(&last)), "nobody wrote {last:?}");
                            known.fenced_by = known.fenced_by.or(Some(call));
                        }
                        Err(FenceError::Unknown(error)) => {
                            assert!(self.machine.damages() > 0, "ledger {ledger}: {error}")
                        }
                        Err(FenceError::NotDurable(_)) => (),
                    }
                }
                Answer::Confirm { ledger, lac, result } => {
                    self.machine.note(format_args!("confirmed {ledger}: {lac}: {result:?}"));
                    let known = self.replicas.get_mut(&ledger).expect("it is there");
                    if result.is_ok() {
                        known.lac_kept = known.lac_kept.max(lac);
                    }
                }
                Answer::Delete { ledger, result } => {
                    self.machine.note(format_args!("deleted {ledger}: {result:?}"));
                    let known = self.replicas.get_mut(&ledger).expect("it is there");
                    known.deleted |= result.is_ok();
                    known.gone_for_good |= result.is_ok() && known.has_key();
                }
            }
        }
    }

    /// Compares all of it; `recovered` says that the log was just opened, so that what is there now is durable.
    fn check(&mut self, recovered: bool) {
        let damages = self.machine.damages();
        if std::mem::replace(&mut self.damages_seen, damages) != damages {
            self.fresh.clear();
        }
        self.read_badly();
        let (engine, damage) = (&self.machine.engine, damages > 0);
        let existing = engine.ledgers();
        for (&ledger, known) in &mut self.replicas {
            let exists = existing.binary_search(&ledger).is_ok();
            if known.deletion_asked {
                if recovered && !known.deleted {
                    // Nobody knows whether it was; whoever asks again is told.
                    known.deleted = !exists;
                    known.gone_for_good |= !exists && known.has_key();
                }
                assert!(!known.gone_for_good || !exists || damage, "ledger {ledger} came back");
                continue;
            }
            let mut found = BTreeSet::new();
            for entry in 0..ENTRIES + 20 {
                match engine.read(ledger, entry) {
                    Ok(bytes) => {
                        assert_eq!(bytes, content(ledger, entry), "entry {ledger}:{entry} is another");
                        assert!(known.asked.contains(&entry), "entry {ledger}:{entry} was never written");
                        let was_there = known.kept.contains(&entry) || known.unknown.contains(&entry);
                        let is_early = !recovered && !was_there;
                        assert!(!is_early, "entry {ledger}:{entry} is visible before it was acknowledged");
                        found.insert(entry);
                    }
                    Err(ReadError::Corrupt { .. }) if damage && !self.fresh.contains(&(ledger, entry)) => {
                        known.unknown.extend(recovered.then_some(entry));
                    }
                    Err(error) => assert!(!known.kept.contains(&entry), "{error} after it was acknowledged"),
                }
            }
            known.kept.extend(&found);
            if let Ok(stretches) = engine.stretches(ledger) {
                let listed: BTreeSet<u64> = stretches.iter().flat_map(|(first, count)| *first..first + count).collect();
                // What the index has may be unreadable.
                let wrong = if damage { !listed.is_superset(&found) } else { listed.range(..ENTRIES + 20).ne(&found) };
                assert!(!wrong, "ledger {ledger} lists {listed:?} and has {found:?}");
            } else {
                assert!(damage || found.is_empty(), "ledger {ledger} is not listed");
            }
            known.is_hidden |= recovered && damage && engine.key(ledger).is_none();
            let (fenced, lac) = engine.replica(ledger).unwrap_or((false, None));
            let lac = lac.map_or(0, |lac| {
                assert_eq!(lac.body(), lac.last_add_confirmed.to_be_bytes());
                lac.last_add_confirmed
            });
            assert!(fenced || known.fenced_by.is_none() || damage, "ledger {ledger} is not fenced any more");
            assert!(!fenced || known.fence_asked, "ledger {ledger} was never fenced");
            assert!(lac >= known.lac_kept || damage, "ledger {ledger}: confirmed up to {lac}");
            assert!(lac <= known.lac_asked, "ledger {ledger}: confirmed up to {lac}");
            known.lac_kept = lac;
        }
    }

    /// While reads fail by chance, what was acknowledged is itself or unknown.
    fn read_badly(&mut self) {
        if self.machine.let_reads_fail(true) {
            for (&ledger, known) in self.replicas.iter().filter(|(_, known)| !known.deletion_asked) {
                for &entry in &known.kept {
                    match self.machine.engine.read(ledger, entry) {
                        Ok(bytes) => assert_eq!(bytes, content(ledger, entry), "entry {ledger}:{entry} is another"),
                        Err(ReadError::Corrupt { .. } | ReadError::Io(_)) => (),
                        Err(error) => panic!("{error} after it was acknowledged"),
                    }
                }
            }
        }
        self.machine.let_reads_fail(false);
        // What was found while they failed is no reason to think so now.
        self.machine.engine.reconsider_damaged();
    }

    /// `None` if the machine crashed meanwhile, or an index could not be written.
    fn scrub(&self) -> Option<BTreeSet<(u64, u64)>> {
        let mut damaged = BTreeSet::new();
        for segment in self.machine.engine.scrub_order() {
            match self.machine.engine.scrub(segment, &mut |_| true) {
                Ok(scrubbed) => damaged.extend(scrubbed.into_iter().flat_map(|scrubbed| scrubbed.damaged_entries)),
                Err(error) => {
                    assert!(self.machine.has_faults() || self.machine.disk.has_crashed(), "{error}");
                    return None;
                }
            }
        }
        (!self.machine.disk.has_crashed()).then_some(damaged)
    }

    /// Scrubs all of it, and writes again what is damaged, as from another node.
    fn repair(&mut self) {
        let mut seen_badly = BTreeSet::new();
        if self.machine.let_reads_fail(true) {
            seen_badly = self.scrub().unwrap_or_default();
        }
        self.machine.let_reads_fail(false);
        self.machine.engine.reconsider_damaged();
        let Some(mut damaged) = self.scrub() else { return };
        let engine = &self.machine.engine;
        assert!(damaged.is_empty() || self.machine.damages() > 0, "damage without a cause: {damaged:?}");
        for (&ledger, known) in self.replicas.iter().filter(|(_, known)| !known.deletion_asked) {
            for &entry in &known.kept {
                let is_unreadable = engine.lists(ledger, entry) && engine.read(ledger, entry).is_err();
                assert!(!is_unreadable || damaged.contains(&(ledger, entry)), "{ledger}:{entry} was not found");
            }
        }
        damaged.append(&mut seen_badly);
        self.machine.note(format_args!("repair {damaged:?}"));
        for (ledger, entry) in damaged {
            let has = |known: &Replica| !known.deletion_asked && known.asked.contains(&entry);
            if self.replicas.get(&ledger).is_some_and(has) {
                self.append_to(ledger, vec![entry], true, true);
            }
        }
        self.machine.engine.reconsider_damaged();
    }

    fn restart(&mut self, stop: Stop) {
        if matches!(stop, Stop::Close) {
            self.machine.drain();
            self.take_answers();
        }
        self.machine.restart(stop);
        self.answers.lock().unwrap().clear();
        self.check(true);
    }

    /// Without any more faults everything can be deleted, the space comes back, and the log takes entries.
    fn end(&mut self) {
        self.machine.heal();
        self.machine.drain();
        self.settle();
        self.check(false);
        self.restart(Stop::Close);
        for ledger in self.machine.engine.ledgers() {
            self.ask_deletion(ledger);
        }
        for _ in 0..12 {
            self.machine.drain();
            self.machine.engine.prepare_next().expect("no faults");
            self.machine.engine.seal_retired().expect("no faults");
            self.machine.engine.check_space();
            self.machine.reclaim().expect("no faults");
        }
        self.machine.drain();
        self.take_answers();
        assert_eq!(self.machine.engine.ledgers(), [0; 0]);
        if self.machine.damages() == 0 {
            let stats = self.machine.engine.stats();
            assert!(stats.segments <= 3, "the space does not come back: {stats:?}");
            let ledger = self.next_ledger;
            self.replicas.entry(ledger).or_default();
            self.append_to(ledger, vec![5, 3], false, true);
            self.machine.drain();
            self.take_answers();
            assert_eq!(self.replicas[&ledger].kept.len(), 2, "takes no entries");
        }
        self.restart(Stop::Crash);
    }
}
