use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::Stream;
use crate::error::TlsError;
use crate::files::Watched;

/// The server's side of TLS 1.2 and 1.3.
pub struct ServerTls(Watched<TlsAcceptor>);

impl ServerTls {
    /// Reads a certificate with its chain and its private key, both PEM. `protocols` are what ALPN offers, in that order;
    /// with none there is no ALPN. Clients are asked for a certificate if there are `authorities` (PEM): one of those has to have
    /// signed it.
    ///
    /// # Errors
    /// When a file cannot be read or is no PEM, or when the key does not belong to the certificate.
    pub fn open(
        certificate: &Path,
        key: &Path,
        authorities: Option<&Path>,
        protocols: &[&str],
    ) -> Result<Self, TlsError> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let files = [Some(certificate), Some(key), authorities].into_iter().flatten().map(Path::to_owned).collect();
        let make = move |files: &[PathBuf]| acceptor(&files[0], &files[1], files.get(2), &protocols);
        Watched::new(files, make).map(Self)
    }

    /// # Errors
    /// When the peer does not speak TLS, or does not agree.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<Stream> {
        Ok(Stream::Tls(Box::new(self.accept_on(stream).await?.into())))
    }

    /// The same on what is not simply a TCP connection.
    ///
    /// # Errors
    /// When the peer does not speak TLS, or does not agree.
    pub async fn accept_on<S>(&self, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = self.0.get();
        acceptor.accept(stream).await
    }
}

fn acceptor(
    certificate: &Path,
    key_file: &Path,
    authorities: Option<&PathBuf>,
    protocols: &[Vec<u8>],
) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(certificate)?;
    let key = private_key(key_file)?;
    let unusable = |source| TlsError::Unusable { path: certificate.to_owned(), source };
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path)?), provider).build();
            let unusable =
                |reason: VerifierBuilderError| TlsError::Authorities { path: path.clone(), reason: reason.to_string() };
            builder.with_client_cert_verifier(verifier.map_err(unusable)?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = protocols.to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What is trusted that the certificates of a PEM file have signed.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

/// All certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).map_err(|error| pem_error(path, error))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| pem_error(path, error))?;
    if found.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(found) }
}

pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(path, error))
}

fn pem_error(path: &Path, error: rustls::pki_types::pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        rustls::pki_types::pem::Error::Io(source) => TlsError::Read { path, source },
        other => TlsError::NotPem { path, reason: other.to_string() },
    }
}
