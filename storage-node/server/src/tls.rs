//! TLS as BookKeeper does it: a connection begins in the clear, and `START_TLS` of version 3 takes it over.
//!
//! From then on the TLS session stands between the peer and one end of a local pair of sockets, at whose other end the
//! connection is served like any other.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use geminga_tls::{ServerTls, TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a node shows, and whom it lets in.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// PEM files: the certificate with its chain, and its key.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// PEM file with authorities: peers have to show a certificate of one of them.
    pub client_authorities: Option<PathBuf>,
    /// Nothing is served in the clear.
    pub required: bool,
}

pub(crate) struct Tls {
    pub server: ServerTls,
    pub required: bool,
    /// Peers are known by their certificates.
    pub authenticates: bool,
}

impl Tls {
    pub fn open(options: &TlsOptions) -> Result<Self, TlsError> {
        let TlsOptions { certificate, key, client_authorities, required } = options;
        let server = ServerTls::open(certificate, key, client_authorities.as_deref(), &[])?;
        Ok(Self { server, required: *required, authenticates: client_authorities.is_some() })
    }
}

/// A TCP connection that others hold too, and do not use any more.
pub(crate) struct Taken(pub Arc<TcpStream>);

impl AsyncRead for Taken {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Taken {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}
