//! One client connection: frames in, frames out.
//!
//! The reading task handles what needs no waiting (messages, acknowledgements, permits) itself and in order; a command
//! that must wait (a topic to load, metadata to write) runs as its own task, so that it holds up nobody else on the
//! connection. Reading stops while the broker, or this connection alone, holds too many bytes that are not durable yet, and
//! while the client leaves what there is for it unread.

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_broker::{Broker, Budget, ConsumerHandle, ProducerHandle, Publish};
use geminga_flow::{Outbox, Reservation, UnfinishedFrame};
use geminga_wire_pulsar::{Command, Frame, decode_frame, proto};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::net::TcpStream;

use crate::error::ConnectionError;
use crate::left_out::LeftOut;
use crate::waiting::{REQUESTS_MAX, in_small_buffer, move_to_small_buffer};

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// Frames may be larger than the largest message by this much, as in Pulsar.
const FRAME_PADDING: usize = 10 << 10;
/// Before a client has said hello it gets this much and no more.
const FRAME_BYTES_BEFORE_CONNECT: usize = 64 << 10;
/// The part of the budget for messages that are not durable yet which one connection may fill.
const CONNECTION_SHARE: u64 = 2;
/// Bounds of the read buffer: it grows with a busy connection.
pub(crate) const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 1 << 20;
/// … and not above this part of a limit of memory that is small.
const READ_BYTES_SHARE: u64 = 512;
/// A frame above this is read on only when there is room for all of it.
pub(crate) const LARGE_FRAME: usize = 4 << 10;
/// How long a large frame may take while others wait for the room it has.
pub(crate) const FRAME_PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing of it may come meanwhile.
const FRAME_STALL: Duration = Duration::from_secs(5);
/// A connection on which nothing comes for so long gives a large read buffer back.
const QUIET: Duration = Duration::from_secs(1);
/// Messages handed to a topic at once.
const BATCH_ENTRIES: usize = 1024;
/// For what is queued last to go out.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Commands of which each has a small answer at most that are handled without a look whether the client reads.
const SMALL_ANSWERS: usize = 1024;
/// A client that connects and says nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Connection {
    pub(crate) id: u64,
    pub(crate) address: String,
    /// Our side of the connection, what lookups answer when the broker listens on all addresses.
    pub(crate) local_address: SocketAddr,
    pub(crate) broker: Arc<Broker>,
    pub(crate) outbox: Outbox,
    /// What of this connection is not durable yet; it stops being read while that is too much.
    pub(crate) publishing: Arc<Budget>,
    pub(crate) client: std::sync::OnceLock<ClientInfo>,
    pub(crate) producers: Mutex<FxHashMap<u64, ProducerSlot>>,
    pub(crate) left_out: LeftOut,
    pub(crate) consumers: Mutex<FxHashMap<u64, ConsumerSlot>>,
    pub(crate) watchers: Mutex<BTreeMap<u64, tokio::task::AbortHandle>>,
    /// Permits of requests to be under way.
    pub(crate) requests: Arc<tokio::sync::Semaphore>,
    /// Held by the request whose answer, which may be large, is put together.
    pub(crate) large_answers: tokio::sync::Mutex<()>,
    /// There is room in the outbox again, or none will be needed.
    pub(crate) room: tokio::sync::Notify,
    pub(crate) closing: AtomicBool,
    pub(crate) asked_alive: AtomicBool,
    /// Somebody waits in `heard` for any data to come.
    pub(crate) listening: AtomicBool,
    pub(crate) heard: tokio::sync::Notify,
    /// We do not read for now: silence says nothing.
    pub(crate) held_back: AtomicBool,
    /// Until then nothing is read, as a topic's publish rate demands.
    pub(crate) held_until: Mutex<Option<tokio::time::Instant>>,
    /// Wakes the reading task to end the connection.
    pub(crate) stop: tokio::sync::Notify,
}

/// What a client said of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientInfo {
    pub version: String,
    pub protocol_version: i32,
    pub partial_producer: bool,
    pub broker_entry_metadata: bool,
}

/// A producer id on this connection.
pub(crate) enum ProducerSlot {
    /// Being created by this request; it may have to wait for its turn, until `cancel`.
    Creating { request_id: u64, cancel: Arc<tokio::sync::Notify> },
    /// With the room for what the client said of it.
    Ready(Arc<ProducerHandle>, #[expect(dead_code, reason = "its end is its use")] Reservation),
}

impl ProducerSlot {
    /// Whether this request has it still: a close leaves it to a later one.
    pub fn is_created_by(&self, request: u64) -> bool {
        matches!(self, Self::Creating { request_id, .. } if *request_id == request)
    }

    pub fn is_of(&self, producer: &Arc<ProducerHandle>) -> bool {
        matches!(self, Self::Ready(handle, _) if Arc::ptr_eq(handle, producer))
    }
}

/// A consumer id on this connection.
pub(crate) enum ConsumerSlot {
    Creating {
        request_id: u64,
    },
    /// With the room for what the client said of it.
    Ready(Arc<ConsumerHandle>, #[expect(dead_code, reason = "its end is its use")] Reservation),
}

impl ConsumerSlot {
    /// Whether this request has it still: a close leaves it to a later one.
    pub fn is_created_by(&self, request: u64) -> bool {
        matches!(self, Self::Creating { request_id } if *request_id == request)
    }

    pub fn is_of(&self, consumer: &Arc<ConsumerHandle>) -> bool {
        matches!(self, Self::Ready(handle, _) if Arc::ptr_eq(handle, consumer))
    }
}

/// Messages of one producer, gathered until something else comes.
#[derive(Default)]
pub(crate) struct Gathered {
    pub producer: Option<Arc<ProducerHandle>>,
    pub batch: Vec<Publish>,
    /// Size of the buffer that the messages are slices of.
    pub read_buffer: usize,
}

impl Gathered {
    /// Copies messages that are few beside the read buffer which they share, lest they keep all of it in memory for as
    /// long as one of them waits in a cache. What is copied is an eighth at most.
    fn unshare(&mut self) {
        let bytes: usize = self.batch.iter().map(|publish| publish.payload.len()).sum();
        if bytes * 8 > self.read_buffer {
            return;
        }
        let mut own = BytesMut::with_capacity(bytes);
        for publish in &mut self.batch {
            own.extend_from_slice(&publish.payload);
            publish.payload = own.split().freeze();
        }
    }

    pub fn hand_over(&mut self) {
        self.unshare();
        if let Some(producer) = &self.producer
            && !self.batch.is_empty()
        {
            producer.topic.publish(producer, &mut self.batch);
        }
    }

    pub fn is_full(&self) -> bool {
        self.batch.len() >= BATCH_ENTRIES
    }
}

impl Connection {
    pub fn new(stream: &Arc<TcpStream>, address: SocketAddr, broker: &Arc<Broker>) -> std::io::Result<Self> {
        Ok(Self {
            id: NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed),
            address: address.to_string(),
            local_address: stream.local_addr()?,
            publishing: Budget::new(broker.memory().publishing.limit() / CONNECTION_SHARE),
            outbox: Outbox::new(stream.clone(), broker.memory().outbound.clone()),
            broker: broker.clone(),
            client: std::sync::OnceLock::new(),
            producers: Mutex::default(),
            left_out: LeftOut::default(),
            consumers: Mutex::default(),
            watchers: Mutex::default(),
            requests: Arc::new(tokio::sync::Semaphore::new(REQUESTS_MAX)),
            large_answers: Default::default(),
            room: Default::default(),
            closing: Default::default(),
            asked_alive: Default::default(),
            listening: Default::default(),
            heard: Default::default(),
            held_back: Default::default(),
            held_until: Mutex::default(),
            stop: Default::default(),
        })
    }

    /// Serves the connection until it ends.
    pub async fn run(self: Arc<Self>, stream: Arc<TcpStream>) {
        let writer = {
            let connection = self.clone();
            tokio::spawn(async move {
                connection.outbox.drain(|| connection.room_again()).await;
                connection.room.notify_waiters();
            })
        };
        self.broker.connections().created();
        let ended = self.read(&stream).await;
        self.broker.connections().closed(self.client.get().is_some());
        match ended {
            Ok(()) => tracing::debug!(address = %self.address, "connection closed"),
            Err(error) => tracing::info!(address = %self.address, %error, "connection ended"),
        }
        let asked_to_end = self.closing.load(Ordering::Relaxed);
        self.outbox.flush();
        self.leave();
        // What was taken is answered, and what was queued last (an error that says why) still goes out.
        let patience = if asked_to_end { self.broker.config().finish_timeout } else { LAST_WORDS };
        self.wait_while(patience, || self.publishing.used() > 0).await;
        self.wait_while(LAST_WORDS, || self.outbox.queued() > 0).await;
        self.outbox.close();
        let _ = writer.await;
        // Somebody may hold the connection for a while yet; the client is not to wait for that.
        if let Err(error) = socket2::SockRef::from(&*stream).shutdown(Shutdown::Both) {
            tracing::trace!(address = %self.address, %error, "the client was faster");
        }
    }

    /// Unless the client is gone.
    async fn wait_while(&self, patience: Duration, holds: impl Fn() -> bool) {
        let waiting = async {
            while holds() && !self.outbox.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(patience, waiting).await;
    }

    async fn read(self: &Arc<Self>, stream: &TcpStream) -> Result<(), ConnectionError> {
        let share = (self.broker.config().memory_limit / READ_BYTES_SHARE) as usize;
        let chunk_max = share.clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        let mut chunk = READ_BYTES_MIN;
        let mut buffer = BytesMut::with_capacity(chunk);
        // Since the buffer was small: it may be a part of what was reserved.
        let mut largest = chunk;
        let mut gathered = Gathered::default();
        let mut unfinished = UnfinishedFrame::new(self.broker.memory().receiving.clone());
        loop {
            self.wait_for_room().await?;
            self.make_room_for(&mut unfinished, &buffer).await?;
            if self.wait_for_rate().await? {
                // Little is read at once from a connection that must not send much.
                chunk = READ_BYTES_MIN;
                move_to_small_buffer(&mut buffer);
            }
            self.wait_until_it_reads().await?;
            if self.wait_readable(stream, &unfinished, largest > READ_BYTES_MIN).await? {
                (chunk, largest) = (READ_BYTES_MIN, READ_BYTES_MIN);
                buffer = in_small_buffer(&buffer);
                continue;
            }
            if buffer.capacity() - buffer.len() < chunk / 4 {
                buffer.reserve(chunk);
                largest = largest.max(chunk);
            }
            match stream.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => chunk = next_chunk(chunk, read, chunk_max),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            self.asked_alive.store(false, Ordering::Relaxed);
            if self.listening.load(Ordering::Relaxed) {
                self.listening.store(false, Ordering::Relaxed);
                self.heard.notify_waiters();
            }
            gathered.read_buffer = chunk;
            let mut handled = 0;
            while let Some(frame) = decode_frame(&mut buffer, self.max_frame())? {
                unfinished.release();
                handled += 1;
                if waits(&frame.command) || handled % SMALL_ANSWERS == 0 {
                    self.wait_for_turn(&mut gathered).await?;
                }
                self.handle(frame, &mut gathered)?;
            }
            gathered.hand_over();
            if self.closing.load(Ordering::Relaxed) || self.outbox.is_closed() {
                return Ok(());
            }
        }
    }

    /// Asks the client for a sign of life. Without one in time, everything of this connection is taken off its topics and
    /// it ends.
    pub(crate) async fn answers(&self) -> bool {
        let deaf = self.held_back.load(Ordering::Relaxed);
        let heard = self.heard.notified();
        tokio::pin!(heard);
        heard.as_mut().enable();
        self.listening.store(true, Ordering::Relaxed);
        self.send(&Command::from(proto::CommandPing {}));
        let answered = tokio::time::timeout(self.broker.config().liveness_timeout, heard).await.is_ok();
        if !self.closing.load(Ordering::Relaxed) && (answered || deaf || self.held_back.load(Ordering::Relaxed)) {
            return true;
        }
        tracing::info!(address = %self.address, "connection does not answer: ended, as another client needs its place");
        self.shut_down();
        self.leave();
        false
    }

    /// Waits until something comes; true if it has not for a while and the read buffer `is_large`, which is better given back.
    async fn wait_readable(
        &self,
        stream: &TcpStream,
        unfinished: &UnfinishedFrame,
        is_large: bool,
    ) -> Result<bool, ConnectionError> {
        let keep_alive = self.broker.config().keep_alive;
        let patience = if self.client.get().is_some() { keep_alive } else { HANDSHAKE_TIMEOUT };
        let mut waited = Duration::ZERO;
        loop {
            // Whoever has something to give back is looked at more often.
            let pause = if is_large || unfinished.bytes() > 0 { QUIET } else { patience };
            let pause = pause.min(patience - waited);
            let ready = async {
                tokio::select! {
                    ready = stream.readable() => ready.map_err(ConnectionError::from),
                    () = self.stop.notified() => Err(ConnectionError::ShuttingDown),
                }
            };
            if let Ok(ready) = tokio::time::timeout(pause, ready).await {
                return ready.map(|()| false);
            }
            if is_large {
                return Ok(true);
            }
            waited += pause;
            if waited >= FRAME_STALL && unfinished.is_in_the_way(FRAME_STALL) {
                return Err(ConnectionError::SlowFrame(unfinished.bytes()));
            }
            if waited < patience {
                continue;
            }
            waited = Duration::ZERO;
            if self.client.get().is_none() {
                return Err(ConnectionError::Handshake);
            }
            if self.asked_alive.swap(true, Ordering::Relaxed) {
                return Err(ConnectionError::Silent);
            }
            self.send(&Command::from(proto::CommandPing {}));
        }
    }

    pub(crate) fn max_frame(&self) -> usize {
        if self.client.get().is_some() {
            self.broker.config().max_message_bytes + FRAME_PADDING
        } else {
            FRAME_BYTES_BEFORE_CONNECT
        }
    }

    fn handle(self: &Arc<Self>, frame: Frame, gathered: &mut Gathered) -> Result<(), ConnectionError> {
        let Frame { command, payload } = frame;
        if let Command::Send(send) = command {
            if self.client.get().is_none() {
                return Err(ConnectionError::NotConnected("SEND"));
            }
            return self.gather(&send, payload, gathered);
        }
        // Whatever else comes must see the messages that came before it, and may make another producer of the same id.
        gathered.hand_over();
        gathered.producer = None;
        match (&command, self.client.get()) {
            (Command::Connect(_) | Command::Ping(_) | Command::Pong(_), _) | (_, Some(_)) => {
                self.dispatch_command(command, payload)
            }
            (other, None) => Err(ConnectionError::NotConnected(other.name())),
        }
    }

    fn dispatch_command(self: &Arc<Self>, command: Command, _payload: Bytes) -> Result<(), ConnectionError> {
        match command {
            Command::Connect(connect) => return self.connect(*connect),
            Command::Ping(_) => self.send(&Command::from(proto::CommandPong {})),
            Command::Pong(_) => {}
            Command::Ack(ack) => self.ack(ack),
            Command::Flow(flow) => self.flow(&flow),
            Command::RedeliverUnacknowledgedMessages(redeliver) => self.redeliver(redeliver),
            Command::Producer(producer) => self.create_producer(*producer),
            Command::CloseProducer(close) => self.close_producer_command(&close),
            Command::Subscribe(subscribe) => self.subscribe(*subscribe),
            Command::CloseConsumer(close) => self.close_consumer_command(&close),
            Command::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Command::Seek(seek) => self.seek(*seek),
            Command::GetLastMessageId(get) => self.last_message_id(&get),
            Command::ConsumerStats(stats) => self.consumer_stats(&stats),
            Command::Lookup(lookup) => self.lookup(*lookup),
            Command::PartitionedMetadata(partitions) => self.partition_metadata(*partitions),
            Command::GetTopicsOfNamespace(get) => self.topics_of_namespace(*get),
            Command::WatchTopicList(watch) => self.watch_topic_list(*watch),
            Command::WatchTopicListClose(close) => self.close_watch(&close),
            Command::GetSchema(get) => self.get_schema(*get),
            Command::GetOrCreateSchema(get) => self.get_or_create_schema(*get),
            other => self.unsupported(&other),
        }
        Ok(())
    }

    /// Queues a command and sends it.
    pub(crate) fn send(&self, command: &Command) {
        self.outbox.push(|frames| frames.head(|out| geminga_wire_pulsar::encode_simple(command, out)));
        self.outbox.flush();
    }

    /// Runs work that must wait, beside the reading of further commands.
    pub(crate) fn spawn<F>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (permit, work) = (self.permit(), work(self.clone()));
        tokio::spawn(async move {
            work.await;
            drop(permit);
        });
    }

    /// Ends the connection: the client finds its topics elsewhere or here again after a restart.
    pub(crate) fn shut_down(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.stop.notify_one();
    }

    /// Takes everything of this connection off its topics.
    fn leave(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let producers = std::mem::take(&mut *self.producers.lock());
        for slot in producers.into_values() {
            match slot {
                ProducerSlot::Ready(producer, _) => producer.topic.remove_producer(&producer),
                ProducerSlot::Creating { cancel, .. } => cancel.notify_one(),
            }
        }
        let consumers = std::mem::take(&mut *self.consumers.lock());
        for slot in consumers.into_values() {
            if let ConsumerSlot::Ready(consumer, _) = slot {
                consumer.topic.remove_consumer(&consumer);
            }
        }
        for (_, watcher) in std::mem::take(&mut *self.watchers.lock()) {
            watcher.abort();
        }
    }

    /// The outbox has drained: consumers that were held back go on.
    fn room_again(&self) {
        self.room.notify_waiters();
        let ready: Vec<Arc<ConsumerHandle>> = self
            .consumers
            .lock()
            .values()
            .filter_map(|slot| match slot {
                ConsumerSlot::Ready(consumer, _) => Some(consumer.clone()),
                ConsumerSlot::Creating { .. } => None,
            })
            .collect();
        for consumer in ready {
            consumer.topic.consumer_writable(&consumer);
        }
    }

    pub(crate) fn producer(&self, producer_id: u64) -> Option<Arc<ProducerHandle>> {
        match self.producers.lock().get(&producer_id) {
            Some(ProducerSlot::Ready(producer, _)) => Some(producer.clone()),
            _ => None,
        }
    }

    pub(crate) fn consumer(&self, consumer_id: u64) -> Option<Arc<ConsumerHandle>> {
        match self.consumers.lock().get(&consumer_id) {
            Some(ConsumerSlot::Ready(consumer, _)) => Some(consumer.clone()),
            _ => None,
        }
    }
}

/// Whether a command may have to wait, and so runs beside the reading of further ones.
fn waits(command: &Command) -> bool {
    !matches!(
        command,
        Command::Send(_)
            | Command::Ack(_)
            | Command::Flow(_)
            | Command::Ping(_)
            | Command::Pong(_)
            | Command::RedeliverUnacknowledgedMessages(_)
    )
}

/// The read buffer follows the traffic: doubled when a read filled it, halved when it stays nearly empty.
fn next_chunk(chunk: usize, read: usize, max: usize) -> usize {
    if read >= chunk {
        (chunk * 2).min(max)
    } else if read < chunk / 16 {
        (chunk / 2).max(READ_BYTES_MIN)
    } else {
        chunk
    }
}
