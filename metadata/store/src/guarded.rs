use std::sync::Arc;

use async_trait::async_trait;

use crate::{Expect, MetadataError, MetadataStore, Op, Record, Watch};

/// A store whose commits are applied only while one record has a certain version: that by which an owner knows that it
/// is still the owner. With it a deposed owner cannot write, however long it was asleep.
pub(crate) struct GuardedStore {
    pub store: Arc<dyn MetadataStore>,
    pub key: String,
    pub version: u64,
    /// What the record says the ownership of, for errors.
    pub name: String,
}

#[async_trait]
impl MetadataStore for GuardedStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError> {
        self.store.get(key).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, MetadataError> {
        self.store.scan(prefix, after, limit).await
    }

    async fn commit(&self, mut ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        ops.insert(0, Op::check(&*self.key, Expect::Version(self.version)));
        match self.store.commit(ops).await {
            Ok(mut versions) => {
                versions.remove(0);
                Ok(versions)
            }
            Err(MetadataError::Conflict { key }) if key == self.key => {
                Err(MetadataError::OwnershipLost { name: self.name.clone() })
            }
            Err(error) => Err(error),
        }
    }

    async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        self.store.allocate(sequence, count).await
    }

    async fn next_of(&self, sequence: &str) -> Result<u64, MetadataError> {
        self.store.next_of(sequence).await
    }

    async fn watch(&self, prefix: &str) -> Result<Watch, MetadataError> {
        self.store.watch(prefix).await
    }

    fn hears_other_processes(&self) -> bool {
        self.store.hears_other_processes()
    }

    fn now_ms(&self) -> u64 {
        self.store.now_ms()
    }
}
