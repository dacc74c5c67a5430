//! A connection as a client sees it, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{ClusterData, MemoryStore, Metadata, Policies, TenantInfo};
use geminga_wire_pulsar::{Command, decode_frame, encode_simple, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(20);

/// A broker on metadata and ledgers in memory; it serves until the sender goes.
async fn serve() -> (SocketAddr, watch::Sender<bool>) {
    let metadata = Metadata::new(Arc::new(MemoryStore::default()));
    metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.unwrap();
    let policies = Policies::new_namespace("standalone", 4);
    metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(MemoryLedgers::default())).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(geminga_protocol_pulsar::serve(listener, broker, stopped));
    (address, stop)
}

struct Client {
    stream: TcpStream,
    received: BytesMut,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let mut client = Self { stream: TcpStream::connect(address).await.unwrap(), received: BytesMut::new() };
        client
            .send(proto::CommandConnect {
                client_version: "test".into(),
                protocol_version: Some(19),
                ..Default::default()
            })
            .await;
        client.until(|command| matches!(command, Command::Connected(_)).then_some(())).await;
        client
    }

    async fn send(&mut self, command: impl Into<Command>) {
        let mut bytes = BytesMut::new();
        encode_simple(&command.into(), &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Reads on until something is what is looked for. Nothing is answered meanwhile.
    async fn until<T>(&mut self, wanted: impl Fn(Command) -> Option<T>) -> T {
        let found = async {
            loop {
                while let Some(frame) = decode_frame(&mut self.received, 1 << 20).unwrap() {
                    if let Some(found) = wanted(frame.command) {
                        return found;
                    }
                }
                assert!(self.stream.read_buf(&mut self.received).await.unwrap() > 0, "the connection has ended");
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("it comes in time")
    }

    /// Whether a request succeeds.
    async fn answer(&mut self, request: u64) -> bool {
        self.until(|command| match command {
            Command::Success(success) if success.request_id == request => Some(true),
            Command::Error(error) if error.request_id == request => Some(false),
            Command::GetLastMessageIdResponse(found) if found.request_id == request => Some(true),
            _ => None,
        })
        .await
    }

    async fn subscribe(&mut self, topic: &str, request_id: u64) {
        self.send(proto::CommandSubscribe {
            topic: topic.into(),
            subscription: "s".into(),
            sub_type: proto::command_subscribe::SubType::Exclusive as i32,
            consumer_id: 1,
            request_id,
            ..Default::default()
        })
        .await;
    }
}

/// As when a client gives up waiting for a subscription, and takes the number of its consumer for another one.
#[tokio::test]
async fn a_request_that_fails_late_leaves_the_consumer_that_has_its_number_since() {
    let (address, _serving) = serve().await;
    let (mut holder, mut late) = (Client::connect(address).await, Client::connect(address).await);
    holder.subscribe("taken", 1).await;
    assert!(holder.answer(1).await);

    late.subscribe("taken", 2).await;
    // Whoever has it is asked whether it is there still, and takes its time.
    holder.until(|command| matches!(command, Command::Ping(_)).then_some(())).await;
    late.send(proto::CommandCloseConsumer { consumer_id: 1, request_id: 3, ..Default::default() }).await;
    assert!(late.answer(3).await);
    late.subscribe("free", 4).await;
    assert!(late.answer(4).await);
    holder.send(proto::CommandPong {}).await;
    assert!(!late.answer(2).await);

    late.send(proto::CommandGetLastMessageId { consumer_id: 1, request_id: 5 }).await;
    assert!(late.answer(5).await, "there is a consumer of that number");
}
