//! `geminga storage-node-ctl`: questions and orders to one storage node over its gRPC port.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use geminga_storage_node_control::client::{
    self, DescribeRequest, ScrubRequest, SetDrainingRequest, StatisticsRequest,
};
use serde_json::{Value, json};

use crate::cli::StorageTlsArguments;

const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Subcommand)]
pub enum StorageCommand {
    /// Who and where the node is, and whether it takes entries
    Describe(Server),
    /// Figures of its data directories, and of what it has done
    Statistics(Server),
    /// Make the node read-only on purpose: it serves what it has, and takes nothing but repairs
    ///
    /// Brokers write elsewhere from then on. Forgotten when the node ends.
    Drain(Server),
    /// Let the node take entries again
    Undrain(Server),
    /// How far the scrub is, which reads everything to find damage
    Scrub {
        /// Begin a pass now
        #[arg(long)]
        start: bool,
        #[command(flatten)]
        server: Server,
    },
}

#[derive(Args)]
pub struct Server {
    /// The node's control address
    #[arg(long, value_name = "HOST:PORT", env = "GEMINGA_CONTROL_ADDR", default_value = "127.0.0.1:3182")]
    control_addr: String,
    #[command(flatten)]
    storage_tls: StorageTlsArguments,
}

pub fn run(command: &StorageCommand) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let answer = runtime.block_on(async { tokio::time::timeout(TIMEOUT, ask(command)).await.context("no answer")? })?;
    crate::print(&(serde_json::to_string_pretty(&answer)? + "\n"));
    Ok(())
}

async fn ask(command: &StorageCommand) -> anyhow::Result<Value> {
    let (StorageCommand::Describe(server)
    | StorageCommand::Statistics(server)
    | StorageCommand::Drain(server)
    | StorageCommand::Undrain(server)
    | StorageCommand::Scrub { server, .. }) = command;
    let (address, tls) = (&server.control_addr, server.storage_tls.options().open()?);
    let mut node = client::connect(address, tls).await.with_context(|| format!("cannot reach {address}"))?;
    let draining = |draining| SetDrainingRequest { draining };
    Ok(match command {
        StorageCommand::Describe(_) => {
            let it = node.describe(DescribeRequest {}).await?.into_inner();
            json!({
                "id": it.id, "revision": it.revision, "address": it.address, "zone": it.zone, "region": it.region,
                "version": it.version, "startedAtMs": it.started_at_ms, "registered": it.registered,
                "readOnly": it.read_only, "draining": it.draining,
            })
        }
        StorageCommand::Statistics(_) => {
            let it = node.get_statistics(StatisticsRequest {}).await?.into_inner();
            let directories: Vec<Value> = it
                .directories
                .iter()
                .map(|one| {
                    json!({
                        "path": one.path, "totalBytes": one.total_bytes, "freeBytes": one.free_bytes,
                        "liveBytes": one.live_bytes, "segments": one.segments, "ledgers": one.ledgers, "full": one.full,
                        "failing": one.failing, "holes": one.holes,
                    })
                })
                .collect();
            json!({
                "directories": directories, "ledgers": it.ledgers, "addedBytes": it.added_bytes,
                "readBytes": it.read_bytes, "failedAdds": it.failed_adds, "failedReads": it.failed_reads,
                "fences": it.fences, "limboBelow": it.limbo_below,
                "settledBelow": it.settled_below, "unfinishedLedgers": it.unfinished_ledgers, "damagedEntries": it.damaged_entries,
            })
        }
        StorageCommand::Drain(_) => {
            json!({ "draining": node.set_draining(draining(true)).await?.into_inner().draining })
        }
        StorageCommand::Undrain(_) => {
            json!({ "draining": node.set_draining(draining(false)).await?.into_inner().draining })
        }
        StorageCommand::Scrub { start, .. } => {
            let it = node.scrub(ScrubRequest { start: *start }).await?.into_inner();
            json!({
                "segments": it.segments, "segmentsLeft": it.segments_left, "passes": it.passes,
                "lastPassSeconds": it.last_pass_seconds, "readBytes": it.read_bytes,
                "damagedEntriesFound": it.damaged_entries_found, "repairedEntries": it.repaired_entries,
            })
        }
    })
}
