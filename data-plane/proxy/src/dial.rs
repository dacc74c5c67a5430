//! Connections to brokers.

use std::time::{Duration, Instant};

use geminga_tls::{ClientTls, Stream};
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::net::TcpStream;

use crate::endpoint::Endpoint;
use crate::rotation::Rotation;

/// A broker that does not answer in this time, TLS included, is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Peers whose machine or network has gone are noticed by this, and in some minutes.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum DialError {
    #[error("cannot connect to {endpoint}: {source}")]
    Connect { endpoint: Endpoint, source: std::io::Error },
    #[error("{0} does not answer in time")]
    Timeout(Endpoint),
    #[error("{0} wants TLS, and no authority is trusted for brokers")]
    NoTls(Endpoint),
    #[error("no broker is configured")]
    NoBrokers,
}

pub struct Dialer {
    pub tls: Option<ClientTls>,
}

impl Dialer {
    /// # Errors
    /// When the broker cannot be reached, or is not trusted.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Stream, DialError> {
        let connecting = async {
            let stream = TcpStream::connect((&endpoint.host[..], endpoint.port)).await?;
            prepare(&stream);
            match (&self.tls, endpoint.tls) {
                (_, false) => Ok(Some(Stream::Plain(stream))),
                (Some(tls), true) => tls.connect(&endpoint.host, stream).await.map(Some),
                (None, true) => Ok(None),
            }
        };
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(Some(stream))) => Ok(stream),
            Ok(Ok(None)) => Err(DialError::NoTls(endpoint.clone())),
            Ok(Err(source)) => Err(DialError::Connect { endpoint: endpoint.clone(), source }),
            Err(_) => Err(DialError::Timeout(endpoint.clone())),
        }
    }

    /// Connects to whichever broker's turn it is, or to the next that can be reached.
    ///
    /// # Errors
    /// That of the last one, when none can be reached.
    pub async fn connect_any(&self, rotation: &Rotation) -> Result<(Endpoint, Stream), DialError> {
        let mut failure = DialError::NoBrokers;
        for endpoint in rotation.turn(Instant::now()) {
            let connected = self.connect(&endpoint).await;
            rotation.note(&endpoint, connected.as_ref().map(|_| ()), Instant::now());
            match connected {
                Ok(stream) => return Ok((endpoint, stream)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Sets what every connection has. What the system refuses costs speed or a late notice, not the connection.
pub fn prepare(stream: &TcpStream) {
    let keep_alive = TcpKeepalive::new().with_time(TCP_KEEP_ALIVE).with_interval(TCP_KEEP_ALIVE / 4);
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keep_alive));
    if let Err(error) = set {
        tracing::debug!(%error, "could not set options of a connection");
    }
}
