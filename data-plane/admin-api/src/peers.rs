//! Requests to other brokers on behalf of a client: of a partitioned topic, each partition is asked where it is.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::call::{Answer, Call};
use crate::error::{ApiError, Result};

const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer of another broker, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Sends the request to the broker at `url` (`http://HOST:PORT`).
pub(crate) async fn forward(call: &Call, url: &str) -> Result<Answer> {
    let failed =
        |reason: String| ApiError::new(StatusCode::BAD_GATEWAY, format!("broker {url} does not answer: {reason}"));
    match tokio::time::timeout(PATIENCE, exchange(call, url)).await {
        Ok(Ok((status, body))) => answer(status, body),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("nothing came within {PATIENCE:?}"))),
    }
}

async fn exchange(
    call: &Call,
    url: &str,
) -> std::result::Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let address = url.strip_prefix("http://").ok_or("its URL is not one of HTTP")?.trim_end_matches('/');
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(call.method.clone())
        .uri(call.uri())
        .header(HOST, address)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(call.body().clone()))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
    connection.abort();
    Ok((status, body))
}

fn answer(status: StatusCode, body: Bytes) -> Result<Answer> {
    if !status.is_success() {
        let reason = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let reason = reason.and_then(|answer| answer.get("reason")?.as_str().map(str::to_owned));
        return Err(ApiError::new(status, reason.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned())));
    }
    if body.is_empty() {
        return Ok(if status == StatusCode::NO_CONTENT { Answer::Nothing } else { Answer::Unset });
    }
    match serde_json::from_slice(&body) {
        Ok(value) => Ok(Answer::Json(value)),
        Err(_) => Ok(Answer::Text(String::from_utf8_lossy(&body).into_owned())),
    }
}
