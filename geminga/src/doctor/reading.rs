//! Reads metadata and asks nodes, in the order that `geminga-doctor` asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use geminga_doctor::{Cluster, Contents, CursorLog, Held, Label, LedgerMetadata, Node, Record, Remembered, Topic};
use geminga_ensemble::LedgerState;
use geminga_ledger::cursor_log;
use geminga_metadata::Metadata;
use geminga_replicated_ledgers::payload_at;
use geminga_storage_node_control::client::{self, LedgerHere, ListLedgersRequest, StatisticsRequest};
use geminga_tls::ClientTls;
use serde::Deserialize;

use super::storage::Storage;

/// For a connection, an answer, and the next ledger of a list.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// Records that are read at a time.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct LogLedger {
    ledger_id: u64,
}

/// # Errors
/// Metadata could not be read. A node that could not be is in the answer as such.
pub async fn read(
    metadata: &Metadata,
    storage: &impl Storage,
    tls: Option<&Arc<ClientTls>>,
) -> anyhow::Result<Cluster> {
    let mut cluster = Cluster {
        nodes: nodes(metadata, tls).await.context("cannot read which storage nodes there are")?,
        topics: topics(metadata).await.context("cannot read topics")?,
        cursor_logs: cursor_logs(metadata).await.context("cannot read where cursor logs are")?,
        partitioned: partitioned(metadata).await.context("cannot read which topics are partitioned")?,
        records: records(metadata).await.context("cannot read the ledgers' records")?,
        deletions: deletions(metadata).await.context("cannot read which ledgers are to be deleted")?,
        ledger_ids_end: metadata.ledger_ids_end().await.context("cannot read the sequence of ledger ids")?,
        cursor_ids_end: metadata.cursor_ids_end().await.context("cannot read the sequence of cursor ids")?,
        restored: restored(metadata).await.context("cannot read what nodes remember of newer metadata")?,
        acknowledged: BTreeMap::new(),
    };
    cluster.acknowledged =
        acknowledged(metadata, storage, &cluster).await.context("cannot read what subscriptions there are")?;
    Ok(cluster)
}

/// What is acknowledged, by cursor logs that nobody writes: those whose ledgers are all closed. Reading them changes nothing.
async fn acknowledged(
    metadata: &Metadata,
    storage: &impl Storage,
    cluster: &Cluster,
) -> anyhow::Result<BTreeMap<(String, String), u64>> {
    let entries_of = |ledger: &u64| match cluster.records.get(ledger) {
        Some(Record::Read { metadata: LedgerMetadata { state: LedgerState::Closed { entries, .. }, .. }, .. }) => {
            Some((*ledger, *entries))
        }
        _ => None,
    };
    let mut cursors = BTreeMap::new();
    for (bundle, log) in &cluster.cursor_logs {
        let Some(ledgers) = log.ledgers.iter().map(entries_of).collect::<Option<Vec<_>>>() else { continue };
        match storage.cursors(&ledgers).await {
            Ok(found) => cursors.extend(found),
            // A broker that took the bundle meanwhile may have dropped a ledger of it; what is lost is found elsewhere.
            Err(error) => tracing::debug!(bundle, "could not read a cursor log: {error:#}"),
        }
    }
    if cursors.is_empty() {
        return Ok(BTreeMap::new());
    }
    let subscriptions = metadata.all_subscriptions().await?.into_iter();
    let acknowledged = subscriptions
        .filter_map(|(topic, name, record)| Some(((topic.to_string(), name), *cursors.get(&record.cursor_id)?)));
    Ok(acknowledged.collect())
}

async fn nodes(metadata: &Metadata, tls: Option<&Arc<ClientTls>>) -> anyhow::Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    for status in metadata.storage_node_statuses().await? {
        let node = match &status.record.control {
            Some(address) => ask(address, tls.cloned()).await,
            None => Err(anyhow::anyhow!("it has no control address (--control-addr)")),
        };
        let unread = |error: anyhow::Error| Node { contents: Contents::Unread(format!("{error:#}")), knows_all: false };
        nodes.insert(status.id, node.unwrap_or_else(unread));
    }
    Ok(nodes)
}

async fn ask(address: &str, tls: Option<Arc<ClientTls>>) -> anyhow::Result<Node> {
    let mut node =
        patiently(client::connect(address, tls)).await?.with_context(|| format!("cannot reach {address}"))?;
    let statistics = patiently(node.get_statistics(StatisticsRequest {})).await??.into_inner();
    let request = ListLedgersRequest { first: 0, with_heads: true };
    let mut list = patiently(node.list_ledgers(request)).await??.into_inner();
    let mut ledgers = BTreeMap::new();
    while let Some(here) = patiently(list.message()).await?? {
        ledgers.insert(here.ledger, held(&here));
    }
    let is_settled = statistics.settled_below >= statistics.limbo_below;
    let has_holes = statistics.directories.iter().any(|directory| directory.holes > 0);
    Ok(Node {
        contents: Contents::Read(ledgers),
        knows_all: !has_holes && statistics.damaged_entries == 0 && is_settled,
    })
}

async fn patiently<T>(answer: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(NODE_PATIENCE, answer).await.context("no answer in time")
}

fn held(here: &LedgerHere) -> Held {
    let is_read = here.unreadable.is_empty();
    let payload = here.head.get(payload_at()..).filter(|_| here.first_entry == Some(0));
    Held {
        entries: is_read.then_some(here.entries),
        last_entry: here.last_entry.filter(|_| is_read),
        label: payload.and_then(|payload| label(here.ledger, payload)),
        is_doubtful: here.doubtful,
    }
}

/// What the first entry of a ledger says of it. Of an entry only the beginning is here, which is enough for either.
fn label(ledger: u64, payload: &[u8]) -> Option<Label> {
    if let Ok(Some(cursor_log::Label { name, ledgers })) = cursor_log::Label::of_entry(payload) {
        return (ledgers.last() == Some(&ledger)).then_some(Label::CursorLog { bundle: name, ledgers });
    }
    let topic = geminga_wire_pulsar::topic_label(payload).ok().flatten()?;
    Some(Label::Topic(topic.to_owned()))
}

async fn partitioned(metadata: &Metadata) -> anyhow::Result<BTreeSet<String>> {
    Ok(metadata.all_partitioned_topics().await?.into_iter().map(|(name, _)| name.to_string()).collect())
}

async fn restored(metadata: &Metadata) -> anyhow::Result<BTreeMap<String, Remembered>> {
    let remembered = metadata.restored().await?.into_iter().map(|(node, noted)| {
        let (ledger_ids_end, cursor_ids_end) =
            (noted.value.remembered.ledger_ids_end, noted.value.remembered.cursor_ids_end);
        (node, Remembered { version: noted.version, ledger_ids_end, cursor_ids_end })
    });
    Ok(remembered.collect())
}

async fn topics(metadata: &Metadata) -> anyhow::Result<BTreeMap<String, Topic>> {
    let topics = metadata.all_topics().await?.into_iter().map(|(name, record)| {
        let ledgers: Vec<u64> = record.value.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
        let last_ledger = record.value.greatest_ledger();
        (name.to_string(), Topic { ledgers, last_ledger, version: record.version })
    });
    Ok(topics.collect())
}

async fn cursor_logs(metadata: &Metadata) -> anyhow::Result<BTreeMap<String, CursorLog>> {
    let mut logs = BTreeMap::new();
    for name in metadata.list_cursor_logs().await? {
        // One that has gone meanwhile refers to nothing.
        if let Some(list) = metadata.get_cursor_log::<Vec<LogLedger>>(&name).await? {
            let ledgers = list.value.into_iter().map(|ledger| ledger.ledger_id).collect();
            logs.insert(name, CursorLog { ledgers, version: list.version });
        }
    }
    Ok(logs)
}

async fn records(metadata: &Metadata) -> anyhow::Result<BTreeMap<u64, Record>> {
    let mut records = BTreeMap::new();
    let mut first = 0;
    loop {
        let page = metadata.scan_ledgers::<LedgerMetadata>(first, PAGE).await?;
        let is_last = page.len() < PAGE;
        for (ledger, record) in page {
            let record = record.map(|record| Record::Read { metadata: record.value, version: record.version });
            records.insert(ledger, record.unwrap_or_else(|error| Record::Unreadable(error.to_string())));
            first = ledger + 1;
        }
        if is_last {
            return Ok(records);
        }
    }
}

async fn deletions(metadata: &Metadata) -> anyhow::Result<BTreeSet<u64>> {
    Ok(metadata.list_garbage(usize::MAX).await?.into_iter().flatten().collect())
}
