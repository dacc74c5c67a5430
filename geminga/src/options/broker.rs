//! Settings of `geminga broker`.

use figment::Figment;
use serde::{Deserialize, Serialize};

use super::units::Duration;
use super::{Options, ServingOptions, StorageTlsOptions, part};

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
    pub ensemble_size: u32,
    pub write_quorum: u32,
    pub ack_quorum: u32,
    pub min_zones_per_ack_quorum: u32,
    pub too_few_zones: TooFewZones,
    pub session_timeout: Duration,
    pub balance_interval: Duration,
    #[serde(flatten, skip_deserializing)]
    pub storage_tls: StorageTlsOptions,
    #[serde(flatten, skip_deserializing)]
    pub serving: ServingOptions,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        BrokerOptions {
            metadata_url: None,
            ensemble_size: 3,
            write_quorum: 3,
            ack_quorum: 2,
            min_zones_per_ack_quorum: 1,
            too_few_zones: TooFewZones::default(),
            session_timeout: Duration::from_secs(3),
            balance_interval: Duration::from_secs(10),
            storage_tls: StorageTlsOptions::default(),
            serving: ServingOptions::default(),
        }
    }
}

impl Options for BrokerOptions {
    fn extract(layers: &Figment) -> anyhow::Result<Self> {
        // As in `StandaloneOptions`.
        Ok(Self { serving: ServingOptions::extract(layers)?, storage_tls: part(layers)?, ..part(layers)? })
    }
}
