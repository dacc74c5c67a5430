//! The repair of one ledger, carried out: entries are listed, read, checked and added over the network, at a bounded rate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_ensemble::repair::{CopyFailure, LedgerRepair, Listing, NodeTable, RepairAction, RepairReport};
use geminga_ensemble::{MetadataOutcome, NodeId};
use geminga_ledger_client::LedgerError;
use geminga_wire_bookkeeper::{Code, Digest, DigestKind, EntryList, Request, Response};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::client::{PASSWORD, Shared, metadata_error};
use crate::node::Failure;

/// Bit of a request for figures of a node: the bytes that are free on its disk.
const FREE_DISK_SPACE: i64 = 2;
/// How often a repair says what it waits for.
const EXPLAIN_EVERY: Duration = Duration::from_secs(1);

/// Copies come early for so long after late ones: a sleep takes whole milliseconds, in which many may be due.
const MADE_UP_FOR: Duration = Duration::from_millis(100);

/// What repairs of this process copy, and how fast they may.
pub struct CopyMeter {
    bytes_per_second: u64,
    /// When the next copy may go. Whoever waits for that has it locked, so that one who gives up takes nobody's turn.
    next: Mutex<Instant>,
    pub entries_read: AtomicU64,
    pub bytes_read: AtomicU64,
    pub entries_written: AtomicU64,
    pub bytes_written: AtomicU64,
    /// Answers that were not a good copy: damaged, absent though listed, or none at all.
    pub failed_reads: AtomicU64,
}

impl CopyMeter {
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            next: Mutex::new(Instant::now()),
            entries_read: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            entries_written: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            failed_reads: AtomicU64::new(0),
        }
    }

    /// Waits until so many bytes may be written to one node.
    async fn pace(&self, bytes: usize) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut next = self.next.lock().await;
        let start = (*next + MADE_UP_FOR).max(Instant::now()) - MADE_UP_FOR;
        tokio::time::sleep_until(start.into()).await;
        *next = start + takes;
    }
}

enum Event {
    Listed(NodeId, Option<Box<dyn Listing>>),
    Read(u64, NodeId, Option<Bytes>),
    Added(u64, NodeId, Result<(), CopyFailure>),
    Metadata(Option<MetadataOutcome>),
    Nodes(NodeTable),
}

#[derive(Debug)]
struct Listed(EntryList);

impl Listing for Listed {
    fn contains(&self, entry: u64) -> bool {
        self.0.contains(entry)
    }
}

/// Repairs what can be repaired of the ledger; see [`geminga_ensemble::repair`].
pub async fn repair(
    shared: &Arc<Shared>,
    ledger: u64,
    mut nodes: watch::Receiver<NodeTable>,
    meter: &Arc<CopyMeter>,
    explain: impl Fn(String) + Send + Sync,
) -> Result<RepairReport, LedgerError> {
    let Some(known) = shared.catalog.get(ledger).await.map_err(metadata_error)? else {
        return Ok(RepairReport { is_gone: true, ..RepairReport::default() });
    };
    let table = nodes.borrow_and_update().clone();
    let mut repair = LedgerRepair::new(known.metadata, known.version, table, rand::random());
    let (events, mut inbox) = mpsc::unbounded_channel();
    let wanted = watch::Sender::default();
    let mut copier = Copier { shared: shared.clone(), ledger, meter: meter.clone(), events, wanted };
    // Of entries that were just read.
    let mut bodies: BTreeMap<u64, Bytes> = BTreeMap::new();
    let mut explained = None;
    loop {
        for action in repair.take_actions() {
            match action {
                RepairAction::Done(report) => return Ok(report),
                RepairAction::Add { entry, nodes } => {
                    let body = bodies.remove(&entry).expect("it was just read");
                    nodes.into_iter().for_each(|node| copier.add(entry, node, body.clone()));
                }
                RepairAction::List { node } => copier.list(node),
                RepairAction::Read { entry, node } => copier.read(entry, node),
                RepairAction::WriteMetadata { metadata, expected_version } => {
                    let (shared, events) = (shared.clone(), copier.events.clone());
                    tokio::spawn(async move {
                        let outcome = shared.catalog.write(ledger, &metadata, expected_version).await;
                        // Whether anybody still waits for the event is not the sender's business.
                        let _ = events.send(Event::Metadata(outcome));
                    });
                }
            }
        }
        bodies.clear();
        if explained.is_none_or(|at: Instant| at.elapsed() >= EXPLAIN_EVERY) {
            explain(repair.explain());
            explained = Some(Instant::now());
        }
        let event = tokio::select! {
            event = inbox.recv() => event.ok_or(LedgerError::Closed)?,
            // Never again, once nobody looks any more.
            Ok(()) = nodes.changed() => Event::Nodes(nodes.borrow_and_update().clone()),
        };
        match event {
            Event::Listed(node, listing) => repair.listed(&node, listing),
            Event::Read(entry, node, body) => {
                let bytes = body.as_ref().map(|body| body.len() as u64);
                bodies.extend(body.map(|body| (entry, body)));
                repair.read(entry, &node, bytes);
            }
            Event::Added(entry, node, result) => repair.added(entry, &node, result),
            Event::Metadata(outcome) => repair.metadata_written(outcome),
            Event::Nodes(table) => {
                if repair.nodes_changed(table) {
                    copier.wanted = watch::Sender::default();
                }
            }
        }
    }
}

/// Bytes that are free on a node's disk; `None` if it does not say.
pub async fn free_space(shared: &Shared, node: &NodeId) -> Option<u64> {
    match ask(shared, node, &Request::NodeInfo { requested: FREE_DISK_SPACE }).await {
        Ok(Response::NodeInfo { free, .. }) => free.and_then(|free| u64::try_from(free).ok()),
        _ => None,
    }
}

/// Which entries of a ledger a node has; `None` if it does not say.
pub async fn list_entries(shared: &Shared, ledger: u64, node: &NodeId) -> Option<Box<dyn Listing>> {
    let list = match ask(shared, node, &Request::ListEntries { ledger: ledger as i64 }).await {
        Ok(Response::EntryList(list)) => EntryList::decode(&list).ok()?,
        Err(Failure::Code(Code::NoLedger | Code::NoEntry)) => EntryList::default(),
        answer => {
            tracing::info!(ledger, node, ?answer, "a storage node does not say what it has");
            return None;
        }
    };
    Some(Box::new(Listed(list)))
}

async fn ask(shared: &Shared, node: &NodeId, request: &Request) -> Result<Response, Failure> {
    let connection = shared.nodes.connect(node).await.ok_or(Failure::Unreachable)?;
    let (sender, receiver) = oneshot::channel();
    connection.ask(request, Box::new(move |result| drop(sender.send(result))));
    receiver.await.unwrap_or(Err(Failure::Unreachable))
}

/// Begins what a repair asks for; its events come.
struct Copier {
    shared: Arc<Shared>,
    ledger: u64,
    meter: Arc<CopyMeter>,
    events: mpsc::UnboundedSender<Event>,
    /// Gone when copies that have not begun need not any more.
    wanted: watch::Sender<()>,
}

impl Copier {
    fn list(&self, node: NodeId) {
        let (shared, events, ledger) = (self.shared.clone(), self.events.clone(), self.ledger);
        tokio::spawn(async move {
            let listing = list_entries(&shared, ledger, &node).await;
            let _ = events.send(Event::Listed(node, listing));
        });
    }

    fn read(&self, entry: u64, node: NodeId) {
        let (shared, events, meter, ledger) =
            (self.shared.clone(), self.events.clone(), self.meter.clone(), self.ledger);
        tokio::spawn(async move {
            let body = read_checked(&shared, ledger, entry, &node).await;
            let counter = if body.is_some() { &meter.entries_read } else { &meter.failed_reads };
            counter.fetch_add(1, Ordering::Relaxed);
            meter.bytes_read.fetch_add(body.as_ref().map_or(0, |body| body.len() as u64), Ordering::Relaxed);
            let _ = events.send(Event::Read(entry, node, body));
        });
    }

    fn add(&self, entry: u64, node: NodeId, body: Bytes) {
        let (shared, events, meter, ledger) =
            (self.shared.clone(), self.events.clone(), self.meter.clone(), self.ledger);
        let mut wanted = self.wanted.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = meter.pace(body.len()) => (),
                _ = wanted.changed() => return drop(events.send(Event::Added(entry, node, Err(CopyFailure::Unreachable)))),
            }
            let result = match shared.nodes.connect(&node).await {
                None => Err(Failure::Unreachable),
                Some(connection) => {
                    let (sender, receiver) = oneshot::channel();
                    let done = Box::new(move |result| {
                        let _ = sender.send(result);
                    });
                    connection.recovery_add(ledger, entry, &shared.master_key, &body, done);
                    receiver.await.unwrap_or(Err(Failure::Unreachable))
                }
            };
            match result {
                Ok(()) => {
                    meter.entries_written.fetch_add(1, Ordering::Relaxed);
                    meter.bytes_written.fetch_add(body.len() as u64, Ordering::Relaxed);
                }
                Err(failure) => tracing::info!(ledger, entry, node, ?failure, "a storage node did not take a copy"),
            }
            let result = result.map_err(|failure| match failure {
                Failure::Unreachable | Failure::TimedOut | Failure::Code(Code::TooManyRequests) => {
                    CopyFailure::Unreachable
                }
                Failure::Code(_) => CopyFailure::Refused,
            });
            let _ = events.send(Event::Added(entry, node, result));
        });
    }
}

/// The entry as the node has it, with its head; `None` unless it is good.
async fn read_checked(shared: &Shared, ledger: u64, entry: u64, node: &NodeId) -> Option<Bytes> {
    let connection = shared.nodes.connect(node).await?;
    let (sender, receiver) = oneshot::channel();
    connection.read(ledger, entry as i64, None, Box::new(move |result| drop(sender.send(result))));
    let body = match receiver.await.unwrap_or(Err(Failure::Unreachable)) {
        Ok(body) => body,
        Err(Failure::Code(code)) => {
            tracing::info!(ledger, entry, node, ?code, "a storage node did not give an entry to be copied");
            return None;
        }
        // A line for each entry would say no more than that for the connection.
        Err(Failure::Unreachable | Failure::TimedOut) => return None,
    };
    match Digest::new(ledger as i64, DigestKind::Crc32c, PASSWORD).open(entry as i64, body.clone()) {
        Ok(_) => Some(body),
        Err(error) => {
            tracing::error!(ledger, entry, node, %error, "a storage node has a damaged entry");
            None
        }
    }
}
