//! `geminga standalone`: every role in one process.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::EmbeddedLedgers;
use geminga_log::{Log, LogOptions};
use geminga_metadata::{Metadata, MetadataStore};
use geminga_metadata_sql::SqliteStore;
use geminga_observe::logging;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bootstrap;
use crate::data_dir::DataDir;
use crate::listen::listen;
use crate::options::units::ByteSize;
use crate::options::{Resolved, StandaloneOptions};
use crate::ready::ReadyFile;
use crate::signals;

/// Less does not leave room for the buffers that keep a disk and a few connections busy.
const MEMORY_LIMIT_MIN: ByteSize = ByteSize::mib(64);

/// Frames say their sizes in 32 bits, and the log takes records of less than 256 MiB.
const MESSAGE_SIZE_MAX: ByteSize = ByteSize::mib(128);

/// Runs until a signal stops it.
pub fn start(resolved: &Resolved) -> anyhow::Result<()> {
    let options = &resolved.options;
    logging::init(&options.log_level, options.log_format)?;
    resolved.unknown_keys.iter().for_each(|complaint| tracing::warn!("{complaint}"));
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("geminga")
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(async { run(options, signals::shutdown()?).await });
    // Blocking work that is stuck must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}

/// Serves until `shutdown` turns true, then finishes what is in flight.
async fn run(options: &StandaloneOptions, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    if options.memory_limit.bytes() < MEMORY_LIMIT_MIN.bytes() {
        bail!("memory limit {} is too small, {MEMORY_LIMIT_MIN} is the least (--memory-limit)", options.memory_limit);
    }
    if options.housekeeping_interval.get().is_zero() {
        bail!("the interval of housekeeping must be longer than nothing (--housekeeping-interval)");
    }
    if options.max_message_size.bytes() > MESSAGE_SIZE_MAX.bytes().min(options.memory_limit.bytes() / 8) {
        bail!(
            "messages of {} are too large: {MESSAGE_SIZE_MAX} and an eighth of the memory limit are the most (--max-message-size)",
            options.max_message_size
        );
    }
    let data_dir = DataDir::open(&options.data_dir)?;
    if let Some(path) = &options.ready_file {
        ReadyFile::clear(path)?;
    }
    let (pulsar_listener, pulsar) = listen(&options.pulsar_addr, "pulsar-addr")?;
    let (http_listener, http) = listen(&options.http_addr, "http-addr")?;
    let store = open_metadata(options, &data_dir).await?;
    let metadata = Metadata::new(store.clone());
    let advertised = Advertised::new(options, pulsar, http);
    bootstrap::create_missing(&metadata, &options.cluster).await?;
    bootstrap::announce(&metadata, &options.cluster, &advertised.http_url(), &advertised.pulsar_url()).await?;

    let log = open_log(&data_dir, options.memory_limit.bytes())?;
    let broker =
        Broker::start(broker_config(options, &advertised), metadata, Arc::new(EmbeddedLedgers::new(log.clone())))
            .await?;
    let serving_pulsar = tokio::spawn(geminga_protocol_pulsar::serve(
        TcpListener::from_std(pulsar_listener)?,
        broker.clone(),
        shutdown.clone(),
    ));
    let serving_http = serve_http(TcpListener::from_std(http_listener)?, broker.clone(), shutdown.clone());

    warn_of_wide_listening(&[pulsar, http]);
    let ready = options.ready_file.as_deref().map(|path| ReadyFile::write(path, pulsar, http)).transpose()?;
    tracing::info!(%pulsar, %http, data_dir = %options.data_dir.display(), "serving");
    crate::print(&format!("serving pulsar://{pulsar} and http://{http}\n"));

    // Fails only when the sender is gone, which then cannot ask for anything else either.
    let _ = shutdown.wait_for(|stop| *stop).await;
    drop(ready);
    let finish = async {
        let _ = serving_pulsar.await;
        let _ = serving_http.await;
        broker.shut_down().await;
    };
    if tokio::time::timeout(options.shutdown_timeout.get(), finish).await.is_err() {
        tracing::warn!("gave up waiting for what was in flight");
    }
    tokio::task::spawn_blocking(move || log.close()).await?;
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn broker_config(options: &StandaloneOptions, advertised: &Advertised) -> BrokerConfig {
    BrokerConfig {
        cluster: options.cluster.clone(),
        advertised_pulsar: advertised.pulsar_for_lookups(),
        advertised_http: advertised.http.clone(),
        advertised_listeners: options.advertised_listeners.urls(),
        memory_limit: options.memory_limit.bytes(),
        max_message_bytes: options.max_message_size.bytes() as usize,
        auto_create_topics: options.auto_create_topics,
        auto_create_partitions: options.auto_create_partitions,
        auto_create_subscriptions: options.auto_create_subscriptions,
        deduplication: options.deduplication,
        max_pending_ack_bytes: options.max_pending_acks.bytes(),
        max_ledger_bytes: options.max_ledger_size.bytes(),
        max_ledger_age: options.max_ledger_age.get(),
        max_unacked_per_consumer: options.max_unacked_per_consumer,
        max_unacked_per_subscription: options.max_unacked_per_subscription,
        delete_inactive_topics: options.delete_inactive_topics,
        max_topic_inactivity: options.inactive_topics_after.get(),
        delete_inactive_partitioned_topics: options.delete_inactive_partitioned_topics,
        housekeeping_interval: options.housekeeping_interval.get(),
        liveness_timeout: options.liveness_timeout.get(),
        metrics_per_topic: options.metrics_per_topic,
        ..BrokerConfig::default()
    }
}

/// Every connection and every segment of the log takes descriptors; the usual soft limit of 1,024 is far below what the
/// process may have.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
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

fn serve_http(listener: TcpListener, broker: Arc<Broker>, mut shutdown: watch::Receiver<bool>) -> JoinHandle<()> {
    let router = geminga_admin_api::router(broker);
    tokio::spawn(async move {
        let stop = async move {
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
            tracing::error!(%error, "HTTP server ended");
        }
    })
}

/// What lookups and cluster data say.
struct Advertised {
    pulsar: String,
    http: String,
}

impl Advertised {
    fn new(options: &StandaloneOptions, pulsar: SocketAddr, http: SocketAddr) -> Self {
        let advertise = |bound: SocketAddr| match &options.advertised_address {
            Some(host) if host.contains(':') => format!("[{host}]:{}", bound.port()),
            Some(host) => format!("{host}:{}", bound.port()),
            None => bound.to_string(),
        };
        Advertised { pulsar: advertise(pulsar), http: advertise(http) }
    }

    /// Empty when the server listens on every address: then each client is told the one it has connected to.
    fn pulsar_for_lookups(&self) -> String {
        match self.pulsar.starts_with("0.0.0.0:") || self.pulsar.starts_with("[::]:") {
            true => String::new(),
            false => self.pulsar.clone(),
        }
    }

    fn pulsar_url(&self) -> String {
        format!("pulsar://{}", self.pulsar)
    }

    fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }
}

async fn open_metadata(options: &StandaloneOptions, data_dir: &DataDir) -> anyhow::Result<Arc<dyn MetadataStore>> {
    match &options.metadata_url {
        Some(url) => geminga_metadata_sql::open(url).await.context("cannot open the metadata (--metadata-url)"),
        None => Ok(Arc::new(SqliteStore::open(&data_dir.metadata_file()).await?)),
    }
}

fn warn_of_wide_listening(addresses: &[SocketAddr]) {
    for address in addresses.iter().filter(|address| !address.ip().is_loopback()) {
        tracing::warn!(
            "listening on {address} without authentication: whoever reaches it can read and write everything"
        );
    }
}
