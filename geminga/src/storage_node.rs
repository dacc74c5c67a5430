//! `geminga storage-node`: replicated ledgers over BookKeeper's wire protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::routing::get;
use geminga_flow::Budget;
use geminga_metadata::{Metadata, MetadataError, StorageNodeRecord};
use geminga_observe::Metrics;
use geminga_repair::{Figures, RepairOptions};
use geminga_replicated_ledgers::{Membership, NodeTls, ReplicatedLedgers, ReplicationOptions};
use geminga_storage_node::{
    MetadataWitness, NodeOptions, Registration, RegistrationError, ScrubOptions, Scrubber, StorageNode, TlsOptions,
    collect_garbage, heal, repair,
};
use geminga_storage_node_control::About;
use geminga_tls::ServerTls;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::http;
use crate::listen::listen;
use crate::options::units::ByteSize;
use crate::options::{Resolved, StorageNodeOptions};
use crate::ready::ReadyFile;
use crate::server::{self, warn_of_wide_listening};
use crate::storage_directories::{self, OpenDirectories};
use crate::storage_repair::OtherNodes;

/// Less does not leave room for the buffers that keep a disk and a few connections busy.
const MEMORY_LIMIT_MIN: ByteSize = ByteSize::mib(64);
/// The part of the memory limit that bodies of requests and answers over HTTP may take.
const HTTP_BODIES_SHARE: u64 = 32;
/// How long a start waits for metadata: longer than another process's registration takes to expire.
const JOINING_AT_START: Duration = Duration::from_secs(20);
const JOINING_AGAIN: Duration = Duration::from_secs(1);
/// Bytes per second that may be copied to repair what is damaged, whatever is scrubbed.
const REPAIR_RATE_MIN: u64 = 4 << 20;

/// A node that takes longer for a call of a repair is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until a signal stops it.
pub fn start(resolved: &Resolved<StorageNodeOptions>) -> anyhow::Result<()> {
    let options = &resolved.options;
    server::run(&options.process, &resolved.unknown_keys, |shutdown| run(options, shutdown))
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
    let scrub = ScrubOptions { bytes_per_second: options.scrub_rate.bytes(), interval: options.scrub_interval.get() };
    let (tls, tls_to_others) = (tls(options)?, options.storage_tls.open()?.map(NodeTls::from));
    let control_tls = tls.as_ref().map(control_tls).transpose()?;
    if let Some(path) = &options.process.ready_file {
        ReadyFile::clear(path)?;
    }
    let (listener, addr) = listen(&options.addr, "addr")?;
    let (http_listener, http) = listen(&options.http_addr, "http-addr")?;
    let control = options.control_addr.as_deref().map(|addr| listen(addr, "control-addr")).transpose()?;
    let is_alone = options.metadata_url == "none";
    let horizon = if options.give_up_missing_directories { Some(horizon(options).await?) } else { None };
    let paths = options.data_dir.paths();
    let OpenDirectories { node: id, revision, directories, is_incomplete, locks } =
        storage_directories::open(&paths, horizon, is_alone, memory_limit)?;
    let max_frame_bytes = options.max_frame_size.bytes() as usize;
    let node_options = NodeOptions { max_frame_bytes, tls, id: id.clone(), ..NodeOptions::new(memory_limit) };
    let node = StorageNode::open(directories, node_options).context("cannot use TLS")?;
    let cluster = match &id {
        Some(id) if !is_alone => {
            let control = control.as_ref().map(|(_, addr)| *addr);
            let witness = MetadataWitness::open(id, node.directories())?;
            Some(Cluster::new(options, id, (addr, control), is_incomplete, witness, tls_to_others))
        }
        _ => None,
    };
    let member = match &cluster {
        Some(cluster) => cluster.join_at_start(&node).await?,
        None => None,
    };
    let figures = Arc::new(Figures::default());
    let serving =
        tokio::spawn(geminga_storage_node::serve(TcpListener::from_std(listener)?, node.clone(), shutdown.clone()));
    let serving_http = tokio::spawn(http::serve(
        TcpListener::from_std(http_listener)?,
        pages(&node, &figures),
        |_| false,
        Budget::new(memory_limit / HTTP_BODIES_SHARE),
        shutdown.clone(),
    ));

    let addr_of_node = addr;
    let mut ports = vec![("bookie", addr), ("http", http)];
    let mut serving_control = JoinSet::new();
    if let Some((listener, addr)) = control {
        ports.push(("control", addr));
        let about = About {
            id: id.clone().unwrap_or_default(),
            revision,
            address: advertised(options, addr_of_node),
            zone: options.zone.clone(),
            region: options.region.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let serving = geminga_storage_node_control::serve(
            TcpListener::from_std(listener)?,
            node.clone(),
            about,
            control_tls,
            shutdown.clone(),
        );
        serving_control.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "gRPC server ended");
            }
        });
    }
    warn_of_wide_listening(&ports.iter().map(|(_, addr)| *addr).collect::<Vec<_>>());
    let ready = options.process.ready_file.as_deref().map(|path| ReadyFile::write(path, &ports)).transpose()?;
    tracing::info!(%addr, %http, data_dirs = ?paths, "serving");
    crate::print(&format!("serving bookie://{addr} and http://{http}\n"));

    let scrubber = Scrubber::start(node.clone(), scrub)?;
    let upkeep = async {
        let Some(cluster) = &cluster else { return std::future::pending().await };
        let member = match member {
            Some(member) => member,
            None => cluster.join_when_possible(&node).await,
        };
        let mut tasks = member.keep(&node, cluster, &figures).await;
        while tasks.join_next().await.is_some() {}
    };
    tokio::select! {
        // Fails only when the sender is gone, which then cannot ask for anything else either.
        _ = shutdown.wait_for(|stop| *stop) => (),
        () = upkeep => bail!("the upkeep of this node ended"),
    }
    drop(ready);
    tokio::task::spawn_blocking(move || drop(scrubber)).await?;
    let finish = async {
        let _ = serving.await;
        let _ = serving_http.await;
        while serving_control.join_next().await.is_some() {}
    };
    server::finish(&options.process, finish).await;
    tokio::task::spawn_blocking(move || node.close()).await?;
    drop(locks);
    tracing::info!("stopped");
    Ok(())
}

/// Ledgers below it may have been on directories that are gone.
async fn horizon(options: &StorageNodeOptions) -> anyhow::Result<u64> {
    if options.metadata_url == "none" {
        bail!(
            "only with metadata is it known which ledgers may have been on a directory (--give-up-missing-directories)"
        );
    }
    let store =
        geminga_metadata_sql::open(&options.metadata_url).await.context("cannot open the metadata (--metadata-url)")?;
    let horizon = Metadata::new(store.clone()).fresh_ledger_id().await?;
    store.close().await;
    Ok(horizon)
}

/// The same for gRPC, which begins with TLS.
fn control_tls(TlsOptions { certificate, key, client_authorities, .. }: &TlsOptions) -> anyhow::Result<ServerTls> {
    ServerTls::open(certificate, key, client_authorities.as_deref(), &["h2"])
        .context("cannot use TLS (--tls-cert, --tls-key, --tls-client-ca)")
}

fn tls(options: &StorageNodeOptions) -> anyhow::Result<Option<TlsOptions>> {
    match (&options.tls_cert, &options.tls_key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsOptions {
            certificate: certificate.clone(),
            key: key.clone(),
            client_authorities: options.tls_client_ca.clone(),
            required: options.require_tls,
        })),
        (None, None) if options.tls_client_ca.is_none() && !options.require_tls => Ok(None),
        _ => bail!("TLS needs a certificate and its key (--tls-cert, --tls-key)"),
    }
}

/// Where brokers are told to connect to.
fn advertised(options: &StorageNodeOptions, addr: SocketAddr) -> String {
    match &options.advertised_address {
        Some(host) if host.contains(':') => format!("[{host}]:{}", addr.port()),
        Some(host) => format!("{host}:{}", addr.port()),
        None => addr.to_string(),
    }
}

/// The cluster that a node is to be a member of.
struct Cluster {
    url: String,
    id: String,
    record: StorageNodeRecord,
    garbage_interval: Duration,
    repair_bytes_per_second: u64,
    close_damaged_after: Duration,
    /// Some directory is missing: which ledgers may be on it, metadata say.
    is_incomplete: bool,
    witness: MetadataWitness,
    auto_recovery: Option<RepairOptions>,
    /// What may wait to be sent to a node that is repaired.
    outbound_bytes: u64,
    /// Towards other nodes.
    tls: Option<NodeTls>,
}

impl Cluster {
    fn new(
        options: &StorageNodeOptions,
        id: &str,
        (addr, control): (SocketAddr, Option<SocketAddr>),
        is_incomplete: bool,
        witness: MetadataWitness,
        tls: Option<NodeTls>,
    ) -> Self {
        let address = advertised(options, addr);
        let control = control.map(|addr| advertised(options, addr));
        let (zone, region) = (options.zone.clone(), options.region.clone());
        let record = StorageNodeRecord { address, zone, region, read_only: false, control };
        Self {
            url: options.metadata_url.clone(),
            id: id.to_owned(),
            record,
            garbage_interval: options.garbage_interval.get(),
            close_damaged_after: options.close_damaged_after.get(),
            repair_bytes_per_second: options.scrub_rate.bytes().max(REPAIR_RATE_MIN),
            is_incomplete,
            witness,
            auto_recovery: options.auto_recovery.then(|| repair_options(id, options)),
            outbound_bytes: options.memory_limit.bytes() / 8,
            tls,
        }
    }

    async fn join(&self, node: &StorageNode) -> anyhow::Result<Member> {
        let store = geminga_metadata_sql::open(&self.url).await.context("cannot open the metadata (--metadata-url)")?;
        let metadata = Metadata::new(store);
        // Before anybody sees that the node is there: metadata that are older than it are nobody's to go on from.
        self.witness.look(&metadata).await?;
        // The folder is locked, so whoever had it at this address is gone.
        let owner = self.record.address.clone();
        let registration = Registration::open(metadata.clone(), &self.id, self.record.clone(), &owner).await?;
        if self.is_incomplete {
            node.directories().set_limbo_below(metadata.fresh_ledger_id().await?);
        }
        tracing::info!(id = self.id, address = self.record.address, zone = self.record.zone, "joined the cluster");
        Ok(Member { metadata, registration })
    }

    /// `None` if metadata cannot be reached now: what is here is served all the same.
    ///
    /// # Errors
    /// Waiting would not help.
    async fn join_at_start(&self, node: &StorageNode) -> anyhow::Result<Option<Member>> {
        match tokio::time::timeout(JOINING_AT_START, self.join(node)).await {
            Ok(Ok(member)) => Ok(Some(member)),
            Ok(Err(error)) if !is_unavailable(&error) => Err(error),
            Ok(Err(error)) => {
                tracing::warn!("serving without metadata, and joining the cluster when they can be reached: {error:#}");
                Ok(None)
            }
            Err(_) => {
                tracing::warn!("serving without metadata, and joining the cluster when they can be reached: no answer");
                Ok(None)
            }
        }
    }

    async fn join_when_possible(&self, node: &StorageNode) -> Member {
        loop {
            tokio::time::sleep(JOINING_AGAIN).await;
            match self.join(node).await {
                Ok(member) => return member,
                Err(error) if is_unavailable(&error) => tracing::debug!("metadata cannot be reached: {error:#}"),
                Err(error) => tracing::error!("this node cannot join the cluster: {error:#}"),
            }
        }
    }
}

/// Whether the metadata may be there later.
fn is_unavailable(error: &anyhow::Error) -> bool {
    let of = |error: &MetadataError| matches!(error, MetadataError::Unavailable(_) | MetadataError::OutcomeUnknown(_));
    error.chain().any(|cause| match cause.downcast_ref::<RegistrationError>() {
        Some(RegistrationError::Metadata(error)) => of(error),
        Some(RegistrationError::InUse { .. }) => false,
        None => cause.downcast_ref::<MetadataError>().is_some_and(of),
    })
}

/// Finds what other nodes have lost, and copies it.
async fn recover_others(
    metadata: Metadata,
    membership: Membership,
    options: RepairOptions,
    replication: ReplicationOptions,
    figures: Arc<Figures>,
) {
    let ledgers = ReplicatedLedgers::new(metadata.clone(), Arc::new(membership), replication);
    let mut tasks = geminga_repair::run(metadata, ledgers, options, &figures);
    while tasks.join_next().await.is_some() {}
}

fn repair_options(node: &str, options: &StorageNodeOptions) -> RepairOptions {
    RepairOptions {
        node: node.to_owned(),
        lost_after: options.lost_node_after.get(),
        open_ledger_grace: options.open_ledger_grace.get(),
        audit_interval: options.audit_interval.get(),
        self_check_interval: options.self_check_interval.get(),
        bytes_per_second: options.repair_rate.bytes(),
    }
}

/// A node that is known to a cluster.
struct Member {
    metadata: Metadata,
    registration: Registration,
}

impl Member {
    /// Goes on until what is answered is dropped.
    async fn keep(self, node: &Arc<StorageNode>, cluster: &Cluster, figures: &Arc<Figures>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.registration.keep(node.clone()));
        tasks.spawn(cluster.witness.clone().keep_looking(self.metadata.clone()));
        let (metadata, witness) = (self.metadata.clone(), cluster.witness.clone());
        tasks.spawn(collect_garbage(node.clone(), metadata, witness, cluster.garbage_interval));
        let membership = loop {
            match Membership::open(self.metadata.clone()).await {
                Ok(membership) => break membership,
                Err(error) => tracing::warn!(%error, "could not read which storage nodes there are"),
            }
            tokio::time::sleep(JOINING_AGAIN).await;
        };
        tasks.spawn(membership.clone().follow(|| ()));
        let others = OtherNodes::of(&cluster.id, self.metadata.clone(), membership.clone(), cluster.tls.clone());
        // What a missing directory hides nobody can settle.
        if !cluster.is_incomplete {
            tasks.spawn(heal(node.clone(), others.clone(), cluster.close_damaged_after));
        }
        tasks.spawn(repair(node.clone(), others, cluster.repair_bytes_per_second));
        if let Some(options) = cluster.auto_recovery.clone() {
            let replication =
                ReplicationOptions::of_existing(CALL_TIMEOUT, cluster.outbound_bytes, cluster.tls.clone());
            tasks.spawn(recover_others(self.metadata, membership, options, replication, figures.clone()));
        }
        tasks
    }
}

/// What the HTTP port serves.
fn pages(node: &Arc<StorageNode>, figures: &Arc<Figures>) -> Router {
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
    Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
}
