//! The client against storage nodes in this process, each with a log on a real disk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_ensemble::placement::Place;
use geminga_ensemble::repair::{NodeTable, NodeView, RepairReport, Standing};
use geminga_ensemble::{LedgerMetadata, LedgerState, Quorum};
use geminga_ledger_client::{AppendClass, LedgerClient, LedgerError, StoredEntry};
use geminga_log::{Append, Log, LogOptions};
use geminga_metadata::{Balanced, BundleRecord, MemoryStore, Metadata};
use geminga_replicated_ledgers::{
    CopyMeter, NodeDirectory, NodeInfo, ReplicatedLedgers, ReplicationOptions, ZonePolicy,
};
use geminga_storage_node::{NodeOptions, StorageNode, serve};
use geminga_wire_bookkeeper::{Digest, DigestKind};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

struct Node {
    folder: PathBuf,
    address: String,
    stop: watch::Sender<bool>,
    log: Log,
    node: Arc<StorageNode>,
    serving: tokio::task::JoinHandle<()>,
}

impl Node {
    async fn start(folder: PathBuf, address: &str) -> Node {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let options = LogOptions { segment_bytes: 4 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(&folder.join("log"), options).expect("an empty or recovered log");
        let (stop, stopped) = watch::channel(false);
        let node = StorageNode::new(log.clone(), NodeOptions::new(256 << 20));
        let serving = tokio::spawn(serve(listener, node.clone(), stopped));
        Node { folder, address, stop, log, node, serving }
    }

    /// Ends its connections and its log.
    async fn end(self) -> (PathBuf, String) {
        self.stop.send_replace(true);
        self.serving.await.expect("it ends");
        self.log.close();
        (self.folder, self.address)
    }
}

#[derive(Clone, Default)]
struct Directory(Arc<std::sync::Mutex<Vec<NodeInfo>>>);

impl NodeDirectory for Directory {
    fn nodes(&self) -> Vec<NodeInfo> {
        self.0.lock().unwrap().clone()
    }
}

struct Cluster {
    _folder: TempDir,
    nodes: BTreeMap<String, Node>,
    directory: Directory,
    metadata: Metadata,
}

impl Cluster {
    async fn start(count: usize) -> Cluster {
        let folder = TempDir::new().expect("a temporary folder");
        let (mut nodes, directory) = (BTreeMap::new(), Directory::default());
        for n in 0..count {
            let own = folder.path().join(format!("node-{n}"));
            std::fs::create_dir_all(own.join("log")).expect("a folder");
            let node = Node::start(own, "127.0.0.1:0").await;
            directory.0.lock().unwrap().push(NodeInfo {
                id: format!("node-{n}"),
                address: node.address.clone(),
                place: Place { region: "region".to_owned(), zone: format!("zone-{}", n % 3) },
                is_alive: true,
                is_writable: true,
                is_draining: false,
            });
            nodes.insert(format!("node-{n}"), node);
        }
        Cluster { _folder: folder, nodes, directory, metadata: Metadata::new(Arc::new(MemoryStore::default())) }
    }

    fn client(&self, ensemble: u32, write: u32, ack: u32) -> ReplicatedLedgers {
        self.client_with(Quorum { ensemble, write, ack }, ZonePolicy::default())
    }

    fn client_with(&self, quorum: Quorum, zones: ZonePolicy) -> ReplicatedLedgers {
        let options = ReplicationOptions {
            quorum,
            zones,
            call_timeout: Duration::from_secs(2),
            outbound_bytes: 64 << 20,
            tls: None,
        };
        ReplicatedLedgers::new(self.metadata.clone(), Arc::new(self.directory.clone()), options)
    }

    async fn wait_until_it_is_left(&self, ledger: u64, node: &String) {
        let left = async {
            while self.ledger(ledger).await.last_fragment().ensemble.contains(node) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), left).await.expect("its writer leaves it");
    }

    /// Has one node of the ledger given up, and another one take its place.
    async fn repair_without(&self, lost: &String, ledger: u64, meter: &Arc<CopyMeter>) -> RepairReport {
        let view = |info: NodeInfo| {
            let standing = if info.id == *lost { Standing::Lost } else { Standing::Writable };
            (info.id, NodeView { place: info.place, standing, free_bytes: None })
        };
        let nodes: NodeTable = self.directory.nodes().into_iter().map(view).collect();
        self.client(3, 3, 2).repair(ledger, watch::channel(nodes).1, meter, |_| ()).await.expect("metadata")
    }

    async fn ledger(&self, id: u64) -> LedgerMetadata {
        self.metadata.get_ledger::<LedgerMetadata>(id).await.expect("metadata").expect("it exists").value
    }
}

fn content(entry: u64) -> [Bytes; 2] {
    [Bytes::from(format!("head {entry} ")), Bytes::from(vec![entry as u8; 200 + entry as usize % 50])]
}

/// Appends entries `from..to`, ten a call, and answers how each call ended.
async fn append(client: &ReplicatedLedgers, ledger: u64, from: u64, to: u64) -> Vec<Result<(), LedgerError>> {
    let mut answers = Vec::new();
    for first in (from..to).step_by(10) {
        let (sender, receiver) = oneshot::channel();
        let entries = (first..(first + 10).min(to)).map(content).collect();
        client.append(ledger, first, entries, AppendClass::Message, Box::new(move |result| drop(sender.send(result))));
        answers.push(receiver);
    }
    let mut results = Vec::new();
    for answer in answers {
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
        results.push(answer.expect("an answer in time").expect("an answer"));
    }
    results
}

async fn check(client: &ReplicatedLedgers, ledger: u64, count: u64) {
    let mut next = 0;
    while next < count {
        let entries = client.read(ledger, next, u64::MAX, 10_000).await.expect("entries that were confirmed");
        for StoredEntry { entry_id, data } in entries {
            assert_eq!(entry_id, next);
            assert_eq!(data, content(entry_id).concat());
            next += 1;
        }
    }
    assert_eq!(next, count);
    let beyond = client.read(ledger, count, u64::MAX, 10_000).await;
    assert!(matches!(beyond, Err(LedgerError::NoSuchEntry { .. })), "{beyond:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_written_read_closed_and_read_by_another() {
    let cluster = Cluster::start(4).await;
    for (ledger, (ensemble, write, ack)) in [(7, (3, 3, 2)), (8, (4, 2, 2)), (9, (1, 1, 1))] {
        let client = cluster.client(ensemble, write, ack);
        assert!(append(&client, ledger, 0, 500).await.iter().all(Result::is_ok));
        check(&client, ledger, 500).await;
        assert_eq!(client.recover(ledger).await.expect("it is closed"), Some(499));
        let metadata = cluster.ledger(ledger).await;
        assert!(matches!(metadata.state, LedgerState::Closed { entries: 500, .. }), "{metadata:?}");
        check(&cluster.client(3, 3, 2), ledger, 500).await;
    }
}

/// The timers of all connections that a server at this address has, as the system shows them: whether each is that which asks an idle
/// peer for a sign of life.
fn asks_idle_peers(address: &str) -> Vec<bool> {
    let address: std::net::SocketAddr = address.parse().expect("an address");
    let shown = std::fs::read_to_string("/proc/net/tcp").expect("Linux shows it");
    let end = format!(":{:04X}", address.port());
    let connections = shown.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // Ours and theirs, of those that are established.
    let of_server = connections.filter(|it| it[3] == "01" && (it[1].ends_with(&end) || it[2].ends_with(&end)));
    of_server.map(|it| it[5].starts_with("02:")).collect()
}

/// A peer that has no power any more says nothing, and would be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_connection_look_whether_the_other_is_there() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(1, 1, 1);
    assert!(append(&client, 7, 0, 10).await.iter().all(Result::is_ok));
    let address = &cluster.nodes["node-0"].address;
    let both = async {
        // What is under way has other timers.
        while asks_idle_peers(address) != [true, true] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), both).await;
    assert!(waited.is_ok(), "{:?}", asks_idle_peers(address));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_writer_has_finished_needs_no_recovery() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    for ledger in [7, 8] {
        assert!(append(&client, ledger, 0, 100).await.iter().all(Result::is_ok));
    }
    client.finish(vec![6, 7, 8]).await.expect("never refused");
    for ledger in [7, 8] {
        assert!(matches!(cluster.ledger(ledger).await.state, LedgerState::Closed { entries: 100, .. }));
        let refused = append(&client, ledger, 100, 101).await;
        assert!(matches!(refused[..], [Err(LedgerError::Fenced(_))]), "{refused:?}");
    }
    assert!(cluster.metadata.get_ledger::<LedgerMetadata>(6).await.expect("metadata").is_none());
    for node in std::mem::take(&mut cluster.nodes).into_values() {
        node.end().await;
    }
    assert_eq!(cluster.client(3, 3, 2).recover(7).await.expect("without any node"), Some(99));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_finds_the_end_and_keeps_the_writer_out() {
    let cluster = Cluster::start(3).await;
    let (writer, other) = (cluster.client(3, 3, 2), cluster.client(3, 3, 2));
    assert!(append(&writer, 7, 0, 300).await.iter().all(Result::is_ok));
    assert_eq!(other.recover(7).await.expect("nodes are there"), Some(299));
    let refused = append(&writer, 7, 300, 310).await;
    assert!(matches!(refused[0], Err(LedgerError::Fenced(7))), "{refused:?}");
    check(&other, 7, 300).await;
    assert_eq!(other.recover(7).await.expect("it is closed already"), Some(299));

    assert_eq!(other.recover(8).await.expect("a ledger that nobody has created"), None);
    let late = append(&writer, 8, 0, 10).await;
    assert!(matches!(late[0], Err(LedgerError::Fenced(8))), "{late:?}");
}

/// Its owner slept between naming the ledger and creating it; meanwhile the next owner has recovered it, and deleted it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_owner_brings_no_ledger_into_being() {
    let cluster = Cluster::start(3).await;
    let bundle = "public/default/0x00000000_0xffffffff".parse().expect("a bundle's name");
    let owned =
        |epoch| BundleRecord { owner: Some("broker".to_owned()), incarnation: 1, epoch, balanced: Balanced::default() };
    let version = cluster.metadata.put_bundle(&bundle, &owned(1), None).await.expect("it is new");
    let sleeper = cluster.client(3, 3, 2);
    for ledger in [7, 8] {
        sleeper.owned_by(ledger, &cluster.metadata.guarded_by_bundle(&bundle, version));
    }
    assert!(append(&sleeper, 8, 0, 10).await.iter().all(Result::is_ok), "it is the owner still");
    cluster.metadata.put_bundle(&bundle, &owned(2), Some(version)).await.expect("nobody else has written it");
    let next = cluster.client(3, 3, 2);
    assert_eq!(next.recover(7).await.expect("it is closed"), None);
    next.delete(vec![7]).await.expect("it is deleted");
    assert!(matches!(append(&sleeper, 7, 0, 10).await[..], [Err(LedgerError::Fenced(7))]));
    assert!(cluster.metadata.get_ledger::<LedgerMetadata>(7).await.expect("metadata").is_none());
}

/// A list names it in the same commit: with its record, what was never begun and what was lost are two things.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_ledger_is_begun_or_closed_and_one_without_a_record_is_an_error() {
    let cluster = Cluster::start(3).await;
    let writer = cluster.client(3, 3, 2);
    for ledger in [7, 8] {
        let announcement = writer.announcement(ledger).expect("metadata know ledgers");
        cluster.metadata.store().commit(vec![announcement]).await.expect("its id is new");
    }
    let again = cluster.metadata.store().commit(writer.announcement(7).into_iter().collect()).await;
    assert!(again.expect_err("its id is in use").is_conflict());
    assert!(matches!(writer.read(7, 0, 0, 1).await, Err(LedgerError::NoSuchEntry { .. })));
    assert!(append(&writer, 7, 0, 100).await.iter().all(Result::is_ok));
    let next = cluster.client(3, 3, 2);
    assert_eq!(next.recover_announced(7).await.expect("it is closed"), Some(99));
    check(&next, 7, 100).await;
    // Nobody began it, and now nobody can.
    assert_eq!(next.recover_announced(8).await.expect("it is closed"), None);
    assert!(matches!(append(&writer, 8, 0, 10).await[..], [Err(LedgerError::Fenced(8))]));
    assert!(matches!(next.recover_announced(9).await, Err(LedgerError::NoRecord(9))));
    assert!(
        cluster.metadata.get_ledger::<LedgerMetadata>(9).await.expect("read").is_none(),
        "and no record is made up"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_ledger_takes_no_more_entries_and_does_not_come_back() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 100).await.iter().all(Result::is_ok));
    client.delete(vec![7]).await.expect("it is deleted");
    assert!(matches!(append(&client, 7, 100, 110).await[..], [Err(LedgerError::Fenced(7))]));
    // As when a ledger that was given up is sealed late.
    assert!(matches!(client.recover(7).await, Err(LedgerError::NoSuchLedger(7))));
    assert!(cluster.metadata.get_ledger::<LedgerMetadata>(7).await.expect("metadata").is_none());
}

/// In one thread, in which nothing happens between the append and the deletion.
#[tokio::test]
async fn a_ledger_that_is_deleted_before_it_is_created_leaves_no_record() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    let (sender, receiver) = oneshot::channel();
    client.append(7, 0, vec![content(0)], AppendClass::Message, Box::new(move |result| drop(sender.send(result))));
    client.delete(vec![7]).await.expect("it is deleted");
    assert!(matches!(receiver.await.expect("an answer"), Err(LedgerError::Fenced(7))));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.metadata.get_ledger::<LedgerMetadata>(7).await.expect("metadata").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_nodes_may_take_for_deleted_are_given_up() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    let first = cluster.metadata.next_ledger_id(0).await.unwrap();
    cluster.nodes.values().for_each(|node| node.log.fill_deleted_gaps(&[(first, first + 100)]));
    assert!(matches!(append(&client, first, 0, 1).await[..], [Err(LedgerError::Fenced(_))]));
    let second = cluster.metadata.next_ledger_id(0).await.unwrap();
    assert!(second > first + 100, "{second} is refused like {first}");
    assert!(matches!(append(&client, second, 0, 1).await[..], [Ok(())]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_a_node_may_have_lost_are_given_up() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    let before = cluster.metadata.next_ledger_id(0).await.unwrap();
    // A node has lost a directory, or finds holes in its log; this broker has a block of ids from before that.
    let lossy = &cluster.nodes["node-0"];
    let bound = Metadata::new(cluster.metadata.store().clone()).fresh_ledger_id().await.unwrap();
    lossy.node.directories().set_limbo_below(bound);
    assert!(matches!(append(&client, before, 0, 1).await[..], [Ok(())]), "the other two have it");
    // The two may be faster than the refusal.
    let mut next = before;
    for _ in 0..50 {
        if next < bound {
            tokio::time::sleep(Duration::from_millis(20)).await;
            next = cluster.metadata.next_ledger_id(0).await.unwrap();
        }
    }
    assert!(next > bound, "{next} is refused like {before}");
    assert!(matches!(append(&client, next, 0, 1).await[..], [Ok(())]));
    client.recover(next).await.expect("it is closed");
    let has_it = async {
        while !lossy.log.knows(next) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), has_it).await.expect("the node takes it");
    assert!(!lossy.log.knows(before) && lossy.node.directories().is_in_limbo(before), "what it may have lost stays so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_does_not_fence_a_ledger_that_is_coming_into_being() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    for ledger in 7..17 {
        let read = async {
            loop {
                match client.read(ledger, 0, 0, 1).await {
                    Ok(entries) => break entries,
                    Err(LedgerError::NoSuchEntry { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let (appended, read) = tokio::join!(append(&client, ledger, 0, 2000), read);
        assert!(appended.iter().all(Result::is_ok), "{:?}", appended.iter().find(|result| result.is_err()));
        assert_eq!(read[0].data, content(0).concat());
        assert_eq!(cluster.ledger(ledger).await.state, LedgerState::Open);
    }
}

/// As when a broker ends after it has begun another ledger, and before it has closed this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_its_writer_left_open_is_closed_by_its_next_reader() {
    let cluster = Cluster::start(3).await;
    let writer = cluster.client(3, 3, 2);
    assert!(append(&writer, 7, 0, 100).await.iter().all(Result::is_ok));
    assert_eq!(cluster.ledger(7).await.state, LedgerState::Open);
    let reader = cluster.client(3, 3, 2);
    check(&reader, 7, 100).await;
    assert!(matches!(cluster.ledger(7).await.state, LedgerState::Closed { entries: 100, .. }));
    assert!(append(&writer, 7, 100, 110).await.iter().all(Result::is_err), "its writer is deposed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_is_replaced_under_load() {
    let mut cluster = Cluster::start(5).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 200).await.iter().all(Result::is_ok));
    let lost = cluster.ledger(7).await.fragments[0].ensemble[1].clone();
    let load = {
        let client = client.clone();
        tokio::spawn(async move { append(&client, 7, 200, 5000).await })
    };
    let ended = cluster.nodes.remove(&lost).expect("it is there").end().await;
    assert!(load.await.expect("no panic").iter().all(Result::is_ok), "nobody notices");
    assert!(append(&client, 7, 5000, 5100).await.iter().all(Result::is_ok));
    let metadata = cluster.ledger(7).await;
    assert!(!metadata.last_fragment().ensemble.contains(&lost), "{metadata:?}");
    check(&client, 7, 5100).await;
    assert_eq!(cluster.client(3, 3, 2).recover(7).await.expect("nodes are there"), Some(5099));
    check(&cluster.client(3, 3, 2), 7, 5100).await;
    let back = Node::start(ended.0, &ended.1).await;
    cluster.nodes.insert(lost, back);
    check(&cluster.client(3, 3, 2), 7, 5100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_spare_nodes_it_goes_on_as_long_as_there_is_an_ack_quorum() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 100).await.iter().all(Result::is_ok));
    cluster.nodes.pop_first().expect("three").1.end().await;
    assert!(append(&client, 7, 100, 300).await.iter().all(Result::is_ok));
    cluster.nodes.pop_first().expect("two").1.end().await;
    assert!(append(&client, 7, 300, 310).await[0].is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_leaves_a_node_that_is_to_be_emptied_if_there_is_another() {
    let cluster = Cluster::start(4).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 100).await.iter().all(Result::is_ok));
    let ensemble = cluster.ledger(7).await.fragments[0].ensemble.clone();
    let drain = |id: &String| {
        let mut nodes = cluster.directory.0.lock().unwrap();
        let info = nodes.iter_mut().find(|info| info.id == *id).expect("it is there");
        (info.is_draining, info.is_writable) = (true, false);
    };
    drain(&ensemble[1]);
    client.nodes_changed();
    assert!(append(&client, 7, 100, 200).await.iter().all(Result::is_ok));
    cluster.wait_until_it_is_left(7, &ensemble[1]).await;
    // Nobody could take the place of the next one, which goes on meanwhile.
    drain(&ensemble[0]);
    client.nodes_changed();
    assert!(append(&client, 7, 200, 300).await.iter().all(Result::is_ok));
    assert!(cluster.ledger(7).await.last_fragment().ensemble.contains(&ensemble[0]));
    assert_eq!(client.recover(7).await.expect("it is closed"), Some(299));
    check(&client, 7, 300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_writer_leaves_a_node_that_is_gone_and_no_other() {
    let mut cluster = Cluster::start(5).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 100).await.iter().all(Result::is_ok));
    let ensemble = cluster.ledger(7).await.fragments[0].ensemble.clone();
    cluster.nodes.remove(&ensemble[1]).expect("it is there").end().await;
    // Two do not say that they live, and one of them does.
    for info in cluster.directory.0.lock().unwrap().iter_mut() {
        let says_so = info.id != ensemble[0] && info.id != ensemble[1];
        (info.is_alive, info.is_writable) = (says_so, says_so);
    }
    client.nodes_changed();
    cluster.wait_until_it_is_left(7, &ensemble[1]).await;
    assert!(cluster.ledger(7).await.last_fragment().ensemble.contains(&ensemble[0]));
    assert!(append(&client, 7, 100, 200).await.iter().all(Result::is_ok));
    check(&client, 7, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_leaves_a_node_of_which_another_has_the_address() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 100).await.iter().all(Result::is_ok));
    let gone = cluster.ledger(7).await.fragments[0].ensemble[1].clone();
    let (folder, address) = cluster.nodes.remove(&gone).expect("it is there").end().await;
    let own = folder.with_file_name("another");
    std::fs::create_dir_all(own.join("log")).expect("a folder");
    cluster.nodes.insert("another".to_owned(), Node::start(own, &address).await);
    // The empty one is taken for the one that is gone, until the news come.
    assert!(client.free_space(&gone).await.is_some());
    for info in cluster.directory.0.lock().unwrap().iter_mut().filter(|info| info.id == gone) {
        info.id = "another".to_owned();
    }
    client.nodes_changed();
    cluster.wait_until_it_is_left(7, &gone).await;
    assert!(append(&client, 7, 100, 200).await.iter().all(Result::is_ok));
    check(&client, 7, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_quorum_is_in_as_many_zones_as_it_has_to_be() {
    let mut cluster = Cluster::start(5).await;
    let quorum = Quorum { ensemble: 3, write: 3, ack: 2 };
    let zones = |refuses| ZonePolicy { min_per_ack_quorum: 2, refuses };
    let (strict, lenient) = (cluster.client_with(quorum, zones(true)), cluster.client_with(quorum, zones(false)));
    for (ledger, client) in [(7, &strict), (8, &lenient)] {
        assert!(append(client, ledger, 0, 100).await.iter().all(Result::is_ok));
    }
    // Two zones are left, of two nodes each. Two of three nodes would be in one.
    cluster.nodes.remove("node-2").expect("it is there").end().await;
    cluster.directory.0.lock().unwrap().retain(|info| info.id != "node-2");
    for (ledger, client) in [(7, &strict), (8, &lenient)] {
        assert!(append(client, ledger, 100, 200).await.iter().all(Result::is_ok), "an ack quorum is there");
    }
    cluster.wait_until_it_is_left(8, &"node-2".to_owned()).await;
    let stays = cluster.ledger(7).await.last_fragment().ensemble.clone();
    assert!(stays.contains(&"node-2".to_owned()), "rather a place that is empty: {stays:?}");
    assert!(append(&lenient, 10, 0, 100).await.iter().all(Result::is_ok));
    let refused = append(&strict, 9, 0, 10).await;
    assert!(matches!(&refused[..], [Err(LedgerError::Io(reason))] if reason.contains("zones")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_say_how_much_space_they_have() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(1, 1, 1);
    assert!(client.free_space(&"node-0".to_owned()).await.expect("it says so") > 1 << 20);
}

/// As when its machine was given another one: the disk is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_at_another_address_is_written_to_and_read_there() {
    let mut cluster = Cluster::start(3).await;
    // Of one it needs all three, of the other any two.
    let (strict, client) = (cluster.client(3, 3, 3), cluster.client(3, 3, 2));
    for (ledger, client) in [(7, &strict), (8, &client)] {
        assert!(append(client, ledger, 0, 100).await.iter().all(Result::is_ok));
    }
    strict.finish(vec![7]).await.expect("never refused");
    let (folder, old) = cluster.nodes.remove("node-1").expect("it is there").end().await;
    // Nobody else is to have the old address meanwhile.
    let _old = TcpListener::bind(&old).await.expect("its port is free");
    let moved = Node::start(folder, "127.0.0.1:0").await;
    for info in cluster.directory.0.lock().unwrap().iter_mut().filter(|info| info.address == old) {
        info.address = moved.address.clone();
    }
    cluster.nodes.insert("node-1".to_owned(), moved);
    strict.nodes_changed();
    client.nodes_changed();
    for (ledger, client, from) in [(8, &client, 100), (9, &strict, 0)] {
        let appended = append(client, ledger, from, 200).await;
        assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    }
    strict.finish(vec![9]).await.expect("never refused");
    assert_eq!(client.recover(8).await.expect("it is closed"), Some(199));
    check(&client, 8, 200).await;
    for id in ["node-0", "node-2"] {
        cluster.nodes.remove(id).expect("it is there").end().await;
    }
    for reader in [strict, cluster.client(3, 3, 2)] {
        check(&reader, 7, 100).await;
        check(&reader, 9, 200).await;
    }
}

/// As one whose disk hangs: it takes connections, and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_round_a_node_that_hangs() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(3, 3, 2);
    assert!(append(&client, 7, 0, 100).await.iter().all(Result::is_ok));
    client.finish(vec![7]).await.expect("never refused");
    // The one that is asked for entry 0 first.
    let first = cluster.ledger(7).await.fragments[0].ensemble[0].clone();
    let (_, address) = cluster.nodes.remove(&first).expect("it is there").end().await;
    let silent = TcpListener::bind(&address).await.expect("its port is free");
    let (reader, since) = (cluster.client(3, 3, 2), Instant::now());
    let read = reader.read(7, 0, 99, 100_000).await.expect("others have it");
    let took = since.elapsed();
    assert_eq!(read[0].data, content(0).concat());
    assert!(took < Duration::from_secs(2), "a call may take two seconds, and this one took {took:?}");
    let asked = tokio::time::timeout(Duration::from_secs(1), silent.accept()).await;
    assert!(asked.is_ok(), "it was not asked");
}

/// Turns a bit of what a node has of entries before it was stored, as on the way to it: the node finds nothing wrong with them.
async fn spoil(node: &Node, ledger: u64, entries: Range<u64>) {
    let spoilt = |entry| {
        let mut body = node.log.read(ledger, entry).expect("it is there").to_vec();
        *body.last_mut().expect("it has a payload") ^= 1;
        Append { ledger, entry, parts: [body.into(), Bytes::new(), Bytes::new()], reserve: true }
    };
    let (sender, receiver) = oneshot::channel();
    let key = node.log.key(ledger).expect("it has entries");
    let done = Box::new(move |result| drop(sender.send(result)));
    node.log.append_to_replica(entries.map(spoilt).collect(), key, true, done);
    receiver.await.expect("an answer").expect("a recovery may add again what is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_with_a_wrong_digest_is_taken_from_another_node() {
    let cluster = Cluster::start(4).await;
    // All three have every entry.
    let writer = cluster.client(3, 3, 3);
    for ledger in [7, 8, 9] {
        assert!(append(&writer, ledger, 0, 100).await.iter().all(Result::is_ok));
    }
    writer.finish(vec![7]).await.expect("never refused");
    // With a bad last entry, a recovery would ask the node for no other.
    for (ledger, entries) in [(7, 0..100), (8, 0..99)] {
        let bad = cluster.ledger(ledger).await.fragments[0].ensemble[0].clone();
        spoil(&cluster.nodes[&bad], ledger, entries).await;
    }
    check(&cluster.client(3, 3, 2), 7, 100).await;

    assert_eq!(cluster.client(3, 3, 2).recover(8).await.expect("others have it"), Some(99));
    check(&cluster.client(3, 3, 2), 8, 100).await;
    for id in cluster.ledger(9).await.fragments[0].ensemble.clone() {
        spoil(&cluster.nodes[&id], 9, 0..99).await;
    }
    let nobody_has_it = cluster.client(3, 3, 2).recover(9).await;
    assert!(matches!(nobody_has_it, Err(LedgerError::Io(_))), "{nobody_has_it:?}");

    let before = cluster.ledger(7).await.fragments[0].ensemble.clone();
    let meter = Arc::new(CopyMeter::new(1 << 30));
    let report = cluster.repair_without(&before[1], 7, &meter).await;
    assert!(report.blockers.is_empty(), "{report:?}");
    assert!(meter.failed_reads.load(Ordering::Relaxed) > 0, "it has met none of them");
    let taker = cluster.ledger(7).await.fragments[0].ensemble[1].clone();
    assert!(!before.contains(&taker), "{taker}");
    let digest = Digest::new(7, DigestKind::Crc32c, b"");
    for entry in 0..100 {
        let copy = cluster.nodes[&taker].log.read(7, entry).expect("it was copied");
        let (_, data) = digest.open(entry as i64, copy).expect("a good copy");
        assert_eq!(data, content(entry).concat());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_copies_no_faster_than_it_may() {
    let cluster = Cluster::start(4).await;
    let writer = cluster.client(3, 3, 2);
    assert!(append(&writer, 7, 0, 100).await.iter().all(Result::is_ok));
    writer.finish(vec![7]).await.expect("never refused");
    let lost = cluster.ledger(7).await.fragments[0].ensemble[1].clone();
    let (meter, since) = (Arc::new(CopyMeter::new(10_000)), Instant::now());
    let report = cluster.repair_without(&lost, 7, &meter).await;
    assert!(report.blockers.is_empty(), "{report:?}");
    let (bytes, took) = (meter.bytes_written.load(Ordering::Relaxed), since.elapsed().as_secs_f64());
    assert!(bytes > 20_000, "{bytes} bytes were copied");
    // The last copy need not wait for itself.
    assert!(took >= (bytes - 500) as f64 / 10_000.0, "{bytes} bytes in {took} s");
}
