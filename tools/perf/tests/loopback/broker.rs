//! As much of a broker as the load generator needs: topics in memory, a thread per connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::proto::command_partitioned_topic_metadata_response::LookupType as PartitionsType;
use geminga_wire_pulsar::{
    Command, DEFAULT_MAX_FRAME_SIZE, Frame, MessageHeader, decode_frame, encode_message_header, encode_send_receipt,
    encode_simple, parse_payload, proto,
};

#[derive(Default)]
struct State {
    topics: Mutex<HashMap<String, Vec<Bytes>>>,
    /// 0: never.
    refuse_every: AtomicU64,
    hang_up_after: AtomicU64,
    sends: AtomicU64,
    discard: bool,
    over: AtomicBool,
}

pub struct Broker {
    address: SocketAddr,
    state: Arc<State>,
}

impl Broker {
    pub fn start() -> Self {
        Self::with(State::default())
    }

    /// Acknowledges without looking at payloads or keeping them.
    pub fn discarding() -> Self {
        Self::with(State { discard: true, ..Default::default() })
    }

    fn with(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(state);
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    break;
                }
                let state = shared.clone();
                std::thread::spawn(move || Connection::new(stream.unwrap(), address, state).serve());
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("pulsar://{}", self.address)
    }

    pub fn refuse_every(&self, n: u64) {
        self.state.refuse_every.store(n, Ordering::SeqCst);
    }

    pub fn hang_up_after(&self, sends: u64) {
        self.state.hang_up_after.store(sends, Ordering::SeqCst);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

struct Reader {
    topic: String,
    position: usize,
    permits: u64,
}

struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    state: Arc<State>,
    producers: HashMap<u64, String>,
    consumers: HashMap<u64, Reader>,
    out: BytesMut,
}

impl Connection {
    fn new(stream: TcpStream, address: SocketAddr, state: Arc<State>) -> Self {
        Self { stream, address, state, producers: HashMap::new(), consumers: HashMap::new(), out: BytesMut::new() }
    }

    /// Until the peer goes.
    fn serve(mut self) {
        let mut received = BytesMut::new();
        let mut chunk = vec![0; 1 << 20];
        while let Ok(n @ 1..) = self.stream.read(&mut chunk) {
            received.extend_from_slice(&chunk[..n]);
            while let Some(frame) = decode_frame(&mut received, DEFAULT_MAX_FRAME_SIZE).unwrap() {
                if !self.handle(frame) {
                    return;
                }
            }
            if self.stream.write_all(&self.out).is_err() {
                return;
            }
            self.out.clear();
        }
    }

    fn reply(&mut self, command: impl Into<Command>) {
        encode_simple(&command.into(), &mut self.out);
    }

    /// False to hang up.
    fn handle(&mut self, frame: Frame) -> bool {
        match frame.command {
            Command::Connect(_) => {
                self.reply(proto::CommandConnected { server_version: "test".into(), ..Default::default() });
                // Has to be answered, and must not confuse the handshake.
                self.reply(proto::CommandPing {});
            }
            Command::PartitionedMetadata(request) => self.reply(proto::CommandPartitionedTopicMetadataResponse {
                partitions: Some(0),
                request_id: request.request_id,
                response: Some(PartitionsType::Success.into()),
                ..Default::default()
            }),
            Command::Lookup(request) => self.reply(proto::CommandLookupTopicResponse {
                broker_service_url: Some(format!("pulsar://{}", self.address)),
                response: Some(if request.authoritative() { LookupType::Connect } else { LookupType::Redirect }.into()),
                request_id: request.request_id,
                authoritative: Some(true),
                ..Default::default()
            }),
            Command::Producer(request) => {
                self.producers.insert(request.producer_id, request.topic);
                let producer_name = format!("p-{}", request.producer_id);
                self.reply(proto::CommandProducerSuccess {
                    request_id: request.request_id,
                    producer_name,
                    ..Default::default()
                });
            }
            Command::Send(send) => return self.store(&send, frame.payload),
            Command::Subscribe(request) => {
                let reader = Reader { topic: request.topic, position: 0, permits: 0 };
                self.consumers.insert(request.consumer_id, reader);
                self.reply(proto::CommandSuccess { request_id: request.request_id, schema: None });
            }
            Command::Flow(flow) => self.deliver(flow),
            Command::CloseConsumer(request) => {
                self.consumers.remove(&request.consumer_id);
                self.reply(proto::CommandSuccess { request_id: request.request_id, schema: None });
            }
            Command::Ack(_) | Command::Pong(_) => {}
            other => panic!("unexpected {}", other.name()),
        }
        true
    }

    fn store(&mut self, send: &proto::CommandSend, payload: Bytes) -> bool {
        let count = self.state.sends.fetch_add(1, Ordering::SeqCst) + 1;
        let hang_up = self.state.hang_up_after.load(Ordering::SeqCst);
        if hang_up > 0 && count > hang_up {
            return false;
        }
        let every = self.state.refuse_every.load(Ordering::SeqCst);
        if every > 0 && count.is_multiple_of(every) {
            self.reply(proto::CommandSendError {
                producer_id: send.producer_id,
                sequence_id: send.sequence_id,
                error: proto::ServerError::PersistenceError.into(),
                message: "refused by the test".into(),
            });
            return true;
        }
        let highest = send.highest_sequence_id();
        if !self.state.discard {
            let view = parse_payload(&payload).unwrap();
            assert!(view.checksum.is_some() && view.verify_checksum());
            assert_eq!((view.meta.num_messages as i32, view.meta.sequence_id), (send.num_messages(), send.sequence_id));
            let topic = self.producers[&send.producer_id].clone();
            self.state.topics.lock().unwrap().entry(topic).or_default().push(payload);
        }
        encode_send_receipt(send.producer_id, send.sequence_id, highest, 1, count, &mut self.out);
        true
    }

    fn deliver(&mut self, flow: proto::CommandFlow) {
        let reader = self.consumers.get_mut(&flow.consumer_id).unwrap();
        reader.permits += u64::from(flow.message_permits);
        let topics = self.state.topics.lock().unwrap();
        let entries = topics.get(&reader.topic).map_or(&[][..], Vec::as_slice);
        while let Some(entry) = entries.get(reader.position).filter(|_| reader.permits > 0) {
            let count = parse_payload(entry).unwrap().meta.num_messages;
            reader.permits = reader.permits.saturating_sub(u64::from(count));
            let header = MessageHeader {
                consumer_id: flow.consumer_id,
                ledger_id: 1,
                entry_id: reader.position as u64,
                partition: -1,
                ..Default::default()
            };
            encode_message_header(&header, entry.len(), &mut self.out);
            self.out.extend_from_slice(entry);
            reader.position += 1;
        }
    }
}
