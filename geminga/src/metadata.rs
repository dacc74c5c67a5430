//! `geminga metadata`: what is done to metadata apart from any server.

use anyhow::Context;
use clap::Subcommand;
use geminga_metadata::Metadata;

use crate::bootstrap;

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
    Init {
        /// Where metadata is: sqlite:FILE or postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full
        #[arg(long, value_name = "URL", env = "GEMINGA_METADATA_URL", hide_env_values = true)]
        metadata_url: String,
        /// Name of the cluster
        #[arg(long, value_name = "NAME", env = "GEMINGA_CLUSTER", hide_env_values = true)]
        cluster: String,
    },
}

pub fn run(command: &MetadataCommand) -> anyhow::Result<()> {
    let MetadataCommand::Init { metadata_url, cluster } = command;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(init(metadata_url, cluster))?;
    crate::print(&format!("metadata of cluster '{cluster}' is ready\n"));
    Ok(())
}

async fn init(url: &str, cluster: &str) -> anyhow::Result<()> {
    let store = geminga_metadata_sql::open(url).await.context("cannot open the metadata (--metadata-url)")?;
    let outcome = bootstrap::create_missing(&Metadata::new(store.clone()), cluster).await;
    store.close().await;
    Ok(outcome?)
}
