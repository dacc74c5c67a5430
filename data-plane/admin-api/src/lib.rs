//! Pulsar's admin REST API (v2) before a broker, with lookup, metrics and health beside it.
//!
//! Paths, JSON and status codes are Pulsar's; errors are `{"reason": "…"}`. What is not served answers 501 and names
//! itself. One handler takes every request under `/admin` and `/lookup` apart into a [`call::Call`]; the resources
//! (clusters.rs, tenants.rs, namespaces.rs, topics.rs and so on) match on its method and path segments.

mod brokers;
mod bundles;
mod call;
mod cluster_parts;
mod clusters;
mod compression;
mod error;
mod header_case;
mod lookup;
mod messages;
mod namespace_policies;
mod namespaces;
mod partitioned;
mod peers;
mod policy_checks;
mod routing;
mod schemas;
mod storage_nodes;
mod subscriptions;
mod tenants;
mod topic_policies;
mod topics;
mod unserved;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::HOST;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use geminga_broker::Broker;

use call::{Answer, Call};
use error::{ApiError, Result};

/// Largest request body, in bytes: policies and schemas are small.
pub const BODY_BYTES_MAX: usize = 2 << 20;

/// Everything that a broker serves over HTTP. `beside` appends to the page of metrics what the process shows beside its broker.
pub fn router(broker: Arc<Broker>, beside: impl Fn(&mut String) + Send + Sync + 'static) -> Router {
    let beside = Arc::new(beside);
    let metrics = get(async move |State(broker): State<Arc<Broker>>| {
        let mut page = String::new();
        geminga_broker::metrics::render(&broker, &mut page);
        beside(&mut page);
        ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], page)
    });
    Router::new()
        .route("/metrics", metrics.clone())
        .route("/metrics/", metrics)
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/status.html", get(|| async { "OK" }))
        .fallback(admin)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(broker)
}

/// Whether the answer to a GET may be large, and is gathered while others are as well: lists of topics and of schemas, and messages.
pub fn is_large(uri: &Uri) -> bool {
    let segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
    match segments.as_slice() {
        ["admin", "v2", "namespaces", _, _, "topics"] | ["admin", "v2", "schemas", .., "schemas"] => true,
        ["admin", "v2", "persistent" | "non-persistent", rest @ ..] => matches!(
            rest,
            [_, _]
                | [_, _, _]
                | [.., "examinemessage"]
                | [.., "ledger", _, "entry", _]
                | [.., "subscription", _, "position", _]
        ),
        _ => false,
    }
}

async fn ready(State(broker): State<Arc<Broker>>) -> Response {
    match brokers::check_metadata(&broker).await {
        Ok(()) => "ok".into_response(),
        Err(error) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.reason).into_response(),
    }
}

async fn admin(
    State(broker): State<Arc<Broker>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: std::result::Result<Bytes, BytesRejection>,
) -> Response {
    let answer = async move {
        let body = body.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        // Whoever asks for the head of an answer gets it without its body.
        let method = if method == Method::HEAD { Method::GET } else { method };
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
        let call = Call::new(broker, method, &uri, host, body)?;
        match routing::elsewhere(&call).await? {
            Some(elsewhere) => Ok(elsewhere),
            None => serve(&call).await,
        }
    };
    // A client that goes away gives nothing up half-way: a topic that is closed to be moved or deleted would stay closed.
    match tokio::spawn(answer).await {
        Ok(Ok(answer)) => answer.into_response(),
        Ok(Err(error)) => error.into_response(),
        Err(ended) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, ended.to_string()).into_response(),
    }
}

async fn serve(call: &Call) -> Result<Answer> {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["admin", "v2", "clusters", rest @ ..] => clusters::serve(call, rest).await,
        // The Java client looks for it here, without a version.
        ["admin", "namespaces", rest @ ..] if matches!(rest, [_, "antiAffinity", _]) => {
            namespaces::serve(call, rest).await
        }
        ["admin", "v2", "tenants", rest @ ..] => tenants::serve(call, rest).await,
        ["admin", "v2", "namespaces", rest @ ..] => namespaces::serve(call, rest).await,
        ["admin", "v2", domain @ ("persistent" | "non-persistent"), rest @ ..] => {
            topics::serve(call, domain, rest).await
        }
        ["admin", "v2", "schemas", rest @ ..] => schemas::serve(call, rest).await,
        ["admin", "v2", "brokers", rest @ ..] => brokers::serve(call, rest).await,
        ["admin", "v2", "broker-stats", rest @ ..] => brokers::stats(call, rest).await,
        ["admin", "v2", "bookies", rest @ ..] => storage_nodes::bookies(call, rest).await,
        ["admin", "geminga", rest @ ..] => storage_nodes::serve(call, rest).await,
        ["admin", "v2", "resourcegroups"] if call.method() == "GET" => Ok(Answer::Json(serde_json::json!([]))),
        ["admin", "v2", "resource-quotas", ..] if call.method() == "GET" => Ok(Answer::Json(default_quota())),
        ["admin", _, group, ..] => match absent(group) {
            Some((status, reason)) => Err(ApiError::new(status, reason)),
            None => call.unsupported(),
        },
        ["lookup", "v2", rest @ ..] => lookup::serve(call, rest).await,
        _ => Err(ApiError::not_found(format!("{} is not served here", call.path))),
    }
}

/// What a Pulsar answers that has these services switched off.
fn absent(group: &str) -> Option<(StatusCode, &'static str)> {
    Some(match group {
        "functions" | "sources" | "sinks" | "source" | "sink" | "worker" | "worker-stats" => (
            StatusCode::CONFLICT,
            "Pulsar Function Worker is not enabled, probably functionsWorkerEnabled is set to false",
        ),
        "transactions" => {
            (StatusCode::SERVICE_UNAVAILABLE, "This Broker is not configured with transactionCoordinatorEnabled=true.")
        }
        "packages" => (StatusCode::SERVICE_UNAVAILABLE, "Package Management Service is not enabled in the broker."),
        _ => return None,
    })
}

/// Pulsar's figures for a bundle about which nobody has said anything. They matter where bundles are placed on brokers.
fn default_quota() -> serde_json::Value {
    serde_json::json!({
        "msgRateIn": 40.0,
        "msgRateOut": 120.0,
        "bandwidthIn": 100_000.0,
        "bandwidthOut": 300_000.0,
        "memory": 80.0,
        "dynamic": true,
    })
}
