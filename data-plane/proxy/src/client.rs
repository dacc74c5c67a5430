//! One connection of a client, from its CONNECT on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_tls::Stream;
use geminga_wire_pulsar::{Command, DEFAULT_MAX_FRAME_SIZE, proto};
use thiserror::Error;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};

use crate::admission::Denied;
use crate::answers::Refusal;
use crate::dial::DialError;
use crate::lookups::End;
use crate::proxy::Proxy;
use crate::reader::{FrameReader, ReadError};
use crate::{asking, piping};

/// Before a client has said hello it gets this much and no more.
const FRAME_BYTES_BEFORE_CONNECT: usize = 64 << 10;
/// A client that connects and says nothing.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// For the last words to a client.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// Why a connection has ended, other than by one side closing it.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0} before CONNECT")]
    NotConnected(&'static str),
    #[error("no CONNECT in time")]
    Handshake,
    #[error("it wants {target:?}: {denied}")]
    Denied { target: String, denied: Denied },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Lookups(#[from] End),
    #[error("{0} while the broker has not agreed")]
    UnexpectedFromClient(&'static str),
    #[error("the broker greets with {0}")]
    UnexpectedFromBroker(&'static str),
    #[error("the broker refuses: {0}")]
    Refused(String),
    #[error("the broker has closed the connection instead of agreeing")]
    Dropped,
    #[error("the broker has not agreed in time")]
    GreetingLimit,
}

impl ClientError {
    /// Many clients close a connection without a word, with TLS too.
    fn is_an_ordinary_end(&self) -> bool {
        let (ClientError::Io(error) | ClientError::Read(ReadError::Io(error))) = self else { return false };
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof)
    }
}

pub type ClientReader = FrameReader<ReadHalf<Stream>>;
pub type ClientWriter = WriteHalf<Stream>;

/// Serves a client until its connection ends.
pub async fn serve(proxy: Arc<Proxy>, stream: Stream, address: SocketAddr) {
    match talk(&proxy, stream).await {
        Ok(()) => tracing::debug!(%address, "connection closed"),
        Err(error) if error.is_an_ordinary_end() => tracing::debug!(%address, %error, "connection closed"),
        Err(error) => tracing::info!(%address, %error, "connection ended"),
    }
}

async fn talk(proxy: &Arc<Proxy>, stream: Stream) -> Result<(), ClientError> {
    let (read, mut write) = split(stream);
    let mut frames = FrameReader::new(read, FRAME_BYTES_BEFORE_CONNECT, &proxy.client_frames);
    let first = tokio::time::timeout(CONNECT_LIMIT, frames.next()).await.map_err(|_| ClientError::Handshake)??;
    let connect = match first.map(|frame| frame.command) {
        Some(Command::Connect(connect)) => *connect,
        Some(other) => return Err(ClientError::NotConnected(other.name())),
        None => return Ok(()),
    };
    frames.max_frame = DEFAULT_MAX_FRAME_SIZE;
    match target(&connect) {
        None => asking::serve(proxy, connect, frames, write).await,
        Some(target) => match proxy.admission.admit(target, Instant::now()) {
            Ok(broker) => piping::serve(proxy, &connect, broker, frames, write).await,
            Err(denied) => {
                proxy.figures.denied();
                farewell(&mut write, &Refusal::not_ready(denied.to_string())).await;
                Err(ClientError::Denied { target: target.to_owned(), denied })
            }
        },
    }
}

fn target(connect: &proto::CommandConnect) -> Option<&str> {
    connect.proxy_to_broker_url.as_deref().filter(|target| !target.is_empty())
}

/// Tells the client why the connection ends; whether that arrives does not matter.
pub async fn farewell(write: &mut ClientWriter, refusal: &Refusal) {
    let frame = refusal.greeting();
    let sending = async {
        write.write_all(&frame.bytes).await?;
        write.shutdown().await
    };
    let _ = tokio::time::timeout(FAREWELL_LIMIT, sending).await;
}
