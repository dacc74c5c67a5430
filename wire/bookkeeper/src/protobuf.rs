//! Version 3: one protobuf message a frame.

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::code::Code;
use crate::digest::MasterKey;
use crate::frame::{FrameError, FrameSink};
use crate::message::{Add, Answer, Incoming, Read, ReplyTo, Request, Response, Wait, WriteLac};
use crate::proto::{self, Operation, add_request, read_request};

const VERSION: i32 = 3;
const DEFERRED_SYNC: i32 = 1;
/// Numbers of `Response.read` and `ReadResponse.body`.
const READ_FIELD: u32 = 100;
const BODY_FIELD: u32 = 4;

fn malformed(error: &prost::DecodeError) -> FrameError {
    FrameError::Protobuf(error.to_string())
}

fn key(bytes: &[u8]) -> Result<MasterKey, Code> {
    bytes.try_into().map_err(|_| Code::Unauthorized)
}

pub fn decode_request(frame: Bytes) -> Result<Incoming, FrameError> {
    let message = proto::Request::decode(frame).map_err(|error| malformed(&error))?;
    let header = message.header;
    let about = |ledger, entry| ReplyTo::Protobuf { operation: header.operation, txn_id: header.txn_id, ledger, entry };
    let is_high = header.priority.unwrap_or(0) > 0;
    let missing = || (about(0, 0), Err(Code::BadRequest));
    let (reply_to, request) = match Operation::try_from(header.operation) {
        Ok(Operation::AddEntry) => message.add.map_or_else(missing, |add| {
            let request = key(&add.master_key).map(|master_key| {
                Request::Add(Add {
                    ledger: add.ledger_id,
                    entry: add.entry_id,
                    master_key,
                    recovery: add.flag == Some(add_request::Flag::RecoveryAdd as i32),
                    high_priority: is_high,
                    deferred_sync: add.write_flags.unwrap_or(0) & DEFERRED_SYNC != 0,
                    body: add.body,
                })
            });
            (about(add.ledger_id, add.entry_id), request)
        }),
        Ok(Operation::ReadEntry) => message
            .read
            .map_or_else(missing, |read| (about(read.ledger_id, read.entry_id), decode_read(&read, is_high))),
        Ok(Operation::WriteLac) => message.write_lac.map_or_else(missing, |write| {
            let request = key(&write.master_key).map(|master_key| {
                let (ledger, last_add_confirmed) = (write.ledger_id, write.lac);
                Request::WriteLac(WriteLac { ledger, last_add_confirmed, master_key, body: write.body })
            });
            (about(write.ledger_id, 0), request)
        }),
        Ok(Operation::ReadLac) => message
            .read_lac
            .map_or_else(missing, |read| (about(read.ledger_id, 0), Ok(Request::ReadLac { ledger: read.ledger_id }))),
        Ok(Operation::ForceLedger) => message.force.map_or_else(missing, |force| {
            (about(force.ledger_id, 0), Ok(Request::ForceLedger { ledger: force.ledger_id }))
        }),
        Ok(Operation::GetListOfEntriesOfLedger) => message.list.map_or_else(missing, |list| {
            (about(list.ledger_id, 0), Ok(Request::ListEntries { ledger: list.ledger_id }))
        }),
        Ok(Operation::GetBookieInfo) => message.info.map_or_else(missing, |info| {
            (about(0, 0), Ok(Request::NodeInfo { requested: info.requested.unwrap_or(0) }))
        }),
        Ok(Operation::Auth) => message.auth.map_or_else(missing, |auth| {
            (about(0, 0), Ok(Request::Authenticate { plugin: auth.plugin_name, payload: auth.payload }))
        }),
        Ok(Operation::StartTls) => (about(0, 0), Ok(Request::StartTls)),
        _ => missing(),
    };
    let request = if header.version == VERSION { request } else { Err(Code::BadVersion) };
    Ok(Incoming { reply_to, request })
}

fn decode_read(read: &proto::ReadRequest, high_priority: bool) -> Result<Request, Code> {
    let fence = read.flag == Some(read_request::Flag::FenceLedger as i32);
    let master_key = read.master_key.as_deref().map(key).transpose()?;
    let wait = read.previous_lac.filter(|_| !fence).map(|previous_lac| Wait {
        previous_lac,
        timeout_ms: read.time_out,
        piggyback: read.flag == Some(read_request::Flag::EntryPiggyback as i32),
    });
    Ok(Request::Read(Read { ledger: read.ledger_id, entry: read.entry_id, fence, master_key, high_priority, wait }))
}

pub fn encode_request(txn_id: u64, request: &Request, out: &mut impl FrameSink) {
    let mut message =
        proto::Request { header: header(request_operation(request) as i32, txn_id), ..proto::Request::default() };
    match request {
        Request::Add(add) => {
            message.header.priority = add.high_priority.then_some(1);
            message.add = Some(proto::AddRequest {
                ledger_id: add.ledger,
                entry_id: add.entry,
                master_key: Bytes::copy_from_slice(&add.master_key),
                body: add.body.clone(),
                write_flags: add.deferred_sync.then_some(DEFERRED_SYNC),
                flag: add.recovery.then_some(add_request::Flag::RecoveryAdd as i32),
            });
        }
        Request::Read(read) => {
            message.header.priority = read.high_priority.then_some(1);
            let flag = match read.wait {
                _ if read.fence => Some(read_request::Flag::FenceLedger as i32),
                Some(Wait { piggyback: true, .. }) => Some(read_request::Flag::EntryPiggyback as i32),
                _ => None,
            };
            message.read = Some(proto::ReadRequest {
                ledger_id: read.ledger,
                entry_id: read.entry,
                master_key: read.master_key.map(|key| Bytes::copy_from_slice(&key)),
                previous_lac: read.wait.map(|wait| wait.previous_lac),
                time_out: read.wait.and_then(|wait| wait.timeout_ms),
                flag,
            });
        }
        Request::WriteLac(write) => {
            message.write_lac = Some(proto::WriteLacRequest {
                ledger_id: write.ledger,
                lac: write.last_add_confirmed,
                master_key: Bytes::copy_from_slice(&write.master_key),
                body: write.body.clone(),
            });
        }
        &Request::ReadLac { ledger } => message.read_lac = Some(proto::ReadLacRequest { ledger_id: ledger }),
        &Request::ForceLedger { ledger } => message.force = Some(proto::ForceRequest { ledger_id: ledger }),
        &Request::ListEntries { ledger } => message.list = Some(proto::ListRequest { ledger_id: ledger }),
        &Request::NodeInfo { requested } => message.info = Some(proto::InfoRequest { requested: Some(requested) }),
        Request::Authenticate { plugin, payload } => {
            message.auth = Some(proto::Auth { plugin_name: plugin.clone(), payload: payload.clone() });
        }
        Request::StartTls => message.start_tls = Some(proto::StartTlsRequest {}),
        Request::BatchRead(_) => panic!("version 3 of the protocol has no batch read"),
    }
    write_message(&message, out);
}

fn request_operation(request: &Request) -> Operation {
    match request {
        Request::Add(_) => Operation::AddEntry,
        Request::Read(_) => Operation::ReadEntry,
        Request::BatchRead(_) => Operation::BatchReadEntry,
        Request::WriteLac(_) => Operation::WriteLac,
        Request::ReadLac { .. } => Operation::ReadLac,
        Request::ForceLedger { .. } => Operation::ForceLedger,
        Request::ListEntries { .. } => Operation::GetListOfEntriesOfLedger,
        Request::NodeInfo { .. } => Operation::GetBookieInfo,
        Request::Authenticate { .. } => Operation::Auth,
        Request::StartTls => Operation::StartTls,
    }
}

fn header(operation: i32, txn_id: u64) -> proto::Header {
    proto::Header { version: VERSION, operation, txn_id, priority: None }
}

fn write_message(message: &impl Message, out: &mut impl FrameSink) {
    out.write(|out| {
        out.put_u32(message.encoded_len() as u32);
        message.encode(out).expect("a growing buffer has room");
    });
}

pub fn encode_response(reply_to: &ReplyTo, code: Code, response: &Response, out: &mut impl FrameSink) {
    let &ReplyTo::Protobuf { operation, txn_id, ledger, entry } = reply_to else { unreachable!("the caller looked") };
    let status = code.protobuf();
    let mut message = proto::Response { header: header(operation, txn_id), status, ..proto::Response::default() };
    match Operation::try_from(operation) {
        Ok(Operation::AddEntry) => {
            message.add = Some(proto::AddResponse { status, ledger_id: ledger, entry_id: entry });
        }
        Ok(Operation::ReadEntry) => {
            let mut read = proto::ReadResponse {
                status,
                ledger_id: ledger,
                entry_id: entry,
                body: None,
                max_lac: None,
                lac_update_timestamp: None,
            };
            let mut shared = None;
            if let Response::Entry { body, max_lac, lac_updated, entry } = response {
                read.entry_id = entry.unwrap_or(read.entry_id);
                (read.max_lac, read.lac_update_timestamp, shared) = (*max_lac, *lac_updated, body.as_ref());
            }
            return write_read(&message, &read, shared, out);
        }
        Ok(Operation::WriteLac) => {
            message.write_lac = Some(proto::WriteLacResponse { status, ledger_id: ledger });
        }
        Ok(Operation::ReadLac) => {
            let (lac_body, last_entry_body) = match response {
                Response::Lac { explicit, last_entry } => (explicit.clone(), last_entry.clone()),
                _ => (None, None),
            };
            message.read_lac = Some(proto::ReadLacResponse { status, ledger_id: ledger, lac_body, last_entry_body });
        }
        Ok(Operation::ForceLedger) => message.force = Some(proto::ForceResponse { status, ledger_id: ledger }),
        Ok(Operation::GetListOfEntriesOfLedger) => {
            let entries = match response {
                Response::EntryList(bytes) => Some(bytes.clone()),
                _ => None,
            };
            message.list = Some(proto::ListResponse { status, ledger_id: ledger, entries });
        }
        Ok(Operation::GetBookieInfo) => {
            let (total_disk_capacity, free_disk_space, node) = match response {
                Response::NodeInfo { total, free, id } => (*total, *free, id.clone()),
                _ => (None, None, None),
            };
            message.info = Some(proto::InfoResponse { status, total_disk_capacity, free_disk_space, node });
        }
        Ok(Operation::Auth) => {
            if let Response::Authenticate { plugin, payload } = response {
                message.auth = Some(proto::Auth { plugin_name: plugin.clone(), payload: payload.clone() });
            }
        }
        Ok(Operation::StartTls) if code == Code::Ok => message.start_tls = Some(proto::StartTlsResponse {}),
        _ => (),
    }
    write_message(&message, out);
}

/// The body of the entry comes last, so that it need not be copied. `message` has everything but the read.
fn write_read(message: &proto::Response, read: &proto::ReadResponse, body: Option<&Bytes>, out: &mut impl FrameSink) {
    let body_head = |body: &Bytes| key_len(BODY_FIELD) + encoded_len_varint(body.len() as u64);
    let read_bytes = read.encoded_len() + body.map_or(0, |body| body_head(body) + body.len());
    let frame_bytes = message.encoded_len() + key_len(READ_FIELD) + encoded_len_varint(read_bytes as u64) + read_bytes;
    out.write(|mut out| {
        out.put_u32(frame_bytes as u32);
        message.encode(out).expect("a growing buffer has room");
        encode_key(READ_FIELD, WireType::LengthDelimited, &mut out);
        encode_varint(read_bytes as u64, &mut out);
        read.encode(out).expect("a growing buffer has room");
        if let Some(body) = body {
            encode_key(BODY_FIELD, WireType::LengthDelimited, &mut out);
            encode_varint(body.len() as u64, &mut out);
        }
    });
    if let Some(body) = body {
        out.share(body);
    }
}

pub fn decode_response(frame: Bytes) -> Result<Answer, FrameError> {
    let message = proto::Response::decode(frame).map_err(|error| malformed(&error))?;
    let proto::Header { operation, txn_id, .. } = message.header;
    let (mut status, mut ledger, mut entry) = (message.status, 0, 0);
    let mut response = Response::Empty;
    // What answers another operation than the head names is no answer to it.
    match Operation::try_from(operation) {
        Ok(Operation::AddEntry) => {
            let add = message.add.unwrap_or_default();
            (status, ledger, entry) = (add.status, add.ledger_id, add.entry_id);
        }
        Ok(Operation::ReadEntry) => {
            let read = message.read.unwrap_or_default();
            (status, ledger, entry) = (read.status, read.ledger_id, read.entry_id);
            if read.body.is_some() || read.max_lac.is_some() {
                response = Response::Entry {
                    body: read.body,
                    max_lac: read.max_lac,
                    lac_updated: read.lac_update_timestamp,
                    entry: None,
                };
            }
        }
        Ok(Operation::WriteLac) => {
            let write = message.write_lac.unwrap_or_default();
            (status, ledger) = (write.status, write.ledger_id);
        }
        Ok(Operation::ReadLac) => {
            let read = message.read_lac.unwrap_or_default();
            (status, ledger) = (read.status, read.ledger_id);
            response = Response::Lac { explicit: read.lac_body, last_entry: read.last_entry_body };
        }
        Ok(Operation::ForceLedger) => {
            let force = message.force.unwrap_or_default();
            (status, ledger) = (force.status, force.ledger_id);
        }
        Ok(Operation::GetListOfEntriesOfLedger) => {
            let list = message.list.unwrap_or_default();
            (status, ledger) = (list.status, list.ledger_id);
            response = list.entries.map_or(Response::Empty, Response::EntryList);
        }
        Ok(Operation::GetBookieInfo) => {
            let info = message.info.unwrap_or_default();
            status = info.status;
            response =
                Response::NodeInfo { total: info.total_disk_capacity, free: info.free_disk_space, id: info.node };
        }
        Ok(Operation::Auth) => {
            if let Some(auth) = message.auth {
                response = Response::Authenticate { plugin: auth.plugin_name, payload: auth.payload };
            }
        }
        _ => (),
    }
    // Whichever of the two is an error.
    let status = if status == 0 { message.status } else { status };
    let reply_to = ReplyTo::Protobuf { operation, txn_id, ledger, entry };
    Ok(Answer { reply_to, code: Code::from_protobuf(status), response })
}
