//! `geminga standalone`: every role in one process.

use std::sync::Arc;

use anyhow::Context;
use geminga_broker::{BalanceSettings, Ownership};
use geminga_ledger_client::EmbeddedLedgers;
use geminga_log::{Log, LogOptions};
use geminga_metadata::{Metadata, MetadataStore};
use geminga_metadata_sql::SqliteStore;
use geminga_observe::Metrics;
use tokio::sync::watch;

use crate::data_dir::DataDir;
use crate::options::{Resolved, StandaloneOptions};
use crate::serving::{self, Ground, Ports};
use crate::{bootstrap, server};

/// Runs until a signal stops it.
pub fn start(resolved: &Resolved<StandaloneOptions>) -> anyhow::Result<()> {
    let process = &resolved.options.serving.process;
    server::run(process, &resolved.unknown_keys, |shutdown| run(&resolved.options, shutdown))
}

async fn run(options: &StandaloneOptions, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let serving = &options.serving;
    serving::check(serving)?;
    let data_dir = DataDir::open(&options.data_dir)?;
    let ports = Ports::listen(serving)?;
    let store = open_metadata(options, &data_dir).await?;
    let metadata = Metadata::new(store.clone());
    bootstrap::create_missing(&metadata, &serving.cluster).await?;
    ports.announce(&metadata, &serving.cluster).await?;
    let log = open_log(&data_dir, serving.memory_limit.bytes())?;
    let metrics = Metrics::new();
    let shown = log.clone();
    metrics.add_source(move |page| geminga_storage_node::show_log(&shown.stats(), page));
    let ground = Ground {
        metadata,
        ledgers: Arc::new(EmbeddedLedgers::new(log.clone())),
        ownership: Ownership::alone(),
        balance: BalanceSettings::default(),
        metrics,
    };
    serving::serve(serving, ports, ground, shutdown).await?;
    tokio::task::spawn_blocking(move || log.close()).await?;
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Opens the embedded storage node's log: recovery after a crash happens here.
///
/// The broker bounds what it has under way well below `memory_limit`, so the log never has to refuse for want of room.
fn open_log(data_dir: &DataDir, memory_limit: u64) -> anyhow::Result<Log> {
    let path = data_dir.log();
    let options = LogOptions { max_queued_bytes: memory_limit as usize, ..LogOptions::default() };
    let (log, report) =
        Log::open(&path, options).with_context(|| format!("cannot open the log in {}", path.display()))?;
    tracing::info!(?report, "log is open");
    Ok(log)
}

async fn open_metadata(options: &StandaloneOptions, data_dir: &DataDir) -> anyhow::Result<Arc<dyn MetadataStore>> {
    match &options.metadata_url {
        Some(url) => geminga_metadata_sql::open(url).await.context("cannot open the metadata (--metadata-url)"),
        None => Ok(Arc::new(SqliteStore::open(&data_dir.metadata_file()).await?)),
    }
}
