//! Bytes from one side to the other, as they come.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::metrics::Figures;

/// Bounds of what is read at once: it grows with the traffic, and a quiet connection keeps the least. With what the kernel
/// holds, this is all that waits for a slow receiver; the sender is not read meanwhile.
const READ_BYTES_MIN: usize = 1 << 10;
const READ_BYTES_MAX: usize = 64 << 10;

/// How long a side may keep the other waiting.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A receiver that takes nothing for so long is given up.
    pub stalled: Duration,
    /// When one side has ended, the other may go on as long as it is never quiet for this long.
    pub half_closed: Duration,
}

/// Pulsar's clients and brokers would have pinged twice before a receiver is given up.
pub const PATIENCE: Patience = Patience { stalled: Duration::from_secs(120), half_closed: Duration::from_secs(30) };

/// A side of a pipe: what to read, what to write, and what was read from it already.
pub struct Side<R, W> {
    pub read: R,
    pub write: W,
    pub first: BytesMut,
}

/// Passes bytes both ways until both sides have ended, or one fails.
///
/// # Errors
/// When a side fails, takes nothing any more, or stays after the other has gone.
pub async fn pipe<R, W, S, X>(
    client: Side<R, W>,
    broker: Side<S, X>,
    patience: Patience,
    figures: &Figures,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    S: AsyncRead + Unpin,
    X: AsyncWrite + Unpin,
{
    let passed = AtomicU64::new(0);
    let up = pump(client.read, broker.write, client.first, patience.stalled, figures, &passed);
    let down = pump(broker.read, client.write, broker.first, patience.stalled, figures, &passed);
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut up => {
            ended?;
            linger(down, patience.half_closed, &passed).await
        }
        ended = &mut down => {
            ended?;
            linger(up, patience.half_closed, &passed).await
        }
    }
}

/// Waits for the other direction of a pipe that is closed in one.
async fn linger(
    direction: impl Future<Output = io::Result<()>>,
    quiet: Duration,
    passed: &AtomicU64,
) -> io::Result<()> {
    tokio::pin!(direction);
    loop {
        let before = passed.load(Ordering::Relaxed);
        match tokio::time::timeout(quiet, &mut direction).await {
            Ok(ended) => return ended,
            Err(_) if passed.load(Ordering::Relaxed) > before => {}
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "one side stays after the other has gone")),
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    first: BytesMut,
    stalled: Duration,
    figures: &Figures,
    passed: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = first;
    let mut size = READ_BYTES_MIN;
    loop {
        if !buffer.is_empty() {
            figures.piped(buffer.len());
            passed.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            write(&mut to, &buffer, stalled).await?;
        }
        buffer.clear();
        size = next_size(&mut buffer, size);
        let read = from.read_buf(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        if read >= size {
            size = (size * 4).min(READ_BYTES_MAX);
        } else if read < size / 16 {
            size = (size / 4).max(READ_BYTES_MIN);
        }
    }
}

/// Gives the buffer the wanted capacity.
fn next_size(buffer: &mut BytesMut, wanted: usize) -> usize {
    if buffer.capacity() < wanted || buffer.capacity() > wanted * 2 {
        *buffer = BytesMut::with_capacity(wanted);
    }
    wanted
}

async fn write(to: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8], limit: Duration) -> io::Result<()> {
    let stalled = || io::Error::new(io::ErrorKind::TimedOut, "the receiver takes nothing any more");
    while !bytes.is_empty() {
        let written = tokio::time::timeout(limit, to.write(bytes)).await.map_err(|_| stalled())??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[written..];
    }
    tokio::time::timeout(limit, to.flush()).await.map_err(|_| stalled())?
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex, split};
    use tokio::time::Instant;

    use super::*;

    /// Long for what takes no time, short to wait for.
    const LITTLE_PATIENCE: Patience =
        Patience { stalled: Duration::from_millis(600), half_closed: Duration::from_millis(400) };

    fn side(stream: DuplexStream) -> Side<impl AsyncRead + Unpin, impl AsyncWrite + Unpin> {
        let (read, write) = split(stream);
        Side { read, write, first: BytesMut::new() }
    }

    /// Both ends of a pipe whose own buffers hold `bytes` in each direction.
    async fn with_pipe<T>(
        bytes: usize,
        first: &[u8],
        talk: impl AsyncFnOnce(DuplexStream, DuplexStream) -> T,
    ) -> (io::Result<()>, T) {
        let ((client, inner_client), (broker, inner_broker)) = (duplex(bytes), duplex(bytes));
        let mut client_side = side(inner_client);
        client_side.first = BytesMut::from(first);
        let figures = Figures::default();
        tokio::join!(pipe(client_side, side(inner_broker), LITTLE_PATIENCE, &figures), talk(client, broker))
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first_and_a_closed_half_leaves_the_other() {
        let (piped, ()) = with_pipe(64, b"first ", async |mut client, mut broker| {
            client.write_all(b"then").await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            broker.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"first then");
            let (mut read, answer) = (Vec::new(), vec![3; 100_000]);
            let (written, received) = tokio::join!(
                async {
                    broker.write_all(&answer).await?;
                    broker.shutdown().await
                },
                client.read_to_end(&mut read)
            );
            written.unwrap();
            received.unwrap();
            assert_eq!(read, answer);
        })
        .await;
        piped.unwrap();
    }

    #[tokio::test]
    async fn a_half_that_stays_without_a_word_is_given_up() {
        let begin = Instant::now();
        let (piped, _stay) = with_pipe(64, b"", async |mut client, mut broker| {
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            broker.read_to_end(&mut all).await.unwrap();
            // One more word gives it one more time.
            tokio::time::sleep(LITTLE_PATIENCE.half_closed / 2).await;
            broker.write_all(b"word").await.unwrap();
            (client, broker)
        })
        .await;
        assert_eq!(piped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= LITTLE_PATIENCE.half_closed * 2);
    }

    #[tokio::test]
    async fn a_receiver_that_takes_nothing_is_given_up() {
        let begin = Instant::now();
        let (piped, (sent, _stays)) = with_pipe(64, b"", async |mut client, broker| {
            let mut sent = 0;
            while client.write_all(&[1; 64]).await.is_ok() {
                sent += 64;
            }
            (sent, broker)
        })
        .await;
        assert_eq!(piped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= LITTLE_PATIENCE.stalled);
        assert!(sent < 2 * READ_BYTES_MIN, "the sender was held back, not buffered for: {sent}");
    }
}
