use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use geminga_proxy::{Endpoint, ProxyOptions};
use geminga_tls::{ServerTls, Stream};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fixture::{Certificates, Running, nowhere, options};
use crate::http::{echoing, exchange_on, get, redirecting, split};

/// A broker whose HTTP port has TLS.
struct Broker {
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Broker {
    async fn start(certificates: &Certificates, router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TlsListener { listener, tls: certificates.server() };
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Broker { address, _task: task }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::http(&self.url()).unwrap()
    }
}

struct TlsListener {
    listener: TcpListener,
    tls: ServerTls,
}

impl axum::serve::Listener for TlsListener {
    type Io = Stream;
    type Addr = SocketAddr;

    /// Whoever goes away at the sight of the certificate does not count.
    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            let (stream, address) = self.listener.accept().await.unwrap();
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What is logged on this thread, on which all tasks of a test run.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish(),
        )
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn behind(http_broker: Endpoint, trusted: Option<&Certificates>) -> ProxyOptions {
    let http_broker_tls = trusted.map(Certificates::client);
    ProxyOptions { http_brokers: vec![http_broker], http_broker_tls, ..options(vec![nowhere().await]) }
}

#[tokio::test]
async fn both_sides_may_have_it_and_redirects_keep_it() {
    let (inside, outside) = (Certificates::new(), Certificates::new());
    let owner = Broker::start(&inside, echoing()).await;
    let asked = Broker::start(&inside, redirecting(owner.url())).await;
    let options = behind(asked.endpoint(), Some(&inside)).await;
    let proxy = Running::with_tls(options, Some(Arc::new(outside.server()))).await;
    let stream = outside.client().connect("127.0.0.1", TcpStream::connect(proxy.http).await.unwrap()).await.unwrap();
    let request = "PUT /admin/v2/x?a=b HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\nauthorization: Bearer t\r\n\
                   content-length: 4\r\n\r\nbody";
    let (status, body) = split(&exchange_on(stream, request).await);
    assert_eq!((status, body), (200, format!("/admin/v2/x?a=b {} false Some(\"Bearer t\") 4", owner.address)));
}

#[tokio::test]
async fn a_broker_that_is_not_trusted_gets_no_request() {
    let (inside, other) = (Certificates::new(), Certificates::new());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let router = Router::new().fallback(async move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let broker = Broker::start(&inside, router).await;
    let by_name = Endpoint { host: "localhost".into(), ..broker.endpoint() };
    for (endpoint, trusted, why) in [
        (broker.endpoint(), Some(&other), "invalid peer certificate"),
        (by_name, Some(&inside), "not valid for name"),
        (broker.endpoint(), None, "no authority is trusted for brokers"),
    ] {
        let log = Log::default();
        let _listening = log.listen();
        let proxy = Running::start(behind(endpoint, trusted).await).await;
        let (status, reason) = get(proxy.http, "/admin/v2/x").await;
        assert!(status == 503 && reason.contains(why), "{status} {reason}");
        let text = log.text();
        let said = |what| text.lines().any(|line| line.contains(what) && line.contains(why));
        assert!(said("a broker cannot be reached") && said("could not pass a request on"), "{text}");
        assert_eq!(proxy.metric("geminga_proxy_http_failures").await, 1);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    let proxy = Running::start(behind(broker.endpoint(), Some(&inside)).await).await;
    assert_eq!((get(proxy.http, "/admin/v2/x").await.0, requests.load(Ordering::SeqCst)), (200, 1));
}

#[tokio::test]
async fn no_redirect_leads_out_of_it() {
    let inside = Certificates::new();
    let broker = Broker::start(&inside, redirecting("http://127.0.0.1:1".into())).await;
    let proxy = Running::start(behind(broker.endpoint(), Some(&inside)).await).await;
    let (status, reason) = get(proxy.http, "/admin/v2/x").await;
    assert!(status == 502 && reason.contains("redirects to an address without TLS"), "{status} {reason}");
}
