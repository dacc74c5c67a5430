//! Recovery of one ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use geminga_ensemble::{
    AddFailure, LedgerMetadata, LedgerRecovery, LedgerState, MetadataOutcome, NodeId, Quorum, ReadAnswer,
    RecoveryAction,
};
use geminga_ledger_client::LedgerError;
use geminga_wire_bookkeeper::{Code, Digest, DigestKind, LAST_ENTRY};
use tokio::sync::mpsc;

use crate::catalog::Known;
use crate::client::{PASSWORD, Shared, metadata_error};
use crate::node::Failure;

enum Event {
    Fenced(NodeId, Option<u64>),
    Read(u64, NodeId, ReadAnswer, Option<Bytes>),
    Added(u64, NodeId, Result<(), AddFailure>),
    Chosen(Vec<Option<NodeId>>),
    Metadata(Option<MetadataOutcome>),
}

/// What it means that metadata have no record of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing was ever written to it.
    NeverBegun,
    /// It was lost, as it was announced.
    Error,
}

/// Fences the ledger, finds its end and closes it. Answers its metadata.
pub async fn recover(shared: &Arc<Shared>, ledger: u64, unknown: Unknown) -> Result<LedgerMetadata, LedgerError> {
    let known = match shared.catalog.get(ledger).await.map_err(metadata_error)? {
        Some(known) if !known.metadata.is_announced() => known,
        None if unknown == Unknown::Error => return Err(LedgerError::NoRecord(ledger)),
        // It was deleted. A record that came back would be nobody's.
        None if shared.existed(ledger) => return Err(LedgerError::NoSuchLedger(ledger)),
        Some(_) | None => {
            // Whoever meant to create it finds it closed.
            let metadata = LedgerMetadata::never_begun(shared.options.quorum);
            shared.catalog.create(ledger, &metadata).await.map_err(metadata_error)?
        }
    };
    recover_from(shared, ledger, known).await
}

/// The same for a ledger that has to be there.
pub async fn recover_existing(shared: &Arc<Shared>, ledger: u64) -> Result<LedgerMetadata, LedgerError> {
    let known = shared.catalog.get(ledger).await.map_err(metadata_error)?;
    recover_from(shared, ledger, known.ok_or(LedgerError::NoSuchLedger(ledger))?).await
}

async fn recover_from(shared: &Arc<Shared>, ledger: u64, known: Known) -> Result<LedgerMetadata, LedgerError> {
    let quorum = known.metadata.quorum;
    let mut recovery = LedgerRecovery::new(known.metadata, known.version);
    let (events, mut inbox) = mpsc::unbounded_channel();
    let mut bodies: BTreeMap<u64, Bytes> = BTreeMap::new();
    loop {
        for action in recovery.take_actions() {
            match action {
                RecoveryAction::Done(Ok(recovered)) => return Ok(recovered.metadata),
                RecoveryAction::Done(Err(error)) => {
                    return Err(LedgerError::Io(format!("ledger {ledger} cannot be recovered now: {error}")));
                }
                action => start(shared, (ledger, quorum), action, &bodies, &events),
            }
        }
        let Some(event) = inbox.recv().await else { return Err(LedgerError::Closed) };
        match event {
            Event::Fenced(node, confirmed) => recovery.fenced(&node, confirmed),
            Event::Read(entry, node, answer, body) => {
                if let Some(body) = body {
                    bodies.entry(entry).or_insert(body);
                }
                recovery.read(entry, &node, answer);
            }
            Event::Added(entry, node, result) => recovery.added(entry, &node, result),
            Event::Chosen(nodes) => recovery.chosen(nodes),
            Event::Metadata(Some(outcome)) => recovery.metadata_written(outcome),
            Event::Metadata(None) => return Err(LedgerError::NoSuchLedger(ledger)),
        }
    }
}

/// Begins what an action asks for; its event comes.
fn start(
    shared: &Arc<Shared>,
    (ledger, quorum): (u64, Quorum),
    action: RecoveryAction,
    bodies: &BTreeMap<u64, Bytes>,
    events: &mpsc::UnboundedSender<Event>,
) {
    let (shared, events) = (shared.clone(), events.clone());
    let digest = Digest::new(ledger as i64, DigestKind::Crc32c, PASSWORD);
    // Whether anybody still waits for the event is not the sender's business.
    let tell = move |event| drop(events.send(event));
    match action {
        RecoveryAction::Fence { node } => {
            tokio::spawn(async move {
                let Some(connection) = shared.nodes.connect(&node).await else {
                    return tell(Event::Fenced(node, None));
                };
                let key = Some(shared.master_key);
                connection.read(
                    ledger,
                    LAST_ENTRY,
                    key,
                    Box::new(move |result| {
                        let confirmed = match result {
                            Err(Failure::Code(Code::NoEntry | Code::NoLedger)) => Some(0),
                            Err(_) => None,
                            Ok(body) => open_last(&digest, body).map(|confirmed| (confirmed + 1) as u64),
                        };
                        tell(Event::Fenced(node, confirmed));
                    }),
                );
            });
        }
        RecoveryAction::Read { entry, node } => {
            tokio::spawn(async move {
                let Some(connection) = shared.nodes.connect(&node).await else {
                    return tell(Event::Read(entry, node, ReadAnswer::Unknown, None));
                };
                let key = Some(shared.master_key);
                connection.read(
                    ledger,
                    entry as i64,
                    key,
                    Box::new(move |result| {
                        let (answer, body) = match result {
                            Err(Failure::Code(Code::NoEntry | Code::NoLedger)) => (ReadAnswer::Absent, None),
                            Err(_) => (ReadAnswer::Unknown, None),
                            // What is damaged says nothing.
                            Ok(body) => match digest.open(entry as i64, body.clone()) {
                                Ok((head, _)) => (ReadAnswer::Here { length: head.length as u64 }, Some(body)),
                                Err(_) => (ReadAnswer::Unknown, None),
                            },
                        };
                        tell(Event::Read(entry, node, answer, body));
                    }),
                );
            });
        }
        RecoveryAction::Add { entry, node, .. } => {
            let body = bodies.get(&entry).cloned().expect("it was read before it is written again");
            tokio::spawn(async move {
                let Some(connection) = shared.nodes.connect(&node).await else {
                    return tell(Event::Added(entry, node, Err(AddFailure::Failed)));
                };
                connection.recovery_add(
                    ledger,
                    entry,
                    &shared.master_key,
                    &body,
                    Box::new(move |result| tell(Event::Added(entry, node, result.map_err(|_| AddFailure::Failed)))),
                );
            });
        }
        RecoveryAction::Choose { ensemble, failed, avoid } => {
            tokio::spawn(async move {
                tell(Event::Chosen(shared.nodes.replace(quorum, &ensemble, &failed, &avoid).await));
            });
        }
        RecoveryAction::WriteMetadata { metadata, expected_version } => {
            tokio::spawn(async move {
                tell(Event::Metadata(shared.catalog.write(ledger, &metadata, expected_version).await));
            });
        }
        RecoveryAction::Done(_) => unreachable!("the caller ends with it"),
    }
}

/// The last add confirmed that the last entry of a node names; `None` if it is damaged.
fn open_last(digest: &Digest, body: Bytes) -> Option<i64> {
    let entry = geminga_wire_bookkeeper::EntryHead::decode(&body)?.entry;
    let (head, _) = digest.open(entry, body).ok()?;
    (head.last_add_confirmed >= -1).then_some(head.last_add_confirmed)
}

/// The last entry of a closed ledger.
pub fn last_entry(metadata: &LedgerMetadata) -> Option<u64> {
    match metadata.state {
        LedgerState::Closed { entries, .. } => entries.checked_sub(1),
        LedgerState::Open | LedgerState::InRecovery => None,
    }
}
