//! Single messages, as Pulsar's admin API hands them out: the payload as the body, everything else in headers.

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use geminga_broker::PeekedMessage;
use geminga_model::{Position, TopicName};
use geminga_wire_pulsar::proto;
use prost::Message;

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};
use crate::topics::{existing, partitions};
use crate::{compression, header_case};

/// What Pulsar counts to the size of a batch beside its payload: the marks and lengths before an entry's metadata.
const ENTRY_FRAME_BYTES: usize = 10;

pub(crate) async fn by_id(call: &Call, name: &TopicName, position: Position) -> Result<Answer> {
    if partitions(call, name).await? > 0 {
        return Err(ApiError::not_allowed("GetMessageById is not allowed on partitioned-topic"));
    }
    answer(existing(call, name).await?.read_message(position).await?).await
}

pub(crate) async fn examine(call: &Call, name: &TopicName) -> Result<Answer> {
    if partitions(call, name).await? > 0 {
        return Err(ApiError::not_allowed(
            "Examine messages on a partitioned topic is not allowed, please try examine message on specific topic \
             partition",
        ));
    }
    // As in Pulsar, whatever is not the one is the other.
    let from_end = call.query("initialPosition") != Some("earliest");
    let nth = call.number("messagePosition")?.unwrap_or(1);
    answer(existing(call, name).await?.examine(from_end, nth).await?).await
}

pub(crate) async fn answer(message: PeekedMessage) -> Result<Answer> {
    let mut headers = Headers::default();
    let metadata = &message.metadata;
    headers.set("Message-ID", message.position);
    headers.properties(metadata)?;
    headers.set("publish-time", geminga_broker::iso_date(metadata.publish_time));
    headers.set_time("event-time", metadata.event_time);
    headers.set_time("deliver-at-time", metadata.deliver_at_time.and_then(|time| u64::try_from(time).ok()));
    headers.set_some("Broker-Entry-METADATA-timestamp", message.broker_timestamp.map(geminga_broker::iso_date));
    headers.set_some("Broker-Entry-METADATA-index", message.index);
    headers.set_some("num-batch-message", metadata.num_messages_in_batch);
    if metadata.num_messages_in_batch.is_some() {
        headers.set("batch-size", message.payload.len() + ENTRY_FRAME_BYTES);
    }
    for key in &metadata.encryption_keys {
        headers.add("Base64-encryption-keys", base64(&key.encode_to_vec()));
    }
    headers.set("Is-Encrypted", !metadata.encryption_keys.is_empty());
    headers.set_some("Base64-encryption-param", metadata.encryption_param.as_ref().map(|param| base64(param)));
    headers.set_some("encryption-algo", metadata.encryption_algo.as_ref());
    headers.set("producer-name", &metadata.producer_name);
    headers.set("sequence-id", metadata.sequence_id);
    headers.set_some("replicated-from", metadata.replicated_from.as_ref());
    for cluster in &metadata.replicate_to {
        headers.add("replicated-to", cluster);
    }
    headers.set_some("Base64-schema-version", metadata.schema_version.as_ref().map(|version| base64(version)));
    headers.set_some("partition-key", metadata.partition_key.as_ref());
    headers.set_some("Base64-ordering-key", metadata.ordering_key.as_ref().map(|key| base64(key)));
    headers.set_some("partition-key-b64-encoded", metadata.partition_key_b64_encoded);
    headers.set_some("highest-sequence-id", metadata.highest_sequence_id);
    headers.set_some("marker-type", metadata.marker_type);
    headers.set_some("null-value", metadata.null_value);
    headers.set_some("null-partition-key", metadata.null_partition_key);
    headers.set_some("uuid", metadata.uuid.as_ref());
    headers.set_some("num-chunks-from-msg", metadata.num_chunks_from_msg);
    headers.set_some("total-chunk-msg-size", metadata.total_chunk_msg_size);
    headers.set_some("chunk-id", metadata.chunk_id);
    if let (Some(count), Some(index)) = (metadata.num_chunks_from_msg, metadata.chunk_id) {
        headers.set("PROPERTY-TOTAL-CHUNKS", count);
        headers.set("PROPERTY-CHUNK-ID", index);
    }
    headers.set_some("uncompressed-size", metadata.uncompressed_size.filter(|_| compression(metadata).is_some()));
    headers.set_some("compression", compression(metadata));
    headers.set("txn-uncommitted", false);
    headers.map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let payload = payload(message.payload, &message.metadata);
    let mut response = (StatusCode::OK, headers.map, Body::from(payload)).into_response();
    response.extensions_mut().extend(header_case::exact(&headers.names).await);
    Ok(Answer::Response(response))
}

/// What a consumer would see, unless it is encrypted: nobody here can read that.
fn payload(stored: Bytes, metadata: &proto::MessageMetadata) -> Bytes {
    let codec = proto::CompressionType::try_from(metadata.compression.unwrap_or(0)).ok();
    match codec {
        Some(codec) if codec != proto::CompressionType::None && metadata.encryption_keys.is_empty() => {
            let size = metadata.uncompressed_size.unwrap_or(0);
            compression::uncompressed(codec, &stored, size).unwrap_or(stored)
        }
        _ => stored,
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let shown = digit <= group.len();
            text.push(if shown { DIGITS[(bits >> (18 - 6 * digit) & 63) as usize] as char } else { '=' });
        }
    }
    text
}

/// The codec of a compressed payload.
fn compression(metadata: &proto::MessageMetadata) -> Option<&'static str> {
    match proto::CompressionType::try_from(metadata.compression.unwrap_or(0)) {
        Ok(proto::CompressionType::None) => None,
        Ok(proto::CompressionType::Lz4) => Some("LZ4"),
        Ok(proto::CompressionType::Zlib) => Some("ZLIB"),
        Ok(proto::CompressionType::Zstd) => Some("ZSTD"),
        Ok(proto::CompressionType::Snappy) => Some("SNAPPY"),
        Err(_) => Some("UNKNOWN"),
    }
}

#[derive(Default)]
struct Headers {
    map: HeaderMap,
    /// The names as they were given, which the map has in lower case.
    names: Vec<String>,
}

impl Headers {
    /// Sets `X-Pulsar-<name>`. What cannot be a header's value is left out: the payload still arrives.
    fn set(&mut self, name: &str, value: impl std::fmt::Display) {
        if let Some((name, value)) = self.pair(name, value) {
            self.map.insert(name, value);
        }
    }

    /// One more header of this name.
    fn add(&mut self, name: &str, value: impl std::fmt::Display) {
        if let Some((name, value)) = self.pair(name, value) {
            self.map.append(name, value);
        }
    }

    fn pair(&mut self, name: &str, value: impl std::fmt::Display) -> Option<(HeaderName, HeaderValue)> {
        let exact = format!("X-Pulsar-{name}");
        let pair = (HeaderName::try_from(&exact).ok()?, HeaderValue::try_from(value.to_string()).ok()?);
        self.names.push(exact);
        Some(pair)
    }

    fn set_some(&mut self, name: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    fn set_time(&mut self, name: &str, ms: Option<u64>) {
        self.set_some(name, ms.filter(|ms| *ms > 0).map(geminga_broker::iso_date));
    }

    /// All properties as one JSON object, and one by one for clients before 3.1.
    fn properties(&mut self, metadata: &proto::MessageMetadata) -> Result<()> {
        let pairs = metadata.properties.iter();
        let all: serde_json::Map<String, serde_json::Value> =
            pairs.map(|pair| (pair.key.clone(), pair.value.clone().into())).collect();
        let json = serde_json::to_string(&all)
            .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        self.set("PROPERTY", ascii(&json));
        for pair in &metadata.properties {
            self.set(&format!("PROPERTY-{}", pair.key), &pair.value);
        }
        Ok(())
    }
}

/// JSON with everything beyond ASCII escaped, as headers want it.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let mut units = [0u16; 2];
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_become_ascii_json() {
        assert_eq!(ascii(r#"{"k":"ü😀"}"#), r#"{"k":"\u00fc\ud83d\ude00"}"#);
    }

    #[test]
    fn bytes_become_base64() {
        let all: Vec<String> = ["", "o", "ok", "key", "keys"].iter().map(|text| base64(text.as_bytes())).collect();
        assert_eq!(all, ["", "bw==", "b2s=", "a2V5", "a2V5cw=="]);
    }

    #[tokio::test]
    async fn a_message_becomes_headers_and_body() {
        let metadata = proto::MessageMetadata {
            producer_name: "p".into(),
            sequence_id: 3,
            publish_time: 1_795_519_700_129,
            properties: vec![proto::KeyValue { key: "a b".into(), value: "1".into() }],
            schema_version: Some(vec![0, 0, 0, 0, 0, 0, 0, 2].into()),
            replicate_to: vec!["here".into(), "there".into()],
            encryption_keys: vec![proto::EncryptionKeys { key: "k".into(), ..Default::default() }],
            encryption_param: Some("ab".into()),
            num_chunks_from_msg: Some(3),
            chunk_id: Some(1),
            ..Default::default()
        };
        let message = PeekedMessage {
            position: Position::new(4, 2),
            metadata,
            broker_timestamp: None,
            index: Some(7),
            payload: "probe".into(),
        };
        let Answer::Response(response) = answer(message).await.unwrap() else { panic!("not a response") };
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("X-Pulsar-Message-ID"), Some("4:2"));
        assert_eq!(header("X-Pulsar-PROPERTY"), Some(r#"{"a b":"1"}"#));
        assert_eq!(header("X-Pulsar-publish-time"), Some("2026-11-24T11:28:20.129Z"));
        assert_eq!(header("X-Pulsar-Broker-Entry-METADATA-index"), Some("7"));
        assert_eq!(header("X-Pulsar-num-batch-message"), None);
        assert_eq!(header("X-Pulsar-Base64-schema-version"), Some("AAAAAAAAAAI="));
        let clusters: Vec<_> = response.headers().get_all("X-Pulsar-replicated-to").iter().collect();
        assert_eq!(clusters, ["here", "there"]);
        assert_eq!(header("X-Pulsar-Base64-encryption-keys"), Some("CgFrEgA="), "as protobuf");
        assert_eq!(header("X-Pulsar-Base64-encryption-param"), Some("YWI="));
        assert_eq!(header("X-Pulsar-Is-Encrypted"), Some("true"));
        assert_eq!(header("X-Pulsar-PROPERTY-TOTAL-CHUNKS"), Some("3"));
        assert_eq!(header("X-Pulsar-PROPERTY-CHUNK-ID"), Some("1"));
    }
}
