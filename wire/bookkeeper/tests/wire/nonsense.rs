use bytes::{Bytes, BytesMut};
use geminga_wire_bookkeeper::proto::{self, Operation};
use geminga_wire_bookkeeper::{Digest, DigestKind, FrameError, Response, decode_request, decode_response, take_frame};
use proptest::prelude::*;
use prost::Message;

proptest! {
    #[test]
    fn arbitrary_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), first in 0_usize..6) {
        // So that most of them are taken for something.
        let likely: &[u8] = [&[2, 1, 0, 0][..], &[2, 2, 0, 1], &[2, 7, 0, 1], &[2, 3, 0, 0], &[0x0a, 6, 8, 3, 0x10], &[]][first];
        let count = likely.len().min(bytes.len());
        bytes[..count].copy_from_slice(&likely[..count]);
        let bytes = Bytes::from(bytes);
        let _ = decode_request(bytes.clone());
        let _ = decode_response(bytes.clone());
        for kind in [DigestKind::Crc32, DigestKind::Crc32c, DigestKind::Hmac, DigestKind::Dummy] {
            let digest = Digest::new(1, kind, b"password");
            let _ = digest.open(1, bytes.clone());
            let _ = digest.open_lac(&bytes);
        }
    }
}

#[test]
fn a_frame_that_is_too_large_is_refused_by_its_length_alone() {
    let mut bytes = BytesMut::from(&[0x7f, 0, 0, 0][..]);
    assert!(matches!(take_frame(&mut bytes, 1000), Err(FrameError::TooLarge { .. })));
    let mut bytes = BytesMut::from(&[0, 0, 0, 9, 1][..]);
    assert_eq!(take_frame(&mut bytes, 1000), Ok(None));
}

#[test]
fn an_empty_frame_is_an_error_and_no_panic() {
    let mut bytes = BytesMut::from(&[0, 0, 0, 0][..]);
    let frame = take_frame(&mut bytes, 1000).expect("not too large").expect("whole");
    assert!(decode_request(frame).is_err());
}

/// Found by fuzzing: it was taken for an answer of the other kind.
#[test]
fn only_the_body_of_the_operation_in_the_head_is_an_answer() {
    let head = |operation| proto::Header { version: 3, operation, ..proto::Header::default() };
    let lac =
        proto::ReadLacResponse { lac_body: Some(Bytes::from_static(b"lac")), ..proto::ReadLacResponse::default() };
    let read = |operation: Operation| {
        let message = proto::Response {
            header: head(operation as i32),
            read_lac: Some(lac.clone()),
            ..proto::Response::default()
        };
        decode_response(message.encode_to_vec().into()).expect("whole").response
    };
    assert_eq!(read(Operation::AddEntry), Response::Empty);
    assert_eq!(read(Operation::ReadLac), Response::Lac { explicit: lac.lac_body.clone(), last_entry: None });
}

/// Found by fuzzing: it was read as one of ours, and could not be written again.
#[test]
fn an_answer_in_a_newer_version_is_refused() {
    let answer = |version| decode_response(Bytes::from(vec![version, 3, 0, 0]));
    assert!(answer(2).is_ok(), "an empty answer to authentication");
    assert_eq!(answer(44), Err(FrameError::Unknown));
}
