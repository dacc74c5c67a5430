//! Storage nodes in this process, each with a log on a real disk, alive in metadata for as long as the test says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ensemble::{LedgerMetadata, NodeId, Quorum, distribution};
use geminga_ledger_client::{AppendClass, LedgerClient, LedgerError};
use geminga_log::{Log, LogOptions};
use geminga_metadata::{Lease, LeaseOutcome, MemoryStore, Metadata, StorageNodeRecord};
use geminga_repair::{Figures, RepairOptions};
use geminga_replicated_ledgers::{Membership, ReplicaReader, ReplicatedLedgers, ReplicationOptions, ZonePolicy};
use geminga_storage_node::{
    Asking, Directories, Directory, Duties, Duty, Fetching, Ledgers, NodeOptions, Replicas, StorageNode, heal, serve,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub const LOST_AFTER: Duration = Duration::from_millis(400);
/// Open ledgers of a disk that was lost are closed after so long.
const CLOSE_AFTER: Duration = Duration::from_millis(500);
const FOR_EVER: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(60);

/// A node that runs.
struct Node {
    stop: watch::Sender<bool>,
    log: Log,
    lease: Lease,
    serving: tokio::task::JoinHandle<()>,
    recovery: JoinSet<()>,
    figures: Arc<Figures>,
}

/// Where a node is, whether it runs or not.
struct Place {
    folder: PathBuf,
    address: String,
    zone: String,
    /// Ledgers below may have been on a disk that was given up.
    limbo_below: u64,
}

pub struct Cluster {
    _folder: TempDir,
    places: BTreeMap<NodeId, Place>,
    running: BTreeMap<NodeId, Node>,
    pub metadata: Metadata,
    options: RepairOptions,
}

impl Cluster {
    /// Nodes with numbers from 0 on, in as many zones.
    pub async fn start(count: usize, zones: usize) -> Cluster {
        Self::start_with_rate(count, zones, 1 << 30).await
    }

    /// Each of them copies so many bytes a second.
    pub async fn start_with_rate(count: usize, zones: usize, bytes_per_second: u64) -> Cluster {
        let options = RepairOptions {
            node: String::new(),
            lost_after: LOST_AFTER,
            // A busy machine takes its time to tell writers.
            open_ledger_grace: Duration::from_secs(2),
            audit_interval: Duration::from_secs(1),
            self_check_interval: Duration::from_secs(1),
            bytes_per_second,
        };
        let folder = TempDir::new().expect("a temporary folder");
        let mut cluster = Cluster {
            places: BTreeMap::new(),
            running: BTreeMap::new(),
            metadata: Metadata::new(Arc::new(MemoryStore::default())),
            options,
            _folder: folder,
        };
        for n in 0..count {
            cluster.add(&format!("node-{n}"), &format!("zone-{}", n % zones)).await;
        }
        cluster
    }

    pub async fn add(&mut self, id: &str, zone: &str) {
        let folder = self._folder.path().join(id);
        std::fs::create_dir_all(folder.join("log")).expect("a folder");
        let place = Place { folder, address: "127.0.0.1:0".to_owned(), zone: zone.to_owned(), limbo_below: 0 };
        self.places.insert(id.to_owned(), place);
        self.start_node(id).await;
    }

    /// Starts a node, or starts it again where it was.
    pub async fn start_node(&mut self, id: &str) {
        let place = self.places.get_mut(id).expect("a node of the cluster");
        let listener = TcpListener::bind(&place.address).await.expect("a free port");
        place.address = listener.local_addr().expect("bound").to_string();
        let options = LogOptions { segment_bytes: 4 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(&place.folder.join("log"), options).expect("an empty or recovered log");
        let (stop, stopped) = watch::channel(false);
        let directory = Directory { path: place.folder.clone(), log: log.clone() };
        let directories = Directories::new(vec![directory], place.limbo_below).expect("there is one");
        let node = StorageNode::new(directories, NodeOptions::new(256 << 20));
        let serving = tokio::spawn(serve(listener, node.clone(), stopped));
        let record = StorageNodeRecord {
            address: place.address.clone(),
            zone: place.zone.clone(),
            region: "here".to_owned(),
            read_only: false,
            control: None,
        };
        self.metadata.put_storage_node(id, &record).await.expect("metadata");
        let LeaseOutcome::Acquired(lease) =
            self.metadata.acquire_storage_node(id, id, FOR_EVER).await.expect("metadata")
        else {
            panic!("{id} is alive twice");
        };
        let figures = Arc::new(Figures::default());
        let options = RepairOptions { node: id.to_owned(), ..self.options.clone() };
        let ledgers = self.client(3, 3, 2).await;
        let mut recovery = geminga_repair::run(self.metadata.clone(), ledgers.clone(), options, &figures);
        let others = OtherNodes { id: id.to_owned(), reader: self.reader().await, ledgers };
        recovery.spawn(heal(node, Arc::new(others), CLOSE_AFTER));
        self.running.insert(id.to_owned(), Node { stop, log, lease, serving, recovery, figures });
    }

    /// Ends a node; others see that at once, and give it up after [`LOST_AFTER`].
    pub async fn end_node(&mut self, id: &str) {
        let mut node = self.running.remove(id).expect("it runs");
        node.recovery.shutdown().await;
        node.stop.send_replace(true);
        node.serving.await.expect("it ends");
        node.log.close();
        self.metadata.store().release_lease(&node.lease).await.expect("metadata");
        // Whoever audits, or works on a ledger, is not known to be gone before its time is over.
        if let Some(auditor) = self.metadata.store().lease("auditor").await.expect("metadata")
            && auditor.owner == id
        {
            self.metadata.store().release_lease(&auditor).await.expect("metadata");
        }
    }

    /// The disk of a node that does not run is lost, and the node begins with an empty one. Ledgers below may have been on the old one.
    pub async fn start_node_on_a_new_disk(&mut self, id: &str, limbo_below: u64) {
        let place = self.places.get_mut(id).expect("a node of the cluster");
        std::fs::remove_dir_all(&place.folder).expect("it was there");
        std::fs::create_dir_all(place.folder.join("log")).expect("a folder");
        place.limbo_below = limbo_below;
        self.start_node(id).await;
    }

    async fn reader(&self) -> ReplicaReader {
        let membership = Membership::open(self.metadata.clone()).await.expect("metadata");
        ReplicaReader::new(self.metadata.clone(), Arc::new(membership), Duration::from_secs(2), None)
    }

    pub async fn client(&self, ensemble: u32, write: u32, ack: u32) -> ReplicatedLedgers {
        let (ledgers, membership) = self.deaf_client(ensemble, write, ack).await;
        let changed = ledgers.clone();
        tokio::spawn(membership.follow(move || changed.nodes_changed()));
        ledgers
    }

    /// A client that knows the nodes as they are now and does not hear of changes.
    pub async fn deaf_client(&self, ensemble: u32, write: u32, ack: u32) -> (ReplicatedLedgers, Membership) {
        let options = ReplicationOptions {
            quorum: Quorum { ensemble, write, ack },
            zones: ZonePolicy::default(),
            call_timeout: Duration::from_secs(2),
            outbound_bytes: 64 << 20,
            tls: None,
        };
        let membership = Membership::open(self.metadata.clone()).await.expect("metadata");
        (ReplicatedLedgers::new(self.metadata.clone(), Arc::new(membership.clone()), options), membership)
    }

    pub async fn ledger(&self, id: u64) -> LedgerMetadata {
        self.metadata.get_ledger::<LedgerMetadata>(id).await.expect("metadata").expect("it exists").value
    }

    /// Copies that all running nodes have written since they were started.
    pub fn copies(&self) -> u64 {
        self.running.values().map(|node| node.figures.entries_written()).sum()
    }

    /// Waits until nothing is to be repaired, as an audit says that began after now.
    pub async fn wait_until_repaired(&self) {
        self.wait_for("nothing is left to be repaired", async |cluster, since_ms| {
            let audit = cluster.metadata.audit().await.expect("metadata").filter(|audit| audit.started_ms > since_ms);
            let open = cluster.metadata.list_repairs(0, 10).await.expect("metadata");
            open.is_empty()
                && audit.is_some_and(|audit| audit.under_replicated + audit.misplaced + audit.waiting_for_writers == 0)
        })
        .await;
    }

    pub async fn wait_for(&self, what: &str, is_so: impl AsyncFn(&Cluster, u64) -> bool) {
        let since = std::time::Instant::now();
        let since_ms = self.metadata.store().now_ms();
        while !is_so(self, since_ms).await {
            if since.elapsed() > PATIENCE {
                let repairs = self.metadata.list_repairs(0, 10).await;
                panic!("waited for too long: {what}; {repairs:?}; {:?}", self.metadata.audit().await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every member of every fragment is running, and has every entry that it should have. Asks the nodes' logs.
    pub async fn check_complete(&self, ledger: u64, entries: u64) {
        let metadata = self.ledger(ledger).await;
        for entry in 0..entries {
            let ensemble = &metadata.fragment_of(entry).ensemble;
            for slot in distribution::write_order(metadata.quorum, entry) {
                let member = &ensemble[slot];
                let node = self.running.get(member).unwrap_or_else(|| panic!("{member} is gone: {metadata:?}"));
                node.log.read(ledger, entry).unwrap_or_else(|error| panic!("{member} lacks {entry}: {error}"));
            }
        }
    }

    /// Entries of a ledger that a running node has.
    pub fn held_by(&self, node: &str, ledger: u64) -> u64 {
        let stretches = self.running[node].log.stretches(ledger).unwrap_or_default();
        stretches.into_iter().map(|(_, count)| count).sum()
    }
}

/// What a node asks of the others, as its process does.
struct OtherNodes {
    id: String,
    reader: ReplicaReader,
    ledgers: ReplicatedLedgers,
}

impl Replicas for OtherNodes {
    fn fetch(&self, ledger: u64, entry: u64) -> Fetching {
        panic!("nothing is damaged, and {ledger}:{entry} is not to be copied here")
    }
}

impl Ledgers for OtherNodes {
    fn horizon(&self) -> Asking<u64> {
        panic!("nothing is damaged")
    }

    fn duties(&self, from: u64, limit: usize) -> Asking<Duties> {
        let (id, reader) = (self.id.clone(), self.reader.clone());
        Box::pin(async move {
            let (shares, next) = reader.shares_of(&id, from, limit).await.map_err(|error| error.to_string())?;
            let duty = |(ledger, share): (u64, geminga_replicated_ledgers::Share)| Duty {
                ledger,
                stretches: share.stretches,
                is_settled: share.is_settled,
                is_closed: share.is_closed,
            };
            Ok((shares.into_iter().map(duty).collect(), next))
        })
    }

    fn close(&self, ledger: u64) -> Asking<()> {
        let ledgers = self.ledgers.clone();
        Box::pin(async move { ledgers.recover_existing(ledger).await.map_err(|error| error.to_string()) })
    }
}

pub fn content(entry: u64) -> [Bytes; 2] {
    [Bytes::from(format!("head {entry} ")), Bytes::from(vec![entry as u8; 200 + entry as usize % 50])]
}

/// Appends entries `from..to`, ten a call, and answers how each call ended.
pub async fn append(client: &ReplicatedLedgers, ledger: u64, from: u64, to: u64) -> Vec<Result<(), LedgerError>> {
    let mut answers = Vec::new();
    for first in (from..to).step_by(10) {
        let (sender, receiver) = oneshot::channel();
        let entries = (first..(first + 10).min(to)).map(content).collect();
        client.append(ledger, first, entries, AppendClass::Message, Box::new(move |result| drop(sender.send(result))));
        answers.push(receiver);
    }
    let mut results = Vec::new();
    for answer in answers {
        results.push(tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer"));
    }
    results
}

/// Writes a ledger and closes it.
pub async fn write(client: &ReplicatedLedgers, ledger: u64, entries: u64) {
    assert!(append(client, ledger, 0, entries).await.iter().all(Result::is_ok));
    client.recover(ledger).await.expect("it is closed");
}

/// Reads all of a ledger.
pub async fn check_readable(client: &ReplicatedLedgers, ledger: u64, entries: u64) {
    let mut next = 0;
    while next < entries {
        for stored in client.read(ledger, next, u64::MAX, 10_000).await.expect("entries that were confirmed") {
            assert_eq!((stored.entry_id, &stored.data[..]), (next, &content(next).concat()[..]));
            next += 1;
        }
    }
}
