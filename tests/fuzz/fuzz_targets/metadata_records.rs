//! Records as metadata holds them: whatever they say, a broker starts or says why not, and so does a topic.

#![no_main]

use std::sync::Arc;

use geminga_balance::BrokerReport;
use geminga_broker::{Broker, BrokerConfig};
use geminga_ensemble::LedgerMetadata;
use geminga_ledger_client::{AppendClass, LedgerClient, MemoryLedgers};
use geminga_metadata::{Expect, MemoryStore, Metadata, MetadataStore, Op};
use geminga_model::{TopicDomain, TopicName};
use libfuzzer_sys::fuzz_target;

/// Ends all tasks of the broker when it goes. Time passes when nothing else is to be done.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime can be built")
}

const KEYS: [&str; 26] = [
    "audit",
    "topics/public/default/persistent/t",
    "subscriptions/public/default/persistent/t/s",
    "topic-policies/public/default/persistent/t",
    "namespaces/public/default",
    "cursor-logs/public/default/0x00000000_0xffffffff",
    "cursor-logs/standalone",
    "partitioned/public/default/persistent/t",
    "schemas/public/default/persistent/t/00000000000000000000",
    "clusters/standalone",
    "tenants/public",
    "garbage/00000000000000000001",
    "bundles/public/default/0x00000000_0xffffffff",
    "bundle-requests/public/default/0x00000000_0xffffffff",
    "brokers/b",
    "leases/broker/b",
    "load-reports/b",
    "ledgers/00000000000000000001",
    "storage-nodes/n",
    "leases/storage-node/n",
    "decommissions/n",
    "repairs/00000000000000000001",
    "repair-workers/n",
    "witnesses/n",
    "restored/n",
    "configuration/maxConcurrentLookupRequest",
];

const NAMESPACE: &str = r#"{"v":1,"d":{}}"#;

fuzz_target!(|data: &[u8]| runtime().block_on(load(data)));

/// Lines are records, each for the key that its first byte chooses.
async fn load(data: &[u8]) {
    let store = Arc::new(MemoryStore::default());
    let put = async |key: &str, value: Vec<u8>| {
        store.commit(vec![Op::put(key, value, Expect::Any)]).await.expect("memory takes everything");
    };
    put("namespaces/public/default", NAMESPACE.into()).await;
    put("tenants/public", NAMESPACE.into()).await;
    for line in data.split(|byte| *byte == b'\n') {
        let Some((first, json)) = line.split_first() else { continue };
        let key = KEYS[usize::from(first % KEYS.len() as u8)];
        put(key, [br#"{"v":1,"d":"#, json, b"}"].concat()).await;
    }
    let metadata = Metadata::new(store);
    let name = TopicName::parse("t").expect("a name");
    read(&metadata, &name).await;
    let ledgers = MemoryLedgers::default();
    for ledger in 1..4 {
        let entries = vec![[bytes::Bytes::from_static(&[1, 0, 0, 0, 0]), bytes::Bytes::new()]];
        ledgers.append(ledger, 0, entries, AppendClass::Message, Box::new(|_| ()));
    }
    let Ok(broker) = Broker::start(BrokerConfig::default(), metadata, Arc::new(ledgers)).await else { return };
    if let Ok(topic) = broker.topic(&name, true).await {
        let _ = topic.stats(&Default::default()).await;
        let _ = broker.unload(&name).await;
    }
    broker.shut_down().await;
}

/// What a broker on its own does not look at.
async fn read(metadata: &Metadata, name: &TopicName) {
    let _ = metadata.get_cluster("standalone").await;
    let _ = metadata.get_tenant("public").await;
    let _ = metadata.list_schemas(name).await;
    let _ = metadata.get_partitioned_topic(name).await;
    let _ = metadata.list_topics(name.namespace(), TopicDomain::Persistent).await;
    let _ = metadata.list_bundles().await;
    let _ = metadata.list_bundle_requests().await;
    let _ = metadata.list_brokers().await;
    let _ = metadata.broker_sessions().await;
    let _ = metadata.list_load_reports::<BrokerReport>().await;
    let _ = metadata.get_ledger::<LedgerMetadata>(1).await;
    let _ = metadata.storage_node_statuses().await;
    let _ = metadata.get_repair(1).await;
    let _ = metadata.list_repair_workers().await;
    let _ = metadata.audit().await;
    let _ = metadata.list_witnesses().await;
    let _ = metadata.restored().await;
    let _ = metadata.dynamic_configuration().await;
}
