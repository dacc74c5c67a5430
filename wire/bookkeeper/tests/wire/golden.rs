//! Frames as `BookieProtoEncoding` of BookKeeper 4.17 writes them, put together by hand from its source.

use bytes::{Bytes, BytesMut};
use geminga_wire_bookkeeper::{
    Add, Code, Digest, DigestKind, Read, ReplyTo, Request, Response, WireVersion, encode_request, encode_response,
    master_key,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_compact_read_that_fences() {
    let read =
        Read { ledger: 0x0102, entry: -1, fence: true, master_key: Some([0xab; 20]), high_priority: false, wait: None };
    let mut bytes = BytesMut::new();
    encode_request(WireVersion::Compact, 0, &Request::Read(read), &mut bytes);
    let expected = format!("00000028{}{}{}{}", "02020001", "0000000000000102", "ffffffffffffffff", "ab".repeat(20));
    assert_eq!(hex(&bytes), expected);
}

#[test]
fn a_compact_recovery_add_and_its_refusal() {
    let body: Bytes = [&1_i64.to_be_bytes()[..], &2_i64.to_be_bytes(), b"rest"].concat().into();
    let add = Add {
        ledger: 1,
        entry: 2,
        master_key: [0; 20],
        recovery: true,
        high_priority: true,
        deferred_sync: false,
        body,
    };
    let mut bytes = BytesMut::new();
    encode_request(WireVersion::Compact, 0, &Request::Add(add), &mut bytes);
    let ids = "00000000000000010000000000000002";
    assert_eq!(hex(&bytes), format!("0000002c02010006{}{ids}72657374", "00".repeat(20)));
    let reply_to = ReplyTo::Compact { version: 2, operation: 1, ledger: 1, entry: 2, request_id: 0 };
    let mut bytes = BytesMut::new();
    encode_response(&reply_to, Code::Fenced, &Response::Empty, &mut bytes);
    assert_eq!(hex(&bytes), format!("000000180201000000000068{ids}"));
}

#[test]
fn a_protobuf_read_answer_has_the_entry_last() {
    let reply_to = ReplyTo::Protobuf { operation: 1, txn_id: 5, ledger: 1, entry: 2 };
    let response =
        Response::Entry { body: Some(Bytes::from_static(b"xy")), max_lac: Some(1), lac_updated: None, entry: None };
    let mut bytes = BytesMut::new();
    encode_response(&reply_to, Code::Ok, &response, &mut bytes);
    let (header, status) = ("0a06080310011805", "1000");
    assert_eq!(hex(&bytes), format!("00000019{header}{status}a2060c{}", "080010011802280122027879"));
}

#[test]
fn digests_and_keys() {
    // SHA-1 of "ledger".
    assert_eq!(hex(&master_key(b"")), "850bf1071c5e3d8c24235676f8816ae0cbe2f14f");
    let digest = Digest::new(1, DigestKind::Crc32c, b"");
    let head = digest.entry_head(2, 1, 5, &[b"hello"]);
    assert_eq!(head.len(), 36);
}
