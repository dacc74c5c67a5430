//! The batch format: for each message `u32 size, SingleMessageMetadata, payload`. The walk is over an uncompressed
//! and decrypted payload.

use bytes::{BufMut, BytesMut};
use prost::Message;

use crate::fields::{FieldError, Fields};
use crate::payload::PayloadError;
use crate::proto;

/// One message of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SingleMessage<'a> {
    /// The serialized `SingleMessageMetadata`.
    pub metadata: &'a [u8],
    pub payload: &'a [u8],
    /// `None` if not set or set to 0.
    pub event_time: Option<u64>,
    pub sequence_id: Option<u64>,
    /// Compaction has removed it; not to be delivered.
    pub compacted_out: bool,
    pub null_value: bool,
    pub partition_key: Option<&'a [u8]>,
    pub partition_key_is_base64: bool,
}

impl SingleMessage<'_> {
    /// All of the metadata, decoded by prost.
    ///
    /// # Errors
    /// If a field that the walk skips is malformed.
    pub fn full_metadata(&self) -> Result<proto::SingleMessageMetadata, PayloadError> {
        proto::SingleMessageMetadata::decode(self.metadata).map_err(PayloadError::FullMetadata)
    }
}

/// Walks the messages of a batch; ends after the given number, or with an error.
#[derive(Debug, Clone)]
pub struct SingleMessages<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> SingleMessages<'a> {
    /// `payload` is uncompressed; `num_messages` is the entry's metadata's.
    pub fn new(payload: &'a [u8], num_messages: u32) -> Self {
        Self { rest: payload, left: num_messages }
    }

    /// What is behind the messages walked so far.
    pub fn remainder(&self) -> &'a [u8] {
        self.rest
    }

    fn step(&mut self) -> Result<SingleMessage<'a>, PayloadError> {
        let (size, rest) = self.rest.split_first_chunk::<4>().ok_or(PayloadError::Truncated("message size"))?;
        let size = u32::from_be_bytes(*size) as usize;
        let (metadata, rest) = rest.split_at_checked(size).ok_or(PayloadError::Truncated("single message metadata"))?;
        let (mut message, payload_size) = scan(metadata).map_err(PayloadError::Metadata)?;
        let (payload, rest) = usize::try_from(payload_size)
            .ok()
            .and_then(|size| rest.split_at_checked(size))
            .ok_or(PayloadError::Truncated("message payload"))?;
        message.payload = payload;
        self.rest = rest;
        Ok(message)
    }
}

impl<'a> Iterator for SingleMessages<'a> {
    type Item = Result<SingleMessage<'a>, PayloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let step = self.step();
        self.left = if step.is_ok() { self.left - 1 } else { 0 };
        Some(step)
    }
}

/// The message, still without payload, and the payload's size.
fn scan(metadata: &[u8]) -> Result<(SingleMessage<'_>, i32), FieldError> {
    let mut message = SingleMessage {
        metadata,
        payload: &[],
        event_time: None,
        sequence_id: None,
        compacted_out: false,
        null_value: false,
        partition_key: None,
        partition_key_is_base64: false,
    };
    let mut payload_size = None;
    let mut fields = Fields::new(metadata, 0, metadata.len());
    while let Some((field, value)) = fields.next()? {
        match field {
            2 => message.partition_key = Some(value.bytes(field)?.of(metadata)),
            3 => payload_size = Some(value.varint(field)? as i32),
            4 => message.compacted_out = value.varint(field)? != 0,
            5 => message.event_time = Some(value.varint(field)?).filter(|time| *time != 0),
            6 => message.partition_key_is_base64 = value.varint(field)? != 0,
            8 => message.sequence_id = Some(value.varint(field)?),
            9 => message.null_value = value.varint(field)? != 0,
            _ => {}
        }
    }
    Ok((message, payload_size.ok_or(FieldError::Missing("payload_size"))?))
}

/// Appends one message to a batch. `metadata.payload_size` must be the payload's length.
pub fn append_single_message(metadata: &proto::SingleMessageMetadata, payload: &[u8], batch: &mut BytesMut) {
    debug_assert_eq!(metadata.payload_size as usize, payload.len(), "payload_size");
    let size = metadata.encoded_len();
    batch.reserve(4 + size + payload.len());
    batch.put_u32(size as u32);
    metadata.encode_raw(batch);
    batch.put_slice(payload);
}
