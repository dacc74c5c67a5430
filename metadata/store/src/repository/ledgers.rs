//! Ledgers on storage nodes: `ledgers/<id>`, changed by compare-and-set. What a record says is the affair of whoever writes
//! and recovers ledgers.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Metadata, Versioned};
use crate::{Expect, MetadataError, Op, codec};

fn key(id: u64) -> String {
    format!("ledgers/{id:020}")
}

/// A commit that announces a ledger is refused for its sake.
pub(super) fn explained(error: MetadataError) -> MetadataError {
    match error {
        MetadataError::Conflict { key } if key.starts_with("ledgers/") => MetadataError::Corrupt {
            subject: format!("record '{key}'"),
            reason: "its id was just given out, and there is such a ledger: run 'geminga doctor'".to_owned(),
        },
        other => other,
    }
}

fn id_of(key: &str) -> Result<u64, MetadataError> {
    key["ledgers/".len()..].parse().map_err(|_| MetadataError::Corrupt {
        subject: format!("record '{key}'"),
        reason: "its key is no ledger's".to_owned(),
    })
}

impl Metadata {
    pub async fn get_ledger<T: DeserializeOwned>(&self, id: u64) -> Result<Option<Versioned<T>>, MetadataError> {
        self.read(&key(id)).await
    }

    /// Writes the record if its version is `version` (none: it must not exist yet), and answers the new version.
    pub async fn put_ledger<T: Serialize>(
        &self,
        id: u64,
        value: &T,
        version: Option<u64>,
    ) -> Result<u64, MetadataError> {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        Ok(self.store.commit(vec![Op::put(key(id), codec::encode(value)?, expect)]).await?[0])
    }

    /// The step of a commit that announces a ledger, see [`Metadata::replace_topic`]; its id must not be in use.
    ///
    /// # Errors
    /// `value` cannot be written as JSON.
    pub fn announcement<T: Serialize>(id: u64, value: &T) -> Result<Op, MetadataError> {
        Ok(Op::put(key(id), codec::encode(value)?, Expect::Absent))
    }

    /// Forgets a ledger; one that is not there is no error.
    pub async fn delete_ledger(&self, id: u64) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::delete(key(id), Expect::Any)]).await.map(drop)
    }

    /// At most `limit` ledgers, in order, from `first` on; fewer mean that there are no more. A record that cannot be
    /// understood is an error in its place, so that it does not hide the others.
    pub async fn scan_ledgers<T: DeserializeOwned>(
        &self,
        first: u64,
        limit: usize,
    ) -> Result<Vec<(u64, Result<Versioned<T>, MetadataError>)>, MetadataError> {
        let before = first.checked_sub(1).map(key);
        let records = self.store.scan("ledgers/", before.as_deref(), limit).await?;
        let decoded = records.into_iter().map(|(key, record)| {
            let value = codec::decode(&key, &record.value);
            Ok((id_of(&key)?, value.map(|value| Versioned { value, version: record.version })))
        });
        decoded.collect()
    }

    /// At most `limit` ids of ledgers, in order, from `first` on. None means that there are no more.
    pub async fn list_ledgers(&self, first: u64, limit: usize) -> Result<Vec<u64>, MetadataError> {
        let before = first.checked_sub(1).map(key);
        let records = self.store.scan("ledgers/", before.as_deref(), limit).await?;
        records.iter().map(|(key, _)| id_of(key)).collect()
    }
}
