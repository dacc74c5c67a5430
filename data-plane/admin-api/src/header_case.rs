//! Header names in the case they are given in: the Java admin client looks for `X-Pulsar-PROPERTY` exactly.

use std::convert::Infallible;
use std::sync::Mutex;

use axum::extract::Request;
use axum::http::Extensions;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// Extensions of a response that make hyper write these names as they are.
///
/// hyper keeps the case of a message that it has read for one that it writes, and has no other way to be told. So it is
/// given a message with these names to read. Should that fail, names go out in lower case.
pub(crate) async fn exact(names: &[String]) -> Extensions {
    let mut head = String::from("GET / HTTP/1.1\r\n");
    for name in names {
        head.push_str(name);
        head.push_str(":\r\n");
    }
    head.push_str("\r\n");
    let seen = Mutex::new(Extensions::new());
    let service = service_fn(|request: Request<Incoming>| {
        if let Ok(mut seen) = seen.lock() {
            seen.clone_from(request.extensions());
        }
        async { Ok::<_, Infallible>(Response::new(String::new())) }
    });
    let connection = TokioIo::new(tokio::io::join(head.as_bytes(), tokio::io::sink()));
    let served = http1::Builder::new()
        .preserve_header_case(true)
        .keep_alive(false)
        .max_headers(names.len() + 1)
        .serve_connection(connection, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "header names go out in lower case");
    }
    seen.into_inner().unwrap_or_default()
}
