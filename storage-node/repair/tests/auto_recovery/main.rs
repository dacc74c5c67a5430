//! Auto-recovery among storage nodes in this process.

mod cluster;

use std::time::Duration;

use geminga_ensemble::{LedgerState, NodeId};
use geminga_ledger_client::LedgerError;

use cluster::{Cluster, append, check_readable, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_node_had_is_copied_and_then_another_may_go() {
    let mut cluster = Cluster::start(5, 3).await;
    let quorums = [(4, 3, 2), (4, 2, 2), (3, 2, 2), (3, 3, 2)];
    for (ledger, (ensemble, write_quorum, ack)) in (1..).zip(quorums) {
        write(&cluster.client(ensemble, write_quorum, ack).await, ledger, 300).await;
    }
    // A reader that knows where everything was.
    let reader = cluster.client(3, 3, 2).await;
    for ledger in 1..=4 {
        check_readable(&reader, ledger, 300).await;
    }
    cluster.wait_until_repaired().await;
    for (lost, whole) in [("node-1", 1..=4), ("node-3", 3..=4)] {
        cluster.end_node(lost).await;
        cluster
            .wait_for("the node is given up", async |cluster, _| {
                cluster.metadata.audit().await.expect("metadata").is_some_and(|audit| audit.lost.contains(lost))
            })
            .await;
        cluster.wait_until_repaired().await;
        for ledger in whole {
            cluster.check_complete(ledger, 300).await;
            check_readable(&reader, ledger, 300).await;
        }
        // An ensemble of four cannot be had of the three nodes that will be left.
        cluster.metadata.delete_ledger(1).await.expect("metadata");
        cluster.metadata.delete_ledger(2).await.expect("metadata");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_returns_is_given_what_it_has_missed_and_nothing_else() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.client(3, 3, 2).await;
    assert!(append(&client, 7, 0, 200).await.iter().all(Result::is_ok));
    cluster.wait_until_repaired().await;
    cluster.end_node("node-2").await;
    // Nobody can take its place, so the ledger goes on without it.
    assert!(append(&client, 7, 200, 290).await.iter().all(Result::is_ok));
    assert_eq!(geminga_ledger_client::LedgerClient::recover(&client, 7).await.expect("it is closed"), Some(289));
    let before = cluster.copies();
    cluster.start_node("node-2").await;
    let had = cluster.held_by("node-2", 7);
    assert!((200..290).contains(&had), "it has {had} entries");
    cluster.wait_for("the node has all", async |cluster, _| cluster.held_by("node-2", 7) == 290).await;
    cluster.wait_until_repaired().await;
    cluster.check_complete(7, 290).await;
    assert_eq!(cluster.copies() - before, 290 - had);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_returns_while_it_is_replaced_stays_and_copying_ends() {
    // Some 90 entries a second: all of them would take 22 seconds.
    let mut cluster = Cluster::start_with_rate(4, 4, 20_000).await;
    let client = cluster.client(3, 3, 2).await;
    write(&client, 1, 2000).await;
    cluster.wait_until_repaired().await;
    let before = cluster.ledger(1).await;
    let lost: NodeId = before.fragments[0].ensemble[0].clone();
    cluster.end_node(&lost).await;
    cluster.wait_for("copying has begun", async |cluster, _| cluster.copies() > 20).await;
    cluster.start_node(&lost).await;
    let copies = cluster.copies();
    cluster.wait_until_repaired().await;
    assert_eq!(cluster.ledger(1).await, before, "the node has all that it should have");
    cluster.check_complete(1, 2000).await;
    // Nothing is missing: what was copied until the worker saw the node, and no more for all that waited for their turn.
    let beyond = cluster.copies() - copies;
    assert!(beyond < 500, "{beyond} entries were copied for a node that is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_decommissioned_is_emptied_and_idle_writers_leave_it_or_lose_their_ledger() {
    let mut cluster = Cluster::start(4, 4).await;
    let client = cluster.client(3, 3, 2).await;
    let (deaf, _) = cluster.deaf_client(3, 3, 2).await;
    write(&client, 1, 200).await;
    let gone: NodeId = cluster.ledger(1).await.fragments[0].ensemble[0].clone();
    // Writers that say nothing. Of nodes in four zones any three may be chosen.
    let (heard, unheard) = (2..12, 12..22);
    for ledger in heard.clone() {
        assert!(append(&client, ledger, 0, 20).await.iter().all(Result::is_ok));
    }
    for ledger in unheard.clone() {
        assert!(append(&deaf, ledger, 0, 20).await.iter().all(Result::is_ok));
    }
    cluster.wait_until_repaired().await;
    cluster.metadata.decommission_storage_node(&gone).await.expect("it is registered");
    cluster
        .wait_for("nothing depends on the node", async |cluster, since_ms| {
            let audit = cluster.metadata.audit().await.expect("metadata");
            audit.is_some_and(|audit| audit.started_ms > since_ms && audit.draining.get(&gone) == Some(&0))
        })
        .await;
    cluster.wait_until_repaired().await;
    let mut closed = Vec::new();
    for ledger in unheard.clone() {
        let metadata = cluster.ledger(ledger).await;
        match metadata.state {
            LedgerState::Open => assert!(!metadata.last_fragment().ensemble.contains(&gone), "{metadata:?}"),
            LedgerState::Closed { entries: 20, .. } => closed.push(ledger),
            state => panic!("{state:?}"),
        }
    }
    assert!(!closed.is_empty(), "one of ten was there");
    for ledger in heard.clone() {
        let metadata = cluster.ledger(ledger).await;
        assert!(metadata.state == LedgerState::Open && !metadata.last_fragment().ensemble.contains(&gone));
        assert!(append(&client, ledger, 20, 40).await.iter().all(Result::is_ok));
    }
    for &ledger in &closed {
        let late = append(&deaf, ledger, 20, 30).await;
        assert!(matches!(late[0], Err(LedgerError::Fenced(_))), "{late:?}");
    }
    cluster.end_node(&gone).await;
    let whole = heard.map(|ledger| (ledger, 40)).chain(closed.into_iter().map(|ledger| (ledger, 20)));
    for (ledger, entries) in whole.chain([(1, 200)]) {
        cluster.check_complete(ledger, entries).await;
        check_readable(&client, ledger, entries).await;
    }
    write(&client, 30, 100).await;
    assert!(!cluster.ledger(30).await.fragments[0].ensemble.contains(&gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_move_into_a_zone_that_comes() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.client(3, 3, 2).await;
    write(&client, 1, 200).await;
    cluster.wait_until_repaired().await;
    cluster.add("node-9", "zone-9").await;
    cluster
        .wait_for("a copy is in the new zone", async |cluster, _| {
            cluster.ledger(1).await.fragments[0].ensemble.contains(&"node-9".to_owned())
        })
        .await;
    cluster.wait_until_repaired().await;
    cluster.check_complete(1, 200).await;
    assert!(cluster.ledger(1).await.fragments[0].ensemble.contains(&"node-1".to_owned()), "it was alone in its zone");
    assert_eq!(cluster.copies(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_repaired_says_why_and_is_repaired_when_it_can() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.client(3, 3, 2).await;
    write(&client, 1, 100).await;
    cluster.wait_until_repaired().await;
    cluster.end_node("node-0").await;
    cluster
        .wait_for("it says that nobody can take the node's place", async |cluster, _| {
            let repairs = cluster.metadata.list_repairs(0, 10).await.expect("metadata");
            let reason = "no node is there to take the place of node-0";
            repairs.iter().any(|(ledger, repair)| *ledger == 1 && repair.value.blocked.as_deref() == Some(reason))
        })
        .await;
    check_readable(&client, 1, 100).await;
    cluster.add("node-3", "zone-0").await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    cluster.wait_until_repaired().await;
    cluster.check_complete(1, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_was_given_up_gets_back_what_it_lacks_and_takes_what_others_lose() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.client(3, 3, 2).await;
    write(&client, 1, 200).await;
    write(&cluster.client(3, 2, 2).await, 2, 100).await;
    // A writer that says nothing while the disk is lost.
    let (deaf, _) = cluster.deaf_client(3, 3, 2).await;
    assert!(append(&deaf, 3, 0, 50).await.iter().all(Result::is_ok));
    let on_two = cluster.client(2, 2, 2).await;
    for ledger in 4..24 {
        write(&on_two, ledger, 20).await;
    }
    cluster.wait_until_repaired().await;

    cluster.end_node("node-2").await;
    cluster.start_node_on_a_new_disk("node-2", 24).await;
    cluster
        .wait_for("the node has what it had", async |cluster, _| {
            cluster.held_by("node-2", 1) == 200 && cluster.held_by("node-2", 3) == 50
        })
        .await;
    let late = append(&deaf, 3, 50, 60).await;
    assert!(matches!(late[0], Err(LedgerError::Fenced(_))), "nobody knows what the node had of it: {late:?}");
    cluster.wait_until_repaired().await;
    let all: Vec<(u64, u64)> = [(1, 200), (2, 100), (3, 50)].into_iter().chain((4..24).map(|id| (id, 20))).collect();
    for (ledger, entries) in all {
        cluster.check_complete(ledger, entries).await;
        check_readable(&client, ledger, entries).await;
    }

    // Ledgers that the node never had, and that nobody else can take.
    let others: Vec<u64> = (4..24).filter(|ledger| cluster.held_by("node-2", *ledger) == 0).collect();
    assert!(!others.is_empty());
    cluster.end_node("node-1").await;
    cluster
        .wait_for("the node has what the other one had", async |cluster, _| {
            others.iter().all(|ledger| cluster.held_by("node-2", *ledger) == 20)
        })
        .await;
    for &ledger in &others {
        cluster
            .wait_for("metadata name it", async |cluster, _| {
                cluster.ledger(ledger).await.fragments[0].ensemble.contains(&"node-2".to_owned())
            })
            .await;
        cluster.check_complete(ledger, 20).await;
    }
}
