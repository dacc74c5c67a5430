//! The protocol between BookKeeper's clients and bookies as pure functions over bytes: no sockets, no clock, no runtime.
//!
//! Frames are a length and what it counts ([`take_frame`]). Their content has one of two forms: *compact*, version 2 and
//! older, which is what the hot path uses, and *protobuf*, version 3. [`decode_request`] tells them apart by the first
//! byte and gives one [`Request`] for both, with a [`ReplyTo`] that remembers how the answer has to look;
//! [`encode_response`] writes it. [`encode_request`] and [`decode_response`] are the client's side.
//!
//! The body of an entry is opaque to a storage node but for its first 24 bytes: ledger, entry and the last add confirmed
//! ([`EntryHead`]). Clients put a digest behind its head ([`Digest`]), which they alone check.
//!
//! Promises, each held by a property test: no input panics; no length read from the wire is trusted before it was
//! compared with the bytes at hand; what is encoded here decodes to the same.
//!
//! Sources of the facts: `BookieProtocol`, `BookieProtoEncoding`, `DigestManager` and `AvailabilityOfEntriesOfLedger` of
//! BookKeeper 4.17, and its BookkeeperProtocol.proto, from which `proto/Bookie.proto` has the numbers.

mod code;
mod compact;
mod digest;
mod entry;
mod entry_list;
mod frame;
mod message;
/// Generated from `proto/Bookie.proto`; a test compares.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, missing_docs)]
#[rustfmt::skip]
pub mod proto;
mod protobuf;

pub use code::Code;
pub use compact::encode_add;
pub use digest::{Digest, DigestError, DigestKind, MasterKey, master_key};
pub use entry::{ENTRY_HEAD_BYTES, EntryHead, LacHead};
pub use entry_list::{EntryList, EntryListError, MAX_GROUPS};
pub use frame::{DEFAULT_MAX_FRAME_BYTES, FrameError, FrameSink, frame_size, take_frame};
pub use message::{
    Add, Answer, BatchRead, ENTRY_NONE, Incoming, LAST_ENTRY, Read, ReplyTo, Request, Response, Wait, WireVersion,
    WriteLac, decode_request, decode_response, encode_request, encode_response,
};
