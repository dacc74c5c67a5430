use bytes::{Bytes, BytesMut};
use geminga_wire_bookkeeper::{Digest, DigestKind, FrameError, decode_request, decode_response, take_frame};
use proptest::prelude::*;

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
