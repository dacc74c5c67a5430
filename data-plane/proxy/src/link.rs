//! One connection to a broker on behalf of a client that asks where topics are.

use std::sync::Arc;

use bytes::Bytes;
use geminga_tls::Stream;
use tokio::io::{AsyncWriteExt, WriteHalf, split};
use tokio::sync::mpsc;

use crate::dial::DialError;
use crate::endpoint::Endpoint;
use crate::frame::Frame;
use crate::lookups::LinkId;
use crate::proxy::Proxy;
use crate::reader::FrameReader;

/// Brokers are trusted to send what they must, such as long lists of topics; the room for it is bounded beside.
const MAX_FRAME: usize = 64 << 20;

#[derive(Debug)]
pub enum LinkEvent {
    Dialed(Endpoint),
    Frame(Frame),
    /// `reached` is false when there was no broker to connect to.
    Lost {
        reason: String,
        reached: bool,
    },
}

/// Connects, and passes frames until the connection ends. The last event is `Lost`. While nobody takes events, the broker is
/// not read.
pub async fn run(
    proxy: Arc<Proxy>,
    id: LinkId,
    target: Option<Endpoint>,
    outbound: mpsc::Receiver<Bytes>,
    events: mpsc::Sender<(LinkId, LinkEvent)>,
) {
    let event = match connect(&proxy, target).await {
        Ok((endpoint, stream)) => {
            // Fails only when the client has gone, which also ends this task.
            let _ = events.send((id, LinkEvent::Dialed(endpoint))).await;
            LinkEvent::Lost { reason: exchange(&proxy, id, stream, outbound, &events).await, reached: true }
        }
        Err(error) => LinkEvent::Lost { reason: error.to_string(), reached: false },
    };
    let _ = events.send((id, event)).await;
}

async fn connect(proxy: &Proxy, target: Option<Endpoint>) -> Result<(Endpoint, Stream), DialError> {
    match target {
        Some(endpoint) => proxy.dialer.connect(&endpoint).await.map(|stream| (endpoint, stream)),
        None => proxy.dialer.connect_any(&proxy.rotation).await,
    }
}

/// Why the connection has ended.
async fn exchange(
    proxy: &Proxy,
    id: LinkId,
    stream: Stream,
    outbound: mpsc::Receiver<Bytes>,
    events: &mpsc::Sender<(LinkId, LinkEvent)>,
) -> String {
    let (read, write) = split(stream);
    let mut frames = FrameReader::new(read, MAX_FRAME, &proxy.broker_frames);
    let reading = async {
        loop {
            match frames.next().await {
                Ok(Some(frame)) => {
                    let _ = events.send((id, LinkEvent::Frame(frame))).await;
                }
                Ok(None) => return "it has closed the connection".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    };
    tokio::select! {
        reason = reading => reason,
        Err(error) = send_all(write, outbound) => error.to_string(),
    }
}

/// Writes what comes, until nothing more can come.
async fn send_all(mut write: WriteHalf<Stream>, mut outbound: mpsc::Receiver<Bytes>) -> std::io::Result<()> {
    while let Some(bytes) = outbound.recv().await {
        write.write_all(&bytes).await?;
        write.flush().await?;
    }
    Ok(())
}
