//! A seed's life of a log: what is asked, in which order writes complete, what the disk does, when the machine crashes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::disk::sim::{Faults, SimDisk, SimFile};
use geminga_log::engine::{Begin, Commit, Engine, Request};
use geminga_log::{Append, AppendError, FenceError, LogOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::model::{Model, content};

const STEPS: usize = 160;
const LEDGERS_MAX: usize = 12;

enum Answer {
    Append { call: u64, ledger: u64, first: u64, count: u64, result: Result<(), AppendError> },
    Fence { ledger: u64, result: Result<Option<u64>, FenceError> },
    Delete { ledgers: Vec<u64>, result: Result<(), AppendError> },
    House(Result<(), AppendError>),
}

struct Flight {
    commit: Box<Commit<SimFile>>,
    written: Option<io::Result<()>>,
    /// How far the log was durable when it was begun: proven on disk once this one is durable.
    proves: (u32, u64),
}

pub struct World {
    rng: SmallRng,
    disk: SimDisk,
    options: LogOptions,
    engine: Engine<SimDisk>,
    queue: VecDeque<Request>,
    flights: VecDeque<Flight>,
    answers: Arc<Mutex<Vec<Answer>>>,
    model: Model,
    next_ledger: u64,
    next_call: u64,
    answered_call: u64,
    depth: usize,
    faults: Faults,
    small_disk: bool,
    housekeeping: bool,
    /// What lies before this was proven durable on disk, so damage to it must be told from a torn tail.
    proven: (u32, u64),
    flips_left: usize,
    pub trace: String,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("GEMINGA_SEED").is_some() {
            println!("{}", self.trace);
        }
    }
}

/// Everything that a seed did and left behind.
#[derive(PartialEq, Eq)]
pub struct Outcome {
    pub trace: String,
    pub files: Vec<(String, Vec<u8>)>,
}

pub fn run(seed: u64) -> Outcome {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.end();
    Outcome { trace: std::mem::take(&mut world.trace), files: world.disk.contents() }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = SimDisk::new(rng.random(), 64 << 20);
        let options = LogOptions {
            segment_bytes: rng.random_range(8..=32) * 4096,
            commit_bytes: rng.random_range(1..=8) * 4096,
            reserve_bytes: 512 << 10,
            index_memory_bytes: rng.random_range(1 << 10..32 << 10),
            compact_below: rng.random_range(0.1..0.9),
            ..LogOptions::default()
        };
        let has_faults = rng.random_bool(0.3);
        let faults = Faults {
            write_error: if has_faults { rng.random_range(0.0..0.05) } else { 0.0 },
            sync_error: if has_faults { rng.random_range(0.0..0.05) } else { 0.0 },
        };
        let (engine, _) = Engine::open(disk.clone(), options.clone()).expect("an empty folder opens");
        let small_disk = rng.random_bool(0.3);
        if small_disk {
            disk.set_capacity(options.segment_bytes * rng.random_range(5..12) + options.reserve_bytes);
        }
        disk.set_faults(faults);
        Self {
            disk,
            options,
            engine,
            queue: VecDeque::new(),
            flights: VecDeque::new(),
            answers: Arc::default(),
            model: Model::default(),
            next_ledger: 1,
            next_call: 0,
            answered_call: 0,
            depth: rng.random_range(1..=2),
            faults,
            small_disk,
            housekeeping: false,
            proven: (0, 0),
            flips_left: if rng.random_bool(0.3) { rng.random_range(1..=2) } else { 0 },
            trace: String::new(),
            rng,
        }
    }

    fn note(&mut self, what: std::fmt::Arguments) {
        use std::fmt::Write;
        writeln!(self.trace, "{what}").expect("strings take everything");
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..28 => self.append(),
            28..32 => self.fence(),
            32..36 => self.delete(),
            36..56 => {
                self.begin();
            }
            56..70 => self.write_one(),
            70..84 => self.finish_one(),
            84..92 => self.maintain(),
            92..96 => self.read(),
            96..98 => {
                let changes = self.rng.random_range(1..20);
                self.disk.crash_after(changes);
                self.note(format_args!("will crash after {changes}"));
            }
            98 => self.restart(Stop::Kill),
            _ => self.restart(Stop::Close),
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.take_answers();
        if self.disk.has_crashed() {
            self.restart(Stop::Crash);
        }
    }

    fn append(&mut self) {
        let open: Vec<u64> =
            self.model.ledgers.iter().filter(|(_, known)| known.takes_entries()).map(|(id, _)| *id).collect();
        let ledger = if open.len() < LEDGERS_MAX && self.rng.random_bool(0.2) || open.is_empty() {
            self.next_ledger += 1;
            self.next_ledger - 1
        } else if self.rng.random_bool(0.03) {
            // A deposed writer.
            self.rng.random_range(1..self.next_ledger)
        } else {
            open[self.rng.random_range(0..open.len())]
        };
        let was_refused = self.rng.random_bool(0.01);
        self.append_to(ledger, was_refused);
    }

    fn append_to(&mut self, ledger: u64, was_refused: bool) {
        let count = self.rng.random_range(1..10);
        let known = self.model.ledgers.entry(ledger).or_default();
        let first = known.submitted;
        known.submitted += count;
        let reserve = self.rng.random_bool(0.1);
        let entries = (first..first + count).map(|entry| {
            let bytes = content(ledger, entry);
            let cut = bytes.len() / 3;
            let parts = [Bytes::copy_from_slice(&bytes[..cut]), Bytes::new(), Bytes::copy_from_slice(&bytes[cut..])];
            Append { ledger, entry, parts, reserve }
        });
        let (answers, call) = (self.answers.clone(), self.next_call);
        self.next_call += 1;
        let done = Box::new(move |result| {
            answers.lock().unwrap().push(Answer::Append { call, ledger, first, count, result });
        });
        let request = if was_refused {
            Request::Refused { ledgers: vec![ledger], done, error: AppendError::Overloaded }
        } else {
            Request::Append { entries: entries.collect(), done }
        };
        self.queue.push_back(request);
        self.note(format_args!("append {ledger}:{first}+{count}"));
    }

    fn any_ledger(&mut self) -> Option<u64> {
        (self.next_ledger > 1).then(|| self.rng.random_range(1..self.next_ledger))
    }

    fn fence(&mut self) {
        let Some(ledger) = self.any_ledger() else { return };
        self.ask_fence(ledger);
    }

    fn ask_fence(&mut self, ledger: u64) {
        self.model.ledgers.get_mut(&ledger).expect("exists").fence_asked = true;
        let answers = self.answers.clone();
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Fence { ledger, result }));
        self.queue.push_back(Request::Fence { ledger, done });
        self.note(format_args!("fence {ledger}"));
    }

    fn delete(&mut self) {
        let count = self.rng.random_range(1..4);
        let ledgers: Vec<u64> = (0..count).filter_map(|_| self.any_ledger()).collect();
        self.ask_deletion(ledgers);
    }

    fn ask_deletion(&mut self, ledgers: Vec<u64>) {
        for ledger in &ledgers {
            self.model.ledgers.get_mut(ledger).expect("exists").deletion_asked = true;
        }
        self.note(format_args!("delete {ledgers:?}"));
        let (answers, told) = (self.answers.clone(), ledgers.clone());
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Delete { ledgers: told, result }));
        self.queue.push_back(Request::Delete { ledgers, done });
    }

    /// Whether anything was begun.
    fn begin(&mut self) -> bool {
        if self.flights.len() >= self.depth {
            return false;
        }
        let proves = self.engine.durable_to();
        match self.engine.begin(&mut self.queue) {
            Begin::Commit(commit) => {
                self.note(format_args!("begin {} bytes", commit.bytes()));
                self.flights.push_back(Flight { commit, written: None, proves });
                true
            }
            Begin::Wait => {
                assert!(!self.flights.is_empty(), "waits for nothing");
                false
            }
            Begin::Nothing => false,
        }
    }

    fn write_one(&mut self) {
        let waiting: Vec<usize> = (0..self.flights.len()).filter(|&at| self.flights[at].written.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let at = waiting[self.rng.random_range(0..waiting.len())];
        let written = self.flights[at].commit.write();
        self.note(format_args!("write {at}: {}", written.is_ok()));
        self.flights[at].written = Some(written);
    }

    fn finish_one(&mut self) {
        if self.disk.has_crashed() || self.flights.front().is_none_or(|flight| flight.written.is_none()) {
            return;
        }
        let flight = self.flights.pop_front().expect("just seen");
        let before = self.engine.durable_to();
        let outcomes = self.engine.finish(flight.commit, flight.written.expect("just seen"));
        if self.engine.durable_to() != before {
            self.proven = self.proven.max(flight.proves);
        }
        outcomes.into_iter().for_each(|outcome| outcome.tell());
        self.take_answers();
    }

    fn take_answers(&mut self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        for answer in answers {
            match answer {
                Answer::Append { call, ledger, first, count, result } => {
                    assert!(call >= self.answered_call, "answers come in order");
                    self.answered_call = call + 1;
                    self.note(format_args!("appended {ledger}:{first}+{count}: {result:?}"));
                    self.model.appended(ledger, first, count, &result);
                }
                Answer::Fence { ledger, result } => {
                    self.note(format_args!("fenced {ledger}: {result:?}"));
                    self.model.fenced(ledger, &result);
                }
                Answer::Delete { ledgers, result } => {
                    self.note(format_args!("deleted {ledgers:?}: {result:?}"));
                    if result.is_ok() {
                        ledgers.iter().for_each(|id| self.model.ledgers.get_mut(id).expect("asked for").deleted = true);
                    } else {
                        assert!(
                            self.has_faults() || self.disk.has_crashed(),
                            "deleting fails only with the disk: {result:?}"
                        );
                    }
                }
                Answer::House(result) => {
                    self.housekeeping = false;
                    self.note(format_args!("housekeeping: {result:?}"));
                    if result.is_ok() {
                        let _ = self.engine.dispose();
                    }
                }
            }
        }
    }

    fn has_faults(&self) -> bool {
        self.faults.write_error + self.faults.sync_error > 0.0
    }

    fn maintain(&mut self) {
        let result = match self.rng.random_range(0..7) {
            0 => self.engine.prepare_next(),
            1 => self.engine.seal_retired(),
            2 => {
                self.engine.check_space();
                Ok(())
            }
            3 => {
                if self.engine.wants_mark() {
                    self.queue.push_back(Request::Mark);
                }
                Ok(())
            }
            4 => self.reclaim(),
            5 => self.engine.zero_ahead(16 << 10).map(drop),
            _ => self.compact(),
        };
        self.note(format_args!("maintained: {}", result.is_ok()));
    }

    fn house_done(&self) -> geminga_log::Done {
        let answers = self.answers.clone();
        Box::new(move |result| answers.lock().unwrap().push(Answer::House(result)))
    }

    fn reclaim(&mut self) -> io::Result<()> {
        if !self.housekeeping
            && let Some(request) = self.engine.plan_reclaim(self.house_done())?
        {
            self.housekeeping = true;
            self.queue.push_back(request);
        }
        Ok(())
    }

    fn compact(&mut self) -> io::Result<()> {
        if self.housekeeping {
            return Ok(());
        }
        let Some(plan) = self.engine.plan_compaction() else { return Ok(()) };
        self.note(format_args!("compact {plan:?}"));
        let mut steps_left = if self.rng.random_bool(0.1) { self.rng.random_range(0..5) } else { u32::MAX };
        let mut pace = |_| {
            steps_left = steps_left.saturating_sub(1);
            steps_left > 0
        };
        if let Some(request) = self.engine.compact(&plan, &mut pace, self.house_done())? {
            self.housekeeping = true;
            self.queue.push_back(request);
        }
        Ok(())
    }

    fn read(&mut self) {
        let Some(ledger) = self.any_ledger() else { return };
        let first = self.rng.random_range(0..=self.model.ledgers[&ledger].submitted);
        let last = first + self.rng.random_range(0..30);
        let max_bytes = self.rng.random_range(0..5000);
        self.model.check_range(&self.engine, ledger, first, last, max_bytes);
    }

    fn restart(&mut self, stop: Stop) {
        self.note(format_args!("{stop:?}"));
        if matches!(stop, Stop::Close) {
            self.drain();
            if self.disk.has_crashed() {
                return self.restart(Stop::Crash);
            }
            let _ = self.engine.shut_down();
            if self.disk.has_crashed() {
                return self.restart(Stop::Crash);
            }
        }
        self.queue.clear();
        self.flights.clear();
        self.answers.lock().unwrap().clear();
        self.housekeeping = false;
        match stop {
            Stop::Crash => self.disk.crash(),
            Stop::Kill | Stop::Close => self.disk.kill(),
        }
        self.answered_call = self.next_call;
        self.turn_bits();
        self.disk.set_faults(Faults::default());
        if self.rng.random_bool(0.2) {
            let changes = self.rng.random_range(1..12);
            self.disk.crash_after(changes);
        }
        let report = loop {
            match Engine::open(self.disk.clone(), self.options.clone()) {
                Ok((engine, report)) if !self.disk.has_crashed() => {
                    self.engine = engine;
                    break report;
                }
                Err(error) if !self.disk.has_crashed() => panic!("does not open: {error}"),
                _ => {
                    self.note(format_args!("crash in recovery"));
                    self.disk.crash();
                }
            }
        };
        self.disk.kill();
        self.disk.set_faults(self.faults);
        self.note(format_args!("{report:?}"));
        assert!(self.model.flips > 0 || report.damage.is_empty(), "damage without a cause: {:?}", report.damage);
        self.model.check(&self.engine, true);
        for known in self.model.ledgers.values_mut() {
            known.given_up |= self.rng.random_bool(0.5);
            known.submitted = known.durable;
            known.fence_asked = known.fenced.is_some() || known.fence_asked && self.rng.random_bool(0.5);
        }
        let newest = self.disk.contents().iter().filter_map(|(name, _)| segment_id(name)).max();
        self.proven = (newest.unwrap_or(0), u64::MAX);
    }

    /// Only where the disk itself proves that it was durable; see the crate's promise about the very last commit.
    fn turn_bits(&mut self) {
        if self.flips_left == 0 || self.rng.random_bool(0.6) {
            return;
        }
        let Some((name, byte, bit)) = self.disk.flip_proven_bit(self.proven, &mut self.rng) else { return };
        self.flips_left -= 1;
        self.model.flips += 1;
        self.note(format_args!("turned bit {bit} of byte {byte} in {name}"));
    }

    /// Until nothing waits and nothing is under way, or the machine has crashed.
    fn drain(&mut self) {
        while !self.disk.has_crashed() && (!self.queue.is_empty() || !self.flights.is_empty()) {
            self.begin();
            self.write_one();
            self.finish_one();
            self.engine.check_space();
        }
    }

    /// Without any more faults everything can be deleted, the space comes back, and the log takes entries.
    fn end(&mut self) {
        self.disk.set_faults(Faults::default());
        self.drain();
        self.settle();
        self.model.check(&self.engine, false);
        self.restart(Stop::Close);
        self.disk.set_faults(Faults::default());
        self.faults = Faults::default();
        let ledgers: Vec<u64> = self.engine.ledgers();
        ledgers.iter().for_each(|&ledger| {
            self.model.ledgers.entry(ledger).or_default();
        });
        self.ask_deletion(ledgers);
        for _ in 0..12 {
            self.drain();
            self.engine.prepare_next().expect("no faults");
            self.engine.seal_retired().expect("no faults");
            self.engine.check_space();
            self.reclaim().expect("no faults");
        }
        self.drain();
        assert_eq!(self.engine.ledgers(), [0; 0]);
        let stats = self.engine.stats();
        assert!(self.model.flips > 0 || stats.segments <= 3, "the space does not come back: {stats:?}");
        if self.model.flips == 0 {
            assert!(!self.small_disk || !self.engine.is_full(), "still full: {stats:?}");
            self.append_to(self.next_ledger, false);
            self.drain();
            assert!(self.model.ledgers[&self.next_ledger].durable > 0, "takes no entries");
        }
        self.restart(Stop::Crash);
    }
}

#[derive(Debug, Clone, Copy)]
enum Stop {
    /// The machine loses power.
    Crash,
    /// The process is killed.
    Kill,
    Close,
}

fn segment_id(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}
