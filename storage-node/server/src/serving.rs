//! Accepting connections.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::node::StorageNode;

/// Accepts and serves connections until `shutdown` turns true; then accepts no more, lets those that are there finish
/// what is in flight, and returns.
pub async fn serve(listener: TcpListener, node: Arc<StorageNode>, mut shutdown: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let connections: Mutex<Vec<Weak<Connection>>> = Mutex::default();
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
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "could not set TCP_NODELAY");
        }
        let stream = Arc::new(stream);
        let connection = Arc::new(Connection::new(node.clone(), stream.clone(), address.to_string()));
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
    for connection in connections.lock().iter().filter_map(Weak::upgrade) {
        connection.shut_down();
    }
    while tasks.join_next().await.is_some() {}
}
