//! An engine on a simulated disk, with requests that wait and commits under way, that ends in every way a machine can.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use geminga_log::disk::Disk;
use geminga_log::disk::sim::{Faults, SimDisk, SimFile};
use geminga_log::engine::{Begin, Commit, Engine, Request, ZeroFirst, Zeros};
use geminga_log::{AppendError, Done, LogOptions, RecoveryReport};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const BLOCK_BYTES: u64 = 4096;
/// The list of deleted ledgers.
const DELETED: &str = "deleted";
/// The shortest record.
const RECORD_BYTES: usize = 32;

struct Flight {
    commit: Box<Commit<SimFile>>,
    written: Option<io::Result<()>>,
    /// How far the log was durable when it was begun: proven on disk once this one is durable.
    proves: (u32, u64),
}

#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// The machine loses power.
    Crash,
    /// The process is killed.
    Kill,
    Close,
}

pub struct Machine {
    pub rng: SmallRng,
    pub disk: SimDisk,
    pub engine: Engine<SimDisk>,
    pub queue: VecDeque<Request>,
    pub small_disk: bool,
    /// Bits that were turned in the files.
    flips: usize,
    /// Segments that were cut off.
    cuts: usize,
    /// Blocks that cannot be read any more.
    lost_blocks: usize,
    /// Blocks of which a write went to the place of another one.
    misdirected: usize,
    /// Starts during which the disk failed to read something.
    bad_starts: usize,
    pub trace: String,
    options: LogOptions,
    flights: VecDeque<Flight>,
    depth: usize,
    faults: Faults,
    has_faults: bool,
    housekeeping: bool,
    house_answer: Arc<Mutex<Option<Result<(), AppendError>>>>,
    /// What lies before this was proven durable on disk, so damage to it must be told from a torn tail.
    proven: (u32, u64),
    flips_left: usize,
    /// Bits turn in the list of deleted ledgers.
    turns_lists: bool,
    cuts_off: bool,
    misdirects: bool,
    blocks_left: usize,
    /// At times so many reads fail by chance.
    read_error: f64,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("GEMINGA_SEED").is_some() {
            println!("{}", self.trace);
        }
    }
}

impl Machine {
    pub fn new(seed: u64, only_replicas: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = SimDisk::new(rng.random(), 64 << 20);
        let options = LogOptions {
            segment_bytes: rng.random_range(8..=32) * 4096,
            commit_bytes: rng.random_range(1..=8) * 4096,
            reserve_bytes: 512 << 10,
            index_memory_bytes: rng.random_range(1 << 10..32 << 10),
            compact_below: rng.random_range(0.1..0.9),
            only_replicas,
            ..LogOptions::default()
        };
        let has_faults = rng.random_bool(0.3);
        let faults = Faults {
            write_error: if has_faults { rng.random_range(0.0..0.05) } else { 0.0 },
            sync_error: if has_faults { rng.random_range(0.0..0.05) } else { 0.0 },
            read_error: 0.0,
        };
        // Never together: what is damaged is told from a torn end by a proof, which must not be lost then.
        let (mut cuts, mut turns_lists) = (false, false);
        let (flips_left, misdirects, blocks_left) = match rng.random_range(0..100) {
            0..20 => (rng.random_range(1..=2), false, 0),
            20..25 => (0, true, 0),
            25..55 => (0, false, rng.random_range(1..=3)),
            at => {
                (cuts, turns_lists) = (at < 60, (60..65).contains(&at));
                (usize::from(turns_lists), false, 0)
            }
        };
        let read_error =
            if flips_left == 0 && !misdirects && rng.random_bool(0.25) { rng.random_range(0.02..0.3) } else { 0.0 };
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
            depth: rng.random_range(1..=2),
            faults,
            has_faults,
            small_disk,
            housekeeping: false,
            house_answer: Arc::default(),
            proven: (0, 0),
            flips: 0,
            cuts: 0,
            lost_blocks: 0,
            misdirected: 0,
            bad_starts: 0,
            flips_left,
            turns_lists,
            cuts_off: cuts,
            misdirects,
            blocks_left,
            read_error,
            trace: String::new(),
            rng,
        }
    }

    pub fn note(&mut self, what: std::fmt::Arguments) {
        use std::fmt::Write;
        writeln!(self.trace, "{what}").expect("strings take everything");
    }

    /// Whether anything was begun.
    pub fn begin(&mut self) -> bool {
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

    pub fn write_one(&mut self) {
        let waiting: Vec<usize> = (0..self.flights.len()).filter(|&at| self.flights[at].written.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let at = waiting[self.rng.random_range(0..waiting.len())];
        let written = self.flights[at].commit.write();
        self.note(format_args!("write {at}: {}", written.is_ok()));
        self.flights[at].written = Some(written);
    }

    /// Finishes the oldest commit if it is written, and gives its answers.
    pub fn finish_one(&mut self) {
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
        let house = self.house_answer.lock().unwrap().take();
        if let Some(result) = house {
            self.housekeeping = false;
            self.note(format_args!("housekeeping: {result:?}"));
            if result.is_ok() {
                let _ = self.engine.dispose();
                let _ = self.engine.thin_spares();
            }
        }
    }

    /// Whether writing may have failed though the machine has not crashed.
    pub fn has_faults(&self) -> bool {
        self.has_faults
    }

    /// What may have made entries unreadable, or left other answers open.
    pub fn damages(&self) -> usize {
        self.flips + self.cuts + self.lost_blocks + self.misdirected + self.bad_starts
    }

    /// How many stretches of ledgers may be unreadable: a bit that is turned in the head of a record costs what the record holds,
    /// a block the records that it has a part of. Of several blocks one may be in a segment's index.
    pub fn unreadable_max(&self) -> usize {
        match self.lost_blocks {
            _ if self.bad_starts + self.misdirected + self.cuts > 0 => usize::MAX,
            0 => self.flips,
            1 => BLOCK_BYTES as usize / RECORD_BYTES,
            _ => usize::MAX,
        }
    }

    /// Whether reads fail by chance from now on; to be said again with `false`.
    pub fn let_reads_fail(&mut self, fail: bool) -> bool {
        let read_error = if fail { self.read_error } else { 0.0 };
        self.disk.set_faults(Faults { read_error, ..self.faults });
        read_error > 0.0
    }

    pub fn maintain(&mut self) {
        self.let_reads_fail(true);
        let result = match self.rng.random_range(0..8) {
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
            6 => self.engine.try_again().map(drop),
            5 => {
                let first = if self.rng.random_bool(0.5) { ZeroFirst::Active } else { ZeroFirst::Next };
                self.engine.zero_ahead(&Zeros::new(16 << 10), first).map(drop)
            }
            _ => self.compact(),
        };
        self.let_reads_fail(false);
        self.note(format_args!("maintained: {}", result.is_ok()));
    }

    fn house_done(&self) -> Done {
        let answer = self.house_answer.clone();
        Box::new(move |result| *answer.lock().unwrap() = Some(result))
    }

    pub fn reclaim(&mut self) -> io::Result<()> {
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
        let Some(plan) = self.engine.plan_compaction(|_, _| true) else { return Ok(()) };
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

    /// Ends and opens the log again. What waited or was under way has no answer any more.
    pub fn restart(&mut self, stop: Stop) -> RecoveryReport {
        self.note(format_args!("{stop:?}"));
        if matches!(stop, Stop::Close) {
            self.drain();
            if !self.disk.has_crashed() {
                let _ = self.engine.shut_down();
            }
            if self.disk.has_crashed() {
                return self.restart(Stop::Crash);
            }
        }
        self.queue.clear();
        self.flights.clear();
        self.housekeeping = false;
        *self.house_answer.lock().unwrap() = None;
        match stop {
            Stop::Crash => self.disk.crash(),
            Stop::Kill | Stop::Close => self.disk.kill(),
        }
        self.turn_bits();
        self.cut_off();
        self.misdirect();
        if self.rng.random_bool(0.3) {
            self.lose_block();
        }
        let failed_reads = self.disk.failed_reads();
        let mut read_error = if self.rng.random_bool(0.2) { self.read_error } else { 0.0 };
        self.disk.set_faults(Faults { read_error, ..Faults::default() });
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
                Err(error) if !self.disk.has_crashed() => {
                    assert!(read_error > 0.0, "does not open: {error}");
                    self.note(format_args!("does not open: {error}"));
                    read_error = 0.0;
                    self.disk.set_faults(Faults::default());
                }
                _ => {
                    self.note(format_args!("crash in recovery"));
                    self.disk.crash();
                }
            }
        };
        self.disk.kill();
        self.disk.set_faults(self.faults);
        self.note(format_args!("{report:?}"));
        self.bad_starts += usize::from(read_error > 0.0 && self.disk.failed_reads() > failed_reads);
        // An index that could not be read for a moment was written again, and a crash came in between.
        let has_cause = self.damages() > 0 || self.disk.failed_reads() > 0;
        assert!(has_cause || report.damage.is_empty(), "damage without a cause: {:?}", report.damage);
        let newest = self.disk.contents().iter().filter_map(|(name, _)| segment_id(name)).max();
        self.proven = (newest.unwrap_or(0), u64::MAX);
        report
    }

    /// From now on the disk does what it is told.
    pub fn heal(&mut self) {
        self.disk.set_faults(Faults::default());
        self.faults = Faults::default();
        (self.read_error, self.blocks_left) = (0.0, 0);
    }

    /// A block anywhere cannot be read any more, often one at the end of the log: whether it was durable or not.
    pub fn lose_block(&mut self) {
        let names = self.disk.list().expect("it lists");
        let names: Vec<String> =
            names.into_iter().filter(|name| segment_id(name).is_some() || name == DELETED).collect();
        // What is written and not finished counts as older than the damage.
        if self.blocks_left == 0 || names.is_empty() || self.flights.iter().any(|flight| flight.written.is_some()) {
            return;
        }
        let (newest, end) = self.engine.durable_to();
        let (mut name, mut byte) = (names[self.rng.random_range(0..names.len())].clone(), None);
        if self.rng.random_bool(0.5) {
            let end_of_log = format!("segment-{newest:08x}");
            if names.contains(&end_of_log) {
                byte = Some((end + BLOCK_BYTES).saturating_sub(self.rng.random_range(1..=4) * BLOCK_BYTES));
                name = end_of_log;
            }
        }
        let length = self.disk.file_length(&name);
        if length > 0 {
            let byte = byte.unwrap_or_else(|| self.rng.random_range(0..length));
            self.disk.fail_reads(&name, byte);
            self.blocks_left -= 1;
            self.lost_blocks += 1;
            self.note(format_args!("lost block {} of {name}", byte / BLOCK_BYTES));
        }
    }

    /// Only where the disk itself proves that it was durable; see the crate's promise about the very last commit.
    fn turn_bits(&mut self) {
        if self.flips_left == 0 || self.rng.random_bool(0.6) {
            return;
        }
        let turned = match self.turns_lists {
            true => self.disk.flip_bit_of(DELETED, &mut self.rng).map(|(byte, bit)| (DELETED.to_owned(), byte, bit)),
            false => self.disk.flip_proven_bit(self.proven, &mut self.rng),
        };
        let Some((name, byte, bit)) = turned else { return };
        self.flips_left -= 1;
        self.flips += 1;
        self.note(format_args!("turned bit {bit} of byte {byte} in {name}"));
    }

    /// As with bits. What is gone may be any number of stretches.
    fn cut_off(&mut self) {
        if !self.cuts_off || self.rng.random_bool(0.6) {
            return;
        }
        let Some((name, length)) = self.disk.cut_proven_file(self.proven, &mut self.rng) else { return };
        self.cuts_off = false;
        self.cuts += 1;
        self.note(format_args!("cut {name} off at {length}"));
    }

    /// As with bits. What is missing in one place and damaged in the other counts as two blocks.
    fn misdirect(&mut self) {
        if !self.misdirects || self.rng.random_bool(0.6) {
            return;
        }
        let Some((name, from, to)) = self.disk.misdirect_proven_write(self.proven, &mut self.rng) else { return };
        self.misdirects = false;
        self.misdirected += 2;
        self.note(format_args!("wrote what belongs at {from} of {name} at {to}"));
    }

    /// Until nothing waits and nothing is under way, or the machine has crashed.
    pub fn drain(&mut self) {
        while !self.disk.has_crashed() && (!self.queue.is_empty() || !self.flights.is_empty()) {
            self.begin();
            self.write_one();
            self.finish_one();
            self.engine.check_space();
        }
    }
}

fn segment_id(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}
