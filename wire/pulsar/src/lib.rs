//! The Pulsar binary protocol as pure functions over bytes: no sockets, no clock, no runtime.
//!
//! A connection carries frames. [`decode_frame`] cuts one off a receive buffer without copying it and gives its
//! [`Command`] and what follows the command; [`encode_simple`] and its siblings append frames to a send buffer.
//! What follows SEND and MESSAGE is also what a ledger stores: [`parse_payload`] reads its headers in one pass
//! without allocating, and [`SingleMessages`] walks the messages of an uncompressed batch.
//!
//! Promises, each held by a property test: no input panics; no length read from the wire is trusted before it was
//! compared with the bytes at hand; what is encoded here decodes to the same, here and with prost.
//!
//! The schema is `proto/PulsarApi.proto`, its generated types are in [`proto`]. [`Command`] stands in for the
//! generated `BaseCommand`, whose 60 optional fields cost too much per frame.

mod batch;
mod command;
mod fields;
mod frame;
mod headers;
mod key_hash;
pub mod marker;
mod payload;

/// Generated from `proto/PulsarApi.proto`; a test compares.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, missing_docs)]
#[rustfmt::skip]
pub mod proto;

pub use batch::{SingleMessage, SingleMessages, append_single_message};
pub use command::{Command, DecodeError, NO_REQUEST};
pub use fields::{FieldError, Span};
pub use frame::{
    DEFAULT_MAX_FRAME_SIZE, DEFAULT_MAX_MESSAGE_SIZE, FRAME_PADDING, Frame, FrameError, FrameRef, decode_frame,
    encode_simple, frame_size, peek_frame,
};
pub use headers::{MessageHeader, SendHeader, encode_message_header, encode_send_header, encode_send_receipt};
pub use key_hash::{STICKY_HASH_RANGE, consistent_hash_slot, murmur3_32, sticky_hash_of_key, sticky_hash_slot};
pub use payload::{
    BrokerEntry, Chunk, EntryMeta, MAGIC_BROKER_ENTRY, MAGIC_CHECKSUM, PayloadError, PayloadView, TxnId,
    encode_broker_entry_metadata, encode_labelled_broker_entry_metadata, encode_payload_header,
    encode_payload_header_with, frame_payload, parse_payload, payload_header_len, strip_broker_entry_metadata,
    topic_label,
};

/// CRC32C (Castagnoli), the checksum of payloads.
pub fn crc32c(data: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(data)
}

/// CRC32C of all parts, one behind the other.
pub fn crc32c_of(parts: &[&[u8]]) -> u32 {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| crc.update(part));
    crc.finalize() as u32
}

/// CRC32C of `a` followed by `b`, from the checksums of both and the length of `b`. It takes some 20 µs: for what is done once.
pub fn crc32c_combine(a: u32, b: u32, b_len: u64) -> u32 {
    crc_fast::checksum_combine(crc_fast::CrcAlgorithm::Crc32Iscsi, u64::from(a), u64::from(b), b_len) as u32
}
