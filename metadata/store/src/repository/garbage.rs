//! Ledgers that no topic has any more and that storage still holds: `garbage/<first ledger id>`.
//!
//! They are noted in the commit that removes them from a topic, and forgotten once storage has deleted them, so that
//! a crash in between leaves no ledger behind for ever.

use super::Metadata;
use crate::{Expect, MetadataError, Op, codec};

const PREFIX: &str = "garbage/";

pub(super) fn note(ledgers: &[u64]) -> Result<Option<Op>, MetadataError> {
    let Some(first) = ledgers.first() else { return Ok(None) };
    Ok(Some(Op::put(format!("{PREFIX}{first:020}"), codec::encode(&ledgers)?, Expect::Any)))
}

impl Metadata {
    /// Notes ledgers that never made it into a topic's list.
    pub async fn note_garbage(&self, ledgers: &[u64]) -> Result<(), MetadataError> {
        match note(ledgers)? {
            Some(op) => self.store.commit(vec![op]).await.map(drop),
            None => Ok(()),
        }
    }

    /// Groups of ledgers to delete from storage; at most `limit` groups.
    pub async fn list_garbage(&self, limit: usize) -> Result<Vec<Vec<u64>>, MetadataError> {
        let records = self.store.scan(PREFIX, None, limit).await?;
        records.iter().map(|(key, record)| codec::decode(key, &record.value)).collect()
    }

    /// A ledger is not to be deleted after all.
    pub async fn spare_garbage(&self, ledger: u64) -> Result<(), MetadataError> {
        for (rest, group) in self.list::<Vec<u64>>(PREFIX).await? {
            if !group.value.contains(&ledger) {
                continue;
            }
            let key = format!("{PREFIX}{rest}");
            let left: Vec<u64> = group.value.into_iter().filter(|it| *it != ledger).collect();
            let expect = Expect::Version(group.version);
            let op = match left.is_empty() {
                true => Op::delete(key, expect),
                false => Op::put(key, codec::encode(&left)?, expect),
            };
            self.store.commit(vec![op]).await?;
        }
        Ok(())
    }

    /// Forgets a group of [`Metadata::list_garbage`] whose ledgers storage no longer holds.
    pub async fn forget_garbage(&self, group: &[u64]) -> Result<(), MetadataError> {
        let Some(first) = group.first() else { return Ok(()) };
        self.store.commit(vec![Op::delete(format!("{PREFIX}{first:020}"), Expect::Any)]).await.map(drop)
    }
}
