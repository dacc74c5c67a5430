//! `geminga metadata`: what is done to metadata apart from any server.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{ArgMatches, Args, Subcommand};
use geminga_metadata::Metadata;
use serde::Serialize;

use crate::bootstrap;
use crate::options::{self, Arguments, MetadataOptions};

const EXAMPLES: &str = "\
Examples:
  geminga metadata init --metadata-url postgres://geminga@db.example.org/geminga --cluster east
  geminga metadata init --metadata-url sqlite:metadata.db --cluster standalone";

#[derive(Subcommand)]
pub enum MetadataCommand {
    /// Create what a new cluster needs: the tables, the cluster, the tenants public and pulsar and their namespaces
    ///
    /// Run it once before the first broker of a cluster starts; `geminga standalone` does it by itself. It creates what
    /// is missing and leaves alone what is there, so it may be run again, and by several machines at once. It does not
    /// create again what somebody has deleted from a tenant that exists.
    ///
    /// A PostgreSQL database must exist, and its user must be allowed to create the schema "geminga" in it, or own that
    /// schema. The server must be of version 13 or newer. What the URL leaves open comes from PGHOST, PGPORT, PGUSER,
    /// PGDATABASE, PGPASSWORD, PGSSLMODE, PGSSLROOTCERT and the password file (~/.pgpass); a password in the URL can be
    /// seen in the list of processes.
    #[command(after_long_help = EXAMPLES)]
    Init(InitArguments),
}

/// Layered as the options of a role, of which the config file may be.
#[derive(Args, Serialize)]
pub struct InitArguments {
    /// Config file in TOML, a broker's too: its keys metadata_url and cluster
    #[arg(long, value_name = "FILE", env = "GEMINGA_CONFIG", hide_env_values = true)]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Where metadata is: sqlite:FILE or postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full
    #[arg(long, value_name = "URL", env = "GEMINGA_METADATA_URL", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_url: Option<String>,

    /// Name of the cluster
    #[arg(long, value_name = "NAME", env = "GEMINGA_CLUSTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
}

impl Arguments for InitArguments {
    type Options = MetadataOptions;

    fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

pub fn run(command: &MetadataCommand, matches: &ArgMatches) -> anyhow::Result<()> {
    let MetadataCommand::Init(arguments) = command;
    let (_, matches) = matches.subcommand().expect("clap demands a subcommand");
    let MetadataOptions { metadata_url, cluster } = options::resolve(arguments, matches)?.options;
    let Some(url) = metadata_url else { bail!("it is not said where the metadata are (--metadata-url)") };
    let Some(cluster) = cluster else { bail!("it is not said what the cluster is called (--cluster)") };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(init(&url, &cluster))?;
    crate::print(&format!("metadata of cluster '{cluster}' is ready\n"));
    Ok(())
}

async fn init(url: &str, cluster: &str) -> anyhow::Result<()> {
    let store = geminga_metadata_sql::open(url).await.context("cannot open the metadata (--metadata-url)")?;
    let outcome = bootstrap::create_missing(&Metadata::new(store.clone()), cluster).await;
    store.close().await;
    Ok(outcome?)
}
