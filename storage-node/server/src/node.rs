//! What all connections of a storage node share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use geminga_flow::Budget;
use geminga_log::{AppendError, ReadError};
use geminga_observe::{Histogram, Metrics, family, sample};
use geminga_tls::TlsError;
use geminga_wire_bookkeeper::{Code, DEFAULT_MAX_FRAME_BYTES, ENTRY_NONE, EntryHead, LAST_ENTRY, LacHead};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::confirmed::{Confirmation, Confirmed};
use crate::damage::Damage;
use crate::directories::Directories;
use crate::errors;
use crate::figures::show_log;
use crate::read_cache::ReadCache;
use crate::scrub::Asked;
use crate::tls::{Tls, TlsOptions};

/// How many blocking reads may be under way at once: enough to keep a disk's queue busy.
const CONCURRENT_READS: usize = 8;
/// Read from the log at once when an entry is asked for alone, and when its predecessor was read just before.
const READ_AHEAD_BYTES: usize = 64 << 10;
const READ_AHEAD_SEQUENTIAL_BYTES: usize = 512 << 10;
/// The same for a batch.
const READ_BATCH_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// What the node may keep in memory, in bytes.
    pub memory_limit: u64,
    pub max_frame_bytes: usize,
    pub tls: Option<TlsOptions>,
    /// By which it goes in metadata, if it is known there.
    pub id: Option<String>,
}

impl NodeOptions {
    pub fn new(memory_limit: u64) -> Self {
        Self { memory_limit, max_frame_bytes: DEFAULT_MAX_FRAME_BYTES, tls: None, id: None }
    }
}

pub struct StorageNode {
    pub(crate) log: Directories,
    pub(crate) options: NodeOptions,
    pub(crate) tls: Option<Tls>,
    pub(crate) confirmed: Confirmed,
    pub(crate) cache: ReadCache,
    /// Adds that were received and are not durable yet.
    pub(crate) adding: Arc<Budget>,
    /// Large frames of which a part has come.
    pub(crate) receiving: Arc<Budget>,
    /// Bytes queued towards clients.
    pub(crate) outbound: Arc<Budget>,
    pub(crate) reads: Arc<Semaphore>,
    pub(crate) stats: Stats,
    pub(crate) damage: Damage,
    pub(crate) scrub_asked: Arc<Asked>,
    /// Read-only on purpose.
    draining: AtomicBool,
    pub(crate) registered: AtomicBool,
    /// Ledgers that metadata did not know when they were older than storage.
    pub(crate) doubtful: Mutex<BTreeSet<u64>>,
}

/// What [`StorageNode::show`] shows, under the names that a bookie's dashboards look for.
#[derive(Default)]
pub(crate) struct Stats {
    pub add_time: Histogram,
    pub read_time: Histogram,
    pub added_bytes: AtomicU64,
    pub read_bytes: AtomicU64,
    pub failed_adds: AtomicU64,
    pub failed_reads: AtomicU64,
    pub fences: AtomicU64,
    pub cache_hits: AtomicU64,
    pub cache_misses: AtomicU64,
}

impl StorageNode {
    /// # Panics
    /// The options have TLS, which can fail: see [`StorageNode::open`].
    pub fn new(log: impl Into<Directories>, options: NodeOptions) -> Arc<Self> {
        Self::open(log, options).expect("nothing can go wrong without TLS")
    }

    /// # Errors
    /// The files for TLS cannot be used.
    pub fn open(log: impl Into<Directories>, options: NodeOptions) -> Result<Arc<Self>, TlsError> {
        let limit = options.memory_limit;
        Ok(Arc::new(Self {
            tls: options.tls.as_ref().map(Tls::open).transpose()?,
            log: log.into(),
            confirmed: Confirmed::default(),
            // Of what was read ahead, and seldom asked for twice; with the buffers that its entries are parts of, half as much again.
            cache: ReadCache::new((limit / 16) as usize),
            adding: Budget::new(limit / 8),
            receiving: Budget::new(limit / 8),
            outbound: Budget::new(limit / 8),
            reads: Arc::new(Semaphore::new(CONCURRENT_READS)),
            stats: Stats::default(),
            damage: Damage::default(),
            scrub_asked: Arc::default(),
            draining: AtomicBool::new(false),
            registered: AtomicBool::new(false),
            doubtful: Mutex::default(),
            options,
        }))
    }

    pub fn directories(&self) -> &Directories {
        &self.log
    }

    /// A pass of the scrub begins now, or when the one under way has ended; `false` if there is no scrub.
    pub fn scrub_now(&self) -> bool {
        self.scrub_asked.pass()
    }

    /// Takes nothing but repairs from now on, or everything again.
    pub fn set_draining(&self, draining: bool) {
        if self.draining.swap(draining, Ordering::Relaxed) != draining {
            tracing::warn!(draining, "this storage node was told whether to take entries");
        }
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Full, failing or draining.
    pub fn is_read_only(&self) -> bool {
        let stats = self.log.stats();
        self.is_draining() || stats.full || stats.read_only
    }

    /// Metadata know that the node is alive.
    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// Ends the logs; what is queued is written before. Reads go on. Blocks.
    pub fn close(&self) {
        self.log.close();
    }

    /// One entry, [`LAST_ENTRY`] for the last. Blocks.
    pub(crate) fn read(&self, ledger: i64, entry: i64) -> Result<Bytes, Code> {
        let ledger = u64::try_from(ledger).map_err(|_| Code::NoLedger)?;
        if entry == LAST_ENTRY {
            return self.last_entry(ledger)?.ok_or(Code::NoEntry);
        }
        let entry = u64::try_from(entry).map_err(|_| Code::NoEntry)?;
        if let Some(bytes) = self.cache.get(ledger, entry) {
            self.stats.cache_hits.fetch_add(1, Ordering::Relaxed);
            return Ok(bytes);
        }
        self.stats.cache_misses.fetch_add(1, Ordering::Relaxed);
        let is_sequential = entry > 0 && self.cache.get(ledger, entry - 1).is_some();
        let ahead = if is_sequential { READ_AHEAD_SEQUENTIAL_BYTES } else { READ_AHEAD_BYTES };
        let entries = self.log.read_range(ledger, entry, u64::MAX, ahead).map_err(|error| self.failed(&error))?;
        let first = entries.first().map(|(_, bytes)| bytes.clone()).ok_or(Code::NoEntry)?;
        self.cache.put(ledger, entries);
        Ok(first)
    }

    /// Entries from this one on for a batch: at least one, at most `count`, and about `bytes` of them. Whoever asks for many goes on with
    /// those behind them, on any node, so nothing is read ahead and kept as for single reads. Blocks.
    pub(crate) fn read_some(&self, ledger: i64, entry: i64, count: usize, bytes: usize) -> Result<Vec<Bytes>, Code> {
        let (Ok(of), Ok(first)) = (u64::try_from(ledger), u64::try_from(entry)) else {
            return self.read(ledger, entry).map(|entry| vec![entry]);
        };
        let is_cached = |entry| self.cache.get(of, entry).is_some();
        if is_cached(first) || first.checked_sub(1).is_some_and(is_cached) {
            return self.read(ledger, entry).map(|entry| vec![entry]);
        }
        self.stats.cache_misses.fetch_add(1, Ordering::Relaxed);
        let (last, bytes) = (first.saturating_add(count as u64 - 1), bytes.min(READ_BATCH_BYTES));
        let entries = self.log.read_range(of, first, last, bytes).map_err(|error| self.failed(&error))?;
        let found = entries.iter().map(|(_, bytes)| bytes.clone()).collect();
        if entries.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < READ_AHEAD_BYTES {
            // Of one who reads little at a time: the next ones are read ahead.
            self.cache.put(of, entries);
        }
        Ok(found)
    }

    fn last_entry(&self, ledger: u64) -> Result<Option<Bytes>, Code> {
        let Some(last) = self.log.last_entry(ledger).map_err(|error| self.failed(&error))? else { return Ok(None) };
        self.log.read(ledger, last).map(Some).map_err(|error| self.failed(&error))
    }

    pub(crate) fn failed(&self, error: &ReadError) -> Code {
        match error {
            // One that the index has is damaged; of others it is only unknown whether they were there.
            &ReadError::Corrupt { ledger, entry: Some(entry), .. } if self.log.lists(ledger, entry) => {
                self.damage.note((ledger, entry));
            }
            // That something is missing was said once.
            ReadError::Corrupt { ledger, .. } if self.log.may_lack(*ledger) => (),
            ReadError::Corrupt { .. } | ReadError::Io(_) => tracing::warn!(%error, "could not read"),
            ReadError::NoSuchLedger { .. } | ReadError::NoSuchEntry { .. } => (),
        }
        errors::of_read(error)
    }

    /// How far the ledger is confirmed. Blocks if that has to be looked up.
    pub(crate) fn confirmation(&self, ledger: i64) -> Result<Confirmation, Code> {
        let ledger = u64::try_from(ledger).map_err(|_| Code::NoLedger)?;
        if let Some(known) = self.confirmed.get(ledger) {
            return Ok(known);
        }
        let last = self.last_entry(ledger)?;
        let by_entry =
            last.and_then(|body| EntryHead::decode(&body)).map_or(ENTRY_NONE, |head| head.last_add_confirmed);
        let explicit = self.log.replica(ledger).and_then(|(_, lac)| LacHead::decode(lac?.body()));
        let explicit = explicit.map_or(ENTRY_NONE, |head| head.last_add_confirmed);
        Ok(self.confirmed.complete(ledger, by_entry.max(explicit)))
    }

    /// What the explicit last add confirmed and the last entry are. Blocks.
    pub(crate) fn lac_sources(&self, ledger: i64) -> Result<(Option<Bytes>, Option<Bytes>), Code> {
        let ledger = u64::try_from(ledger).map_err(|_| Code::NoLedger)?;
        let explicit = self.log.replica(ledger).and_then(|(_, lac)| Some(Bytes::copy_from_slice(lac?.body())));
        Ok((explicit, self.last_entry(ledger)?))
    }

    /// Deletes ledgers, durably; those that are not here are no error. Their space is freed later.
    pub async fn delete_ledgers(&self, ledgers: Vec<u64>) -> Result<(), AppendError> {
        self.log.delete(&ledgers).await?;
        for ledger in ledgers {
            self.cache.forget(ledger);
            self.confirmed.forget(ledger);
        }
        Ok(())
    }

    /// Capacity and free space of the disks, in bytes.
    pub(crate) fn space(&self) -> (u64, u64) {
        let stats = self.log.stats();
        (stats.total_bytes, stats.free_bytes)
    }

    /// Adds the node's figures to a page of metrics.
    pub fn show(self: &Arc<Self>, metrics: &Metrics) {
        metrics.register(|registry| {
            let times = [
                ("bookkeeper_server_ADD_ENTRY", "From the receipt of an add to its answer.", &self.stats.add_time),
                ("bookkeeper_server_READ_ENTRY", "From the receipt of a read to its answer.", &self.stats.read_time),
            ];
            times.into_iter().for_each(|(name, help, time)| registry.register(name, help, time.clone()));
        });
        let node = self.clone();
        metrics.add_source(move |page| node.render(page));
    }

    fn render(&self, page: &mut String) {
        self.damage.render(page);
        let log = self.log.stats();
        show_log(&log, page);
        let counters = [
            ("bookie_WRITE_BYTES", "Bytes of entries that were added.", &self.stats.added_bytes),
            ("bookie_READ_BYTES", "Bytes of entries that were read.", &self.stats.read_bytes),
            ("bookie_read_cache_hits", "Reads that the read-ahead cache served.", &self.stats.cache_hits),
            ("bookie_read_cache_misses", "Reads that went to the log.", &self.stats.cache_misses),
            ("geminga_storage_failed_adds", "Adds that were refused or failed.", &self.stats.failed_adds),
            ("geminga_storage_failed_reads", "Reads that failed.", &self.stats.failed_reads),
            ("geminga_storage_fences", "Reads that fenced a ledger.", &self.stats.fences),
        ];
        for (name, help, counter) in counters {
            family(page, name, "counter", help);
            sample(page, name, &[], counter.load(Ordering::Relaxed));
        }
        let gauges = [
            (
                "bookie_SERVER_STATUS",
                "1: takes adds, 0: read-only.",
                u64::from(!log.full && !log.read_only && !self.is_draining()),
            ),
            ("bookie_ledgers_count", "Ledgers of which there is anything here.", log.ledgers as u64),
            ("bookie_read_cache_size", "Bytes in the read-ahead cache.", self.cache.bytes() as u64),
            (
                "geminga_storage_unsettled",
                "1: a missing directory or damage leaves open what this node should have of older ledgers.",
                u64::from(!self.log.is_settled()),
            ),
            (
                "geminga_storage_unfinished_ledgers",
                "Ledgers of a directory that was given up of which not everything is here again.",
                self.log.unfinished_count() as u64,
            ),
            ("geminga_storage_adding_bytes", "Adds that are not durable yet.", self.adding.used()),
            ("geminga_storage_outbound_bytes", "Answers that wait for their client.", self.outbound.used()),
        ];
        for (name, help, value) in gauges {
            family(page, name, "gauge", help);
            sample(page, name, &[], value);
        }
    }
}
