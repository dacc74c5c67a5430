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
    use super::*;

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
