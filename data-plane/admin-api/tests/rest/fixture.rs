//! The router before a broker on metadata and ledgers in memory, and a client that publishes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use geminga_broker::{
    Broker, BrokerConfig, BrokerError, MemberOptions, Ownership, Peer, ProducerGrant, ProducerRequest, Publish,
    Receipt, Topic,
};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{BrokerRecord, ClusterData, MemoryStore, Metadata, Policies, TenantInfo};
use geminga_model::TopicName;
use geminga_topic::Delivery;
use geminga_topic::producers::AccessMode;
use geminga_wire_pulsar::proto;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower::ServiceExt;

pub struct Rest {
    pub broker: Arc<Broker>,
    router: axum::Router,
}

pub async fn metadata() -> Metadata {
    let metadata = Metadata::new(Arc::new(MemoryStore::default()));
    metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.unwrap();
    let policies = Policies::new_namespace("standalone", 4);
    metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
    metadata
}

impl Rest {
    pub async fn start() -> Self {
        let ledgers = Arc::new(MemoryLedgers::default());
        let broker = Broker::start(BrokerConfig::default(), metadata().await, ledgers).await.unwrap();
        let router = geminga_admin_api::router(broker.clone(), |_| ());
        Self { broker, router }
    }

    /// One of several brokers, which the others reach over HTTP.
    pub async fn join(metadata: &Metadata, ledgers: &MemoryLedgers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let id = listener.local_addr().unwrap().to_string();
        let record = BrokerRecord { http_url: format!("http://{id}"), ..BrokerRecord::default() };
        let member = MemberOptions { id, record, session_timeout: Duration::from_secs(5) };
        let ownership = Ownership::join(metadata.clone(), member).await.unwrap();
        let ledgers = Arc::new(ledgers.clone());
        let broker = Broker::start_shared(BrokerConfig::default(), metadata.clone(), ledgers, ownership).await.unwrap();
        let router = geminga_admin_api::router(broker.clone(), |_| ());
        tokio::spawn(axum::serve(listener, router.clone()).into_future());
        Self { broker, router }
    }

    pub async fn raw(&self, method: &str, path: &str, body: &str) -> axum::response::Response {
        let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Status and body; a body that is not JSON comes as a string, no body as null.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.call_at(method, &format!("/admin/v2{path}"), body).await
    }

    /// The same with a whole path.
    pub async fn call_at(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.raw(method, path, &body).await;
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

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, Value::Null).await;
        assert_eq!(status, 200, "GET {path}: {value}");
        value
    }

    pub async fn expect(&self, method: &str, path: &str, body: Value, status: u16) -> Value {
        let (actual, value) = self.call(method, path, body).await;
        assert_eq!(actual, status, "{method} {path}: {value}");
        value
    }

    pub async fn publish(&self, topic: &str, messages: &[&str]) {
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

    pub async fn topic(&self, name: &str) -> Arc<Topic> {
        self.broker.topic(&TopicName::parse(name).unwrap(), false).await.unwrap()
    }
}

pub fn request() -> ProducerRequest {
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
        supports_partial: false,
        encrypted: false,
    }
}

fn publish(text: &str, sequence_id: u64) -> Publish {
    let metadata = proto::MessageMetadata {
        producer_name: "producer".into(),
        sequence_id,
        publish_time: 1_700_000_000_000 + sequence_id,
        properties: vec![proto::KeyValue { key: "k".into(), value: "v".into() }],
        schema_version: Some(vec![0; 8].into()),
        replicate_to: vec!["here".into(), "there".into()],
        ..Default::default()
    };
    let payload = geminga_wire_pulsar::frame_payload(&metadata, text.as_bytes());
    let meta = geminga_broker::entry_meta(&geminga_wire_pulsar::parse_payload(&payload).unwrap());
    Publish { sequence_id, highest_sequence_id: sequence_id, meta, payload, inner_chunk: false }
}

/// A connection that only wants its receipts.
pub struct Client {
    receipts: mpsc::UnboundedSender<Result<Receipt, String>>,
}

impl Client {
    pub fn connect() -> (Arc<dyn Peer>, mpsc::UnboundedReceiver<Result<Receipt, String>>) {
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
    fn close_producer(&self, _: u64, _: Option<&str>) {}
    fn close_consumer(&self, _: u64, _: Option<&str>) {}
    fn acknowledged(&self, _: u64, _: u64, _: Result<(), BrokerError>) {}
}

pub const NONE: Value = Value::Null;
pub const TOPICS: &str = "/persistent/public/default";

/// Creates the subscription `s`, as a client would.
pub async fn subscribe(rest: &Rest, topic: &str) {
    let topic = rest.broker.topic(&TopicName::parse(topic).unwrap(), true).await.unwrap();
    let (name, start) = (Arc::from("s"), geminga_broker::InitialPosition::Latest);
    topic.create_subscription(&name, start, Default::default(), false).await.unwrap();
}
