//! A stream of frames: whole or in pieces gives the same, and what a frame says fits into it.

#![no_main]

use bytes::BytesMut;
use geminga_wire_pulsar::{decode_frame, encode_simple};
use libfuzzer_sys::fuzz_target;

const MAX_FRAME: usize = 64 * 1024;

fuzz_target!(|data: &[u8]| {
    let mut whole = BytesMut::from(data);
    let mut frames = Vec::new();
    let end = loop {
        match decode_frame(&mut whole, MAX_FRAME) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };

    let mut pieces = BytesMut::new();
    let mut again = frames.iter();
    'feed: for piece in data.chunks(7) {
        pieces.extend_from_slice(piece);
        loop {
            match decode_frame(&mut pieces, MAX_FRAME) {
                Ok(Some(frame)) => assert_eq!(Some(&frame), again.next()),
                Ok(None) => break,
                Err(_) => {
                    // An error may show earlier than the whole frame is there, but never where there is none.
                    assert!(end.is_some());
                    break 'feed;
                }
            }
        }
    }
    assert_eq!(again.next(), None);

    for frame in &frames {
        let mut out = BytesMut::new();
        encode_simple(&frame.command, &mut out);
        let decoded = decode_frame(&mut out, usize::MAX).expect("our own frame").expect("a whole frame");
        assert_eq!(format!("{:?}", decoded.command), format!("{:?}", frame.command));
    }
});
