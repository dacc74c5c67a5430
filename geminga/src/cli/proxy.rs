use std::path::{Path, PathBuf};

use clap::Args;
use geminga_proxy::AddressPattern;
use serde::Serialize;

use super::ProcessArguments;
use crate::options::list::{HttpBroker, List, PulsarBroker};
use crate::options::{Arguments, ProxyOptions};

/// As [`super::StandaloneArguments`].
#[derive(Args, Serialize)]
pub struct ProxyArguments {
    #[command(flatten)]
    #[serde(flatten)]
    process: ProcessArguments,

    /// Brokers to ask where topics are, like pulsar://10.0.0.1:6650,pulsar+ssl://10.0.0.2:6651
    #[arg(long, value_name = "URL,…", env = "GEMINGA_BROKERS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    brokers: Option<List<PulsarBroker>>,

    /// Brokers to pass HTTP requests to, like http://10.0.0.1:8080,https://10.0.0.2:8443
    #[arg(long, value_name = "URL,…", env = "GEMINGA_BROKER_HTTP", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_http: Option<List<HttpBroker>>,

    /// Brokers that clients may be connected to beside those and the ones that lookups here have named, like *.brokers.internal:6650; needed when several proxies share an address
    #[arg(long, value_name = "HOST:PORT,…", env = "GEMINGA_ALLOW_BROKERS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_brokers: Option<List<AddressPattern>>,

    /// Certificates in PEM that brokers' certificates must be signed by [default: those that this machine trusts]
    #[arg(long, value_name = "FILE", env = "GEMINGA_BROKER_CA", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    broker_ca: Option<PathBuf>,

    /// Where to listen for Pulsar clients; port 0 takes a free one, 'none' none [default: 127.0.0.1:6650]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_PULSAR_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pulsar_addr: Option<String>,

    /// Where to listen for Pulsar clients with TLS
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_TLS_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_addr: Option<String>,

    /// Where to listen for HTTP: admin REST, metrics, health; 'none' for nowhere [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_HTTP_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    http_addr: Option<String>,

    /// The same with TLS
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_HTTPS_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    https_addr: Option<String>,

    /// Certificate with its chain in PEM, for both; read again when it changes
    #[arg(long, value_name = "FILE", env = "GEMINGA_TLS_CERT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,

    /// Its private key in PEM
    #[arg(long, value_name = "FILE", env = "GEMINGA_TLS_KEY", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,

    /// Pulsar clients at a time, and as many by HTTP; more are refused [default: 10000]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_MAX_CONNECTIONS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_connections: Option<usize>,
}

impl Arguments for ProxyArguments {
    type Options = ProxyOptions;

    fn config(&self) -> Option<&Path> {
        self.process.config.as_deref()
    }
}
