//! Several processes on one database: what one commits, the others see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Expect, LeaseOutcome, MetadataError, MetadataStore, Op, Watch, WatchEvent};
use geminga_metadata_sql::PostgresStore;

use crate::{database, open};

async fn put(store: &PostgresStore, key: &str, value: &str) {
    store.commit(vec![Op::put(key, value.to_owned(), Expect::Any)]).await.unwrap();
}

async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("no event").expect("the store is open")
}

fn changed(key: &str) -> WatchEvent {
    WatchEvent::Changed(key.to_owned())
}

#[tokio::test]
async fn reads_watches_and_sequences() {
    let (server, database) = database();
    let (one, other) = (open(&server.url(&database)).await, open(&server.url(&database)).await);
    let mut watch = other.watch("w/").await.unwrap();
    for round in 0..50 {
        put(&one, "w/1", &round.to_string()).await;
        assert_eq!(other.get("w/1").await.unwrap().unwrap().value, round.to_string());
        assert_eq!(next(&mut watch).await, changed("w/1"));
    }
    put(&one, "v/1", "").await;
    other.commit(vec![Op::delete_prefix("w/"), Op::put("w/2", "", Expect::Any)]).await.unwrap();
    assert_eq!(next(&mut watch).await, changed("w/1"));
    assert_eq!(next(&mut watch).await, changed("w/2"));
    assert_eq!(one.allocate("s", 5).await.unwrap(), 1);
    assert_eq!(other.allocate("s", 5).await.unwrap(), 6);
}

#[tokio::test]
async fn leases() {
    let (server, database) = database();
    let (one, other) = (open(&server.url(&database)).await, open(&server.url(&database)).await);
    let apart = one.now_ms().abs_diff(other.now_ms());
    assert!(apart < 1000, "clocks of one server are {apart} ms apart");
    let ttl = Duration::from_millis(500);
    let LeaseOutcome::Acquired(lease) = one.acquire_lease("l", "one", ttl).await.unwrap() else {
        panic!("a free lease is acquired")
    };
    assert_eq!(other.acquire_lease("l", "other", ttl).await.unwrap(), LeaseOutcome::Held(lease.clone()));
    tokio::time::sleep(Duration::from_millis(700)).await;
    let LeaseOutcome::Acquired(taken) = other.acquire_lease("l", "other", ttl).await.unwrap() else {
        panic!("an expired lease is acquired")
    };
    assert_eq!(taken.epoch, lease.epoch + 1);
    assert!(matches!(one.renew_lease(&lease, ttl).await, Err(MetadataError::LeaseLost { .. })));
}

/// Collects a watch's changes until there are `count`.
fn collect(mut watch: Watch, count: usize) -> tokio::task::JoinHandle<Vec<WatchEvent>> {
    tokio::spawn(async move {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(next(&mut watch).await);
        }
        events
    })
}

/// Adds 1 to two of four counters, `times` times. Answers the version of each commit with its keys.
async fn increment(store: Arc<PostgresStore>, task: usize, times: usize) -> Vec<(u64, [String; 2])> {
    let mut commits = Vec::new();
    let mut attempt = task;
    while commits.len() < times {
        attempt += 1;
        let keys = [attempt % 4, (attempt + 1 + attempt / 4 % 3) % 4].map(|counter| format!("n/{counter}"));
        let mut ops = Vec::new();
        for key in &keys {
            let record = store.get(key).await.unwrap().unwrap();
            let value: u64 = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
            ops.push(Op::put(key, (value + 1).to_string(), Expect::Version(record.version)));
        }
        match store.commit(ops).await {
            Ok(versions) => commits.push((versions[0], keys)),
            Err(error) => assert!(error.is_conflict(), "{error}"),
        }
    }
    commits
}

/// Eight committers of overlapping keys, in two processes. Every watch sees every commit once, in the order of the
/// versions, and what it reads then is never older than what it read before.
#[tokio::test(flavor = "multi_thread")]
async fn contention() {
    const TIMES: usize = 25;
    let (server, database) = database();
    let stores = [open(&server.url(&database)).await, open(&server.url(&database)).await];
    for counter in 0..4 {
        put(&stores[0], &format!("n/{counter}"), "0").await;
    }
    // So that the changes from before are behind all watches.
    for store in &stores {
        let mut watch = store.watch("mark").await.unwrap();
        put(store, "mark", "").await;
        next(&mut watch).await;
    }
    let watchers = [
        collect(stores[0].watch("n/").await.unwrap(), 8 * TIMES * 2),
        collect(stores[1].watch("n/").await.unwrap(), 8 * TIMES * 2),
    ];
    let reader = tokio::spawn(read_whatever_changes(stores[1].clone(), 8 * TIMES * 2));
    let committers: Vec<_> =
        (0..8).map(|task| tokio::spawn(increment(stores[task % 2].clone(), task, TIMES))).collect();
    let mut commits = BTreeMap::new();
    for committer in committers {
        for (version, keys) in committer.await.unwrap() {
            assert!(commits.insert(version, keys).is_none(), "version {version} was given twice");
        }
    }
    let mut sum = 0;
    for (_, record) in stores[0].scan("n/", None, 10).await.unwrap() {
        sum += std::str::from_utf8(&record.value).unwrap().parse::<usize>().unwrap();
    }
    assert_eq!(sum, 8 * TIMES * 2);
    let expected: Vec<WatchEvent> = commits.values().flatten().map(|key| changed(key)).collect();
    for watcher in watchers {
        assert_eq!(watcher.await.unwrap(), expected);
    }
    reader.await.unwrap();
}

async fn read_whatever_changes(store: Arc<PostgresStore>, count: usize) {
    let mut watch = store.watch("n/").await.unwrap();
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let WatchEvent::Changed(key) = next(&mut watch).await else { panic!("changes were missed") };
        let version = store.get(&key).await.unwrap().unwrap().version;
        let before = seen.insert(key.clone(), version).unwrap_or(0);
        assert!(version >= before, "{key} was at {before} and is at {version}");
    }
}

/// Connections are lost while others commit; and longer ago than changes are kept.
#[tokio::test]
async fn a_watch_goes_on_after_its_connection_was_lost() {
    let (server, database) = database();
    let (one, other) = (open(&server.url(&database)).await, open(&server.url(&database)).await);
    let mut watch = other.watch("w/").await.unwrap();
    put(&one, "w/0", "").await;
    assert_eq!(next(&mut watch).await, changed("w/0"));
    for round in 1..4 {
        server.query(
            &database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
        let key = format!("w/{round}");
        put(&one, &key, "").await;
        assert_eq!(next(&mut watch).await, changed(&key));
        assert!(other.get(&key).await.unwrap().is_some());
    }
    server.query(
        &database,
        "BEGIN; UPDATE geminga.last_commit SET version = version + 10; \
         UPDATE geminga.changes_trimmed SET version = (SELECT version FROM geminga.last_commit); \
         DELETE FROM geminga.changes; NOTIFY geminga_changes; COMMIT",
    );
    assert_eq!(next(&mut watch).await, WatchEvent::Resync, "what is missed is not missed in silence");
    put(&one, "w/9", "").await;
    assert_eq!(next(&mut watch).await, changed("w/9"));
}
