//! Several brokers on the same metadata and ledgers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, MemberOptions, Owner, Ownership, SplitAt};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{Balanced, BrokerRecord, BundleRecord, LeaseOutcome, Metadata, OverSession};
use geminga_model::{BundleName, topic_hash};
use geminga_topic::SubscriptionType;

use crate::fixture::{
    self, Client, HeldLedgers, LateStore, Told, ack, eventually, messages, name, publish, text, topic,
};

const TOPIC: &str = "persistent://public/default/t";

async fn join(id: &str, metadata: &Metadata, ledgers: &MemoryLedgers) -> Arc<Broker> {
    let record = BrokerRecord { pulsar_url: format!("pulsar://{id}"), ..BrokerRecord::default() };
    let member = MemberOptions { id: id.into(), record, session_timeout: Duration::from_millis(600) };
    let ownership = Ownership::join(metadata.clone(), member).await.unwrap();
    let mut config = BrokerConfig::default();
    config.balance.interval = Duration::from_millis(100);
    config.balance.config.hearing.warm_up_ms = 300;
    Broker::start_shared(config, metadata.clone(), Arc::new(ledgers.clone()), ownership).await.unwrap()
}

async fn bundle(metadata: &Metadata) -> BundleName {
    let namespace = "public/default".parse().unwrap();
    let policies = metadata.get_namespace(&namespace).await.unwrap().unwrap();
    BundleName { namespace, range: policies.value.bundle_range(topic_hash(TOPIC)) }
}

/// The broker that serves the topic, and the other one.
async fn in_turn(a: &Arc<Broker>, b: &Arc<Broker>) -> (Arc<Broker>, Arc<Broker>) {
    match a.lookup(&name(TOPIC)).await.unwrap() {
        Owner::Me(_) => (a.clone(), b.clone()),
        Owner::Other(_) => (b.clone(), a.clone()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_broker_serves_a_topic_and_the_others_say_which() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let id = if Arc::ptr_eq(&owner, &a) { "a" } else { "b" };
    eventually("both know the owner", || async {
        matches!(other.lookup(&name(TOPIC)).await.unwrap(), Owner::Other(located) if located.broker == id)
    })
    .await;
    assert!(owner.topic(&name(TOPIC), true).await.is_ok());
    let refused = other.topic(&name(TOPIC), true).await.err().unwrap();
    assert!(refused.to_string().contains("redo the lookup"), "{refused}");
    eventually("they see each other", || async { owner.ownership().brokers().len() == 2 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_handed_over_with_its_acknowledgements_and_clients_are_told_where() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let target = if Arc::ptr_eq(&other, &a) { "a" } else { "b" };

    let client = Client::new();
    let topic = topic(&owner, TOPIC).await;
    let producer = client.produce(&topic, "p").await.unwrap();
    publish(&client, &producer, &["1", "2", "3"]).await;
    let consumer_client = Client::new();
    let consumer = consumer_client.consume(&topic, "s", SubscriptionType::Shared).await.unwrap();
    topic.flow(&consumer, 10);
    let first = consumer_client.message().await;
    let second = consumer_client.message().await;
    topic.acknowledge(&consumer, ack(second.entry.position), Some(1));
    while !matches!(consumer_client.next().await, Told::Acknowledged(1, true)) {}

    // Asked through the broker that does not have it.
    other.unload_bundle(&bundle(&metadata).await, Some(target)).await.unwrap();
    let expected = format!("pulsar://{target}");
    assert!(matches!(client.next().await, Told::ProducerClosed(_, Some(url)) if url == expected));
    producer.topic.publish(&producer, &mut messages(&["late"]));
    assert!(client.told().is_empty(), "it sends it to the new owner, and is not sent away once more");
    assert!(matches!(owner.lookup(&name(TOPIC)).await.unwrap(), Owner::Other(_)));

    let topic = fixture::topic(&other, TOPIC).await;
    let client = Client::new();
    let consumer = client.consume(&topic, "s", SubscriptionType::Shared).await.unwrap();
    topic.flow(&consumer, 10);
    let texts = [text(&client.message().await), text(&client.message().await)];
    assert_eq!(texts, [text(&first), "3".to_owned()], "what was acknowledged is not delivered again");
}

/// Nobody says it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_read_when_it_changed_is_read_later() {
    let (store, ledgers) = (Arc::new(LateStore::default()), MemoryLedgers::default());
    let metadata = fixture::metadata_in(store.clone()).await;
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let (id, target) = if Arc::ptr_eq(&owner, &a) { ("a", "b") } else { ("b", "a") };
    eventually("they see each other", || async {
        a.ownership().brokers().len() == 2 && b.ownership().brokers().len() == 2
    })
    .await;

    let loaded = topic(&owner, TOPIC).await;
    store.fail_reads("namespaces/");
    let limited = |policies: &mut geminga_metadata::Policies| {
        policies.max_producers_per_topic = Some(3);
        Ok(())
    };
    store.undisturbed().update_namespace(&"public/default".parse().unwrap(), limited).await.unwrap();
    store.read_again_after(1).await;
    eventually("policies hold", || async { loaded.policies().max_producers() == Some(3) }).await;

    // What is asked of its owner.
    let bundle = bundle(&metadata).await;
    store.fail_reads("bundle-requests/");
    let moved = tokio::spawn({
        let (other, bundle) = (other.clone(), bundle.clone());
        async move { other.unload_bundle(&bundle, Some(target)).await }
    });
    store.read_again_after(1).await;
    tokio::time::timeout(Duration::from_secs(10), moved).await.expect("it is done soon").unwrap().unwrap();
    assert!(matches!(owner.lookup(&name(TOPIC)).await.unwrap(), Owner::Other(_)));

    // Who owns it.
    let current = metadata.get_bundle(&bundle).await.unwrap().unwrap();
    let incarnation = a.ownership().brokers().iter().find(|broker| broker.id == id).unwrap().incarnation;
    let epoch = current.value.epoch + 1;
    let back = BundleRecord { owner: Some(id.into()), incarnation, epoch, ..current.value };
    store.fail_reads("bundles/");
    store.undisturbed().put_bundle(&bundle, &back, Some(current.version)).await.unwrap();
    store.read_again_after(2).await;
    eventually("both know the owner", || async {
        matches!(owner.lookup(&name(TOPIC)).await, Ok(Owner::Me(_)))
            && matches!(other.lookup(&name(TOPIC)).await, Ok(Owner::Other(_)))
    })
    .await;
}

/// The owner has been asleep: it does not know that it has lost the bundle, and has no open ledger that could be fenced.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_owner_writes_nothing() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let target = if Arc::ptr_eq(&other, &a) { "a" } else { "b" };
    let asleep = topic(&owner, TOPIC).await;
    let client = Client::new();
    let producer = client.produce(&asleep, "p").await.unwrap();

    let bundle = bundle(&metadata).await;
    let current = metadata.get_bundle(&bundle).await.unwrap().unwrap();
    let incarnation = other.ownership().brokers().iter().find(|broker| broker.id == target).unwrap().incarnation;
    let taken = BundleRecord {
        owner: Some(target.into()),
        incarnation,
        epoch: current.value.epoch + 1,
        balanced: Balanced::default(),
    };
    // Before the news arrive, if this is quick enough; afterwards the producer is closed, which is as good.
    metadata.put_bundle(&bundle, &taken, Some(current.version)).await.unwrap();
    asleep.publish(&producer, &mut messages(&["lost"]));

    let topic = fixture::topic(&other, TOPIC).await;
    let second = Client::new();
    let producer = second.produce(&topic, "q").await.unwrap();
    publish(&second, &producer, &["kept"]).await;
    let reader = Client::new();
    let consumer = reader.consume(&topic, "s", SubscriptionType::Exclusive).await.unwrap();
    topic.flow(&consumer, 10);
    assert_eq!(text(&reader.message().await), "kept");
    let told = client.told();
    assert!(!told.iter().any(|told| matches!(told, Told::Receipt(_))), "{told:?}");
    eventually("the deposed owner drops the topic", || async { !asleep.is_serving() }).await;
}

/// Of a handover whose outcome it does not know, the owner makes sure that it cannot come to pass any more before it serves again: it
/// would go on with what it knew while somebody else had the bundle.
#[tokio::test(flavor = "multi_thread")]
async fn a_handover_that_comes_late_does_not_come_to_pass() {
    let (store, ledgers) = (Arc::new(LateStore::default()), MemoryLedgers::default());
    let metadata = fixture::metadata_in(store.clone()).await;
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    topic(&owner, TOPIC).await;
    let bundle = bundle(&metadata).await;
    let before = metadata.get_bundle(&bundle).await.unwrap().unwrap();
    store.hold("bundles/");
    assert!(owner.unload_bundle(&bundle, None).await.is_err());
    assert!(store.is_held());

    let client = Client::new();
    let topic = topic(&owner, TOPIC).await;
    let producer = client.produce(&topic, "p").await.unwrap();
    assert!(store.release().await.unwrap_err().is_conflict());
    publish(&client, &producer, &["1"]).await;
    let now = metadata.get_bundle(&bundle).await.unwrap().unwrap().value;
    assert_eq!((now.owner, now.epoch), (before.value.owner, before.value.epoch + 1));
    assert!(matches!(other.lookup(&name(TOPIC)).await.unwrap(), Owner::Other(_)));
}

/// It goes on in nobody's hands: a client that comes when the bundle is this broker's again must not find what was opened then.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_was_lost_while_it_was_opened_is_not_kept() {
    let (store, ledgers) = (Arc::new(LateStore::default()), MemoryLedgers::default());
    let metadata = fixture::metadata_in(store.clone()).await;
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let opening = store.cursor_logs.write().await;
    let (owner, other) = in_turn(&a, &b).await;
    let loading = tokio::spawn({
        let owner = owner.clone();
        async move { owner.topic(&name(TOPIC), true).await.err() }
    });
    eventually("it is being opened", || async { store.cursor_log_reads.load(Ordering::Relaxed) > 0 }).await;
    let bundle = bundle(&metadata).await;
    let mine = metadata.get_bundle(&bundle).await.unwrap().unwrap();
    let id = if Arc::ptr_eq(&other, &a) { "a" } else { "b" };
    let incarnation = other.ownership().brokers().iter().find(|broker| broker.id == id).unwrap().incarnation;
    let theirs = BundleRecord {
        owner: Some(id.into()),
        incarnation,
        epoch: mine.value.epoch + 1,
        balanced: Balanced::default(),
    };
    let version = metadata.put_bundle(&bundle, &theirs, Some(mine.version)).await.unwrap();
    eventually("it hears of it", || async { matches!(owner.lookup(&name(TOPIC)).await, Ok(Owner::Other(_))) }).await;
    drop(opening);
    let refused = loading.await.unwrap().expect("it is another broker's");
    assert!(refused.to_string().contains("redo the lookup"), "{refused}");

    let again = BundleRecord { epoch: theirs.epoch + 1, ..mine.value };
    metadata.put_bundle(&bundle, &again, Some(version)).await.unwrap();
    eventually("it is back", || async { matches!(owner.lookup(&name(TOPIC)).await, Ok(Owner::Me(_))) }).await;
    let client = Client::new();
    let producer = client.produce(&topic(&owner, TOPIC).await, "p").await.unwrap();
    publish(&client, &producer, &["1"]).await;
}

/// It believed that the bundle was nobody's, and its owner's session has been renewed since.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_not_taken_from_an_owner_that_has_come_back() {
    let metadata = fixture::metadata().await;
    let bundle = bundle(&metadata).await;
    let ttl = Duration::from_secs(1);
    let LeaseOutcome::Acquired(lease) = metadata.acquire_broker("a", "a", ttl).await.unwrap() else { panic!() };
    let record = |owner: &str, epoch| BundleRecord {
        owner: Some(owner.into()),
        incarnation: lease.epoch,
        epoch,
        balanced: Balanced::default(),
    };
    let version = metadata.put_bundle(&bundle, &record("a", 1), None).await.unwrap();
    let over = OverSession { broker: "a".into(), version: metadata.broker_sessions().await.unwrap()[0].version };
    metadata.store().renew_lease(&lease, ttl).await.unwrap();
    let refused = metadata.take_bundle(&bundle, &record("b", 2), version, Some(&over)).await;
    assert!(refused.unwrap_err().is_conflict());
    let over = OverSession { version: metadata.broker_sessions().await.unwrap()[0].version, ..over };
    metadata.take_bundle(&bundle, &record("b", 2), version, Some(&over)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_broker_had_is_taken_over() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let client = Client::new();
    let producer = client.produce(&topic(&owner, TOPIC).await, "p").await.unwrap();
    publish(&client, &producer, &["1"]).await;
    eventually("they see each other", || async { other.ownership().brokers().len() == 2 }).await;

    owner.ownership().abandon();
    let started = std::time::Instant::now();
    eventually("the other one takes it", || async { matches!(other.lookup(&name(TOPIC)).await, Ok(Owner::Me(_))) })
        .await;
    assert!(started.elapsed() >= Duration::from_millis(300), "a session lasts without renewals for a while");
    let topic = topic(&other, TOPIC).await;
    let reader = Client::new();
    let consumer = reader.consume(&topic, "s", SubscriptionType::Exclusive).await.unwrap();
    topic.flow(&consumer, 10);
    assert_eq!(text(&reader.message().await), "1");

    // The one that was taken for dead is still there.
    producer.topic.publish(&producer, &mut messages(&["late"]));
    assert!(!matches!(client.next().await, Told::Receipt(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_for_a_bundle_place_it_together() {
    let store = Arc::new(LateStore::default());
    let metadata = fixture::metadata_in(store.clone()).await;
    let broker = join("a", &metadata, &MemoryLedgers::default()).await;
    let bundle = bundle(&metadata).await;
    store.read_ms.store(10, Ordering::Relaxed);
    store.reads.store(0, Ordering::Relaxed);
    let mut finds = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (broker, bundle) = (broker.clone(), bundle.clone());
        finds.spawn(async move { broker.ownership().find(&bundle).await });
    }
    for found in finds.join_all().await {
        assert!(matches!(found, Ok(Owner::Me(_))), "{found:?}");
    }
    let reads = store.reads.load(Ordering::Relaxed);
    assert!(reads < 100, "{reads} reads to place one bundle");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_can_be_read_and_not_written_end_no_session() {
    let store = Arc::new(LateStore::default());
    let (metadata, ledgers) = (fixture::metadata_in(store.clone()).await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    eventually("they see each other", || async { other.ownership().brokers().len() == 2 }).await;
    let bundle = bundle(&metadata).await;
    let record = metadata.get_bundle(&bundle).await.unwrap().unwrap();
    store.is_full.store(true, Ordering::Relaxed);
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let found = other.ownership().find(&bundle).await;
        assert!(matches!(found, Ok(Owner::Other(_))), "{found:?} after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.is_full.store(false, Ordering::Relaxed);
    while began.elapsed() < Duration::from_secs(3) {
        assert!(matches!(other.ownership().find(&bundle).await, Ok(Owner::Other(_))));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metadata.get_bundle(&bundle).await.unwrap().unwrap(), record);
    assert!(matches!(owner.ownership().find(&bundle).await, Ok(Owner::Me(_))));
}

/// Its metadata are away, so that it does not know: a consumer that came to it would get again what was acknowledged elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_session_has_run_out_takes_consumers_only_until_it_is_deposed() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let old = topic(&owner, TOPIC).await;
    let client = Client::new();
    let producer = client.produce(&old, "p").await.unwrap();
    publish(&client, &producer, &["1", "2"]).await;
    let consumer = client.consume(&old, "s", SubscriptionType::Shared).await.unwrap();
    old.flow(&consumer, 10);
    old.acknowledge(&consumer, ack(client.message().await.entry.position), Some(1));
    while !matches!(client.next().await, Told::Acknowledged(1, true)) {}
    eventually("they see each other", || async { other.ownership().brokers().len() == 2 }).await;

    owner.ownership().abandon();
    tokio::time::sleep(Duration::from_millis(700)).await;
    Client::new().consume(&old, "s", SubscriptionType::Shared).await.expect("nobody has taken it yet");
    eventually("the other one takes it", || async { matches!(other.lookup(&name(TOPIC)).await, Ok(Owner::Me(_))) })
        .await;
    topic(&other, TOPIC).await;
    let refused = Client::new().consume(&old, "s", SubscriptionType::Shared).await;
    assert!(refused.is_err(), "it has been deposed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_leaves_hands_everything_over() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let client = Client::new();
    let producer = client.produce(&topic(&owner, TOPIC).await, "p").await.unwrap();
    publish(&client, &producer, &["1"]).await;
    owner.shut_down().await;
    assert!(matches!(client.next().await, Told::ProducerClosed(_, Some(_))));
    eventually("the other one has it", || async { matches!(other.lookup(&name(TOPIC)).await, Ok(Owner::Me(_))) }).await;
    eventually("one broker is left", || async { other.ownership().brokers().len() == 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_split_with_its_acknowledgements() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let broker = join("a", &metadata, &ledgers).await;
    let client = Client::new();
    let parent = bundle(&metadata).await;
    let mut names = Vec::new();
    for index in 0..40 {
        let topic = format!("persistent://public/default/many-{index}");
        if parent.range.contains(topic_hash(&topic)) {
            names.push(topic);
        }
    }
    for text in &names {
        let topic = topic(&broker, text).await;
        let producer = client.produce(&topic, "p").await.unwrap();
        publish(&client, &producer, &["1", "2"]).await;
        let reader = Client::new();
        let consumer = reader.consume(&topic, "s", SubscriptionType::Exclusive).await.unwrap();
        topic.flow(&consumer, 10);
        topic.acknowledge(&consumer, ack(reader.message().await.entry.position), Some(1));
        while !matches!(reader.next().await, Told::Acknowledged(1, true)) {}
    }
    let parts = broker.split_bundle(&parent, &SplitAt::Topics).await.unwrap();
    assert_eq!(parts.len(), 2);
    assert!(broker.split_bundle(&parent, &SplitAt::Middle).await.is_err(), "it is no more");
    assert!(matches!(client.next().await, Told::ProducerClosed(..)));
    for text in &names {
        let topic = topic(&broker, text).await;
        let reader = Client::new();
        let consumer = reader.consume(&topic, "s", SubscriptionType::Exclusive).await.unwrap();
        topic.flow(&consumer, 10);
        assert_eq!(fixture::text(&reader.message().await), "2", "{text}");
    }
    let logs = metadata.list_cursor_logs().await.unwrap();
    assert!(parts.iter().all(|part| logs.contains(&part.to_string())), "{logs:?}");
    assert!(!logs.contains(&parent.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_while_a_bundle_is_split_is_kept_or_refused() {
    let ledgers = HeldLedgers::default();
    let metadata = fixture::metadata().await;
    let broker = Broker::start(BrokerConfig::default(), metadata.clone(), Arc::new(ledgers.clone())).await.unwrap();
    let topic = topic(&broker, TOPIC).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    let consumer = client.consume(&topic, "s", SubscriptionType::Shared).await.unwrap();
    topic.flow(&consumer, 10);
    publish(&client, &producer, &["1", "2"]).await;
    let (first, second) = (client.message().await, client.message().await);
    topic.acknowledge(&consumer, ack(first.entry.position), Some(1));
    while !matches!(client.next().await, Told::Acknowledged(1, true)) {}

    ledgers.hold_acknowledgements();
    let parent = bundle(&metadata).await;
    let splitting = tokio::spawn({
        let (broker, parent) = (broker.clone(), parent.clone());
        async move { broker.split_bundle(&parent, &SplitAt::Middle).await }
    });
    eventually("the logs of the parts are written", || async { ledgers.held() > 0 }).await;
    topic.acknowledge(&consumer, ack(second.entry.position), Some(2));
    ledgers.release_acknowledgements();
    splitting.await.unwrap().unwrap();
    let kept = loop {
        if let Told::Acknowledged(2, kept) = client.next().await {
            break kept;
        }
    };
    assert!(!kept, "the parts had what was acknowledged before");

    let (again, reader) = (fixture::topic(&broker, TOPIC).await, Client::new());
    let consumer = reader.consume(&again, "s", SubscriptionType::Shared).await.unwrap();
    again.flow(&consumer, 10);
    assert_eq!(text(&reader.message().await), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_no_more_bundles_is_emptied_by_the_leader() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (join("a", &metadata, &ledgers).await, join("b", &metadata, &ledgers).await);
    let (owner, other) = in_turn(&a, &b).await;
    let client = Client::new();
    let producer = client.produce(&topic(&owner, TOPIC).await, "p").await.unwrap();
    publish(&client, &producer, &["1"]).await;
    owner.drain().await.unwrap();
    assert!(matches!(client.next().await, Told::ProducerClosed(_, Some(_))));
    eventually("the other one has heard that it has it", || async {
        matches!(other.lookup(&name(TOPIC)).await, Ok(Owner::Me(_)))
    })
    .await;
    let moved = metadata.get_bundle(&bundle(&metadata).await).await.unwrap().unwrap();
    assert_eq!(moved.value.balanced.levelled_ms, None, "that it had to go does not keep it where it is");
    let leader = a.leader().await.unwrap().unwrap();
    let explained = if leader == "a" { a.explain_balance() } else { b.explain_balance() };
    assert!(explained.unwrap().contains("leav"), "the leader says why");
}

/// As the version before left it: one cursor log for all.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_of_the_old_form_are_moved_to_the_bundles() {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let start =
        || async { Broker::start(BrokerConfig::default(), metadata.clone(), Arc::new(ledgers.clone())).await.unwrap() };
    let broker = start().await;
    let loaded = topic(&broker, TOPIC).await;
    let client = Client::new();
    let producer = client.produce(&loaded, "p").await.unwrap();
    publish(&client, &producer, &["1", "2"]).await;
    let reader = Client::new();
    let consumer = reader.consume(&loaded, "s", SubscriptionType::Exclusive).await.unwrap();
    loaded.flow(&consumer, 10);
    loaded.acknowledge(&consumer, ack(reader.message().await.entry.position), Some(1));
    while !matches!(reader.next().await, Told::Acknowledged(1, true)) {}
    broker.shut_down().await;
    let bundle = bundle(&metadata).await.to_string();
    let log = metadata.get_cursor_log::<serde_json::Value>(&bundle).await.unwrap().unwrap();
    metadata.put_cursor_log("standalone", &log.value, None, &[], None).await.unwrap();
    metadata.delete_cursor_log(&bundle, &[]).await.unwrap();

    let broker = start().await;
    assert_eq!(metadata.list_cursor_logs().await.unwrap(), [bundle]);
    let loaded = topic(&broker, TOPIC).await;
    let reader = Client::new();
    let consumer = reader.consume(&loaded, "s", SubscriptionType::Exclusive).await.unwrap();
    loaded.flow(&consumer, 10);
    assert_eq!(text(&reader.message().await), "2");
}
