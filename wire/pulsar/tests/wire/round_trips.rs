//! What is written is read back the same, by us and by prost, whole or in pieces.

use bytes::{BufMut, Bytes, BytesMut};
use geminga_wire_pulsar::{
    Command, DEFAULT_MAX_FRAME_SIZE, FrameError, MessageHeader, SendHeader, SingleMessages, TxnId,
    append_single_message, decode_frame, encode_broker_entry_metadata, encode_labelled_broker_entry_metadata,
    encode_message_header, encode_send_header, encode_send_receipt, encode_simple, frame_payload, frame_size,
    parse_payload, proto, strip_broker_entry_metadata, topic_label,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Protobuf that is well formed but says anything.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let field = prop_oneof![
        (1u32..20, any::<u64>()).prop_map(|(field, value)| (field, WireType::Varint, value, Vec::new())),
        (1u32..20, 0u64..4).prop_map(|(field, value)| (field, WireType::Varint, value, Vec::new())),
        (1u32..20, vec(any::<u8>(), 0..12)).prop_map(|(field, value)| (field, WireType::LengthDelimited, 0, value)),
        (1u32..20, "[a-z]{0,9}").prop_map(|(field, value)| (field, WireType::LengthDelimited, 0, value.into_bytes())),
        // Looks like a MessageIdData, KeyValue or IntRange.
        (1u32..20, 0u8..127).prop_map(|(field, n)| (field, WireType::LengthDelimited, 0, vec![8, n, 16, n])),
    ];
    vec(field, 0..6).prop_map(|fields| {
        let mut out = Vec::new();
        for (field, wire_type, number, bytes) in fields {
            encode_key(field, wire_type, &mut out);
            match wire_type {
                WireType::Varint => encode_varint(number, &mut out),
                _ => {
                    encode_varint(bytes.len() as u64, &mut out);
                    out.put_slice(&bytes);
                }
            }
        }
        out
    })
}

fn envelope(id: i32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_key(1, WireType::Varint, &mut out);
    encode_varint(id as u64, &mut out);
    encode_key(id as u32, WireType::LengthDelimited, &mut out);
    encode_varint(body.len() as u64, &mut out);
    out.put_slice(body);
    out
}

fn encoded(command: &Command) -> Vec<u8> {
    let mut out = BytesMut::new();
    command.encode(&mut out);
    assert_eq!(out.len(), command.encoded_len());
    out.to_vec()
}

fn known(id: i32) -> bool {
    proto::base_command::Type::try_from(id).is_ok()
}

#[test]
fn every_type_of_the_schema_is_a_variant_with_the_schemas_name() {
    for id in 2..=100 {
        let command = Command::decode(&envelope(id, &[])).unwrap();
        assert_eq!(command.type_id(), id);
        match proto::base_command::Type::try_from(id) {
            Ok(kind) => assert_eq!(command.name(), kind.as_str_name()),
            Err(_) => assert_eq!(command, Command::Unknown { id, request_id: None }),
        }
    }
}

proptest! {
    #[test]
    fn commands_agree_with_prosts_base_command(id in 2i32..72, body in any_body()) {
        let bytes = envelope(id, &body);
        let ours = Command::decode(&bytes);
        let prosts = proto::BaseCommand::decode(bytes.as_slice());
        if known(id) {
            prop_assert_eq!(ours.is_ok(), prosts.is_ok(), "{:?} {:?}", ours, prosts);
        }
        if let (true, Ok(ours), Ok(prosts)) = (known(id), ours, prosts) {
            let again = encoded(&ours);
            prop_assert_eq!(&again, &prosts.encode_to_vec());
            prop_assert_eq!(Command::decode(&again), Ok(ours));
        }
    }

    #[test]
    fn frames_survive_any_fragmentation(
        frames in vec((2i32..69, any_body(), vec(any::<u8>(), 0..40)), 1..6),
        cuts in vec(1usize..30, 1..10),
    ) {
        let mut wire = Vec::new();
        let mut expected = Vec::new();
        for (id, body, payload) in frames {
            let command = envelope(id, &body);
            let Ok(decoded) = Command::decode(&command) else { continue };
            wire.put_u32((4 + command.len() + payload.len()) as u32);
            wire.put_u32(command.len() as u32);
            wire.put_slice(&command);
            wire.put_slice(&payload);
            expected.push((decoded, payload));
        }
        let mut buf = BytesMut::new();
        let mut found = Vec::new();
        let mut rest = wire.as_slice();
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*cut));
            buf.extend_from_slice(now);
            while let Some(frame) = decode_frame(&mut buf, DEFAULT_MAX_FRAME_SIZE).unwrap() {
                found.push((frame.command, frame.payload.to_vec()));
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(buf.is_empty());
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn hot_headers_are_what_prost_would_write(
        ids in any::<[u64; 4]>(),
        partition in -1i32..9,
        batch_index in option::of(any::<i32>()),
        redelivery_count in any::<u32>(),
        ack_set in vec(any::<i64>(), 0..4),
        epoch in option::of(any::<u64>()),
        txn in option::of(any::<(u64, u64)>()),
        flags in any::<[bool; 2]>(),
    ) {
        let message_id = proto::MessageIdData {
            ledger_id: ids[0],
            entry_id: ids[1],
            partition: Some(partition).filter(|p| *p != -1),
            batch_index,
            ..Default::default()
        };
        let message = proto::CommandMessage {
            consumer_id: ids[2],
            message_id,
            redelivery_count: Some(redelivery_count).filter(|count| *count > 0),
            ack_set: ack_set.clone(),
            consumer_epoch: epoch,
        };
        let header = MessageHeader {
            consumer_id: ids[2], ledger_id: ids[0], entry_id: ids[1],
            partition, batch_index, redelivery_count, ack_set: &ack_set, consumer_epoch: epoch,
        };
        same_frame(message.into(), |out| encode_message_header(&header, 0, out));

        let receipt = proto::CommandSendReceipt {
            producer_id: ids[2],
            sequence_id: ids[3],
            message_id: Some(proto::MessageIdData { ledger_id: ids[0], entry_id: ids[1], ..Default::default() }),
            highest_sequence_id: epoch.filter(|e| *e != 0),
        };
        same_frame(receipt.into(), |out| encode_send_receipt(ids[2], ids[3], epoch.unwrap_or(0), ids[0], ids[1], out));

        let send = proto::CommandSend {
            producer_id: ids[0],
            sequence_id: ids[1],
            num_messages: Some(redelivery_count as i32 & 0x7fff).filter(|count| *count != 1),
            txnid_least_bits: txn.map(|(least, _)| least),
            txnid_most_bits: txn.map(|(_, most)| most),
            highest_sequence_id: Some(ids[2]).filter(|id| *id != 0),
            is_chunk: Some(true).filter(|_| flags[0]),
            marker: Some(true).filter(|_| flags[1]),
            message_id: None,
        };
        let header = SendHeader {
            producer_id: ids[0],
            sequence_id: ids[1],
            highest_sequence_id: ids[2],
            num_messages: redelivery_count & 0x7fff,
            txn_id: txn.map(|(least_bits, most_bits)| TxnId { most_bits, least_bits }),
            is_chunk: flags[0],
            marker: flags[1],
        };
        same_frame(send.into(), |out| encode_send_header(&header, 0, out));
    }

    #[test]
    fn stored_entries(
        metadata in any_metadata(),
        payload in vec(any::<u8>(), 0..200),
        timestamp in any::<u64>(),
        index in option::of(any::<u64>()),
    ) {
        let sent = frame_payload(&metadata, &payload);
        let mut stored = BytesMut::new();
        encode_broker_entry_metadata(timestamp, index, &mut stored);
        stored.extend_from_slice(&sent);
        let view = parse_payload(&stored).unwrap();
        prop_assert!(view.verify_checksum());
        prop_assert_eq!(view.payload(), payload.as_slice());
        prop_assert_eq!(&view.full_metadata().unwrap(), &metadata);
        let broker = view.broker_entry.unwrap();
        prop_assert_eq!((broker.timestamp, broker.index), (Some(timestamp), index));
        prop_assert_eq!(strip_broker_entry_metadata(&stored.freeze()), sent);
    }

    #[test]
    fn the_first_entry_of_a_ledger_says_whose_it_is(timestamp: u64, index: Option<u64>, topic in "\\PC{0,300}") {
        let sent = frame_payload(&proto::MessageMetadata::default(), b"payload");
        let mut stored = BytesMut::new();
        encode_labelled_broker_entry_metadata(timestamp, index, &topic, &mut stored);
        stored.extend_from_slice(&sent);
        let stored = stored.freeze();
        prop_assert_eq!(topic_label(&stored).unwrap(), Some(topic.as_str()));
        let broker = parse_payload(&stored).unwrap().broker_entry.unwrap();
        prop_assert_eq!((broker.timestamp, broker.index), (Some(timestamp), index));
        prop_assert_eq!(strip_broker_entry_metadata(&stored), sent.clone());
        prop_assert_eq!(topic_label(&sent).unwrap(), None);
    }

    #[test]
    fn entries(metadata in any_metadata(), payload in vec(any::<u8>(), 0..200), flip in any::<usize>()) {
        let entry = frame_payload(&metadata, &payload);
        let view = parse_payload(&entry).unwrap();
        let meta = &view.meta;
        prop_assert!(view.verify_checksum());
        prop_assert_eq!(view.payload(), payload.as_slice());
        prop_assert_eq!(&view.full_metadata().unwrap(), &metadata);
        prop_assert_eq!(view.producer_name(), metadata.producer_name.as_str());
        prop_assert_eq!((meta.sequence_id, meta.publish_time), (metadata.sequence_id, metadata.publish_time));
        prop_assert_eq!((meta.batched, meta.num_messages as i32),
            (metadata.num_messages_in_batch.is_some(), metadata.num_messages_in_batch()));
        prop_assert_eq!(view.partition_key(), metadata.partition_key.as_deref().map(str::as_bytes));
        prop_assert_eq!(view.ordering_key(), metadata.ordering_key.as_deref());
        prop_assert_eq!(view.replicated_from(), metadata.replicated_from.as_deref());
        prop_assert_eq!((meta.deliver_at_time, meta.marker_type), (metadata.deliver_at_time, metadata.marker_type));
        prop_assert_eq!(meta.highest_sequence_id, metadata.highest_sequence_id);
        prop_assert_eq!(meta.encrypted, !metadata.encryption_keys.is_empty());
        prop_assert_eq!(meta.chunk.map(|c| (c.uuid.of(&entry).to_vec(), c.id, c.num_chunks)),
            metadata.uuid.as_ref().filter(|id| !id.is_empty())
                .map(|id| (id.clone().into_bytes(), metadata.chunk_id(), metadata.num_chunks_from_msg())));
        prop_assert_eq!(meta.txn_id.map(|t| (t.least_bits, t.most_bits)),
            metadata.txnid_least_bits.map(|least| (least, metadata.txnid_most_bits())));

        let mut damaged = entry.to_vec();
        let at = 6 + flip % (damaged.len() - 6);
        damaged[at] ^= 1 << (flip % 8);
        if let Ok(view) = parse_payload(&damaged) {
            prop_assert!(!view.verify_checksum(), "a flipped bit at {} went unnoticed", at);
        }
    }

    #[test]
    fn batches(messages in vec((option::of("[a-z]{0,9}"), vec(any::<u8>(), 0..50), option::of(1u64..9)), 0..8)) {
        let mut batch = BytesMut::new();
        for (key, payload, time) in &messages {
            let metadata = proto::SingleMessageMetadata {
                partition_key: key.clone(),
                payload_size: payload.len() as i32,
                event_time: *time,
                ..Default::default()
            };
            append_single_message(&metadata, payload, &mut batch);
        }
        let mut walk = SingleMessages::new(&batch, messages.len() as u32);
        for (key, payload, time) in &messages {
            let found = walk.next().unwrap().unwrap();
            prop_assert_eq!(found.payload, payload.as_slice());
            prop_assert_eq!(found.partition_key, key.as_deref().map(str::as_bytes));
            prop_assert_eq!(found.event_time, *time);
            prop_assert_eq!(&found.full_metadata().unwrap().partition_key, key);
        }
        prop_assert!(walk.next().is_none() && walk.remainder().is_empty());
        let mut longer = SingleMessages::new(&batch, messages.len() as u32 + 1);
        prop_assert!(longer.by_ref().last().unwrap().is_err() && longer.next().is_none());
    }
}

fn same_frame(command: Command, encode: impl FnOnce(&mut BytesMut)) {
    let (mut plain, mut hot) = (BytesMut::new(), BytesMut::new());
    encode_simple(&command, &mut plain);
    encode(&mut hot);
    assert_eq!(hot, plain, "{command:?}");
}

prop_compose! {
    fn any_metadata()(
        producer_name in "\\PC{0,12}",
        numbers in any::<[u64; 3]>(),
        partition_key in option::of("\\PC{0,12}"),
        ordering_key in option::of(vec(any::<u8>(), 0..9)),
        num_messages_in_batch in option::of(1i32..1000),
        highest_sequence_id in option::of(any::<u64>()),
        replicated_from in option::of("[a-z]{1,5}"),
        times in any::<(Option<i64>, Option<i32>)>(),
        chunk in option::of(("[a-z]{1,9}", 0i32..9, 1i32..9)),
        txn in option::of(any::<(u64, u64)>()),
        encrypted in any::<bool>(),
        properties in vec(("[a-z]{0,3}", "[a-z]{0,3}"), 0..3),
    ) -> proto::MessageMetadata {
        proto::MessageMetadata {
            producer_name,
            sequence_id: numbers[0],
            publish_time: numbers[1],
            event_time: Some(numbers[2]).filter(|time| time % 2 == 1),
            partition_key,
            ordering_key: ordering_key.map(Bytes::from),
            num_messages_in_batch,
            highest_sequence_id,
            replicated_from,
            deliver_at_time: times.0,
            marker_type: times.1,
            uuid: chunk.as_ref().map(|c| c.0.clone()),
            chunk_id: chunk.as_ref().map(|c| c.1),
            num_chunks_from_msg: chunk.as_ref().map(|c| c.2),
            txnid_least_bits: txn.map(|t| t.0),
            txnid_most_bits: txn.map(|t| t.1),
            encryption_keys: if encrypted { vec![proto::EncryptionKeys::default()] } else { Vec::new() },
            properties: properties.into_iter().map(|(key, value)| proto::KeyValue { key, value }).collect(),
            ..Default::default()
        }
    }
}

#[test]
fn an_oversized_frame_is_refused_from_its_length_alone() {
    let mut buf = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
    let size = 0xffff_ffff + 4;
    assert_eq!(decode_frame(&mut buf, 1000), Err(FrameError::TooLarge { size, max: 1000 }));
    assert_eq!(frame_size(&[0, 0, 3, 0xe4], 1000), Ok(Some(1000)));
    assert!(frame_size(&[0, 0, 3, 0xe5], 1000).is_err());
}

#[test]
fn a_command_longer_than_its_frame_is_refused_at_the_eighth_byte() {
    let mut buf = BytesMut::from(&[0, 0, 0, 20, 0, 0, 0, 17][..]);
    assert_eq!(decode_frame(&mut buf, 1000), Err(FrameError::CommandLength { command: 17, total: 20 }));
}

#[test]
fn the_payload_shares_the_receive_buffer() {
    let mut buf = BytesMut::new();
    encode_send_header(&SendHeader { num_messages: 1, ..Default::default() }, 5, &mut buf);
    buf.put_slice(b"hello");
    let at = buf[buf.len() - 5..].as_ptr();
    let frame = decode_frame(&mut buf, 1000).unwrap().unwrap();
    assert_eq!(frame.payload.as_ptr(), at);
}
