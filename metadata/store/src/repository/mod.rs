//! Typed repositories over the narrow store. One file per kind of record; keys are documented there.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::guarded::GuardedStore;
use crate::{Expect, MetadataError, MetadataStore, Op, codec};

pub(crate) mod brokers;
pub(crate) mod bundles;
pub(crate) mod changes;
pub(crate) mod clusters;
pub(crate) mod configuration;
pub(crate) mod cursor_logs;
pub(crate) mod garbage;
pub(crate) mod ledgers;
pub(crate) mod namespaces;
pub(crate) mod partitioned;
pub(crate) mod repairs;
pub(crate) mod restored;
pub(crate) mod schemas;
pub(crate) mod storage_nodes;
pub(crate) mod subscriptions;
pub(crate) mod tenants;
pub(crate) mod topic_policies;
pub(crate) mod topics;

/// Records read at a time when everything under a prefix is wanted.
const SCAN_RECORDS: usize = 1000;
const LEDGER_IDS: &str = "ledger-id";
const CURSOR_IDS: &str = "cursor-id";
/// Ids taken from the store at a time; the rest of a block is skipped when the process ends.
const ID_BLOCK: u64 = 256;

/// A record with the version to name in a compare-and-set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub value: T,
    pub version: u64,
}

/// A part of a listing, and where to go on: pass `next` as `after`; none means that the listing is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<String>,
}

/// Everything Geminga keeps in metadata, typed. Clones share the store.
#[derive(Clone)]
pub struct Metadata {
    store: Arc<dyn MetadataStore>,
    ledger_ids: Arc<IdBlock>,
    cursor_ids: Arc<IdBlock>,
}

/// Ids that were allocated and not yet given out: `next..end`.
#[derive(Default)]
struct IdBlock {
    range: Mutex<(u64, u64)>,
    /// One allocates at a time, and those who wait take of what it gets.
    refilling: tokio::sync::Mutex<()>,
}

impl IdBlock {
    fn take(&self, after: u64) -> Option<u64> {
        let mut range = self.range.lock();
        if range.0 >= range.1 || range.0 <= after {
            return None;
        }
        range.0 += 1;
        Some(range.0 - 1)
    }

    fn skip(&self) {
        let mut range = self.range.lock();
        range.0 = range.1;
    }

    /// Gives up what is left of the block that this id is of.
    fn skip_with(&self, id: u64) {
        let mut range = self.range.lock();
        if (range.1.saturating_sub(ID_BLOCK)..range.1).contains(&id) {
            range.0 = range.1;
        }
    }

    fn refill(&self, first: u64, count: u64) -> u64 {
        let mut range = self.range.lock();
        // The next block begins where one ended that was given up.
        if first >= range.0 {
            *range = (first + 1, first + count);
        }
        first
    }
}

impl Metadata {
    pub fn new(store: Arc<dyn MetadataStore>) -> Self {
        Metadata { store, ledger_ids: Arc::default(), cursor_ids: Arc::default() }
    }

    /// The narrow store below, for leases, watches and records that have no repository.
    pub fn store(&self) -> &Arc<dyn MetadataStore> {
        &self.store
    }

    /// The same metadata, with commits that are applied only while the record at `key` has this version.
    fn guarded(&self, key: String, version: u64, name: String) -> Metadata {
        let store = Arc::new(GuardedStore { store: self.store.clone(), key, version, name });
        Metadata { store, ledger_ids: self.ledger_ids.clone(), cursor_ids: self.cursor_ids.clone() }
    }

    /// A ledger id that was never used and is greater than `after` (the topic's last ledger, or 0).
    pub async fn next_ledger_id(&self, after: u64) -> Result<u64, MetadataError> {
        self.next_id(&self.ledger_ids, LEDGER_IDS, after).await
    }

    /// Gives out no more of the ids that were taken and not used yet. To be called when storage took a ledger for deleted that was
    /// just created: nodes fill the gaps between deleted ledgers, and the others of the block may be in one.
    pub fn skip_ledger_ids(&self) {
        self.ledger_ids.skip();
    }

    /// Gives out no more of the ids that were taken together with this one. To be called when a storage node cannot tell a new ledger
    /// from one that it may have lost: the bound of those is above it, and may be above the others.
    pub fn skip_ledger_ids_with(&self, refused: u64) {
        self.ledger_ids.skip_with(refused);
    }

    /// A ledger id that is greater than every one that anybody was given before.
    pub async fn fresh_ledger_id(&self) -> Result<u64, MetadataError> {
        self.store.allocate(LEDGER_IDS, 1).await
    }

    /// A cursor id that is greater than every one that anybody was given before.
    pub async fn fresh_cursor_id(&self) -> Result<u64, MetadataError> {
        self.store.allocate(CURSOR_IDS, 1).await
    }

    /// A bound that every ledger id is below that anybody was given. Changes nothing.
    pub async fn ledger_ids_end(&self) -> Result<u64, MetadataError> {
        self.store.next_of(LEDGER_IDS).await
    }

    /// The same of cursor ids.
    pub async fn cursor_ids_end(&self) -> Result<u64, MetadataError> {
        self.store.next_of(CURSOR_IDS).await
    }

    /// No ledger id below this one is given any more.
    pub async fn raise_ledger_ids(&self, to: u64) -> Result<(), MetadataError> {
        self.raise(LEDGER_IDS, to).await
    }

    /// The same of cursor ids.
    pub async fn raise_cursor_ids(&self, to: u64) -> Result<(), MetadataError> {
        self.raise(CURSOR_IDS, to).await
    }

    /// Gives the ids before `to` to nobody. Where others take some meanwhile, a few more are skipped.
    async fn raise(&self, sequence: &str, to: u64) -> Result<(), MetadataError> {
        match to.saturating_sub(self.store.next_of(sequence).await?) {
            0 => Ok(()),
            skipped => self.store.allocate(sequence, skipped).await.map(drop),
        }
    }

    /// A cursor id that was never used.
    pub async fn next_cursor_id(&self) -> Result<u64, MetadataError> {
        self.next_id(&self.cursor_ids, CURSOR_IDS, 0).await
    }

    async fn next_id(&self, block: &IdBlock, sequence: &str, after: u64) -> Result<u64, MetadataError> {
        if let Some(id) = block.take(after) {
            return Ok(id);
        }
        let _turn = block.refilling.lock().await;
        if let Some(id) = block.take(after) {
            return Ok(id);
        }
        if self.is_restored().await? {
            let reason =
                "they were restored from an older dump, and 'geminga doctor' has not settled that: no id is given out";
            return Err(MetadataError::Unavailable(reason.to_owned()));
        }
        let first = self.store.allocate(sequence, ID_BLOCK).await?;
        if first <= after {
            return Err(MetadataError::Corrupt {
                subject: format!("sequence '{sequence}'"),
                reason: format!("it gave {first} although {after} is in use"),
            });
        }
        Ok(block.refill(first, ID_BLOCK))
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Versioned<T>>, MetadataError> {
        let Some(record) = self.store.get(key).await? else { return Ok(None) };
        Ok(Some(Versioned { value: codec::decode(key, &record.value)?, version: record.version }))
    }

    /// Creates a record, in a commit that also checks that its parent exists.
    async fn create<T: Serialize>(
        &self,
        what: &'static str,
        name: &str,
        key: &str,
        record: &T,
        parent: Option<Parent<'_>>,
    ) -> Result<u64, MetadataError> {
        let mut ops = vec![Op::put(key, codec::encode(record)?, Expect::Absent)];
        if let Some(parent) = &parent {
            ops.push(Op::check(parent.key.clone(), Expect::Present));
        }
        match self.store.commit(ops).await {
            Ok(versions) => Ok(versions[0]),
            Err(MetadataError::Conflict { key: conflict }) => Err(match parent {
                Some(parent) if parent.key == conflict => {
                    MetadataError::NotFound { what: parent.what, name: parent.name.to_owned() }
                }
                _ => MetadataError::AlreadyExists { what, name: name.to_owned() },
            }),
            Err(error) => Err(error),
        }
    }

    /// Reads, changes and writes a record, again when somebody else was faster. An error of `change` ends it.
    async fn update<T, F>(
        &self,
        what: &'static str,
        name: &str,
        key: &str,
        mut change: F,
    ) -> Result<Versioned<T>, MetadataError>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(&mut T) -> Result<(), MetadataError>,
    {
        loop {
            let Some(mut current) = self.read::<T>(key).await? else {
                return Err(MetadataError::NotFound { what, name: name.to_owned() });
            };
            change(&mut current.value)?;
            let op = Op::put(key, codec::encode(&current.value)?, Expect::Version(current.version));
            match self.store.commit(vec![op]).await {
                Ok(versions) => return Ok(Versioned { value: current.value, version: versions[0] }),
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs a commit whose condition on `key` says whether the record exists.
    async fn delete(&self, what: &'static str, name: &str, key: &str, ops: Vec<Op>) -> Result<(), MetadataError> {
        match self.store.commit(ops).await {
            Ok(_) => Ok(()),
            Err(MetadataError::Conflict { key: conflict }) if conflict == key => {
                Err(MetadataError::NotFound { what, name: name.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    /// The rest of each key under `prefix`, with its record.
    async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, Versioned<T>)>, MetadataError> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let records = self.store.scan(prefix, after.as_deref(), SCAN_RECORDS).await?;
            let complete = records.len() < SCAN_RECORDS;
            for (key, record) in &records {
                let value = codec::decode(key, &record.value)?;
                all.push((key[prefix.len()..].to_owned(), Versioned { value, version: record.version }));
            }
            after = records.into_iter().next_back().map(|(key, _)| key);
            if complete {
                return Ok(all);
            }
        }
    }

    /// The rest of each key under `prefix`, without reading the records into their types.
    async fn list_names(&self, prefix: &str) -> Result<Vec<String>, MetadataError> {
        let mut names = Vec::new();
        let mut after = None;
        loop {
            let page = self.names_page(prefix, after.as_deref(), SCAN_RECORDS).await?;
            names.extend(page.items);
            after = page.next;
            if after.is_none() {
                return Ok(names);
            }
        }
    }

    async fn names_page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page<String>, MetadataError> {
        let after = after.map(|after| format!("{prefix}{after}"));
        let records = self.store.scan(prefix, after.as_deref(), limit).await?;
        let complete = records.len() < limit;
        let items: Vec<String> = records.into_iter().map(|(key, _)| key[prefix.len()..].to_owned()).collect();
        let next = if complete { None } else { items.last().cloned() };
        Ok(Page { items, next })
    }
}

/// The record that must exist for another to be created.
struct Parent<'a> {
    what: &'static str,
    name: &'a str,
    key: String,
}
