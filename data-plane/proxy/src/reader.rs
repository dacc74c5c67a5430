//! Frames from a byte stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use geminga_flow::{Budget, UnfinishedFrame};
use geminga_wire_pulsar::{FrameError, frame_size};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::frame::Frame;

const READ_BYTES: usize = 8 << 10;
/// A frame above this is read on only when there is room for all of it.
const LARGE_FRAME: usize = 64 << 10;
/// How long a large frame may take while others wait for the room it has.
const FRAME_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum ReadError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("a frame of {0} bytes does not end, and others wait for its room")]
    SlowFrame(u64),
}

pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    unfinished: UnfinishedFrame,
    pub max_frame: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// `budget` is the room for large frames that it shares with others.
    pub fn new(stream: R, max_frame: usize, budget: &Arc<Budget>) -> Self {
        Self { stream, buffer: BytesMut::new(), unfinished: UnfinishedFrame::new(budget.clone()), max_frame }
    }

    /// The next frame; `None` when the stream has ended. A call that is dropped loses nothing.
    ///
    /// # Errors
    /// When the stream fails, or what it brings are no frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = Frame::take(&mut self.buffer, self.max_frame)? {
                self.unfinished.release();
                return Ok(Some(frame));
            }
            self.make_room().await?;
            if self.buffer.is_empty() {
                // Nothing is kept for a quiet connection but what the next bytes need.
                self.buffer = BytesMut::new();
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn make_room(&mut self) -> Result<(), ReadError> {
        if self.unfinished.bytes() > 0 {
            let overdue = self.unfinished.is_in_the_way(FRAME_PATIENCE);
            return if overdue { Err(ReadError::SlowFrame(self.unfinished.bytes())) } else { Ok(()) };
        }
        let Some(bytes) = frame_size(&self.buffer, self.max_frame)?.filter(|bytes| *bytes > LARGE_FRAME) else {
            return Ok(());
        };
        while !self.unfinished.claim(bytes as u64) {
            self.unfinished.room().await;
        }
        Ok(())
    }

    /// What was read beyond the last frame, and the stream.
    pub fn into_parts(self) -> (BytesMut, R) {
        (self.buffer, self.stream)
    }
}
