//! How typed records are stored: JSON `{"v": <format version>, "d": <record>}`.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::MetadataError;

/// Grows when a record's form changes so that an older Geminga would misread it.
const FORMAT_VERSION: u32 = 1;

#[derive(Serialize)]
struct Written<'a, T> {
    v: u32,
    d: &'a T,
}

#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

#[derive(Deserialize)]
struct Read<T> {
    d: T,
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Bytes, MetadataError> {
    serde_json::to_vec(&Written { v: FORMAT_VERSION, d: record })
        .map(Bytes::from)
        .map_err(|error| MetadataError::Bug(format!("cannot encode a record: {error}")))
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetadataError> {
    match serde_json::from_slice::<Read<T>>(value) {
        Ok(read) if value.starts_with(b"{\"v\":1,") => Ok(read.d),
        outcome => {
            let corrupt = |error: serde_json::Error| MetadataError::Corrupt {
                subject: format!("record '{key}'"),
                reason: error.to_string(),
            };
            let version = serde_json::from_slice::<VersionOnly>(value).map_err(corrupt)?.v;
            if version > FORMAT_VERSION {
                return Err(MetadataError::Newer(format!("record '{key}' has format {version}")));
            }
            outcome.map(|read| read.d).map_err(corrupt)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use geminga_model::Position;
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::{LedgerInfo, Policies, SchemaRecord, SubscriptionRecord, TopicRecord};

    fn position() -> impl Strategy<Value = Position> {
        (any::<u64>(), -1i64..).prop_map(|(ledger_id, entry_id)| Position { ledger_id, entry_id })
    }

    fn properties() -> impl Strategy<Value = BTreeMap<String, String>> {
        btree_map(any::<String>(), any::<String>(), 0..3)
    }

    fn ledger() -> impl Strategy<Value = LedgerInfo> {
        any::<(u64, u64, u64, u64, u64)>().prop_map(|(ledger_id, entries, size, timestamp, first_index)| LedgerInfo {
            ledger_id,
            entries,
            size,
            timestamp,
            first_index,
        })
    }

    fn topic() -> impl Strategy<Value = TopicRecord> {
        let numbers = any::<(bool, u64, u64, Option<u64>, u64, Option<u64>)>();
        (vec(ledger(), 0..4), option::of(position()), properties(), numbers).prop_map(
            |(
                ledgers,
                terminated,
                properties,
                (last_open, next_index, last_ledger, announced_from, created_at, epoch),
            )| TopicRecord {
                ledgers,
                last_open,
                next_index,
                terminated,
                properties,
                last_ledger,
                announced_from,
                created_at,
                epoch,
            },
        )
    }

    fn subscription() -> impl Strategy<Value = SubscriptionRecord> {
        (position(), properties(), any::<(u64, u64, bool)>()).prop_map(
            |(initial, properties, (cursor_id, created_at, replicated))| SubscriptionRecord {
                cursor_id,
                initial,
                properties,
                created_at,
                replicated,
            },
        )
    }

    fn schema() -> impl Strategy<Value = SchemaRecord> {
        let data = prop_oneof![vec(any::<u8>(), 0..40), any::<String>().prop_map(String::into_bytes)];
        (data, properties(), any::<(i32, u64, String, bool)>()).prop_map(
            |(data, properties, (schema_type, timestamp, user, deleted))| SchemaRecord {
                schema_type,
                data,
                properties,
                timestamp,
                user,
                deleted,
            },
        )
    }

    /// What is written is read back, and nothing that was cut off is.
    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(
        record: &T,
        cut: Index,
    ) -> Result<(), TestCaseError> {
        let bytes = encode(record).unwrap();
        prop_assert_eq!(&decode::<T>("k", &bytes).unwrap(), record);
        let damaged = decode::<T>("k", &bytes[..cut.index(bytes.len())]);
        prop_assert!(matches!(damaged, Err(MetadataError::Corrupt { .. })), "{:?}", damaged);
        Ok(())
    }

    proptest! {
        #[test]
        fn records_come_back(topic in topic(), subscription in subscription(), schema in schema(), cut in any::<Index>()) {
            round_trip(&topic, cut)?;
            round_trip(&subscription, cut)?;
            round_trip(&schema, cut)?;
        }

        /// Any byte of a record may be another one: it is read as something, or refused.
        #[test]
        fn damage_is_an_error(topic in topic(), schema in schema(), at in any::<Index>(), byte in any::<u8>()) {
            for bytes in [encode(&topic).unwrap(), encode(&schema).unwrap()] {
                let mut bytes = bytes.to_vec();
                let at = at.index(bytes.len());
                bytes[at] = byte;
                let _ = decode::<TopicRecord>("k", &bytes);
                let _ = decode::<SchemaRecord>("k", &bytes);
                let _ = decode::<Policies>("k", &bytes);
            }
        }
    }

    #[test]
    fn tells_damaged_from_newer() {
        assert_eq!(encode(&7).unwrap(), "{\"v\":1,\"d\":7}");
        assert_eq!(decode::<u32>("k", b"{\"v\":1,\"d\":7}").unwrap(), 7);
        assert_eq!(decode::<u32>("k", b"{\"d\":7, \"v\":1}").unwrap(), 7);
        assert!(matches!(decode::<u32>("k", b"{\"v\":2,\"d\":7}"), Err(MetadataError::Newer(_))));
        for bad in [&b""[..], b"7", b"{\"v\":1}", b"{\"d\":7}", b"{\"v\":1,\"d\":\"x\"}"] {
            assert!(matches!(decode::<u32>("k", bad), Err(MetadataError::Corrupt { .. })), "{bad:?}");
        }
    }
}
