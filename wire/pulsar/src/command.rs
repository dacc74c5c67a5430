//! [`Command`]: one variant per command of the protocol, read and written as protobuf's `BaseCommand`.
//!
//! The type ids are also the field numbers of the bodies, so that a command is `type = id` and one field `id`.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use thiserror::Error;

use crate::fields::{FieldError, Fields, Span};
use crate::proto;

/// Why bytes are not a command.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DecodeError {
    #[error("malformed command envelope: {0}")]
    Envelope(#[from] FieldError),
    #[error("the command has no type")]
    NoType,
    #[error("command {0} has no body")]
    NoBody(&'static str),
    #[error("malformed {name}: {source}")]
    Body { name: &'static str, source: prost::DecodeError },
}

macro_rules! commands {
    (
        inline { $($iname:ident($itype:ident) = $iid:literal $iwire:literal;)* }
        boxed { $($bname:ident($btype:ident) = $bid:literal $bwire:literal;)* }
    ) => {
        /// A command with its body. Rare or large bodies are boxed to keep the enum small.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Command {
            $($iname(proto::$itype),)*
            $($bname(Box<proto::$btype>),)*
            /// A type that this version doesn't know. Of its body only field 1 is kept, if that is a number: a request has
            /// its id there.
            Unknown { id: i32, request_id: Option<u64> },
        }

        impl Command {
            /// The protocol's name of the command, as `PARTITIONED_METADATA`; `UNKNOWN` for an unknown one.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$iname(_) => $iwire,)*
                    $(Self::$bname(_) => $bwire,)*
                    Self::Unknown { .. } => "UNKNOWN",
                }
            }

            /// The protocol's number of the command.
            pub fn type_id(&self) -> i32 {
                match self {
                    $(Self::$iname(_) => $iid,)*
                    $(Self::$bname(_) => $bid,)*
                    Self::Unknown { id, .. } => *id,
                }
            }

            fn decode_body(id: i32, body: Option<&[u8]>) -> Result<Self, DecodeError> {
                match id {
                    $($iid => decode_as(body, $iwire).map(Self::$iname),)*
                    $($bid => decode_as(body, $bwire).map(Self::$bname),)*
                    id => Ok(Self::Unknown { id, request_id: body.and_then(find_request_id) }),
                }
            }

            fn body_len(&self) -> usize {
                match self {
                    $(Self::$iname(body) => body.encoded_len(),)*
                    $(Self::$bname(body) => body.encoded_len(),)*
                    Self::Unknown { request_id: Some(id), .. } => key_len(REQUEST_ID_FIELD) + encoded_len_varint(*id),
                    Self::Unknown { request_id: None, .. } => 0,
                }
            }

            fn encode_body(&self, out: &mut impl BufMut) {
                match self {
                    $(Self::$iname(body) => body.encode_raw(out),)*
                    $(Self::$bname(body) => body.encode_raw(out),)*
                    Self::Unknown { request_id: Some(id), .. } => {
                        encode_key(REQUEST_ID_FIELD, WireType::Varint, out);
                        encode_varint(*id, out);
                    }
                    Self::Unknown { request_id: None, .. } => {}
                }
            }
        }

        $(impl From<proto::$itype> for Command {
            fn from(body: proto::$itype) -> Self {
                Self::$iname(body)
            }
        })*
        $(impl From<proto::$btype> for Command {
            fn from(body: proto::$btype) -> Self {
                Self::$bname(Box::new(body))
            }
        })*
    };
}

commands! {
    inline {
        Send(CommandSend) = 6 "SEND";
        SendReceipt(CommandSendReceipt) = 7 "SEND_RECEIPT";
        SendError(CommandSendError) = 8 "SEND_ERROR";
        Message(CommandMessage) = 9 "MESSAGE";
        Ack(CommandAck) = 10 "ACK";
        Flow(CommandFlow) = 11 "FLOW";
        Unsubscribe(CommandUnsubscribe) = 12 "UNSUBSCRIBE";
        Ping(CommandPing) = 18 "PING";
        Pong(CommandPong) = 19 "PONG";
        RedeliverUnacknowledgedMessages(CommandRedeliverUnacknowledgedMessages) = 20 "REDELIVER_UNACKNOWLEDGED_MESSAGES";
        ConsumerStats(CommandConsumerStats) = 25 "CONSUMER_STATS";
        ReachedEndOfTopic(CommandReachedEndOfTopic) = 27 "REACHED_END_OF_TOPIC";
        GetLastMessageId(CommandGetLastMessageId) = 29 "GET_LAST_MESSAGE_ID";
        ActiveConsumerChange(CommandActiveConsumerChange) = 31 "ACTIVE_CONSUMER_CHANGE";
        AckResponse(CommandAckResponse) = 38 "ACK_RESPONSE";
    }
    boxed {
        Connect(CommandConnect) = 2 "CONNECT";
        Connected(CommandConnected) = 3 "CONNECTED";
        Subscribe(CommandSubscribe) = 4 "SUBSCRIBE";
        Producer(CommandProducer) = 5 "PRODUCER";
        Success(CommandSuccess) = 13 "SUCCESS";
        Error(CommandError) = 14 "ERROR";
        CloseProducer(CommandCloseProducer) = 15 "CLOSE_PRODUCER";
        CloseConsumer(CommandCloseConsumer) = 16 "CLOSE_CONSUMER";
        ProducerSuccess(CommandProducerSuccess) = 17 "PRODUCER_SUCCESS";
        PartitionedMetadata(CommandPartitionedTopicMetadata) = 21 "PARTITIONED_METADATA";
        PartitionedMetadataResponse(CommandPartitionedTopicMetadataResponse) = 22 "PARTITIONED_METADATA_RESPONSE";
        Lookup(CommandLookupTopic) = 23 "LOOKUP";
        LookupResponse(CommandLookupTopicResponse) = 24 "LOOKUP_RESPONSE";
        ConsumerStatsResponse(CommandConsumerStatsResponse) = 26 "CONSUMER_STATS_RESPONSE";
        Seek(CommandSeek) = 28 "SEEK";
        GetLastMessageIdResponse(CommandGetLastMessageIdResponse) = 30 "GET_LAST_MESSAGE_ID_RESPONSE";
        GetTopicsOfNamespace(CommandGetTopicsOfNamespace) = 32 "GET_TOPICS_OF_NAMESPACE";
        GetTopicsOfNamespaceResponse(CommandGetTopicsOfNamespaceResponse) = 33 "GET_TOPICS_OF_NAMESPACE_RESPONSE";
        GetSchema(CommandGetSchema) = 34 "GET_SCHEMA";
        GetSchemaResponse(CommandGetSchemaResponse) = 35 "GET_SCHEMA_RESPONSE";
        AuthChallenge(CommandAuthChallenge) = 36 "AUTH_CHALLENGE";
        AuthResponse(CommandAuthResponse) = 37 "AUTH_RESPONSE";
        GetOrCreateSchema(CommandGetOrCreateSchema) = 39 "GET_OR_CREATE_SCHEMA";
        GetOrCreateSchemaResponse(CommandGetOrCreateSchemaResponse) = 40 "GET_OR_CREATE_SCHEMA_RESPONSE";
        NewTxn(CommandNewTxn) = 50 "NEW_TXN";
        NewTxnResponse(CommandNewTxnResponse) = 51 "NEW_TXN_RESPONSE";
        AddPartitionToTxn(CommandAddPartitionToTxn) = 52 "ADD_PARTITION_TO_TXN";
        AddPartitionToTxnResponse(CommandAddPartitionToTxnResponse) = 53 "ADD_PARTITION_TO_TXN_RESPONSE";
        AddSubscriptionToTxn(CommandAddSubscriptionToTxn) = 54 "ADD_SUBSCRIPTION_TO_TXN";
        AddSubscriptionToTxnResponse(CommandAddSubscriptionToTxnResponse) = 55 "ADD_SUBSCRIPTION_TO_TXN_RESPONSE";
        EndTxn(CommandEndTxn) = 56 "END_TXN";
        EndTxnResponse(CommandEndTxnResponse) = 57 "END_TXN_RESPONSE";
        EndTxnOnPartition(CommandEndTxnOnPartition) = 58 "END_TXN_ON_PARTITION";
        EndTxnOnPartitionResponse(CommandEndTxnOnPartitionResponse) = 59 "END_TXN_ON_PARTITION_RESPONSE";
        EndTxnOnSubscription(CommandEndTxnOnSubscription) = 60 "END_TXN_ON_SUBSCRIPTION";
        EndTxnOnSubscriptionResponse(CommandEndTxnOnSubscriptionResponse) = 61 "END_TXN_ON_SUBSCRIPTION_RESPONSE";
        TcClientConnectRequest(CommandTcClientConnectRequest) = 62 "TC_CLIENT_CONNECT_REQUEST";
        TcClientConnectResponse(CommandTcClientConnectResponse) = 63 "TC_CLIENT_CONNECT_RESPONSE";
        WatchTopicList(CommandWatchTopicList) = 64 "WATCH_TOPIC_LIST";
        WatchTopicListSuccess(CommandWatchTopicListSuccess) = 65 "WATCH_TOPIC_LIST_SUCCESS";
        WatchTopicUpdate(CommandWatchTopicUpdate) = 66 "WATCH_TOPIC_UPDATE";
        WatchTopicListClose(CommandWatchTopicListClose) = 67 "WATCH_TOPIC_LIST_CLOSE";
        TopicMigrated(CommandTopicMigrated) = 68 "TOPIC_MIGRATED";
    }
}

const TYPE_FIELD: u32 = 1;
/// Of the body of a request.
const REQUEST_ID_FIELD: u32 = 1;

/// Pulsar's request id of errors that answer no request.
pub const NO_REQUEST: u64 = u64::MAX;

fn decode_as<M: Message + Default>(body: Option<&[u8]>, name: &'static str) -> Result<M, DecodeError> {
    match body {
        Some(body) => M::decode(body).map_err(|source| DecodeError::Body { name, source }),
        // Keep-alives have no fields, and a bare type is enough for them.
        None if matches!(name, "PING" | "PONG") => Ok(M::default()),
        None => Err(DecodeError::NoBody(name)),
    }
}

impl Command {
    /// Decodes a serialized `BaseCommand`: only the body that the type names, any other is skipped.
    ///
    /// # Errors
    /// If `buf` is not protobuf, has no type, lacks the body of a known type, or the body is malformed.
    pub fn decode(buf: &[u8]) -> Result<Self, DecodeError> {
        let id = find_type(buf)?;
        let body = find_body(buf, id)?;
        Self::decode_body(id, body.map(|span| span.of(buf)))
    }

    /// Bytes that [`Command::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        self.encoded_len_with(self.body_len())
    }

    fn encoded_len_with(&self, body_len: usize) -> usize {
        let id = self.type_id();
        let envelope = key_len(TYPE_FIELD) + encoded_len_varint(id as u64);
        match self {
            Self::Unknown { request_id: None, .. } => envelope,
            _ => envelope + key_len(id as u32) + encoded_len_varint(body_len as u64) + body_len,
        }
    }

    /// Appends the command as a `BaseCommand`, without a frame around it. Of an unknown one that is its type, and its request id.
    pub fn encode(&self, out: &mut BytesMut) {
        let body_len = self.body_len();
        out.reserve(self.encoded_len_with(body_len));
        self.encode_with(body_len, out);
    }

    /// Appends `u32` length and command; returns what it appended.
    pub(crate) fn encode_sized(&self, prefix: impl FnOnce(usize, &mut BytesMut), out: &mut BytesMut) {
        let body_len = self.body_len();
        let len = self.encoded_len_with(body_len);
        out.reserve(len + 8);
        prefix(len, out);
        self.encode_with(body_len, out);
    }

    fn encode_with(&self, body_len: usize, out: &mut BytesMut) {
        let id = self.type_id();
        encode_key(TYPE_FIELD, WireType::Varint, out);
        encode_varint(id as u64, out);
        if !matches!(self, Self::Unknown { request_id: None, .. }) {
            encode_key(id as u32, WireType::LengthDelimited, out);
            encode_varint(body_len as u64, out);
            self.encode_body(out);
        }
    }

    /// The name for people: of an unknown command, its number.
    pub fn label(&self) -> Cow<'static, str> {
        match self {
            Self::Unknown { id, .. } => id.to_string().into(),
            known => known.name().into(),
        }
    }

    /// The id that a response to this request, or this response, carries. `None` for commands without one.
    pub fn request_id(&self) -> Option<u64> {
        Some(match self {
            Self::Ack(c) => return c.request_id,
            Self::AckResponse(c) => return c.request_id,
            Self::Subscribe(c) => c.request_id,
            Self::Producer(c) => c.request_id,
            Self::Unsubscribe(c) => c.request_id,
            Self::Success(c) => c.request_id,
            Self::Error(c) => c.request_id,
            Self::CloseProducer(c) => c.request_id,
            Self::CloseConsumer(c) => c.request_id,
            Self::ProducerSuccess(c) => c.request_id,
            Self::PartitionedMetadata(c) => c.request_id,
            Self::PartitionedMetadataResponse(c) => c.request_id,
            Self::Lookup(c) => c.request_id,
            Self::LookupResponse(c) => c.request_id,
            Self::ConsumerStats(c) => c.request_id,
            Self::ConsumerStatsResponse(c) => c.request_id,
            Self::Seek(c) => c.request_id,
            Self::GetLastMessageId(c) => c.request_id,
            Self::GetLastMessageIdResponse(c) => c.request_id,
            Self::GetTopicsOfNamespace(c) => c.request_id,
            Self::GetTopicsOfNamespaceResponse(c) => c.request_id,
            Self::GetSchema(c) => c.request_id,
            Self::GetSchemaResponse(c) => c.request_id,
            Self::GetOrCreateSchema(c) => c.request_id,
            Self::GetOrCreateSchemaResponse(c) => c.request_id,
            Self::NewTxn(c) => c.request_id,
            Self::NewTxnResponse(c) => c.request_id,
            Self::AddPartitionToTxn(c) => c.request_id,
            Self::AddPartitionToTxnResponse(c) => c.request_id,
            Self::AddSubscriptionToTxn(c) => c.request_id,
            Self::AddSubscriptionToTxnResponse(c) => c.request_id,
            Self::EndTxn(c) => c.request_id,
            Self::EndTxnResponse(c) => c.request_id,
            Self::EndTxnOnPartition(c) => c.request_id,
            Self::EndTxnOnPartitionResponse(c) => c.request_id,
            Self::EndTxnOnSubscription(c) => c.request_id,
            Self::EndTxnOnSubscriptionResponse(c) => c.request_id,
            Self::TcClientConnectRequest(c) => c.request_id,
            Self::TcClientConnectResponse(c) => c.request_id,
            Self::WatchTopicList(c) => c.request_id,
            Self::WatchTopicListSuccess(c) => c.request_id,
            Self::WatchTopicListClose(c) => c.request_id,
            Self::Unknown { request_id, .. } => return *request_id,
            _ => return None,
        })
    }
}

/// Usually the first field, but any order is valid protobuf; the last occurrence counts.
fn find_type(buf: &[u8]) -> Result<i32, DecodeError> {
    if let [0x08, id @ 1..=0x7f, ..] = buf {
        return Ok(i32::from(*id));
    }
    let mut fields = Fields::new(buf, 0, buf.len());
    let mut id = None;
    while let Some((field, value)) = fields.next()? {
        if field == TYPE_FIELD {
            id = Some(value.varint(field)? as i32);
        }
    }
    id.ok_or(DecodeError::NoType)
}

fn find_body(buf: &[u8], id: i32) -> Result<Option<Span>, DecodeError> {
    let mut fields = Fields::new(buf, 0, buf.len());
    let mut body = None;
    while let Some((field, value)) = fields.next()? {
        if field != TYPE_FIELD && i64::from(field) == i64::from(id) {
            body = Some(value.bytes(field)?);
        }
    }
    Ok(body)
}

fn find_request_id(body: &[u8]) -> Option<u64> {
    let mut fields = Fields::new(body, 0, body.len());
    while let Ok(Some((field, value))) = fields.next() {
        if field == REQUEST_ID_FIELD {
            return value.varint(field).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_small() {
        let size = size_of::<Command>();
        assert!(size <= 168, "Command has grown to {size} bytes");
    }

    #[test]
    fn a_known_type_without_body_is_refused_unless_it_is_a_keep_alive() {
        assert_eq!(Command::decode(&[8, 6]), Err(DecodeError::NoBody("SEND")));
        assert_eq!(Command::decode(&[8, 18]), Ok(Command::Ping(proto::CommandPing {})));
        assert_eq!(Command::decode(&[]), Err(DecodeError::NoType));
        assert_eq!(Command::decode(&[8, 79]), Ok(Command::Unknown { id: 79, request_id: None }));
    }

    #[test]
    fn an_unknown_type_keeps_what_may_be_its_request_id() {
        // Field 79 is {1: 300}, {2: 5}, {1: "x"}, and ends inside a field.
        for (body, request_id) in
            [(&[8, 0xac, 2][..], Some(300)), (&[16, 5], None), (&[10, 1, b'x'], None), (&[8], None)]
        {
            let bytes = [&[8, 79, 0xfa, 4, body.len() as u8], body].concat();
            let command = Command::decode(&bytes).unwrap();
            assert_eq!(command, Command::Unknown { id: 79, request_id });
            assert_eq!((command.request_id(), &*command.label()), (request_id, "79"));
            let mut again = BytesMut::new();
            command.encode(&mut again);
            assert_eq!((Command::decode(&again), again.len()), (Ok(command.clone()), command.encoded_len()));
        }
    }

    #[test]
    fn the_body_may_stand_before_the_type_and_others_are_skipped() {
        // field 11 (FLOW) {consumer_id: 3, permits: 9}, field 18 (PING) {}, then the type.
        let bytes = [0x5a, 4, 8, 3, 16, 9, 0x92, 1, 0, 8, 11];
        let flow = proto::CommandFlow { consumer_id: 3, message_permits: 9 };
        assert_eq!(Command::decode(&bytes), Ok(Command::Flow(flow)));
    }
}
