//! Pulsar's binary protocol before the topics of a broker.
//!
//! [`serve`] accepts connections; connection.rs is the heart of one; producing.rs, consuming.rs, finding.rs and
//! schemas.rs answer its commands; waiting.rs is what holds it back; keeping.rs bounds what it has
//! the broker keep; peer.rs is what topics see of it.

mod connection;
mod consuming;
mod error;
mod finding;
mod keeping;
mod peer;
mod producing;
mod schemas;
#[cfg(test)]
mod tests;
mod waiting;

use std::sync::Arc;

use geminga_broker::Broker;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

use connection::Connection;

/// Accepts and serves connections until `shutdown` turns true; then accepts no more, lets those that are there finish
/// what is in flight, and returns.
pub async fn serve(listener: TcpListener, broker: Arc<Broker>, mut shutdown: watch::Receiver<bool>) {
    let mut tasks = tokio::task::JoinSet::new();
    let connections: Mutex<Vec<std::sync::Weak<Connection>>> = Mutex::new(Vec::new());
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
