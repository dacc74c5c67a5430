//! Both sides of TLS over loopback, and certificates that change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use geminga_tls::{ClientTls, ServerTls, Stream, TlsError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Files of a server, and of the authority that has signed its certificate.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Files { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, authority: &Authority, host: &str) {
        std::fs::write(self.path("ca.pem"), authority.pem()).unwrap();
        self.write_server(authority, host);
    }

    fn write_server(&self, authority: &Authority, host: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
        std::fs::write(self.path("server.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path("server.key"), key.serialize_pem()).unwrap();
    }

    fn server(&self) -> Result<ServerTls, TlsError> {
        ServerTls::open(&self.path("server.pem"), &self.path("server.key"), None, &[])
    }

    fn client(&self) -> ClientTls {
        ClientTls::trusting(&self.path("ca.pem")).unwrap()
    }
}

/// Both ends of one connection.
async fn connect(
    server: &ServerTls,
    client: &ClientTls,
    host: &str,
) -> (std::io::Result<Stream>, std::io::Result<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::join!(async { server.accept(listener.accept().await.unwrap().0).await }, async {
        client.connect(host, TcpStream::connect(address).await.unwrap()).await
    },)
}

#[tokio::test]
async fn bytes_go_both_ways_and_an_end_is_seen() {
    let files = Files::new();
    files.write(&authority(), "broker.example");
    let (server, client) = connect(&files.server().unwrap(), &files.client(), "broker.example").await;
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    assert!(server.is_tls() && client.is_tls());
    let large = vec![7; 300_000];
    let (written, read) = tokio::join!(
        async {
            client.write_all(&large).await?;
            client.shutdown().await
        },
        async {
            let mut all = Vec::new();
            server.read_to_end(&mut all).await.map(|_| all)
        },
    );
    written.unwrap();
    assert_eq!(read.unwrap(), large);
}

#[tokio::test]
async fn a_name_that_the_certificate_is_not_for_is_refused() {
    let files = Files::new();
    files.write(&authority(), "broker.example");
    let (_, client) = connect(&files.server().unwrap(), &files.client(), "other.example").await;
    let error = client.unwrap_err().to_string();
    assert!(error.contains("not valid for"), "{error}");
}

#[tokio::test]
async fn an_unknown_authority_is_refused() {
    let (files, others) = (Files::new(), Files::new());
    files.write(&authority(), "127.0.0.1");
    others.write(&authority(), "127.0.0.1");
    let (_, client) = connect(&files.server().unwrap(), &others.client(), "127.0.0.1").await;
    let error = client.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn changed_files_are_used_and_wrong_ones_are_not() {
    let files = Files::new();
    let (first, second) = (authority(), authority());
    files.write(&first, "127.0.0.1");
    let server = Arc::new(files.server().unwrap());
    let old = files.client();
    assert!(connect(&server, &old, "127.0.0.1").await.1.is_ok());

    files.write(&second, "127.0.0.1");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let new = files.client();
    assert!(connect(&server, &new, "127.0.0.1").await.1.is_ok());

    // A certificate without its key: half of a change that is not complete yet.
    let key = std::fs::read(files.path("server.key")).unwrap();
    files.write_server(&second, "127.0.0.1");
    let new_key = std::fs::read(files.path("server.key")).unwrap();
    std::fs::write(files.path("server.key"), key).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(connect(&server, &new, "127.0.0.1").await.1.is_ok(), "what was read before stays in use");
    std::fs::write(files.path("server.key"), new_key).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(connect(&server, &new, "127.0.0.1").await.1.is_ok());

    assert!(
        connect(&server, &old, "127.0.0.1").await.1.is_ok(),
        "the authorities have changed for a client from before too"
    );
}

#[tokio::test]
async fn a_server_may_ask_for_a_certificate() {
    let files = Files::new();
    files.write(&authority(), "127.0.0.1");
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| files.path(name));
    let server = ServerTls::open(&certificate, &key, Some(&ca), &[]).unwrap();
    let known = ClientTls::trusting_as(&ca, &certificate, &key).unwrap();
    assert!(connect(&server, &known, "127.0.0.1").await.0.is_ok());
    let error = connect(&server, &files.client(), "127.0.0.1").await.0.unwrap_err().to_string();
    assert!(error.contains("no certificates"), "{error}");
    assert!(ClientTls::trusting_as(&ca, &certificate, &ca).is_err(), "an authority's file has no key");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let files = Files::new();
    let refused = |files: &Files| files.server().err().expect("the files are refused").to_string();
    assert!(refused(&files).contains("server.pem"), "it does not exist");
    files.write(&authority(), "localhost");
    std::fs::write(files.path("server.pem"), "nothing").unwrap();
    assert!(refused(&files).contains("no certificate"));
    files.write(&authority(), "localhost");
    let key = std::fs::read(files.path("server.key")).unwrap();
    files.write(&authority(), "localhost");
    std::fs::write(files.path("server.key"), key).unwrap();
    assert!(refused(&files).contains("cannot be used"));
    assert!(ClientTls::trusting(Path::new("nowhere.pem")).is_err());
}
