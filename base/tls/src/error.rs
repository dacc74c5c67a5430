use std::path::PathBuf;

use thiserror::Error;

/// Why files cannot be used for TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not PEM: {reason}")]
    NotPem { path: PathBuf, reason: String },
    #[error("{0} has no certificate in it")]
    NoCertificate(PathBuf),
    #[error("the certificate in {path} cannot be used: {source}")]
    Unusable { path: PathBuf, source: rustls::Error },
    #[error("the authorities in {path} cannot be used: {reason}")]
    Authorities { path: PathBuf, reason: String },
    #[error("cannot read the certificates that this machine trusts: {0}")]
    NativeRoots(String),
}
