//! A storage node as an ensemble sees it: what it has, what survives a crash, and what it answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, AppendError, FenceError, LogOptions, MasterKey, ReadError};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::VecDeque;
use std::sync::Arc;

/// The one ledger of a seed.
pub const LEDGER: u64 = 7;
const KEY: MasterKey = [3; 20];

/// What is stored with an entry: how much payload the ledger has up to it, and how many entries its writer knew to be
/// confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub length: u64,
    pub confirmed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddAnswer {
    Ok,
    Fenced,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadResult {
    Here(Stored),
    Absent,
    Unknown,
}

/// Everything that is answered is durable.
pub trait Node {
    fn add(&mut self, entry: u64, stored: Stored, recovery: bool) -> AddAnswer;
    /// How many entries are confirmed as far as the node knows; `None` if it cannot fence.
    fn fence(&mut self) -> Option<u64>;
    fn read(&mut self, entry: u64) -> ReadResult;
    /// Loses power and comes back.
    fn crash(&mut self);
    /// Its disk is replaced by an empty one.
    fn lose(&mut self) {}
}

/// What a node does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeBug {
    /// After a loss it says "no such entry" instead of "I don't know" (BookKeeper 2908; 4812 for one that lost all).
    DenyWhatWasLost,
    /// A fence races with an add through another handle of the ledger, which does not see it (BookKeeper 4701).
    AddPassesFence,
    /// It answers before it has synced.
    AckBeforeSync,
}

/// A map that forgets nothing, unless it is told to lose what it has; then it knows that it does not know.
#[derive(Default)]
pub struct ModelNode {
    entries: BTreeMap<u64, Stored>,
    /// Entries of which the sync is not done.
    unsynced: Vec<u64>,
    fenced: bool,
    has_lost: bool,
    bug: Option<NodeBug>,
    adds: u64,
    /// An add has a handle of its own from before the fence.
    races: bool,
}

impl ModelNode {
    pub fn new(bug: Option<NodeBug>) -> Self {
        Self { bug, ..Self::default() }
    }
}

impl Node for ModelNode {
    fn add(&mut self, entry: u64, stored: Stored, recovery: bool) -> AddAnswer {
        self.adds += 1;
        let passes = !recovery && std::mem::take(&mut self.races);
        // After a loss it may be that it was fenced.
        if (self.fenced || self.has_lost && self.bug != Some(NodeBug::DenyWhatWasLost)) && !recovery && !passes {
            return AddAnswer::Fenced;
        }
        self.entries.insert(entry, stored);
        if self.bug == Some(NodeBug::AckBeforeSync) {
            self.unsynced.push(entry);
            let synced = self.unsynced.len().saturating_sub(3);
            self.unsynced.drain(..synced);
        }
        AddAnswer::Ok
    }

    fn fence(&mut self) -> Option<u64> {
        self.races |= self.bug == Some(NodeBug::AddPassesFence) && !self.fenced && self.adds.is_multiple_of(4);
        self.fenced = true;
        if self.has_lost && self.bug != Some(NodeBug::DenyWhatWasLost) {
            return None;
        }
        Some(self.entries.values().map(|stored| stored.confirmed).max().unwrap_or(0))
    }

    fn read(&mut self, entry: u64) -> ReadResult {
        let knows = !self.has_lost || self.bug == Some(NodeBug::DenyWhatWasLost);
        let missing = if knows { ReadResult::Absent } else { ReadResult::Unknown };
        self.entries.get(&entry).map_or(missing, |stored| ReadResult::Here(*stored))
    }

    fn crash(&mut self) {
        self.races = false;
        for entry in self.unsynced.drain(..) {
            self.entries.remove(&entry);
        }
    }

    fn lose(&mut self) {
        self.entries.clear();
        self.fenced = false;
        self.has_lost = true;
    }
}

/// An answer of the engine, once it is there.
type Told<T> = Arc<Mutex<Option<T>>>;

/// The storage engine on a simulated disk that tears and loses what was not synced, and sometimes fails.
pub struct EngineNode {
    disk: SimDisk,
    options: LogOptions,
    engine: Engine<SimDisk>,
    rng: SmallRng,
    faults: Faults,
}

impl EngineNode {
    pub fn new(mut rng: SmallRng) -> Self {
        let disk = SimDisk::new(rng.random(), 64 << 20);
        let options = LogOptions {
            segment_bytes: 32 << 10,
            commit_bytes: 16 << 10,
            reserve_bytes: 64 << 10,
            ..LogOptions::default()
        };
        let (engine, _) = Engine::open(disk.clone(), options.clone()).expect("an empty folder opens");
        let has_faults = rng.random_bool(0.3);
        let error = if has_faults { rng.random_range(0.0..0.03) } else { 0.0 };
        let faults = Faults { write_error: error, sync_error: error, ..Faults::default() };
        disk.set_faults(faults);
        Self { disk, options, engine, rng, faults }
    }

    /// Until the request is answered, or the disk has failed it.
    fn carry_out(&mut self, request: Request) {
        let mut queue = VecDeque::from([request]);
        while !queue.is_empty() {
            let Begin::Commit(commit) = self.engine.begin(&mut queue) else { break };
            let written = commit.write();
            self.engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
        }
        if self.rng.random_bool(0.1) {
            let _ = self.engine.prepare_next();
            let _ = self.engine.seal_retired();
            let _ = self.engine.try_again();
        }
    }
}

impl Node for EngineNode {
    fn add(&mut self, entry: u64, stored: Stored, recovery: bool) -> AddAnswer {
        let body = [stored.length.to_le_bytes(), stored.confirmed.to_le_bytes()].concat();
        let append =
            Append { ledger: LEDGER, entry, parts: [Bytes::from(body), Bytes::new(), Bytes::new()], reserve: recovery };
        let answer: Told<Result<(), AppendError>> = Arc::default();
        let told = answer.clone();
        self.carry_out(Request::Append {
            entries: vec![append],
            admission: Admission::Replica { key: KEY, recovery },
            done: Box::new(move |result| *told.lock() = Some(result)),
        });
        let answer = answer.lock().take();
        match answer {
            Some(Ok(())) => AddAnswer::Ok,
            Some(Err(AppendError::Fenced)) => AddAnswer::Fenced,
            _ => AddAnswer::Failed,
        }
    }

    fn fence(&mut self) -> Option<u64> {
        let answer: Told<Result<Option<u64>, FenceError>> = Arc::default();
        let told = answer.clone();
        self.carry_out(Request::Fence {
            ledger: LEDGER,
            key: Some(KEY),
            done: Box::new(move |result| *told.lock() = Some(result)),
        });
        let last = answer.lock().take()?.ok()?;
        match last {
            None => Some(0),
            Some(last) => match self.read(last) {
                ReadResult::Here(stored) => Some(stored.confirmed),
                _ => None,
            },
        }
    }

    fn read(&mut self, entry: u64) -> ReadResult {
        match self.engine.read(LEDGER, entry) {
            Ok(body) => {
                let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
                ReadResult::Here(Stored { length: number(0), confirmed: number(8) })
            }
            Err(ReadError::NoSuchEntry { .. } | ReadError::NoSuchLedger { .. }) => ReadResult::Absent,
            Err(_) => ReadResult::Unknown,
        }
    }

    fn crash(&mut self) {
        match self.rng.random_bool(0.5) {
            true => self.disk.crash(),
            false => self.disk.kill(),
        }
        self.disk.set_faults(Faults::default());
        let (engine, _) = Engine::open(self.disk.clone(), self.options.clone()).expect("what a crash left opens");
        self.engine = engine;
        self.disk.set_faults(self.faults);
    }
}
