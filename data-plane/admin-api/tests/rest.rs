//! The router before a broker on metadata and ledgers in memory.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use geminga_broker::{
    Broker, BrokerConfig, BrokerError, Peer, ProducerGrant, ProducerRequest, Publish, Receipt, Topic,
};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{ClusterData, MemoryStore, Metadata, Policies, TenantInfo};
use geminga_model::TopicName;
use geminga_topic::Delivery;
use geminga_topic::producers::AccessMode;
use geminga_wire_pulsar::proto;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::ServiceExt;

struct Rest {
    broker: Arc<Broker>,
    router: axum::Router,
}

impl Rest {
    async fn start() -> Self {
        let metadata = Metadata::new(Arc::new(MemoryStore::default()));
        metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
        let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
        metadata.create_tenant("public", &tenant).await.unwrap();
        let policies = Policies::new_namespace("standalone", 4);
        metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
        let broker =
            Broker::start(BrokerConfig::default(), metadata, Arc::new(MemoryLedgers::default())).await.unwrap();
        let router = geminga_admin_api::router(broker.clone());
        Self { broker, router }
    }

    async fn raw(&self, method: &str, path: &str, body: &str) -> axum::response::Response {
        let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Status and body; a body that is not JSON comes as a string, no body as null.
    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.raw(method, &format!("/admin/v2{path}"), &body).await;
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let value = match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(_) if text.is_empty() => Value::Null,
            Err(_) => Value::String(text),
        };
        (status, value)
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, Value::Null).await;
        assert_eq!(status, 200, "GET {path}: {value}");
        value
    }

    async fn expect(&self, method: &str, path: &str, body: Value, status: u16) -> Value {
        let (actual, value) = self.call(method, path, body).await;
        assert_eq!(actual, status, "{method} {path}: {value}");
        value
    }

    async fn publish(&self, topic: &str, messages: &[&str]) {
        let name = TopicName::parse(topic).unwrap();
        let topic = self.broker.topic(&name, true).await.unwrap();
        let (peer, mut receipts) = Client::connect();
        let ProducerGrant { handle, .. } = topic.add_producer(request(), peer, || ()).await.unwrap();
        let mut batch = messages.iter().zip(0..).map(|(text, sequence_id)| publish(text, sequence_id)).collect();
        topic.publish(&handle, &mut batch);
        for _ in messages {
            receipts.recv().await.unwrap().unwrap();
        }
        topic.remove_producer(&handle);
    }

    async fn topic(&self, name: &str) -> Arc<Topic> {
        self.broker.topic(&TopicName::parse(name).unwrap(), false).await.unwrap()
    }
}

fn request() -> ProducerRequest {
    ProducerRequest {
        producer_id: 1,
        name: "producer".into(),
        user_provided_name: true,
        epoch: 0,
        access_mode: AccessMode::Shared,
        topic_epoch: None,
        schema_version: None,
        metadata: Default::default(),
        client_version: "test".into(),
        encrypted: false,
    }
}

fn publish(text: &str, sequence_id: u64) -> Publish {
    let metadata = proto::MessageMetadata {
        producer_name: "producer".into(),
        sequence_id,
        publish_time: 1_700_000_000_000 + sequence_id,
        properties: vec![proto::KeyValue { key: "k".into(), value: "v".into() }],
        ..Default::default()
    };
    let payload = geminga_wire_pulsar::frame_payload(&metadata, text.as_bytes());
    let meta = geminga_broker::entry_meta(&geminga_wire_pulsar::parse_payload(&payload).unwrap());
    Publish { sequence_id, highest_sequence_id: sequence_id, meta, payload, inner_chunk: false }
}

/// A connection that only wants its receipts.
struct Client {
    receipts: mpsc::UnboundedSender<Result<Receipt, String>>,
}

impl Client {
    fn connect() -> (Arc<dyn Peer>, mpsc::UnboundedReceiver<Result<Receipt, String>>) {
        let (receipts, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { receipts }), receiver)
    }
}

impl Peer for Client {
    fn connection_id(&self) -> u64 {
        1
    }
    fn address(&self) -> &str {
        "127.0.0.1:1"
    }
    fn receipts(&self, receipts: &[Receipt]) {
        for receipt in receipts {
            self.receipts.send(Ok(*receipt)).unwrap();
        }
    }
    fn send_failed(&self, _: u64, _: u64, error: &BrokerError) {
        self.receipts.send(Err(error.to_string())).unwrap();
    }
    fn deliver(&self, _: u64, _: i32, deliveries: &mut dyn Iterator<Item = Delivery>) {
        deliveries.for_each(drop);
    }
    fn flush(&self) {}
    fn writable(&self) -> bool {
        true
    }
    fn check_alive(&self) -> geminga_broker::Alive<'_> {
        Box::pin(std::future::ready(true))
    }
    fn active_consumer_changed(&self, _: u64, _: bool) {}
    fn end_of_topic(&self, _: u64) {}
    fn close_producer(&self, _: u64) {}
    fn close_consumer(&self, _: u64) {}
    fn acknowledged(&self, _: u64, _: u64, _: Result<(), BrokerError>) {}
}

const NONE: Value = Value::Null;
const TOPICS: &str = "/persistent/public/default";

#[tokio::test]
async fn clusters_tenants_and_namespaces() {
    let rest = Rest::start().await;
    rest.expect("PUT", "/clusters/c2", json!({"serviceUrl": "http://x:8080"}), 200).await;
    rest.expect("PUT", "/clusters/c2", json!({}), 409).await;
    rest.expect("PUT", "/clusters/c@2", json!({}), 412).await;
    assert_eq!(rest.get("/clusters").await, json!(["c2", "standalone"]));
    assert_eq!(rest.get("/clusters/c2").await["serviceUrl"], "http://x:8080");
    rest.expect("DELETE", "/clusters/standalone", NONE, 412).await;
    rest.expect("DELETE", "/clusters/c2", NONE, 204).await;
    rest.expect("GET", "/clusters/c2", NONE, 404).await;

    let tenant = json!({"adminRoles": ["r"], "allowedClusters": ["standalone"]});
    rest.expect("PUT", "/tenants/t", tenant.clone(), 204).await;
    rest.expect("PUT", "/tenants/t", tenant.clone(), 409).await;
    assert_eq!(rest.get("/tenants/t").await, tenant);
    let refused = rest.expect("PUT", "/tenants/u", json!({"allowedClusters": ["nowhere"]}), 412).await;
    assert_eq!(refused, json!({"reason": "Clusters do not exist"}));
    assert_eq!(rest.expect("GET", "/tenants/nope", NONE, 404).await["reason"], "Tenant does not exist");

    rest.expect("PUT", "/namespaces/t/n", json!({"bundles": {"numBundles": 8}}), 204).await;
    rest.expect("PUT", "/namespaces/t/n", NONE, 409).await;
    rest.expect("PUT", "/namespaces/nope/n", NONE, 404).await;
    rest.expect("PUT", "/namespaces/t/n@", NONE, 412).await;
    assert_eq!(rest.get("/namespaces/t").await, json!(["t/n"]));
    assert_eq!(rest.get("/namespaces/t/n/bundles").await["numBundles"], 8);
    assert_eq!(rest.get("/namespaces/t/n").await["replication_clusters"], json!(["standalone"]));
    rest.expect("DELETE", "/tenants/t", NONE, 409).await;
    rest.expect("PUT", "/persistent/t/n/a", NONE, 204).await;
    rest.expect("DELETE", "/namespaces/t/n", NONE, 409).await;
    rest.expect("DELETE", "/namespaces/t/n?force=true", NONE, 204).await;
    rest.expect("DELETE", "/tenants/t", NONE, 204).await;
    rest.expect("GET", "/namespaces/t/n", NONE, 404).await;
}

#[tokio::test]
async fn policies_reach_loaded_topics() {
    let rest = Rest::start().await;
    let namespace = "/namespaces/public/default";
    assert_eq!(rest.get(&format!("{namespace}/retention")).await, NONE);
    let retention = json!({"retentionTimeInMinutes": 10, "retentionSizeInMB": 100});
    rest.expect("POST", &format!("{namespace}/retention"), retention.clone(), 204).await;
    assert_eq!(rest.get(&format!("{namespace}/retention")).await, retention);
    let quota = json!({"limitSize": 1_000_000, "policy": "producer_exception"});
    rest.expect("POST", &format!("{namespace}/backlogQuota"), quota, 204).await;
    assert_eq!(rest.get(&format!("{namespace}/backlogQuotaMap")).await["destination_storage"]["limitSize"], 1_000_000);
    let too_large = json!({"limitSize": 1_000_000_000, "policy": "producer_exception"});
    rest.expect("POST", &format!("{namespace}/backlogQuota"), too_large, 412).await;
    rest.expect("POST", &format!("{namespace}/messageTTL"), json!(-1), 412).await;
    rest.expect(
        "POST",
        &format!("{namespace}/persistence"),
        json!({"bookkeeperEnsemble": 1, "bookkeeperWriteQuorum": 2, "bookkeeperAckQuorum": 2}),
        400,
    )
    .await;
    let rate = json!({"dispatchThrottlingRateInMsg": 10, "dispatchThrottlingRateInByte": 100, "relativeToPublishRate": false, "ratePeriodInSecond": 1});
    rest.expect("POST", &format!("{namespace}/dispatchRate"), rate.clone(), 204).await;
    assert_eq!(rest.get(&format!("{namespace}/dispatchRate")).await, rate);
    let filters = json!({"entryFilterNames": "f"});
    rest.expect("POST", &format!("{namespace}/entryFilters"), filters.clone(), 400).await;
    rest.expect("POST", &format!("{namespace}/compactionThreshold"), json!(1000), 204).await;
    assert_eq!(rest.get(&format!("{namespace}/compactionThreshold")).await, 1000, "kept, though it has no effect");
    rest.expect("PUT", &format!("{namespace}/property/k/v"), NONE, 204).await;
    assert_eq!(rest.get(&format!("{namespace}/property/k")).await, "v");

    rest.expect("PUT", &format!("{TOPICS}/a"), NONE, 204).await;
    let topic = rest.topic("a").await;
    assert_eq!(topic.policies().max_producers(), None);
    rest.expect("POST", &format!("{namespace}/maxProducersPerTopic"), json!(3), 204).await;
    assert_eq!(topic.policies().max_producers(), Some(3));
    assert_eq!(rest.get(&format!("{TOPICS}/a/maxProducers")).await, NONE);
    assert_eq!(rest.get(&format!("{TOPICS}/a/maxProducers?applied=true")).await, 3);
    rest.expect("POST", &format!("{TOPICS}/a/maxProducers"), json!(7), 204).await;
    assert_eq!(topic.policies().max_producers(), Some(7));
    rest.expect("POST", &format!("{TOPICS}/a/messageTTL?messageTTL=5"), NONE, 204).await;
    assert_eq!(topic.policies().message_ttl_ms(), Some(5000));
    rest.expect("DELETE", &format!("{TOPICS}/a/maxProducers"), NONE, 204).await;
    rest.expect("DELETE", &format!("{namespace}/maxProducersPerTopic"), NONE, 204).await;
    assert_eq!(topic.policies().max_producers(), None);
    rest.expect("GET", &format!("{TOPICS}/nope/retention"), NONE, 404).await;
    rest.expect("POST", &format!("{namespace}/retention"), json!("nonsense"), 400).await;
}

#[tokio::test]
async fn topics_and_partitions() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/a+b%2Bc"), NONE, 204).await;
    rest.expect("PUT", &format!("{TOPICS}/a+b%2Bc"), NONE, 409).await;
    assert_eq!(rest.get(TOPICS).await, json!(["persistent://public/default/a b+c"]));
    rest.expect("PUT", "/persistent/public/nope/a", NONE, 404).await;
    rest.expect("PUT", &format!("{TOPICS}/x-partition-0"), NONE, 412).await;

    rest.expect("PUT", &format!("{TOPICS}/p/partitions"), json!(2), 204).await;
    rest.expect("PUT", &format!("{TOPICS}/p/partitions"), json!(2), 409).await;
    rest.expect("PUT", &format!("{TOPICS}/q/partitions"), json!(0), 406).await;
    assert_eq!(rest.get(&format!("{TOPICS}/p/partitions")).await, json!({"partitions": 2, "deleted": false}));
    rest.expect("PUT", &format!("{TOPICS}/p/subscription/s"), NONE, 204).await;
    rest.publish("p-partition-0", &["1"]).await;
    rest.expect("POST", &format!("{TOPICS}/p/partitions"), json!(1), 422).await;
    rest.expect("POST", &format!("{TOPICS}/p/partitions"), json!(3), 204).await;
    assert_eq!(rest.get(&format!("{TOPICS}/p-partition-2/subscriptions")).await, json!(["s"]));
    let stats = rest.get(&format!("{TOPICS}/p/partitioned-stats")).await;
    assert_eq!(stats["metadata"]["partitions"], 3);
    assert_eq!(stats["msgInCounter"], 1);
    assert_eq!(stats["subscriptions"]["s"]["msgBacklog"], 1);
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 3);
    rest.expect("GET", &format!("{TOPICS}/p-partition-9/stats"), NONE, 404).await;
    rest.expect("DELETE", &format!("{TOPICS}/p"), NONE, 409).await;
    rest.expect("DELETE", &format!("{TOPICS}/p/partitions"), NONE, 204).await;
    rest.expect("DELETE", &format!("{TOPICS}/p/partitions"), NONE, 404).await;
    assert_eq!(rest.get(TOPICS).await.as_array().unwrap().len(), 1);
    rest.expect("DELETE", &format!("{TOPICS}/nope"), NONE, 404).await;
}

#[tokio::test]
async fn subscriptions_move_and_messages_are_seen() {
    let rest = Rest::start().await;
    let sub = format!("{TOPICS}/a/subscription/s%2F1");
    rest.expect("PUT", &sub, json!({"ledgerId": -1, "entryId": -1}), 204).await;
    rest.expect("PUT", &sub, NONE, 409).await;
    rest.publish("a", &["0", "1", "2", "3", "4"]).await;
    let stats = rest.get(&format!("{TOPICS}/a/stats?getEarliestTimeInBacklog=true")).await;
    assert_eq!(stats["subscriptions"]["s/1"]["msgBacklog"], 5);
    assert_eq!(stats["subscriptions"]["s/1"]["earliestMsgPublishTimeInBacklog"], 1_700_000_000_000_u64);
    assert_eq!(stats["storageSize"], stats["backlogSize"]);

    let peek = async |nth: u32| {
        let response = rest.raw("GET", &format!("/admin/v2{sub}/position/{nth}"), "").await;
        let status = response.status();
        let property = response.headers().get("X-Pulsar-PROPERTY").cloned();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        if status == StatusCode::OK {
            assert_eq!(property.unwrap(), r#"{"k":"v"}"#);
            Some(String::from_utf8(body.to_vec()).unwrap())
        } else {
            assert_eq!(status, StatusCode::NOT_FOUND);
            None
        }
    };
    assert_eq!(peek(1).await.as_deref(), Some("0"));
    assert_eq!(peek(5).await.as_deref(), Some("4"));
    assert_eq!(peek(6).await, None);
    rest.expect("POST", &format!("{sub}/skip/2"), NONE, 204).await;
    assert_eq!(peek(1).await.as_deref(), Some("2"));
    let last = rest.get(&format!("{TOPICS}/a/lastMessageId")).await;
    let ledger = last["ledgerId"].as_u64().unwrap();
    assert_eq!(last["entryId"], 4);
    rest.expect("POST", &format!("{sub}/resetcursor"), json!({"ledgerId": ledger, "entryId": 1}), 204).await;
    assert_eq!(peek(1).await.as_deref(), Some("1"));
    rest.expect("POST", &format!("{sub}/resetcursor/0"), NONE, 204).await;
    assert_eq!(peek(1).await.as_deref(), Some("0"));
    rest.expect("POST", &format!("{sub}/skip_all"), NONE, 204).await;
    assert_eq!(peek(1).await, None);
    rest.expect("POST", &format!("{sub}/expireMessages/1"), NONE, 409).await;
    let later = json!({"ledgerId": ledger, "entryId": 3, "partitionIndex": -1});
    rest.expect("PUT", &format!("{TOPICS}/a/subscription/later"), later, 204).await;
    let analysis = rest.expect("POST", &format!("{TOPICS}/a/subscription/later/analyzeBacklog"), NONE, 200).await;
    assert_eq!((&analysis["entries"], &analysis["messages"]), (&json!(2), &json!(2)));
    let internal = rest.get(&format!("{TOPICS}/a/internalStats")).await;
    assert_eq!(internal["cursors"]["later"]["markDeletePosition"], format!("{ledger}:2"));
    assert_eq!(internal["cursors"]["s%2F1"]["markDeletePosition"], format!("{ledger}:4"));
    assert_eq!(rest.get(&format!("{TOPICS}/a/subscription/later/explain")).await["backlog"], 2);
    rest.expect("GET", &format!("{TOPICS}/a/ledger/{ledger}/entry/3"), NONE, 200).await;
    rest.expect("GET", &format!("{TOPICS}/a/ledger/{ledger}/entry/9"), NONE, 404).await;
    rest.expect("GET", &format!("{TOPICS}/a/examinemessage?initialPosition=latest&messagePosition=2"), NONE, 200).await;

    rest.expect("DELETE", &format!("{TOPICS}/a/subscription/nope"), NONE, 404).await;
    rest.expect("DELETE", &sub, NONE, 204).await;
    let end = rest.expect("POST", &format!("{TOPICS}/a/terminate"), NONE, 200).await;
    assert_eq!((&end["ledgerId"], &end["entryId"]), (&json!(ledger), &json!(4)));
    rest.expect("DELETE", &format!("{TOPICS}/a"), NONE, 204).await;
    rest.expect("GET", &format!("{TOPICS}/a/stats"), NONE, 404).await;
}

#[tokio::test]
async fn schemas_have_versions() {
    let rest = Rest::start().await;
    let schema = "/schemas/public/default/sc/schema";
    let avro = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}"#;
    rest.expect("GET", schema, NONE, 404).await;
    let first = json!({"type": "AVRO", "schema": avro, "properties": {"k": "v"}});
    assert_eq!(rest.expect("POST", schema, first.clone(), 200).await, json!({"version": {"version": 0}}));
    assert_eq!(rest.expect("POST", schema, first, 200).await, json!({"version": {"version": 0}}));
    let found = rest.get(schema).await;
    assert_eq!(
        (&found["type"], &found["data"], &found["properties"]["k"]),
        (&json!("AVRO"), &json!(avro), &json!("v"))
    );
    rest.expect("POST", schema, json!({"type": "STRING", "schema": ""}), 409).await;
    rest.expect("POST", schema, json!({"type": "AVRO", "schema": "garbage"}), 422).await;
    assert_eq!(rest.expect("DELETE", schema, NONE, 200).await, json!({"version": 1}));
    rest.expect("GET", schema, NONE, 404).await;
    assert_eq!(rest.get(&format!("{schema}s")).await, json!({"getSchemaResponses": []}));
    let string = json!({"type": "STRING", "schema": ""});
    assert_eq!(rest.expect("POST", schema, string, 200).await, json!({"version": {"version": 2}}));
}

#[tokio::test]
async fn health_lookup_metrics_and_what_is_not_served() {
    let rest = Rest::start().await;
    assert_eq!(rest.get("/brokers/health").await, "ok");
    rest.publish("a", &["1"]).await;
    let page = rest.raw("GET", "/metrics/", "").await;
    assert_eq!(page.status(), StatusCode::OK);
    let page = String::from_utf8(to_bytes(page.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap();
    let topics = "pulsar_topics_count{cluster=\"standalone\",namespace=\"public/default\"} 1\n";
    assert!(page.contains(topics), "{page}");
    let lookup = rest.raw("GET", "/lookup/v2/topic/persistent/public/default/a", "").await;
    let lookup: Value = serde_json::from_slice(&to_bytes(lookup.into_body(), usize::MAX).await.unwrap()).unwrap();
    assert_eq!(lookup["brokerUrl"], "pulsar://127.0.0.1:6650");
    let refused = rest.expect("GET", "/sinks/x", NONE, 501).await;
    assert_eq!(refused["reason"], "GET /admin/v2/sinks/x is not supported");
    assert_eq!(rest.raw("GET", "/nonsense", "").await.status(), StatusCode::NOT_FOUND);
    let malformed = rest.raw("PUT", "/admin/v2/tenants/t", "{bad").await;
    assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
    let large = rest.raw("PUT", "/admin/v2/tenants/t", &"x".repeat(3 << 20)).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(rest.raw("GET", "/admin/v2/tenants/%zz", "").await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn non_persistent_topics() {
    let rest = Rest::start().await;
    let topics = "/non-persistent/public/default";
    rest.expect("PUT", &format!("{topics}/t"), NONE, 204).await;
    rest.publish("non-persistent://public/default/t", &["a", "b"]).await;
    assert_eq!(rest.get(topics).await, json!(["non-persistent://public/default/t"]));
    assert_eq!(rest.get(TOPICS).await, json!([]));
    rest.expect("PUT", &format!("{topics}/t/subscription/s"), NONE, 204).await;
    let stats = rest.get(&format!("{topics}/t/stats")).await;
    assert_eq!((&stats["msgInCounter"], &stats["storageSize"]), (&json!(2), &json!(0)));
    assert_eq!((&stats["msgDropRate"], &stats["subscriptions"]["s"]["msgDropRate"]), (&json!(0.0), &json!(0.0)));
    let refused = rest.expect("POST", &format!("{topics}/t/subscription/s/skip/1"), NONE, 405).await;
    assert_eq!(refused["reason"], "Skip messages on a non-persistent topic is not allowed");
    rest.expect("DELETE", &format!("{topics}/t/subscription/s"), NONE, 204).await;

    rest.expect("PUT", &format!("{topics}/p/partitions"), json!(2), 204).await;
    rest.publish("non-persistent://public/default/p-partition-1", &["a"]).await;
    let stats = rest.get(&format!("{topics}/p/partitioned-stats")).await;
    assert_eq!((&stats["msgInCounter"], &stats["msgDropRate"]), (&json!(1), &json!(0.0)));
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 2);
    rest.expect("DELETE", &format!("{topics}/p-partition-0"), NONE, 204).await;
    let stats = rest.get(&format!("{topics}/p/partitioned-stats")).await;
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 1, "a partition that is gone is left out");
    rest.expect("PUT", &format!("{topics}/p/subscription/s"), NONE, 204).await;
    assert_eq!(rest.get(&format!("{topics}/p/subscriptions")).await, json!(["s"]));
    let stats = rest.get(&format!("{topics}/p/partitioned-stats")).await;
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 2, "and comes back with its first use");
}
