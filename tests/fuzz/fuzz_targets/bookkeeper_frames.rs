//! Frames between BookKeeper's clients and storage nodes, in both versions: what is understood is written again, and then
//! understood the same.

#![no_main]

use bytes::{Bytes, BytesMut};
use geminga_wire_bookkeeper::{
    Digest, DigestKind, EntryList, ReplyTo, Response, WireVersion, decode_request, decode_response, encode_request,
    encode_response, take_frame,
};
use libfuzzer_sys::fuzz_target;

const MAX_FRAME: usize = 64 * 1024;

fuzz_target!(|data: &[u8]| {
    let mut stream = BytesMut::from(data);
    while let Ok(Some(frame)) = take_frame(&mut stream, MAX_FRAME) {
        request(frame.clone());
        response(frame);
    }
    // Without a length before it, which is hard to guess.
    let frame = Bytes::copy_from_slice(data);
    request(frame.clone());
    response(frame.clone());
    body(frame);
});

/// Takes the one frame that was written.
fn written(mut out: BytesMut) -> Bytes {
    let frame = take_frame(&mut out, usize::MAX).expect("our own length").expect("a whole frame");
    assert!(out.is_empty());
    frame
}

fn request(frame: Bytes) {
    let Ok(incoming) = decode_request(frame) else { return };
    let Ok(request) = &incoming.request else { return };
    let (version, txn_id) = match incoming.reply_to {
        ReplyTo::Compact { .. } => (WireVersion::Compact, 0),
        ReplyTo::Protobuf { txn_id, .. } => (WireVersion::Protobuf, txn_id),
    };
    let mut out = BytesMut::new();
    encode_request(version, txn_id, request, &mut out);
    let again = decode_request(written(out)).expect("our own request");
    assert_eq!(again.request.as_ref(), Ok(request));
}

fn response(frame: Bytes) {
    let Ok(answer) = decode_response(frame) else { return };
    if let Response::EntryList(bytes) = &answer.response {
        let _ = EntryList::decode(bytes);
    }
    let mut out = BytesMut::new();
    encode_response(&answer.reply_to, answer.code, &answer.response, &mut out);
    let again = decode_response(written(out)).expect("our own answer");
    assert_eq!(again, answer);
}

/// The bytes of an entry, and the list of a ledger's entries.
fn body(bytes: Bytes) {
    for kind in [DigestKind::Crc32, DigestKind::Crc32c, DigestKind::Hmac, DigestKind::Dummy] {
        let digest = Digest::new(1, kind, b"password");
        if let Ok((head, payload)) = digest.open(1, bytes.clone()) {
            let mut whole = BytesMut::from(&digest.entry_head(1, head.last_add_confirmed, head.length, &[&payload])[..]);
            whole.extend_from_slice(&payload);
            assert_eq!(digest.open(1, whole.freeze()), Ok((head, payload)));
        }
        let _ = digest.open_lac(&bytes);
    }
    if let Ok(list) = EntryList::decode(&bytes) {
        assert_eq!(EntryList::decode(&list.encode()), Ok(list));
    }
}
