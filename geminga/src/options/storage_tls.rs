//! How a process reaches storage nodes.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use geminga_tls::ClientTls;
use serde::{Deserialize, Serialize};

/// Field names are the keys of the config file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StorageTlsOptions {
    pub storage_tls_ca: Option<PathBuf>,
    pub storage_tls_cert: Option<PathBuf>,
    pub storage_tls_key: Option<PathBuf>,
}

impl StorageTlsOptions {
    /// `None`: in the clear.
    ///
    /// # Errors
    /// The files cannot be used, or one is missing.
    pub fn open(&self) -> anyhow::Result<Option<Arc<ClientTls>>> {
        let [authorities, certificate, key] =
            [&self.storage_tls_ca, &self.storage_tls_cert, &self.storage_tls_key].map(|path| path.as_deref());
        let tls = match (authorities, certificate, key) {
            (None, None, None) => return Ok(None),
            (Some(authorities), None, None) => ClientTls::trusting(authorities),
            (Some(authorities), Some(certificate), Some(key)) => ClientTls::trusting_as(authorities, certificate, key),
            (None, ..) => bail!("TLS to storage nodes needs the authority of their certificates (--storage-tls-ca)"),
            _ => bail!("a certificate and its key belong together (--storage-tls-cert, --storage-tls-key)"),
        };
        Ok(Some(Arc::new(tls.context("cannot use TLS to storage nodes (--storage-tls-ca, -cert, -key)")?)))
    }
}
