//! A broker between its ledgers and its clients: settings, ports, the ready file, an orderly end.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use geminga_broker::{BalanceSettings, Broker, BrokerConfig, MemberOptions, Ownership};
use geminga_ledger_client::LedgerClient;
use geminga_metadata::{BrokerRecord, Metadata};
use geminga_observe::Metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::bootstrap;
use crate::http;
use crate::listen::listen;
use crate::options::ServingOptions;
use crate::options::units::ByteSize;
use crate::ready::ReadyFile;
use crate::server::{self, warn_of_wide_listening};

/// Less does not leave room for the buffers that keep a disk and a few connections busy.
const MEMORY_LIMIT_MIN: ByteSize = ByteSize::mib(64);

/// Frames say their sizes in 32 bits, and the log takes records of less than 256 MiB.
const MESSAGE_SIZE_MAX: ByteSize = ByteSize::mib(128);

/// Refuses settings that cannot work together.
pub fn check(options: &ServingOptions) -> anyhow::Result<()> {
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
    Ok(())
}

/// The ports of a broker, taken before anything else is opened.
pub struct Ports {
    pulsar_listener: StdListener,
    http_listener: StdListener,
    advertised: Advertised,
    pulsar: SocketAddr,
    http: SocketAddr,
}

impl Ports {
    pub fn listen(options: &ServingOptions) -> anyhow::Result<Self> {
        if let Some(path) = &options.process.ready_file {
            ReadyFile::clear(path)?;
        }
        let (pulsar_listener, pulsar) = listen(&options.pulsar_addr, "pulsar-addr")?;
        let (http_listener, http) = listen(&options.http_addr, "http-addr")?;
        let advertised = Advertised::new(options, pulsar, http);
        Ok(Self { pulsar_listener, http_listener, advertised, pulsar, http })
    }

    /// Makes the cluster's addresses in metadata follow the settings.
    pub async fn announce(&self, metadata: &Metadata, cluster: &str) -> anyhow::Result<()> {
        let (http, pulsar) = (self.advertised.http_url(), self.advertised.pulsar_url());
        Ok(bootstrap::announce(metadata, cluster, &http, &pulsar).await?)
    }

    /// As what this broker joins others. They send clients to its addresses, so these have to be said.
    pub fn member(&self, options: &ServingOptions, session_timeout: Duration) -> anyhow::Result<MemberOptions> {
        for address in [self.pulsar, self.http] {
            if address.ip().is_unspecified() && options.advertised_address.is_none() {
                bail!("a broker that listens on {address} has to say where others find it (--advertised-address)");
            }
        }
        let record = BrokerRecord {
            pulsar_url: self.advertised.pulsar_url(),
            http_url: self.advertised.http_url(),
            listeners: options.advertised_listeners.urls(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            draining: false,
        };
        Ok(MemberOptions { id: self.advertised.http.clone(), record, session_timeout })
    }
}

/// What a broker stands on, which differs between one that is alone and one of a cluster.
pub struct Ground {
    pub metadata: Metadata,
    pub ledgers: Arc<dyn LedgerClient>,
    pub ownership: Arc<Ownership>,
    pub balance: BalanceSettings,
    /// What the process shows beside its broker.
    pub metrics: Metrics,
}

/// Serves until `shutdown` turns true, then finishes what is in flight.
pub async fn serve(
    options: &ServingOptions,
    ports: Ports,
    ground: Ground,
    mut shutdown: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let Ports { pulsar_listener, http_listener, advertised, pulsar, http } = ports;
    let Ground { metadata, ledgers, ownership, balance, metrics } = ground;
    let config = BrokerConfig { balance, ..broker_config(options, &advertised) };
    let broker = Broker::start_shared(config, metadata, ledgers, ownership).await?;
    let serving_pulsar = tokio::spawn(geminga_protocol_pulsar::serve(
        TcpListener::from_std(pulsar_listener)?,
        broker.clone(),
        shutdown.clone(),
    ));
    let serving_http = tokio::spawn(http::serve(
        TcpListener::from_std(http_listener)?,
        geminga_admin_api::router(broker.clone(), move |page| metrics.render(page)),
        geminga_admin_api::is_large,
        broker.memory().requests.clone(),
        shutdown.clone(),
    ));

    warn_of_wide_listening(&[pulsar, http]);
    let addresses = [("pulsar", pulsar), ("http", http)];
    let ready = options.process.ready_file.as_deref().map(|path| ReadyFile::write(path, &addresses)).transpose()?;
    tracing::info!(%pulsar, %http, "serving");
    crate::print(&format!("serving pulsar://{pulsar} and http://{http}\n"));

    // Fails only when the sender is gone, which then cannot ask for anything else either.
    let _ = shutdown.wait_for(|stop| *stop).await;
    drop(ready);
    let finish = async {
        // Whoever is in the middle of a request may never finish it, and the broker has bundles to hand over.
        let connections = serving_pulsar.abort_handle();
        let patience = broker.config().finish_timeout;
        let (ended, _) =
            tokio::join!(tokio::time::timeout(patience, serving_pulsar), tokio::time::timeout(patience, serving_http));
        if ended.is_err() {
            tracing::warn!("gave up waiting for clients' connections");
            connections.abort();
        }
        broker.shut_down().await;
    };
    server::finish(&options.process, finish).await;
    Ok(())
}

fn broker_config(options: &ServingOptions, advertised: &Advertised) -> BrokerConfig {
    BrokerConfig {
        cluster: options.cluster.clone(),
        advertised_pulsar: advertised.pulsar_for_lookups(),
        advertised_http: advertised.http.clone(),
        advertised_listeners: options.advertised_listeners.urls(),
        memory_limit: options.memory_limit.bytes(),
        max_message_bytes: options.max_message_size.bytes() as usize,
        // The rest is for handing over.
        finish_timeout: options.process.shutdown_timeout.get() / 3 * 2,
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
        idle_topics_unloaded_after: options.unload_idle_topics_after.get(),
        housekeeping_interval: options.housekeeping_interval.get(),
        liveness_timeout: options.liveness_timeout.get(),
        metrics_per_topic: options.metrics_per_topic,
        ..BrokerConfig::default()
    }
}

/// What lookups and cluster data say.
struct Advertised {
    pulsar: String,
    http: String,
}

impl Advertised {
    fn new(options: &ServingOptions, pulsar: SocketAddr, http: SocketAddr) -> Self {
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
