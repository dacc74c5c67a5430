//! The storage engine on a simulated disk, driven step by step: what waits becomes commits, of which some may be under way, and
//! from time to time it keeps house. It ends as a machine does, and is opened again.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::io;
use std::sync::Arc;

use geminga_log::disk::Disk;
use geminga_log::disk::sim::{Faults, SimDisk, SimFile};
use geminga_log::engine::{Begin, Commit, Engine, Request, ZeroFirst, Zeros};
use geminga_log::{AppendError, LogOptions, RecoveryReport};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;

struct Flight {
    commit: Box<Commit<SimFile>>,
    written: Option<io::Result<()>>,
    /// How far the log was durable when it was begun: proven on disk once this one is durable.
    proves: (u32, u64),
}

/// See the module's head.
pub struct Driver {
    pub disk: SimDisk,
    pub engine: Engine<SimDisk>,
    pub queue: VecDeque<Request>,
    options: LogOptions,
    flights: VecDeque<Flight>,
    /// Commits that may be under way at once.
    depth: usize,
    housekeeping: Arc<Mutex<Housekeeping>>,
    /// What lies before this was proven durable on disk, so damage to it must be told from a torn tail.
    proven: (u32, u64),
    /// A failed sync is taken for a good one.
    pub ignores_errors: bool,
}

#[derive(Default)]
struct Housekeeping {
    under_way: bool,
    dispose: bool,
}

impl Driver {
    pub fn new(disk: SimDisk, options: LogOptions, depth: usize) -> Driver {
        let (engine, _) = Engine::open(disk.clone(), options.clone()).expect("an empty folder opens");
        Driver {
            disk,
            engine,
            queue: VecDeque::new(),
            options,
            flights: VecDeque::new(),
            depth,
            housekeeping: Arc::default(),
            proven: (0, 0),
            ignores_errors: false,
        }
    }

    pub fn is_busy(&self) -> bool {
        !self.queue.is_empty() || !self.flights.is_empty()
    }

    pub fn proven(&self) -> (u32, u64) {
        self.proven
    }

    /// Whether anything was begun.
    pub fn begin(&mut self) -> bool {
        if self.flights.len() >= self.depth {
            return false;
        }
        let proves = self.engine.durable_to();
        let Begin::Commit(commit) = self.engine.begin(&mut self.queue) else { return false };
        self.flights.push_back(Flight { commit, written: None, proves });
        true
    }

    /// The one that is written need not be the oldest.
    pub fn write_one(&mut self, rng: &mut SmallRng) {
        let waiting: Vec<usize> = (0..self.flights.len()).filter(|&at| self.flights[at].written.is_none()).collect();
        if waiting.is_empty() {
            return;
        }
        let flight = &mut self.flights[waiting[rng.random_range(0..waiting.len())]];
        let mut written = flight.commit.write();
        if self.ignores_errors && !self.disk.has_crashed() {
            written = Ok(());
        }
        flight.written = Some(written);
    }

    pub fn write_all(&mut self) {
        for flight in self.flights.iter_mut().filter(|flight| flight.written.is_none()) {
            flight.written = Some(flight.commit.write());
        }
    }

    /// Finishes the oldest commit if it is written, and gives its answers. Answers whether it was good.
    pub fn finish_one(&mut self) -> Option<bool> {
        if self.disk.has_crashed() {
            return None;
        }
        let flight = self.flights.pop_front_if(|flight| flight.written.is_some())?;
        let written = flight.written.expect("just seen");
        let (before, is_good) = (self.engine.durable_to(), written.is_ok());
        let outcomes = self.engine.finish(flight.commit, written);
        if self.engine.durable_to() != before {
            self.proven = self.proven.max(flight.proves);
        }
        outcomes.into_iter().for_each(|outcome| outcome.tell());
        Some(is_good)
    }

    /// What the log's own thread does from time to time. Errors are the disk's, and it tries again.
    pub fn maintain(&mut self, rng: &mut SmallRng) {
        if std::mem::take(&mut self.housekeeping.lock().dispose) {
            let _ = self.engine.dispose();
            let _ = self.engine.thin_spares();
        }
        match rng.random_range(0..8) {
            0 => drop(self.engine.prepare_next()),
            1 => drop(self.engine.seal_retired()),
            2 => drop(self.engine.check_space()),
            7 => drop(self.engine.try_again()),
            3 => self.mark(),
            4 => self.keep_house(|engine, done| engine.plan_reclaim(done)),
            5 => drop(self.engine.zero_ahead(&Zeros::new(16 << 10), ZeroFirst::Active)),
            6 => self.keep_house(|engine, done| {
                let Some(plan) = engine.plan_compaction(|_, _| true) else { return Ok(None) };
                engine.compact(&plan, &mut |_| true, done)
            }),
            _ => {}
        }
    }

    /// An empty commit proves that the last one was durable.
    pub fn mark(&mut self) {
        if self.engine.wants_mark() {
            self.queue.push_back(Request::Mark);
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

    /// The machine loses power, or only the process ends. What waited or was under way has no answer any more.
    pub fn stop(&mut self, is_power_lost: bool) {
        self.queue.clear();
        self.flights.clear();
        self.housekeeping = Arc::default();
        match is_power_lost {
            true => self.disk.crash(),
            false => self.disk.kill(),
        }
    }

    /// Recovery, in which the machine may crash again, after so many changes. The disk has no faults meanwhile.
    pub fn open(&mut self, crash_after: Option<u64>) -> Result<RecoveryReport, String> {
        self.disk.set_faults(Faults::default());
        if let Some(changes) = crash_after {
            self.disk.crash_after(changes);
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
        self.proven = (self.segments().max().unwrap_or(0), u64::MAX);
        Ok(report)
    }

    /// Files of the log.
    pub fn segments(&self) -> impl Iterator<Item = u32> {
        self.disk.list().expect("it is in memory").into_iter().filter_map(|name| segment_id(&name))
    }

    /// Of all that is on the disk.
    pub fn digest(&self) -> u64 {
        let mut hasher = rustc_hash::FxHasher::default();
        for (name, bytes) in self.disk.contents() {
            hasher.write(name.as_bytes());
            hasher.write(&bytes);
        }
        hasher.finish()
    }
}

pub fn segment_name(id: u32) -> String {
    format!("segment-{id:08x}")
}

fn segment_id(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
}
