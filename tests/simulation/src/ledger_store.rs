//! What the managed-ledger simulation stores in: ledgers written through one pipeline, and a metadata store with
//! compare-and-set. Both outlive the owners that use them, and fail in all the ways that their contracts allow.
//!
//! [`ModelLedgers`] is the contract itself; ledger_engine.rs has the storage engine in its place.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use geminga_ledger::cursor_log::LogLedger;
use geminga_ledger::managed_ledger::{ManagedLedgerRecord, WriteError};
use geminga_model::Position;
use rand::Rng;
use rand::rngs::SmallRng;

/// Which state machine of an owner a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Topic(usize),
    Log,
}

#[derive(Debug)]
struct Queued {
    owner: u32,
    part: Part,
    ledger: u64,
    first: u64,
    entries: Vec<Bytes>,
}

/// The end of a write, to be told to its owner.
#[derive(Debug)]
pub struct WriteDone {
    pub owner: u32,
    pub part: Part,
    pub ledger: u64,
    pub first: u64,
    pub count: u64,
    pub result: Result<(), WriteError>,
}

#[derive(Debug, Default)]
struct Ledger {
    entries: BTreeMap<u64, Bytes>,
    fenced: bool,
}

/// Ledgers, written in the order of submission.
pub trait Ledgers {
    fn submit(&mut self, owner: u32, part: Part, ledger: u64, first: i64, entries: Vec<Bytes>);

    /// Whether anything waits to be written.
    fn has_queued(&self) -> bool;

    fn has_done(&self) -> bool;

    /// Some progress of what was submitted, which may fail.
    fn store_next(&mut self, rng: &mut SmallRng, failures: bool);

    /// The end of one write.
    fn next_done(&mut self, rng: &mut SmallRng) -> Option<WriteDone>;

    /// Makes the machine crash in the middle of one of its next steps, where that is possible.
    fn crash_soon(&mut self, rng: &mut SmallRng);

    /// Whether the machine has crashed by itself or takes nothing more: it has to be started again.
    fn needs_restart(&self) -> bool;

    /// The process dies, and starts again. Of what was submitted some may be stored; nobody is told.
    fn restart(&mut self, rng: &mut SmallRng) -> Result<(), String>;

    /// Fences a ledger; how many entries it has, up to the first that is missing.
    fn recover(&mut self, ledger: u64) -> Result<u64, String>;

    /// An entry, if it exists.
    fn read(&self, ledger: u64, entry: u64) -> Result<Option<Bytes>, String>;

    /// The first `count` entries, or as many of them as there are.
    fn read_first(&self, ledger: u64, count: u64) -> Result<Vec<Bytes>, String>;

    fn delete(&mut self, ledger: u64);

    /// Whether messages are refused; cursor logs may use the reserve.
    fn is_full(&self) -> bool;

    fn fill(&mut self, rng: &mut SmallRng);

    fn make_room(&mut self);

    /// Nothing fails any more.
    fn end_faults(&mut self);

    /// The last error was about bytes that the disk has changed, which storage noticed.
    fn noticed_damage(&self) -> bool {
        false
    }

    /// Of everything that is stored.
    fn digest(&self) -> u64 {
        0
    }
}

/// Ledgers as their contract has them.
#[derive(Debug, Default)]
pub struct ModelLedgers {
    ledgers: BTreeMap<u64, Ledger>,
    queue: VecDeque<Queued>,
    done: Vec<WriteDone>,
    full: bool,
}

impl Ledgers for ModelLedgers {
    fn submit(&mut self, owner: u32, part: Part, ledger: u64, first: i64, entries: Vec<Bytes>) {
        self.queue.push_back(Queued { owner, part, ledger, first: first as u64, entries });
    }

    fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// The next write reaches the disk, or fails; a failed one may be on the disk all the same.
    fn store_next(&mut self, rng: &mut SmallRng, failures: bool) {
        let Some(write) = self.queue.pop_front() else { return };
        let count = write.entries.len() as u64;
        let ledger = self.ledgers.entry(write.ledger).or_default();
        let result = if ledger.fenced {
            Err(WriteError::Fenced)
        } else if self.full && (write.part != Part::Log || rng.random_bool(0.1)) {
            Err(WriteError::Full)
        } else if failures && rng.random_bool(0.04) {
            if rng.random_bool(0.5) {
                let stored = rng.random_range(0..=write.entries.len());
                put(ledger, write.first, &write.entries[..stored]);
            }
            Err(WriteError::Failed("injected".into()))
        } else {
            put(ledger, write.first, &write.entries);
            Ok(())
        };
        self.done.push(WriteDone {
            owner: write.owner,
            part: write.part,
            ledger: write.ledger,
            first: write.first,
            count,
            result,
        });
    }

    /// One completion; now and then not the oldest.
    fn next_done(&mut self, rng: &mut SmallRng) -> Option<WriteDone> {
        if self.done.is_empty() {
            return None;
        }
        let at = if rng.random_bool(0.1) { rng.random_range(0..self.done.len()) } else { 0 };
        Some(self.done.remove(at))
    }

    fn crash_soon(&mut self, _: &mut SmallRng) {}

    fn needs_restart(&self) -> bool {
        false
    }

    /// Some prefix of what was submitted is on the disk, the last write perhaps in part.
    fn restart(&mut self, rng: &mut SmallRng) -> Result<(), String> {
        let stored = rng.random_range(0..=self.queue.len());
        for (at, write) in std::mem::take(&mut self.queue).into_iter().enumerate() {
            let ledger = self.ledgers.entry(write.ledger).or_default();
            if at < stored && !ledger.fenced {
                let torn = at + 1 == stored && rng.random_bool(0.5);
                let count = if torn { rng.random_range(0..=write.entries.len()) } else { write.entries.len() };
                put(ledger, write.first, &write.entries[..count]);
            }
        }
        self.done.clear();
        Ok(())
    }

    fn recover(&mut self, ledger: u64) -> Result<u64, String> {
        let ledger = self.ledgers.entry(ledger).or_default();
        ledger.fenced = true;
        Ok((0..).take_while(|entry| ledger.entries.contains_key(entry)).count() as u64)
    }

    fn read(&self, ledger: u64, entry: u64) -> Result<Option<Bytes>, String> {
        Ok(self.ledgers.get(&ledger).and_then(|ledger| ledger.entries.get(&entry)).cloned())
    }

    fn read_first(&self, ledger: u64, count: u64) -> Result<Vec<Bytes>, String> {
        let Some(ledger) = self.ledgers.get(&ledger) else { return Ok(Vec::new()) };
        Ok((0..count).map_while(|entry| ledger.entries.get(&entry).cloned()).collect())
    }

    /// A deleted ledger stays fenced: a deposed owner that still writes to it must not succeed.
    fn delete(&mut self, ledger: u64) {
        self.ledgers.insert(ledger, Ledger { entries: BTreeMap::new(), fenced: true });
    }

    fn is_full(&self) -> bool {
        self.full
    }

    fn fill(&mut self, _: &mut SmallRng) {
        self.full = true;
    }

    fn make_room(&mut self) {
        self.full = false;
    }

    fn end_faults(&mut self) {
        self.full = false;
    }
}

fn put(ledger: &mut Ledger, first: u64, entries: &[Bytes]) {
    for (id, entry) in (first..).zip(entries) {
        ledger.entries.insert(id, entry.clone());
    }
}

/// A record with its version, and who may change it.
#[derive(Debug, Default)]
pub struct Versioned<T> {
    pub version: u64,
    pub owner: u32,
    pub value: T,
}

#[derive(Debug)]
enum Value {
    Topic(usize, ManagedLedgerRecord),
    Log(Vec<LogLedger>),
}

#[derive(Debug)]
struct Put {
    owner: u32,
    version: u64,
    value: Value,
    created: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutResult {
    Saved,
    /// Somebody else changed the record.
    Conflict,
    /// It may have been saved or not.
    Unknown,
}

/// The end of a compare-and-set.
#[derive(Debug)]
pub struct PutDone {
    pub owner: u32,
    pub part: Part,
    /// The new ledger that it was for.
    pub created: Option<u64>,
    pub result: PutResult,
}

/// Durable metadata.
#[derive(Debug, Default)]
pub struct Metadata {
    pub topics: Vec<Versioned<ManagedLedgerRecord>>,
    pub log: Versioned<Vec<LogLedger>>,
    /// Subscriptions: topic and where they started.
    pub subscriptions: BTreeMap<u64, (usize, Position)>,
    puts: Vec<Put>,
    last_ledger: u64,
}

impl Metadata {
    /// A ledger id that was never given.
    pub fn allocate_ledger(&mut self) -> u64 {
        self.last_ledger += 1;
        self.last_ledger
    }

    pub fn put_topic(
        &mut self,
        owner: u32,
        topic: usize,
        version: u64,
        record: ManagedLedgerRecord,
        created: Option<u64>,
    ) {
        self.puts.push(Put { owner, version, value: Value::Topic(topic, record), created });
    }

    pub fn put_log(&mut self, owner: u32, version: u64, record: Vec<LogLedger>) {
        self.puts.push(Put { owner, version, value: Value::Log(record), created: None });
    }

    pub fn has_puts(&self) -> bool {
        !self.puts.is_empty()
    }

    /// One of the requests under way ends.
    pub fn finish_one(&mut self, rng: &mut SmallRng, failures: bool) -> Option<PutDone> {
        if self.puts.is_empty() {
            return None;
        }
        let put = self.puts.swap_remove(rng.random_range(0..self.puts.len()));
        let (owner, created) = (put.owner, put.created);
        let part = match put.value {
            Value::Topic(topic, _) => Part::Topic(topic),
            Value::Log(_) => Part::Log,
        };
        let fails = failures && rng.random_bool(0.1);
        let result = if fails && rng.random_bool(0.5) {
            PutResult::Unknown
        } else {
            match self.apply(put) {
                true if fails => PutResult::Unknown,
                true => PutResult::Saved,
                false => PutResult::Conflict,
            }
        };
        Some(PutDone { owner, part, created, result })
    }

    fn apply(&mut self, put: Put) -> bool {
        match put.value {
            Value::Topic(topic, record) => replace(&mut self.topics[topic], put.version, record),
            Value::Log(record) => replace(&mut self.log, put.version, record),
        }
    }

    /// The process dies: requests under way took effect or not.
    pub fn crash(&mut self, rng: &mut SmallRng) {
        for put in std::mem::take(&mut self.puts) {
            if rng.random_bool(0.5) {
                self.apply(put);
            }
        }
    }

    /// Whether any record still names the ledger.
    pub fn names(&self, ledger: u64) -> bool {
        self.topics.iter().flat_map(|topic| &topic.value.spans).any(|span| span.ledger_id == ledger)
            || self.log.value.iter().any(|entry| entry.ledger_id == ledger)
    }
}

fn replace<T>(record: &mut Versioned<T>, version: u64, value: T) -> bool {
    let current = record.version == version;
    if current {
        record.version += 1;
        record.value = value;
    }
    current
}
