//! Passes requests to brokers, and follows their redirects to each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_flow::Budget;
use geminga_tls::ClientTls;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{Request, Response, StatusCode, Uri};
use thiserror::Error;

use super::Answer;
use super::body::Received;
use super::headers::{strip, strip_request};
use super::upstream::{Unsent, Upstream};
use crate::dial::{DialError, Dialer};
use crate::endpoint::Endpoint;
use crate::rotation::Rotation;

/// What brokers serve and the proxy does not.
const FOR_BROKERS: [&str; 3] = ["/admin/", "/lookup/", "/topics/"];
/// Brokers that send a request to each other for longer are not of one mind.
const REDIRECTS_MAX: usize = 10;
/// Some calls of the admin API take long; Pulsar's proxy waits as long.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// What is kept of requests' bodies in order to send them again.
const BODY_BYTES: u64 = 64 << 20;

#[derive(Debug, Error)]
pub enum ForwardError {
    #[error("no broker is configured for HTTP (--broker-http)")]
    NoBrokers,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{endpoint} has not answered: {error}")]
    Broker { endpoint: Endpoint, error: hyper::Error },
    #[error("{0} has not answered in time")]
    Timeout(Endpoint),
    #[error("the body of the request does not come")]
    SlowBody,
    #[error("the body of the request broke off: {0}")]
    Body(hyper::Error),
    #[error("{0} redirects to an address that is not understood")]
    BadRedirect(Endpoint),
    #[error("{0} redirects to an address without TLS")]
    InsecureRedirect(Endpoint),
    #[error("the brokers redirect the request in circles")]
    Circles,
    #[error("{0} redirects the request, which is too large to be sent again")]
    TooLargeToRedirect(Endpoint),
}

impl ForwardError {
    pub fn status(&self) -> StatusCode {
        match self {
            ForwardError::NoBrokers | ForwardError::Dial(_) => StatusCode::SERVICE_UNAVAILABLE,
            ForwardError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            ForwardError::SlowBody => StatusCode::REQUEST_TIMEOUT,
            ForwardError::Body(_) => StatusCode::BAD_REQUEST,
            ForwardError::Broker { .. }
            | ForwardError::BadRedirect(_)
            | ForwardError::InsecureRedirect(_)
            | ForwardError::Circles
            | ForwardError::TooLargeToRedirect(_) => StatusCode::BAD_GATEWAY,
        }
    }
}

pub fn is_for_brokers(path: &str) -> bool {
    FOR_BROKERS.iter().any(|prefix| path.starts_with(prefix))
}

pub struct Forwarder {
    rotation: Rotation,
    dialer: Dialer,
    bodies: Arc<Budget>,
}

impl Forwarder {
    pub fn new(brokers: Vec<Endpoint>, tls: Option<ClientTls>) -> Self {
        Self { rotation: Rotation::new(brokers), dialer: Dialer { tls }, bodies: Budget::new(BODY_BYTES) }
    }

    /// The answer of a broker. `upstream` is a connection to one, used if it is there and left there for the next request.
    ///
    /// # Errors
    /// When no broker has answered.
    pub async fn forward(
        &self,
        upstream: &mut Option<Upstream>,
        request: Request<Incoming>,
    ) -> Result<Answer, ForwardError> {
        let (mut head, body) = request.into_parts();
        strip_request(&mut head.headers);
        let mut body = Received::read(body, &self.bodies).await?;
        let mut target = None;
        for _ in 0..=REDIRECTS_MAX {
            let (endpoint, response) = self.exchange(upstream, target.as_ref(), &head, &mut body).await?;
            let Some(next) = redirect(&endpoint, &response)? else { return Ok(pass(response)) };
            head.uri = next.uri;
            target = Some(next.endpoint);
        }
        Err(ForwardError::Circles)
    }

    /// Sends a request to the broker that is asked for, or to any, and waits for the head of its answer.
    async fn exchange(
        &self,
        upstream: &mut Option<Upstream>,
        target: Option<&Endpoint>,
        head: &Parts,
        body: &mut Received,
    ) -> Result<(Endpoint, Response<Incoming>), ForwardError> {
        let from = upstream.as_ref().map(|upstream| upstream.endpoint.clone());
        let kept =
            upstream.take().filter(|kept| kept.is_open() && target.is_none_or(|target| *target == kept.endpoint));
        let mut fresh = kept.is_none();
        let mut connection = match kept {
            Some(kept) => kept,
            None => self.connect(target).await?,
        };
        let redirects = || ForwardError::TooLargeToRedirect(from.unwrap_or(connection.endpoint.clone()));
        let outgoing = body.send().ok_or_else(redirects)?;
        let mut request = rebuilt(head, outgoing);
        loop {
            request.headers_mut().insert(HOST, host(&connection.endpoint));
            let sending = connection.send(request);
            let sent = tokio::time::timeout(ANSWER_LIMIT, sending).await;
            let endpoint = connection.endpoint.clone();
            match sent {
                Err(_) => return Err(ForwardError::Timeout(endpoint)),
                Ok(Ok(response)) => {
                    *upstream = Some(connection);
                    return Ok((endpoint, response));
                }
                // A kept connection may have been closed just now. A new one may not.
                Ok(Err(Unsent { request: Some(again), .. })) if !fresh => {
                    connection = self.connect(target).await?;
                    fresh = true;
                    request = *again;
                }
                Ok(Err(Unsent { error, .. })) => return Err(ForwardError::Broker { endpoint, error }),
            }
        }
    }

    async fn connect(&self, target: Option<&Endpoint>) -> Result<Upstream, ForwardError> {
        if let Some(target) = target {
            return Ok(Upstream::connect(&self.dialer, target).await?);
        }
        let mut failure = ForwardError::NoBrokers;
        for endpoint in self.rotation.turn(Instant::now()) {
            let connected = Upstream::connect(&self.dialer, &endpoint).await;
            self.rotation.note(&endpoint, connected.as_ref().map(|_| ()), Instant::now());
            match connected {
                Ok(upstream) => return Ok(upstream),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

fn rebuilt<B>(head: &Parts, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    // The target of a request is a path, whatever form the client has used.
    let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = head.headers.clone();
    *request.extensions_mut() = head.extensions.clone();
    request
}

fn host(endpoint: &Endpoint) -> HeaderValue {
    HeaderValue::try_from(endpoint.authority()).expect("hosts have no characters that headers must not have")
}

struct Next {
    endpoint: Endpoint,
    uri: Uri,
}

/// Where the broker sends the request, if it does. Brokers use 307, which keeps method and body.
fn redirect(from: &Endpoint, response: &Response<Incoming>) -> Result<Option<Next>, ForwardError> {
    if !matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
        return Ok(None);
    }
    let bad = || ForwardError::BadRedirect(from.clone());
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(bad)?;
    let uri: Uri = location.parse().map_err(|_| bad())?;
    let endpoint = match uri.authority() {
        None => from.clone(),
        Some(authority) => {
            let scheme = uri.scheme_str().ok_or_else(bad)?;
            let default = if scheme == "https" { 443 } else { 80 };
            let address = match authority.port_u16() {
                Some(_) => authority.to_string(),
                None => format!("{authority}:{default}"),
            };
            Endpoint::http(&format!("{scheme}://{address}")).map_err(|_| bad())?
        }
    };
    if from.tls && !endpoint.tls {
        return Err(ForwardError::InsecureRedirect(from.clone()));
    }
    Ok(Some(Next { endpoint, uri }))
}

fn pass(response: Response<Incoming>) -> Answer {
    let mut answer = response.map(BodyExt::boxed_unsync);
    strip(answer.headers_mut());
    answer
}
