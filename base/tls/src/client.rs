use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Stream;
use crate::error::TlsError;
use crate::files::Watched;
use crate::server::roots;

/// The client's side of TLS 1.2 and 1.3. The server's certificate must be valid for the name that is connected to.
pub struct ClientTls(Watched<TlsConnector>);

impl ClientTls {
    /// Trusts the certificates of a PEM file and those that they have signed.
    ///
    /// # Errors
    /// When the file cannot be read or has no usable certificate.
    pub fn trusting(authorities: &Path) -> Result<Self, TlsError> {
        let make = |files: &[std::path::PathBuf]| {
            connector(roots(&files[0])?).map_err(|source| TlsError::Unusable { path: files[0].clone(), source })
        };
        Watched::new(vec![authorities.to_owned()], make).map(Self)
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
            connector(roots).map_err(|source| TlsError::NativeRoots(source.to_string()))
        };
        Watched::new(Vec::new(), make).map(Self)
    }

    /// `host` is the name or the IP address that the certificate must be for.
    ///
    /// # Errors
    /// When the host is no such name, or its certificate is not trusted.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<Stream> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
        let connector = self.0.get();
        Ok(Stream::Tls(Box::new(connector.connect(name, stream).await?.into())))
    }
}

fn connector(roots: RootCertStore) -> Result<TlsConnector, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
