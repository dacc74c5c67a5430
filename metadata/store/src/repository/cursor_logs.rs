//! Where cursor logs are: `cursor-logs/<name>`, opaque to metadata and changed by compare-and-set, so that a deposed
//! owner of the log cannot move it.

use bytes::Bytes;

use super::Metadata;
use crate::{Expect, MetadataError, Op, Record};

fn key(name: &str) -> String {
    format!("cursor-logs/{name}")
}

impl Metadata {
    pub async fn get_cursor_log(&self, name: &str) -> Result<Option<Record>, MetadataError> {
        self.store.get(&key(name)).await
    }

    /// Writes the record if its version is `version` (none: it must not exist yet), and answers the new version.
    pub async fn put_cursor_log(&self, name: &str, value: Bytes, version: Option<u64>) -> Result<u64, MetadataError> {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        Ok(self.store.commit(vec![Op::put(key(name), value, expect)]).await?[0])
    }

    pub async fn list_cursor_logs(&self) -> Result<Vec<String>, MetadataError> {
        self.list_names("cursor-logs/").await
    }
}
