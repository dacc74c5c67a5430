use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::options::StorageTlsOptions;

/// As [`super::StandaloneArguments`]: of every role that uses storage nodes.
#[derive(Args, Serialize)]
pub struct StorageTlsArguments {
    /// Authorities in PEM that storage nodes' certificates are of: they are spoken to over TLS then [default: none, in the clear]
    #[arg(long, value_name = "FILE", env = "GEMINGA_STORAGE_TLS_CA", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_tls_ca: Option<PathBuf>,

    /// Certificate with its chain, in PEM, that is shown to storage nodes that ask for one [default: none]
    #[arg(long, value_name = "FILE", env = "GEMINGA_STORAGE_TLS_CERT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_tls_cert: Option<PathBuf>,

    /// Private key of that certificate, in PEM [default: none]
    #[arg(long, value_name = "FILE", env = "GEMINGA_STORAGE_TLS_KEY", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_tls_key: Option<PathBuf>,
}

impl StorageTlsArguments {
    /// For a command that has no other layers.
    pub fn options(&self) -> StorageTlsOptions {
        StorageTlsOptions {
            storage_tls_ca: self.storage_tls_ca.clone(),
            storage_tls_cert: self.storage_tls_cert.clone(),
            storage_tls_key: self.storage_tls_key.clone(),
        }
    }
}
