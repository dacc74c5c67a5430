//! Settings of `geminga broker`.

use std::path::PathBuf;

use geminga_observe::logging::LogFormat;
use serde::{Deserialize, Serialize};

use super::StandaloneOptions;
use super::listeners::Listeners;
use super::units::{ByteSize, Duration};

/// What a broker does when storage nodes are in too few zones for a ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TooFewZones {
    /// It goes on, with a line in the log.
    #[default]
    Report,
    /// It writes no such ledger.
    Refuse,
}

/// The effective settings of `geminga broker`. Field names are the keys of the config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BrokerOptions {
    pub metadata_url: Option<String>,
    pub cluster: String,
    pub pulsar_addr: String,
    pub http_addr: String,
    pub advertised_address: Option<String>,
    pub advertised_listeners: Listeners,
    pub ready_file: Option<PathBuf>,
    pub memory_limit: ByteSize,
    pub ensemble_size: u32,
    pub write_quorum: u32,
    pub ack_quorum: u32,
    pub min_zones_per_ack_quorum: u32,
    pub too_few_zones: TooFewZones,
    pub session_timeout: Duration,
    pub shutdown_timeout: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        let StandaloneOptions {
            cluster,
            pulsar_addr,
            http_addr,
            advertised_address,
            advertised_listeners,
            ready_file,
            memory_limit,
            shutdown_timeout,
            log_level,
            log_format,
            ..
        } = StandaloneOptions::default();
        BrokerOptions {
            metadata_url: None,
            cluster,
            pulsar_addr,
            http_addr,
            advertised_address,
            advertised_listeners,
            ready_file,
            memory_limit,
            ensemble_size: 3,
            write_quorum: 3,
            ack_quorum: 2,
            min_zones_per_ack_quorum: 1,
            too_few_zones: TooFewZones::default(),
            session_timeout: Duration::from_secs(3),
            shutdown_timeout,
            log_level,
            log_format,
        }
    }
}

impl BrokerOptions {
    /// What it has in common with a standalone server; the rest are defaults.
    pub fn serving(&self) -> StandaloneOptions {
        StandaloneOptions {
            cluster: self.cluster.clone(),
            pulsar_addr: self.pulsar_addr.clone(),
            http_addr: self.http_addr.clone(),
            advertised_address: self.advertised_address.clone(),
            advertised_listeners: self.advertised_listeners.clone(),
            ready_file: self.ready_file.clone(),
            memory_limit: self.memory_limit,
            shutdown_timeout: self.shutdown_timeout,
            ..StandaloneOptions::default()
        }
    }
}
