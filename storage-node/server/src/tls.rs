//! TLS as BookKeeper does it: a connection begins in the clear, and `START_TLS` of version 3 takes it over.
//!
//! From then on the TLS session stands between the peer and one end of a local pair of sockets, at whose other end the
//! connection is served like any other.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

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

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} cannot be used for TLS: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("TLS is not possible with these files: {0}")]
    Unusable(String),
}

pub(crate) struct Tls {
    pub acceptor: TlsAcceptor,
    pub required: bool,
    /// Peers are known by their certificates.
    pub authenticates: bool,
}

impl Tls {
    pub fn open(options: &TlsOptions) -> Result<Self, TlsError> {
        let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
        let key = PrivateKeyDer::from_pem_file(&options.key).map_err(|error| failed(&options.key, &error))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let builder = match &options.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| failed(path, &error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unusable(&error))?)
            }
        };
        let config = builder.with_single_cert(certificates(&options.certificate)?, key);
        let config = config.map_err(|error| unusable(&error))?;
        let authenticates = options.client_authorities.is_some();
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), required: options.required, authenticates })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(path, &error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| failed(path, &error))?;
    if found.is_empty() { Err(failed(path, &"there is no certificate in it")) } else { Ok(found) }
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: reason.to_string() }
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
