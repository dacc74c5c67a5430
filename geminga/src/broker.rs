//! `geminga broker`: a broker whose ledgers are on storage nodes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use geminga_broker::{BalanceSettings, Ownership};
use geminga_metadata::{BrokerSession, Metadata};
use geminga_observe::Metrics;
use geminga_replicated_ledgers::{Membership, NodeTls, Quorum, ReplicatedLedgers, ReplicationOptions, ZonePolicy};
use tokio::sync::watch;

use crate::options::{BrokerOptions, Resolved, TooFewZones};
use crate::serving::{self, Ground, Ports};
use crate::{restored, server};

const SESSION_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// A topic's rates are of a second at least.
const BALANCE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// A storage node that takes longer for a call is given up.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until a signal stops it.
pub fn start(resolved: &Resolved<BrokerOptions>) -> anyhow::Result<()> {
    let process = &resolved.options.serving.process;
    server::run(process, &resolved.unknown_keys, |shutdown| run(&resolved.options, shutdown))
}

async fn run(options: &BrokerOptions, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let quorum = Quorum { ensemble: options.ensemble_size, write: options.write_quorum, ack: options.ack_quorum };
    if !quorum.is_sound() {
        bail!(
            "an ensemble of {} with a write quorum of {} and an ack quorum of {} is not possible",
            quorum.ensemble,
            quorum.write,
            quorum.ack
        );
    }
    let zones = ZonePolicy {
        min_per_ack_quorum: options.min_zones_per_ack_quorum as usize,
        refuses: options.too_few_zones == TooFewZones::Refuse,
    };
    if options.min_zones_per_ack_quorum > quorum.ack {
        bail!(
            "an ack quorum of {} cannot be in {} zones (--min-zones-per-ack-quorum)",
            quorum.ack,
            options.min_zones_per_ack_quorum
        );
    }
    let tls = options.storage_tls.open()?.map(NodeTls::from);
    let serving_options = &options.serving;
    serving::check(serving_options)?;
    if options.session_timeout.get() < SESSION_TIMEOUT_MIN {
        bail!("a session of less than {SESSION_TIMEOUT_MIN:?} ends whenever a process is slow (--session-timeout)");
    }
    if options.balance_interval.get() < BALANCE_INTERVAL_MIN {
        bail!("load says nothing after less than {BALANCE_INTERVAL_MIN:?} (--balance-interval)");
    }
    let Some(url) = &options.metadata_url else { bail!("a broker needs the cluster's metadata (--metadata-url)") };
    let ports = Ports::listen(serving_options)?;
    let store = geminga_metadata_sql::open(url).await.context("cannot open the metadata (--metadata-url)")?;
    let metadata = Metadata::new(store.clone());
    if metadata.get_cluster(&serving_options.cluster).await?.is_none() {
        bail!(
            "the metadata know no cluster '{}': run 'geminga metadata init' first (--cluster)",
            serving_options.cluster
        );
    }
    tokio::select! {
        settled = restored::wait_until_settled(&metadata) => settled?,
        // Fails only when the sender is gone, which then cannot ask for anything else either.
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    }
    ports.announce(&metadata, &serving_options.cluster).await?;
    let membership = Membership::open(metadata.clone()).await?;
    let replication = ReplicationOptions {
        quorum,
        zones,
        call_timeout: NODE_TIMEOUT,
        outbound_bytes: serving_options.memory_limit.bytes() / 8,
        tls,
    };
    let ledgers = ReplicatedLedgers::new(metadata.clone(), Arc::new(membership.clone()), replication);
    let following = {
        let ledgers = ledgers.clone();
        tokio::spawn(membership.follow(move || ledgers.nodes_changed()))
    };
    let measuring = tokio::spawn(ledgers.clone().follow_free_space());
    let member = ports.member(serving_options, options.session_timeout.get())?;
    refuse_a_second_broker_on_a_file(url, &metadata, &member.id, 2 * options.session_timeout.get()).await?;
    let ownership = Ownership::join(metadata.clone(), member).await?;
    let ground = Ground {
        metadata: metadata.clone(),
        ledgers: Arc::new(ledgers),
        ownership,
        balance: BalanceSettings::with_interval(options.balance_interval.get()),
        metrics: Metrics::new(),
    };
    let serving = serving::serve(serving_options, ports, ground, shutdown);
    tokio::select! {
        served = serving => served?,
        // Nothing is given up in an orderly way: what would be written then goes by what metadata were.
        () = restored::noticed(&metadata) => bail!(
            "metadata were restored from an older dump under this broker, as storage nodes remember: run 'geminga doctor'"
        ),
    }
    following.abort();
    measuring.abort();
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// A file tells no process what another one writes to it, which brokers that share bundles need. The session of one that was
/// killed is waited for.
async fn refuse_a_second_broker_on_a_file(
    url: &str,
    metadata: &Metadata,
    me: &str,
    patience: Duration,
) -> anyhow::Result<()> {
    let give_up_at = tokio::time::Instant::now() + patience;
    while url.starts_with("sqlite:") {
        let now_ms = metadata.store().now_ms();
        let sessions = metadata.broker_sessions().await?;
        let is_other = |session: &&BrokerSession| {
            session.broker != me && session.expires_at_ms.is_some_and(|expires_at_ms| expires_at_ms > now_ms)
        };
        let Some(other) = sessions.iter().find(is_other) else { return Ok(()) };
        if tokio::time::Instant::now() > give_up_at {
            bail!("broker {} uses these metadata: several brokers need PostgreSQL (--metadata-url)", other.broker);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
