//! A loaded topic: the driver around its pure state machines.
//!
//! One lock guards the managed ledger, the tail cache, the producers and the subscriptions of a topic. Under it, state
//! machines take an event and say what is to be done; nothing under it waits. The way of a message:
//!
//! 1. [`Topic::publish`] (publish.rs) checks, numbers and appends: positions are assigned and the batch goes to storage;
//! 2. storage calls back when the batch is durable (completion.rs): the last confirmed position moves, receipts go out;
//! 3. each subscription dispatches (dispatch.rs) from the tail cache, or asks for a read (reading.rs, replaying.rs);
//! 4. acknowledgements change the cursor and are written to the cursor log (acks.rs).
//!
//! A message of a non-persistent topic takes a shorter way (non_persistent.rs): from 1 to the connections, at once.
//!
//! ledger_io.rs carries out what the managed ledger asks for besides writing; load.rs and closing.rs begin and end a
//! topic's life in this broker; admin.rs and stats.rs serve operators, expiry.rs their policies.

mod acks;
mod admin;
mod closing;
mod completion;
mod deduplication;
mod dispatch;
mod expiry;
mod idle;
mod inactive;
mod ledger_io;
mod liveness;
mod load;
mod non_persistent;
mod producing;
mod publish;
mod reading;
mod record_turn;
mod replaying;
mod stats;
mod subscribing;
mod throttle;
pub(crate) mod writes;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use geminga_ledger::managed_ledger::{EntryBytes, ManagedLedger};
use geminga_metadata::TopicRecord;
use geminga_model::{Position, TopicName};
use geminga_topic::dedup::Deduplication;
use geminga_topic::producers::Producers;
use geminga_topic::tail_cache::TailCache;
use geminga_topic::{ConsumerKey, EntryMeta, Subscription};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::bundle::Bundle;
use crate::error::{BrokerError, Result};
use crate::peer::Peer;
use crate::policies::EffectivePolicies;
use crate::shared::Shared;

pub use admin::{BacklogAnalysis, PeekedMessage};
pub use producing::{ProducerGrant, ProducerRequest};
pub use publish::Publish;
pub(crate) use stats::TopicFigures;
pub use stats::{
    ConsumerStats, ConsumerStatsView, CursorStats, InternalStats, LedgerStats, PublisherStats, StatsOptions,
    SubscriptionStats, TopicStats, iso_date,
};
pub use subscribing::{InitialPosition, LastMessage, SubscribeRequest};

pub struct Topic {
    name: TopicName,
    /// Its number within a partitioned topic, -1 when it is none.
    partition: i32,
    shared: Arc<Shared>,
    /// What the topic shares with the others of its bundle.
    bundle: Arc<Bundle>,
    me: Weak<Topic>,
    state: Mutex<TopicState>,
    /// Taken by whoever writes the topic's records in metadata.
    record_turn: tokio::sync::Mutex<record_turn::RecordTurn>,
    /// When somebody last asked the broker for the topic, in ms since the epoch.
    asked_at: AtomicU64,
    /// The topic's life has changed: it was closed, or its termination is stored.
    changed: tokio::sync::Notify,
    counters: Counters,
    writes: writes::Writes,
    reads: writes::Reads,
    rates: stats::Rates,
}

/// Totals since the topic was loaded.
#[derive(Default)]
struct Counters {
    messages_in: AtomicU64,
    bytes_in: AtomicU64,
    messages_out: AtomicU64,
    bytes_out: AtomicU64,
    /// Whether a part of a message that is too large for one was published.
    chunked: AtomicBool,
}

struct TopicState {
    life: Life,
    ledger: ManagedLedger<PendingEntry>,
    record: RecordState,
    policies: Arc<EffectivePolicies>,
    producers: Producers,
    producer_handles: FxHashMap<u64, Arc<ProducerHandle>>,
    /// Producers that have asked to join and are not in yet.
    joining: FxHashMap<u64, producing::Joining>,
    /// When somebody was last seen to use the topic, in ms since the epoch.
    last_active_at: u64,
    /// When somebody was last seen to be connected, in ms since the epoch.
    clients_seen_at: u64,
    dedup: Option<Deduplication>,
    dedup_stored: deduplication::Stored,
    cache: TailCache,
    read_back: reading::ReadBack,
    /// [`TopicState::first_needed`] at the last upkeep.
    was_needed: Option<Position>,
    /// Boxed: a table of the large ones would be mostly empty.
    subscriptions: FxHashMap<Arc<str>, Box<Sub>>,
    consumers: FxHashMap<ConsumerKey, Arc<ConsumerHandle>>,
    /// Meta of the last confirmed entry, once one was written or read since the topic was loaded.
    last_entry: Option<(Position, EntryMeta)>,
    /// What policies limit; `None` when they limit nothing.
    limits: Option<Box<throttle::Limits>>,
    /// How often a producer was held back.
    publish_throttled: u64,
    /// The oldest message of a backlog is older than its quota allows.
    backlog_too_old: bool,
    /// Given to the next entry of a non-persistent topic.
    next_unstored: Position,
}

/// What metadata says of the topic.
struct RecordState {
    current: TopicRecord,
    version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Serving,
    /// Being deleted, which may fail.
    Deleting,
    /// Being unloaded: clients are told to look the topic up again once it is.
    Closing,
    /// Gone from this broker.
    Closed,
}

/// A subscription with what the driver keeps beside its state machine.
struct Sub {
    core: Subscription,
    /// The cursor's id in the cursor log; `None` for a subscription that is not stored.
    cursor_id: Option<u64>,
    /// Goes with its last consumer.
    ephemeral: bool,
    /// Mark-delete position it was created with.
    initial: Position,
    properties: std::collections::BTreeMap<String, String>,
    /// Whether an operator or a client wants its position to be replicated; kept and shown.
    replicated: bool,
    replay: replaying::Replay,
    /// It can go on when a read of the topic has returned.
    awaits_read: bool,
    /// Why the last read failed, until one succeeds.
    read_failure: Option<String>,
    /// Acknowledgements wait to be written to the cursor log.
    dirty: bool,
    /// A timer for delayed messages is set for this time, in ms since the epoch.
    timer_at: u64,
    /// Its own dispatch rate, when policies set one.
    dispatch_limit: Option<Box<geminga_topic::rate_limit::RateLimit>>,
    /// When its last consumer left or it came into being here, in ms since the epoch.
    unused_since: u64,
    /// Messages that no consumer could take (non-persistent topics).
    dropped: u64,
    /// Entries that were acknowledged for their age, since it was loaded, and when that was last tried.
    expired: u64,
    expired_at: u64,
}

/// One entry on its way to storage.
pub(crate) struct PendingEntry {
    payload: Bytes,
    meta: EntryMeta,
    origin: Origin,
}

/// Who waits for an entry to be durable.
pub(crate) struct Origin {
    producer: Arc<ProducerHandle>,
    sequence_id: u64,
    highest_sequence_id: u64,
    inner_chunk: bool,
    /// The cursor of the deduplication that has looked at it: that may be switched on, or afresh, while it is on its way.
    seen_by: Option<u64>,
}

impl EntryBytes for PendingEntry {
    fn size(&self) -> usize {
        self.payload.len()
    }

    fn num_messages(&self) -> u32 {
        self.meta.num_messages
    }
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// Keys of producers and consumers are unique within the process.
fn next_key() -> u64 {
    NEXT_KEY.fetch_add(1, Ordering::Relaxed)
}

/// A producer as its connection and its topic know it.
pub struct ProducerHandle {
    pub key: u64,
    pub producer_id: u64,
    pub name: Arc<str>,
    pub topic: Arc<Topic>,
    peer: Arc<dyn Peer>,
    schema_version: Option<Vec<u8>>,
    metadata: std::collections::BTreeMap<String, String>,
    client_version: String,
    supports_partial: bool,
    connected_at: u64,
    access_mode: geminga_topic::producers::AccessMode,
    in_flight: AtomicUsize,
    drained: tokio::sync::Notify,
    /// A message of it failed. Later ones do not pass before the client has connected again and repeated that one: they would be
    /// out of order, and deduplication would take the repeat for a duplicate, as the highest sequence id is all it knows.
    failed: AtomicBool,
    messages: AtomicU64,
    bytes: AtomicU64,
    /// Parts of messages that were too large for one.
    chunks: AtomicU64,
}

/// A consumer as its connection and its topic know it.
pub struct ConsumerHandle {
    pub key: ConsumerKey,
    pub consumer_id: u64,
    pub subscription: Arc<str>,
    pub topic: Arc<Topic>,
    peer: Arc<dyn Peer>,
    /// The client listens to events of this consumer (read and written under the topic's lock).
    listens: AtomicBool,
}

impl Topic {
    pub fn name(&self) -> &TopicName {
        &self.name
    }

    fn arc(&self) -> Arc<Topic> {
        self.me.upgrade().expect("a method runs on a topic that somebody holds")
    }

    fn not_found(&self, subscription: &str) -> BrokerError {
        BrokerError::SubscriptionNotFound { topic: self.name.to_string(), subscription: subscription.to_owned() }
    }

    /// Last confirmed position.
    pub fn last_confirmed(&self) -> Position {
        self.state.lock().ledger.list().last_position()
    }
}

impl TopicState {
    /// The first position that a connected subscription has still to read; `None` when none is connected.
    fn first_needed(&self) -> Option<Position> {
        let connected = self.subscriptions.values().filter(|sub| sub.core.has_consumers());
        connected.map(|sub| sub.core.read_position()).min()
    }

    fn check_serving(&self, name: &TopicName) -> Result<()> {
        match self.life {
            Life::Serving => Ok(()),
            Life::Deleting | Life::Closing | Life::Closed => {
                Err(BrokerError::ServiceNotReady(format!("topic {name} is being closed")))
            }
        }
    }
}

impl Sub {
    /// Nothing is skipped: what cannot be read stays unacknowledged until it can be, or an operator decides.
    fn note_read(&mut self, topic: &TopicName, failure: &Option<String>) {
        if let (Some(error), None) = (failure, &self.read_failure) {
            tracing::error!(%topic, %error, "entries could not be read; trying again");
        }
        self.read_failure.clone_from(failure);
    }
}

/// Peers to flush once the topic's lock is released, each once.
#[derive(Default)]
struct Flushes(Vec<Arc<dyn Peer>>);

impl Flushes {
    fn add(&mut self, peer: &Arc<dyn Peer>) {
        let id = peer.connection_id();
        if self.0.iter().rev().all(|known| known.connection_id() != id) {
            self.0.push(peer.clone());
        }
    }

    fn run(self) {
        for peer in self.0 {
            peer.flush();
        }
    }
}
