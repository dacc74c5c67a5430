//! Version 2 and older: a `u32` with version, operation and flags, then fixed fields. All numbers are big-endian.
//!
//! | operation | request after the first word | answer after the first word |
//! | --- | --- | --- |
//! | 1 add | master key, body (which begins with ledger and entry) | code, ledger, entry |
//! | 2 read | ledger, entry, master key if it fences | code, ledger, entry, body |
//! | 3 authenticate | `Auth` of version 3 | the same |
//! | 7 batch read | ledger, entry, request id, `i32` count, `i64` bytes, master key if it fences | code, ledger, entry, request id, then a `u32` length and the body of each entry |
//!
//! Version 0 had nothing but the operation in its first word.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;

use crate::code::Code;
use crate::digest::MasterKey;
use crate::frame::{FrameError, FrameSink};
use crate::message::{Add, Answer, BatchRead, Incoming, Read, ReplyTo, Request, Response};
use crate::proto;

const VERSION: u8 = 2;
const ADD: u8 = 1;
const READ: u8 = 2;
const AUTHENTICATE: u8 = 3;
const BATCH_READ: u8 = 7;

const FENCE: u16 = 1;
const RECOVERY_ADD: u16 = 2;
const HIGH_PRIORITY: u16 = 4;

const KEY_BYTES: usize = 20;
/// First word, code, ledger and entry.
const ANSWER_HEAD_BYTES: usize = 24;

struct FirstWord {
    version: u8,
    operation: u8,
    flags: u16,
}

impl FirstWord {
    fn decode(word: u32) -> Self {
        match (word >> 24) as u8 {
            0 => Self { version: 0, operation: word as u8, flags: 0 },
            version => Self { version, operation: (word >> 16) as u8, flags: word as u16 },
        }
    }

    fn encode(&self) -> u32 {
        match self.version {
            0 => u32::from(self.operation),
            version => u32::from(version) << 24 | u32::from(self.operation) << 16 | u32::from(self.flags),
        }
    }
}

fn want(frame: &Bytes, bytes: usize, what: &'static str) -> Result<(), FrameError> {
    if frame.len() < bytes { Err(FrameError::TooShort { size: frame.len(), what }) } else { Ok(()) }
}

fn take_key(frame: &mut Bytes) -> Result<MasterKey, FrameError> {
    want(frame, KEY_BYTES, "a master key")?;
    let key = *frame.first_chunk().expect("long enough");
    frame.advance(KEY_BYTES);
    Ok(key)
}

pub fn decode_request(mut frame: Bytes) -> Result<Incoming, FrameError> {
    want(&frame, 4, "its first word")?;
    let FirstWord { version, operation, flags } = FirstWord::decode(frame.get_u32());
    let has = |flag| flags & flag != 0;
    let mut reply_to = ReplyTo::Compact { version, operation, ledger: 0, entry: 0, request_id: 0 };
    let mut about = |ledger, entry, request_id| {
        reply_to = ReplyTo::Compact { version, operation, ledger, entry, request_id };
    };
    let request = match operation {
        ADD => {
            let master_key = take_key(&mut frame)?;
            want(&frame, 16, "an entry")?;
            let (ledger, entry) = (frame.slice(..8).get_i64(), frame.slice(8..16).get_i64());
            about(ledger, entry, 0);
            let add = Add {
                ledger,
                entry,
                master_key,
                recovery: has(RECOVERY_ADD),
                high_priority: has(HIGH_PRIORITY),
                deferred_sync: false,
                body: frame,
            };
            Request::Add(add)
        }
        READ => {
            want(&frame, 16, "a read")?;
            let (ledger, entry) = (frame.get_i64(), frame.get_i64());
            about(ledger, entry, 0);
            let fence = has(FENCE) && version >= 2;
            let master_key = if fence { Some(take_key(&mut frame)?) } else { None };
            Request::Read(Read { ledger, entry, fence, master_key, high_priority: has(HIGH_PRIORITY), wait: None })
        }
        BATCH_READ => {
            want(&frame, 36, "a batch read")?;
            let (ledger, entry, request_id) = (frame.get_i64(), frame.get_i64(), frame.get_i64());
            about(ledger, entry, request_id);
            let (max_count, max_bytes) = (frame.get_i32(), frame.get_i64());
            let fence = has(FENCE) && version >= 2;
            let master_key = if fence { Some(take_key(&mut frame)?) } else { None };
            Request::BatchRead(BatchRead { ledger, entry, request_id, max_count, max_bytes, fence, master_key })
        }
        AUTHENTICATE => {
            let message = proto::Auth::decode(frame).map_err(|error| FrameError::Protobuf(error.to_string()))?;
            Request::Authenticate { plugin: message.plugin_name, payload: message.payload }
        }
        _ if version > VERSION => return Err(FrameError::Unknown),
        _ => return Ok(Incoming { reply_to, request: Err(Code::BadRequest) }),
    };
    let request = if version > VERSION { Err(Code::BadVersion) } else { Ok(request) };
    Ok(Incoming { reply_to, request })
}

pub fn encode_response(reply_to: &ReplyTo, code: Code, response: &Response, out: &mut impl FrameSink) {
    let &ReplyTo::Compact { version, operation, ledger, entry, request_id } = reply_to else {
        unreachable!("the caller looked")
    };
    let first = FirstWord { version: version.min(VERSION), operation, flags: 0 };
    if operation == AUTHENTICATE
        && let Response::Authenticate { plugin, payload } = response
    {
        let message = proto::Auth { plugin_name: plugin.clone(), payload: payload.clone() };
        return write_auth(&first, &message, out);
    }
    let is_batch = operation == BATCH_READ;
    let head_bytes = ANSWER_HEAD_BYTES + if is_batch { 8 } else { 0 };
    let body_bytes = match response {
        Response::Entry { body: Some(body), .. } => body.len(),
        Response::Entries(entries) => entries.iter().map(|entry| 4 + entry.len()).sum(),
        _ => 0,
    };
    out.write(|out| {
        out.put_u32((head_bytes + body_bytes) as u32);
        out.put_u32(first.encode());
        out.put_i32(code.compact());
        out.put_i64(ledger);
        out.put_i64(entry);
        if is_batch {
            out.put_i64(request_id);
        }
    });
    match response {
        Response::Entry { body: Some(body), .. } => out.share(body),
        Response::Entries(entries) => entries.iter().for_each(|entry| {
            out.write(|out| out.put_u32(entry.len() as u32));
            out.share(entry);
        }),
        _ => (),
    }
}

fn write_auth(first: &FirstWord, message: &proto::Auth, out: &mut impl FrameSink) {
    out.write(|out| {
        out.put_u32(4 + message.encoded_len() as u32);
        out.put_u32(first.encode());
        message.encode(out).expect("a growing buffer has room");
    });
}

pub fn encode_request(request: &Request, out: &mut impl FrameSink) {
    let first = |operation, flags| FirstWord { version: VERSION, operation, flags };
    let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
    match request {
        Request::Add(add) => {
            encode_add(&add.master_key, add.recovery, add.high_priority, std::slice::from_ref(&add.body), out);
        }
        Request::Read(read) => {
            let key = read.master_key.filter(|_| read.fence);
            let flags = flag(key.is_some(), FENCE) | flag(read.high_priority, HIGH_PRIORITY);
            out.write(|out| {
                out.put_u32(20 + key.map_or(0, |key| key.len() as u32));
                out.put_u32(first(READ, flags).encode());
                out.put_i64(read.ledger);
                out.put_i64(read.entry);
                out.put_slice(key.as_ref().map_or(&[], |key| &key[..]));
            });
        }
        Request::BatchRead(read) => {
            let key = read.master_key.filter(|_| read.fence);
            out.write(|out| {
                out.put_u32(40 + key.map_or(0, |key| key.len() as u32));
                out.put_u32(first(BATCH_READ, flag(key.is_some(), FENCE)).encode());
                out.put_i64(read.ledger);
                out.put_i64(read.entry);
                out.put_i64(read.request_id);
                out.put_i32(read.max_count);
                out.put_i64(read.max_bytes);
                out.put_slice(key.as_ref().map_or(&[], |key| &key[..]));
            });
        }
        Request::Authenticate { plugin, payload } => {
            let message = proto::Auth { plugin_name: plugin.clone(), payload: payload.clone() };
            write_auth(&first(AUTHENTICATE, 0), &message, out);
        }
        _ => panic!("version 2 of the protocol has no {request:?}"),
    }
}

/// An add whose body comes in parts: head and digest, then the payload.
pub fn encode_add(
    master_key: &MasterKey,
    recovery: bool,
    high_priority: bool,
    body: &[Bytes],
    out: &mut impl FrameSink,
) {
    let flags = if recovery { RECOVERY_ADD } else { 0 } | if high_priority { HIGH_PRIORITY } else { 0 };
    let body_bytes: usize = body.iter().map(Bytes::len).sum();
    out.write(|out| {
        out.put_u32((4 + KEY_BYTES + body_bytes) as u32);
        out.put_u32(FirstWord { version: VERSION, operation: ADD, flags }.encode());
        out.put_slice(master_key);
    });
    body.iter().filter(|part| !part.is_empty()).for_each(|part| out.share(part));
}

pub fn decode_response(mut frame: Bytes) -> Result<Answer, FrameError> {
    want(&frame, 4, "its first word")?;
    let FirstWord { version, operation, .. } = FirstWord::decode(frame.get_u32());
    // Nobody asks in a newer version, and what an answer in one looks like is not known.
    if version > VERSION {
        return Err(FrameError::Unknown);
    }
    if operation == AUTHENTICATE {
        let message = proto::Auth::decode(frame).map_err(|error| FrameError::Protobuf(error.to_string()))?;
        let reply_to = ReplyTo::Compact { version, operation, ledger: 0, entry: 0, request_id: 0 };
        let response = Response::Authenticate { plugin: message.plugin_name, payload: message.payload };
        return Ok(Answer { reply_to, code: Code::Ok, response });
    }
    want(&frame, ANSWER_HEAD_BYTES - 4, "an answer")?;
    let code = Code::from_compact(frame.get_i32());
    let (ledger, entry) = (frame.get_i64(), frame.get_i64());
    let mut request_id = 0;
    let response = match operation {
        ADD => Response::Empty,
        READ if code == Code::Ok => {
            Response::Entry { body: Some(frame), max_lac: None, lac_updated: None, entry: None }
        }
        READ => Response::Empty,
        BATCH_READ => {
            want(&frame, 8, "a request id")?;
            request_id = frame.get_i64();
            let mut entries = Vec::new();
            while !frame.is_empty() {
                want(&frame, 4, "the length of an entry")?;
                let length = frame.get_u32() as usize;
                want(&frame, length, "an entry")?;
                entries.push(frame.split_to(length));
            }
            if code == Code::Ok { Response::Entries(entries) } else { Response::Empty }
        }
        _ => return Err(FrameError::Unknown),
    };
    let reply_to = ReplyTo::Compact { version, operation, ledger, entry, request_id };
    Ok(Answer { reply_to, code, response })
}
