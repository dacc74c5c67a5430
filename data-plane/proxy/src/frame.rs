//! A command with the bytes that it came in or goes out as.

use bytes::{Buf, Bytes, BytesMut};
use geminga_wire_pulsar::{Command, FrameError, encode_simple, peek_frame};

/// Small frames are copied, lest one that waits keeps a whole read buffer in memory.
const COPIED_MAX: usize = 4096;

/// Whatever needs no change is passed on as the bytes that came, so that fields which are newer than this proxy survive.
#[derive(Debug, Clone)]
pub struct Frame {
    pub command: Command,
    pub bytes: Bytes,
}

impl Frame {
    pub fn new(command: impl Into<Command>) -> Self {
        let command = command.into();
        let mut bytes = BytesMut::new();
        encode_simple(&command, &mut bytes);
        Self { command, bytes: bytes.freeze() }
    }

    /// Takes one whole frame off the front of `buffer`; `None` while it is incomplete.
    ///
    /// # Errors
    /// When what is there is no frame, or is one of more than `max` bytes.
    pub fn take(buffer: &mut BytesMut, max: usize) -> Result<Option<Self>, FrameError> {
        let Some(found) = peek_frame(buffer, max)? else { return Ok(None) };
        let (command, size) = (found.command, found.size);
        let bytes = if size <= COPIED_MAX {
            let copy = Bytes::copy_from_slice(&buffer[..size]);
            buffer.advance(size);
            copy
        } else {
            buffer.split_to(size).freeze()
        };
        Ok(Some(Self { command, bytes }))
    }
}
