//! A broker on metadata and ledgers in memory, and connections that write down what they are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use geminga_broker::{
    Alive, Broker, BrokerConfig, BrokerError, ConsumerHandle, InitialPosition, Peer, ProducerGrant, ProducerHandle,
    ProducerRequest, Publish, Receipt, SubscribeRequest, Topic,
};
use geminga_ledger_client::{
    AppendClass, AppendDone, EntryParts, LedgerClient, LedgerError, MemoryLedgers, Pending, StoredEntry,
};
use geminga_metadata::{
    ClusterData, Disturbance, DisturbedStore, MemoryStore, Metadata, MetadataError, MetadataStore, Op, Policies,
    TenantInfo,
};
use geminga_model::{Position, TopicName};
use geminga_topic::producers::AccessMode;
use geminga_topic::{AckRequest, ConsumerSpec, Delivery, IndividualAck, SubscriptionType};
use geminga_wire_pulsar::proto;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Longest time that something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn metadata() -> Metadata {
    metadata_in(Arc::new(MemoryStore::default())).await
}

pub async fn metadata_in(store: Arc<dyn MetadataStore>) -> Metadata {
    let metadata = Metadata::new(store);
    metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.unwrap();
    let policies = Policies::new_namespace("standalone", 4);
    metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
    metadata
}

pub async fn broker() -> Arc<Broker> {
    broker_with(BrokerConfig::default()).await
}

pub async fn broker_with(config: BrokerConfig) -> Arc<Broker> {
    Broker::start(config, metadata().await, Arc::new(MemoryLedgers::default())).await.unwrap()
}

/// Metadata in memory, of which one commit comes late, or reads, some reads fail, or that cannot be written.
pub type LateStore = DisturbedStore<Lateness>;

#[derive(Default)]
pub struct Lateness {
    /// Whoever writes it keeps the records of cursor logs from being read.
    pub cursor_logs: tokio::sync::RwLock<()>,
    /// Reads of them that were begun.
    pub cursor_log_reads: AtomicU64,
    late: Mutex<Late>,
    /// Nothing below this prefix can be read.
    unreadable: Mutex<Option<&'static str>>,
    /// Reads that have failed.
    failed_reads: AtomicU64,
    /// Nothing is written, as when the disk is full.
    pub is_full: AtomicBool,
    /// How long each read takes, in milliseconds.
    pub read_ms: AtomicU64,
    pub reads: AtomicU64,
}

#[derive(Default)]
enum Late {
    #[default]
    None,
    /// The next commit that writes below this prefix.
    Next { prefix: &'static str, is_awaited: bool },
    Held {
        stored: MemoryStore,
        ops: Vec<Op>,
        /// Somebody may wait for what becomes of it.
        waiting: Option<oneshot::Sender<Result<Vec<u64>, MetadataError>>>,
    },
}

impl Lateness {
    /// Nobody learns what becomes of the next commit that writes below a prefix.
    pub fn hold(&self, prefix: &'static str) {
        *self.late.lock() = Late::Next { prefix, is_awaited: false };
    }

    /// The next commit that writes below a prefix takes until it is released.
    pub fn delay(&self, prefix: &'static str) {
        *self.late.lock() = Late::Next { prefix, is_awaited: true };
    }

    pub fn is_held(&self) -> bool {
        matches!(*self.late.lock(), Late::Held { .. })
    }

    /// It is applied now, if its conditions still hold.
    pub async fn release(&self) -> Result<Vec<u64>, MetadataError> {
        let held = std::mem::take(&mut *self.late.lock());
        let Late::Held { stored, ops, waiting } = held else { panic!("nothing is held") };
        let applied = stored.commit(ops).await;
        // Whoever asked for it may be gone.
        waiting.map(|waiting| waiting.send(applied.clone()));
        applied
    }

    /// Reads below a prefix fail.
    pub fn fail_reads(&self, prefix: &'static str) {
        self.failed_reads.store(0, Ordering::Relaxed);
        *self.unreadable.lock() = Some(prefix);
    }

    /// They do no more, once so many have failed.
    pub async fn read_again_after(&self, failed: u64) {
        eventually("reads fail", || async { self.failed_reads.load(Ordering::Relaxed) >= failed }).await;
        *self.unreadable.lock() = None;
    }

    /// Of a record, or of those below a prefix.
    async fn before_read(&self, key: &str) -> Result<(), MetadataError> {
        if self.unreadable.lock().is_some_and(|prefix| key.starts_with(prefix)) {
            self.failed_reads.fetch_add(1, Ordering::Relaxed);
            return Err(MetadataError::Unavailable("it cannot be read".into()));
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        let read_ms = self.read_ms.load(Ordering::Relaxed);
        if read_ms > 0 {
            tokio::time::sleep(Duration::from_millis(read_ms)).await;
        }
        Ok(())
    }
}

impl Disturbance for Lateness {
    async fn before_get(&self, key: &str) -> Result<(), MetadataError> {
        self.before_read(key).await?;
        if key.starts_with("cursor-logs/") {
            self.cursor_log_reads.fetch_add(1, Ordering::Relaxed);
            drop(self.cursor_logs.read().await);
        }
        Ok(())
    }

    async fn before_scan(&self, prefix: &str, _after: Option<&str>) -> Result<(), MetadataError> {
        self.before_read(prefix).await
    }

    async fn commit(&self, stored: &MemoryStore, mut ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(MetadataError::Unavailable("the disk is full".into()));
        }
        let held = {
            let mut late = self.late.lock();
            let is_below = |prefix: &str| ops.iter().filter_map(written).any(|key| key.starts_with(prefix));
            match *late {
                Late::Next { prefix, is_awaited } if is_below(prefix) => {
                    let (waiting, waits) = oneshot::channel();
                    let (stored, ops) = (stored.clone(), std::mem::take(&mut ops));
                    *late = Late::Held { stored, ops, waiting: is_awaited.then_some(waiting) };
                    Some(waits)
                }
                _ => None,
            }
        };
        match held {
            Some(waits) => waits.await.unwrap_or_else(|_| Err(MetadataError::OutcomeUnknown("it is held".into()))),
            None => stored.commit(ops).await,
        }
    }
}

fn written(op: &Op) -> Option<&str> {
    match op {
        Op::Put { key, .. } | Op::Delete { key, .. } => Some(key),
        _ => None,
    }
}

type Held = (u64, u64, Vec<EntryParts>, AppendDone);

/// Ledgers in memory that can keep the cursor log's writes from becoming durable, and fail to write messages.
#[derive(Clone, Default)]
pub struct HeldLedgers {
    stored: MemoryLedgers,
    held: Arc<Mutex<Option<Vec<Held>>>>,
    held_messages: Arc<Mutex<Option<Vec<Held>>>>,
    fails: Arc<AtomicBool>,
}

impl HeldLedgers {
    pub fn hold_acknowledgements(&self) {
        *self.held.lock() = Some(Vec::new());
    }

    pub fn release_acknowledgements(&self) {
        for (ledger, first, entries, done) in self.held.lock().take().unwrap_or_default() {
            self.stored.append(ledger, first, entries, AppendClass::Reserved, done);
        }
    }

    pub fn hold_messages(&self) {
        *self.held_messages.lock() = Some(Vec::new());
    }

    pub fn release_messages(&self) {
        for (ledger, first, entries, done) in self.held_messages.lock().take().unwrap_or_default() {
            self.stored.append(ledger, first, entries, AppendClass::Message, done);
        }
    }

    /// Writes of cursor logs that are kept from becoming durable.
    pub fn held(&self) -> usize {
        self.held.lock().as_ref().map_or(0, Vec::len)
    }

    /// The next messages that are written are not stored.
    pub fn fail_once(&self) {
        self.fails.store(true, Ordering::Relaxed);
    }

    /// What is left when the process dies.
    pub fn after_crash(&self) -> HeldLedgers {
        HeldLedgers { stored: self.stored.clone(), ..HeldLedgers::default() }
    }
}

impl LedgerClient for HeldLedgers {
    fn append(&self, ledger: u64, first: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone) {
        if class == AppendClass::Message && self.fails.swap(false, Ordering::Relaxed) {
            return done(Err(LedgerError::Io("the disk has gone".into())));
        }
        let held = if class == AppendClass::Reserved { &self.held } else { &self.held_messages };
        match &mut *held.lock() {
            Some(held) => held.push((ledger, first, entries, done)),
            None => self.stored.append(ledger, first, entries, class, done),
        }
    }

    fn read(&self, ledger: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>> {
        self.stored.read(ledger, first, last, max_bytes)
    }

    fn recover(&self, ledger: u64) -> Pending<Option<u64>> {
        self.stored.recover(ledger)
    }

    fn delete(&self, ledgers: Vec<u64>) -> Pending<()> {
        self.stored.delete(ledgers)
    }

    fn size(&self, ledger: u64) -> u64 {
        self.stored.size(ledger)
    }
}

pub fn name(text: &str) -> TopicName {
    TopicName::parse(text).unwrap()
}

pub async fn topic(broker: &Broker, text: &str) -> Arc<Topic> {
    broker.topic(&name(text), true).await.unwrap()
}

/// What a connection was told.
#[allow(dead_code, reason = "some fields are only shown, when a test fails")]
#[derive(Debug)]
pub enum Told {
    Receipt(Receipt),
    SendFailed(u64, String),
    Message(u64, Delivery),
    /// With where to go on.
    ProducerClosed(u64, Option<String>),
    ConsumerClosed(u64, Option<String>),
    Active(u64, bool),
    Acknowledged(u64, bool),
}

pub struct Client {
    id: u64,
    told: mpsc::UnboundedSender<Told>,
    inbox: tokio::sync::Mutex<mpsc::UnboundedReceiver<Told>>,
    /// Answers pings.
    pub alive: AtomicBool,
    pub writable: AtomicBool,
    pub pinged: AtomicU64,
    /// How often what it was told was sent off.
    pub flushed: AtomicU64,
    held_back: Mutex<Duration>,
    consumers: Mutex<Vec<Arc<ConsumerHandle>>>,
    producers: Mutex<Vec<Arc<ProducerHandle>>>,
}

impl Client {
    pub fn new() -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let (told, inbox) = mpsc::unbounded_channel();
        Arc::new(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            told,
            inbox: tokio::sync::Mutex::new(inbox),
            alive: AtomicBool::new(true),
            writable: AtomicBool::new(true),
            pinged: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            held_back: Mutex::default(),
            consumers: Mutex::default(),
            producers: Mutex::default(),
        })
    }

    pub async fn produce(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        producer: &str,
    ) -> Result<Arc<ProducerHandle>, BrokerError> {
        self.produce_as(topic, producer, AccessMode::Shared).await
    }

    pub async fn produce_as(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        producer: &str,
        access_mode: AccessMode,
    ) -> Result<Arc<ProducerHandle>, BrokerError> {
        let request = ProducerRequest {
            producer_id: self.producers.lock().len() as u64,
            name: producer.into(),
            user_provided_name: true,
            epoch: 0,
            access_mode,
            topic_epoch: None,
            schema_version: None,
            metadata: Default::default(),
            client_version: "test".into(),
            supports_partial: false,
            encrypted: false,
        };
        let ProducerGrant { handle, .. } = topic.add_producer(request, self.clone(), || ()).await?;
        self.producers.lock().push(handle.clone());
        Ok(handle)
    }

    /// A durable subscription from the beginning.
    pub async fn consume(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        subscription: &str,
        sub_type: SubscriptionType,
    ) -> Result<Arc<ConsumerHandle>, BrokerError> {
        self.subscribe(topic, request(subscription, sub_type)).await
    }

    pub async fn subscribe(
        self: &Arc<Self>,
        topic: &Arc<Topic>,
        request: SubscribeRequest,
    ) -> Result<Arc<ConsumerHandle>, BrokerError> {
        let handle = topic.subscribe(request, self.clone()).await?;
        topic.consumer_ready(&handle);
        self.consumers.lock().push(handle.clone());
        Ok(handle)
    }

    /// The connection ends.
    pub fn leave(&self) {
        for producer in std::mem::take(&mut *self.producers.lock()) {
            producer.topic.remove_producer(&producer);
        }
        for consumer in std::mem::take(&mut *self.consumers.lock()) {
            consumer.topic.remove_consumer(&consumer);
        }
    }

    /// The next that the connection is told.
    pub async fn next(&self) -> Told {
        tokio::time::timeout(PATIENCE, self.inbox.lock().await.recv())
            .await
            .expect("something is told in time")
            .unwrap()
    }

    /// All that the connection was told until now.
    pub fn told(&self) -> Vec<Told> {
        let mut inbox = self.inbox.try_lock().expect("nobody waits");
        std::iter::from_fn(|| inbox.try_recv().ok()).collect()
    }

    pub async fn receipt(&self) -> Receipt {
        match self.next().await {
            Told::Receipt(receipt) => receipt,
            other => panic!("{other:?}"),
        }
    }

    pub async fn message(&self) -> Delivery {
        match self.next().await {
            Told::Message(_, delivery) => delivery,
            other => panic!("{other:?}"),
        }
    }

    /// How long the connection was last held back; forgotten by this.
    pub fn held_back(&self) -> Duration {
        std::mem::take(&mut *self.held_back.lock())
    }

    fn tell(&self, told: Told) {
        self.told.send(told).expect("the client owns its inbox");
    }
}

pub fn request(subscription: &str, sub_type: SubscriptionType) -> SubscribeRequest {
    static CONSUMERS: AtomicU64 = AtomicU64::new(1);
    let consumer_id = CONSUMERS.fetch_add(1, Ordering::Relaxed);
    SubscribeRequest {
        subscription: subscription.into(),
        consumer: ConsumerSpec { consumer_id, name: format!("c{consumer_id}"), sub_type, ..Default::default() },
        durable: true,
        initial: InitialPosition::Earliest,
        rollback_ms: 0,
        properties: Default::default(),
        may_create: true,
        replicated: false,
    }
}

/// Acknowledges one entry.
pub fn ack(position: Position) -> AckRequest {
    AckRequest::Individual(vec![IndividualAck { position, ack_set: Vec::new(), batch_size: None }])
}

/// Single messages with these texts as keys and payloads.
pub fn messages(texts: &[&str]) -> Vec<Publish> {
    texts.iter().zip(0..).map(|(text, sequence_id)| message(text, sequence_id)).collect()
}

pub fn message(text: &str, sequence_id: u64) -> Publish {
    let metadata = proto::MessageMetadata {
        producer_name: "p".into(),
        sequence_id,
        publish_time: 1_700_000_000_000 + sequence_id,
        partition_key: Some(text.into()),
        ..Default::default()
    };
    let payload = geminga_wire_pulsar::frame_payload(&metadata, text.as_bytes());
    let meta = geminga_broker::entry_meta(&geminga_wire_pulsar::parse_payload(&payload).unwrap());
    Publish { sequence_id, highest_sequence_id: sequence_id, meta, payload, inner_chunk: false }
}

pub fn text(delivery: &Delivery) -> String {
    let view = geminga_wire_pulsar::parse_payload(&delivery.entry.data).unwrap();
    String::from_utf8(delivery.entry.data[view.payload_offset..].to_vec()).unwrap()
}

/// Publishes and waits for the receipts.
pub async fn publish(client: &Client, producer: &Arc<ProducerHandle>, texts: &[&str]) {
    producer.topic.publish(producer, &mut messages(texts));
    for _ in texts {
        client.receipt().await;
    }
}

/// Waits for what happens by itself.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

impl Peer for Client {
    fn connection_id(&self) -> u64 {
        self.id
    }
    fn address(&self) -> &str {
        "127.0.0.1:1"
    }
    fn receipts(&self, receipts: &[Receipt]) {
        receipts.iter().for_each(|receipt| self.tell(Told::Receipt(*receipt)));
    }
    fn send_failed(&self, _: u64, sequence_id: u64, error: &BrokerError) {
        self.tell(Told::SendFailed(sequence_id, error.to_string()));
    }
    fn deliver(&self, consumer_id: u64, _: i32, deliveries: &mut dyn Iterator<Item = Delivery>) {
        deliveries.for_each(|delivery| self.tell(Told::Message(consumer_id, delivery)));
    }
    fn flush(&self) {
        self.flushed.fetch_add(1, Ordering::Relaxed);
    }
    fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }
    fn hold_back(&self, pause: Duration) {
        *self.held_back.lock() = pause;
    }
    fn check_alive(&self) -> Alive<'_> {
        self.pinged.fetch_add(1, Ordering::Relaxed);
        let alive = self.alive.load(Ordering::Relaxed);
        if !alive {
            self.leave();
        }
        Box::pin(std::future::ready(alive))
    }
    fn active_consumer_changed(&self, consumer_id: u64, active: bool) {
        self.tell(Told::Active(consumer_id, active));
    }
    fn end_of_topic(&self, _: u64) {}
    fn close_producer(&self, producer_id: u64, moved_to: Option<&str>) {
        self.tell(Told::ProducerClosed(producer_id, moved_to.map(str::to_owned)));
    }
    fn close_consumer(&self, consumer_id: u64, moved_to: Option<&str>) {
        self.tell(Told::ConsumerClosed(consumer_id, moved_to.map(str::to_owned)));
    }
    fn acknowledged(&self, _: u64, request_id: u64, result: Result<(), BrokerError>) {
        self.tell(Told::Acknowledged(request_id, result.is_ok()));
    }
}
