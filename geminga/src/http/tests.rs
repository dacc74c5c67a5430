//! Clients that do not finish what they begin, or do not take what they asked for, beside one that does.

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

const LARGE: usize = 100_000;
/// More than sockets take of an answer.
const VERY_LARGE: usize = 16 << 20;
const SOON: Duration = Duration::from_secs(20);

/// A port that says how long the body was, or waits until the test lets it answer, or answers much.
struct Served {
    address: std::net::SocketAddr,
    answers: Arc<Notify>,
    begun: Arc<Notify>,
    bodies: Arc<Budget>,
    made: Arc<AtomicU64>,
    _shutdown: watch::Sender<bool>,
}

/// A very large answer, which is counted as long as it is there.
struct Made(Vec<u8>, Arc<AtomicU64>);

impl Made {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(vec![b'l'; VERY_LARGE], count.clone())
    }
}

impl AsRef<[u8]> for Made {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

/// With a patience that no test outlasts, but for what it changes.
async fn serve_with(connections_max: usize, change: impl FnOnce(&mut Patience)) -> Served {
    let mut patience = Patience { head: SOON, pause: SOON, body: SOON, in_the_way: SOON, room: SOON };
    change(&mut patience);
    let (answers, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let late = {
        let (answers, begun) = (answers.clone(), begun.clone());
        get(async move |_: Bytes| {
            begun.notify_one();
            answers.notified().await;
            "late"
        })
    };
    let made = Arc::new(AtomicU64::new(0));
    let large = |takes: Duration| {
        let made = made.clone();
        get(async move || {
            let answer = Made::new(&made);
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            Bytes::from_owner(answer)
        })
    };
    let router = Router::new()
        .route("/", post(async |body: Bytes| body.len().to_string()))
        .route("/late", late)
        .route("/unexpected", large(Duration::ZERO))
        // So long that others are at it as well.
        .route("/large", large(Duration::from_millis(20)));
    let bodies = Budget::new(LARGE as u64);
    let port = Port {
        router,
        is_large: |uri| uri.path() == "/large",
        turns: Arc::new(Semaphore::new(2)),
        bodies: bodies.clone(),
        connections_max,
        patience,
        waiting: Waiting::default(),
        for_room: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = watch::channel(false);
    tokio::spawn(Arc::new(port).serve(listener, stop));
    Served { address, answers, begun, bodies, made, _shutdown: shutdown }
}

impl Served {
    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// A request of which only a part of the body has been sent.
    async fn begin(&self, body: usize, sent: usize) -> TcpStream {
        self.send(&format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {body}\r\n\r\n{}", "b".repeat(sent))).await
    }

    async fn ask(&self, path: &str) -> TcpStream {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }

    /// Asks, and is not going to take the answer.
    async fn ask_in_vain(&self, path: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    /// Very large answers that are there.
    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    async fn eventually(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON / 2, wait).await.unwrap_or_else(|_| panic!("{what}: {} bytes", self.bodies.used()));
    }

    /// What a whole request is answered.
    async fn post(&self, body: usize) -> String {
        let head = format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {body}\r\n\r\n");
        answer(self.send(&(head + &"b".repeat(body))).await).await
    }
}

/// What comes until the server ends the connection.
async fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON / 2, stream.read_to_end(&mut answer)).await.expect("it ends");
    read.map_or_else(|error| error.to_string(), |_| String::from_utf8(answer).unwrap())
}

fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
}

#[tokio::test]
async fn a_head_or_a_next_request_that_never_comes_ends_the_connection() {
    let port = serve_with(10, |patience| patience.head = Duration::from_millis(300)).await;
    assert_eq!(answer(port.send("GET / HTTP/1.1\r\nhost:").await).await, "");
    let idle = answer(port.send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nb").await).await;
    assert!(idle.ends_with("\r\n\r\n1"), "{idle}");
}

#[tokio::test]
async fn a_body_that_stops_or_takes_too_long_is_a_timeout() {
    let port = serve_with(10, |patience| patience.pause = Duration::from_millis(300)).await;
    assert_status(&answer(port.begin(10, 5).await).await, 408);

    let port = serve_with(10, |patience| patience.body = Duration::from_millis(300)).await;
    let (read, mut write) = port.begin(LARGE, 5).await.into_split();
    let trickle = async {
        while write.write_all(b"b").await.is_ok() && write.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    };
    let mut head = [0; 13];
    let refused = async {
        read.readable().await.unwrap();
        read.try_read(&mut head).unwrap()
    };
    tokio::select! {
        _ = refused => {}
        () = trickle => panic!("it ended without an answer"),
        () = tokio::time::sleep(SOON / 2) => panic!("it may take for ever"),
    }
    assert_eq!(&head, b"HTTP/1.1 408 ");
}

#[tokio::test]
async fn a_body_that_comes_slowly_but_steadily_is_read() {
    let port = serve_with(10, |patience| patience.pause = Duration::from_secs(2)).await;
    let mut stream =
        port.send("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..10 {
        let piece = "b".repeat(LARGE / 10);
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = answer(stream).await;
    assert!(answer.ends_with("\r\n\r\n100000"), "{answer}");
}

#[tokio::test]
async fn too_large_a_body_is_refused_before_it_comes() {
    let port = serve_with(10, |_| {}).await;
    assert_status(&answer(port.begin(BODY_BYTES_MAX + 1, 0).await).await, 413);
    assert!(port.post(BODY_BYTES_MAX).await.ends_with(&BODY_BYTES_MAX.to_string()));
    let chunk = format!("{:x}\r\n{}\r\n", LARGE, "b".repeat(LARGE));
    let head = "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = port.send(head).await;
    for _ in 0..=BODY_BYTES_MAX / LARGE {
        let _ = stream.write_all(chunk.as_bytes()).await;
    }
    let mut status = [0; 13];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413 ");
}

#[tokio::test]
async fn bodies_wait_for_room_and_those_in_the_way_give_it() {
    let port = serve_with(10, |patience| patience.in_the_way = Duration::from_secs(1)).await;
    let in_the_way = port.begin(LARGE, LARGE / 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = Instant::now();
    assert!(port.post(SMALL_BODY).await.ends_with("16384"));
    assert!(begin.elapsed() < Duration::from_millis(700), "a small one has waited for {:?}", begin.elapsed());
    assert!(port.post(LARGE).await.ends_with("100000"));
    assert!(begin.elapsed() > Duration::from_millis(700), "both were there at once");
    assert_status(&answer(in_the_way).await, 408);
}

#[tokio::test]
async fn a_body_for_which_there_is_no_room_is_refused() {
    let port = serve_with(10, |patience| patience.room = Duration::from_millis(300)).await;
    let first = port.begin(LARGE, LARGE / 2).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_status(&port.post(LARGE).await, 503);
    drop(first);
}

#[tokio::test]
async fn connections_that_wait_for_their_clients_make_room_for_others() {
    let port = serve_with(3, |_| {}).await;
    let busy = port.ask("/late").await;
    port.begun.notified().await;
    let longest = port.send("POST / HTTP").await;
    let body = port.begin(10, 5).await;
    for _ in 0..3 {
        assert!(port.post(7).await.ends_with("7"));
    }
    let end = answer(longest).await;
    assert!(!end.starts_with("HTTP"), "{end}");
    drop(body);
    port.answers.notify_one();
    assert!(answer(busy).await.ends_with("late"));
}

#[tokio::test]
async fn nobody_who_is_answered_makes_room() {
    let port = serve_with(2, |_| {}).await;
    let mut busy = Vec::new();
    for _ in 0..2 {
        busy.push(port.ask("/late").await);
        port.begun.notified().await;
    }
    assert_status(&answer(TcpStream::connect(port.address).await.unwrap()).await, 503);
    for stream in busy {
        port.answers.notify_one();
        assert!(answer(stream).await.ends_with("late"));
    }
}

#[tokio::test]
async fn a_body_has_its_room_until_it_is_answered() {
    let port = serve_with(10, |_| {}).await;
    let head = format!("GET /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {LARGE}\r\n\r\n");
    let stream = port.send(&(head + &"b".repeat(LARGE))).await;
    port.begun.notified().await;
    assert_eq!(port.bodies.used(), LARGE as u64);
    port.answers.notify_one();
    assert!(answer(stream).await.ends_with("late"));
    port.eventually("it is given back", |port| port.bodies.used() == 0).await;
}

#[tokio::test]
async fn answers_that_nobody_takes_are_few_and_make_room_for_others() {
    for path in ["/large", "/unexpected"] {
        let port = serve_with(100, |patience| patience.in_the_way = Duration::from_millis(300)).await;
        let mut most = 0;
        let mut stuck = Vec::new();
        for _ in 0..10 {
            stuck.push(port.ask_in_vain(path).await);
        }
        let healthy = async {
            assert!(port.post(7).await.ends_with("7"));
            assert!(answer(port.ask(path).await).await.ends_with(&"l".repeat(VERY_LARGE)));
        };
        let counts = async {
            loop {
                most = most.max(port.made());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = healthy => {}
            () = counts => {}
        }
        // One has room, and two have their turns.
        assert!((1..=3).contains(&most), "{path}: {most} answers at once");
        assert!(!answer(stuck.remove(0)).await.ends_with(&"l".repeat(VERY_LARGE)), "it has got all");
        drop(stuck);
        port.eventually("all is given back", |port| port.bodies.used() == 0 && port.made() == 0).await;
    }
}

#[tokio::test]
async fn whoever_takes_nothing_is_given_up_although_nobody_waits() {
    let port = serve_with(10, |patience| patience.pause = Duration::from_millis(300)).await;
    let stuck = port.ask_in_vain("/large").await;
    port.eventually("the answer is there", |port| port.bodies.used() > 0).await;
    port.eventually("it is given up", |port| port.bodies.used() == 0).await;
    drop(stuck);
}

#[tokio::test]
async fn whoever_has_gone_keeps_its_turn_until_its_answer_is_made() {
    let port = serve_with(10, |_| {}).await;
    for _ in 0..20 {
        drop(port.ask_in_vain("/large").await);
    }
    port.eventually("they are made", |port| port.made() > 0).await;
    for _ in 0..20 {
        assert!(port.made() <= 2, "{} are made at once", port.made());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
