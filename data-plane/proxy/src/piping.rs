//! A client that has named its broker: both are introduced to each other, and then left alone.

use std::sync::Arc;

use bytes::Bytes;
use geminga_tls::Stream;
use geminga_wire_pulsar::{DEFAULT_MAX_FRAME_SIZE, proto};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};

use crate::answers::Refusal;
use crate::client::{ClientError, ClientReader, ClientWriter, farewell};
use crate::endpoint::Endpoint;
use crate::greeting::{Step, from_broker, from_client, introduction};
use crate::lookups::GREETING_LIMIT;
use crate::proxy::Proxy;
use crate::pump::{PATIENCE, Side, pipe};
use crate::reader::FrameReader;

/// # Errors
/// Why the connection has ended, unless one side has closed it.
pub async fn serve(
    proxy: &Arc<Proxy>,
    connect: &proto::CommandConnect,
    broker: Endpoint,
    mut frames: ClientReader,
    mut write: ClientWriter,
) -> Result<(), ClientError> {
    let connected = proxy.dialer.connect(&broker).await;
    proxy.rotation.note(&broker, connected.as_ref().map(|_| ()), std::time::Instant::now());
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            farewell(&mut write, &Refusal::not_ready("the target broker cannot be reached")).await;
            return Err(error.into());
        }
    };
    let (read, to_broker) = split(stream);
    let mut broker =
        Broker { frames: FrameReader::new(read, DEFAULT_MAX_FRAME_SIZE, &proxy.broker_frames), write: to_broker };
    let greeting = greet(connect, &mut frames, &mut write, &mut broker);
    match tokio::time::timeout(GREETING_LIMIT, greeting).await {
        Ok(agreed) => agreed?,
        Err(_) => {
            farewell(&mut write, &Refusal::not_ready("the target broker has not agreed in time")).await;
            return Err(ClientError::GreetingLimit);
        }
    }
    let (first, read) = frames.into_parts();
    let client = Side { read, write, first };
    let (first, read) = broker.frames.into_parts();
    let broker = Side { read, write: broker.write, first };
    Ok(pipe(client, broker, PATIENCE, &proxy.figures).await?)
}

struct Broker {
    frames: FrameReader<ReadHalf<Stream>>,
    write: WriteHalf<Stream>,
}

/// Passes challenges and their answers until the broker has agreed.
async fn greet(
    connect: &proto::CommandConnect,
    client: &mut ClientReader,
    to_client: &mut ClientWriter,
    broker: &mut Broker,
) -> Result<(), ClientError> {
    send(&mut broker.write, &introduction(connect).bytes).await?;
    loop {
        let (step, is_client) = tokio::select! {
            frame = broker.frames.next() => match frame? {
                Some(frame) => (from_broker(frame), false),
                None => {
                    farewell(to_client, &Refusal::not_ready("the target broker has closed the connection")).await;
                    return Err(ClientError::Dropped);
                }
            },
            frame = client.next() => match frame? {
                Some(frame) => (from_client(frame), true),
                None => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
            },
        };
        match step {
            Step::ToClient(bytes) => send(to_client, &bytes).await?,
            Step::ToBroker(bytes) => send(&mut broker.write, &bytes).await?,
            Step::Agreed(bytes) => return Ok(send(to_client, &bytes).await?),
            Step::Refused(bytes, refusal) => {
                send(to_client, &bytes).await?;
                to_client.shutdown().await?;
                return Err(ClientError::Refused(refusal.message));
            }
            Step::Nothing => {}
            Step::Unexpected(name) if is_client => return Err(ClientError::UnexpectedFromClient(name)),
            Step::Unexpected(name) => return Err(ClientError::UnexpectedFromBroker(name)),
        }
    }
}

async fn send(write: &mut WriteHalf<Stream>, bytes: &Bytes) -> std::io::Result<()> {
    write.write_all(bytes).await?;
    write.flush().await
}
