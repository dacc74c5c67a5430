mod process;
mod proxy;
mod serving;
mod storage_tls;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use geminga_perf::PerfCommand;
use serde::Serialize;

use crate::admin::AdminCommand;
use crate::doctor::DoctorArguments;
use crate::metadata::MetadataCommand;
use crate::options::units::{ByteSize, Duration};
use crate::options::{Arguments, BrokerOptions, StandaloneOptions, StorageNodeOptions, TooFewZones};
use crate::storage_ctl::StorageCommand;

use process::ProcessArguments;
pub use proxy::ProxyArguments;
use serving::ServingArguments;
pub use storage_tls::StorageTlsArguments;

/// A streaming server that speaks Apache Pulsar's protocols.
#[derive(Parser)]
#[command(name = "geminga", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run everything in one process: broker, storage and metadata, on one folder
    ///
    /// Each option is also an environment variable (GEMINGA_DATA_DIR for --data-dir) and a key of the config file
    /// (data_dir). Arguments win over the environment, the environment over the file, the file over the defaults;
    /// `geminga config` shows what comes out.
    Standalone(StandaloneArguments),
    /// Show each setting of `standalone` with its effective value and where it comes from
    ///
    /// The output is a valid config file. Takes the same arguments as `standalone`.
    Config(StandaloneArguments),
    /// Run a broker whose ledgers are on storage nodes
    ///
    /// Options are layered as those of `standalone`.
    Broker(BrokerArguments),
    /// Run a storage node: replicated ledgers over BookKeeper's wire protocol
    ///
    /// Options are layered as those of `standalone`.
    StorageNode(StorageNodeArguments),
    /// Run a proxy: one address in front of brokers that clients cannot reach themselves
    ///
    /// Options are layered as those of `standalone`.
    Proxy(ProxyArguments),
    /// Ask a storage node about itself, or tell it to drain or scrub
    #[command(subcommand)]
    StorageNodeCtl(StorageCommand),
    /// Load any Pulsar broker and measure it
    #[command(subcommand)]
    Perf(PerfCommand),
    /// Ask a running server about itself
    #[command(subcommand)]
    Admin(AdminCommand),
    /// Check whether metadata and storage fit together, and propose a repair; changes nothing
    ///
    /// Asks every registered storage node what it has, over its control address (--control-addr of the node). Ends with 0 when
    /// everything fits, 1 when something does not, 2 when it could not be checked. What could not be read is not
    /// taken for missing.
    Doctor(DoctorArguments),
    /// Prepare the metadata that the processes of a cluster share
    #[command(subcommand)]
    Metadata(MetadataCommand),
    /// Print a completion script for a shell, to be sourced or installed
    Completions {
        /// The shell that is to complete commands and options
        shell: clap_complete::Shell,
    },
}

/// What may be given on the command line; none is left to the layers below. Field names are the keys of the file.
#[derive(Args, Serialize)]
pub struct StandaloneArguments {
    /// Folder for messages and metadata, created when missing [default: geminga-data]
    #[arg(long, value_name = "DIR", env = "GEMINGA_DATA_DIR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,

    /// Where metadata is, as sqlite:FILE or postgres://USER@HOST/DATABASE [default: metadata.db in the data folder]
    #[arg(long, value_name = "URL", env = "GEMINGA_METADATA_URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_url: Option<String>,

    #[command(flatten)]
    #[serde(flatten)]
    serving: ServingArguments,
}

impl Arguments for StandaloneArguments {
    type Options = StandaloneOptions;

    fn config(&self) -> Option<&Path> {
        self.serving.process.config.as_deref()
    }
}

/// As [`StandaloneArguments`].
#[derive(Args, Serialize)]
pub struct StorageNodeArguments {
    #[command(flatten)]
    #[serde(flatten)]
    process: ProcessArguments,

    /// Folder for entries, created when missing; given several times, or with commas, one folder per disk [default: geminga-storage]
    #[arg(long, value_name = "DIR", env = "GEMINGA_DATA_DIR", hide_env_values = true, value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data_dir: Vec<PathBuf>,

    /// Disks of this node that are missing are gone for good: go on with the others, and with empty ones in their place
    ///
    /// Their ledgers stay unknown to this node, and are copied elsewhere from the nodes that have them. [default: false]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_GIVE_UP_MISSING_DIRECTORIES", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    give_up_missing_directories: Option<bool>,

    /// Where to listen for brokers and BookKeeper clients; port 0 takes a free one [default: 127.0.0.1:3181]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<String>,

    /// Where to listen for HTTP: metrics and health [default: 127.0.0.1:8000]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_HTTP_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    http_addr: Option<String>,

    /// Where to listen for gRPC: description, statistics, draining, scrub, health [default: nowhere]
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_CONTROL_ADDR", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    control_addr: Option<String>,

    /// Bound for what the node keeps in memory, like 512MiB or 1GB [default: 512MiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_MEMORY_LIMIT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<ByteSize>,

    /// Where the cluster's metadata are, as for a broker; 'none' serves whoever comes, and deletes nothing [default: none]
    #[arg(long, value_name = "URL", env = "GEMINGA_METADATA_URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_url: Option<String>,

    /// Host that brokers are told to connect to [default: the host that is listened on]
    #[arg(long, value_name = "HOST", env = "GEMINGA_ADVERTISED_ADDRESS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertised_address: Option<String>,

    /// Certificate with its chain, in PEM: clients may then begin TLS on the bookie port [default: none]
    #[arg(long, value_name = "FILE", env = "GEMINGA_TLS_CERT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,

    /// Private key of the certificate, in PEM [default: none]
    #[arg(long, value_name = "FILE", env = "GEMINGA_TLS_KEY", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,

    /// Authorities in PEM of which clients have to show a certificate [default: none, clients show none]
    #[arg(long, value_name = "FILE", env = "GEMINGA_TLS_CLIENT_CA", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_client_ca: Option<PathBuf>,

    /// Serve nothing on the bookie port that does not come through TLS [default: false]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_REQUIRE_TLS", hide_env_values = true,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    require_tls: Option<bool>,

    #[command(flatten)]
    #[serde(flatten)]
    storage_tls: StorageTlsArguments,

    /// Zone of this node: nodes of one zone fail together [default: default]
    #[arg(long, value_name = "NAME", env = "GEMINGA_ZONE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,

    /// Region of this node [default: default]
    #[arg(long, value_name = "NAME", env = "GEMINGA_REGION", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,

    /// What the scrub, which looks for damage, may read per second; 0 turns it off [default: 8MiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_SCRUB_RATE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    scrub_rate: Option<ByteSize>,

    /// Pause between two passes of the scrub over everything [default: 24h]
    #[arg(long, value_name = "TIME", env = "GEMINGA_SCRUB_INTERVAL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    scrub_interval: Option<Duration>,

    /// Ledgers of which damage may have hidden entries, and that are still open here, are closed after so long [default: 10m]
    #[arg(long, value_name = "TIME", env = "GEMINGA_CLOSE_DAMAGED_AFTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    close_damaged_after: Option<Duration>,

    /// How often ledgers are looked for that metadata do not name any more [default: 60s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_GARBAGE_INTERVAL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    garbage_interval: Option<Duration>,

    /// Take part in finding and repairing ledgers that have too few copies [default: true]
    #[arg(long, value_name = "BOOL", env = "GEMINGA_AUTO_RECOVERY", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_recovery: Option<bool>,

    /// How long a node may be missing before what it had is copied from others [default: 60s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_LOST_NODE_AFTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_node_after: Option<Duration>,

    /// How long a writer has to leave a node that should go, before its ledger is closed [default: 30s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_OPEN_LEDGER_GRACE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    open_ledger_grace: Option<Duration>,

    /// How often all ledgers are looked at although no node came or went [default: 1h]
    #[arg(long, value_name = "TIME", env = "GEMINGA_AUDIT_INTERVAL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_interval: Option<Duration>,

    /// How often the node compares what it has with what it should have [default: 6h]
    #[arg(long, value_name = "TIME", env = "GEMINGA_SELF_CHECK_INTERVAL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    self_check_interval: Option<Duration>,

    /// Bytes that this node copies in a second at most [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_REPAIR_RATE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    repair_rate: Option<ByteSize>,

    /// Largest frame, which is an entry and its surroundings [default: 5184KiB]
    #[arg(long, value_name = "SIZE", env = "GEMINGA_MAX_FRAME_SIZE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_frame_size: Option<ByteSize>,
}

impl Arguments for StorageNodeArguments {
    type Options = StorageNodeOptions;

    fn config(&self) -> Option<&Path> {
        self.process.config.as_deref()
    }
}

/// As [`StandaloneArguments`].
#[derive(Args, Serialize)]
pub struct BrokerArguments {
    /// Where the cluster's metadata are: postgres://USER@HOST/DATABASE, or sqlite:FILE on one machine
    #[arg(long, value_name = "URL", env = "GEMINGA_METADATA_URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_url: Option<String>,

    /// Storage nodes that a new ledger is spread over [default: 3]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_ENSEMBLE_SIZE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ensemble_size: Option<u32>,

    /// How many of them get each entry [default: 3]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_WRITE_QUORUM", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    write_quorum: Option<u32>,

    /// How many of those must have synced it before it counts [default: 2]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_ACK_QUORUM", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ack_quorum: Option<u32>,

    /// In how many zones those that answer first must be, whichever they are [default: 1]
    #[arg(long, value_name = "NUMBER", env = "GEMINGA_MIN_ZONES_PER_ACK_QUORUM", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_zones_per_ack_quorum: Option<u32>,

    /// What is done where storage nodes are in fewer zones than that: report or refuse [default: report]
    #[arg(
        long,
        value_name = "POLICY",
        env = "GEMINGA_TOO_FEW_ZONES",
        hide_env_values = true,
        hide_possible_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    too_few_zones: Option<TooFewZones>,

    /// How long others wait for a sign of life before they take over what this broker serves, like 3s [default: 3s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_SESSION_TIMEOUT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    session_timeout: Option<Duration>,

    /// How often load is reported, and bundles are moved if need be, like 10s [default: 10s]
    #[arg(long, value_name = "TIME", env = "GEMINGA_BALANCE_INTERVAL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    balance_interval: Option<Duration>,

    #[command(flatten)]
    #[serde(flatten)]
    storage_tls: StorageTlsArguments,

    #[command(flatten)]
    #[serde(flatten)]
    serving: ServingArguments,
}

impl Arguments for BrokerArguments {
    type Options = BrokerOptions;

    fn config(&self) -> Option<&Path> {
        self.serving.process.config.as_deref()
    }
}
