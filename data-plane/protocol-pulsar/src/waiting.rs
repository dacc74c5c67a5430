//! What a connection waits for before it reads on, and before it answers at length.

use std::sync::atomic::Ordering;

use bytes::BytesMut;
use geminga_flow::{Outbox, UnfinishedFrame};
use geminga_wire_pulsar::{Command, frame_size, proto};
use tokio::sync::{MutexGuard, OwnedSemaphorePermit};

use crate::connection::{Connection, FRAME_PATIENCE, Gathered, LARGE_FRAME, READ_BYTES_MIN};
use crate::error::ConnectionError;

/// Requests of one connection that may be under way: enough for a client that comes back with all of its consumers.
pub(crate) const REQUESTS_MAX: usize = 1024;

impl Connection {
    /// Waits while nothing is read. The client hears of us meanwhile, in each interval of its own clock, or it would think us dead.
    async fn hold_back_for(&self, what: impl Future<Output = ()>) -> Result<(), ConnectionError> {
        self.held_back.store(true, Ordering::Relaxed);
        self.ask_meanwhile(what).await?;
        self.held_back.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn ask_meanwhile(&self, what: impl Future<Output = ()>) -> Result<(), ConnectionError> {
        tokio::pin!(what);
        loop {
            tokio::select! {
                () = &mut what => return Ok(()),
                () = self.stop.notified() => return Err(ConnectionError::ShuttingDown),
                () = tokio::time::sleep(self.broker.config().keep_alive / 2) => {}
            }
            self.send(&Command::from(proto::CommandPing {}));
            if self.outbox.is_closed() {
                return Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into());
            }
        }
    }

    /// Stops reading while the client leaves too much of what there is for it unread: whatever it asks would be queued as well.
    /// It is not deaf to us meanwhile but the other way round, so its silence does count.
    pub(crate) async fn wait_until_it_reads(&self) -> Result<(), ConnectionError> {
        if self.outbox.takes_requests() {
            return Ok(());
        }
        let mut reads = false;
        self.ask_meanwhile(async { reads = self.room_in_outbox(Outbox::takes_requests).await }).await?;
        match self.outbox.is_closed() {
            _ if reads => Ok(()),
            true => Err(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
            false => Err(ConnectionError::NotReading(self.outbox.queued())),
        }
    }

    /// Goes on with a large frame only when there is room for all of it, and not for ever with one that does not end while
    /// others wait for the room.
    pub(crate) async fn make_room_for(
        &self,
        unfinished: &mut UnfinishedFrame,
        buffer: &[u8],
    ) -> Result<(), ConnectionError> {
        if unfinished.bytes() > 0 {
            let overdue = unfinished.is_in_the_way(FRAME_PATIENCE);
            return if overdue { Err(ConnectionError::SlowFrame(unfinished.bytes())) } else { Ok(()) };
        }
        let Some(bytes) = frame_size(buffer, self.max_frame())?.filter(|bytes| *bytes > LARGE_FRAME) else {
            return Ok(());
        };
        if unfinished.claim(bytes as u64) {
            return Ok(());
        }
        self.hold_back_for(async {
            while !unfinished.claim(bytes as u64) {
                unfinished.room().await;
            }
        })
        .await
    }

    /// Stops reading while too much that was received is not durable yet: of this connection, or of all together. In the
    /// latter case a connection that has nothing under way still gets its turn, so that few heavy ones hold up nobody else.
    pub(crate) async fn wait_for_room(&self) -> Result<(), ConnectionError> {
        let all = &self.broker.memory().publishing;
        if !self.publishing.exhausted() && !all.exhausted() {
            return Ok(());
        }
        self.hold_back_for(async {
            self.publishing.room().await;
            if self.publishing.used() > 0 {
                all.room().await;
            }
        })
        .await
    }

    /// Waits as long as its producers are above a topic's rate; false if they are not.
    pub(crate) async fn wait_for_rate(&self) -> Result<bool, ConnectionError> {
        let Some(until) = self.held_until.lock().take() else { return Ok(false) };
        self.hold_back_for(tokio::time::sleep_until(until)).await?;
        Ok(true)
    }

    /// Waits until one more request may be under way, and there is room for its answer.
    pub(crate) async fn wait_for_turn(&self, gathered: &mut Gathered) -> Result<(), ConnectionError> {
        if self.requests.available_permits() > 0 && self.outbox.takes_requests() {
            return Ok(());
        }
        gathered.hand_over();
        self.wait_until_it_reads().await?;
        self.hold_back_for(async {
            // Only the reading task takes permits: what is free stays free.
            let _ = self.requests.acquire().await;
        })
        .await
    }

    /// Held by a request until its answer is queued.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.requests.clone().try_acquire_owned().ok()
    }

    /// Waits for the turn of an answer that may be large: one at a time is put together, and only when the client has taken most of
    /// what there is for it. `None` when the connection has ended.
    pub(crate) async fn turn_to_answer(&self) -> Option<MutexGuard<'_, ()>> {
        let turn = self.large_answers.lock().await;
        if self.room_in_outbox(Outbox::writable).await {
            return Some(turn);
        }
        self.shut_down();
        None
    }

    /// Waits until `is_room` says so; false when the connection has ended, or should, as its client does not read.
    async fn room_in_outbox(&self, is_room: impl Fn(&Outbox) -> bool) -> bool {
        // Once there was room it is enough: consumers, who hear of it first, would fill the outbox again and again.
        let mut was_room = false;
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.outbox.is_closed() || self.closing.load(Ordering::Relaxed) {
                return false;
            }
            if was_room || is_room(&self.outbox) {
                return true;
            }
            let before = self.outbox.queued();
            was_room = tokio::time::timeout(2 * self.broker.config().keep_alive, room).await.is_ok();
            if !was_room && self.outbox.queued() >= before {
                tracing::info!(address = %self.address, bytes = before, "the client does not read its answers");
                return false;
            }
        }
    }
}

/// Moves the beginning of a frame to where little more has room, so that little is read at once.
pub(crate) fn move_to_small_buffer(buffer: &mut BytesMut) {
    if buffer.capacity() - buffer.len() > READ_BYTES_MIN {
        *buffer = in_small_buffer(buffer);
    }
}

/// The beginning of a frame, with room for little more.
pub(crate) fn in_small_buffer(buffer: &[u8]) -> BytesMut {
    let mut small = BytesMut::with_capacity(buffer.len() + READ_BYTES_MIN);
    small.extend_from_slice(buffer);
    small
}
