//! Reading entries: from the first node of their write set that has them, round those that are slow, dead or damaged.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ensemble::{LedgerMetadata, LedgerState, NodeId, distribution};
use geminga_ledger_client::{LedgerError, StoredEntry};
use geminga_wire_bookkeeper::{Code, Digest, DigestKind};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::client::{PASSWORD, Shared, metadata_error};
use crate::node::Failure;
use crate::recovering::Unknown;

/// How long a node may take before the next one is asked too.
const SPECULATE_AFTER: Duration = Duration::from_millis(500);
/// Entries in one read.
const ENTRIES_MAX: u32 = 10_000;

/// Entries from `first` to at most `last`, ending early after `max_bytes`; at least one.
pub async fn read(
    shared: &Arc<Shared>,
    ledger: u64,
    first: u64,
    last: u64,
    max_bytes: usize,
) -> Result<Vec<StoredEntry>, LedgerError> {
    let (metadata, end) = whereabouts(shared, ledger).await?;
    let no_entry = LedgerError::NoSuchEntry { ledger_id: ledger, entry_id: first };
    let last = last.min(end.ok_or(no_entry.clone())?);
    if first > last {
        return Err(no_entry);
    }
    let answer = read_from(shared, ledger, &metadata, first, last, max_bytes).await;
    let Err(LedgerError::Corrupt { .. }) = answer else { return answer };
    // A repair may have moved the entries since the metadata were read.
    match moved(shared, ledger, &metadata, first).await? {
        Some(metadata) => read_from(shared, ledger, &metadata, first, last, max_bytes).await,
        None => answer,
    }
}

/// The ledger's metadata as they are now, if they name other nodes for the entry.
async fn moved(
    shared: &Arc<Shared>,
    ledger: u64,
    known: &LedgerMetadata,
    entry: u64,
) -> Result<Option<LedgerMetadata>, LedgerError> {
    let found = shared.catalog.get(ledger).await.map_err(metadata_error)?;
    let metadata = found.ok_or(LedgerError::NoSuchLedger(ledger))?.metadata;
    if let LedgerState::Closed { .. } = metadata.state {
        shared.remember_closed(ledger, &metadata);
    }
    let has_moved = metadata.fragment_of(entry).ensemble != known.fragment_of(entry).ensemble;
    Ok(has_moved.then_some(metadata))
}

async fn read_from(
    shared: &Arc<Shared>,
    ledger: u64,
    metadata: &LedgerMetadata,
    first: u64,
    last: u64,
    max_bytes: usize,
) -> Result<Vec<StoredEntry>, LedgerError> {
    let next_fragment = metadata.fragments.iter().map(|fragment| fragment.first_entry).find(|start| *start > first);
    let last = next_fragment.map_or(last, |start| last.min(start - 1));
    // Of striped entries a node has but some in a row.
    let quorum = metadata.quorum;
    let count = if quorum.ensemble == quorum.write { last - first + 1 } else { 1 };
    let count = count.min(u64::from(ENTRIES_MAX)) as u32;
    let ensemble = &metadata.fragment_of(first).ensemble;
    let nodes: Vec<NodeId> = distribution::write_order(quorum, first).map(|slot| ensemble[slot].clone()).collect();
    let mut waiting = nodes.into_iter();
    let mut asked = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        if let Some(node) = waiting.next() {
            asked.spawn(ask(shared.clone(), node, ledger, first, count, max_bytes));
        }
        let answered =
            tokio::time::timeout(if waiting.len() > 0 { SPECULATE_AFTER } else { Duration::MAX }, asked.join_next());
        match answered.await {
            // Whoever was asked goes on; the next one is asked beside it.
            Err(_) => (),
            Ok(Some(Ok(Ok(entries)))) => return Ok(entries),
            Ok(Some(Ok(Err((node, failure))))) => failures.push(format!("{node}: {failure}")),
            Ok(Some(Err(error))) => failures.push(error.to_string()),
            Ok(None) if waiting.len() == 0 => {
                // It is in the ledger: that nobody has it is never "it is not there".
                let detail = format!("entry {first} cannot be read from any node: {}", failures.join("; "));
                return Err(LedgerError::Corrupt { ledger_id: ledger, detail });
            }
            Ok(None) => (),
        }
    }
}

/// Where the ledger's entries are, and the last one that may be read.
async fn whereabouts(shared: &Arc<Shared>, ledger: u64) -> Result<(LedgerMetadata, Option<u64>), LedgerError> {
    if shared.is_coming(ledger) {
        // Nothing is in it yet. Its record may be there already, and its writer is this process: it is not to be fenced.
        return Ok((LedgerMetadata::announced(shared.options.quorum), None));
    }
    if let Some(open) = shared.open(ledger) {
        return Ok(open.metadata());
    }
    if let Some(metadata) = shared.closed.lock().get(&ledger) {
        return Ok((metadata.clone(), crate::recovering::last_entry(metadata)));
    }
    let known = shared.catalog.get(ledger).await.map_err(metadata_error)?;
    let metadata = known.ok_or(LedgerError::NoSuchLedger(ledger))?.metadata;
    if metadata.is_announced() {
        // Nothing is in it yet; what will be is not known.
        return Ok((metadata, None));
    }
    let metadata = match metadata.state {
        LedgerState::Closed { .. } => metadata,
        // Whoever reads it owns it now. Its writer was given up before the ledger was closed: a topic's record, or that of a
        // cursor log, names the end of a ledger without waiting for the ledger's own metadata.
        LedgerState::Open | LedgerState::InRecovery => {
            crate::recovering::recover(shared, ledger, Unknown::Error).await?
        }
    };
    shared.remember_closed(ledger, &metadata);
    let last = crate::recovering::last_entry(&metadata);
    Ok((metadata, last))
}

/// The entries as one node has them, checked.
async fn ask(
    shared: Arc<Shared>,
    node: NodeId,
    ledger: u64,
    first: u64,
    count: u32,
    max_bytes: usize,
) -> Result<Vec<StoredEntry>, (NodeId, String)> {
    let Some(connection) = shared.nodes.connect(&node).await else { return Err((node, "unreachable".to_owned())) };
    let (sender, receiver) = oneshot::channel();
    connection.batch_read(ledger, first, count, max_bytes, Box::new(move |result| drop(sender.send(result))));
    let bodies: Vec<Bytes> = match receiver.await {
        Ok(Ok(bodies)) => bodies,
        Ok(Err(Failure::Code(Code::NoEntry | Code::NoLedger))) => return Err((node, "not there".to_owned())),
        Ok(Err(failure)) => return Err((node, format!("{failure:?}"))),
        Err(_) => return Err((node, "the connection broke".to_owned())),
    };
    let digest = Digest::new(ledger as i64, DigestKind::Crc32c, PASSWORD);
    let mut entries = Vec::with_capacity(bodies.len());
    for (entry_id, body) in (first..).zip(bodies) {
        match digest.open(entry_id as i64, body) {
            Ok((_, data)) => entries.push(StoredEntry { entry_id, data }),
            // What precedes the damage is good.
            Err(_) if !entries.is_empty() => break,
            Err(error) => {
                tracing::error!(ledger, entry_id, node, %error, "a storage node has a damaged entry");
                return Err((node, error.to_string()));
            }
        }
    }
    if entries.is_empty() { Err((node, "an empty answer".to_owned())) } else { Ok(entries) }
}
