//! Settings of `geminga proxy`.

use std::path::PathBuf;

use figment::Figment;
use geminga_proxy::AddressPattern;
use serde::{Deserialize, Serialize};

use super::{Options, ProcessOptions, part};

use super::list::{HttpBroker, List, PulsarBroker};

/// The effective settings of `geminga proxy`. Field names are the keys of the config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyOptions {
    #[serde(flatten, skip_deserializing)]
    pub process: ProcessOptions,
    pub brokers: List<PulsarBroker>,
    pub broker_http: List<HttpBroker>,
    pub allow_brokers: List<AddressPattern>,
    pub broker_ca: Option<PathBuf>,
    pub pulsar_addr: String,
    pub tls_addr: Option<String>,
    pub http_addr: String,
    pub https_addr: Option<String>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub max_connections: usize,
}

impl Options for ProxyOptions {
    fn extract(layers: &Figment) -> anyhow::Result<Self> {
        // As in `StandaloneOptions`.
        Ok(Self { process: part(layers)?, ..part(layers)? })
    }
}

impl Default for ProxyOptions {
    fn default() -> Self {
        ProxyOptions {
            process: ProcessOptions::default(),
            brokers: List::default(),
            broker_http: List::default(),
            allow_brokers: List::default(),
            broker_ca: None,
            pulsar_addr: "127.0.0.1:6650".into(),
            tls_addr: None,
            http_addr: "127.0.0.1:8080".into(),
            https_addr: None,
            tls_cert: None,
            tls_key: None,
            max_connections: 10_000,
        }
    }
}
