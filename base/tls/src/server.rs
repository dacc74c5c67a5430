use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::Stream;
use crate::error::TlsError;
use crate::files::Watched;

/// The server's side of TLS 1.2 and 1.3. Clients are not asked for a certificate.
pub struct ServerTls(Watched<TlsAcceptor>);

impl ServerTls {
    /// Reads a certificate with its chain and its private key, both PEM. `protocols` are what ALPN offers, in that order;
    /// with none there is no ALPN.
    ///
    /// # Errors
    /// When a file cannot be read or is no PEM, or when the key does not belong to the certificate.
    pub fn open(certificate: &Path, key: &Path, protocols: &[&str]) -> Result<Self, TlsError> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let files = vec![certificate.to_owned(), key.to_owned()];
        Watched::new(files, move |files| acceptor(&files[0], &files[1], &protocols)).map(Self)
    }

    /// # Errors
    /// When the peer does not speak TLS, or does not agree.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<Stream> {
        let acceptor = self.0.get();
        Ok(Stream::Tls(Box::new(acceptor.accept(stream).await?.into())))
    }
}

fn acceptor(certificate: &Path, key_file: &Path, protocols: &[Vec<u8>]) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| pem_error(key_file, error))?;
    let unusable = |source| TlsError::Unusable { path: certificate.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = protocols.to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// All certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| pem_error(path, error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| pem_error(path, error))?;
    if found.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn pem_error(path: &Path, error: rustls::pki_types::pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        rustls::pki_types::pem::Error::Io(source) => TlsError::Read { path, source },
        other => TlsError::NotPem { path, reason: other.to_string() },
    }
}
