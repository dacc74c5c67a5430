//! Requests that a node refuses, each with its code.

mod peer;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_log::{Log, LogOptions};
use geminga_storage_node::{NodeOptions, StorageNode, serve};
use geminga_wire_bookkeeper::{Code, LAST_ENTRY, LacHead, Request, WireVersion, WriteLac, encode_request};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use peer::{add, answer, ask, frame, read};

struct Fixture {
    _folder: TempDir,
    node: Arc<StorageNode>,
    address: String,
    _stop: watch::Sender<bool>,
}

async fn start() -> Fixture {
    let folder = TempDir::new().expect("a folder");
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let (log, _) = Log::open(&folder.path().join("log"), options).expect("it opens");
    let node = StorageNode::new(log, NodeOptions::new(64 << 20));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(serve(listener, node.clone(), stopped));
    Fixture { _folder: folder, node, address, _stop: stop }
}

async fn code(stream: &mut TcpStream, request: &[u8]) -> Code {
    ask(stream, request).await.expect("answered").code
}

#[tokio::test]
async fn another_version_is_refused_and_the_connection_goes_on() {
    let fixture = start().await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    // Behind the length, the first byte is the version; in a header of protobuf it is the value of the first field.
    for (version, at, ours, other) in [(WireVersion::Compact, 4, 2, 3), (WireVersion::Protobuf, 7, 3, 2)] {
        let mut request = read(version, 5, 0, None).to_vec();
        assert_eq!(std::mem::replace(&mut request[at], other), ours);
        assert_eq!(code(&mut stream, &request).await, Code::BadVersion, "{version:?}");
        assert_eq!(code(&mut stream, &read(version, 5, 0, None)).await, Code::NoLedger, "{version:?}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_a_bad_request() {
    let fixture = start().await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    assert_eq!(code(&mut stream, &add(5, 0, b"content")).await, Code::Ok);
    let confirm = |ledger, body: &[u8]| {
        let body = Bytes::copy_from_slice(body);
        let write = Request::WriteLac(WriteLac { ledger, last_add_confirmed: 0, master_key: [1; 20], body });
        frame(|sink| encode_request(WireVersion::Protobuf, 1, &write, sink))
    };
    let lac = LacHead { ledger: 5, last_add_confirmed: 0 }.encode();
    for (ledger, body) in [(5, &b"short"[..]), (6, &lac), (-1, &lac)] {
        assert_eq!(code(&mut stream, &confirm(ledger, body)).await, Code::BadRequest, "{ledger} {body:?}");
    }
    assert_eq!(code(&mut stream, &confirm(5, &lac)).await, Code::Ok);
    assert_eq!(code(&mut stream, &add(-5, 0, b"content")).await, Code::BadRequest);
    for version in [WireVersion::Compact, WireVersion::Protobuf] {
        assert_eq!(code(&mut stream, &read(version, -5, LAST_ENTRY, Some([1; 20]))).await, Code::BadRequest);
    }
}

/// Whoever does not take the answers to what was asked is refused more, and the other answers come all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_reads_at_once_are_refused() {
    const READS: usize = 40_000;
    let fixture = start().await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    assert_eq!(code(&mut stream, &add(5, 0, &[7; 4000])).await, Code::Ok);
    stream.write_all(&read(WireVersion::Compact, 5, 0, None).repeat(READS)).await.expect("all are taken");
    let (mut codes, mut buffer) = (Vec::new(), BytesMut::new());
    for _ in 0..READS {
        codes.push(answer(&mut stream, &mut buffer).await.expect("answered").code);
    }
    let count = |code| codes.iter().filter(|answered| **answered == code).count();
    let (served, refused) = (count(Code::Ok), count(Code::TooManyRequests));
    assert!(served >= 20_000 && refused > 0 && served + refused == READS, "{served} served, {refused} refused");
    let again = read(WireVersion::Protobuf, 5, 0, None);
    assert_eq!(code(&mut stream, &again).await, Code::Ok, "only what was too much");
}

#[tokio::test]
async fn what_a_log_does_not_take_is_an_io_error() {
    let fixture = start().await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    assert_eq!(code(&mut stream, &add(5, 0, b"content")).await, Code::Ok);
    fixture.node.close();
    assert_eq!(code(&mut stream, &add(5, 1, b"content")).await, Code::Io);
    for version in [WireVersion::Compact, WireVersion::Protobuf] {
        let fence = read(version, 5, LAST_ENTRY, Some([1; 20]));
        assert_eq!(code(&mut stream, &fence).await, Code::Io, "nobody is told that a ledger is fenced");
        assert_eq!(code(&mut stream, &read(version, 5, 0, None)).await, Code::Ok, "what is there is served");
    }
}
