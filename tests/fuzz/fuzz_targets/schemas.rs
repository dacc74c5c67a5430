//! Definitions of schemas, one after the other on one topic: each is stored, or refused with a reason, and what is stored already is so again.

#![no_main]

use std::sync::Arc;

use geminga_broker::{Broker, BrokerConfig, BrokerError, is_valid_schema};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{ClusterData, MemoryStore, Metadata, Policies, SchemaRecord, TenantInfo};
use geminga_model::TopicName;
use libfuzzer_sys::fuzz_target;

/// Ends all tasks of the broker when it goes. Time passes when nothing else is to be done.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime can be built")
}

fuzz_target!(|data: &[u8]| runtime().block_on(store(data)));

/// Lines are definitions, each of the type that its first byte chooses; the first line is the namespace's policies.
async fn store(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let policies = lines.next().unwrap_or_default();
    let mut policies = serde_json::from_slice(policies).unwrap_or_else(|_| Policies::new_namespace("standalone", 4));
    policies.bundles = Policies::new_namespace("standalone", 4).bundles;

    let metadata = Metadata::new(Arc::new(MemoryStore::default()));
    metadata.create_cluster("standalone", &ClusterData::default()).await.expect("it is empty");
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.expect("it is empty");
    metadata.create_namespace(&"public/default".parse().expect("a name"), &policies).await.expect("it is empty");
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(MemoryLedgers::default())).await;
    let broker = broker.expect("it is empty");

    let name = TopicName::parse("t").expect("a name");
    for line in lines {
        let Some((kind, definition)) = line.split_first() else { continue };
        let schema =
            SchemaRecord { schema_type: i32::from(kind % 22), data: definition.to_vec(), ..Default::default() };
        if !is_valid_schema(&schema) {
            continue;
        }
        let is_compatible = broker.check_schema_compatible(&name, &schema).await;
        match broker.put_schema(&name, schema.clone(), true).await {
            Ok(version) => {
                is_compatible.expect("it was stored");
                assert_eq!(broker.put_schema(&name, schema, true).await.expect("it is there"), version);
            }
            Err(BrokerError::IncompatibleSchema(reason)) => {
                assert!(is_compatible.is_err() && !reason.is_empty());
            }
            Err(other) => panic!("{other}"),
        }
    }
    broker.shut_down().await;
}
