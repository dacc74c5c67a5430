//! A connection to a broker's HTTP port, used by one client's connection.

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::body::Outgoing;
use crate::dial::{DialError, Dialer};
use crate::endpoint::Endpoint;

pub struct Upstream {
    pub endpoint: Endpoint,
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
}

impl Upstream {
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn connect(dialer: &Dialer, endpoint: &Endpoint) -> Result<Self, DialError> {
        let stream = dialer.connect(endpoint).await?;
        let handshake = http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake
            .map_err(|error| DialError::Connect { endpoint: endpoint.clone(), source: std::io::Error::other(error) })?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP connection to a broker ended");
            }
        });
        Ok(Self { endpoint: endpoint.clone(), sender, task: task.abort_handle() })
    }

    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request. One that was not sent, as the broker had closed the connection meanwhile, comes back.
    ///
    /// # Errors
    /// When the connection fails; whether the broker has got the request is not known, unless it comes back.
    pub async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, Unsent> {
        if let Err(error) = self.sender.ready().await {
            return Err(Unsent { request: Some(Box::new(request)), error });
        }
        self.sender
            .try_send_request(request)
            .await
            .map_err(|mut error| Unsent { request: error.take_message().map(Box::new), error: error.into_error() })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request that failed.
pub struct Unsent {
    pub request: Option<Box<Request<Outgoing>>>,
    pub error: hyper::Error,
}
