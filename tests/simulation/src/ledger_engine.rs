//! Ledgers in the storage engine on a simulated disk: what is submitted becomes commits, whose writes and syncs may fail,
//! be torn or get lost; the disk may be full; bits may turn.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use geminga_ledger::managed_ledger::WriteError;
use geminga_log::disk::Disk;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::Request;
use geminga_log::{Admission, Append, AppendError, FenceError, LogOptions, ReadError};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::engine_driver::Driver;
use crate::ledger_owner::Plant;
use crate::ledger_store::{Ledgers, Part, WriteDone};

const DISK_BYTES: u64 = 64 << 20;
const RESERVE_BYTES: u64 = 512 << 10;

/// See the module's head.
pub struct EngineLedgers {
    log: Driver,
    done: Arc<Mutex<Vec<WriteDone>>>,
    faults: Faults,
    full: bool,
    read_only: bool,
    flips_left: u32,
    flips: u32,
    noticed_damage: Cell<bool>,
    plant: Plant,
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
        let mut log = Driver::new(disk, options, rng.random_range(1..=2));
        log.ignores_errors = plant == Plant::IgnoreSyncError;
        EngineLedgers {
            log,
            done: Arc::default(),
            faults,
            full: false,
            read_only: false,
            flips_left: if rng.random_bool(0.3) { rng.random_range(1..=2) } else { 0 },
            flips: 0,
            noticed_damage: Cell::new(false),
            plant,
        }
    }

    fn finish_one(&mut self) {
        if self.log.finish_one() == Some(false) {
            self.read_only |= self.log.engine.stats().read_only;
        }
    }

    /// Only where the disk itself proves that it was durable: the engine promises nothing of the very last commit.
    fn turn_bits(&mut self, rng: &mut SmallRng) {
        if self.flips_left == 0 || rng.random_bool(0.2) {
            return;
        }
        if self.log.disk.flip_proven_bit(self.log.proven(), rng).is_none() {
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
        self.log.queue.push_back(Request::Fence {
            ledger,
            key: None,
            done: Box::new(move |result| *told.lock() = Some(result)),
        });
        self.log.disk.set_faults(Faults::default());
        while !self.log.disk.has_crashed() {
            if let Some(result) = answer.lock().take() {
                return result;
            }
            self.log.begin();
            self.log.write_all();
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
        self.log.queue.push_back(Request::Append { entries: entries.collect(), admission: Admission::Whole, done });
    }

    fn has_queued(&self) -> bool {
        self.log.is_busy()
    }

    fn has_done(&self) -> bool {
        !self.done.lock().is_empty()
    }

    fn store_next(&mut self, rng: &mut SmallRng, failures: bool) {
        self.log.disk.set_faults(if failures { self.faults } else { Faults::default() });
        for _ in 0..rng.random_range(1..4) {
            match rng.random_range(0..20) {
                0..7 => drop(self.log.begin()),
                7..13 => self.log.write_one(rng),
                13..18 => self.finish_one(),
                _ => self.log.maintain(rng),
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
        self.log.disk.crash_after(rng.random_range(1..30));
    }

    fn needs_restart(&self) -> bool {
        self.log.disk.has_crashed() || self.read_only
    }

    /// The machine loses power, or only the process ends; then recovery, in which it may crash again.
    fn restart(&mut self, rng: &mut SmallRng) -> Result<(), String> {
        self.done = Arc::default();
        self.read_only = false;
        let is_power_lost = self.log.disk.has_crashed() || rng.random_bool(0.6);
        self.log.stop(is_power_lost);
        self.turn_bits(rng);
        let crash_after = rng.random_bool(0.2).then(|| rng.random_range(1..12));
        let report = self.log.open(crash_after)?;
        if self.flips == 0 && !report.damage.is_empty() {
            return Err(format!("the log is damaged without a cause: {:?}", report.damage));
        }
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
                self.read_only |= self.log.engine.stats().read_only;
                Err(format!("ledger {ledger} cannot be fenced: {error}"))
            }
        }
    }

    fn read(&self, ledger: u64, entry: u64) -> Result<Option<Bytes>, String> {
        match self.log.engine.read(ledger, entry) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadError::NoSuchLedger { .. } | ReadError::NoSuchEntry { .. }) => Ok(None),
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    fn read_first(&self, ledger: u64, count: u64) -> Result<Vec<Bytes>, String> {
        let mut found = Vec::new();
        while (found.len() as u64) < count {
            match self.log.engine.read_range(ledger, found.len() as u64, count - 1, usize::MAX) {
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
        self.log.queue.push_back(Request::Delete { ledgers: vec![ledger], done: Box::new(|_| ()) });
    }

    fn is_full(&self) -> bool {
        self.full
    }

    /// Something else takes the disk, but for a part of the reserve.
    fn fill(&mut self, rng: &mut SmallRng) {
        let free = self.log.disk.space().expect("it is in memory").free_bytes;
        let left = rng.random_range(RESERVE_BYTES / 2..RESERVE_BYTES);
        self.log.disk.set_capacity(DISK_BYTES - free.saturating_sub(left));
        self.log.engine.check_space();
        self.full = true;
    }

    fn make_room(&mut self) {
        self.log.disk.set_capacity(DISK_BYTES);
        self.log.engine.check_space();
        self.full = false;
    }

    fn end_faults(&mut self) {
        self.make_room();
        if !self.log.disk.has_crashed() {
            self.log.disk.kill();
        }
    }

    fn noticed_damage(&self) -> bool {
        self.noticed_damage.get()
    }

    fn digest(&self) -> u64 {
        self.log.digest()
    }
}
