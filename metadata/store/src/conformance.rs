//! What every backend of [`MetadataStore`] must do, as functions that a backend's tests call.
//!
//! Each function wants an empty store and panics on the first difference: it is a test, whatever it unwraps. [`persistence`] wants to be given the same
//! store again after it was closed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_model::{NamespaceName, Position, TopicDomain, TopicName};

use crate::{
    Expect, LeaseOutcome, LedgerInfo, Metadata, MetadataError, MetadataStore, Op, PartitionedTopicRecord, Policies,
    Record, SchemaRecord, SubscriptionRecord, TenantInfo, TopicRecord, WatchEvent,
};

type Store = Arc<dyn MetadataStore>;

fn put(key: &str, value: &str, expect: Expect) -> Op {
    Op::put(key, value.to_owned(), expect)
}

async fn conflict(store: &Store, ops: Vec<Op>) -> String {
    match store.commit(ops).await {
        Err(MetadataError::Conflict { key }) => key,
        other => panic!("expected a conflict, got {other:?}"),
    }
}

/// Versions, conditions, and all or nothing.
pub async fn commits(store: Store) {
    assert_eq!(store.get("a").await.unwrap(), None);
    let first = store.commit(vec![put("a", "1", Expect::Absent)]).await.unwrap()[0];
    assert!(first > 0);
    assert_eq!(store.get("a").await.unwrap(), Some(Record { value: "1".into(), version: first }));

    assert_eq!(conflict(&store, vec![put("a", "x", Expect::Absent)]).await, "a");
    assert_eq!(conflict(&store, vec![put("a", "x", Expect::Version(first + 1))]).await, "a");
    assert_eq!(conflict(&store, vec![put("b", "x", Expect::Present)]).await, "b");
    assert_eq!(conflict(&store, vec![Op::delete("b", Expect::Present)]).await, "b");
    let halves = vec![
        put("c", "1", Expect::Absent),
        put("a", "2", Expect::Any),
        Op::delete_prefix("a"),
        Op::check("b", Expect::Present),
    ];
    assert_eq!(conflict(&store, halves).await, "b");
    assert_eq!(store.get("c").await.unwrap(), None, "a refused commit leaves nothing");
    assert_eq!(store.get("a").await.unwrap(), Some(Record { value: "1".into(), version: first }));

    let steps = vec![
        put("a", "2", Expect::Version(first)),
        put("b", "1", Expect::Absent),
        Op::delete("none", Expect::Any),
        Op::check("b", Expect::Present),
    ];
    let versions = store.commit(steps).await.unwrap();
    assert_eq!(versions.len(), 4);
    let raised = vec![put("r", "1", Expect::Absent), Op::RaiseVersion { above: versions[0] + 1000 }];
    let raised = store.commit(raised).await.unwrap();
    assert!(raised[0] > versions[0] + 1000 && raised[1] == 0, "{raised:?}");
    let after =
        vec![Op::RaiseVersion { above: 1 }, Op::delete("r", Expect::Version(raised[0])), put("q", "1", Expect::Absent)];
    assert!(store.commit(after).await.unwrap()[2] > raised[0], "versions never go back");
    store.commit(vec![Op::delete("q", Expect::Present)]).await.unwrap();
    assert!(versions[0] > first && versions[1] > first && versions[2] == 0 && versions[3] == 0, "{versions:?}");

    store.commit(vec![Op::delete("a", Expect::Version(versions[0]))]).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    let again = store.commit(vec![put("a", "3", Expect::Absent)]).await.unwrap()[0];
    assert!(again > versions[0], "versions are not used again after a delete");
    assert_eq!(store.commit(vec![]).await.unwrap(), Vec::<u64>::new());

    let big = Bytes::from(vec![0xfe; 300_000]);
    store.commit(vec![Op::put("big", big.clone(), Expect::Any), Op::put("empty", "", Expect::Any)]).await.unwrap();
    assert_eq!(store.get("big").await.unwrap().unwrap().value, big);
    assert_eq!(store.get("empty").await.unwrap().unwrap().value, "");
}

/// Order, prefixes and paging; deleting and checking whole prefixes.
pub async fn scans(store: Store) {
    let keys = ["p", "p/", "p/Z", "p/a", "p/a/1", "p/a0", "p/é", "p/\u{10ffff}", "p0", "q/a"];
    for key in keys {
        store.commit(vec![put(key, key, Expect::Absent)]).await.unwrap();
    }
    let names = |records: Vec<(String, Record)>| records.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    let under = ["p/", "p/Z", "p/a", "p/a/1", "p/a0", "p/é", "p/\u{10ffff}"];
    assert_eq!(names(store.scan("p/", None, 100).await.unwrap()), under);
    assert_eq!(names(store.scan("", None, 100).await.unwrap()), keys);
    assert_eq!(names(store.scan("p/", Some("p/a"), 2).await.unwrap()), ["p/a/1", "p/a0"]);
    assert_eq!(names(store.scan("p/", Some("p/a/0"), 1).await.unwrap()), ["p/a/1"], "after need not exist");
    assert_eq!(names(store.scan("p/", Some("a"), 1).await.unwrap()), ["p/"], "after may be before the prefix");
    assert!(store.scan("p/", Some("z"), 9).await.unwrap().is_empty());
    assert!(store.scan("p/", None, 0).await.unwrap().is_empty());
    assert!(store.scan("P", None, 9).await.unwrap().is_empty(), "keys have case");
    assert!(store.scan("p_", None, 9).await.unwrap().is_empty(), "keys have no wildcards");

    assert!(conflict(&store, vec![Op::check_empty("p/")]).await.starts_with("p/"));
    store.commit(vec![Op::delete_prefix("p/"), Op::check_empty("p/"), Op::check_empty("x")]).await.unwrap();
    assert_eq!(names(store.scan("", None, 100).await.unwrap()), ["p", "p0", "q/a"]);
    assert!(matches!(store.commit(vec![Op::delete_prefix("")]).await, Err(MetadataError::Invalid(_))));
}

/// Ids start at 1, grow and are given once, also to concurrent callers.
pub async fn sequences(store: Store) {
    assert_eq!(store.next_of("s").await.unwrap(), 1);
    assert_eq!(store.allocate("s", 1).await.unwrap(), 1);
    assert_eq!(store.allocate("s", 10).await.unwrap(), 2);
    assert_eq!((store.next_of("s").await.unwrap(), store.next_of("s").await.unwrap()), (12, 12));
    assert_eq!(store.allocate("s", 1).await.unwrap(), 12);
    assert_eq!(store.allocate("t", 1).await.unwrap(), 1);
    assert!(matches!(store.allocate("s", 0).await, Err(MetadataError::Invalid(_))));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.allocate("u", 3).await.unwrap() })
        })
        .collect();
    let mut firsts = BTreeSet::new();
    for task in tasks {
        firsts.insert(task.await.unwrap());
    }
    assert_eq!(firsts, (0..50).map(|index| 1 + 3 * index).collect());
}

/// Of concurrent compare-and-sets on one record exactly one succeeds at a time.
pub async fn contention(store: Store) {
    store.commit(vec![put("n", "0", Expect::Absent)]).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 10 {
                    let record = store.get("n").await.unwrap().unwrap();
                    let next: u64 = std::str::from_utf8(&record.value).unwrap().parse::<u64>().unwrap() + 1;
                    let op = Op::put("n", next.to_string(), Expect::Version(record.version));
                    match store.commit(vec![op]).await {
                        Ok(_) => done += 1,
                        Err(error) => assert!(error.is_conflict(), "{error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(store.get("n").await.unwrap().unwrap().value, "80");
}

/// Watches see committed changes under their prefix in order, and nothing of refused commits.
pub async fn watches(store: Store) {
    let mut watch = store.watch("w/").await.unwrap();
    store.commit(vec![put("w/1", "", Expect::Any), put("v/1", "", Expect::Any)]).await.unwrap();
    conflict(&store, vec![put("w/2", "", Expect::Any), Op::check("none", Expect::Present)]).await;
    store.commit(vec![put("w/3", "", Expect::Any)]).await.unwrap();
    store.commit(vec![Op::delete("w/1", Expect::Any)]).await.unwrap();
    store.commit(vec![Op::delete_prefix("w/")]).await.unwrap();
    for expected in ["w/1", "w/3", "w/1", "w/3"] {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("no event");
        assert_eq!(event, Some(WatchEvent::Changed(expected.to_owned())));
    }
    for index in 0..5000 {
        store.commit(vec![put("w/many", &index.to_string(), Expect::Any)]).await.unwrap();
    }
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("no event");
    assert_eq!(event, Some(WatchEvent::Resync), "a watcher that is far behind is told so");
}

/// Quiet puts are commits as others are, and only watches do not hear of them. Leases are renewed by them.
pub async fn quiet_puts(store: Store) {
    let mut watch = store.watch("").await.unwrap();
    let told = async |watch: &mut crate::Watch| {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("no event");
        match event {
            Some(WatchEvent::Changed(key)) => key,
            other => panic!("a change is told, not {other:?}"),
        }
    };
    let quiet = |key: &str, value: &str, expect| Op::put_quietly(key, value.to_owned(), expect);
    let first = store.commit(vec![quiet("q/1", "1", Expect::Absent)]).await.unwrap()[0];
    assert_eq!(store.get("q/1").await.unwrap(), Some(Record { value: "1".into(), version: first }));
    assert_eq!(conflict(&store, vec![quiet("q/1", "x", Expect::Absent)]).await, "q/1");
    let mixed = vec![quiet("q/1", "2", Expect::Version(first)), put("q/2", "1", Expect::Absent)];
    let versions = store.commit(mixed).await.unwrap();
    assert!(versions[0] > first && versions[0] == versions[1], "{versions:?}");
    assert_eq!(told(&mut watch).await, "q/2");
    let both = vec![quiet("q/1", "3", Expect::Any), put("q/1", "4", Expect::Version(versions[0]))];
    assert!(store.commit(both).await.unwrap_err().is_conflict(), "a step sees the one before");
    let refused = vec![quiet("q/1", "5", Expect::Any), Op::check("none", Expect::Present)];
    assert_eq!(conflict(&store, refused).await, "none");
    assert_eq!(store.get("q/1").await.unwrap(), Some(Record { value: "2".into(), version: versions[0] }));

    let ttl = Duration::from_secs(60);
    let LeaseOutcome::Acquired(lease) = store.acquire_lease("l", "a", ttl).await.unwrap() else {
        panic!("a free lease is acquired")
    };
    assert_eq!(told(&mut watch).await, "leases/l");
    let renewed = store.renew_lease(&lease, ttl).await.unwrap();
    assert!(renewed.version > lease.version);
    let again = store.renew_lease(&lease, ttl).await.unwrap();
    assert!(again.version > renewed.version, "by a holder that does not know of its last renewal");
    store.release_lease(&renewed).await.unwrap();
    assert!(matches!(store.renew_lease(&again, ttl).await, Err(MetadataError::LeaseLost { .. })));
    store.commit(vec![Op::delete("q/1", Expect::Present)]).await.unwrap();
    assert_eq!([told(&mut watch).await, told(&mut watch).await], ["leases/l", "q/1"], "deletions are told");

    let LeaseOutcome::Acquired(short) = store.acquire_lease("m", "a", Duration::from_secs(1)).await.unwrap() else {
        panic!("a free lease is acquired")
    };
    store.renew_lease(&short, ttl).await.unwrap();
    let late = "a renewal that comes late: somebody may have seen that the lease had run out";
    assert_eq!([told(&mut watch).await, told(&mut watch).await], ["leases/m", "leases/m"], "{late}");
}

/// Owners, expiry and epochs. `advance_ms` moves the store's clock forward, or waits.
pub async fn leases(store: Store, advance_ms: impl AsyncFn(u64)) {
    let ttl = Duration::from_millis(200);
    let LeaseOutcome::Acquired(first) = store.acquire_lease("l", "a", ttl).await.unwrap() else {
        panic!("a free lease is acquired")
    };
    assert_eq!((first.owner.as_str(), first.epoch), ("a", 1));
    let LeaseOutcome::Held(held) = store.acquire_lease("l", "b", ttl).await.unwrap() else {
        panic!("a held lease is not acquired")
    };
    assert_eq!(held, first);
    let renewed = store.renew_lease(&first, Duration::from_secs(60)).await.unwrap();
    assert_eq!(renewed.epoch, 1);
    assert_eq!(store.lease("l").await.unwrap(), Some(renewed.clone()));
    store.release_lease(&renewed).await.unwrap();
    assert_eq!(store.lease("l").await.unwrap(), None);
    assert!(matches!(store.renew_lease(&renewed, ttl).await, Err(MetadataError::LeaseLost { .. })));

    let LeaseOutcome::Acquired(second) = store.acquire_lease("l", "b", ttl).await.unwrap() else {
        panic!("a released lease is acquired")
    };
    assert_eq!(second.epoch, 2, "epochs survive a release");
    advance_ms(300).await;
    assert_eq!(store.lease("l").await.unwrap(), None);
    let LeaseOutcome::Acquired(third) = store.acquire_lease("l", "a", ttl).await.unwrap() else {
        panic!("an expired lease is acquired")
    };
    assert_eq!((third.owner.as_str(), third.epoch), ("a", 3));
    assert!(matches!(store.renew_lease(&second, ttl).await, Err(MetadataError::LeaseLost { .. })));
    store.release_lease(&second).await.unwrap();
    assert!(store.lease("l").await.unwrap().is_some(), "only its holder releases a lease");
    let LeaseOutcome::Acquired(fourth) = store.acquire_lease("l", "a", ttl).await.unwrap() else {
        panic!("an owner acquires its own lease again")
    };
    assert_eq!(fourth.epoch, 4, "as a new incarnation");
}

/// The typed repositories: parents, paging, and what goes with a topic.
pub async fn repositories(store: Store) {
    let metadata = Metadata::new(store);
    let namespace = NamespaceName::parse("t/n").unwrap();
    let topic = TopicName::parse("persistent://t/n/a").unwrap();
    let missing = |error: MetadataError| match error {
        MetadataError::NotFound { what, .. } => what,
        other => panic!("expected not found, got {other:?}"),
    };
    let policies = Policies::new_namespace("standalone", 4);
    assert_eq!(missing(metadata.create_namespace(&namespace, &policies).await.unwrap_err()), "tenant");
    metadata.create_tenant("t", &TenantInfo::default()).await.unwrap();
    assert_eq!(missing(metadata.create_topic(&topic, TopicRecord::default()).await.unwrap_err()), "namespace");
    metadata.create_namespace(&namespace, &policies).await.unwrap();
    assert!(matches!(
        metadata.create_namespace(&namespace, &policies).await,
        Err(MetadataError::AlreadyExists { what: "namespace", .. })
    ));
    let changed = metadata.update_namespace(&namespace, |policies| {
        policies.message_ttl_in_seconds = Some(7);
        Ok(())
    });
    let changed = changed.await.unwrap();
    assert_eq!(metadata.get_namespace(&namespace).await.unwrap(), Some(changed));
    assert_eq!(metadata.list_namespaces("t").await.unwrap(), std::slice::from_ref(&namespace));

    cursor_logs(&metadata).await;
    topics_and_subscriptions(&metadata, &topic).await;
    schemas(&metadata, &topic).await;

    assert!(metadata.delete_namespace(&namespace, &[]).await.unwrap_err().is_conflict(), "it has topics");
    assert!(metadata.delete_tenant("t").await.unwrap_err().is_conflict(), "it has namespaces");
    metadata.delete_topic(&topic).await.unwrap();
    assert!(metadata.list_subscriptions(&topic).await.unwrap().is_empty());
    assert!(metadata.list_schemas(&topic).await.unwrap().is_empty());
    assert_eq!(metadata.list_garbage(10).await.unwrap(), [vec![3], vec![5, 9]]);
    metadata.forget_garbage(&[3]).await.unwrap();
    assert_eq!(metadata.list_garbage(10).await.unwrap(), [vec![5, 9]]);
    paging(&metadata, &namespace).await;
    metadata.delete_namespace(&namespace, &[]).await.unwrap();
    metadata.delete_tenant("t").await.unwrap();
    assert_eq!(missing(metadata.delete_tenant("t").await.unwrap_err()), "tenant");

    let first = metadata.next_ledger_id(0).await.unwrap();
    let second = metadata.next_ledger_id(first).await.unwrap();
    assert!(second > first);
    let other = Metadata::new(metadata.store().clone());
    let elsewhere = other.next_ledger_id(second).await.unwrap();
    let after = metadata.next_ledger_id(elsewhere).await.unwrap();
    assert!(after > elsewhere, "also after another's ledger");
    let above = metadata.ledger_ids_end().await.unwrap();
    metadata.skip_ledger_ids();
    let next = metadata.next_ledger_id(0).await.unwrap();
    assert!(next >= above, "none of a block that was given up");
    metadata.skip_ledger_ids_with(first);
    assert_eq!(metadata.next_ledger_id(0).await.unwrap(), next + 1, "it is of another block");
    let above = metadata.ledger_ids_end().await.unwrap();
    metadata.skip_ledger_ids_with(next);
    assert!(metadata.next_ledger_id(0).await.unwrap() >= above, "none of the block that it is of");
}

async fn topics_and_subscriptions(metadata: &Metadata, topic: &TopicName) {
    let ledger = |ledger_id| LedgerInfo { ledger_id, entries: 10, size: 1000, ..LedgerInfo::default() };
    let created = metadata.create_topic(topic, TopicRecord { created_at: 9, ..TopicRecord::default() }).await.unwrap();
    assert_eq!(metadata.get_topic(topic).await.unwrap(), Some(created.clone()));
    let mut record = created.value;
    record.ledgers = vec![ledger(3), ledger(5), ledger(9)];
    record.terminated = Some(Position::new(9, 9));
    let version = metadata.replace_topic(topic, &record, created.version, &[], None).await.unwrap();
    assert!(metadata.replace_topic(topic, &record, created.version, &[7], None).await.unwrap_err().is_conflict());
    record.ledgers.remove(0);
    metadata.replace_topic(topic, &record, version, &[3], None).await.unwrap();
    assert_eq!(metadata.list_garbage(10).await.unwrap(), [vec![3]], "noted with the commit, not with a conflict");

    let sibling = TopicName::parse("persistent://t/n/a0").unwrap();
    let subscription = SubscriptionRecord {
        cursor_id: metadata.next_cursor_id().await.unwrap(),
        initial: Position::new(3, -1),
        properties: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        created_at: 1,
        replicated: false,
    };
    let error = metadata.create_subscription(&sibling, "s", subscription.clone()).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    for name in ["s/1", "s 2", "ü"] {
        metadata.create_subscription(topic, name, subscription.clone()).await.unwrap();
    }
    metadata.create_topic(&sibling, TopicRecord::default()).await.unwrap();
    metadata.create_subscription(&sibling, "s", subscription.clone()).await.unwrap();
    metadata.delete_subscription(topic, "s 2").await.unwrap();
    guarded_by_topic(metadata, topic, &subscription).await;
    let listed = metadata.list_subscriptions(topic).await.unwrap();
    assert_eq!(listed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["s/1", "ü"]);
    assert_eq!(listed[0].1.value, subscription);
    assert_eq!(metadata.list_subscriptions(&sibling).await.unwrap().len(), 1);
    metadata.delete_topic(&sibling).await.unwrap();
}

/// What an instance of a topic has under way is refused once the topic's record was written anew.
async fn guarded_by_topic(metadata: &Metadata, topic: &TopicName, subscription: &SubscriptionRecord) {
    let written = metadata.get_topic(topic).await.unwrap().unwrap();
    let guarded = metadata.guarded_by_topic(topic, written.version);
    guarded.create_subscription(topic, "guarded", subscription.clone()).await.unwrap();
    metadata.replace_topic(topic, &written.value, written.version, &[], None).await.unwrap();
    let lost = |error: MetadataError| assert!(matches!(error, MetadataError::OwnershipLost { .. }), "{error}");
    lost(guarded.delete_subscription(topic, "guarded").await.unwrap_err());
    lost(guarded.create_subscription(topic, "late", subscription.clone()).await.unwrap_err());
    lost(guarded.delete_topic(topic).await.unwrap_err());
    metadata.delete_subscription(topic, "guarded").await.unwrap();
}

async fn cursor_logs(metadata: &Metadata) {
    let version = metadata.put_cursor_log("log", &[20, 21], None, &[], None).await.unwrap();
    let version = metadata.put_cursor_log("log", &[21], Some(version), &[20], None).await.unwrap();
    let refused = metadata.put_cursor_log("log", &[0; 0], Some(version - 1), &[21], None).await;
    assert!(refused.unwrap_err().is_conflict());
    assert_eq!(metadata.list_garbage(10).await.unwrap(), [[20]], "noted with the commit, not with a conflict");
    metadata.forget_garbage(&[20]).await.unwrap();
    metadata.delete_cursor_log("log", &[]).await.unwrap();
}

async fn schemas(metadata: &Metadata, topic: &TopicName) {
    let schema = |data: &[u8]| SchemaRecord {
        schema_type: 4,
        data: data.to_vec(),
        properties: BTreeMap::new(),
        timestamp: 1,
        user: String::new(),
        deleted: false,
    };
    assert_eq!(metadata.append_schema(topic, None, &schema(b"{}")).await.unwrap(), 0);
    assert!(metadata.append_schema(topic, None, &schema(b"{}")).await.unwrap_err().is_conflict());
    for last in 0..11 {
        metadata.append_schema(topic, Some(last), &schema(&[0xff, last as u8])).await.unwrap();
    }
    let versions = metadata.list_schemas(topic).await.unwrap();
    assert_eq!(versions.iter().map(|schema| schema.version).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    assert_eq!(versions[11].schema, schema(&[0xff, 10]));
    assert_eq!(metadata.get_schema(topic, 0).await.unwrap(), Some(schema(b"{}")));
}

async fn paging(metadata: &Metadata, namespace: &NamespaceName) {
    let base = TopicName::new(TopicDomain::Persistent, namespace.clone(), "many").unwrap();
    let record = PartitionedTopicRecord { partitions: 25, ..PartitionedTopicRecord::default() };
    metadata.create_partitioned_topic(&base, &record).await.unwrap();
    let mut expected = BTreeSet::new();
    for index in 0..record.partitions {
        metadata.create_topic(&base.partition(index), TopicRecord::default()).await.unwrap();
        expected.insert(base.partition(index));
    }
    let all: Vec<_> = expected.iter().cloned().collect();
    assert_eq!(metadata.list_topics(namespace, TopicDomain::Persistent).await.unwrap(), all);
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = metadata.list_topics_page(namespace, TopicDomain::Persistent, after.as_deref(), 10);
        let page = page.await.unwrap();
        paged.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);
    let listed = metadata.list_partitioned_topics(namespace, TopicDomain::Persistent).await.unwrap();
    assert_eq!(listed, [(base.clone(), record)]);
    for name in &all {
        metadata.delete_topic(name).await.unwrap();
    }
    metadata.delete_partitioned_topic(&base).await.unwrap();
}

/// What a store still knows when it is opened again; `reopen` closes it and opens it.
pub async fn persistence(store: Store, reopen: impl AsyncFn(Store) -> Store) {
    let version = store.commit(vec![put("kept", "1", Expect::Absent)]).await.unwrap()[0];
    store.commit(vec![put("gone", "1", Expect::Absent)]).await.unwrap();
    let last = store.commit(vec![Op::delete("gone", Expect::Present)]).await;
    last.unwrap();
    store.allocate("s", 7).await.unwrap();
    store.acquire_lease("l", "a", Duration::from_secs(60)).await.unwrap();
    let store = reopen(store).await;
    assert_eq!(store.get("kept").await.unwrap(), Some(Record { value: "1".into(), version }));
    assert_eq!(store.get("gone").await.unwrap(), None);
    assert_eq!(store.allocate("s", 1).await.unwrap(), 8);
    assert_eq!(store.lease("l").await.unwrap().unwrap().epoch, 1);
    let next = store.commit(vec![put("gone", "2", Expect::Absent)]).await.unwrap()[0];
    assert!(next > version + 2, "versions grow across restarts, also past deleted records");
}
