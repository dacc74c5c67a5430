//! `geminga doctor`: whether metadata and storage fit together, which changes nothing; and what a plan says about it, carried out.

mod apply;
mod lists;
mod reading;
mod storage;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use geminga_doctor::{Cluster, Contents, Finding, Plan, Step, confirmed, examine, propose};
use geminga_metadata::Metadata;
use geminga_replicated_ledgers::NodeTls;
use serde_json::json;

use crate::cli::StorageTlsArguments;
use crate::options::units::Duration;
use apply::{Applying, Outcome, no_broker_is_at_work};
use storage::Nodes;

const FINDINGS: u8 = 1;
const NOT_CHECKED: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  geminga doctor --metadata-url postgres://geminga@db.example.org/geminga
  geminga doctor --metadata-url sqlite:metadata.db --json --repair-plan plan.json
  geminga doctor --metadata-url postgres://geminga@db.example.org/geminga --apply plan.json";

#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub struct DoctorArguments {
    /// Where metadata is: sqlite:FILE or postgres://USER@HOST:PORT/DATABASE
    #[arg(long, value_name = "URL", env = "GEMINGA_METADATA_URL", hide_env_values = true)]
    metadata_url: String,
    /// Print findings and proposals as JSON
    #[arg(long)]
    json: bool,
    /// Write what is proposed to a file, as JSON, for a person to read and edit, and for --apply
    #[arg(long, value_name = "FILE")]
    repair_plan: Option<PathBuf>,
    /// Carry out a plan that was written before, while no broker is at work; says what it does, line by line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "repair_plan"])]
    apply: Option<PathBuf>,
    /// What is found at first is looked at again after so long, as a cluster at work is never still
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    look_again_after: Duration,
    #[command(flatten)]
    storage_tls: StorageTlsArguments,
}

/// 0: everything fits, or was done; 1: something does not, or was not; 2: it could not be checked, or nothing more be done.
pub fn run(arguments: &DoctorArguments) -> ExitCode {
    let outcome = match &arguments.apply {
        Some(plan) => apply_plan(arguments, plan),
        None => examine_cluster(arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FINDINGS),
        Err(error) => {
            eprintln!("geminga: error: {}", crate::one_line(&format!("{error:#}")));
            ExitCode::from(NOT_CHECKED)
        }
    }
}

/// Opening a file that is not there would make it.
fn refuse_a_missing_file(arguments: &DoctorArguments) -> anyhow::Result<()> {
    let file = arguments.metadata_url.strip_prefix("sqlite:").map(|file| file.strip_prefix("//").unwrap_or(file));
    if let Some(file) = file {
        anyhow::ensure!(Path::new(file).try_exists()?, "there is no file {file}");
    }
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Whether all of a plan that was to be done is done.
fn apply_plan(arguments: &DoctorArguments, path: &Path) -> anyhow::Result<bool> {
    refuse_a_missing_file(arguments)?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan = Plan::read(&text).with_context(|| format!("cannot carry out {}", path.display()))?;
    let tls = arguments.storage_tls.options().open()?;
    runtime()?.block_on(async {
        let store = geminga_metadata_sql::open_as_it_is(&arguments.metadata_url)
            .await
            .context("cannot open the metadata (--metadata-url)")?;
        let metadata = Metadata::new(store.clone());
        let applied = async {
            no_broker_is_at_work(&metadata).await?;
            let nodes = Nodes::open(&metadata, tls.map(NodeTls::from)).await?;
            Applying::new(&metadata, nodes).carry_out(&plan, |step, outcome| crate::print(&told(step, outcome))).await
        };
        let outcome = applied.await;
        store.close().await;
        outcome
    })
}

/// One line.
fn told(step: &Step, outcome: &Outcome) -> String {
    let step = serde_json::to_string(step).expect("a step is JSON");
    match outcome {
        Outcome::Done => format!("done: {step}\n"),
        Outcome::Already => format!("nothing to do: {step}\n"),
        Outcome::Left(why) => format!("left ({why}): {step}\n"),
        Outcome::NotDone(why) => format!("NOT DONE ({}): {step}\n", crate::one_line(why)),
    }
}

/// Whether everything fits.
fn examine_cluster(arguments: &DoctorArguments) -> anyhow::Result<bool> {
    refuse_a_missing_file(arguments)?;
    let (cluster, findings) = runtime()?.block_on(look(arguments))?;
    let steps = propose(&cluster, &findings);
    if let Some(path) = &arguments.repair_plan {
        let plan = Plan::new(steps.clone()).write()?;
        std::fs::write(path, plan).with_context(|| format!("cannot write {}", path.display()))?;
    }
    crate::print(&report(arguments.json, &cluster, &findings, &steps)?);
    Ok(findings.is_empty())
}

/// Looks once, and again if something was found.
async fn look(arguments: &DoctorArguments) -> anyhow::Result<(Cluster, BTreeSet<Finding>)> {
    let tls = arguments.storage_tls.options().open()?;
    let store = geminga_metadata_sql::open_as_it_is(&arguments.metadata_url)
        .await
        .context("cannot open the metadata (--metadata-url)")?;
    let metadata = Metadata::new(store.clone());
    let looks = async {
        let nodes = Nodes::open(&metadata, tls.clone().map(NodeTls::from)).await?;
        let cluster = reading::read(&metadata, &nodes, tls.as_ref()).await?;
        let findings = examine(&cluster);
        if findings.is_empty() {
            return Ok((cluster, findings));
        }
        tokio::time::sleep(arguments.look_again_after.get()).await;
        let cluster = reading::read(&metadata, &nodes, tls.as_ref()).await?;
        let findings = confirmed(&findings, &examine(&cluster));
        Ok((cluster, findings))
    };
    let outcome = looks.await;
    store.close().await;
    outcome
}

fn report(as_json: bool, cluster: &Cluster, findings: &BTreeSet<Finding>, steps: &[Step]) -> anyhow::Result<String> {
    let unread = cluster.nodes.iter().filter_map(|(id, node)| match &node.contents {
        Contents::Unread(reason) => Some((id, reason)),
        Contents::Read(_) => None,
    });
    if as_json {
        let unread: serde_json::Map<_, _> = unread.map(|(id, reason)| (id.clone(), json!(reason))).collect();
        let all = json!({
            "ledgers": cluster.records.len(), "topics": cluster.topics.len(), "nodes": cluster.nodes.len(),
            "notAsked": unread, "findings": findings, "proposal": steps,
        });
        return Ok(serde_json::to_string_pretty(&all)? + "\n");
    }
    let (ledgers, topics, nodes) = (cluster.records.len(), cluster.topics.len(), cluster.nodes.len());
    let mut text = format!("{ledgers} ledgers, {topics} topics, {nodes} storage nodes: {} findings\n", findings.len());
    for (id, reason) in unread {
        text += &format!("not asked: {id}: {reason}\n");
    }
    for finding in findings {
        text += &format!("found: {}\n", serde_json::to_string(finding)?);
    }
    for step in steps {
        text += &format!("proposed: {}\n", serde_json::to_string(step)?);
    }
    Ok(text)
}
