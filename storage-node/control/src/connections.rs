//! Connections to the gRPC port, each once TLS stands where the node speaks that.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use geminga_tls::{ServerTls, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Handshakes at a time; who comes then waits in the listener's queue.
const HANDSHAKES_MAX: usize = 32;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// After an accept that failed, as when there are no more files.
const PAUSE: Duration = Duration::from_millis(100);

/// What tonic serves.
pub(crate) struct Connection(Stream);

/// Those that come from now on, until nobody takes them any more.
pub(crate) fn incoming(listener: TcpListener, tls: Option<ServerTls>) -> ReceiverStream<io::Result<Connection>> {
    let (ready, taken) = mpsc::channel(1);
    tokio::spawn(async move {
        tokio::select! {
            () = accept(listener, tls.map(Arc::new), ready.clone()) => (),
            () = ready.closed() => (),
        }
    });
    ReceiverStream::new(taken)
}

async fn accept(listener: TcpListener, tls: Option<Arc<ServerTls>>, ready: mpsc::Sender<io::Result<Connection>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let turn = handshakes.clone().acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection for gRPC");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            match begin(stream, tls.as_deref()).await {
                // Fails only when the server has ended.
                Ok(connection) => drop(ready.send(Ok(connection)).await),
                Err(error) => tracing::info!(%error, "a connection for gRPC ended before it began"),
            }
            drop(turn);
        });
    }
}

async fn begin(stream: TcpStream, tls: Option<&ServerTls>) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Connection(Stream::Plain(stream))) };
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await;
    Ok(Connection(handshake.map_err(io::Error::from)??))
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}
