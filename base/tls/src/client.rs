use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Stream;
use crate::error::TlsError;
use crate::files::Watched;
use crate::server::{certificates, private_key, roots};

/// The client's side of TLS 1.2 and 1.3. The server's certificate must be valid for the name that is connected to.
pub struct ClientTls(Watched<TlsConnector>);

impl ClientTls {
    /// Trusts the certificates of a PEM file and those that they have signed.
    ///
    /// # Errors
    /// When the file cannot be read or has no usable certificate.
    pub fn trusting(authorities: &Path) -> Result<Self, TlsError> {
        let make = |files: &[PathBuf]| {
            let config = trusting(roots(&files[0])?).map(WithCert::with_no_client_auth);
            connector(config).map_err(|source| TlsError::Unusable { path: files[0].clone(), source })
        };
        Watched::new(vec![authorities.to_owned()], make).map(Self)
    }

    /// The same, and shows servers that ask for it a certificate: a PEM file with its chain, and one with its private key.
    ///
    /// # Errors
    /// When a file cannot be read or is no PEM, or when the key does not belong to the certificate.
    pub fn trusting_as(authorities: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let make = |files: &[PathBuf]| {
            let (chain, key) = (certificates(&files[1])?, private_key(&files[2])?);
            let config = trusting(roots(&files[0])?).and_then(|config| config.with_client_auth_cert(chain, key));
            connector(config).map_err(|source| TlsError::Unusable { path: files[1].clone(), source })
        };
        Watched::new([authorities, certificate, key].map(Path::to_owned).into(), make).map(Self)
    }

    /// Trusts what the machine trusts.
    ///
    /// # Errors
    /// When it trusts nothing.
    pub fn trusting_the_machine() -> Result<Self, TlsError> {
        let make = |_: &[std::path::PathBuf]| {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                let reason = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
                return Err(TlsError::NativeRoots(reason));
            }
            let config = trusting(roots).map(WithCert::with_no_client_auth);
            connector(config).map_err(|source| TlsError::NativeRoots(source.to_string()))
        };
        Watched::new(Vec::new(), make).map(Self)
    }

    /// `host` is the name or the IP address that the certificate must be for.
    ///
    /// # Errors
    /// When the host is no such name, or its certificate is not trusted.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<Stream> {
        Ok(Stream::Tls(Box::new(self.connect_on(host, stream).await?.into())))
    }

    /// The same on what is not simply a TCP connection.
    ///
    /// # Errors
    /// When the host is no such name, or its certificate is not trusted.
    pub async fn connect_on<S>(&self, host: &str, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
        let connector = self.0.get();
        connector.connect(name, stream).await
    }
}

type WithCert = ConfigBuilder<ClientConfig, WantsClientCert>;

fn trusting(roots: RootCertStore) -> Result<WithCert, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots))
}

fn connector(config: Result<ClientConfig, rustls::Error>) -> Result<TlsConnector, rustls::Error> {
    config.map(|config| TlsConnector::from(Arc::new(config)))
}
