//! The backend of tests and simulations: everything in memory, nothing depends on time or chance.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::feed::ChangeFeed;
use crate::{Expect, MetadataError, MetadataStore, Op, Record, Watch};

/// A clock that moves only when told to.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    pub fn starting_at_ms(now_ms: u64) -> Self {
        ManualClock(Arc::new(AtomicU64::new(now_ms)))
    }

    pub fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn advance_ms(&self, step_ms: u64) {
        self.0.fetch_add(step_ms, Ordering::Relaxed);
    }
}

/// Metadata in memory. Clones share their contents, so a "restarted" owner can open the same store again.
#[derive(Clone, Default)]
pub struct MemoryStore {
    contents: Arc<Mutex<Contents>>,
    feed: ChangeFeed,
    clock: Option<ManualClock>,
}

/// What stood at a key before a commit changed it.
struct Undo {
    key: String,
    before: Option<Record>,
    is_quiet: bool,
}

#[derive(Default)]
struct Contents {
    records: BTreeMap<String, Record>,
    sequences: BTreeMap<String, u64>,
    version: u64,
}

impl MemoryStore {
    /// With the system's clock for leases.
    pub fn new() -> Self {
        MemoryStore::default()
    }

    pub fn with_clock(clock: ManualClock) -> Self {
        MemoryStore { clock: Some(clock), ..MemoryStore::default() }
    }
}

impl Contents {
    fn check(&self, key: &str, expect: Expect) -> Result<(), MetadataError> {
        if expect.holds(self.records.get(key).map(|record| record.version)) {
            Ok(())
        } else {
            Err(MetadataError::Conflict { key: key.to_owned() })
        }
    }

    /// Applies the steps, noting in `undo` what stood there before each change.
    fn apply(&mut self, ops: &[Op], version: u64, undo: &mut Vec<Undo>) -> Result<Vec<u64>, MetadataError> {
        let mut versions = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Put { key, value, expect, is_quiet } => {
                    self.check(key, *expect)?;
                    let record = Record { value: value.clone(), version };
                    let before = self.records.insert(key.clone(), record);
                    undo.push(Undo { key: key.clone(), before, is_quiet: *is_quiet });
                    versions.push(version);
                    continue;
                }
                Op::Delete { key, expect } => {
                    self.check(key, *expect)?;
                    if let before @ Some(_) = self.records.remove(key) {
                        undo.push(Undo { key: key.clone(), before, is_quiet: false });
                    }
                }
                Op::Check { key, expect } => self.check(key, *expect)?,
                Op::CheckEmpty { prefix } => self.check_empty(prefix)?,
                Op::DeletePrefix { prefix } => self.delete_prefix(prefix, undo),
                Op::RaiseVersion { .. } => {}
            }
            versions.push(0);
        }
        Ok(versions)
    }

    fn under<'a>(&'a self, prefix: &'a str, start: Bound<&'a str>) -> impl Iterator<Item = (&'a String, &'a Record)> {
        self.records.range::<str, _>((start, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
    }

    fn check_empty(&self, prefix: &str) -> Result<(), MetadataError> {
        match self.under(prefix, Bound::Included(prefix)).next() {
            Some((key, _)) => Err(MetadataError::Conflict { key: key.clone() }),
            None => Ok(()),
        }
    }

    fn delete_prefix(&mut self, prefix: &str, undo: &mut Vec<Undo>) {
        let keys: Vec<String> = self.under(prefix, Bound::Included(prefix)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let before = self.records.remove(&key);
            undo.push(Undo { key, before, is_quiet: false });
        }
    }

    fn undo(&mut self, undo: Vec<Undo>) {
        for Undo { key, before, .. } in undo.into_iter().rev() {
            match before {
                Some(record) => self.records.insert(key, record),
                None => self.records.remove(&key),
            };
        }
    }
}

#[async_trait]
impl MetadataStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError> {
        Ok(self.contents.lock().records.get(key).cloned())
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, MetadataError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let contents = self.contents.lock();
        let records = contents.under(prefix, start).take(limit);
        Ok(records.map(|(key, record)| (key.clone(), record.clone())).collect())
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        ops.iter().try_for_each(Op::validate)?;
        let mut contents = self.contents.lock();
        let version = Op::version_after(contents.version, &ops);
        let mut undo = Vec::with_capacity(ops.len());
        let outcome = contents.apply(&ops, version, &mut undo);
        if outcome.is_err() {
            contents.undo(undo);
            return outcome;
        }
        contents.version = version;
        // Published under the lock, so that watchers see changes in the order of the commits.
        let told = undo.iter().filter(|change| !change.is_quiet);
        self.feed.publish(told.map(|change| change.key.as_str()));
        outcome
    }

    async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        if count == 0 {
            return Err(MetadataError::Invalid("an allocation needs at least one id".into()));
        }
        let mut contents = self.contents.lock();
        let next = contents.sequences.entry(sequence.to_owned()).or_insert(1);
        let first = *next;
        *next = first
            .checked_add(count)
            .ok_or_else(|| MetadataError::Invalid(format!("sequence '{sequence}' is exhausted")))?;
        Ok(first)
    }

    async fn next_of(&self, sequence: &str) -> Result<u64, MetadataError> {
        Ok(self.contents.lock().sequences.get(sequence).copied().unwrap_or(1))
    }

    async fn watch(&self, prefix: &str) -> Result<Watch, MetadataError> {
        Ok(self.feed.watch(prefix))
    }

    fn now_ms(&self) -> u64 {
        match &self.clock {
            Some(clock) => clock.now_ms(),
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64),
        }
    }
}
