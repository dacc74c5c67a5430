//! Frames as a client sends them, and the node's answers.

use bytes::{Bytes, BytesMut};
use geminga_wire_bookkeeper::{
    Answer, DEFAULT_MAX_FRAME_BYTES, Digest, DigestKind, Read, Request, WireVersion, decode_response, encode_add,
    encode_request, take_frame,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub fn frame(encode: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut bytes = BytesMut::new();
    encode(&mut bytes);
    bytes.freeze()
}

pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, request: &[u8]) -> std::io::Result<Answer> {
    stream.write_all(request).await?;
    answer(stream, &mut BytesMut::new()).await
}

/// The next answer; what has come behind it stays in the buffer.
pub async fn answer<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> std::io::Result<Answer> {
    loop {
        if let Some(frame) = take_frame(buffer, DEFAULT_MAX_FRAME_BYTES).expect("a good frame") {
            return Ok(decode_response(frame).expect("a good answer"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

pub fn add(ledger: i64, number: i64, payload: &[u8]) -> Bytes {
    let digest = Digest::new(ledger, DigestKind::Crc32c, b"");
    let head = digest.entry_head(number, number - 1, 0, &[payload]);
    let entry = [head, Bytes::copy_from_slice(payload)];
    frame(|sink| encode_add(&[1; 20], false, false, &entry, sink))
}

/// A read, after fencing where there is a key.
pub fn read(version: WireVersion, ledger: i64, entry: i64, key: Option<[u8; 20]>) -> Bytes {
    let read = Read { ledger, entry, fence: key.is_some(), master_key: key, high_priority: false, wait: None };
    frame(|sink| encode_request(version, 0, &Request::Read(read), sink))
}
