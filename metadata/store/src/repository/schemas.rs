//! Schemas of a topic, one record per version: `schemas/<tenant>/<namespace>/<domain>/<local>/<version>`.
//!
//! Partitions share the schemas of their partitioned topic: pass its name.

use std::collections::BTreeMap;

use geminga_model::TopicName;
use serde::{Deserialize, Serialize};

use super::{Metadata, topics};
use crate::{Expect, MetadataError, Op, codec};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaRecord {
    /// The number of `Schema.Type` in Pulsar's protocol.
    pub schema_type: i32,
    #[serde(with = "schema_data")]
    pub data: Vec<u8>,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub timestamp: u64,
    #[serde(default)]
    pub user: String,
    /// This version says that the schema was deleted; `data` is empty.
    #[serde(default)]
    pub deleted: bool,
}

/// A schema with its version, which counts from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaVersion {
    pub version: u64,
    pub schema: SchemaRecord,
}

pub(super) fn prefix(topic: &TopicName) -> String {
    format!("schemas/{}/", topics::path(topic))
}

impl Metadata {
    /// Every version, oldest first.
    pub async fn list_schemas(&self, topic: &TopicName) -> Result<Vec<SchemaVersion>, MetadataError> {
        let prefix = prefix(topic);
        let records = self.list::<SchemaRecord>(&prefix).await?;
        records
            .into_iter()
            .map(|(version, record)| match version.parse() {
                Ok(version) => Ok(SchemaVersion { version, schema: record.value }),
                Err(_) => Err(MetadataError::Corrupt {
                    subject: format!("schemas of {topic}"),
                    reason: format!("'{version}' is not a version"),
                }),
            })
            .collect()
    }

    pub async fn get_schema(&self, topic: &TopicName, version: u64) -> Result<Option<SchemaRecord>, MetadataError> {
        let record = self.read(&format!("{}{version:020}", prefix(topic))).await?;
        Ok(record.map(|record| record.value))
    }

    /// Adds the version after `last` (none: the first), and answers it. Fails with [`MetadataError::Conflict`] when
    /// somebody else has added it: compatibility must then be checked again.
    pub async fn append_schema(
        &self,
        topic: &TopicName,
        last: Option<u64>,
        schema: &SchemaRecord,
    ) -> Result<u64, MetadataError> {
        let prefix = prefix(topic);
        let version = last.map_or(0, |last| last + 1);
        let mut ops = vec![Op::put(format!("{prefix}{version:020}"), codec::encode(schema)?, Expect::Absent)];
        if let Some(last) = last {
            ops.push(Op::check(format!("{prefix}{last:020}"), Expect::Present));
        }
        self.store.commit(ops).await?;
        Ok(version)
    }

    /// Removes every version, so that the next one is 0 again.
    pub async fn delete_schemas(&self, topic: &TopicName) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::delete_prefix(prefix(topic))]).await.map(drop)
    }
}

/// Schema data is text most of the time: `t:<text>`, otherwise `x:<hexadecimal>`.
mod schema_data {
    use std::fmt::Write as _;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(data) {
            return serializer.serialize_str(&format!("t:{text}"));
        }
        let mut hex = String::with_capacity(2 + 2 * data.len());
        hex.push_str("x:");
        for byte in data {
            write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        }
        serializer.serialize_str(&hex)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some(text) = text.strip_prefix("t:") {
            return Ok(text.as_bytes().to_vec());
        }
        let hex = text.strip_prefix("x:").map(str::as_bytes).filter(|hex| hex.len() % 2 == 0);
        let hex = hex.ok_or_else(|| de::Error::custom("schema data is neither text nor hexadecimal"))?;
        hex.chunks_exact(2)
            .map(|pair| {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                match (digit(pair[0]), digit(pair[1])) {
                    (Some(high), Some(low)) => Ok((high * 16 + low) as u8),
                    _ => Err(de::Error::custom("schema data is not hexadecimal")),
                }
            })
            .collect()
    }
}
