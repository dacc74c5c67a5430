//! A client that begins TLS, with a certificate or without.

mod peer;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use geminga_log::{Log, LogOptions};
use geminga_storage_node::{NodeOptions, StorageNode, TlsOptions, serve};
use geminga_wire_bookkeeper::{Code, Request, Response, WireVersion, encode_request};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use peer::{add, ask, frame, read};

struct Identity {
    certificate: String,
    key: String,
}

fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    Identity { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

struct Fixture {
    _folder: TempDir,
    address: String,
    server: Identity,
    _stop: watch::Sender<bool>,
}

/// A node that shows a certificate; `clients` are those that it lets in.
async fn start(required: bool, clients: Option<&Identity>) -> Fixture {
    let folder = TempDir::new().expect("a folder");
    let server = identity();
    let file = |name: &str, content: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let tls = TlsOptions {
        certificate: file("certificate", &server.certificate),
        key: file("key", &server.key),
        client_authorities: clients.map(|clients| file("clients", &clients.certificate)),
        required,
    };
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let (log, _) = Log::open(&folder.path().join("log"), options).expect("it opens");
    let options = NodeOptions { tls: Some(tls), ..NodeOptions::new(64 << 20) };
    let node = StorageNode::open(log, options).expect("its files are good");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(serve(listener, node, stopped));
    Fixture { _folder: folder, address, server, _stop: stop }
}

fn start_tls() -> Bytes {
    frame(|sink| encode_request(WireVersion::Protobuf, 7, &Request::StartTls, sink))
}

/// Begins TLS on a fresh connection.
async fn connect(fixture: &Fixture, client: Option<&Identity>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut stream = TcpStream::connect(&fixture.address).await?;
    assert_eq!(ask(&mut stream, &start_tls()).await?.code, Code::Ok);
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&fixture.server.certificate)).expect("it can be trusted");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(vec![certificate(&client.certificate)], key).expect("they belong together")
        }
    };
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

fn authenticate(version: WireVersion, plugin: &str) -> Bytes {
    let request = Request::Authenticate { plugin: plugin.to_owned(), payload: Bytes::new() };
    frame(|sink| encode_request(version, 8, &request, sink))
}

#[tokio::test]
async fn entries_travel_through_tls_and_in_the_clear() {
    let fixture = start(false, None).await;
    let mut tls = connect(&fixture, None).await.expect("a handshake");
    let large = vec![7; 3 << 20];
    for (number, payload) in [(0, &b"small"[..]), (1, &large)] {
        assert_eq!(ask(&mut tls, &add(5, number, payload)).await.expect("answered").code, Code::Ok);
    }
    let read = read(WireVersion::Compact, 5, 1, None);
    let mut plain = TcpStream::connect(&fixture.address).await.expect("it listens");
    for answer in [ask(&mut tls, &read).await, ask(&mut plain, &read).await] {
        let Response::Entry { body: Some(body), .. } = answer.expect("answered").response else { panic!("no entry") };
        assert!(body.ends_with(&large));
    }
    assert_eq!(ask(&mut tls, &start_tls()).await.expect("answered").code, Code::BadRequest, "it has TLS already");
    assert_eq!(
        ask(&mut plain, &authenticate(WireVersion::Protobuf, "whatever")).await.expect("answered").code,
        Code::Ok,
        "nobody asks for it"
    );
}

#[tokio::test]
async fn where_tls_is_required_nothing_is_served_in_the_clear() {
    let fixture = start(true, None).await;
    let mut plain = TcpStream::connect(&fixture.address).await.expect("it listens");
    assert_eq!(ask(&mut plain, &add(5, 0, b"x")).await.expect("answered").code, Code::Unauthorized);
    let mut tls = connect(&fixture, None).await.expect("a handshake");
    assert_eq!(ask(&mut tls, &add(5, 0, b"x")).await.expect("answered").code, Code::Ok);
}

#[tokio::test]
async fn clients_are_known_by_their_certificates() {
    let (friend, stranger) = (identity(), identity());
    let fixture = start(true, Some(&friend)).await;
    let mut tls = connect(&fixture, Some(&friend)).await.expect("a handshake");
    for version in [WireVersion::Protobuf, WireVersion::Compact] {
        let answer = ask(&mut tls, &authenticate(version, "BookieAuthZFactory")).await;
        assert_eq!(answer.expect("answered").code, Code::Ok);
    }
    let refused = ask(&mut tls, &authenticate(WireVersion::Protobuf, "sasl")).await;
    assert_eq!(refused.expect("answered").code, Code::Unauthorized);
    assert_eq!(ask(&mut tls, &add(5, 0, b"x")).await.expect("answered").code, Code::Ok);
    let refused = ask(&mut tls, &authenticate(WireVersion::Compact, "sasl")).await;
    assert!(refused.is_err(), "that answer has no code: {refused:?}");
    for client in [None, Some(&stranger)] {
        // In TLS 1.3 the client learns of it with its first read.
        let served = match connect(&fixture, client).await {
            Ok(mut tls) => ask(&mut tls, &add(5, 1, b"x")).await.is_ok(),
            Err(_) => false,
        };
        assert!(!served, "somebody without a certificate is served");
    }
}

/// Otherwise whoever stands between could have its own request taken for one that came through TLS.
#[tokio::test]
async fn what_comes_with_the_wish_for_tls_ends_the_connection() {
    let fixture = start(false, None).await;
    let mut stream = TcpStream::connect(&fixture.address).await.expect("it listens");
    let both = [start_tls(), add(5, 0, b"smuggled")].concat();
    stream.write_all(&both).await.expect("sent");
    let mut rest = Vec::new();
    // Either way it has ended.
    let _ = stream.read_to_end(&mut rest).await;
    let mut tls = connect(&fixture, None).await.expect("a handshake");
    let read = read(WireVersion::Compact, 5, 0, None);
    assert_eq!(ask(&mut tls, &read).await.expect("answered").code, Code::NoLedger);
}
