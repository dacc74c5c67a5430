//! A connection to a storage node: calls go out in version 2 of the protocol, or 3 where 2 has no such call, and come back in
//! any order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use geminga_flow::{Budget, Frames, Outbox, Socket};
use geminga_wire_bookkeeper::{
    Answer, BatchRead, Code, DEFAULT_MAX_FRAME_BYTES, FrameSink, MasterKey, Read, ReplyTo, Request, Response,
    WireVersion, decode_response, encode_add, encode_request, take_frame,
};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use crate::writing::OpenLedger;

/// Bounds of the read buffer.
const READ_BYTES_MIN: usize = 16 << 10;
const READ_BYTES_MAX: usize = 1 << 20;
/// A node that lets more than this pile up does not keep up, and is given up.
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// Where more calls than these are under way, what is sent may wait until more has gathered: an answer waits for its turn anyway.
const FEW: usize = 4;
/// How often calls that take too long are looked for.
const TIMEOUT_CHECK: Duration = Duration::from_millis(250);

/// The bit of a node's id among what may be asked of it.
const NODE_ID: i64 = 4;

const ADD: u8 = 1;
const READ: u8 = 2;
const BATCH_READ: u8 = 7;
/// Any call of version 3: its answer repeats the number of its transaction and nothing else is needed.
const TRANSACTION: u8 = 0;

/// Why a call has no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The node says so.
    Code(Code),
    /// There is no connection, or it broke: nobody knows whether the node has done it.
    Unreachable,
    TimedOut,
}

/// Told once.
pub type Done<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

enum Waiting {
    /// Of an open ledger: answers that come together are told together.
    Append(Arc<OpenLedger>),
    Add(Done<()>),
    Read(Done<Bytes>),
    BatchRead(Done<Vec<Bytes>>),
    Ask(Done<Response>),
}

struct Call {
    waiting: Waiting,
    since: Instant,
}

/// What an answer repeats: operation, ledger, entry and, of a batch read, its id.
type Key = (u8, i64, i64, i64);

#[derive(Default)]
struct Calls {
    by_key: FxHashMap<Key, Call>,
    /// Of a key that waits already.
    again: Vec<(Key, Call)>,
    closed: bool,
}

impl Calls {
    fn insert(&mut self, key: Key, call: Call) {
        match self.by_key.entry(key) {
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(call);
            }
            std::collections::hash_map::Entry::Occupied(_) => self.again.push((key, call)),
        }
    }

    fn len(&self) -> usize {
        self.by_key.len() + self.again.len()
    }

    fn remove(&mut self, key: Key) -> Option<Call> {
        let call = self.by_key.remove(&key)?;
        if let Some(at) = self.again.iter().position(|(waiting, _)| *waiting == key) {
            let (_, next) = self.again.swap_remove(at);
            self.by_key.insert(key, next);
        }
        Some(call)
    }
}

pub struct NodeConnection {
    node: String,
    /// Where it was found.
    pub address: String,
    outbox: Outbox,
    calls: Mutex<Calls>,
    /// How many calls there are.
    under_way: AtomicUsize,
    next_request: AtomicI64,
    /// When something came from the node last.
    heard: Mutex<Instant>,
    closed: Notify,
}

struct Sink<'f, 'q>(&'f mut Frames<'q>);

impl FrameSink for Sink<'_, '_> {
    fn write(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        self.0.head(encode);
    }

    fn share(&mut self, bytes: &Bytes) {
        self.0.payload(bytes);
    }
}

/// Answers to appends of one ledger that came together.
struct Group {
    ledger: Arc<OpenLedger>,
    answers: Vec<(u64, Result<(), Failure>)>,
}

impl NodeConnection {
    /// Serves a connection that was just made, until it breaks. `timeout` is how long a call may take.
    pub fn start(node: &str, address: &str, socket: Socket, outbound: Arc<Budget>, timeout: Duration) -> Arc<Self> {
        let connection = Arc::new(Self {
            node: node.to_owned(),
            address: address.to_owned(),
            outbox: Outbox::new(socket.clone(), outbound),
            calls: Mutex::default(),
            under_way: AtomicUsize::new(0),
            next_request: AtomicI64::new(1),
            heard: Mutex::new(Instant::now()),
            closed: Notify::new(),
        });
        let writer = connection.clone();
        tokio::spawn(async move { writer.outbox.drain(|| ()).await });
        let reader = connection.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = reader.receive(&socket) => if let Err(error) = ended {
                    tracing::info!(node = reader.node, %error, "connection to a storage node ended");
                },
                // A peer that is gone would not end it.
                () = reader.closed.notified() => (),
            }
            reader.close();
        });
        let watch = Arc::downgrade(&connection);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TIMEOUT_CHECK).await;
                let Some(connection) = watch.upgrade().filter(|connection| !connection.is_closed()) else { return };
                connection.give_up_old(timeout);
            }
        });
        connection.ask_who_is_there();
        connection
    }

    pub fn is_closed(&self) -> bool {
        self.calls.lock().closed
    }

    /// Breaks the connection: every call fails.
    pub fn close(&self) {
        self.outbox.close();
        self.closed.notify_one();
        let calls = {
            let mut calls = self.calls.lock();
            calls.closed = true;
            let mut all: Vec<(Key, Call)> = calls.by_key.drain().collect();
            all.append(&mut calls.again);
            all
        };
        self.fail(calls, Failure::Unreachable);
    }

    fn give_up_old(&self, timeout: Duration) {
        let old = {
            let mut calls = self.calls.lock();
            let keys: Vec<Key> =
                calls.by_key.iter().filter(|(_, call)| call.since.elapsed() > timeout).map(|(key, _)| *key).collect();
            let old: Vec<(Key, Call)> = keys.into_iter().filter_map(|key| Some((key, calls.remove(key)?))).collect();
            self.under_way.store(calls.len(), Ordering::Relaxed);
            old
        };
        let Some(oldest) = old.iter().map(|(_, call)| call.since).min() else { return };
        // A machine or network that is gone ends no connection, and the system tries for a quarter of an hour to send to it.
        let is_silent = *self.heard.lock() < oldest;
        tracing::warn!(node = self.node, calls = old.len(), is_silent, "a storage node does not answer");
        self.fail(old, Failure::TimedOut);
        if is_silent {
            self.close();
        }
    }

    fn fail(&self, mut calls: Vec<(Key, Call)>, failure: Failure) {
        // In the order of their entries, so that a ledger's first failure is told first.
        calls.sort_unstable_by_key(|(key, _)| *key);
        let mut group = None;
        for ((_, _, entry, _), call) in calls {
            match call.waiting {
                Waiting::Append(ledger) => self.gather(&mut group, ledger, entry as u64, Err(failure)),
                Waiting::Add(done) => done(Err(failure)),
                Waiting::Read(done) => done(Err(failure)),
                Waiting::BatchRead(done) => done(Err(failure)),
                Waiting::Ask(done) => done(Err(failure)),
            }
        }
        self.tell(group);
    }

    /// Queues a request whose answer has the key; [`NodeConnection::flush`] sends it.
    fn call(&self, key: Key, waiting: Waiting, encode: impl FnOnce(&mut Sink<'_, '_>)) -> Result<(), Waiting> {
        {
            let mut calls = self.calls.lock();
            if calls.closed {
                return Err(waiting);
            }
            calls.insert(key, Call { waiting, since: Instant::now() });
            self.under_way.store(calls.len(), Ordering::Relaxed);
        }
        self.outbox.push(|frames| encode(&mut Sink(frames)));
        Ok(())
    }

    /// Adds an entry of an open ledger, which hears of it; `false` if there is no connection. To be flushed.
    pub fn append(&self, ledger: &Arc<OpenLedger>, entry: u64, urgent: bool, body: &[Bytes]) -> bool {
        let key = (ADD, ledger.id as i64, entry as i64, 0);
        let master_key = ledger.master_key;
        self.call(key, Waiting::Append(ledger.clone()), |sink| encode_add(&master_key, false, urgent, body, sink))
            .is_ok()
    }

    /// Adds an entry for a recovery.
    pub fn recovery_add(&self, ledger: u64, entry: u64, master_key: &MasterKey, body: &Bytes, done: Done<()>) {
        let key = (ADD, ledger as i64, entry as i64, 0);
        let call = self.call(key, Waiting::Add(done), |sink| {
            encode_add(master_key, true, true, std::slice::from_ref(body), sink);
        });
        match call {
            Ok(()) => self.flush(),
            Err(Waiting::Add(done)) => done(Err(Failure::Unreachable)),
            Err(_) => unreachable!("it comes back as it went"),
        }
    }

    /// Reads an entry, -1 for the last; with a key it fences first.
    pub fn read(&self, ledger: u64, entry: i64, fence: Option<MasterKey>, done: Done<Bytes>) {
        let key = (READ, ledger as i64, entry, 0);
        let read = Read {
            ledger: ledger as i64,
            entry,
            fence: fence.is_some(),
            master_key: fence,
            high_priority: fence.is_some(),
            wait: None,
        };
        let call = self.call(key, Waiting::Read(done), |sink| {
            encode_request(WireVersion::Compact, 0, &Request::Read(read), sink);
        });
        match call {
            Ok(()) => self.flush(),
            Err(Waiting::Read(done)) => done(Err(Failure::Unreachable)),
            Err(_) => unreachable!("it comes back as it went"),
        }
    }

    /// Reads entries from `first` on, `count` and `bytes` at most, one at least.
    pub fn batch_read(&self, ledger: u64, first: u64, count: u32, bytes: usize, done: Done<Vec<Bytes>>) {
        let request_id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let read = BatchRead {
            ledger: ledger as i64,
            entry: first as i64,
            request_id,
            max_count: count as i32,
            max_bytes: bytes as i64,
            fence: false,
            master_key: None,
        };
        let key = (BATCH_READ, ledger as i64, first as i64, request_id);
        let call = self.call(key, Waiting::BatchRead(done), |sink| {
            encode_request(WireVersion::Compact, 0, &Request::BatchRead(read), sink);
        });
        match call {
            Ok(()) => self.flush(),
            Err(Waiting::BatchRead(done)) => done(Err(Failure::Unreachable)),
            Err(_) => unreachable!("it comes back as it went"),
        }
    }

    /// Asks for something that only version 3 has.
    pub fn ask(&self, request: &Request, done: Done<Response>) {
        let transaction = self.next_request.fetch_add(1, Ordering::Relaxed);
        let call = self.call((TRANSACTION, 0, 0, transaction), Waiting::Ask(done), |sink| {
            encode_request(WireVersion::Protobuf, transaction as u64, request, sink);
        });
        match call {
            Ok(()) => self.flush(),
            Err(Waiting::Ask(done)) => done(Err(Failure::Unreachable)),
            Err(_) => unreachable!("it comes back as it went"),
        }
    }

    /// Ends the connection if another node than the one that was meant answers: that has come to its address, and "no such entry" of
    /// it is not to be taken for this one's. It is the first that is asked, and nodes answer it at once: no other answer comes
    /// before. Nodes that do not say who they are are believed.
    fn ask_who_is_there(self: &Arc<Self>) {
        let asking = Arc::downgrade(self);
        let told = move |answer| {
            let Some(connection) = asking.upgrade() else { return };
            if let Ok(Response::NodeInfo { id: Some(id), .. }) = answer
                && id != connection.node
            {
                let (node, address) = (&connection.node, &connection.address);
                tracing::warn!(node, address, found = id, "another storage node is where one should be");
                connection.close();
            }
        };
        self.ask(&Request::NodeInfo { requested: NODE_ID }, Box::new(told));
    }

    /// Sends what is queued: at once, or soon where much is under way.
    pub fn flush(&self) {
        if self.under_way.load(Ordering::Relaxed) <= FEW {
            self.outbox.flush();
        } else {
            self.outbox.flush_soon();
        }
        if self.outbox.queued() > QUEUED_BYTES_MAX {
            tracing::warn!(node = self.node, "a storage node does not take what it is sent");
            self.close();
        }
    }

    async fn receive(&self, socket: &Socket) -> std::io::Result<()> {
        let mut chunk = READ_BYTES_MIN;
        let mut buffer = BytesMut::with_capacity(chunk);
        loop {
            socket.readable().await?;
            if buffer.capacity() - buffer.len() < chunk / 4 {
                buffer.reserve(chunk);
            }
            match socket.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) if read >= chunk / 2 => chunk = (chunk * 2).min(READ_BYTES_MAX),
                Ok(_) => (),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            *self.heard.lock() = Instant::now();
            let mut group = None;
            while let Some(frame) = take_frame(&mut buffer, DEFAULT_MAX_FRAME_BYTES).map_err(std::io::Error::other)? {
                let answer = decode_response(frame).map_err(std::io::Error::other)?;
                self.hear(answer, &mut group);
            }
            self.tell(group);
            if self.outbox.is_closed() {
                return Ok(());
            }
        }
    }

    fn hear(&self, answer: Answer, group: &mut Option<Group>) {
        let Answer { reply_to, code, response } = answer;
        let key = match reply_to {
            ReplyTo::Compact { operation, ledger, entry, request_id, .. } => (operation, ledger, entry, request_id),
            ReplyTo::Protobuf { txn_id, .. } => (TRANSACTION, 0, 0, txn_id as i64),
        };
        // One that was given up has no call any more.
        let mut calls = self.calls.lock();
        let Some(call) = calls.remove(key) else { return };
        self.under_way.store(calls.len(), Ordering::Relaxed);
        drop(calls);
        let (_, _, entry, _) = key;
        let failure = if code == Code::Ok { None } else { Some(Failure::Code(code)) };
        let result = |()| failure.map_or(Ok(()), Err);
        match (call.waiting, response) {
            (Waiting::Append(ledger), _) => self.gather(group, ledger, entry as u64, result(())),
            (Waiting::Add(done), _) => done(result(())),
            (Waiting::Read(done), Response::Entry { body: Some(body), .. }) => done(result(()).map(|()| body)),
            (Waiting::Read(done), _) => done(Err(failure.unwrap_or(Failure::Code(Code::Io)))),
            (Waiting::BatchRead(done), Response::Entries(entries)) => done(result(()).map(|()| entries)),
            (Waiting::BatchRead(done), _) => done(Err(failure.unwrap_or(Failure::Code(Code::Io)))),
            (Waiting::Ask(done), response) => done(result(()).map(|()| response)),
        }
    }

    fn gather(&self, group: &mut Option<Group>, ledger: Arc<OpenLedger>, entry: u64, result: Result<(), Failure>) {
        match group {
            Some(known) if Arc::ptr_eq(&known.ledger, &ledger) => known.answers.push((entry, result)),
            _ => {
                let before = group.replace(Group { ledger, answers: vec![(entry, result)] });
                self.tell(before);
            }
        }
    }

    fn tell(&self, group: Option<Group>) {
        if let Some(Group { ledger, answers }) = group {
            ledger.added(&self.node, &answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_connection_on_which_nothing_comes_is_given_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let stream = TcpStream::connect(&address).await.expect("somebody listens");
        // It takes what it is sent and says nothing.
        let _silent = listener.accept().await.expect("it was connected to");
        let timeout = Duration::from_millis(100);
        let socket = Socket::from(Arc::new(stream));
        let connection = NodeConnection::start("node", &address, socket, Budget::new(1 << 20), timeout);
        let (sender, receiver) = oneshot::channel();
        connection.read(7, 0, None, Box::new(move |result| drop(sender.send(result))));
        assert_eq!(receiver.await.expect("an answer"), Err(Failure::TimedOut));
        tokio::time::timeout(Duration::from_secs(10), async {
            while !connection.is_closed() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("it is not used any more");
    }
}
