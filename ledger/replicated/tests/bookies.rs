//! The client against real BookKeeper bookies, which this test starts as processes: `BOOKIE_CLASSPATH` names BookKeeper's
//! server and the class `Bookie` of tests/bench/bookkeeper, a bookie that needs no ZooKeeper.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_ensemble::placement::Place;
use geminga_ensemble::{LedgerMetadata, LedgerState, Quorum};
use geminga_ledger_client::{AppendClass, LedgerClient, LedgerError, StoredEntry};
use geminga_metadata::{MemoryStore, Metadata};
use geminga_replicated_ledgers::{NodeDirectory, NodeInfo, ReplicatedLedgers, ReplicationOptions, ZonePolicy};
use tempfile::TempDir;
use tokio::sync::oneshot;

const START_LIMIT: Duration = Duration::from_secs(120);
/// What a bookie writes to its log once it serves.
const STARTED: &str = "Started component bookie-server";
/// As Pulsar sets them, but for caches, which are small here, and without deleting ledgers that the bookie's own metadata,
/// of which there are none, do not name.
const SETTINGS: &str = "
ledgerStorageClass=org.apache.bookkeeper.bookie.storage.ldb.DbLedgerStorage
dbStorage_writeCacheMaxSizeMb=32
dbStorage_readAheadCacheMaxSizeMb=16
dbStorage_rocksDB_blockCacheSize=8388608
journalMaxGroupWaitMSec=1
metadataServiceUri=memory://here
allowLoopback=true
listeningInterface=lo
advertisedAddress=127.0.0.1
httpServerEnabled=false
statsProviderClass=org.apache.bookkeeper.stats.NullStatsProvider
autoRecoveryDaemonEnabled=false
gcWaitTime=86400000
minorCompactionInterval=90000
majorCompactionInterval=180000
diskUsageThreshold=0.99
diskUsageWarnThreshold=0.98
";
const JVM: [&str; 5] = [
    "-Xmx256m",
    "-XX:MaxDirectMemorySize=256m",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "-Dio.netty.tryReflectionSetAccessible=true",
];

/// A bookie, killed when dropped.
struct Bookie {
    address: String,
    process: Child,
}

impl Bookie {
    fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        // Free again at once, and nobody else is quick enough.
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
        let place = |name: &str| folder.join(name).display().to_string();
        let own = format!(
            "bookiePort={port}\njournalDirectory={}\nledgerDirectories={}\n{SETTINGS}",
            place("journal"),
            place("ledgers")
        );
        std::fs::write(folder.join("bookkeeper.conf"), own).expect("a file");
        let log = File::create(folder.join("log")).expect("a file");
        let classes = std::env::var("BOOKIE_CLASSPATH").expect("BOOKIE_CLASSPATH names BookKeeper's classes");
        let process = Command::new("java")
            .args(JVM)
            .args(["-cp", &classes, "Bookie", "--conf", &place("bookkeeper.conf")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("a JVM");
        Bookie { address: format!("127.0.0.1:{port}"), process }
    }

    fn wait(&mut self, folder: &Path) {
        let since = Instant::now();
        loop {
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            // It listens before it takes entries.
            if log.contains(STARTED) && TcpStream::connect(&self.address).is_ok() {
                return;
            }
            let gone = self.process.try_wait().expect("a child").is_some();
            if gone || since.elapsed() > START_LIMIT {
                panic!("the bookie does not serve; its log ends: {}", &log[log.len().saturating_sub(4000)..]);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// As by SIGKILL.
    fn kill(&mut self) {
        self.process.kill().expect("it was alive");
        self.process.wait().expect("a child");
    }
}

impl Drop for Bookie {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Directory(Vec<NodeInfo>);

impl NodeDirectory for Directory {
    fn nodes(&self) -> Vec<NodeInfo> {
        self.0.clone()
    }
}

struct Bookies {
    bookies: Vec<Bookie>,
    directory: Arc<Directory>,
    metadata: Metadata,
    _folder: TempDir,
}

impl Bookies {
    fn start(count: usize) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let place = |index: usize| folder.path().join(format!("bookie-{index}"));
        // All at once, as each takes some seconds.
        let mut bookies: Vec<Bookie> = (0..count).map(|index| Bookie::start(&place(index))).collect();
        bookies.iter_mut().enumerate().for_each(|(index, bookie)| bookie.wait(&place(index)));
        let info = |(index, bookie): (usize, &Bookie)| NodeInfo {
            id: format!("bookie-{index}"),
            address: bookie.address.clone(),
            place: Place { region: "region".to_owned(), zone: format!("zone-{index}") },
            is_alive: true,
            is_writable: true,
            is_draining: false,
        };
        let directory = Arc::new(Directory(bookies.iter().enumerate().map(info).collect()));
        Bookies { bookies, directory, metadata: Metadata::new(Arc::new(MemoryStore::default())), _folder: folder }
    }

    fn client(&self, quorum: Quorum) -> Ledgers {
        let options = ReplicationOptions {
            quorum,
            zones: ZonePolicy::default(),
            call_timeout: Duration::from_secs(5),
            outbound_bytes: 64 << 20,
            tls: None,
        };
        Ledgers(ReplicatedLedgers::new(self.metadata.clone(), self.directory.clone(), options))
    }

    async fn ledger(&self, id: u64) -> LedgerMetadata {
        self.metadata.get_ledger::<LedgerMetadata>(id).await.expect("metadata").expect("it exists").value
    }
}

fn content(entry: u64) -> [Bytes; 2] {
    [Bytes::from(format!("entry {entry} ")), Bytes::from(vec![entry as u8; 100 + entry as usize % 3000])]
}

#[derive(Clone)]
struct Ledgers(ReplicatedLedgers);

impl Ledgers {
    /// Appends entries `from..to`, ten a call and all calls at once, and answers how the first one ended that failed.
    async fn append(&self, ledger: u64, from: u64, to: u64) -> Result<(), LedgerError> {
        let mut answers = Vec::new();
        for first in (from..to).step_by(10) {
            let (sender, receiver) = oneshot::channel();
            let entries = (first..(first + 10).min(to)).map(content).collect();
            let done = Box::new(move |result| drop(sender.send(result)));
            self.0.append(ledger, first, entries, AppendClass::Message, done);
            answers.push(receiver);
        }
        for answer in answers {
            let answer = tokio::time::timeout(Duration::from_secs(60), answer).await;
            answer.expect("an answer in time").expect("an answer")?;
        }
        Ok(())
    }

    async fn check(&self, ledger: u64, count: u64) {
        let mut next = 0;
        while next < count {
            let entries = self.0.read(ledger, next, u64::MAX, 100_000).await.expect("entries that were confirmed");
            for StoredEntry { entry_id, data } in entries {
                assert_eq!(entry_id, next);
                assert_eq!(data, content(entry_id).concat());
                next += 1;
            }
        }
        let beyond = self.0.read(ledger, count, u64::MAX, 10_000).await;
        assert!(matches!(beyond, Err(LedgerError::NoSuchEntry { .. })), "{beyond:?}");
    }
}

const ALL: Quorum = Quorum { ensemble: 3, write: 3, ack: 2 };
const STRIPED: Quorum = Quorum { ensemble: 3, write: 2, ack: 2 };

async fn a_ledger_is_written_read_closed_and_read_by_another(bookies: &Bookies) {
    for (ledger, quorum) in [(1, ALL), (2, STRIPED)] {
        let client = bookies.client(quorum);
        client.append(ledger, 0, 1000).await.expect("bookies that take entries");
        client.check(ledger, 1000).await;
        assert_eq!(client.0.recover(ledger).await.expect("it is closed"), Some(999));
        let metadata = bookies.ledger(ledger).await;
        assert!(matches!(metadata.state, LedgerState::Closed { entries: 1000, .. }), "{metadata:?}");
        bookies.client(ALL).check(ledger, 1000).await;
    }
}

async fn a_recovery_fences_the_writer(bookies: &Bookies) {
    for (ledger, quorum) in [(3, ALL), (4, STRIPED)] {
        let (writer, other) = (bookies.client(quorum), bookies.client(quorum));
        writer.append(ledger, 0, 300).await.expect("bookies that take entries");
        assert_eq!(other.0.recover(ledger).await.expect("bookies are there"), Some(299));
        let refused = writer.append(ledger, 300, 310).await;
        assert!(matches!(refused, Err(LedgerError::Fenced(_))), "{refused:?}");
        other.check(ledger, 300).await;
    }
}

async fn a_bookie_is_killed_under_the_writer(bookies: &mut Bookies) {
    let client = bookies.client(ALL);
    client.append(5, 0, 200).await.expect("bookies that take entries");
    let load = tokio::spawn({
        let client = client.clone();
        async move { client.append(5, 200, 5000).await }
    });
    bookies.bookies[1].kill();
    load.await.expect("no panic").expect("two of three are enough");
    client.append(5, 5000, 5100).await.expect("two of three are enough");
    client.check(5, 5100).await;
    // Another client recovers it, and one from before the kill, with those that are left.
    assert_eq!(bookies.client(ALL).0.recover(5).await.expect("an ack quorum is there"), Some(5099));
    bookies.client(ALL).check(5, 5100).await;
    bookies.client(ALL).check(1, 1000).await;
    let refused = client.append(5, 5100, 5110).await;
    assert!(matches!(refused, Err(LedgerError::Fenced(_))), "{refused:?}");
}

/// In one test, as the bookies take longer to start than all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookies_do_what_storage_nodes_do() {
    let mut bookies = Bookies::start(3);
    a_ledger_is_written_read_closed_and_read_by_another(&bookies).await;
    a_recovery_fences_the_writer(&bookies).await;
    a_bookie_is_killed_under_the_writer(&mut bookies).await;
}
