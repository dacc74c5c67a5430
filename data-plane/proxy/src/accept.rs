//! Ports: who comes is let in up to a limit, with TLS or without.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use geminga_tls::{ServerTls, Stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::dial::prepare;
use crate::metrics::Figures;

/// For the handshake of TLS.
const TLS_LIMIT: Duration = Duration::from_secs(10);
/// After an error of accepting: out of descriptors, most likely. What is connected goes on.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port with what it takes to serve it.
pub struct Port {
    pub listener: TcpListener,
    pub tls: Option<Arc<ServerTls>>,
    pub limit: Arc<Semaphore>,
    pub figures: Arc<Figures>,
}

impl Port {
    /// Accepts connections until `shutdown` turns true, then waits for those that are there to end.
    pub async fn serve<F>(
        self,
        mut shutdown: watch::Receiver<bool>,
        serve: impl Fn(Stream, SocketAddr) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Port { listener, tls, limit, figures } = self;
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|down| *down) => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = limit.clone().try_acquire_owned() else {
                figures.rejected();
                tracing::debug!(%address, "refused a connection beyond the limit");
                continue;
            };
            tasks.spawn(admit(stream, address, tls.clone(), permit, serve.clone()));
        }
        drop(listener);
        while tasks.join_next().await.is_some() {}
    }
}

async fn admit<F: Future<Output = ()>>(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerTls>>,
    permit: OwnedSemaphorePermit,
    serve: impl Fn(Stream, SocketAddr) -> F,
) {
    prepare(&stream);
    let stream = match tls {
        None => Stream::Plain(stream),
        Some(tls) => match tokio::time::timeout(TLS_LIMIT, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::info!(%address, %error, "no agreement on TLS"),
            Err(_) => return tracing::info!(%address, "no agreement on TLS in time"),
        },
    };
    serve(stream, address).await;
    drop(permit);
}
