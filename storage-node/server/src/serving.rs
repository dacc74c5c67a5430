//! Accepting connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_flow::Socket;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::connection::{Connection, End};
use crate::node::StorageNode;
use crate::tls::Taken;

/// Peers whose machine or network has gone are noticed by this, and in some minutes.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the last answers may take on their way through TLS.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Accepts and serves connections until `shutdown` turns true; then accepts no more, lets those that are there finish
/// what is in flight, and returns.
pub async fn serve(listener: TcpListener, node: Arc<StorageNode>, mut shutdown: watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    let connections: Arc<Connections> = Arc::default();
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
        // What the system refuses costs speed or a late notice, not the connection.
        let keep_alive = TcpKeepalive::new().with_time(TCP_KEEP_ALIVE).with_interval(TCP_KEEP_ALIVE / 4);
        let set = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_keepalive(&keep_alive));
        if let Err(error) = set {
            tracing::debug!(%address, %error, "could not set options of a connection");
        }
        tasks.spawn(serve_connection(node.clone(), Arc::new(stream), address.to_string(), connections.clone()));
    }
    drop(listener);
    connections.shut_down();
    while tasks.join_next().await.is_some() {}
}

/// Those that are served now.
#[derive(Default)]
struct Connections {
    known: Mutex<Vec<Weak<Connection>>>,
    ending: AtomicBool,
}

impl Connections {
    fn add(&self, connection: &Arc<Connection>) {
        let mut known = self.known.lock();
        if known.len() == known.capacity() {
            known.retain(|connection| connection.strong_count() > 0);
        }
        known.push(Arc::downgrade(connection));
        if self.ending.load(Ordering::Relaxed) {
            connection.shut_down();
        }
    }

    fn shut_down(&self) {
        let known = self.known.lock();
        self.ending.store(true, Ordering::Relaxed);
        known.iter().filter_map(Weak::upgrade).for_each(|connection| connection.shut_down());
    }
}

/// In the clear, and then, if the peer asks for it, behind TLS.
async fn serve_connection(
    node: Arc<StorageNode>,
    stream: Arc<TcpStream>,
    address: String,
    connections: Arc<Connections>,
) {
    let socket = Socket::from(stream.clone());
    let connection = Arc::new(Connection::new(node.clone(), socket.clone(), address.clone(), false));
    connections.add(&connection);
    if connection.run(socket).await == End::Closed {
        return;
    }
    let tls = node.tls.as_ref().expect("TLS is begun where there is some");
    let handshake = tokio::time::timeout(HANDSHAKE, tls.server.accept_on(Taken(stream))).await;
    let mut session = match handshake.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Ok(session) => session,
        Err(error) => return tracing::info!(address, %error, "no TLS with a client"),
    };
    let (ours, mut theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => return tracing::warn!(address, %error, "could not make a pair of sockets"),
    };
    let socket = Socket::from(ours);
    let connection = Arc::new(Connection::new(node, socket.clone(), address, true));
    connections.add(&connection);
    let mut ciphering = tokio::spawn(async move {
        // However it ends, the connection sees the end of its socket.
        let _ = tokio::io::copy_bidirectional(&mut session, &mut theirs).await;
    });
    connection.run(socket).await;
    // The last answers go out; a peer that stays is left.
    if tokio::time::timeout(LAST_ANSWERS, &mut ciphering).await.is_err() {
        ciphering.abort();
    }
}

#[cfg(test)]
mod tests {
    use geminga_log::{Log, LogOptions};
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::node::NodeOptions;

    #[tokio::test]
    async fn a_shutdown_waits_for_no_room() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(folder.path(), options).expect("it opens");
        let node = StorageNode::new(log, NodeOptions::new(64 << 20));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, node.clone(), stopped));
        // Others have all the room that there is for large frames, and keep it.
        node.receiving.take(node.receiving.limit());
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(&(1u32 << 20).to_be_bytes()).await.expect("the beginning of a frame");
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(5), serving).await.expect("it ends").expect("in good order");
        node.receiving.give_back(node.receiving.limit());
        node.close();
    }
}
