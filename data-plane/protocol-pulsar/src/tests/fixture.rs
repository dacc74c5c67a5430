//! A broker in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{
    ClusterData, MemoryStore, Metadata, MetadataError, MetadataStore, Op, Policies, Record, TenantInfo, Watch,
};
use geminga_model::TopicName;

/// Longest time that something may take that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Metadata in memory that count how often topics are listed.
#[derive(Default)]
pub struct CountingStore {
    stored: MemoryStore,
    listings: AtomicU64,
}

impl CountingStore {
    pub fn listings(&self) -> u64 {
        self.listings.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl MetadataStore for CountingStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, MetadataError> {
        self.stored.get(key).await
    }

    async fn scan(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Record)>, MetadataError> {
        if after.is_none() && prefix.starts_with("topics/") {
            self.listings.fetch_add(1, Ordering::Relaxed);
        }
        self.stored.scan(prefix, after, limit).await
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        self.stored.commit(ops).await
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

pub async fn broker_and_store(config: BrokerConfig) -> (Arc<Broker>, Arc<CountingStore>) {
    let store = Arc::new(CountingStore::default());
    let metadata = Metadata::new(store.clone());
    metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.unwrap();
    let policies = Policies::new_namespace("standalone", 4);
    metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
    (Broker::start(config, metadata, Arc::new(MemoryLedgers::default())).await.unwrap(), store)
}

pub async fn broker_with(config: BrokerConfig) -> Arc<Broker> {
    broker_and_store(config).await.0
}

pub async fn broker() -> Arc<Broker> {
    broker_with(BrokerConfig::default()).await
}

pub fn name(text: &str) -> TopicName {
    TopicName::parse(text).unwrap()
}

/// Waits for what happens by itself.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}
