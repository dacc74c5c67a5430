//! Errors as Pulsar's admin API answers them: a status code and `{"reason": "…"}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use geminga_broker::BrokerError;
use geminga_metadata::MetadataError;
use geminga_model::{ErrorKind, InvalidName};
use hyper::ext::ReasonPhrase;
use serde_json::json;

/// Longer reasons are only in the body.
const PHRASE_BYTES_MAX: usize = 512;

#[derive(Debug, Clone, thiserror::Error)]
#[error("{status}: {reason}")]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub reason: String,
}

pub(crate) type Result<T> = std::result::Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }

    pub fn bad_request(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    pub fn not_found(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason)
    }

    pub fn not_allowed(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, reason)
    }

    pub fn conflict(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, reason)
    }

    pub fn precondition(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, reason)
    }

    pub fn unsupported(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not supported"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::warn!(status = self.status.as_u16(), reason = %self.reason, "admin request failed");
        }
        let mut response = (self.status, Json(json!({ "reason": &self.reason }))).into_response();
        // Beside the status code too, as there: the Java client shows what stands there when it looks topics up over HTTP.
        if self.reason.len() <= PHRASE_BYTES_MAX
            && let Ok(phrase) = ReasonPhrase::try_from(self.reason)
        {
            response.extensions_mut().insert(phrase);
        }
        response
    }
}

impl From<BrokerError> for ApiError {
    fn from(error: BrokerError) -> Self {
        let status = match &error {
            BrokerError::InvalidName(_) | BrokerError::PreconditionFailed(_) | BrokerError::QuotaExceeded { .. } => {
                StatusCode::PRECONDITION_FAILED
            }
            BrokerError::TenantNotFound(_) => return Self::not_found("Tenant does not exist"),
            BrokerError::NamespaceNotFound(_) => return Self::not_found("Namespace does not exist"),
            BrokerError::TopicNotFound(name) => return Self::not_found(format!("Topic {name} not found")),
            BrokerError::SubscriptionNotFound { topic, subscription } => {
                return Self::not_found(format!("Subscription {subscription} not found for topic {topic}"));
            }
            BrokerError::NotFound(_) => StatusCode::NOT_FOUND,
            BrokerError::AlreadyExists(_)
            | BrokerError::Conflict(_)
            | BrokerError::IncompatibleSchema(_)
            | BrokerError::ProducerFenced(_) => StatusCode::CONFLICT,
            BrokerError::ConsumerBusy(_) | BrokerError::ProducerBusy(_) => StatusCode::PRECONDITION_FAILED,
            BrokerError::TopicTerminated(_) | BrokerError::NotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            BrokerError::ServiceNotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
            BrokerError::BadRequest(_) => StatusCode::BAD_REQUEST,
            BrokerError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<MetadataError> for ApiError {
    fn from(error: MetadataError) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::AlreadyExists | ErrorKind::Retry => StatusCode::CONFLICT,
            ErrorKind::Invalid => StatusCode::PRECONDITION_FAILED,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<InvalidName> for ApiError {
    fn from(error: InvalidName) -> Self {
        Self::precondition(error.to_string())
    }
}
