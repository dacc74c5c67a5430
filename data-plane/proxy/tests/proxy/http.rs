use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri};
use geminga_proxy::{Endpoint, ProxyOptions};
use geminga_tls::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fixture::{PATIENCE, Running, nowhere, options};

/// Status and body of a page.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")).await;
    split(&answer)
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    exchange_on(Stream::Plain(TcpStream::connect(address).await.unwrap()), request).await
}

/// Sends a request, and reads all that comes until the end of the connection.
pub async fn exchange_on(mut stream: Stream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
    String::from_utf8(answer).unwrap()
}

pub fn split(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn put(path: &str, body: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

struct Broker {
    address: SocketAddr,
    _task: JoinSet<()>,
}

/// Answers with what it was sent.
pub fn echoing() -> Router {
    Router::new().fallback(async |headers: HeaderMap, uri: Uri, body: String| {
        let hop = headers.contains_key("x-hop") || headers.contains_key("connection");
        let authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        format!("{uri} {} {hop} {authorization:?} {}", headers["host"].to_str().unwrap(), body.len())
    })
}

/// Sends everybody to another broker.
pub fn redirecting(to: String) -> Router {
    Router::new().fallback(async move |uri: Uri| {
        (StatusCode::TEMPORARY_REDIRECT, [("location", format!("{to}{}", uri.path_and_query().unwrap()))])
    })
}

impl Broker {
    async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Broker { address, _task: task }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::http(&self.address.to_string()).unwrap()
    }
}

async fn proxy(http_brokers: Vec<Endpoint>) -> Running {
    Running::start(ProxyOptions { http_brokers, ..options(vec![nowhere().await]) }).await
}

#[tokio::test]
async fn requests_pass_without_what_belongs_to_the_connection() {
    let broker = Broker::start(echoing()).await;
    let proxy = proxy(vec![broker.endpoint()]).await;
    let request = "PUT /admin/v2/x?a=b HTTP/1.1\r\nhost: proxy\r\nconnection: close, x-hop\r\nx-hop: 1\r\n\
                   authorization: Bearer t\r\ncontent-length: 4\r\n\r\nbody";
    let (status, body) = split(&exchange(proxy.http, request).await);
    assert_eq!((status, body), (200, format!("/admin/v2/x?a=b {} false Some(\"Bearer t\") 4", broker.address)));
    assert_eq!(get(proxy.http, "/lookup/v2/topic").await.0, 200);
    assert_eq!(get(proxy.http, "/").await.0, 404);
    assert_eq!(get(proxy.http, "/healthz").await, (200, "ok".into()));
    assert_eq!(proxy.metric("geminga_proxy_http_requests").await, 2);
}

#[tokio::test]
async fn redirects_are_followed_inside_with_the_body() {
    let owner = Broker::start(echoing()).await;
    let asked = Broker::start(redirecting(format!("http://{}", owner.address))).await;
    let proxy = proxy(vec![asked.endpoint()]).await;
    let (status, body) = split(&exchange(proxy.http, &put("/admin/v2/x?a=b", "body")).await);
    assert_eq!((status, body), (200, format!("/admin/v2/x?a=b {} false None 4", owner.address)));
}

#[tokio::test]
async fn heads_are_bounded() {
    let broker = Broker::start(echoing()).await;
    let proxy = proxy(vec![broker.endpoint()]).await;
    let head =
        |bytes| format!("GET /admin/v2/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: {}\r\n\r\n", "y".repeat(bytes));
    assert_eq!(split(&exchange(proxy.http, &head(12_000)).await).0, 200);
    assert_eq!(split(&exchange(proxy.http, &head(16_400)).await).0, 431);
}

#[tokio::test]
async fn a_large_body_passes_but_is_not_sent_again() {
    let owner = Broker::start(Router::new().fallback(async |request: Request| {
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        body.len().to_string()
    }))
    .await;
    let large = "x".repeat(3 << 20);
    let direct = proxy(vec![owner.endpoint()]).await;
    assert_eq!(split(&exchange(direct.http, &put("/admin/v2/x", &large)).await), (200, large.len().to_string()));
    let asked = Broker::start(Router::new().fallback(async move |request: Request| {
        axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        (StatusCode::TEMPORARY_REDIRECT, [("location", format!("http://{}/admin/v2/x", owner.address))])
    }))
    .await;
    let redirected = proxy(vec![asked.endpoint()]).await;
    let (status, reason) = split(&exchange(redirected.http, &put("/admin/v2/x", &large)).await);
    assert_eq!(status, 502);
    assert!(reason.contains("too large to be sent again"), "{reason}");
}

#[tokio::test]
async fn redirects_in_circles_or_to_nowhere_end() {
    let router = |location: &'static str| {
        Router::new().fallback(async move || (StatusCode::TEMPORARY_REDIRECT, [("location", location)]))
    };
    for location in ["/admin/v2/again", "ftp://broker:1/", "//broker", "http://user@broker:1/", ""] {
        let broker = Broker::start(router(location)).await;
        let proxy = proxy(vec![broker.endpoint()]).await;
        assert_eq!(get(proxy.http, "/admin/v2/x").await.0, 502, "{location}");
        assert_eq!(proxy.metric("geminga_proxy_http_failures").await, 1);
    }
}

#[tokio::test]
async fn dead_brokers_are_passed_over_and_without_any_it_is_said() {
    let broker = Broker::start(echoing()).await;
    let dead = nowhere().await;
    let alive = proxy(vec![dead.clone(), broker.endpoint()]).await;
    for _ in 0..4 {
        assert_eq!(get(alive.http, "/admin/v2/x").await.0, 200);
    }
    let none = proxy(vec![dead]).await;
    let (status, reason) = get(none.http, "/admin/v2/x").await;
    assert_eq!(status, 503);
    assert!(reason.starts_with("{\"reason\":\"cannot connect to"), "{reason}");
    assert_eq!(get(proxy(Vec::new()).await.http, "/admin/v2/x").await.0, 503);
}

#[tokio::test]
async fn a_broker_that_closes_between_requests_costs_none() {
    // Each connection serves one request and is closed without a word, as by a limit of idle time.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX-Pulsar-PROPERTY: 1\r\ncontent-length: 2\r\n\r\nok").await;
        }
    });
    let proxy = proxy(vec![Endpoint::http(&address.to_string()).unwrap()]).await;
    let mut stream = TcpStream::connect(proxy.http).await.unwrap();
    for round in 1..=5 {
        stream.write_all(b"GET /admin/v2/x HTTP/1.1\r\nhost: proxy\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("ok") {
            let mut bytes = [0; 4096];
            let read =
                tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.expect("an answer in time").unwrap();
            assert!(read > 0, "round {round}");
            answer.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "round {round}: {answer}");
        assert!(answer.contains("X-Pulsar-PROPERTY: 1"), "names stay as they are: {answer}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn an_answer_streams_and_a_broken_one_breaks() {
    let router = Router::new().fallback(async || Body::from("y".repeat(20 << 20)));
    let broker = Broker::start(router).await;
    let proxy = proxy(vec![broker.endpoint()]).await;
    assert_eq!(get(proxy.http, "/admin/v2/long").await.1.len(), 20 << 20);
    let reset = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = reset.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let (mut stream, _) = reset.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
    });
    let broken = self::proxy(vec![Endpoint::http(&address.to_string()).unwrap()]).await;
    assert_eq!(get(broken.http, "/admin/v2/x").await.0, 502);
}
