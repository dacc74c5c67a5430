//! One client connection: frames in, frames out.
//!
//! Requests are taken in the order in which they come; adds are handed to the log in that order, and a fence behind an add
//! comes behind it there. Reading stops while the node, or this connection alone, holds too many bytes that are not durable
//! yet, and while the client does not take its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use geminga_flow::{Budget, Frames, HARD_LIMIT, Outbox, Socket, UnfinishedFrame};
use geminga_log::{AppendError, ExplicitLac};
use geminga_wire_bookkeeper::{
    Code, FrameSink, Incoming, LacHead, ReplyTo, Request, Response, WriteLac, decode_request, encode_response,
    frame_size, take_frame,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::adding::Adds;
use crate::errors::{self, ConnectionError};
use crate::node::StorageNode;
use crate::reading::{Job, Reads};

/// Bounds of the read buffer: it grows with a busy connection.
const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 1 << 20;
/// A frame above this is read on only when there is room for all of it.
const LARGE_FRAME: usize = 64 << 10;
/// How long a large frame may take while others wait for the room it has.
const FRAME_PATIENCE: Duration = Duration::from_secs(60);
/// The plugin that a node without authentication says it has; the name is BookKeeper's.
const NO_AUTHENTICATION: &str = "AuthDisabledPlugin";
/// The plugin of one that knows its peers by their certificates; the name is BookKeeper's.
const BY_CERTIFICATE: &str = "BookieAuthZFactory";
/// Bits of a request for figures of the node.
const TOTAL_DISK_CAPACITY: i64 = 1;
const FREE_DISK_SPACE: i64 = 2;
const NODE_ID: i64 = 4;

pub struct Connection {
    pub node: Arc<StorageNode>,
    pub address: String,
    pub outbox: Outbox,
    /// Adds of this connection that are not durable yet.
    pub adding: Arc<Budget>,
    pub reads: Mutex<Reads>,
    /// There is room in the outbox again, or none will be needed.
    room: Notify,
    stop: Notify,
    /// TLS protects it.
    is_secure: bool,
    /// The peer was told to begin TLS.
    upgrades: AtomicBool,
}

/// How a connection was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Closed,
    /// The peer begins TLS on it now.
    StartTls,
}

/// Frames of the protocol in an outbox.
struct Sink<'f, 'q>(&'f mut Frames<'q>);

impl FrameSink for Sink<'_, '_> {
    fn write(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        self.0.head(encode);
    }

    fn share(&mut self, bytes: &Bytes) {
        self.0.payload(bytes);
    }
}

impl Connection {
    pub fn new(node: Arc<StorageNode>, socket: Socket, address: String, is_secure: bool) -> Self {
        Self {
            outbox: Outbox::new(socket, node.outbound.clone()),
            adding: Budget::new(node.adding.limit() / 2),
            reads: Mutex::default(),
            room: Notify::new(),
            stop: Notify::new(),
            is_secure,
            upgrades: AtomicBool::new(false),
            node,
            address,
        }
    }

    /// Serves the connection until it ends.
    pub async fn run(self: Arc<Self>, socket: Socket) -> End {
        let writer = {
            let connection = self.clone();
            tokio::spawn(async move {
                connection.outbox.drain(|| connection.room.notify_waiters()).await;
                connection.room.notify_waiters();
            })
        };
        let end = self.receive(&socket).await.unwrap_or_else(|error| {
            tracing::info!(address = %self.address, %error, "connection ended");
            End::Closed
        });
        // What was received is finished, and its answers still go out.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            while (self.adding.used() > 0 || self.outbox.queued() > 0) && !self.outbox.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.outbox.close();
        let _ = writer.await;
        end
    }

    /// Takes no more requests.
    pub fn shut_down(&self) {
        self.stop.notify_one();
    }

    async fn receive(self: &Arc<Self>, socket: &Socket) -> Result<End, ConnectionError> {
        let mut chunk = READ_BYTES_MIN;
        let mut buffer = BytesMut::with_capacity(chunk);
        let mut gathered: Option<Adds> = None;
        let mut unfinished = UnfinishedFrame::new(self.node.receiving.clone());
        loop {
            tokio::select! {
                ready = self.ready_to_read(socket, &mut unfinished, &buffer) => ready?,
                () = self.stop.notified() => return Ok(End::Closed),
            }
            if buffer.capacity() - buffer.len() < chunk / 4 {
                buffer.reserve(chunk);
            }
            match socket.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(End::Closed),
                Ok(read) if read >= chunk / 2 => chunk = (chunk * 2).min(READ_BYTES_MAX),
                Ok(read) if read < chunk / 8 => chunk = (chunk / 2).max(READ_BYTES_MIN),
                Ok(_) => (),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(frame) = take_frame(&mut buffer, self.node.options.max_frame_bytes)? {
                unfinished.release();
                let incoming = match decode_request(frame) {
                    Ok(incoming) => incoming,
                    Err(error) => {
                        self.hand_over(&mut gathered);
                        return Err(error.into());
                    }
                };
                self.handle(incoming, &mut gathered);
                if self.upgrades.load(Ordering::Relaxed) {
                    // What was sent before TLS must not be taken for something that came through it.
                    return if buffer.is_empty() { Ok(End::StartTls) } else { Err(ConnectionError::EarlyTls) };
                }
            }
            self.hand_over(&mut gathered);
            if self.outbox.is_closed() {
                return Ok(End::Closed);
            }
        }
    }

    /// Waits until there is room for more, and there is more.
    async fn ready_to_read(
        &self,
        socket: &Socket,
        unfinished: &mut UnfinishedFrame,
        buffer: &[u8],
    ) -> Result<(), ConnectionError> {
        self.adding.room().await;
        if self.adding.used() > 0 {
            self.node.adding.room().await;
        }
        self.make_room_for(unfinished, buffer).await?;
        if self.outbox.queued() > HARD_LIMIT {
            return Err(ConnectionError::NotReading);
        }
        Ok(socket.readable().await?)
    }

    async fn make_room_for(&self, unfinished: &mut UnfinishedFrame, buffer: &[u8]) -> Result<(), ConnectionError> {
        if unfinished.bytes() > 0 {
            let overdue = unfinished.is_in_the_way(FRAME_PATIENCE);
            return if overdue { Err(ConnectionError::SlowFrame(unfinished.bytes())) } else { Ok(()) };
        }
        let size = frame_size(buffer, self.node.options.max_frame_bytes)?;
        let Some(bytes) = size.filter(|bytes| *bytes > LARGE_FRAME) else { return Ok(()) };
        while !unfinished.claim(bytes as u64) {
            unfinished.room().await;
        }
        Ok(())
    }

    fn handle(self: &Arc<Self>, incoming: Incoming, gathered: &mut Option<Adds>) {
        let Incoming { reply_to, request } = incoming;
        let is_refused = !self.is_secure && self.node.tls.as_ref().is_some_and(|tls| tls.required);
        let request = match request {
            Ok(Request::StartTls) => Ok(Request::StartTls),
            Ok(_) if is_refused => Err(Code::Unauthorized),
            Ok(Request::Add(add)) => return self.gather(gathered, reply_to, add),
            other => other,
        };
        self.hand_over(gathered);
        let simple = |code| self.answer(&reply_to, code, &Response::Empty);
        match request {
            Err(code) => simple(code),
            Ok(Request::Add(_)) => unreachable!("gathered above"),
            Ok(Request::Read(read)) => self.read(reply_to, read),
            Ok(Request::BatchRead(read)) => self.batch_read(reply_to, read),
            Ok(Request::ReadLac { ledger }) => self.enqueue(reply_to, Job::ReadLac(ledger)),
            Ok(Request::ListEntries { ledger }) => self.enqueue(reply_to, Job::ListEntries(ledger)),
            Ok(Request::WriteLac(write)) => self.write_lac(reply_to, &write),
            // Whatever was answered is durable.
            Ok(Request::ForceLedger { .. }) => simple(Code::Ok),
            Ok(Request::NodeInfo { requested }) => self.node_info(&reply_to, requested),
            Ok(Request::Authenticate { plugin, .. }) => self.authenticate(&reply_to, plugin),
            Ok(Request::StartTls) if self.is_secure || self.node.tls.is_none() => simple(Code::BadRequest),
            Ok(Request::StartTls) => {
                simple(Code::Ok);
                self.upgrades.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whoever has a certificate is known by it; there is no other proof.
    fn authenticate(&self, reply_to: &ReplyTo, plugin: String) {
        let by_certificate = self.is_secure && self.node.tls.as_ref().is_some_and(|tls| tls.authenticates);
        let (code, plugin) = match (by_certificate, &plugin[..]) {
            (false, _) => (Code::Ok, NO_AUTHENTICATION.to_owned()),
            (true, BY_CERTIFICATE) => (Code::Ok, plugin),
            // Version 2 has no code in this answer, so that any is taken for a good one: a bookie ends the connection.
            (true, _) if matches!(reply_to, ReplyTo::Compact { .. }) => {
                tracing::info!(address = %self.address, plugin, "a client asks for another authentication");
                return self.outbox.close();
            }
            (true, _) => (Code::Unauthorized, plugin),
        };
        self.answer(reply_to, code, &Response::Authenticate { plugin, payload: Bytes::new() });
    }

    fn write_lac(self: &Arc<Self>, reply_to: ReplyTo, write: &WriteLac) {
        // As a bookie: such a node takes no word of a writer.
        if self.node.is_read_only() {
            return self.answer(&reply_to, Code::ReadOnly, &Response::Empty);
        }
        let head = LacHead::decode(&write.body).filter(|head| head.ledger == write.ledger);
        let explicit = head.and_then(|head| ExplicitLac::new(head.last_add_confirmed, &write.body));
        let (Ok(ledger), Some(explicit)) = (u64::try_from(write.ledger), explicit) else {
            return self.answer(&reply_to, Code::BadRequest, &Response::Empty);
        };
        let connection = self.clone();
        let done = Box::new(move |result: Result<(), AppendError>| {
            let code = match result {
                Ok(()) => {
                    connection.node.confirmed.advance(ledger, explicit.last_add_confirmed);
                    Code::Ok
                }
                // A writer is told that its ledger is gone.
                Err(AppendError::Fenced) => Code::NoLedger,
                Err(error) => errors::of_append(&error),
            };
            connection.answer(&reply_to, code, &Response::Empty);
        });
        self.node.log.confirm_replica(ledger, write.master_key, explicit, done);
    }

    fn node_info(&self, reply_to: &ReplyTo, requested: i64) {
        let (total, free) = self.node.space();
        if total == 0 && requested & (TOTAL_DISK_CAPACITY | FREE_DISK_SPACE) != 0 {
            return self.answer(reply_to, Code::Io, &Response::Empty);
        }
        let asked = |bit, value: u64| (requested & bit != 0).then_some(value as i64);
        let id = self.node.options.id.clone().filter(|_| requested & NODE_ID != 0);
        let response =
            Response::NodeInfo { total: asked(TOTAL_DISK_CAPACITY, total), free: asked(FREE_DISK_SPACE, free), id };
        self.answer(reply_to, Code::Ok, &response);
    }

    pub fn answer(&self, reply_to: &ReplyTo, code: Code, response: &Response) {
        self.outbox.push(|frames| encode_response(reply_to, code, response, &mut Sink(frames)));
        self.outbox.flush();
    }

    pub fn answer_all(&self, answers: impl IntoIterator<Item = (ReplyTo, Code, Response)>) {
        self.outbox.push(|frames| {
            for (reply_to, code, response) in answers {
                encode_response(&reply_to, code, &response, &mut Sink(frames));
            }
        });
        self.outbox.flush();
    }

    /// Waits until the client has taken enough of its answers.
    pub async fn writable(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.outbox.writable() || self.outbox.is_closed() {
                return;
            }
            room.await;
        }
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.outbox.is_closed() {
                return;
            }
            room.await;
        }
    }
}
