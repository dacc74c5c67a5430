//! A broker in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{ClusterData, Disturbance, DisturbedStore, Metadata, MetadataError, Policies, TenantInfo};
use geminga_model::TopicName;

/// Longest time that something may take that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Counts how often topics are listed.
#[derive(Default)]
pub struct Listings(AtomicU64);

impl Listings {
    pub fn listings(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Disturbance for Listings {
    async fn before_scan(&self, prefix: &str, after: Option<&str>) -> Result<(), MetadataError> {
        if after.is_none() && prefix.starts_with("topics/") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

pub async fn broker_and_store(config: BrokerConfig) -> (Arc<Broker>, Arc<DisturbedStore<Listings>>) {
    let store = Arc::new(DisturbedStore::<Listings>::default());
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
