//! A proxy, a client that speaks frames, and brokers that are scripts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use geminga_proxy::{Endpoint, Proxy, ProxyOptions};
use geminga_tls::{ClientTls, ServerTls, Stream};
use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::{Command, decode_frame, encode_simple, proto};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a connection.
pub struct Peer {
    pub stream: Stream,
    pub buffer: BytesMut,
}

impl Peer {
    pub fn new(stream: Stream) -> Self {
        Peer { stream, buffer: BytesMut::new() }
    }

    pub async fn connect(address: SocketAddr) -> Self {
        Peer::new(Stream::Plain(TcpStream::connect(address).await.unwrap()))
    }

    pub async fn send(&mut self, command: impl Into<Command>) {
        let mut frame = BytesMut::new();
        encode_simple(&command.into(), &mut frame);
        self.stream.write_all(&frame).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next command; `None` when the other side has closed.
    pub async fn next(&mut self) -> Option<Command> {
        let reading = async {
            loop {
                if let Some(frame) = decode_frame(&mut self.buffer, usize::MAX).expect("a frame") {
                    return Some(frame.command);
                }
                if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("a command or an end in time")
    }

    /// Reads and drops something; false when the other side has closed.
    pub async fn next_bytes(&mut self) -> bool {
        let reading = self.stream.read_buf(&mut self.buffer);
        let read = tokio::time::timeout(PATIENCE, reading).await.expect("bytes or an end in time");
        self.buffer.clear();
        read.is_ok_and(|read| read > 0)
    }

    pub async fn exactly(&mut self, count: usize) -> BytesMut {
        let reading = async {
            while self.buffer.len() < count {
                assert!(
                    self.stream.read_buf(&mut self.buffer).await.unwrap() > 0,
                    "closed after {}",
                    self.buffer.len()
                );
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("bytes in time");
        self.buffer.split_to(count)
    }

    /// As a broker: answers a CONNECT, which is returned.
    pub async fn greet(&mut self) -> proto::CommandConnect {
        let connect = self.expect_connect().await;
        self.send(connected()).await;
        connect
    }

    pub async fn expect_connect(&mut self) -> proto::CommandConnect {
        match self.next().await {
            Some(Command::Connect(connect)) => *connect,
            other => panic!("expected CONNECT, got {other:?}"),
        }
    }

    /// As a client: says hello, and hears it.
    pub async fn hello(&mut self, connect: proto::CommandConnect) {
        self.send(connect).await;
        let answer = self.next().await;
        assert!(matches!(answer, Some(Command::Connected(_))), "{answer:?}");
    }

    pub async fn look_up(&mut self, request_id: u64) -> proto::CommandLookupTopicResponse {
        self.send(lookup(request_id)).await;
        match self.next().await {
            Some(Command::LookupResponse(response)) => *response,
            other => panic!("expected LOOKUP_RESPONSE, got {other:?}"),
        }
    }
}

pub fn connected() -> proto::CommandConnected {
    proto::CommandConnected { server_version: "script".into(), ..Default::default() }
}

pub fn connect() -> proto::CommandConnect {
    proto::CommandConnect { client_version: "test".into(), protocol_version: Some(21), ..Default::default() }
}

pub fn connect_to(target: &str) -> proto::CommandConnect {
    proto::CommandConnect { proxy_to_broker_url: Some(target.into()), ..connect() }
}

pub fn lookup(request_id: u64) -> proto::CommandLookupTopic {
    proto::CommandLookupTopic { topic: "persistent://public/default/t".into(), request_id, ..Default::default() }
}

pub fn answer(request_id: u64, kind: LookupType, url: &str) -> proto::CommandLookupTopicResponse {
    proto::CommandLookupTopicResponse {
        broker_service_url: Some(url.into()),
        broker_service_url_tls: Some(url.into()),
        response: Some(kind as i32),
        request_id,
        ..Default::default()
    }
}

/// A broker that serves each connection by a script.
pub struct Broker {
    pub address: SocketAddr,
    pub url: String,
    /// Ends all scripts when dropped.
    _tasks: JoinSet<()>,
}

impl Broker {
    pub async fn start<F>(script: impl Fn(Peer) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with_tls(None, script).await
    }

    pub async fn with_tls<F>(tls: Option<ServerTls>, script: impl Fn(Peer) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "pulsar+ssl" } else { "pulsar" };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut scripts = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = match &tls {
                    None => Stream::Plain(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => stream,
                        Err(_) => continue,
                    },
                };
                scripts.spawn(script(Peer::new(stream)));
            }
        });
        Broker { address, url: format!("{scheme}://{address}"), _tasks: tasks }
    }

    /// Greets everybody, and answers lookups with `url`; other commands come back as they are.
    pub async fn answering(kind: LookupType, url: impl Fn() -> String + Clone + Send + Sync + 'static) -> Self {
        Self::start(move |peer| serve_lookups(peer, kind, url.clone())).await
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::pulsar(&self.url).unwrap()
    }
}

pub async fn serve_lookups(mut peer: Peer, kind: LookupType, url: impl Fn() -> String) {
    peer.greet().await;
    while let Some(command) = peer.next().await {
        match command {
            Command::Lookup(lookup) => peer.send(answer(lookup.request_id, kind, &url())).await,
            other => peer.send(other).await,
        }
    }
}

/// Where nobody listens.
pub async fn nowhere() -> Endpoint {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    Endpoint::pulsar(&address.to_string()).unwrap()
}

pub fn options(brokers: Vec<Endpoint>) -> ProxyOptions {
    ProxyOptions {
        brokers,
        allowed: Vec::new(),
        broker_tls: None,
        http_brokers: Vec::new(),
        http_broker_tls: None,
        max_connections: 100,
    }
}

/// A proxy that serves until it is dropped.
pub struct Running {
    pub pulsar: SocketAddr,
    pub http: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Running {
    pub async fn start(options: ProxyOptions) -> Self {
        Self::with_tls(options, None).await
    }

    /// With TLS on both ports, if there is a certificate.
    pub async fn with_tls(options: ProxyOptions, tls: Option<Arc<ServerTls>>) -> Self {
        let proxy = Proxy::new(options);
        let (stop, stopped) = watch::channel(false);
        let pulsar = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = (pulsar.local_addr().unwrap(), http.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(geminga_proxy::serve_pulsar(pulsar, tls.clone(), proxy.clone(), stopped.clone()));
        tasks.spawn(geminga_proxy::serve_http(http, tls, proxy, stopped));
        Running { pulsar: addresses.0, http: addresses.1, stop, tasks }
    }

    pub async fn client(&self) -> Peer {
        Peer::connect(self.pulsar).await
    }

    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the proxy ends in time");
    }

    /// A sample of the page of metrics.
    pub async fn metric(&self, name: &str) -> u64 {
        let page = crate::http::get(self.http, "/metrics").await.1;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
    }
}

/// Certificates for 127.0.0.1, as files.
pub struct Certificates(TempDir);

impl Certificates {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        for (name, text) in
            [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Certificates(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn server(&self) -> ServerTls {
        ServerTls::open(&self.path("cert.pem"), &self.path("key.pem"), None, &[]).unwrap()
    }

    pub fn client(&self) -> ClientTls {
        ClientTls::trusting(&self.path("ca.pem")).unwrap()
    }
}
