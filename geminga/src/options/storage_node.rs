//! Settings of `geminga storage-node`.

use std::path::PathBuf;

use figment::Figment;
use serde::{Deserialize, Serialize};

use super::{Options, ProcessOptions, StorageTlsOptions, part};

use super::data_dirs::DataDirs;
use super::units::{ByteSize, Duration};

/// The effective settings of `geminga storage-node`. Field names are the keys of the config file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StorageNodeOptions {
    #[serde(flatten, skip_deserializing)]
    pub process: ProcessOptions,
    pub data_dir: DataDirs,
    pub give_up_missing_directories: bool,
    pub addr: String,
    pub http_addr: String,
    pub control_addr: Option<String>,
    pub memory_limit: ByteSize,
    pub metadata_url: String,
    pub advertised_address: Option<String>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub tls_client_ca: Option<PathBuf>,
    pub require_tls: bool,
    #[serde(flatten, skip_deserializing)]
    pub storage_tls: StorageTlsOptions,
    pub zone: String,
    pub region: String,
    pub garbage_interval: Duration,
    pub auto_recovery: bool,
    pub lost_node_after: Duration,
    pub open_ledger_grace: Duration,
    pub audit_interval: Duration,
    pub self_check_interval: Duration,
    pub repair_rate: ByteSize,
    pub scrub_rate: ByteSize,
    pub scrub_interval: Duration,
    pub close_damaged_after: Duration,
    pub max_frame_size: ByteSize,
}

impl Options for StorageNodeOptions {
    fn extract(layers: &Figment) -> anyhow::Result<Self> {
        // As in `StandaloneOptions`.
        Ok(Self { process: part(layers)?, storage_tls: part(layers)?, ..part(layers)? })
    }
}

impl Default for StorageNodeOptions {
    fn default() -> Self {
        StorageNodeOptions {
            process: ProcessOptions::default(),
            data_dir: DataDirs::One("geminga-storage".into()),
            give_up_missing_directories: false,
            addr: "127.0.0.1:3181".into(),
            http_addr: "127.0.0.1:8000".into(),
            control_addr: None,
            memory_limit: ByteSize::mib(512),
            metadata_url: "none".to_owned(),
            advertised_address: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            require_tls: false,
            storage_tls: StorageTlsOptions::default(),
            zone: "default".to_owned(),
            region: "default".to_owned(),
            garbage_interval: Duration::from_secs(60),
            auto_recovery: true,
            lost_node_after: Duration::from_secs(60),
            open_ledger_grace: Duration::from_secs(30),
            audit_interval: Duration::from_secs(3600),
            self_check_interval: Duration::from_secs(6 * 3600),
            repair_rate: ByteSize::mib(64),
            scrub_rate: ByteSize::mib(8),
            scrub_interval: Duration::from_secs(24 * 3600),
            close_damaged_after: Duration::from_secs(600),
            max_frame_size: ByteSize::new(geminga_storage_node::DEFAULT_MAX_FRAME_BYTES as u64),
        }
    }
}
