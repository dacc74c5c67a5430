//! Requests and answers, whichever form they have on the wire.

use bytes::Bytes;

use crate::code::Code;
use crate::digest::MasterKey;
use crate::frame::{FrameError, FrameSink};
use crate::{compact, protobuf};

/// As the entry of a read: the last one that the node has of the ledger.
pub const LAST_ENTRY: i64 = -1;
/// As the last add confirmed of a ledger without one.
pub const ENTRY_NONE: i64 = -1;

/// What a client asks a storage node for. Ledgers and entries are as they came, negative ones included.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Add(Add),
    Read(Read),
    BatchRead(BatchRead),
    WriteLac(WriteLac),
    ReadLac {
        ledger: i64,
    },
    /// Makes durable what was added with `deferred_sync`.
    ForceLedger {
        ledger: i64,
    },
    ListEntries {
        ledger: i64,
    },
    /// Disk space and who it is; bit 1 of `requested` asks for the capacity, bit 2 for what is free, bit 4 for the node's id.
    NodeInfo {
        requested: i64,
    },
    Authenticate {
        plugin: String,
        payload: Bytes,
    },
    /// The connection goes on with a TLS handshake after the answer.
    StartTls,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Add {
    pub ledger: i64,
    pub entry: i64,
    pub master_key: MasterKey,
    /// Allowed on a fenced ledger.
    pub recovery: bool,
    pub high_priority: bool,
    /// The answer may come before the entry is durable.
    pub deferred_sync: bool,
    /// Head, digest and payload.
    pub body: Bytes,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    pub ledger: i64,
    /// [`LAST_ENTRY`] for the last.
    pub entry: i64,
    /// Fences the ledger first.
    pub fence: bool,
    pub master_key: Option<MasterKey>,
    pub high_priority: bool,
    /// Waits until the last add confirmed is greater.
    pub wait: Option<Wait>,
}

/// A read that waits for the ledger to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub previous_lac: i64,
    /// Milliseconds; without it the answer comes at once.
    pub timeout_ms: Option<i64>,
    /// The entry behind `previous_lac` is wanted with the answer.
    pub piggyback: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BatchRead {
    pub ledger: i64,
    pub entry: i64,
    /// The client's, as of a transaction in version 3.
    pub request_id: i64,
    /// Entries at most; 0 and less for any number.
    pub max_count: i32,
    /// Bytes of the whole answer at most.
    pub max_bytes: i64,
    pub fence: bool,
    pub master_key: Option<MasterKey>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WriteLac {
    pub ledger: i64,
    pub last_add_confirmed: i64,
    pub master_key: MasterKey,
    /// With the writer's digest; given back as it is.
    pub body: Bytes,
}

/// What an answer has to repeat of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyTo {
    Compact {
        version: u8,
        operation: u8,
        ledger: i64,
        entry: i64,
        /// Of a batch read only.
        request_id: i64,
    },
    Protobuf {
        operation: i32,
        txn_id: u64,
        ledger: i64,
        entry: i64,
    },
}

/// A frame that was understood as far as an answer to it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    pub reply_to: ReplyTo,
    /// An error is the answer's code: the request is of an unknown kind or version, or lacks what it needs.
    pub request: Result<Request, Code>,
}

/// What an answer carries beside its code. What a failed request has nothing of is `Empty`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Response {
    #[default]
    Empty,
    Entry {
        body: Option<Bytes>,
        /// The last add confirmed that the node knows; only version 3 has it.
        max_lac: Option<i64>,
        /// When it last changed, milliseconds since 1970.
        lac_updated: Option<i64>,
        /// Instead of the entry that was asked for.
        entry: Option<i64>,
    },
    Entries(Vec<Bytes>),
    Lac {
        explicit: Option<Bytes>,
        last_entry: Option<Bytes>,
    },
    /// See [`crate::EntryList`].
    EntryList(Bytes),
    /// Bytes.
    NodeInfo {
        total: Option<i64>,
        free: Option<i64>,
        /// By which it goes in metadata. BookKeeper's nodes do not say it.
        id: Option<String>,
    },
    Authenticate {
        plugin: String,
        payload: Bytes,
    },
}

/// An answer as the client sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub reply_to: ReplyTo,
    pub code: Code,
    pub response: Response,
}

/// The forms that a frame can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireVersion {
    /// Version 2: adds, reads, batch reads and authentication.
    Compact,
    /// Version 3: all but batch reads.
    Protobuf,
}

/// Version 3 begins with the tag of its header; as a version of the compact form that number was never given.
fn is_protobuf(frame: &[u8]) -> bool {
    frame.first() == Some(&0x0a)
}

/// # Errors
/// What cannot even be answered; the connection should be closed.
pub fn decode_request(frame: Bytes) -> Result<Incoming, FrameError> {
    if is_protobuf(&frame) { protobuf::decode_request(frame) } else { compact::decode_request(frame) }
}

pub fn encode_response(reply_to: &ReplyTo, code: Code, response: &Response, out: &mut impl FrameSink) {
    match reply_to {
        ReplyTo::Compact { .. } => compact::encode_response(reply_to, code, response, out),
        ReplyTo::Protobuf { .. } => protobuf::encode_response(reply_to, code, response, out),
    }
}

/// Writes a request as a frame. `txn_id` comes back in a version 3 answer; compact ones are told apart by their ledger and
/// entry.
///
/// # Panics
/// If the compact form has no such request.
pub fn encode_request(version: WireVersion, txn_id: u64, request: &Request, out: &mut impl FrameSink) {
    match version {
        WireVersion::Compact => compact::encode_request(request, out),
        WireVersion::Protobuf => protobuf::encode_request(txn_id, request, out),
    }
}

/// # Errors
/// See [`decode_request`].
pub fn decode_response(frame: Bytes) -> Result<Answer, FrameError> {
    if is_protobuf(&frame) { protobuf::decode_response(frame) } else { compact::decode_response(frame) }
}
