//! A broker in memory.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{ClusterData, MemoryStore, Metadata, Policies, TenantInfo};
use geminga_model::TopicName;

/// Longest time that something may take that happens by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn broker_with(config: BrokerConfig) -> Arc<Broker> {
    let metadata = Metadata::new(Arc::new(MemoryStore::default()));
    metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.unwrap();
    let policies = Policies::new_namespace("standalone", 4);
    metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
    Broker::start(config, metadata, Arc::new(MemoryLedgers::default())).await.unwrap()
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
