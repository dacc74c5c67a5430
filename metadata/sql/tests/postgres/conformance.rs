//! The suite that every backend passes.

use std::time::{Duration, Instant};

use geminga_metadata::{Expect, MetadataError, MetadataStore, Op, conformance};
use geminga_test_postgres::Server;

use crate::{database, open};

macro_rules! conformance {
    ($($name:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let (server, database) = database();
            let store = open(&server.url(&database)).await;
            conformance::$name(store.clone()).await;
            store.close().await;
        }
    )*};
}

conformance!(commits, scans, sequences, contention, watches, quiet_puts, repositories);

#[tokio::test]
async fn leases() {
    let (server, database) = database();
    let wait = async |step_ms| tokio::time::sleep(Duration::from_millis(step_ms)).await;
    conformance::leases(open(&server.url(&database)).await, wait).await;
}

#[tokio::test]
async fn persistence() {
    let (server, database) = database();
    let first = open(&server.url(&database)).await;
    conformance::persistence(first.clone(), async |store| {
        first.close().await;
        let closed = store.get("kept").await.unwrap_err();
        assert!(matches!(closed, MetadataError::Unavailable(_)), "a closed store answers errors: {closed}");
        assert!(store.commit(vec![Op::put("x", "", Expect::Any)]).await.is_err());
        open(&server.url(&database)).await as std::sync::Arc<dyn MetadataStore>
    })
    .await;
}

/// The longest keys that there are, also when they differ only behind what an index holds.
#[tokio::test]
async fn long_keys() {
    let (server, database) = database();
    let store = open(&server.url(&database)).await;
    let key = |first: char, last: char| format!("{first}{}{last}", "x".repeat(geminga_metadata::KEY_LENGTH_MAX - 2));
    let keys = [key('k', 'a'), key('k', 'b'), key('l', 'a')];
    for key in keys.iter().rev() {
        store.commit(vec![Op::put(key, key[..1].to_owned(), Expect::Absent)]).await.unwrap();
    }
    let names = |records: Vec<(String, _)>| records.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(names(store.scan("k", None, 10).await.unwrap()), keys[..2]);
    assert_eq!(names(store.scan("k", Some(&keys[0]), 10).await.unwrap()), keys[1..2]);
    assert_eq!(names(store.scan(&keys[0][..2000], Some("k"), 1).await.unwrap()), keys[..1]);
    store.commit(vec![Op::delete(&keys[0], Expect::Present)]).await.unwrap();
    assert_eq!(store.get(&keys[0]).await.unwrap(), None);
    assert_eq!(store.get(&keys[1]).await.unwrap().unwrap().value, "k");
    assert!(store.commit(vec![Op::put(key('k', 'b') + "x", "", Expect::Any)]).await.is_err());
}

/// Concurrent commits share transactions. The bound is generous, for a busy machine; a commit per fsync fails it.
#[tokio::test(flavor = "multi_thread")]
async fn many_commits_are_quick() {
    let server = Server::start();
    let store = open(&server.url("postgres")).await;
    let started = Instant::now();
    let tasks: Vec<_> = (0..200)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for index in 0..50 {
                    let key = format!("topics/public/default/persistent/topic-{task}-{index}");
                    store.commit(vec![Op::put(key, vec![b'x'; 150], Expect::Absent)]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let elapsed = started.elapsed();
    println!("10,000 commits in {} ms", elapsed.as_millis());
    assert_eq!(store.scan("topics/", None, 20_000).await.unwrap().len(), 10_000);
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
}
