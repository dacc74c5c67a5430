//! The frames of the hot path, written field by field into a reused buffer: no command object, no allocation.

use bytes::{BufMut, BytesMut};
use prost::encoding::{encode_varint, encoded_len_varint};

const SEND: u8 = 6;
const SEND_RECEIPT: u8 = 7;
const MESSAGE: u8 = 9;

/// What a MESSAGE frame says about the entry that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageHeader<'a> {
    pub consumer_id: u64,
    pub ledger_id: u64,
    pub entry_id: u64,
    /// -1, which is not written, for a topic that is no partition.
    pub partition: i32,
    pub batch_index: Option<i32>,
    pub redelivery_count: u32,
    /// The messages of a batch that are not acknowledged yet; empty: all of them.
    pub ack_set: &'a [i64],
    pub consumer_epoch: Option<u64>,
}

/// What a SEND frame says about the payload that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendHeader {
    pub producer_id: u64,
    pub sequence_id: u64,
    /// Of a batch; 0 is not written.
    pub highest_sequence_id: u64,
    /// 1 is not written.
    pub num_messages: u32,
    pub txn_id: Option<crate::TxnId>,
    pub is_chunk: bool,
    pub marker: bool,
}

fn varint_field_len(value: u64) -> usize {
    1 + encoded_len_varint(value)
}

/// `field` must be below 16.
fn put_varint_field(field: u8, value: u64, out: &mut BytesMut) {
    out.put_u8(field << 3);
    encode_varint(value, out);
}

/// As protobuf writes an `int32`: sign-extended.
fn int32(value: i32) -> u64 {
    i64::from(value) as u64
}

/// Lengths, type and the body's tag and length, up to where the body starts.
fn put_envelope(type_id: u8, body_len: usize, payload_len: usize, out: &mut BytesMut) {
    let command_len = 2 + 1 + encoded_len_varint(body_len as u64) + body_len;
    out.reserve(8 + command_len);
    out.put_u32((4 + command_len + payload_len) as u32);
    out.put_u32(command_len as u32);
    out.put_slice(&[0x08, type_id, (type_id << 3) | 2]);
    encode_varint(body_len as u64, out);
}

/// Appends a MESSAGE frame up to its payload: `payload_len` bytes (an entry as it is stored) must follow on the wire.
pub fn encode_message_header(header: &MessageHeader<'_>, payload_len: usize, out: &mut BytesMut) {
    let mut id_len = varint_field_len(header.ledger_id) + varint_field_len(header.entry_id);
    if header.partition != -1 {
        id_len += varint_field_len(int32(header.partition));
    }
    if let Some(index) = header.batch_index {
        id_len += varint_field_len(int32(index));
    }
    let mut len = varint_field_len(header.consumer_id) + 1 + encoded_len_varint(id_len as u64) + id_len;
    if header.redelivery_count > 0 {
        len += varint_field_len(u64::from(header.redelivery_count));
    }
    len += header.ack_set.iter().map(|word| varint_field_len(*word as u64)).sum::<usize>();
    len += header.consumer_epoch.map_or(0, varint_field_len);

    put_envelope(MESSAGE, len, payload_len, out);
    put_varint_field(1, header.consumer_id, out);
    out.put_u8((2 << 3) | 2);
    encode_varint(id_len as u64, out);
    put_varint_field(1, header.ledger_id, out);
    put_varint_field(2, header.entry_id, out);
    if header.partition != -1 {
        put_varint_field(3, int32(header.partition), out);
    }
    if let Some(index) = header.batch_index {
        put_varint_field(4, int32(index), out);
    }
    if header.redelivery_count > 0 {
        put_varint_field(3, u64::from(header.redelivery_count), out);
    }
    for word in header.ack_set {
        put_varint_field(4, *word as u64, out);
    }
    if let Some(epoch) = header.consumer_epoch {
        put_varint_field(5, epoch, out);
    }
}

/// Appends a whole SEND_RECEIPT frame. A `highest_sequence_id` of 0 is not written.
pub fn encode_send_receipt(
    producer_id: u64,
    sequence_id: u64,
    highest_sequence_id: u64,
    ledger_id: u64,
    entry_id: u64,
    out: &mut BytesMut,
) {
    let id_len = varint_field_len(ledger_id) + varint_field_len(entry_id);
    let mut len = varint_field_len(producer_id) + varint_field_len(sequence_id);
    len += 1 + encoded_len_varint(id_len as u64) + id_len;
    if highest_sequence_id != 0 {
        len += varint_field_len(highest_sequence_id);
    }
    put_envelope(SEND_RECEIPT, len, 0, out);
    put_varint_field(1, producer_id, out);
    put_varint_field(2, sequence_id, out);
    out.put_u8((3 << 3) | 2);
    encode_varint(id_len as u64, out);
    put_varint_field(1, ledger_id, out);
    put_varint_field(2, entry_id, out);
    if highest_sequence_id != 0 {
        put_varint_field(4, highest_sequence_id, out);
    }
}

/// Appends a SEND frame up to its payload: `payload_len` bytes (see [`crate::frame_payload`]) must follow on the wire.
pub fn encode_send_header(header: &SendHeader, payload_len: usize, out: &mut BytesMut) {
    let mut len = varint_field_len(header.producer_id) + varint_field_len(header.sequence_id);
    if header.num_messages != 1 {
        len += varint_field_len(u64::from(header.num_messages));
    }
    if let Some(txn) = header.txn_id {
        len += varint_field_len(txn.least_bits) + varint_field_len(txn.most_bits);
    }
    if header.highest_sequence_id != 0 {
        len += varint_field_len(header.highest_sequence_id);
    }
    len += 2 * (usize::from(header.is_chunk) + usize::from(header.marker));

    put_envelope(SEND, len, payload_len, out);
    put_varint_field(1, header.producer_id, out);
    put_varint_field(2, header.sequence_id, out);
    if header.num_messages != 1 {
        put_varint_field(3, u64::from(header.num_messages), out);
    }
    if let Some(txn) = header.txn_id {
        put_varint_field(4, txn.least_bits, out);
        put_varint_field(5, txn.most_bits, out);
    }
    if header.highest_sequence_id != 0 {
        put_varint_field(6, header.highest_sequence_id, out);
    }
    if header.is_chunk {
        put_varint_field(7, 1, out);
    }
    if header.marker {
        put_varint_field(8, 1, out);
    }
}
