//! The server goes away: killed, stopped, or out of reach in the middle of a COMMIT.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use geminga_metadata::{Expect, MetadataError, MetadataStore, Op, Watch, WatchEvent};
use geminga_metadata_sql::PostgresStore;
use geminga_test_postgres::Server;

use crate::proxy::{Fate, Proxy};
use crate::{database, open};

/// What callers were told about their commits.
#[derive(Default)]
struct Told {
    done: Vec<String>,
    not_done: Vec<String>,
    unknown: Vec<String>,
}

/// Commits pairs of records, each under a new name, until told to stop. A commit that is applied twice is a conflict.
async fn commit_pairs(store: Arc<PostgresStore>, task: usize, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut index = 0;
    while !stop.load(Ordering::SeqCst) {
        let name = format!("{task}-{index}");
        index += 1;
        let pair = ["a", "b"].map(|half| Op::put(format!("{half}/{name}"), "x", Expect::Absent));
        match store.commit(pair.into()).await {
            Ok(_) => told.done.push(name),
            Err(MetadataError::Unavailable(_)) => told.not_done.push(name),
            Err(MetadataError::OutcomeUnknown(_)) => told.unknown.push(name),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    told
}

/// The keys that a watch tells of until `a/end`. Where it has fallen behind, which it may on a busy machine, they are read.
async fn follow(mut watch: Watch, store: Arc<PostgresStore>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while !seen.contains("a/end") {
        match watch.next().await.expect("the store is open") {
            WatchEvent::Changed(key) => drop(seen.insert(key)),
            WatchEvent::Resync => {
                let records = store.scan("a/", None, usize::MAX).await.unwrap();
                seen.extend(records.into_iter().map(|(key, _)| key));
            }
        }
    }
    seen
}

/// Killed and started again in the middle of commits, three times; the last time it stays away for longer than callers
/// wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_keeps_what_it_acknowledged() {
    let server = Server::start();
    let database = server.create_database();
    let (store, other) = (open(&server.url(&database)).await, open(&server.url(&database)).await);
    let watcher = tokio::spawn(follow(other.watch("a/").await.unwrap(), other));
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..8).map(|task| tokio::spawn(commit_pairs(store.clone(), task, stop.clone()))).collect();
    for away_ms in [0, 300, 6000] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(away_ms)).await;
        server.start_again();
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    stop.store(true, Ordering::SeqCst);
    let mut told = Told::default();
    for task in tasks {
        let Told { done, not_done, unknown } = task.await.unwrap();
        told.done.extend(done);
        told.not_done.extend(not_done);
        told.unknown.extend(unknown);
    }
    println!("{} done, {} not done, {} unknown", told.done.len(), told.not_done.len(), told.unknown.len());
    assert!(!told.done.is_empty() && told.not_done.len() + told.unknown.len() > 0, "some waited for too long");
    let halves = async |name: &str| {
        let [one, other] = ["a", "b"].map(|half| format!("{half}/{name}"));
        (store.get(&one).await.unwrap().is_some(), store.get(&other).await.unwrap().is_some())
    };
    for name in &told.done {
        assert_eq!(halves(name).await, (true, true), "{name} was acknowledged");
    }
    for name in &told.not_done {
        assert_eq!(halves(name).await, (false, false), "{name} was refused");
    }
    for name in &told.unknown {
        let (one, other) = halves(name).await;
        assert_eq!(one, other, "{name} is half done");
    }
    store.commit(vec![Op::put("a/end", "", Expect::Absent)]).await.unwrap();
    let seen = watcher.await.unwrap();
    assert!(told.done.iter().all(|name| seen.contains(&format!("a/{name}"))), "the watch has seen every commit");
}

/// A server that does not answer, with connections that stay open.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_ends_in_time() {
    let server = Server::start();
    let database = server.create_database();
    let store = open(&server.url(&database)).await;
    store.commit(vec![Op::put("k", "1", Expect::Any)]).await.unwrap();
    let mut watch = store.watch("k").await.unwrap();
    server.freeze();
    let started = Instant::now();
    let (read, written, allocated) =
        tokio::join!(store.get("k"), store.commit(vec![Op::put("k", "2", Expect::Any)]), store.allocate("s", 1),);
    let elapsed = started.elapsed();
    server.thaw();
    for error in [read.unwrap_err(), written.unwrap_err(), allocated.unwrap_err()] {
        assert!(matches!(error, MetadataError::Unavailable(_)), "{error}");
    }
    assert!(elapsed < Duration::from_millis(10_500), "{elapsed:?}");
    assert_eq!(store.get("k").await.unwrap().unwrap().value, "1");
    store.commit(vec![Op::put("k", "3", Expect::Any)]).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("no event");
    assert_eq!(event, Some(WatchEvent::Changed("k".into())));
}

#[tokio::test]
async fn a_commit_whose_connection_is_lost_takes_place_once() {
    let (server, database) = database();
    let proxy = Proxy::start(server.port()).await;
    let store = open(&server.url(&database).replace(&server.port().to_string(), &proxy.port.to_string())).await;
    let mut version = store.commit(vec![Op::put("n", "0", Expect::Absent)]).await.unwrap()[0];
    for fate in [Fate::LosesItsAnswer, Fate::IsLost, Fate::LosesItsAnswer] {
        proxy.set(fate);
        let op = Op::put("n", "x", Expect::Version(version));
        let next = store.commit(vec![op]).await.unwrap()[0];
        assert!(proxy.is_spent());
        assert_eq!(next, version + 1, "it was applied once");
        assert_eq!(store.get("n").await.unwrap().unwrap().version, next);
        version = next;
    }
    assert_eq!(store.allocate("s", 1).await.unwrap(), 1);
    proxy.set(Fate::LosesItsAnswer);
    assert_eq!(store.allocate("s", 1).await.unwrap(), 2);
    assert_eq!(store.allocate("s", 1).await.unwrap(), 3, "nothing was allocated twice");

    proxy.set(Fate::LosesItsServer);
    let error = store.commit(vec![Op::put("n", "y", Expect::Version(version))]).await.unwrap_err();
    assert!(matches!(error, MetadataError::OutcomeUnknown(_)), "{error}");
    let error = store.commit(vec![Op::put("n", "z", Expect::Any)]).await.unwrap_err();
    assert!(matches!(error, MetadataError::Unavailable(_)), "nothing was sent: {error}");
    proxy.set(Fate::Passes);
    let record = store.get("n").await.unwrap().unwrap();
    assert_eq!((record.value, record.version), ("y".into(), version + 1), "as it turns out, it was applied");
}

/// Time is over when the writer has found its commit and only has to end the transaction in which it looked.
#[tokio::test]
async fn a_commit_that_was_found_again_is_not_said_to_have_failed() {
    let (server, database) = database();
    let proxy = Proxy::start(server.port()).await;
    let store = open(&server.url(&database).replace(&server.port().to_string(), &proxy.port.to_string())).await;
    proxy.set(Fate::LosesItsAnswerAndStalls);
    let outcome = store.commit(vec![Op::put("n", "x", Expect::Absent)]).await;
    assert!(proxy.is_spent());
    assert!(matches!(outcome, Ok(_) | Err(MetadataError::OutcomeUnknown(_))), "it took place: {outcome:?}");
    assert_eq!(store.get("n").await.unwrap().unwrap().value, "x");
}

/// As when a process is stopped, or its machine vanishes, in a transaction: the server ends it, and the others go on.
#[tokio::test]
async fn a_process_that_stalls_does_not_keep_the_lock() {
    let (server, database) = database();
    let proxy = Proxy::start(server.port()).await;
    let other = open(&server.url(&database)).await;
    let stalled = open(&server.url(&database).replace(&server.port().to_string(), &proxy.port.to_string())).await;
    proxy.set(Fate::Stalls);
    let started = Instant::now();
    let commit = |store: Arc<PostgresStore>| async move { store.commit(vec![Op::put("k", "", Expect::Any)]).await };
    let stalling = tokio::spawn(commit(stalled.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(other.get("k").await.unwrap(), None);
    assert!(started.elapsed() < Duration::from_secs(3), "reads do not wait");
    while let Err(error) = commit(other.clone()).await {
        assert!(matches!(error, MetadataError::Unavailable(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(15), "the lock is still held");
    }
    assert!(started.elapsed() > Duration::from_secs(8), "the lock was held: {:?}", started.elapsed());
    assert!(matches!(stalling.await.unwrap(), Err(MetadataError::Unavailable(_))));
    commit(stalled).await.unwrap();
}
