//! `/admin/v2/schemas`

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use geminga_broker::{BrokerError, is_valid_schema, schema_type_name, schema_type_number};
use geminga_metadata::{SchemaRecord, SchemaVersion};
use geminga_model::{TopicDomain, TopicName};
use geminga_wire_pulsar::proto;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::{Answer, Call, number};
use crate::error::{ApiError, Result};
use crate::namespaces;
use crate::topics::now_ms;

const KEY_VALUE: &str = "KEY_VALUE";

/// Pulsar's `PostSchemaPayload`.
#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    schema: String,
    #[serde(default)]
    properties: Option<std::collections::BTreeMap<String, String>>,
}

pub(crate) async fn serve(call: &Call, path: &[&str]) -> Result<Answer> {
    let [tenant, local, topic, rest @ ..] = path else { return call.unsupported() };
    let name = TopicName::new(TopicDomain::Persistent, namespaces::name(tenant, local)?, topic)?;
    call.broker.namespace_policies(name.namespace()).await?;
    match (call.method(), rest) {
        ("GET", ["schema"]) => get(call, &name, None).await,
        ("GET", ["schema", version]) => {
            let version: i64 = number(version)?;
            get(call, &name, Some(u64::try_from(version).unwrap_or(u64::MAX))).await
        }
        ("GET", ["schemas"]) => {
            let versions = call.broker.schema_versions(&name).await?;
            let versions = versions.iter().map(described).collect::<Result<Vec<_>>>()?;
            Ok(Answer::Json(json!({ "getSchemaResponses": versions })))
        }
        ("POST", ["schema"]) => {
            let schema = payload(call)?;
            if !is_valid_schema(&schema) || schema.schema_type == proto::schema::Type::AutoConsume as i32 {
                return Err(ApiError::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    format!("Invalid schema definition data for {} schema", schema_type_name(schema.schema_type)),
                ));
            }
            let version = call.broker.put_schema(&name, schema, true).await?;
            Ok(Answer::Json(json!({ "version": { "version": version } })))
        }
        ("DELETE", ["schema"]) => {
            let force = call.flag("force");
            let version = call.broker.delete_schema(&name, force).await?;
            // Of what is gone for good there is no version.
            Ok(Answer::Json(json!({ "version": if force { -1 } else { version as i64 } })))
        }
        ("POST", ["compatibility"]) => {
            // One that is not is answered as a failure, as in Pulsar.
            let strategy =
                call.broker.check_schema_compatible(&name, &payload(call)?).await.map_err(|error| match error {
                    BrokerError::IncompatibleSchema(reason) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, reason),
                    other => other.into(),
                })?;
            let body = Json(json!({ "compatibility": true, "schemaCompatibilityStrategy": strategy }));
            Ok(Answer::Response((StatusCode::ACCEPTED, body).into_response()))
        }
        ("POST", ["version"]) => {
            // An equal schema keeps its version; nothing is added.
            let version = match call.broker.put_schema(&name, payload(call)?, false).await {
                Ok(version) => version as i64,
                Err(BrokerError::IncompatibleSchema(_)) => -1,
                Err(error) => return Err(error.into()),
            };
            Ok(Answer::Json(json!({ "version": version })))
        }
        ("GET", ["metadata"]) => metadata(call, &name).await,
        _ => call.unsupported(),
    }
}

async fn get(call: &Call, name: &TopicName, version: Option<u64>) -> Result<Answer> {
    let found = call.broker.schema(name, version).await?;
    let found = found.ok_or_else(|| ApiError::not_found("Schema not found"))?;
    Ok(Answer::Json(described(&found)?))
}

fn described(schema: &SchemaVersion) -> Result<Value> {
    let record = &schema.schema;
    let kind = schema_type_name(record.schema_type);
    let data = if kind == KEY_VALUE {
        decode_key_value(&record.data)?
    } else {
        String::from_utf8_lossy(&record.data).into_owned()
    };
    Ok(json!({
        "version": schema.version,
        "type": kind,
        "timestamp": record.timestamp,
        "data": data,
        "properties": record.properties,
    }))
}

fn payload(call: &Call) -> Result<SchemaRecord> {
    let Payload { kind, schema, properties } = call.json()?;
    let schema_type =
        schema_type_number(&kind).ok_or_else(|| ApiError::bad_request(format!("unknown schema type '{kind}'")))?;
    let data = if kind == KEY_VALUE { encode_key_value(&schema)? } else { schema.into_bytes() };
    Ok(SchemaRecord {
        schema_type,
        data,
        properties: properties.unwrap_or_default(),
        timestamp: now_ms(),
        user: String::new(),
        deleted: false,
    })
}

async fn metadata(call: &Call, name: &TopicName) -> Result<Answer> {
    let versions = call.broker.schema_versions(name).await?;
    let index: Vec<Value> =
        versions.iter().map(|schema| json!({ "ledgerId": -1, "entryId": -1, "version": schema.version })).collect();
    let Some(info) = index.last().cloned() else { return Ok(Answer::Unset) };
    Ok(Answer::Json(json!({ "info": info, "index": index })))
}

/// The stored form: two definitions, each behind its length.
fn encode_key_value(text: &str) -> Result<Vec<u8>> {
    let parts: Value = serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("malformed key-value schema: {error}")))?;
    let mut data = Vec::new();
    for part in ["key", "value"] {
        let definition = match &parts[part] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        data.extend_from_slice(&(definition.len() as u32).to_be_bytes());
        data.extend_from_slice(definition.as_bytes());
    }
    Ok(data)
}

/// The inverse of [`encode_key_value`].
fn decode_key_value(data: &[u8]) -> Result<String> {
    let malformed = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "stored key-value schema is malformed");
    let (key, rest) = length_prefixed(data).ok_or_else(malformed)?;
    let (value, _) = length_prefixed(rest).ok_or_else(malformed)?;
    let json =
        |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(bytes)));
    Ok(json!({ "key": json(key), "value": json(value) }).to_string())
}

fn length_prefixed(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_value_schemas_go_both_ways() {
        let text = r#"{"key":{"type":"string"},"value":""}"#;
        let data = encode_key_value(text).unwrap();
        assert_eq!(data[..4], 17u32.to_be_bytes());
        assert_eq!(decode_key_value(&data).unwrap(), text);
        assert!(decode_key_value(b"\0\0\0\x09ab").is_err());
    }
}
