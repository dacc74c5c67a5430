//! Frames: a big-endian `u32` length and so many bytes.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

const LENGTH_FIELD: usize = 4;
/// What real clients and bookies of Pulsar's distribution allow: 5 MiB of message and some room around it.
pub const DEFAULT_MAX_FRAME_BYTES: usize = 5 * 1024 * 1024 + 64 * 1024;

/// Why a connection can't go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("a frame of {size} bytes is over the limit of {max}")]
    TooLarge { size: usize, max: usize },
    #[error("a frame of {size} bytes is too short for {what}")]
    TooShort { size: usize, what: &'static str },
    #[error("neither version 2 nor version 3 of the protocol")]
    Unknown,
    #[error("malformed message: {0}")]
    Protobuf(String),
}

/// The size of the frame that `buf` starts with, its length field included, as soon as that is known.
///
/// # Errors
/// [`FrameError::TooLarge`] from the length field alone.
pub fn frame_size(buf: &[u8], max_bytes: usize) -> Result<Option<usize>, FrameError> {
    let Some(field) = buf.first_chunk::<LENGTH_FIELD>() else { return Ok(None) };
    let size = (u32::from_be_bytes(*field) as usize).saturating_add(LENGTH_FIELD);
    if size > max_bytes {
        return Err(FrameError::TooLarge { size, max: max_bytes });
    }
    Ok(Some(size))
}

/// Takes one whole frame off the front of `buf`, without its length field and without a copy; `None` while it is
/// incomplete.
///
/// # Errors
/// See [`frame_size`].
pub fn take_frame(buf: &mut BytesMut, max_bytes: usize) -> Result<Option<Bytes>, FrameError> {
    match frame_size(buf, max_bytes)? {
        Some(size) if buf.len() >= size => {
            buf.advance(LENGTH_FIELD);
            Ok(Some(buf.split_to(size - LENGTH_FIELD).freeze()))
        }
        _ => Ok(None),
    }
}

/// Where frames are written to. The bytes of entries are offered for sharing, so that a sink with vectored writes need
/// not copy them.
pub trait FrameSink {
    fn write(&mut self, encode: impl FnOnce(&mut BytesMut));
    fn share(&mut self, bytes: &Bytes);
}

impl FrameSink for BytesMut {
    fn write(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        encode(self);
    }

    fn share(&mut self, bytes: &Bytes) {
        self.extend_from_slice(bytes);
    }
}
