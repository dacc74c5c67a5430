//! Requests that a node refuses, each with its code.

mod peer;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use geminga_log::{Log, LogOptions};
use geminga_storage_node::{Directories, Directory, NodeOptions, StorageNode, serve};
use geminga_wire_bookkeeper::{
    Add, BatchRead, Code, Digest, DigestKind, LAST_ENTRY, LacHead, Request, WireVersion, WriteLac, encode_request,
};
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
    start_in_limbo(0).await
}

/// Of ledgers below that are not here the node does not know whether it had them.
async fn start_in_limbo(limbo_below: u64) -> Fixture {
    let folder = TempDir::new().expect("a folder");
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let (log, _) = Log::open(&folder.path().join("log"), options).expect("it opens");
    let directory = Directory { path: folder.path().to_owned(), log };
    let directories = Directories::new(vec![directory], limbo_below).expect("there is one");
    let node = StorageNode::new(directories, NodeOptions::new(64 << 20));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(serve(listener, node.clone(), stopped));
    Fixture { _folder: folder, node, address, _stop: stop }
}

async fn code(stream: &mut TcpStream, request: &[u8]) -> Code {
    ask(stream, request).await.expect("answered").code
}

fn encoded(version: WireVersion, request: &Request) -> Bytes {
    frame(|sink| encode_request(version, 1, request, sink))
}

fn add_as(version: WireVersion, ledger: i64, entry: i64, recovery: bool) -> Bytes {
    let payload = Bytes::from_static(b"content");
    let head = Digest::new(ledger, DigestKind::Crc32c, b"").entry_head(entry, entry - 1, 0, &[&payload]);
    let body = [head, payload].concat().into();
    let master_key = [1; 20];
    let add = Add { ledger, entry, master_key, recovery, high_priority: false, deferred_sync: false, body };
    encoded(version, &Request::Add(add))
}

fn confirm(ledger: i64, body: &[u8]) -> Bytes {
    let body = Bytes::copy_from_slice(body);
    let write = WriteLac { ledger, last_add_confirmed: 0, master_key: [1; 20], body };
    encoded(WireVersion::Protobuf, &Request::WriteLac(write))
}

const BOTH: [WireVersion; 2] = [WireVersion::Compact, WireVersion::Protobuf];

#[tokio::test]
async fn a_node_that_takes_nothing_says_so_to_writers_only() {
    let fixture = start().await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    let lac = LacHead { ledger: 5, last_add_confirmed: 0 }.encode();
    assert_eq!(code(&mut stream, &add(5, 0, b"content")).await, Code::Ok);
    assert_eq!(code(&mut stream, &confirm(5, &lac)).await, Code::Ok);
    fixture.node.set_draining(true);
    for (entry, version) in (1..).zip(BOTH) {
        assert_eq!(code(&mut stream, &add_as(version, 5, entry, false)).await, Code::ReadOnly, "{version:?}");
        assert_eq!(code(&mut stream, &add_as(version, 5, entry, true)).await, Code::Ok, "a repair is always welcome");
        assert_eq!(code(&mut stream, &read(version, 5, entry, None)).await, Code::Ok, "{version:?}");
    }
    assert_eq!(code(&mut stream, &confirm(5, &lac)).await, Code::ReadOnly);
    fixture.node.set_draining(false);
    assert_eq!(code(&mut stream, &confirm(5, &lac)).await, Code::Ok);
}

/// What such a ledger is answered with is not "there is none".
#[tokio::test]
async fn what_may_have_been_here_is_unknown_to_every_request() {
    let fixture = start_in_limbo(50).await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    for version in BOTH {
        let key = Some([1; 20]);
        for request in [read(version, 7, 0, None), read(version, 7, LAST_ENTRY, key), add_as(version, 7, 0, false)] {
            assert_eq!(code(&mut stream, &request).await, Code::UnknownLedgerState, "{version:?}");
        }
        assert_eq!(code(&mut stream, &read(version, 50, 0, None)).await, Code::NoLedger, "it is younger");
    }
    let batch = BatchRead {
        ledger: 7,
        entry: 0,
        request_id: 3,
        max_count: 10,
        max_bytes: 1 << 20,
        fence: false,
        master_key: None,
    };
    assert_eq!(
        code(&mut stream, &encoded(WireVersion::Compact, &Request::BatchRead(batch))).await,
        Code::UnknownLedgerState
    );
    for request in [Request::ListEntries { ledger: 7 }, Request::ReadLac { ledger: 7 }] {
        let answered = code(&mut stream, &encoded(WireVersion::Protobuf, &request)).await;
        assert_eq!(answered, Code::UnknownLedgerState, "{request:?}");
    }
    let lac = LacHead { ledger: 7, last_add_confirmed: 0 }.encode();
    assert_eq!(code(&mut stream, &confirm(7, &lac)).await, Code::UnknownLedgerState);
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
