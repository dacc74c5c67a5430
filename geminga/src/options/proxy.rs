//! Settings of `geminga proxy`.

use std::path::PathBuf;

use figment::Figment;
use geminga_observe::logging::LogFormat;
use geminga_proxy::AddressPattern;
use serde::{Deserialize, Serialize};

use super::{Options, part};

use super::list::{HttpBroker, List, PulsarBroker};
use super::units::Duration;

/// The effective settings of `geminga proxy`. Field names are the keys of the config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProxyOptions {
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
    pub ready_file: Option<PathBuf>,
    pub shutdown_timeout: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Options for ProxyOptions {
    fn extract(layers: &Figment) -> anyhow::Result<Self> {
        part(layers)
    }
}

impl Default for ProxyOptions {
    fn default() -> Self {
        ProxyOptions {
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
            ready_file: None,
            shutdown_timeout: Duration::from_secs(30),
            log_level: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}
