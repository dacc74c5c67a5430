//! No bytes make a decoder panic, and no decoder reads past what it was given.

use bytes::BytesMut;
use geminga_wire_pulsar::{
    Command, DEFAULT_MAX_FRAME_SIZE, PayloadView, SingleMessages, decode_frame, encode_broker_entry_metadata,
    frame_payload, parse_payload, proto, strip_broker_entry_metadata,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn use_all_of(view: &PayloadView<'_>) {
    let _ = (view.verify_checksum(), view.sticky_key_hash(), view.full_metadata(), view.meta.last_sequence_id());
    let _ = (view.producer_name(), view.replicated_from(), view.partition_key(), view.ordering_key());
    for message in SingleMessages::new(view.payload(), view.meta.num_messages).flatten() {
        let _ = message.full_metadata();
    }
}

fn try_everything(bytes: &[u8]) {
    let _ = Command::decode(bytes);
    let mut buf = BytesMut::from(bytes);
    while let Ok(Some(frame)) = decode_frame(&mut buf, DEFAULT_MAX_FRAME_SIZE) {
        let _ = (frame.command.name(), frame.command.request_id(), frame.command.encoded_len());
        if let Ok(view) = parse_payload(&frame.payload) {
            use_all_of(&view);
        }
    }
    if let Ok(view) = parse_payload(bytes) {
        use_all_of(&view);
    }
    strip_broker_entry_metadata(&bytes.to_vec().into());
    SingleMessages::new(bytes, u32::MAX).for_each(drop);
}

/// Small numbers make lengths and tags that fit.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => 0u8..32, 1 => any::<u8>()], 0..120)
}

proptest! {
    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..200)) {
        try_everything(&bytes);
    }

    #[test]
    fn plausible_bytes(bytes in plausible()) {
        try_everything(&bytes);
        let mut framed = ((4 + 2 + bytes.len()) as u32).to_be_bytes().to_vec();
        framed.extend_from_slice(&(2u32).to_be_bytes());
        framed.extend_from_slice(&[8, 18]);
        framed.extend_from_slice(&bytes);
        try_everything(&framed);
    }

    #[test]
    fn plausible_metadata(bytes in plausible()) {
        let mut entry = (bytes.len() as u32).to_be_bytes().to_vec();
        entry.extend_from_slice(&bytes);
        try_everything(&entry);
        // Whatever the scan accepts as a whole, prost accepts in the fields that both read.
        if let (Ok(view), Ok(full)) = (parse_payload(&entry), proto_metadata(&bytes)) {
            prop_assert_eq!(view.meta.sequence_id, full.sequence_id);
            prop_assert_eq!(view.producer_name(), full.producer_name);
        }
    }
}

fn proto_metadata(bytes: &[u8]) -> Result<proto::MessageMetadata, prost::DecodeError> {
    prost::Message::decode(bytes)
}

#[test]
fn every_truncation_of_an_entry_is_refused_or_its_checksum_fails() {
    let metadata = proto::MessageMetadata {
        producer_name: "producer".into(),
        partition_key: Some("key".into()),
        uuid: Some("chunk".into()),
        ..Default::default()
    };
    let mut entry = BytesMut::new();
    encode_broker_entry_metadata(1, Some(2), &mut entry);
    entry.extend_from_slice(&frame_payload(&metadata, b"some payload"));
    for len in 0..entry.len() {
        try_everything(&entry[..len]);
        assert!(!parse_payload(&entry[..len]).is_ok_and(|view| view.verify_checksum()), "{len} bytes");
    }
}
