//! Clients that do not finish what they begin, beside one that does.

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

const LARGE: usize = 100_000;
const SOON: Duration = Duration::from_secs(20);

/// A port that says how long the body was, or waits until the test lets it answer.
struct Served {
    address: std::net::SocketAddr,
    answers: Arc<Notify>,
    begun: Arc<Notify>,
    _shutdown: watch::Sender<bool>,
}

/// With a patience that no test outlasts, but for what it changes.
async fn serve_with(connections_max: usize, change: impl FnOnce(&mut Patience)) -> Served {
    let mut patience = Patience { head: SOON, pause: SOON, body: SOON, in_the_way: SOON, room: SOON };
    change(&mut patience);
    let (answers, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let late = {
        let (answers, begun) = (answers.clone(), begun.clone());
        get(async move || {
            begun.notify_one();
            answers.notified().await;
            "late"
        })
    };
    let router = Router::new().route("/", post(async |body: Bytes| body.len().to_string())).route("/late", late);
    let port = Port {
        router,
        bodies: Budget::new(LARGE as u64),
        connections_max,
        patience,
        waiting: Waiting::default(),
        for_room: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = watch::channel(false);
    tokio::spawn(Arc::new(port).serve(listener, stop));
    Served { address, answers, begun, _shutdown: shutdown }
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
    let busy = port.send("GET /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
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
        busy.push(port.send("GET /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await);
        port.begun.notified().await;
    }
    assert_status(&answer(TcpStream::connect(port.address).await.unwrap()).await, 503);
    for stream in busy {
        port.answers.notify_one();
        assert!(answer(stream).await.ends_with("late"));
    }
}
