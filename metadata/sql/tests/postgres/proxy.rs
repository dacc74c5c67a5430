//! Something between a store and its server that loses a connection exactly where it hurts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What becomes of the next transaction.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
pub enum Fate {
    Passes,
    /// The connection is lost before the server has seen the COMMIT.
    IsLost,
    /// The connection is lost before the answer to the COMMIT comes back.
    LosesItsAnswer,
    /// The same, and no new connection is let through.
    LosesItsServer,
    /// It begins, and nothing more is heard of its client, whose connection stays open.
    Stalls,
    /// As [`Fate::LosesItsAnswer`], and then nothing is heard of who has looked what became of it and wants to go on.
    LosesItsAnswerAndStalls,
}

/// Ends with the value.
pub struct Proxy {
    pub port: u16,
    fate: Arc<AtomicU8>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fate = Arc::new(AtomicU8::new(Fate::Passes as u8));
        let task = tokio::spawn(accept(listener, server, fate.clone()));
        Proxy { port, fate, task }
    }

    pub fn set(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::SeqCst);
    }

    /// Whether a COMMIT has met its fate.
    pub fn is_spent(&self) -> bool {
        let waiting = [Fate::IsLost, Fate::LosesItsAnswer, Fate::LosesItsAnswerAndStalls, Fate::Stalls];
        !waiting.map(|fate| fate as u8).contains(&self.fate.load(Ordering::SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Stays after [`Fate::LosesItsServer`] has come true.
const NO_SERVER: u8 = 99;
/// Stays after the first half of [`Fate::LosesItsAnswerAndStalls`].
const STALLS_AT_ROLLBACK: u8 = 98;

async fn accept(listener: TcpListener, server: u16, fate: Arc<AtomicU8>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if fate.load(Ordering::SeqCst) != NO_SERVER {
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            tokio::spawn(relay(client, server, fate.clone()));
        }
    }
}

async fn relay(client: TcpStream, server: TcpStream, fate: Arc<AtomicU8>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (client_in, mut client_out) = client.into_split();
    let (mut server_in, server_out) = server.into_split();
    let back = async { tokio::io::copy(&mut server_in, &mut client_out).await.map(drop) };
    tokio::select! {
        _ = back => {}
        _ = forward(client_in, server_out, &fate) => {}
    }
}

/// Returns when the connection is lost.
async fn forward(
    mut client: OwnedReadHalf,
    mut server: tokio::net::tcp::OwnedWriteHalf,
    fate: &AtomicU8,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = client.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let says = |text: &[u8]| buffer[..length].windows(text.len()).any(|bytes| bytes == text);
        let commits = says(b"COMMIT\0");
        if says(b"ROLLBACK\0") && fate.load(Ordering::SeqCst) == STALLS_AT_ROLLBACK {
            fate.store(Fate::Passes as u8, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        let now = if commits { fate.load(Ordering::SeqCst) } else { Fate::Passes as u8 };
        if now == Fate::IsLost as u8 {
            fate.store(Fate::Passes as u8, Ordering::SeqCst);
            return Ok(());
        }
        server.write_all(&buffer[..length]).await?;
        if says(b"FOR UPDATE\0") && fate.load(Ordering::SeqCst) == Fate::Stalls as u8 {
            fate.store(Fate::Passes as u8, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        let fates = [
            (Fate::LosesItsAnswer, Fate::Passes as u8),
            (Fate::LosesItsServer, NO_SERVER),
            (Fate::LosesItsAnswerAndStalls, STALLS_AT_ROLLBACK),
        ];
        if let Some((_, next)) = fates.into_iter().find(|(fate, _)| *fate as u8 == now) {
            fate.store(next, Ordering::SeqCst);
            return Ok(());
        }
    }
}
