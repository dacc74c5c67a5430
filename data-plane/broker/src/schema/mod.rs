//! Schemas: stored per topic (partitions share those of their topic) as numbered versions.
//!
//! A schema that is there already keeps its version. A new one is added if the namespace lets producers bring schemas, and
//! if the compatibility strategy allows (compatibility.rs): types must not change, and definitions in Avro are resolved
//! (avro.rs).

mod avro;
mod compatibility;

use std::collections::BTreeMap;

use geminga_metadata::{SchemaRecord, SchemaVersion};
use geminga_model::TopicName;
use geminga_wire_pulsar::proto;
use geminga_wire_pulsar::proto::schema::Type;

use crate::broker::Broker;
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;

/// Attempts to add a version while others add theirs.
const ATTEMPTS: usize = 16;
/// Applies where neither topic nor namespace say otherwise.
const DEFAULT_STRATEGY: &str = "FULL";
/// The strategy that means "as the level above says".
const UNDEFINED: &str = "UNDEFINED";

/// Names of schema types in the admin API, by their number in the protocol.
const TYPE_NAMES: &[(Type, &str)] = &[
    (Type::None, "NONE"),
    (Type::String, "STRING"),
    (Type::Json, "JSON"),
    (Type::Protobuf, "PROTOBUF"),
    (Type::Avro, "AVRO"),
    (Type::Bool, "BOOLEAN"),
    (Type::Int8, "INT8"),
    (Type::Int16, "INT16"),
    (Type::Int32, "INT32"),
    (Type::Int64, "INT64"),
    (Type::Float, "FLOAT"),
    (Type::Double, "DOUBLE"),
    (Type::Date, "DATE"),
    (Type::Time, "TIME"),
    (Type::Timestamp, "TIMESTAMP"),
    (Type::KeyValue, "KEY_VALUE"),
    (Type::Instant, "INSTANT"),
    (Type::LocalDate, "LOCAL_DATE"),
    (Type::LocalTime, "LOCAL_TIME"),
    (Type::LocalDateTime, "LOCAL_DATE_TIME"),
    (Type::ProtobufNative, "PROTOBUF_NATIVE"),
    (Type::AutoConsume, "AUTO_CONSUME"),
    (Type::External, "EXTERNAL"),
];

/// Name of a schema type as the admin API spells it.
pub fn schema_type_name(number: i32) -> &'static str {
    TYPE_NAMES.iter().find(|(kind, _)| *kind as i32 == number).map_or("NONE", |(_, name)| name)
}

/// The inverse of [`schema_type_name`].
pub fn schema_type_number(name: &str) -> Option<i32> {
    if name == "BYTES" {
        return Some(Type::None as i32);
    }
    TYPE_NAMES.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind as i32)
}

/// A schema's version as clients see it.
pub fn schema_version_bytes(version: u64) -> Vec<u8> {
    version.to_be_bytes().to_vec()
}

/// The inverse of [`schema_version_bytes`]; `None` for bytes that no version has.
pub fn schema_version_of(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

impl Broker {
    /// Versions since the schema was last deleted, oldest first.
    pub async fn schema_versions(&self, name: &TopicName) -> Result<Vec<SchemaVersion>> {
        Ok(live(self.shared.metadata.list_schemas(&name.partitioned_base()).await?))
    }

    /// One version, or the latest.
    pub async fn schema(&self, name: &TopicName, version: Option<u64>) -> Result<Option<SchemaVersion>> {
        let mut versions = self.schema_versions(name).await?;
        Ok(match version {
            None => versions.pop(),
            Some(wanted) => versions.into_iter().find(|known| known.version == wanted),
        })
    }

    /// The version of a producer's schema, which is added if it is new. One of plain bytes is stored like any other: most
    /// clients of bytes send none, and the Go client, which sends one, looks its version up again to read.
    pub async fn add_schema(&self, name: &TopicName, schema: &proto::Schema) -> Result<Vec<u8>> {
        let allowed = self.policies(name).await?.allow_auto_update_schema();
        if !is_definition(schema) {
            let kind = schema_type_name(schema.r#type);
            return Err(BrokerError::IncompatibleSchema(format!("Invalid schema definition data for {kind} schema")));
        }
        let version = self.put_schema(name, record(schema), allowed).await?;
        Ok(schema_version_bytes(version))
    }

    /// Refuses a producer without schema where the policies want one.
    pub async fn check_no_schema(&self, name: &TopicName) -> Result<()> {
        if self.policies(name).await?.schema_validation_enforced() && self.schema(name, None).await?.is_some() {
            return Err(BrokerError::IncompatibleSchema(
                "Producers cannot connect or send message without a schema to topics with a schema when \
                 SchemaValidationEnforced is enabled"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Checks a consumer's schema against the topic's; on a topic that nobody uses yet it becomes the topic's.
    /// `has_users` says whether somebody works with the topic already: without a schema, that somebody uses bytes.
    pub async fn check_consumer_schema(&self, name: &TopicName, schema: &proto::Schema, has_users: bool) -> Result<()> {
        if is_plain(schema) || schema.r#type == Type::AutoConsume as i32 {
            return Ok(());
        }
        let versions = self.schema_versions(name).await?;
        match versions.last() {
            Some(latest) => {
                let wanted = record(schema);
                if same(&latest.schema, &wanted) {
                    return Ok(());
                }
                let strategy = self.strategy(name).await?;
                compatibility::check_consumer(&records(&versions), &wanted, &strategy).map_err(incompatible)
            }
            None if has_users => Err(BrokerError::IncompatibleSchema("Topic does not have schema to check".into())),
            None => self.add_schema(name, schema).await.map(drop),
        }
    }

    /// Stores a schema unless it is there already; answers its version.
    pub async fn put_schema(&self, name: &TopicName, wanted: SchemaRecord, may_add: bool) -> Result<u64> {
        let base = name.partitioned_base();
        for _ in 0..ATTEMPTS {
            let all = self.shared.metadata.list_schemas(&base).await?;
            let last = all.last().map(|known| known.version);
            let versions = live(all);
            if let Some(known) = versions.iter().find(|known| same(&known.schema, &wanted)) {
                return Ok(known.version);
            }
            if !may_add {
                return Err(BrokerError::IncompatibleSchema(
                    "Schema not found and schema auto updating is disabled.".into(),
                ));
            }
            if !versions.is_empty() {
                let strategy = self.strategy(name).await?;
                compatibility::check_new(&records(&versions), &wanted, &strategy).map_err(incompatible)?;
            }
            match self.shared.metadata.append_schema(&base, last, &wanted).await {
                Err(error) if error.is_conflict() => continue,
                other => return Ok(other?),
            }
        }
        Err(BrokerError::ServiceNotReady(format!("too many schemas are being added to {base} at once")))
    }

    /// Refuses what [`Broker::put_schema`] would; answers the strategy that decides.
    pub async fn check_schema_compatible(&self, name: &TopicName, wanted: &SchemaRecord) -> Result<String> {
        let strategy = self.strategy(name).await?;
        let versions = self.schema_versions(name).await?;
        if !versions.iter().any(|known| same(&known.schema, wanted)) {
            compatibility::check_new(&records(&versions), wanted, &strategy).map_err(incompatible)?;
        }
        Ok(strategy)
    }

    /// Marks the schema as deleted by a version of its own, which is answered; with `force` every version goes for good.
    pub async fn delete_schema(&self, name: &TopicName, force: bool) -> Result<u64> {
        let base = name.partitioned_base();
        for _ in 0..ATTEMPTS {
            let last = self.shared.metadata.list_schemas(&base).await?.last().map(|known| known.version);
            if force {
                self.shared.metadata.delete_schemas(&base).await?;
                return Ok(last.unwrap_or(0));
            }
            let tombstone = SchemaRecord {
                schema_type: Type::None as i32,
                data: Vec::new(),
                properties: BTreeMap::new(),
                timestamp: now_ms(),
                user: String::new(),
                deleted: true,
            };
            match self.shared.metadata.append_schema(&base, last, &tombstone).await {
                Err(error) if error.is_conflict() => continue,
                other => return Ok(other?),
            }
        }
        Err(BrokerError::ServiceNotReady(format!("too many schemas are being added to {base} at once")))
    }

    async fn strategy(&self, name: &TopicName) -> Result<String> {
        let policies = self.policies(name).await?;
        let own = policies.topic.schema_compatibility_strategy.clone();
        let strategy = own
            .filter(|strategy| strategy != UNDEFINED)
            .unwrap_or_else(|| policies.namespace.schema_compatibility_strategy.clone());
        Ok(if strategy == UNDEFINED || strategy.is_empty() { DEFAULT_STRATEGY.to_owned() } else { strategy })
    }
}

/// What was stored after the last deletion.
fn live(mut versions: Vec<SchemaVersion>) -> Vec<SchemaVersion> {
    let start = versions.iter().rposition(|known| known.schema.deleted).map_or(0, |last| last + 1);
    versions.drain(..start);
    versions
}

/// Whether a definition that is written in JSON is JSON at all: what it says is looked at when another one is compared with it.
fn is_definition(schema: &proto::Schema) -> bool {
    let in_json = [Type::Avro, Type::Json, Type::Protobuf, Type::ProtobufNative].map(|kind| kind as i32);
    !in_json.contains(&schema.r#type) || serde_json::from_slice::<serde::de::IgnoredAny>(&schema.schema_data).is_ok()
}

/// A consumer of bytes reads whatever there is.
fn is_plain(schema: &proto::Schema) -> bool {
    schema.r#type == Type::None as i32 && schema.schema_data.is_empty()
}

fn record(schema: &proto::Schema) -> SchemaRecord {
    SchemaRecord {
        schema_type: schema.r#type,
        data: schema.schema_data.to_vec(),
        properties: schema.properties.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
        timestamp: now_ms(),
        user: String::new(),
        deleted: false,
    }
}

/// The same type and definition. Definitions in JSON are compared as values: order of keys and white space say nothing.
fn same(a: &SchemaRecord, b: &SchemaRecord) -> bool {
    if a.schema_type != b.schema_type {
        return false;
    }
    if a.data == b.data {
        return true;
    }
    let value = |schema: &SchemaRecord| serde_json::from_slice::<serde_json::Value>(&schema.data).ok();
    compatibility::is_structure(a.schema_type) && value(a).is_some() && value(a) == value(b)
}

fn records(versions: &[SchemaVersion]) -> Vec<&SchemaRecord> {
    versions.iter().map(|known| &known.schema).collect()
}

fn incompatible(reason: String) -> BrokerError {
    BrokerError::IncompatibleSchema(format!("Incompatible schema: {reason}"))
}

/// Whether the definition can be one of its type.
pub fn is_valid_schema(schema: &SchemaRecord) -> bool {
    let kind = Type::try_from(schema.schema_type).unwrap_or(Type::None);
    match kind {
        Type::Avro | Type::Protobuf => avro::Schema::parse(&schema.data).is_some(),
        // A JSON Schema will do too.
        Type::Json => {
            avro::Schema::parse(&schema.data).is_some()
                || serde_json::from_slice::<serde_json::Value>(&schema.data)
                    .is_ok_and(|definition| definition.get("type").is_some_and(serde_json::Value::is_string))
        }
        Type::ProtobufNative => serde_json::from_slice::<serde_json::Value>(&schema.data)
            .is_ok_and(|definition| definition.get("fileDescriptorSet").is_some_and(serde_json::Value::is_string)),
        Type::KeyValue | Type::External | Type::None => true,
        _ => schema.data.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn schema(kind: Type, data: impl AsRef<[u8]>) -> SchemaRecord {
        SchemaRecord {
            schema_type: kind as i32,
            data: data.as_ref().into(),
            properties: BTreeMap::new(),
            timestamp: 0,
            user: String::new(),
            deleted: false,
        }
    }

    #[test]
    fn definitions_are_compared_as_values() {
        let a = schema(Type::Avro, r#"{"type":"record","name":"R"}"#);
        let b = schema(Type::Avro, r#"{ "name": "R", "type": "record" }"#);
        assert!(same(&a, &b));
        assert!(!same(&a, &schema(Type::Json, r#"{"type":"record","name":"R"}"#)));
        assert!(!same(&schema(Type::KeyValue, "1"), &schema(Type::KeyValue, " 1")));
    }

    #[test]
    fn names_and_versions_go_both_ways() {
        for (kind, name) in TYPE_NAMES {
            assert_eq!(schema_type_number(name), Some(*kind as i32));
            assert_eq!(schema_type_name(*kind as i32), *name);
        }
        assert_eq!(schema_version_of(&schema_version_bytes(258)), Some(258));
        assert_eq!(schema_version_of(b"abc"), None);
    }

    #[test]
    fn only_what_follows_a_deletion_counts() {
        let version =
            |version, deleted| SchemaVersion { version, schema: SchemaRecord { deleted, ..schema(Type::String, "") } };
        let all = vec![version(0, false), version(1, true), version(2, false)];
        assert_eq!(live(all).iter().map(|known| known.version).collect::<Vec<_>>(), [2]);
        assert!(live(vec![version(0, false), version(1, true)]).is_empty());
    }
}
