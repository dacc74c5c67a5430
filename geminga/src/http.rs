//! The HTTP port of a server, whose clients are not believed to finish what they begin.
//!
//! A request is read whole before anybody works on it. What may be there in parts meanwhile is bounded: connections are counted, each
//! may have the head of a request and a small body, and larger bodies share a budget. Who is slow gives way to others that need the
//! place or the room, and is given up some time later in any case.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use geminga_admin_api::BODY_BYTES_MAX;
use geminga_flow::{Budget, UnfinishedFrame};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tower::Service;

/// What is read at once from a client, the largest head of a request included: twice as much as Pulsar allows.
const READ_BYTES: usize = 16 << 10;
/// Bodies up to this size take no room.
const SMALL_BODY: usize = 16 << 10;
const CONNECTIONS_MAX: u64 = 1024;
/// How often one whose body does not come looks whether it is in the way.
const LOOK: Duration = Duration::from_millis(200);
/// Answers that are on their way when the server is to stop have so long.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// After an error of accepting: out of descriptors, most likely. What is connected goes on.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How long clients may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For the head of a request, and between two requests: as Pulsar.
    head: Duration,
    /// Between two pieces of a body.
    pause: Duration,
    /// For a whole body …
    body: Duration,
    /// … and while others wait for the room that it has.
    in_the_way: Duration,
    /// Until there is room for a body.
    room: Duration,
}

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(30),
    pause: Duration::from_secs(30),
    body: Duration::from_secs(300),
    in_the_way: Duration::from_secs(5),
    room: Duration::from_secs(15),
};

/// Why a request was not read.
#[derive(Debug, Error)]
enum Refusal {
    #[error("the body of the request is larger than {} bytes", BODY_BYTES_MAX)]
    TooLarge,
    #[error("the body of the request does not come")]
    Slow,
    #[error("there is no room for the body of the request, as too many others are under way")]
    NoRoom,
    #[error("the body of the request broke off: {0}")]
    Broken(hyper::Error),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Slow => StatusCode::REQUEST_TIMEOUT,
            Refusal::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Broken(_) => StatusCode::BAD_REQUEST,
        };
        let mut response = (status, Json(serde_json::json!({ "reason": self.to_string() }))).into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Serves `router` until `shutdown` turns true, then finishes the requests that have come. `bodies` is what bodies of requests may take
/// until they are complete; connections are bounded by twice as much.
pub async fn serve(listener: TcpListener, router: Router, bodies: Arc<Budget>, shutdown: watch::Receiver<bool>) {
    let connections = 2 * bodies.limit() / (READ_BYTES + SMALL_BODY) as u64;
    let connections_max = connections.clamp(1, CONNECTIONS_MAX) as usize;
    let port = Port {
        router,
        bodies,
        connections_max,
        patience: PATIENCE,
        waiting: Waiting::default(),
        for_room: Arc::default(),
    };
    Arc::new(port).serve(listener, shutdown).await;
}

struct Port {
    router: Router,
    bodies: Arc<Budget>,
    connections_max: usize,
    patience: Patience,
    waiting: Waiting,
    /// Whoever waits for room for a body has a clone.
    for_room: Arc<()>,
}

impl Port {
    async fn serve(self: Arc<Self>, listener: TcpListener, mut shutdown: watch::Receiver<bool>) {
        let stop = shutdown.clone();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            match accepted {
                Ok((stream, _)) if connections.len() < self.connections_max || self.waiting.end_longest() => {
                    connections.spawn(self.clone().serve_connection(stream, stop.clone()));
                }
                Ok((stream, address)) => {
                    let told = stream.try_write(NO_PLACE).is_ok();
                    tracing::debug!(%address, told, "refused a connection: all that are there are being answered");
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_ANSWERS, ended).await.is_err() {
            while self.waiting.end_longest() {}
            while connections.join_next().await.is_some() {}
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, mut shutdown: watch::Receiver<bool>) {
        let place = Place::new(&self);
        let (port, place) = (&self, &place);
        let service = service_fn(|request| async move {
            Ok::<_, Infallible>(port.answer(place, request).await.unwrap_or_else(IntoResponse::into_response))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience.head)
            .max_buf_size(READ_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut stopping = false;
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break ended,
                () = place.end.notified() => return tracing::debug!("ended a connection: others need its place"),
                // Fails only when the sender is gone, which then cannot ask for anything else either.
                _ = shutdown.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "HTTP connection ended");
        }
    }

    async fn answer(&self, place: &Place, request: Request<Incoming>) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, Body::from(self.read(body).await?));
        let _working = place.work();
        let Ok(response) = self.router.clone().call(request).await;
        Ok(response)
    }

    /// The whole body of a request.
    async fn read(&self, mut body: Incoming) -> Result<Bytes, Refusal> {
        let announced = body.size_hint();
        let most = announced.upper().unwrap_or(BODY_BYTES_MAX as u64).min(BODY_BYTES_MAX as u64);
        let mut room = UnfinishedFrame::new(self.bodies.clone());
        let (mut read, since) = (Vec::new(), Instant::now());
        if announced.lower() > BODY_BYTES_MAX as u64 {
            return Err(Refusal::TooLarge);
        }
        loop {
            if room.bytes() == 0 && announced.lower().max(read.len() as u64) > SMALL_BODY as u64 {
                let _waits = self.for_room.clone();
                let claimed = async {
                    while !room.claim(most) {
                        room.room().await;
                    }
                };
                tokio::time::timeout(self.patience.room, claimed).await.map_err(|_| Refusal::NoRoom)?;
            }
            let Some(piece) = self.piece(&mut body, &room, since).await? else { return Ok(read.into()) };
            if read.len() + piece.len() > BODY_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
            read.extend_from_slice(&piece);
        }
    }

    /// What comes next of a body.
    async fn piece(
        &self,
        body: &mut Incoming,
        room: &UnfinishedFrame,
        since: Instant,
    ) -> Result<Option<Bytes>, Refusal> {
        let Patience { pause, body: whole, in_the_way, .. } = self.patience;
        let before = Instant::now();
        loop {
            let is_crowded = room.bytes() > 0 && Arc::strong_count(&self.for_room) > 1;
            let in_the_way = is_crowded && room.is_in_the_way(in_the_way);
            if in_the_way || before.elapsed() > pause || since.elapsed() > whole {
                return Err(Refusal::Slow);
            }
            match tokio::time::timeout(LOOK, body.frame()).await {
                Err(_) => {}
                Ok(None) => return Ok(None),
                // Trailers say nothing to anybody.
                Ok(Some(frame)) => return Ok(Some(frame.map_err(Refusal::Broken)?.into_data().unwrap_or_default())),
            }
        }
    }
}

/// Connections that wait for their clients, in the order in which they began to.
#[derive(Default)]
struct Waiting(Mutex<(u64, BTreeMap<u64, Arc<Notify>>)>);

impl Waiting {
    /// False when nobody waits.
    fn end_longest(&self) -> bool {
        let longest = self.0.lock().1.pop_first();
        longest.inspect(|(_, end)| end.notify_one()).is_some()
    }
}

/// One connection among those that are served.
struct Place {
    port: Arc<Port>,
    end: Arc<Notify>,
    /// Its number while it waits.
    number: AtomicU64,
}

impl Place {
    fn new(port: &Arc<Port>) -> Self {
        let place = Self { port: port.clone(), end: Arc::default(), number: AtomicU64::default() };
        place.wait();
        place
    }

    fn wait(&self) {
        let mut waiting = self.port.waiting.0.lock();
        waiting.0 += 1;
        self.number.store(waiting.0, Ordering::Relaxed);
        let number = waiting.0;
        waiting.1.insert(number, self.end.clone());
    }

    fn leave(&self) {
        self.port.waiting.0.lock().1.remove(&self.number.load(Ordering::Relaxed));
    }

    /// A request has come whole: the connection is not ended for others until that is answered.
    fn work(&self) -> Working<'_> {
        self.leave();
        Working(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

struct Working<'a>(&'a Place);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.wait();
    }
}
