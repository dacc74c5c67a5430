//! HTTP for clients: the proxy's own pages, and what is passed on to brokers.

mod body;
mod forward;
mod headers;
mod upstream;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_tls::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Mutex, watch};

use crate::proxy::Proxy;
use upstream::Upstream;

pub use forward::Forwarder;

/// For the head of a request, and between two requests.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// What is read at once from a client, the largest head included; a broker takes no larger one. Every connection may have so much.
const READ_BYTES_MAX: usize = 16 << 10;

pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Serves a connection until it ends. When `shutdown` turns true, the request that is under way is the last.
pub async fn serve(proxy: Arc<Proxy>, stream: Stream, mut shutdown: watch::Receiver<bool>) {
    // The connection to a broker that this client's last request has used.
    let upstream = Arc::new(Mutex::new(None));
    let service = service_fn(move |request| answer(proxy.clone(), upstream.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(READ_BYTES_MAX)
        // The Java admin client looks for some headers in exactly the case that brokers write.
        .preserve_header_case(true)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stop = async {
        // Fails only when the sender is gone, which then cannot ask for anything else either.
        let _ = shutdown.wait_for(|down| *down).await;
    };
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = stop => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP connection ended");
    }
}

async fn answer(
    proxy: Arc<Proxy>,
    upstream: Arc<Mutex<Option<Upstream>>>,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path();
    let answer = match (request.method(), path) {
        (&Method::GET, "/metrics" | "/metrics/") => page(&proxy),
        (&Method::GET, "/healthz" | "/status.html") => text(StatusCode::OK, "ok"),
        (&Method::GET, "/readyz") if proxy.is_ready() => text(StatusCode::OK, "ok"),
        (&Method::GET, "/readyz") => text(StatusCode::SERVICE_UNAVAILABLE, "no broker can be reached"),
        _ if forward::is_for_brokers(path) => {
            proxy.figures.http_request();
            // One request of a connection at a time, so nobody waits here.
            let mut upstream = upstream.lock().await;
            proxy.forwarder.forward(&mut upstream, request).await.unwrap_or_else(|error| {
                proxy.figures.http_failure();
                tracing::info!(%error, "could not pass a request on");
                reason(error.status(), &error.to_string())
            })
        }
        _ => reason(StatusCode::NOT_FOUND, "this proxy does not serve that path"),
    };
    Ok(answer)
}

fn page(proxy: &Proxy) -> Answer {
    let mut page = String::new();
    proxy.metrics.render(&mut page);
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
}

fn text(status: StatusCode, text: &str) -> Answer {
    typed(status, "text/plain; charset=utf-8", text.to_owned())
}

/// An error in the form that Pulsar's admin clients read.
fn reason(status: StatusCode, reason: &str) -> Answer {
    typed(status, "application/json", serde_json::json!({ "reason": reason }).to_string())
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
