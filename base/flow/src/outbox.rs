//! What waits to be written to one client.
//!
//! Anybody queues (receipts, messages, answers); [`Outbox::flush`] writes as much as the socket takes, from whichever
//! thread has just queued, so that a message reaches a consumer without a hand-over to another task. What the socket
//! does not take is written by the connection's writer task ([`Outbox::drain`]) as the socket becomes writable.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::budget::Budget;
use crate::socket::Socket;

/// Payloads up to this size are copied beside their header: cheaper than a further slice of a vectored write.
const COPY_PAYLOAD_MAX: usize = 2048;
/// Slices handed to the kernel at once.
const WRITE_SLICES: usize = 64;
/// A connection stops taking messages above the first and takes them again below the second, in bytes.
const HIGH_WATER: usize = 2 << 20;
const LOW_WATER: usize = 512 << 10;
/// The same while the broker's budget for outbound bytes is used up.
const HIGH_WATER_SCARCE: usize = 64 << 10;
const LOW_WATER_SCARCE: usize = 8 << 10;
/// A connection is asked for no more above this: messages alone do not come so far, so that whoever is behind with them is heard
/// meanwhile.
const REQUESTS_HIGH_WATER: usize = 4 << 20;
/// The same while the budget is used up.
const REQUESTS_HIGH_WATER_SCARCE: usize = 16 << 10;
/// Answers and receipts are not refused; a peer that lets this much pile up is cut off where nothing else holds it back.
pub const HARD_LIMIT: usize = 64 << 20;

pub struct Outbox {
    stream: Socket,
    queue: Mutex<Queue>,
    queued: AtomicUsize,
    wake: Notify,
    budget: Arc<Budget>,
    /// Somebody was told that the connection takes no more messages or requests.
    refused: AtomicBool,
    closed: AtomicBool,
}

struct Queue {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    /// The writer task owns the socket until it has emptied the queue.
    writer_busy: bool,
}

/// Whether a flush or drain left something behind.
enum Progress {
    Empty,
    Blocked,
}

impl Outbox {
    pub fn new(stream: impl Into<Socket>, budget: Arc<Budget>) -> Self {
        Self {
            stream: stream.into(),
            queue: Mutex::new(Queue { chunks: VecDeque::new(), tail: BytesMut::new(), writer_busy: false }),
            queued: AtomicUsize::new(0),
            wake: Notify::new(),
            budget,
            refused: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Queues frames in one go; `write` sees the queue's end and may add any number of frames.
    pub fn push(&self, write: impl FnOnce(&mut Frames<'_>)) {
        let mut queue = self.queue.lock();
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let mut frames = Frames { queue: &mut queue, added: 0 };
        write(&mut frames);
        let added = frames.added;
        self.queued.fetch_add(added, Ordering::Relaxed);
        self.budget.take(added as u64);
    }

    /// Whether messages may be queued. A `false` is remembered: see [`Outbox::drained`].
    pub fn writable(&self) -> bool {
        self.is_below(HIGH_WATER, HIGH_WATER_SCARCE)
    }

    /// Whether requests may be taken, all of which are answered. A `false` is remembered as well.
    pub fn takes_requests(&self) -> bool {
        self.is_below(REQUESTS_HIGH_WATER, REQUESTS_HIGH_WATER_SCARCE)
    }

    fn is_below(&self, limit: usize, limit_scarce: usize) -> bool {
        let limit = if self.budget.exhausted() { limit_scarce } else { limit };
        let below = self.queued.load(Ordering::Relaxed) < limit;
        if !below {
            self.refused.store(true, Ordering::SeqCst);
            // The queue may have drained between the look and the note.
            return self.queued.load(Ordering::SeqCst) == 0;
        }
        below
    }

    /// Bytes that wait.
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Writes what the socket takes now.
    pub fn flush(&self) {
        let mut queue = self.queue.lock();
        if queue.writer_busy || queue.is_empty() {
            return;
        }
        match self.write_some(&mut queue) {
            Ok(Progress::Empty) => {
                if self.refused.load(Ordering::SeqCst) {
                    self.wake.notify_one();
                }
            }
            Ok(Progress::Blocked) => {
                queue.writer_busy = true;
                self.wake.notify_one();
            }
            Err(_) => {
                self.close_locked(&mut queue);
                self.wake.notify_one();
            }
        }
    }

    /// Lets the writer task write, together with what others queue before it comes to run: fewer and larger writes where
    /// many queue little.
    pub fn flush_soon(&self) {
        let mut queue = self.queue.lock();
        if queue.writer_busy || queue.is_empty() {
            return;
        }
        queue.writer_busy = true;
        self.wake.notify_one();
    }

    /// Whether someone who was refused should be told that there is room again; true once per refusal.
    pub fn drained(&self) -> bool {
        let limit = if self.budget.exhausted() { LOW_WATER_SCARCE } else { LOW_WATER };
        self.queued.load(Ordering::SeqCst) <= limit && self.refused.swap(false, Ordering::SeqCst)
    }

    /// The writer task: writes whatever flush had to leave or was to be written soon, calls `on_room` when refused senders may go on; ends when
    /// the connection is closed or broken.
    pub async fn drain(&self, on_room: impl Fn()) {
        loop {
            self.wake.notified().await;
            // A task that was woken may run before all others, which have more to write.
            tokio::task::yield_now().await;
            loop {
                if self.closed.load(Ordering::Acquire) {
                    return;
                }
                let writable = tokio::select! {
                    writable = self.stream.writable() => writable,
                    // The peer of a connection that is closed here may never read again.
                    () = self.wake.notified() => continue,
                };
                if writable.is_err() {
                    self.close();
                    return;
                }
                let progress = {
                    let mut queue = self.queue.lock();
                    let progress = self.write_some(&mut queue);
                    if let Ok(Progress::Empty) = progress {
                        queue.writer_busy = false;
                    }
                    progress
                };
                if self.drained() {
                    on_room();
                }
                match progress {
                    Ok(Progress::Empty) => break,
                    Ok(Progress::Blocked) => {}
                    Err(_) => {
                        self.close();
                        return;
                    }
                }
            }
        }
    }

    /// Drops what waits and lets the writer task end.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        self.close_locked(&mut queue);
        self.wake.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close_locked(&self, queue: &mut Queue) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        queue.chunks.clear();
        queue.tail = BytesMut::new();
        let left = self.queued.swap(0, Ordering::AcqRel);
        self.budget.give_back(left as u64);
    }

    fn write_some(&self, queue: &mut Queue) -> io::Result<Progress> {
        while !queue.is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
                let mut used = 0;
                for chunk in queue.chunks.iter().take(WRITE_SLICES) {
                    slices[used] = IoSlice::new(chunk);
                    used += 1;
                }
                if used < WRITE_SLICES && !queue.tail.is_empty() {
                    slices[used] = IoSlice::new(&queue.tail);
                    used += 1;
                }
                self.stream.try_write_vectored(&slices[..used])
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    queue.advance(written);
                    self.queued.fetch_sub(written, Ordering::SeqCst);
                    self.budget.give_back(written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Blocked),
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Empty)
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.chunks.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.chunks.pop_front();
            if written == 0 {
                break;
            }
        }
        self.tail.advance(written);
        if self.tail.is_empty() && self.tail.capacity() > 64 << 10 {
            self.tail = BytesMut::new();
        }
    }
}

/// The end of the queue while frames are added.
pub struct Frames<'a> {
    queue: &'a mut Queue,
    added: usize,
}

impl Frames<'_> {
    /// A frame, or the head of one, written by `encode`.
    pub fn head(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        let before = self.queue.tail.len();
        encode(&mut self.queue.tail);
        self.added += self.queue.tail.len() - before;
    }

    /// Bytes that follow the head, shared rather than copied unless they are few.
    pub fn payload(&mut self, payload: &Bytes) {
        self.added += payload.len();
        if payload.len() <= COPY_PAYLOAD_MAX {
            self.queue.tail.extend_from_slice(payload);
            return;
        }
        if !self.queue.tail.is_empty() {
            let head = self.queue.tail.split().freeze();
            self.queue.chunks.push_back(head);
        }
        self.queue.chunks.push_back(payload.clone());
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let left = *self.queued.get_mut();
        self.budget.give_back(left as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn what_may_wait_is_written_together() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let outbox = Arc::new(Outbox::new(Arc::new(stream), Budget::new(1 << 30)));
        let writer = {
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.drain(|| ()).await })
        };
        let mut received = [0; 1 << 10];
        for _ in 0..3 {
            // Others that are ready as well run before the writer.
            let others = (0..10).map(|_| {
                let outbox = outbox.clone();
                tokio::spawn(async move {
                    outbox.push(|frames| frames.payload(&Bytes::from_static(b"frame")));
                    outbox.flush_soon();
                })
            });
            let others: Vec<_> = others.collect();
            let read = peer.read(&mut received).await.unwrap();
            assert_eq!(read, 50);
            for other in others {
                other.await.unwrap();
            }
            // The socket is free again.
            outbox.push(|frames| frames.payload(&Bytes::from_static(b"at once")));
            outbox.flush();
            assert_eq!(outbox.queued(), 0);
            assert_eq!(peer.read(&mut received).await.unwrap(), 7);
        }
        outbox.close();
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn closing_ends_the_writer_also_when_the_peer_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let budget = Budget::new(1 << 30);
        let outbox = Arc::new(Outbox::new(Arc::new(stream), budget.clone()));
        let writer = {
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.drain(|| ()).await })
        };
        let payload = Bytes::from(vec![7; 1 << 20]);
        outbox.push(|frames| (0..32).for_each(|_| frames.payload(&payload)));
        outbox.flush();
        // Until the kernel takes no more.
        let mut before = usize::MAX;
        while before != outbox.queued() {
            before = outbox.queued();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(before > 0, "the kernel has taken everything");
        outbox.close();
        tokio::time::timeout(Duration::from_secs(1), writer).await.expect("the writer ends").unwrap();
        assert_eq!((outbox.queued(), budget.used()), (0, 0));
        drop(peer);
    }
}
