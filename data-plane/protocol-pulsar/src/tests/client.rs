//! A client of one connection, whose other end is at hand too.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use geminga_broker::Broker;
use geminga_wire_pulsar::{Command, DEFAULT_MAX_FRAME_SIZE, SendHeader, decode_frame, encode_simple, proto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::TOPIC;
use super::fixture::{PATIENCE, eventually};
use crate::connection::Connection;

pub struct Client {
    stream: TcpStream,
    received: BytesMut,
    queued: BytesMut,
    pub connected: proto::CommandConnected,
    pub connection: Arc<Connection>,
    pub served: JoinHandle<()>,
}

impl Client {
    pub async fn connect(broker: &Arc<Broker>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, address) = listener.accept().await.unwrap();
        let accepted = Arc::new(accepted);
        let connection = Arc::new(Connection::new(&accepted, address, broker).unwrap());
        let served = tokio::spawn(connection.clone().run(accepted));
        let (received, queued, connected) = Default::default();
        let mut client = Self { stream, received, queued, connected, connection, served };
        client.send(&proto::CommandConnect { client_version: "test".into(), ..Default::default() }.into()).await;
        let Command::Connected(connected) = client.next().await else { panic!("no CONNECTED") };
        client.connected = *connected;
        client
    }

    pub fn queue(&mut self, command: &Command) {
        encode_simple(command, &mut self.queued);
    }

    pub async fn send_queued(&mut self) {
        let queued = self.queued.split();
        self.send_bytes(&queued).await;
    }

    pub async fn send(&mut self, command: &Command) {
        self.queue(command);
        self.send_queued().await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// A request that has to succeed.
    pub async fn ask(&mut self, command: impl Into<Command>) {
        self.send(&command.into()).await;
        let answer = self.next().await;
        assert!(!matches!(answer, Command::Error(_)), "{answer:?}");
    }

    /// A request that has to be refused; the code.
    pub async fn is_refused(&mut self, command: impl Into<Command>) -> proto::ServerError {
        self.send(&command.into()).await;
        let Command::Error(error) = self.next().await else { panic!("it was not refused") };
        error.error()
    }

    pub async fn subscribe(&mut self, consumer_id: u64, subscription: &str) {
        let (topic, subscription) = (TOPIC.to_owned(), subscription.to_owned());
        self.ask(proto::CommandSubscribe { topic, subscription, consumer_id, request_id: 7, ..Default::default() })
            .await;
    }

    pub async fn create_producer(&mut self, producer_id: u64) {
        let topic = TOPIC.to_owned();
        self.ask(proto::CommandProducer { topic, producer_id, request_id: 8, ..Default::default() }).await;
    }

    pub async fn publish(&mut self, producer_id: u64, sequence_id: u64) {
        let metadata = proto::MessageMetadata { producer_name: "p".into(), sequence_id, ..Default::default() };
        let payload = geminga_wire_pulsar::frame_payload(&metadata, b"text");
        let header = SendHeader { producer_id, sequence_id, num_messages: 1, ..Default::default() };
        geminga_wire_pulsar::encode_send_header(&header, payload.len(), &mut self.queued);
        self.queued.extend_from_slice(&payload);
        self.send_queued().await;
    }

    /// The next command that comes; `None` at the end of the connection.
    async fn receive(&mut self) -> Option<Command> {
        let received = async {
            loop {
                if let Some(frame) = decode_frame(&mut self.received, DEFAULT_MAX_FRAME_SIZE).unwrap() {
                    return Some(frame.command);
                }
                match self.stream.read_buf(&mut self.received).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, received).await.expect("something comes in time")
    }

    pub async fn next(&mut self) -> Command {
        self.receive().await.expect("the connection goes on")
    }

    pub async fn has_ended(&mut self) -> bool {
        self.receive().await.is_none()
    }

    /// Reads on until a command of that name comes.
    pub async fn hears(&mut self, name: &str) {
        while self.next().await.name() != name {}
    }

    /// Asks, and has no answer, but is asked itself.
    pub async fn is_held_back(&mut self) {
        // What it sends wakes the reading; what it sends then is not read.
        self.send(&Command::from(proto::CommandPing {})).await;
        let connection = self.connection.clone();
        eventually("it is held back", || connection.held_back.load(Ordering::Relaxed)).await;
        for _ in 0..4 {
            self.hears("PING").await;
        }
        assert!(self.connection.held_back.load(Ordering::Relaxed));
    }
}
