//! The HTTP port of a server, whose clients are not believed to finish what they begin.
//!
//! A request is read whole before anybody works on it. What may be there in parts meanwhile is bounded: connections are counted, each
//! may have the head of a request and a small body, and larger bodies share a budget. Who is slow gives way to others that need the
//! place or the room, and is given up some time later in any case.
//!
//! Large answers have room in the same budget until their clients have taken them. How large one is, is known only when it was made: one
//! for which there is no room is dropped, and made again when it has its turn. Only those that have theirs are kept while they wait.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Method, StatusCode, Uri};
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
use socket2::SockRef;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tower::Service;

/// What is read at once from a client, the largest head of a request included: twice as much as Pulsar allows.
const READ_BYTES: usize = 16 << 10;
/// Bodies up to this size take no room.
const SMALL_BODY: usize = 16 << 10;
/// The same of answers, which sockets take at once in most cases.
const SMALL_ANSWER: usize = 64 << 10;
/// Answers that are known to be large beforehand are made one at a time for so much room of bodies.
const ROOM_PER_TURN: u64 = 2 << 20;
const TURNS_MAX: u64 = 64;
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
    /// Between two pieces of a body, and for taking anything of an answer.
    pause: Duration,
    /// For a whole body …
    body: Duration,
    /// … and, as for an answer, while others wait for the room that it has.
    in_the_way: Duration,
    /// Until there is room for a body, and until it is an answer's turn.
    room: Duration,
}

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(30),
    pause: Duration::from_secs(30),
    body: Duration::from_secs(300),
    in_the_way: Duration::from_secs(5),
    room: Duration::from_secs(15),
};

/// Why a request was not read or not answered.
#[derive(Debug, Error)]
enum Refusal {
    #[error("the body of the request is larger than {} bytes", BODY_BYTES_MAX)]
    TooLarge,
    #[error("the body of the request does not come")]
    Slow,
    #[error("there is no room for the body of the request or of its answer, as too many others are under way")]
    NoRoom,
    #[error("the body of the request broke off: {0}")]
    Broken(hyper::Error),
    #[error("the answer broke off: {0}")]
    Unmade(axum::Error),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self {
            Refusal::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Slow => StatusCode::REQUEST_TIMEOUT,
            Refusal::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::Broken(_) => StatusCode::BAD_REQUEST,
            Refusal::Unmade(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = (status, Json(serde_json::json!({ "reason": self.to_string() }))).into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Serves `router` until `shutdown` turns true, then finishes the requests that have come. `bodies` is what bodies may take, of requests
/// until these are answered, and of answers until they are taken; connections are bounded by twice as much. Of what `is_large` names,
/// few answers are made at once.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    is_large: fn(&Uri) -> bool,
    bodies: Arc<Budget>,
    shutdown: watch::Receiver<bool>,
) {
    let connections = 2 * bodies.limit() / (READ_BYTES + SMALL_BODY) as u64;
    let turns = (bodies.limit() / ROOM_PER_TURN).clamp(1, TURNS_MAX) as usize;
    let connections_max = connections.clamp(1, CONNECTIONS_MAX) as usize;
    let port = Port {
        router,
        is_large,
        turns: Arc::new(Semaphore::new(turns)),
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
    is_large: fn(&Uri) -> bool,
    /// Whoever has one makes an answer that may be large, and keeps it until there is room.
    turns: Arc<Semaphore>,
    bodies: Arc<Budget>,
    connections_max: usize,
    patience: Patience,
    waiting: Waiting,
    /// Whoever waits for room for a body or an answer has a clone.
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
        // The kernel sees best whether anything is taken. Without, a connection ends when others need its place or room.
        #[cfg(target_os = "linux")]
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(self.patience.pause)) {
            tracing::debug!(%error, "could not bound the time in which a client takes nothing");
        }
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
                () = place.end.notified() => {
                    return tracing::debug!("ended a connection: others need its place or its room");
                }
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
        let request = Request::from_parts(head, self.read(body).await?);
        // What changes something is done once; its answer is small.
        let only_asks = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut room = UnfinishedFrame::new(self.bodies.clone());
        if !only_asks || !(self.is_large)(request.uri()) {
            let working = place.work();
            let answer = make(self.router.clone(), request.clone()).await?;
            drop(working);
            if !only_asks || has_room(&mut room, &answer) {
                return Ok(place.hold(answer, room));
            }
        }
        let _waits = self.for_room.clone();
        let turn = self.in_time(self.turns.clone().acquire_owned()).await?;
        let working = place.work();
        let router = self.router.clone();
        // When the client goes away, whoever makes it has the turn to the end.
        let made = tokio::spawn(async move { (make(router, request).await, turn) }).await;
        drop(working);
        let (answer, _turn) = made.map_err(|ended| Refusal::Unmade(axum::Error::new(ended)))?;
        let answer = answer?;
        let claimed = async {
            while !has_room(&mut room, &answer) {
                room.room().await;
            }
        };
        self.in_time(claimed).await?;
        Ok(place.hold(answer, room))
    }

    async fn in_time<T>(&self, wait: impl Future<Output = T>) -> Result<T, Refusal> {
        tokio::time::timeout(self.patience.room, wait).await.map_err(|_| Refusal::NoRoom)
    }

    /// Whether others need the room that this one has had for long.
    fn is_in_the_way(&self, room: &UnfinishedFrame) -> bool {
        let is_crowded = room.bytes() > 0 && Arc::strong_count(&self.for_room) > 1;
        is_crowded && room.is_in_the_way(self.patience.in_the_way)
    }

    /// Ends a connection when its answer is in the way.
    async fn watch(self: Arc<Self>, room: Weak<UnfinishedFrame>, end: Arc<Notify>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(room) = room.upgrade() else { return };
            if self.is_in_the_way(&room) {
                return end.notify_one();
            }
        }
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
                self.in_time(claimed).await?;
            }
            let Some(piece) = self.piece(&mut body, &room, since).await? else {
                return Ok(Bytes::from_owner(Held { bytes: read, _with: room }));
            };
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
        let Patience { pause, body: whole, .. } = self.patience;
        let before = Instant::now();
        loop {
            if self.is_in_the_way(room) || before.elapsed() > pause || since.elapsed() > whole {
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

/// The whole answer.
async fn make(mut router: Router, request: Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
    let Ok(answer) = router.call(request.map(Body::from)).await;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(Refusal::Unmade)?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// Whether the answer is small, or has room now.
fn has_room(room: &mut UnfinishedFrame, answer: &Response<Bytes>) -> bool {
    let bytes = answer.body().len();
    bytes <= SMALL_ANSWER || room.claim(bytes as u64)
}

/// Bytes, and what they have as long as they are there.
struct Held<T, W> {
    bytes: T,
    _with: W,
}

impl<T: AsRef<[u8]>, W> AsRef<[u8]> for Held<T, W> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
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

    /// The answer as it goes out, with the room that it has until it is taken.
    fn hold(&self, answer: Response<Bytes>, room: UnfinishedFrame) -> Response {
        if room.bytes() == 0 {
            return answer.map(Body::from);
        }
        let room = Arc::new(room);
        tokio::spawn(self.port.clone().watch(Arc::downgrade(&room), self.end.clone()));
        answer.map(|bytes| Body::from(Bytes::from_owner(Held { bytes, _with: room })))
    }

    fn leave(&self) {
        self.port.waiting.0.lock().1.remove(&self.number.load(Ordering::Relaxed));
    }

    /// A request is worked on: the connection is not ended for others meanwhile.
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
