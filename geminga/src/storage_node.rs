//! `geminga storage-node`: replicated ledgers over BookKeeper's wire protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::routing::get;
use geminga_log::{Log, LogOptions};
use geminga_metadata::{Metadata, StorageNodeRecord};
use geminga_observe::Metrics;
use geminga_repair::{Figures, RepairOptions};
use geminga_replicated_ledgers::{Membership, Quorum, ReplicatedLedgers, ReplicationOptions};
use geminga_storage_node::{Identity, NodeOptions, Registration, StorageNode, collect_garbage};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::data_dir::DataDir;
use crate::listen::listen;
use crate::options::units::ByteSize;
use crate::options::{Resolved, StorageNodeOptions};
use crate::ready::ReadyFile;
use crate::server::{self, warn_of_wide_listening};

/// Less does not leave room for the buffers that keep a disk and a few connections busy.
const MEMORY_LIMIT_MIN: ByteSize = ByteSize::mib(64);

/// A node that takes longer for a call of a repair is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until a signal stops it.
pub fn start(resolved: &Resolved<StorageNodeOptions>) -> anyhow::Result<()> {
    let options = &resolved.options;
    let logs = (&options.log_level[..], options.log_format);
    server::run(logs, &resolved.unknown_keys, |shutdown| run(options, shutdown))
}

async fn run(options: &StorageNodeOptions, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let memory_limit = options.memory_limit.bytes();
    if memory_limit < MEMORY_LIMIT_MIN.bytes() {
        bail!("memory limit {} is too small, {MEMORY_LIMIT_MIN} is the least (--memory-limit)", options.memory_limit);
    }
    if options.max_frame_size.bytes() > memory_limit / 8 {
        bail!(
            "frames of {} are too large: an eighth of the memory limit is the most (--max-frame-size)",
            options.max_frame_size
        );
    }
    let data_dir = DataDir::open(&options.data_dir)?;
    if let Some(path) = &options.ready_file {
        ReadyFile::clear(path)?;
    }
    let (listener, addr) = listen(&options.addr, "addr")?;
    let (http_listener, http) = listen(&options.http_addr, "http-addr")?;
    let log = open_log(&data_dir, memory_limit)?;
    let node_options = NodeOptions {
        max_frame_bytes: options.max_frame_size.bytes() as usize,
        ..NodeOptions::new(&options.data_dir, memory_limit)
    };
    let node = StorageNode::new(log.clone(), node_options);
    let member = match &options.metadata_url[..] {
        "none" => None,
        url => Some(Member::join(options, url, addr, &log).await?),
    };
    let figures = Arc::new(Figures::default());
    let serving =
        tokio::spawn(geminga_storage_node::serve(TcpListener::from_std(listener)?, node.clone(), shutdown.clone()));
    let serving_http =
        tokio::spawn(serve_http(TcpListener::from_std(http_listener)?, &node, &figures, shutdown.clone()));

    warn_of_wide_listening(&[addr, http]);
    let ports = [("bookie", addr), ("http", http)];
    let ready = options.ready_file.as_deref().map(|path| ReadyFile::write(path, &ports)).transpose()?;
    tracing::info!(%addr, %http, data_dir = %options.data_dir.display(), "serving");
    crate::print(&format!("serving bookie://{addr} and http://{http}\n"));

    let upkeep = match member {
        Some(member) => Some(member.keep(&node, options, &figures).await?),
        None => None,
    };

    // Fails only when the sender is gone, which then cannot ask for anything else either.
    let _ = shutdown.wait_for(|stop| *stop).await;
    drop((ready, upkeep));
    let finish = async {
        let _ = serving.await;
        let _ = serving_http.await;
    };
    if tokio::time::timeout(options.shutdown_timeout.get(), finish).await.is_err() {
        tracing::warn!("gave up waiting for what was in flight");
    }
    tokio::task::spawn_blocking(move || log.close()).await?;
    tracing::info!("stopped");
    Ok(())
}

/// A node that is known to a cluster.
struct Member {
    id: String,
    metadata: Metadata,
    registration: Registration,
}

impl Member {
    async fn join(options: &StorageNodeOptions, url: &str, addr: SocketAddr, log: &Log) -> anyhow::Result<Self> {
        let identity = Identity::open(&options.data_dir, !log.ledgers().is_empty())?;
        let store = geminga_metadata_sql::open(url).await.context("cannot open the metadata (--metadata-url)")?;
        let metadata = Metadata::new(store);
        let address = match &options.advertised_address {
            Some(host) if host.contains(':') => format!("[{host}]:{}", addr.port()),
            Some(host) => format!("{host}:{}", addr.port()),
            None => addr.to_string(),
        };
        // The folder is locked, so whoever had it at this address is gone.
        let owner = address.clone();
        let record =
            StorageNodeRecord { address, zone: options.zone.clone(), region: options.region.clone(), read_only: false };
        tracing::info!(id = identity.id, address = record.address, zone = record.zone, "joining the cluster");
        let registration = Registration::open(metadata.clone(), &identity.id, record, &owner).await?;
        Ok(Self { id: identity.id, metadata, registration })
    }

    /// Goes on until what is answered is dropped.
    async fn keep(
        self,
        node: &Arc<StorageNode>,
        options: &StorageNodeOptions,
        figures: &Arc<Figures>,
    ) -> anyhow::Result<[JoinSet<()>; 2]> {
        let mut tasks = JoinSet::new();
        let mut recovery = JoinSet::new();
        if options.auto_recovery {
            let membership = Membership::open(self.metadata.clone()).await?;
            // Ledgers are repaired with the quorums that they have.
            let replication = ReplicationOptions {
                quorum: Quorum { ensemble: 1, write: 1, ack: 1 },
                call_timeout: CALL_TIMEOUT,
                outbound_bytes: options.memory_limit.bytes() / 8,
            };
            let ledgers = ReplicatedLedgers::new(self.metadata.clone(), Arc::new(membership.clone()), replication);
            tasks.spawn(membership.follow(|| ()));
            recovery = geminga_repair::run(self.metadata.clone(), ledgers, repair_options(self.id, options), figures);
        }
        tasks.spawn(self.registration.keep(node.clone()));
        tasks.spawn(collect_garbage(node.clone(), self.metadata, options.garbage_interval.get()));
        Ok([tasks, recovery])
    }
}

fn repair_options(node: String, options: &StorageNodeOptions) -> RepairOptions {
    RepairOptions {
        node,
        lost_after: options.lost_node_after.get(),
        open_ledger_grace: options.open_ledger_grace.get(),
        audit_interval: options.audit_interval.get(),
        self_check_interval: options.self_check_interval.get(),
        bytes_per_second: options.repair_rate.bytes(),
    }
}

/// Recovery after a crash happens here.
fn open_log(data_dir: &DataDir, memory_limit: u64) -> anyhow::Result<Log> {
    let path = data_dir.log();
    let options = LogOptions { max_queued_bytes: (memory_limit / 4) as usize, ..LogOptions::default() };
    let (log, report) =
        Log::open(&path, options).with_context(|| format!("cannot open the log in {}", path.display()))?;
    tracing::info!(?report, "log is open");
    Ok(log)
}

fn serve_http(
    listener: TcpListener,
    node: &Arc<StorageNode>,
    figures: &Arc<Figures>,
    mut shutdown: watch::Receiver<bool>,
) -> impl Future<Output = ()> + Send + use<> {
    let metrics = Arc::new(Metrics::new());
    node.show(&metrics);
    figures.show(&metrics);
    let page = move || {
        let metrics = metrics.clone();
        async move {
            let mut page = String::new();
            metrics.render(&mut page);
            ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], page)
        }
    };
    let router = Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }));
    async move {
        let stop = async move {
            let _ = shutdown.wait_for(|stop| *stop).await;
        };
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
            tracing::error!(%error, "HTTP server ended");
        }
    }
}
