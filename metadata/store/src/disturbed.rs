//! Metadata in memory for tests that watch calls or get in their way.

use std::future::{Future, ready};
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{MemoryStore, Metadata, MetadataError, MetadataStore, Op, Record, Watch};

/// What a test does about calls.
pub trait Disturbance: Default + Send + Sync + 'static {
    fn before_get(&self, _key: &str) -> impl Future<Output = Result<(), MetadataError>> + Send {
        ready(Ok(()))
    }

    fn before_scan(
        &self,
        _prefix: &str,
        _after: Option<&str>,
    ) -> impl Future<Output = Result<(), MetadataError>> + Send {
        ready(Ok(()))
    }

    /// In the place of a commit.
    fn commit(
        &self,
        stored: &MemoryStore,
        ops: Vec<Op>,
    ) -> impl Future<Output = Result<Vec<u64>, MetadataError>> + Send {
        stored.commit(ops)
    }
}

/// Metadata in memory that are disturbed.
#[derive(Default)]
pub struct DisturbedStore<D> {
    stored: MemoryStore,
    disturbance: D,
}

impl<D> DisturbedStore<D> {
    /// The same metadata, undisturbed.
    pub fn undisturbed(&self) -> Metadata {
        Metadata::new(Arc::new(self.stored.clone()))
    }
}

impl<D> Deref for DisturbedStore<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.disturbance
    }
}

#[async_trait]
impl<D: Disturbance> MetadataStore for DisturbedStore<D> {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError> {
        self.disturbance.before_get(key).await?;
        self.stored.get(key).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, MetadataError> {
        self.disturbance.before_scan(prefix, after).await?;
        self.stored.scan(prefix, after, limit).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        self.disturbance.commit(&self.stored, ops).await
    }

    async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        self.stored.allocate(sequence, count).await
    }

    async fn next_of(&self, sequence: &str) -> Result<u64, MetadataError> {
        self.stored.next_of(sequence).await
    }

    async fn watch(&self, prefix: &str) -> Result<Watch, MetadataError> {
        self.stored.watch(prefix).await
    }

    fn now_ms(&self) -> u64 {
        self.stored.now_ms()
    }
}
