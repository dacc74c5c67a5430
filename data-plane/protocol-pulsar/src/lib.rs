//! Pulsar's binary protocol before the topics of a broker.
//!
//! [`serve`] accepts connections; connection.rs is the heart of one; producing.rs, consuming.rs, finding.rs and
//! schemas.rs answer its commands; waiting.rs is what holds it back; keeping.rs bounds what
//! it has the broker keep; peer.rs is what topics see of it.

mod connection;
mod consuming;
mod error;
mod finding;
mod keeping;
mod left_out;
mod peer;
mod producing;
mod schemas;
#[cfg(test)]
mod tests;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use geminga_broker::{Broker, BrokerError};
use geminga_wire_pulsar::{NO_REQUEST, encode_simple};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use connection::Connection;

/// What a connection takes that is in no budget: as many are served as this goes into the limit of memory.
const CONNECTION_BYTES: u64 = 32 << 10;

/// Accepts and serves connections until `shutdown` turns true; then accepts no more, lets those that are there finish
/// what is in flight, and returns.
pub async fn serve(listener: TcpListener, broker: Arc<Broker>, mut shutdown: watch::Receiver<bool>) {
    let mut tasks = tokio::task::JoinSet::new();
    let connections: Mutex<Vec<std::sync::Weak<Connection>>> = Mutex::new(Vec::new());
    let connections_max = (broker.config().memory_limit / CONNECTION_BYTES) as usize;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|down| *down) => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: what is connected goes on.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "could not set TCP_NODELAY");
        }
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= connections_max {
            refuse(&stream, address, &broker);
            continue;
        }
        let stream = Arc::new(stream);
        let Ok(connection) = Connection::new(&stream, address, &broker).map(Arc::new) else { continue };
        {
            let mut known = connections.lock();
            if known.len() == known.capacity() {
                known.retain(|connection| connection.strong_count() > 0);
            }
            known.push(Arc::downgrade(&connection));
        }
        tasks.spawn(connection.run(stream));
    }
    drop(listener);
    for connection in connections.lock().iter().filter_map(std::sync::Weak::upgrade) {
        connection.shut_down();
    }
    while tasks.join_next().await.is_some() {}
}

/// Says that there are too many connections, as Pulsar does with its `brokerMaxConnections`.
fn refuse(stream: &TcpStream, address: SocketAddr, broker: &Broker) {
    tracing::info!(%address, "connection refused: there are too many for the limit of memory");
    broker.connections().created();
    broker.connections().closed(false);
    let error = BrokerError::NotAllowed("Reached the maximum number of connections".into());
    let mut answer = BytesMut::new();
    encode_simple(&error::error_command(NO_REQUEST, &error), &mut answer);
    if let Err(error) = stream.try_write(&answer) {
        tracing::debug!(%address, %error, "could not say so");
    }
}
