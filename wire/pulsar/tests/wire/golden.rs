//! Bytes and hashes that Apache Pulsar 4.0.8's `Commands` and `Murmur3_32Hash` gave for the same arguments.

use bytes::BytesMut;
use geminga_wire_pulsar::proto::{self, command_ack::AckType};
use geminga_wire_pulsar::{
    Command, DEFAULT_MAX_FRAME_SIZE, MessageHeader, SendHeader, consistent_hash_slot, decode_frame,
    encode_broker_entry_metadata, encode_message_header, encode_send_header, encode_send_receipt, encode_simple,
    frame_payload, parse_payload, sticky_hash_of_key, sticky_hash_slot, strip_broker_entry_metadata,
};

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> (Command, Vec<u8>) {
    let mut buf = BytesMut::from(unhex(text).as_slice());
    let frame = decode_frame(&mut buf, DEFAULT_MAX_FRAME_SIZE).unwrap().expect("a whole frame");
    assert!(buf.is_empty());
    (frame.command, frame.payload.to_vec())
}

/// Both ways.
fn check(text: &str, command: impl Into<Command>) {
    let command = command.into();
    let mut out = BytesMut::new();
    encode_simple(&command, &mut out);
    assert_eq!(hex(&out), text, "{}", command.name());
    assert_eq!(decode(text), (command, Vec::new()));
}

#[test]
fn frames() {
    check("0000000d00000009080b5a05080310e807", proto::CommandFlow { consumer_id: 3, message_permits: 1000 });
    check("0000000a00000006080d6a020809", proto::CommandSuccess { request_id: 9, schema: None });
    check(
        "0000001b00000017080e72130805100b1a0d6e6f207375636820746f706963",
        proto::CommandError {
            request_id: 5,
            error: proto::ServerError::TopicNotFound.into(),
            message: "no such topic".into(),
        },
    );
    check(
        "0000002c000000280817ba01230a1d70657273697374656e743a2f2f7075626c69632f64656661756c742f7410011800",
        proto::CommandLookupTopic {
            topic: "persistent://public/default/t".into(),
            request_id: 1,
            authoritative: Some(false),
            ..Default::default()
        },
    );
    check(
        "0000001500000011080a520d080210001a05080c10d902404d",
        proto::CommandAck {
            consumer_id: 2,
            ack_type: AckType::Individual.into(),
            message_id: vec![proto::MessageIdData { ledger_id: 12, entry_id: 345, ..Default::default() }],
            request_id: Some(77),
            ..Default::default()
        },
    );
}

#[test]
fn connect() {
    let (command, _) = decode(
        "000000320000002e0802122a0a1250756c7361722d4a6176612d76342e302e381a0020152a046e6f6e65520a08011001180128013001",
    );
    let Command::Connect(connect) = command else { panic!("{command:?}") };
    assert_eq!(connect.client_version, "Pulsar-Java-v4.0.8");
    assert_eq!((connect.protocol_version(), connect.auth_method_name()), (21, "none"));
    let flags = connect.feature_flags.unwrap();
    assert!(
        flags.supports_auth_refresh() && flags.supports_repl_dedup_by_lid_and_eid() && !flags.supports_topic_watchers()
    );
}

/// Pulsar writes a highest sequence id of 0 too; the rest is equal.
#[test]
fn send_receipt() {
    let mut out = BytesMut::new();
    encode_send_receipt(1, 300, 310, 12, 345, &mut out);
    assert_eq!(hex(&out), "000000170000001308073a0f080110ac021a05080c10d90220b602");
    let (command, _) = decode("000000160000001208073a0e080110ac021a05080c10d9022000");
    let Command::SendReceipt(receipt) = command else { panic!("{command:?}") };
    assert_eq!((receipt.sequence_id, receipt.highest_sequence_id()), (300, 0));
}

#[test]
fn send_with_batch_of_two() {
    let text = "000000340000000c0806320808011007180230080e014f08b49c000000150a03702d3110071880d095ffbc3132016b4000580268656c6c6f";
    let (command, payload) = decode(text);
    let Command::Send(send) = command else { panic!("{command:?}") };
    assert_eq!((send.producer_id, send.sequence_id, send.num_messages(), send.highest_sequence_id()), (1, 7, 2, 8));
    let view = parse_payload(&payload).unwrap();
    assert!(view.verify_checksum() && view.checksum.is_some());
    assert_eq!((view.producer_name(), view.payload()), ("p-1", b"hello".as_slice()));
    assert_eq!((view.meta.num_messages, view.meta.batched, view.partition_key()), (2, true, Some(b"k".as_slice())));

    let header =
        SendHeader { producer_id: 1, sequence_id: 7, highest_sequence_id: 8, num_messages: 2, ..Default::default() };
    let mut out = BytesMut::new();
    encode_send_header(&header, payload.len(), &mut out);
    out.extend_from_slice(&payload);
    assert_eq!(hex(&out), text);
}

#[test]
fn message() {
    let header = MessageHeader {
        consumer_id: 4,
        ledger_id: 12,
        entry_id: 345,
        partition: 2,
        redelivery_count: 3,
        ack_set: &[5, -1],
        consumer_epoch: Some(6),
        ..Default::default()
    };
    let mut out = BytesMut::new();
    encode_message_header(&header, 0, &mut out);
    assert_eq!(hex(&out), "000000240000002008094a1c08041207080c10d90218021803200520ffffffffffffffffff012806");
}

#[test]
fn entry() {
    let metadata = proto::MessageMetadata {
        producer_name: "p-1".into(),
        sequence_id: 7,
        publish_time: 1_700_000_000_000,
        ..Default::default()
    };
    let entry = frame_payload(&metadata, b"hello");
    assert_eq!(hex(&entry), "0e017499b3cb0000000e0a03702d3110071880d095ffbc3168656c6c6f");

    let mut stored = BytesMut::new();
    encode_broker_entry_metadata(1_700_000_000_001, Some(41), &mut stored);
    assert_eq!(hex(&stored), "0e02000000090881d095ffbc311029");
    stored.extend_from_slice(&entry);
    let stored = stored.freeze();
    let view = parse_payload(&stored).unwrap();
    let broker = view.broker_entry.unwrap();
    assert_eq!((broker.timestamp, broker.index), (Some(1_700_000_000_001), Some(41)));
    assert!(view.verify_checksum());
    assert_eq!(strip_broker_entry_metadata(&stored), entry);
    assert_eq!(strip_broker_entry_metadata(&entry), entry);
}

#[test]
fn sticky_key_hashes() {
    for (key, hash) in [
        ("", 0),
        ("a", 1_009_084_850),
        ("ab", 465_557_343),
        ("abc", 870_159_354),
        ("abcd", 1_139_631_978),
        ("hello-world", 995_342_265),
        ("ключ", 442_048_578),
        ("key-123456789", 2_081_603_980),
    ] {
        assert_eq!(sticky_hash_of_key(key.as_bytes()), hash, "{key}");
    }
    assert_eq!((sticky_hash_slot(65536), sticky_hash_slot(65535), sticky_hash_slot(870_159_354)), (1, 65535, 37_882));
    assert_eq!((consistent_hash_slot(0), consistent_hash_slot(0x7fff_ffff)), (1, 1));
}

fn hash_of(change: impl FnOnce(&mut proto::MessageMetadata)) -> u32 {
    let mut metadata =
        proto::MessageMetadata { producer_name: "p-1".into(), sequence_id: 7, publish_time: 1, ..Default::default() };
    change(&mut metadata);
    parse_payload(&frame_payload(&metadata, b"")).unwrap().sticky_key_hash()
}

#[test]
fn sticky_key_of_an_entry() {
    for (sequence_id, hash) in [(7, 211_674_044), (-5, 1_483_516_111), (i64::MIN, 364_116_286), (0, 1_959_156_036)] {
        assert_eq!(hash_of(|m| m.sequence_id = sequence_id as u64), hash, "no key, sequence id {sequence_id}");
    }
    assert_eq!(hash_of(|m| m.partition_key = Some("abc".into())), 870_159_354);
    let both = hash_of(|m| {
        m.partition_key = Some("abc".into());
        m.ordering_key = Some(b"xyz".as_slice().into());
    });
    assert_eq!(both, 709_566_417, "the ordering key comes first");
}

#[test]
fn sticky_key_in_base64() {
    const NO_KEY: u32 = 504_741_539;
    for (text, hash) in [
        ("YWJj", 870_159_354),
        ("YWI=", 465_557_343),
        ("YWI", 465_557_343),
        ("YQ==", 1_009_084_850),
        ("YQ", 1_009_084_850),
        ("YR==", 1_009_084_850),
        ("YWJjZA==", 1_139_631_978),
        ("AP//", 218_472_956),
        ("", 0),
        ("YQ=", NO_KEY),
        ("Y", NO_KEY),
        ("YW Jj", NO_KEY),
        ("=", NO_KEY),
        ("YWJj=", NO_KEY),
        ("YWI==", NO_KEY),
        ("YWJjZ===", NO_KEY),
        ("====", NO_KEY),
        ("Y===", NO_KEY),
    ] {
        let found = hash_of(|m| {
            m.partition_key = Some(text.into());
            m.partition_key_b64_encoded = Some(true);
        });
        assert_eq!(found, hash, "{text:?}");
    }
}
