//! Frames: `u32 total`, `u32 command length`, command, and for some commands a payload up to the frame's end.
//! `total` counts what follows it; both are big-endian. Source: Pulsar's "binary protocol specification".

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::command::{Command, DecodeError};

/// Pulsar's default bound for metadata plus payload of one message or batch.
pub const DEFAULT_MAX_MESSAGE_SIZE: usize = 5 * 1024 * 1024;
/// What a frame may be larger than a message.
pub const FRAME_PADDING: usize = 10 * 1024;
/// The bound of a frame, its length field included, that goes with [`DEFAULT_MAX_MESSAGE_SIZE`].
pub const DEFAULT_MAX_FRAME_SIZE: usize = DEFAULT_MAX_MESSAGE_SIZE + FRAME_PADDING;

const LENGTH_FIELD: usize = 4;

/// A received frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub command: Command,
    /// Everything after the command, a slice of the receive buffer; empty if there is nothing. Of SEND and MESSAGE it
    /// is what [`crate::parse_payload`] reads.
    pub payload: Bytes,
}

/// Why a connection can't go on: frame borders are lost, or the peer speaks something else.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FrameError {
    #[error("a frame of {size} bytes is over the limit of {max}")]
    TooLarge { size: usize, max: usize },
    #[error("a command of {command} bytes doesn't fit its frame of {total}")]
    CommandLength { command: usize, total: usize },
    #[error(transparent)]
    Command(#[from] DecodeError),
}

fn be32(buf: &[u8], at: usize) -> Option<usize> {
    let bytes: [u8; 4] = buf.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes) as usize)
}

/// The size of the frame that `buf` starts with, its length field included, as soon as that is known: tells a reader
/// how much to wait for. `max_frame` bounds it.
///
/// # Errors
/// [`FrameError::TooLarge`], or [`FrameError::CommandLength`] if it is too short for any command.
pub fn frame_size(buf: &[u8], max_frame: usize) -> Result<Option<usize>, FrameError> {
    let Some(total) = be32(buf, 0) else {
        return Ok(None);
    };
    let size = total.saturating_add(LENGTH_FIELD);
    if size > max_frame {
        return Err(FrameError::TooLarge { size, max: max_frame });
    }
    if total < LENGTH_FIELD {
        return Err(FrameError::CommandLength { command: 0, total });
    }
    Ok(Some(size))
}

/// A frame that still lies in its receive buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameRef<'a> {
    pub command: Command,
    /// As [`Frame::payload`].
    pub payload: &'a [u8],
    /// Bytes of the whole frame, to be dropped from the buffer's front.
    pub size: usize,
}

/// Reads the frame that `buf` starts with; `None` while it is incomplete.
///
/// # Errors
/// As [`decode_frame`].
pub fn peek_frame(buf: &[u8], max_frame: usize) -> Result<Option<FrameRef<'_>>, FrameError> {
    let Some(size) = frame_size(buf, max_frame)? else {
        return Ok(None);
    };
    // The command's length is refused early too, so that a wrong peer is noticed at its eighth byte.
    let Some(command) = be32(buf, LENGTH_FIELD) else {
        return Ok(None);
    };
    let total = size - LENGTH_FIELD;
    if command > total - LENGTH_FIELD {
        return Err(FrameError::CommandLength { command, total });
    }
    if buf.len() < size {
        return Ok(None);
    }
    let (command, payload) = buf[2 * LENGTH_FIELD..size].split_at(command);
    Ok(Some(FrameRef { command: Command::decode(command)?, payload, size }))
}

/// Takes one whole frame off the front of `buf`; `None` while it is incomplete. Reserves nothing and copies nothing:
/// the payload shares the buffer's memory, which is free for reuse once all of its frames are dropped.
///
/// # Errors
/// See [`FrameError`]; the connection should be closed. An oversized frame is refused from its length field alone.
pub fn decode_frame(buf: &mut BytesMut, max_frame: usize) -> Result<Option<Frame>, FrameError> {
    let Some(FrameRef { command, payload, size }) = peek_frame(buf, max_frame)? else {
        return Ok(None);
    };
    let payload_len = payload.len();
    buf.advance(size - payload_len);
    let payload = if payload_len == 0 { Bytes::new() } else { buf.split_to(payload_len).freeze() };
    Ok(Some(Frame { command, payload }))
}

/// Appends a frame that has no payload.
pub fn encode_simple(command: &Command, out: &mut BytesMut) {
    command.encode_sized(
        |len, out| {
            out.put_u32((LENGTH_FIELD + len) as u32);
            out.put_u32(len as u32);
        },
        out,
    );
}
