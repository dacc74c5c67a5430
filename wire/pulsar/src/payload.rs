//! What follows SEND and MESSAGE, and what a ledger stores as an entry:
//!
//! ```text
//! [0x0e02 u16, size u32, BrokerEntryMetadata]   put there by a broker, optional
//! [0x0e01 u16, CRC32C u32]                      of all that follows; optional
//! size u32, MessageMetadata
//! payload                                       opaque: maybe a batch, compressed, encrypted
//! ```
//!
//! [`parse_payload`] scans the metadata once, with neither allocation nor copy.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use thiserror::Error;

use crate::fields::{FieldError, Fields, Span, Value};
use crate::{crc32c, crc32c_of, key_hash, proto};

/// Marks broker entry metadata.
pub const MAGIC_BROKER_ENTRY: u16 = 0x0e02;
/// Field of our own in the broker entry metadata of a ledger's first entry: the topic's name.
const TOPIC_LABEL: u32 = 100;
/// Marks a checksum.
pub const MAGIC_CHECKSUM: u16 = 0x0e01;

/// Why bytes are not an entry.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PayloadError {
    #[error("the entry ends inside its {0}")]
    Truncated(&'static str),
    #[error("broker entry metadata: {0}")]
    BrokerEntry(FieldError),
    #[error("message metadata: {0}")]
    Metadata(FieldError),
    #[error("message metadata: {0}")]
    FullMetadata(prost::DecodeError),
    #[error("message metadata says that the batch has {0} messages")]
    BatchSize(i32),
    #[error("an entry of {0} bytes is too long")]
    TooLong(usize),
}

/// What the broker added in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BrokerEntry {
    /// Milliseconds since 1970.
    pub timestamp: Option<u64>,
    /// Index of the entry's last message.
    pub index: Option<u64>,
}

/// A transaction's id; the most significant half is its coordinator's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TxnId {
    pub most_bits: u64,
    pub least_bits: u64,
}

/// Which part of a large message an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chunk {
    /// The same for all chunks of one message.
    pub uuid: Span,
    /// From 0.
    pub id: i32,
    pub num_chunks: i32,
    /// Bytes of the whole message.
    pub total_size: i32,
}

/// What a broker needs of `MessageMetadata`. Spans count from the start of the parsed slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryMeta {
    /// Checked to be UTF-8.
    pub producer_name: Span,
    /// Of a batch: its lowest.
    pub sequence_id: u64,
    pub highest_sequence_id: Option<u64>,
    /// Milliseconds since 1970, the producer's clock.
    pub publish_time: u64,
    /// Milliseconds since 1970; `None` if not set or set to 0.
    pub event_time: Option<u64>,
    /// At least 1.
    pub num_messages: u32,
    /// The payload has the batch format, even if it holds one message only.
    pub batched: bool,
    /// A number of `CompressionType`, as it was sent.
    pub compression: i32,
    pub uncompressed_size: u32,
    pub partition_key: Option<Span>,
    pub partition_key_is_base64: bool,
    pub ordering_key: Option<Span>,
    pub schema_version: Option<Span>,
    /// Milliseconds since 1970.
    pub deliver_at_time: Option<i64>,
    pub chunk: Option<Chunk>,
    /// Present on control messages, which consumers never see.
    pub marker_type: Option<i32>,
    pub txn_id: Option<TxnId>,
    pub encrypted: bool,
    /// Checked to be UTF-8.
    pub replicated_from: Option<Span>,
    /// The message restricts the clusters that it is replicated to.
    pub has_replicate_to: bool,
    pub has_properties: bool,
    pub null_value: bool,
    /// Compaction has removed messages of this batch.
    pub has_compacted_batch_indexes: bool,
}

impl EntryMeta {
    /// The sequence id that deduplication compares: the highest of a batch.
    pub fn last_sequence_id(&self) -> u64 {
        self.highest_sequence_id.map_or(self.sequence_id, |highest| highest.max(self.sequence_id))
    }

    fn scan(buf: &[u8], start: usize, end: usize) -> Result<Self, PayloadError> {
        let mut meta = Self { num_messages: 1, ..Self::default() };
        let mut seen = Seen::default();
        let mut fields = Fields::new(buf, start, end);
        while let Some((field, value)) = fields.next().map_err(PayloadError::Metadata)? {
            meta.set(field, value, buf, &mut seen).map_err(PayloadError::Metadata)?;
        }
        seen.check_required().map_err(PayloadError::Metadata)?;
        if let Some(count) = seen.num_messages {
            if count < 1 {
                return Err(PayloadError::BatchSize(count));
            }
            meta.batched = true;
            meta.num_messages = count as u32;
        }
        meta.txn_id = match (seen.txn_most, seen.txn_least) {
            (None, None) => None,
            (most, least) => Some(TxnId { most_bits: most.unwrap_or(0), least_bits: least.unwrap_or(0) }),
        };
        if seen.chunk_fields && (seen.chunk.num_chunks > 1 || seen.chunk.uuid.len > 0) {
            meta.chunk = Some(seen.chunk);
        }
        Ok(meta)
    }

    #[inline]
    fn set(&mut self, field: u32, value: Value, buf: &[u8], seen: &mut Seen) -> Result<(), FieldError> {
        match field {
            1 => {
                self.producer_name = utf8(value.bytes(field)?, buf, field)?;
                seen.required |= Seen::PRODUCER_NAME;
            }
            2 => {
                self.sequence_id = value.varint(field)?;
                seen.required |= Seen::SEQUENCE_ID;
            }
            3 => {
                self.publish_time = value.varint(field)?;
                seen.required |= Seen::PUBLISH_TIME;
            }
            4 => {
                value.bytes(field)?;
                self.has_properties = true;
            }
            5 => self.replicated_from = Some(utf8(value.bytes(field)?, buf, field)?),
            6 => self.partition_key = Some(value.bytes(field)?),
            7 => {
                value.bytes(field)?;
                self.has_replicate_to = true;
            }
            8 => self.compression = value.varint(field)? as i32,
            9 => self.uncompressed_size = value.varint(field)? as u32,
            11 => seen.num_messages = Some(value.varint(field)? as i32),
            12 => self.event_time = Some(value.varint(field)?).filter(|time| *time != 0),
            13 => {
                value.bytes(field)?;
                self.encrypted = true;
            }
            16 => self.schema_version = Some(value.bytes(field)?),
            17 => self.partition_key_is_base64 = value.varint(field)? != 0,
            18 => self.ordering_key = Some(value.bytes(field)?),
            19 => self.deliver_at_time = Some(value.varint(field)? as i64),
            20 => self.marker_type = Some(value.varint(field)? as i32),
            22 => seen.txn_least = Some(value.varint(field)?),
            23 => seen.txn_most = Some(value.varint(field)?),
            24 => self.highest_sequence_id = Some(value.varint(field)?),
            25 => self.null_value = value.varint(field)? != 0,
            26..=29 => seen.set_chunk(field, value)?,
            31 => self.has_compacted_batch_indexes = true,
            _ => {}
        }
        Ok(())
    }
}

fn utf8(span: Span, buf: &[u8], field: u32) -> Result<Span, FieldError> {
    std::str::from_utf8(span.of(buf)).map(|_| span).map_err(|_| FieldError::Utf8(field))
}

/// What a scan has met that isn't in its result as such.
#[derive(Default)]
struct Seen {
    required: u8,
    num_messages: Option<i32>,
    txn_most: Option<u64>,
    txn_least: Option<u64>,
    chunk_fields: bool,
    chunk: Chunk,
}

impl Seen {
    const PRODUCER_NAME: u8 = 1;
    const SEQUENCE_ID: u8 = 2;
    const PUBLISH_TIME: u8 = 4;

    fn set_chunk(&mut self, field: u32, value: Value) -> Result<(), FieldError> {
        self.chunk_fields = true;
        match field {
            26 => self.chunk.uuid = value.bytes(field)?,
            27 => self.chunk.num_chunks = value.varint(field)? as i32,
            28 => self.chunk.total_size = value.varint(field)? as i32,
            _ => self.chunk.id = value.varint(field)? as i32,
        }
        Ok(())
    }

    fn check_required(&self) -> Result<(), FieldError> {
        let fields = [
            (Self::PRODUCER_NAME, "producer_name"),
            (Self::SEQUENCE_ID, "sequence_id"),
            (Self::PUBLISH_TIME, "publish_time"),
        ];
        match fields.into_iter().find(|(bit, _)| self.required & bit == 0) {
            Some((_, name)) => Err(FieldError::Missing(name)),
            None => Ok(()),
        }
    }
}

/// An entry taken apart. Offsets count from the start of the parsed slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PayloadView<'a> {
    entry: &'a [u8],
    pub broker_entry: Option<BrokerEntry>,
    /// Where the producer's part starts: 0, or behind the broker entry metadata.
    pub client_offset: usize,
    /// The CRC32C that was sent.
    pub checksum: Option<u32>,
    /// Where the bytes start that the checksum covers: the metadata's size field.
    pub checked_offset: usize,
    pub metadata_offset: usize,
    pub payload_offset: usize,
    pub meta: EntryMeta,
}

impl<'a> PayloadView<'a> {
    /// The slice that was parsed, which the spans of `meta` point into.
    pub fn entry(&self) -> &'a [u8] {
        self.entry
    }

    /// True if the checksum matches, or none was sent.
    pub fn verify_checksum(&self) -> bool {
        self.checksum.is_none_or(|sent| sent == crc32c(&self.entry[self.checked_offset..]))
    }

    pub fn producer_name(&self) -> &'a str {
        // Checked by the scan; an empty name would only mean that this type was built wrongly.
        std::str::from_utf8(self.meta.producer_name.of(self.entry)).unwrap_or_default()
    }

    /// The cluster that the message was replicated from.
    pub fn replicated_from(&self) -> Option<&'a str> {
        self.meta.replicated_from.and_then(|span| std::str::from_utf8(span.of(self.entry)).ok())
    }

    pub fn partition_key(&self) -> Option<&'a [u8]> {
        self.meta.partition_key.map(|span| span.of(self.entry))
    }

    pub fn ordering_key(&self) -> Option<&'a [u8]> {
        self.meta.ordering_key.map(|span| span.of(self.entry))
    }

    /// The serialized `MessageMetadata`.
    pub fn metadata(&self) -> &'a [u8] {
        &self.entry[self.metadata_offset..self.payload_offset]
    }

    /// What the producer's application sent: maybe a batch, compressed, encrypted.
    pub fn payload(&self) -> &'a [u8] {
        &self.entry[self.payload_offset..]
    }

    /// All of the metadata, decoded by prost.
    ///
    /// # Errors
    /// If a field that the scan skips is malformed.
    pub fn full_metadata(&self) -> Result<proto::MessageMetadata, PayloadError> {
        proto::MessageMetadata::decode(self.metadata()).map_err(PayloadError::FullMetadata)
    }

    /// The 31-bit hash that Key_Shared places this entry by: of the ordering key, else the partition key, else
    /// producer name and sequence id. [`crate::sticky_hash_slot`] reduces it to a selector's range.
    pub fn sticky_key_hash(&self) -> u32 {
        if let Some(key) = self.ordering_key() {
            key_hash::sticky_hash_of_key(key)
        } else if let Some(key) = self.partition_key() {
            if self.meta.partition_key_is_base64 {
                key_hash::sticky_hash_of_base64(key)
            } else {
                key_hash::sticky_hash_of_key(key)
            }
        } else {
            key_hash::sticky_hash_of_fallback(self.meta.producer_name.of(self.entry), self.meta.sequence_id)
        }
    }
}

fn be16(buf: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(buf.get(at..at + 2)?.try_into().ok()?))
}

fn be32(buf: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(buf.get(at..at + 4)?.try_into().ok()?))
}

/// Where the producer's part starts, and where the broker entry metadata lies before it.
fn broker_entry_bounds(entry: &[u8]) -> Result<Option<(usize, usize)>, PayloadError> {
    if be16(entry, 0) != Some(MAGIC_BROKER_ENTRY) {
        return Ok(None);
    }
    let size = be32(entry, 2).ok_or(PayloadError::Truncated("broker entry metadata"))? as usize;
    if size > entry.len() - 6 {
        return Err(PayloadError::Truncated("broker entry metadata"));
    }
    Ok(Some((6, 6 + size)))
}

fn scan_broker_entry(entry: &[u8], start: usize, end: usize) -> Result<BrokerEntry, FieldError> {
    let mut found = BrokerEntry::default();
    let mut fields = Fields::new(entry, start, end);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => found.timestamp = Some(value.varint(field)?),
            2 => found.index = Some(value.varint(field)?),
            _ => {}
        }
    }
    Ok(found)
}

/// Reads the headers of an entry (of a SEND's or MESSAGE's payload); the checksum is not verified here.
///
/// # Errors
/// If a size doesn't fit, or the metadata is malformed or lacks a required field.
pub fn parse_payload(entry: &[u8]) -> Result<PayloadView<'_>, PayloadError> {
    if u32::try_from(entry.len()).is_err() {
        return Err(PayloadError::TooLong(entry.len()));
    }
    let bounds = broker_entry_bounds(entry)?;
    let broker_entry = match bounds {
        Some((start, end)) => Some(scan_broker_entry(entry, start, end).map_err(PayloadError::BrokerEntry)?),
        None => None,
    };
    let client_offset = bounds.map_or(0, |(_, end)| end);
    let mut at = client_offset;
    let mut checksum = None;
    if be16(entry, at) == Some(MAGIC_CHECKSUM) {
        checksum = Some(be32(entry, at + 2).ok_or(PayloadError::Truncated("checksum"))?);
        at += 6;
    }
    let checked_offset = at;
    let size = be32(entry, at).ok_or(PayloadError::Truncated("metadata size"))? as usize;
    let metadata_offset = at + 4;
    if size > entry.len() - metadata_offset {
        return Err(PayloadError::Truncated("metadata"));
    }
    let payload_offset = metadata_offset + size;
    let meta = EntryMeta::scan(entry, metadata_offset, payload_offset)?;
    Ok(PayloadView {
        entry,
        broker_entry,
        client_offset,
        checksum,
        checked_offset,
        metadata_offset,
        payload_offset,
        meta,
    })
}

/// Appends the prefix that a broker puts before an entry: magic, size, broker timestamp (milliseconds since 1970) and,
/// if given, the index of the entry's last message.
pub fn encode_broker_entry_metadata(timestamp: u64, index: Option<u64>, out: &mut BytesMut) {
    let size = 1 + encoded_len_varint(timestamp) + index.map_or(0, |index| 1 + encoded_len_varint(index));
    out.reserve(6 + size);
    out.put_u16(MAGIC_BROKER_ENTRY);
    out.put_u32(size as u32);
    out.put_u8(1 << 3);
    encode_varint(timestamp, out);
    if let Some(index) = index {
        out.put_u8(2 << 3);
        encode_varint(index, out);
    }
}

/// The same with the topic's name in a field of our own (100), which Pulsar's clients and brokers skip: written with the first
/// entry of a ledger, so that storage alone says what a ledger belongs to.
pub fn encode_labelled_broker_entry_metadata(timestamp: u64, index: Option<u64>, topic: &str, out: &mut BytesMut) {
    let start = out.len();
    encode_broker_entry_metadata(timestamp, index, out);
    encode_varint(u64::from(TOPIC_LABEL) << 3 | 2, out);
    encode_varint(topic.len() as u64, out);
    out.put_slice(topic.as_bytes());
    let size = (out.len() - start - 6) as u32;
    out[start + 2..start + 6].copy_from_slice(&size.to_be_bytes());
}

/// The topic that an entry says it belongs to, which the first entry of a ledger does.
///
/// # Errors
/// The broker's part of the entry is malformed.
pub fn topic_label(entry: &[u8]) -> Result<Option<&str>, PayloadError> {
    let Some((start, end)) = broker_entry_bounds(entry)? else { return Ok(None) };
    let mut fields = Fields::new(entry, start, end);
    while let Some((field, value)) = fields.next().map_err(PayloadError::BrokerEntry)? {
        if field == TOPIC_LABEL {
            let range = value.bytes(field).map_err(PayloadError::BrokerEntry)?;
            return Ok(std::str::from_utf8(range.of(entry)).ok());
        }
    }
    Ok(None)
}

/// The producer's part of an entry, sharing its memory. Bytes without the broker's prefix come back as they are, and so
/// do malformed ones.
pub fn strip_broker_entry_metadata(entry: &Bytes) -> Bytes {
    match broker_entry_bounds(entry) {
        Ok(Some((_, end))) => entry.slice(end..),
        _ => entry.clone(),
    }
}

/// Appends magic, checksum, metadata size and metadata for `payload`, which must follow: together an entry.
pub fn encode_payload_header(metadata: &proto::MessageMetadata, payload: &[u8], out: &mut BytesMut) {
    encode_payload_header_with(metadata, |header| crc32c_of(&[header, payload]), out);
}

/// The same for a payload whose checksum is known: `checksum` gets what stands before the payload, and gives the CRC32C of both.
pub fn encode_payload_header_with(
    metadata: &proto::MessageMetadata,
    checksum: impl FnOnce(&[u8]) -> u32,
    out: &mut BytesMut,
) {
    let size = metadata.encoded_len();
    out.reserve(10 + size);
    out.put_u16(MAGIC_CHECKSUM);
    let checksum_at = out.len();
    out.put_u32(0);
    let checked_from = out.len();
    out.put_u32(size as u32);
    metadata.encode_raw(out);
    let checksum = checksum(&out[checked_from..]);
    out[checksum_at..checked_from].copy_from_slice(&checksum.to_be_bytes());
}

/// Bytes that [`encode_payload_header`] appends.
pub fn payload_header_len(metadata: &proto::MessageMetadata) -> usize {
    10 + metadata.encoded_len()
}

/// An entry in one piece, with its checksum: for clients and for markers.
pub fn frame_payload(metadata: &proto::MessageMetadata, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(10 + metadata.encoded_len() + payload.len());
    encode_payload_header(metadata, payload, &mut out);
    out.put_slice(payload);
    out.freeze()
}
