//! Where cursor logs are: `cursor-logs/<name>`, changed by compare-and-set, so that a deposed owner of the log cannot
//! move it. What a record says is the affair of whoever owns the log.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Metadata, Versioned, garbage, ledgers};
use crate::{Expect, MetadataError, Op, codec};

pub(super) const PREFIX: &str = "cursor-logs/";

pub(super) fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

impl Metadata {
    pub async fn get_cursor_log<T: DeserializeOwned>(&self, name: &str) -> Result<Option<Versioned<T>>, MetadataError> {
        self.read(&key(name)).await
    }

    /// Writes the record if its version is `version` (none: it must not exist yet), and answers the new version.
    ///
    /// `dropped` are ledgers that the new record no longer has: they are noted as garbage in the same commit. `announced` says in it what
    /// metadata say of a new one.
    pub async fn put_cursor_log<T: Serialize>(
        &self,
        name: &str,
        value: &T,
        version: Option<u64>,
        dropped: &[u64],
        announced: Option<Op>,
    ) -> Result<u64, MetadataError> {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        let mut ops = vec![Op::put(key(name), codec::encode(value)?, expect)];
        ops.extend(garbage::note(dropped)?);
        ops.extend(announced);
        Ok(self.store.commit(ops).await.map_err(ledgers::explained)?[0])
    }

    /// Deletes the record and notes the ledgers of the log as garbage, in one commit.
    pub async fn delete_cursor_log(&self, name: &str, ledgers: &[u64]) -> Result<(), MetadataError> {
        let mut ops = vec![Op::delete(key(name), Expect::Any)];
        ops.extend(garbage::note(ledgers)?);
        self.store.commit(ops).await.map(drop)
    }

    pub async fn list_cursor_logs(&self) -> Result<Vec<String>, MetadataError> {
        self.list_names(PREFIX).await
    }
}
