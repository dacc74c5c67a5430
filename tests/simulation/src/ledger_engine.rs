//! Ledgers in the storage engine on a simulated disk: what is submitted becomes commits, whose writes and syncs may fail,
//! be torn or get lost; the disk may be full; bits may turn.

use std::cell::Cell;
use std::collections::VecDeque;
use std::hash::Hasher;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use geminga_ledger::managed_ledger::WriteError;
use geminga_log::disk::Disk;
use geminga_log::disk::sim::{Faults, SimDisk, SimFile};
use geminga_log::engine::{Begin, Commit, Engine, Request, ZeroFirst, Zeros};
use geminga_log::{Admission, Append, AppendError, FenceError, LogOptions, ReadError};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::ledger_owner::Plant;
use crate::ledger_store::{Ledgers, Part, WriteDone};

const DISK_BYTES: u64 = 64 << 20;
const RESERVE_BYTES: u64 = 512 << 10;

struct Flight {
    commit: Box<Commit<SimFile>>,
    written: Option<io::Result<()>>,
    /// How far the log was durable when it was begun: proven on disk once this one is durable.
    proves: (u32, u64),
}

/// See the module's head.
pub struct EngineLedgers {
    disk: SimDisk,
    options: LogOptions,
    engine: Engine<SimDisk>,
    queue: VecDeque<Request>,
    flights: VecDeque<Flight>,
    done: Arc<Mutex<Vec<WriteDone>>>,
    /// Commits that may be under way at once.
    depth: usize,
    faults: Faults,
    full: bool,
    read_only: bool,
    housekeeping: Arc<Mutex<Housekeeping>>,
    /// What lies before this was proven durable on disk, so damage to it must be told from a torn tail.
    proven: (u32, u64),
    flips_left: u32,
    flips: u32,
    noticed_damage: Cell<bool>,
    plant: Plant,
}

#[derive(Default)]
struct Housekeeping {
    under_way: bool,
    dispose: bool,
}

impl EngineLedgers {
    pub fn new(rng: &mut SmallRng, plant: Plant) -> EngineLedgers {
        let disk = SimDisk::new(rng.random(), DISK_BYTES);
        let options = LogOptions {
            segment_bytes: rng.random_range(8..=24) * 4096,
            commit_bytes: rng.random_range(1..=4) * 4096,
            reserve_bytes: RESERVE_BYTES,
            index_memory_bytes: rng.random_range(1 << 10..32 << 10),
            compact_below: rng.random_range(0.1..0.9),
            ..LogOptions::default()
        };
        let (write_error, sync_error) = (rng.random_range(0.0..0.04), rng.random_range(0.0..0.04));
        let faults = Faults { write_error, sync_error, ..Faults::default() };
        let (engine, _) = Engine::open(disk.clone(), options.clone()).expect("an empty folder opens");
        EngineLedgers {
            disk,
            options,
            engine,
            queue: VecDeque::new(),
            flights: VecDeque::new(),
            done: Arc::default(),
            depth: rng.random_range(1..=2),
            faults,
            full: false,
            read_only: false,
            housekeeping: Arc::default(),
            proven: (0, 0),
            flips_left: if rng.random_bool(0.3) { rng.random_range(1..=2) } else { 0 },
            flips: 0,
            noticed_damage: Cell::new(false),
            plant,
        }
    }

    fn begin(&mut self) {
        if self.flights.len() >= self.depth {
            return;
        }
        let proves = self.engine.durable_to();
        if let Begin::Commit(commit) = self.engine.begin(&mut self.queue) {
            self.flights.push_back(Flight { commit, written: None, proves });
        }
    }

    /// The one that is written need not be the oldest.
    fn write_one(&mut self, rng: &mut SmallRng) {
        let waiting: Vec<usize> = (0..self.flights.len()).filter(|&at| self.flights[at].written.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let flight = &mut self.flights[waiting[rng.random_range(0..waiting.len())]];
        let mut written = flight.commit.write();
        if self.plant == Plant::IgnoreSyncError && !self.disk.has_crashed() {
            written = Ok(());
        }
        flight.written = Some(written);
    }

    fn finish_one(&mut self) {
        if self.disk.has_crashed() || self.flights.front().is_none_or(|flight| flight.written.is_none()) {
            return;
        }
        let flight = self.flights.pop_front().expect("just seen");
        let written = flight.written.expect("just seen");
        let (before, failed) = (self.engine.durable_to(), written.is_err());
        let outcomes = self.engine.finish(flight.commit, written);
        if self.engine.durable_to() != before {
            self.proven = self.proven.max(flight.proves);
        }
        self.read_only |= failed && self.engine.stats().read_only;
        outcomes.into_iter().for_each(|outcome| outcome.tell());
    }

    /// What the log's own thread does from time to time. Errors are the disk's, and it tries again.
    fn maintain(&mut self, rng: &mut SmallRng) {
        if std::mem::take(&mut self.housekeeping.lock().dispose) {
            let _ = self.engine.dispose();
            let _ = self.engine.thin_spares();
        }
        match rng.random_range(0..8) {
            0 => drop(self.engine.prepare_next()),
            1 => drop(self.engine.seal_retired()),
            2 => drop(self.engine.check_space()),
            7 => drop(self.engine.try_again()),
            3 if self.engine.wants_mark() => self.queue.push_back(Request::Mark),
            4 => self.keep_house(|engine, done| engine.plan_reclaim(done)),
            5 => drop(self.engine.zero_ahead(&Zeros::new(16 << 10), ZeroFirst::Active)),
            6 => self.keep_house(|engine, done| {
                let Some(plan) = engine.plan_compaction(|_, _| true) else { return Ok(None) };
                engine.compact(&plan, &mut |_| true, done)
            }),
            _ => {}
        }
    }

    fn keep_house(&mut self, plan: impl FnOnce(&Engine<SimDisk>, geminga_log::Done) -> io::Result<Option<Request>>) {
        if self.housekeeping.lock().under_way {
            return;
        }
        let state = self.housekeeping.clone();
        let done = Box::new(move |result: Result<(), AppendError>| {
            *state.lock() = Housekeeping { under_way: false, dispose: result.is_ok() };
        });
        if let Ok(Some(request)) = plan(&self.engine, done) {
            self.housekeeping.lock().under_way = true;
            self.queue.push_back(request);
        }
    }

    /// Only where the disk itself proves that it was durable: the engine promises nothing of the very last commit.
    fn turn_bits(&mut self, rng: &mut SmallRng) {
        if self.flips_left == 0 || rng.random_bool(0.2) {
            return;
        }
        if self.disk.flip_proven_bit(self.proven, rng).is_none() {
            return;
        }
        self.flips_left -= 1;
        self.flips += 1;
    }

    fn unreadable(&self, error: &ReadError) -> String {
        if matches!(error, ReadError::Corrupt { .. }) && self.flips > 0 {
            self.noticed_damage.set(true);
        }
        error.to_string()
    }

    fn ask_fence(&mut self, ledger: u64) -> Result<Option<u64>, FenceError> {
        let answer = Arc::new(Mutex::new(None));
        let told = answer.clone();
        self.queue.push_back(Request::Fence {
            ledger,
            key: None,
            done: Box::new(move |result| *told.lock() = Some(result)),
        });
        self.disk.set_faults(Faults::default());
        while !self.disk.has_crashed() {
            if let Some(result) = answer.lock().take() {
                return result;
            }
            self.begin();
            for flight in self.flights.iter_mut().filter(|flight| flight.written.is_none()) {
                flight.written = Some(flight.commit.write());
            }
            self.finish_one();
        }
        Err(FenceError::NotDurable(AppendError::Io("the machine has crashed".into())))
    }
}

impl Ledgers for EngineLedgers {
    fn submit(&mut self, owner: u32, part: Part, ledger: u64, first: i64, entries: Vec<Bytes>) {
        let (first, count) = (first as u64, entries.len() as u64);
        let entries = entries.into_iter().zip(first..).map(|(body, entry)| {
            let parts = [body, Bytes::new(), Bytes::new()];
            Append { ledger, entry, parts, reserve: part == Part::Log }
        });
        let done = self.done.clone();
        let tell = move |result: Result<(), AppendError>| {
            let result = result.map_err(|error| match error {
                AppendError::DiskFull => WriteError::Full,
                AppendError::Fenced => WriteError::Fenced,
                other => WriteError::Failed(other.to_string()),
            });
            done.lock().push(WriteDone { owner, part, ledger, first, count, result });
        };
        let done: geminga_log::Done = if self.plant == Plant::AckBeforeSync {
            tell(Ok(()));
            Box::new(|_| ())
        } else {
            Box::new(tell)
        };
        self.queue.push_back(Request::Append { entries: entries.collect(), admission: Admission::Whole, done });
    }

    fn has_queued(&self) -> bool {
        !self.queue.is_empty() || !self.flights.is_empty()
    }

    fn has_done(&self) -> bool {
        !self.done.lock().is_empty()
    }

    fn store_next(&mut self, rng: &mut SmallRng, failures: bool) {
        self.disk.set_faults(if failures { self.faults } else { Faults::default() });
        for _ in 0..rng.random_range(1..4) {
            match rng.random_range(0..20) {
                0..7 => self.begin(),
                7..13 => self.write_one(rng),
                13..18 => self.finish_one(),
                _ => self.maintain(rng),
            }
        }
    }

    fn next_done(&mut self, rng: &mut SmallRng) -> Option<WriteDone> {
        let mut done = self.done.lock();
        if done.is_empty() {
            return None;
        }
        let at = if rng.random_bool(0.1) { rng.random_range(0..done.len()) } else { 0 };
        Some(done.remove(at))
    }

    fn crash_soon(&mut self, rng: &mut SmallRng) {
        self.disk.crash_after(rng.random_range(1..30));
    }

    fn needs_restart(&self) -> bool {
        self.disk.has_crashed() || self.read_only
    }

    /// The machine loses power, or only the process ends; then recovery, in which it may crash again.
    fn restart(&mut self, rng: &mut SmallRng) -> Result<(), String> {
        self.queue.clear();
        self.flights.clear();
        self.done = Arc::default();
        self.housekeeping = Arc::default();
        self.read_only = false;
        match self.disk.has_crashed() || rng.random_bool(0.6) {
            true => self.disk.crash(),
            false => self.disk.kill(),
        }
        self.turn_bits(rng);
        self.disk.set_faults(Faults::default());
        if rng.random_bool(0.2) {
            self.disk.crash_after(rng.random_range(1..12));
        }
        let report = loop {
            match Engine::open(self.disk.clone(), self.options.clone()) {
                Ok((engine, report)) if !self.disk.has_crashed() => {
                    self.engine = engine;
                    break report;
                }
                Err(error) if !self.disk.has_crashed() => return Err(format!("the log does not open: {error}")),
                _ => self.disk.crash(),
            }
        };
        self.disk.kill();
        if self.flips == 0 && !report.damage.is_empty() {
            return Err(format!("the log is damaged without a cause: {:?}", report.damage));
        }
        let newest = self.disk.list().expect("it is in memory").iter().filter_map(|name| segment_id(name)).max();
        self.proven = (newest.unwrap_or(0), u64::MAX);
        Ok(())
    }

    fn recover(&mut self, ledger: u64) -> Result<u64, String> {
        let mut answer = self.ask_fence(ledger);
        if self.full && !self.needs_restart() && matches!(answer, Err(FenceError::NotDurable(_))) {
            // Not even the reserve is left; somebody makes room.
            self.make_room();
            answer = self.ask_fence(ledger);
        }
        match answer {
            Ok(last) => Ok(last.map_or(0, |last| last + 1)),
            Err(FenceError::Unknown(error)) => Err(self.unreadable(&error)),
            Err(FenceError::NotDurable(error)) => {
                self.read_only |= self.engine.stats().read_only;
                Err(format!("ledger {ledger} cannot be fenced: {error}"))
            }
        }
    }

    fn read(&self, ledger: u64, entry: u64) -> Result<Option<Bytes>, String> {
        match self.engine.read(ledger, entry) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadError::NoSuchLedger { .. } | ReadError::NoSuchEntry { .. }) => Ok(None),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn read_first(&self, ledger: u64, count: u64) -> Result<Vec<Bytes>, String> {
        let mut found = Vec::new();
        while (found.len() as u64) < count {
            match self.engine.read_range(ledger, found.len() as u64, count - 1, usize::MAX) {
                Ok(entries) => {
                    for (entry, bytes) in entries {
                        if entry != found.len() as u64 {
                            return Err(format!("ledger {ledger} answers entry {entry} for {}", found.len()));
                        }
                        found.push(bytes);
                    }
                }
                Err(ReadError::NoSuchLedger { .. } | ReadError::NoSuchEntry { .. }) => break,
                Err(error) => return Err(self.unreadable(&error)),
            }
        }
        Ok(found)
    }

    fn delete(&mut self, ledger: u64) {
        self.queue.push_back(Request::Delete { ledgers: vec![ledger], done: Box::new(|_| ()) });
    }

    fn is_full(&self) -> bool {
        self.full
    }

    /// Something else takes the disk, but for a part of the reserve.
    fn fill(&mut self, rng: &mut SmallRng) {
        let free = self.disk.space().expect("it is in memory").free_bytes;
        let left = rng.random_range(RESERVE_BYTES / 2..RESERVE_BYTES);
        self.disk.set_capacity(DISK_BYTES - free.saturating_sub(left));
        self.engine.check_space();
        self.full = true;
    }

    fn make_room(&mut self) {
        self.disk.set_capacity(DISK_BYTES);
        self.engine.check_space();
        self.full = false;
    }

    fn end_faults(&mut self) {
        self.make_room();
        if !self.disk.has_crashed() {
            self.disk.kill();
        }
    }

    fn noticed_damage(&self) -> bool {
        self.noticed_damage.get()
    }

    fn digest(&self) -> u64 {
        let mut hasher = rustc_hash::FxHasher::default();
        for (name, bytes) in self.disk.contents() {
            hasher.write(name.as_bytes());
            hasher.write(&bytes);
        }
        hasher.finish()
    }
}

fn segment_id(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}
