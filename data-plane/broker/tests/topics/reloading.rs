//! A topic that is loaded again while what it wrote in metadata before is still under way.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, Topic};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::Metadata;
use geminga_topic::AckRequest;
use geminga_topic::SubscriptionType::Exclusive;

use crate::fixture::{self, Client, LateStore, Told, eventually, name, publish};

const NAME: &str = "persistent://public/default/t";
/// Longest time that closing may take, whatever becomes of metadata.
const QUICK: Duration = Duration::from_secs(1);

/// A broker, and one of its topics with three ledgers of a message each, behind all of which a subscription is.
async fn three_ledgers(store: &Arc<LateStore>) -> (Arc<Broker>, Metadata, Arc<Topic>) {
    let metadata = fixture::metadata_in(store.clone()).await;
    let config = BrokerConfig { max_ledger_bytes: 1, ..BrokerConfig::default() };
    let broker = Broker::start(config, metadata.clone(), Arc::new(MemoryLedgers::default())).await.unwrap();
    // What fails is tried again in the next one, which is long after.
    eventually("a round of upkeep is over", || async { broker.housekeeping_rounds() > 0 }).await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    client.consume(&topic, "s", Exclusive).await.unwrap();
    let producer = client.produce(&topic, "p").await.unwrap();
    for text in ["1", "2", "3"] {
        publish(&client, &producer, &[text]).await;
    }
    client.leave();
    (broker, metadata, topic)
}

async fn unload(broker: &Broker) {
    tokio::time::timeout(QUICK, broker.unload(&name(NAME))).await.expect("nobody waits for metadata").unwrap();
}

async fn messages(topic: &Arc<Topic>, subscription: &str, count: usize) -> Vec<String> {
    let client = Client::new();
    let consumer = client.consume(topic, subscription, Exclusive).await.unwrap();
    topic.flow(&consumer, count as u32);
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(fixture::text(&client.message().await));
    }
    client.leave();
    texts
}

/// Acknowledges everything in `s`, and has the topic trimmed, once.
async fn trim(topic: &Arc<Topic>) {
    let client = Client::new();
    client.consume(topic, "unused", Exclusive).await.unwrap();
    let consumer = client.consume(topic, "s", Exclusive).await.unwrap();
    topic.flow(&consumer, 3);
    let mut last = None;
    for _ in 0..3 {
        last = Some(client.message().await.entry.position);
    }
    let all = AckRequest::Cumulative { position: last.unwrap(), ack_set: Vec::new() };
    topic.acknowledge(&consumer, all, Some(1));
    assert!(matches!(client.next().await, Told::Acknowledged(1, true)));
    client.leave();
    topic.delete_subscription("unused", None, false).await.unwrap();
}

#[tokio::test]
async fn what_a_closed_topic_trims_is_kept_by_the_next_one() {
    for is_awaited in [true, false] {
        let store = Arc::new(LateStore::default());
        let (broker, metadata, topic) = three_ledgers(&store).await;
        match is_awaited {
            true => store.delay("garbage/"),
            false => store.hold("garbage/"),
        }
        trim(&topic).await;
        eventually("it is being trimmed", || async { store.is_held() }).await;

        unload(&broker).await;
        let again = fixture::topic(&broker, NAME).await;
        assert!(!Arc::ptr_eq(&again, &topic));
        // From the first message on, which is there still.
        let client = Client::new();
        client.consume(&again, "late", Exclusive).await.unwrap();
        client.leave();
        let late = store.release().await;
        assert!(late.as_ref().is_err_and(|error| error.is_conflict()), "awaited: {is_awaited}, {late:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(messages(&again, "late", 3).await, ["1", "2", "3"]);
        let client = Client::new();
        let producer = client.produce(&again, "p").await.unwrap();
        publish(&client, &producer, &["4"]).await;
        assert!(again.is_serving() && metadata.list_garbage(10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_has_come_to_pass_before_it_is_loaded_again_is_known() {
    let store = Arc::new(LateStore::default());
    let (broker, _, topic) = three_ledgers(&store).await;
    store.hold("garbage/");
    trim(&topic).await;
    eventually("it is being trimmed", || async { store.is_held() }).await;
    unload(&broker).await;
    store.release().await.unwrap();
    let again = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&again, "p").await.unwrap();
    publish(&client, &producer, &["4"]).await;
    assert!(again.is_serving());
    assert_eq!(messages(&again, "s", 1).await, ["4"]);
}

#[tokio::test]
async fn a_subscription_that_a_closed_topic_deletes_stays_with_the_next_one() {
    let store = Arc::new(LateStore::default());
    let (broker, metadata, topic) = three_ledgers(&store).await;
    store.delay("subscriptions/");
    let deleting = tokio::spawn({
        let topic = topic.clone();
        async move { topic.delete_subscription("s", None, false).await }
    });
    eventually("it is being deleted", || async { store.is_held() }).await;
    // Behind the one that is under way: it finds the topic closed.
    let creating = tokio::spawn({
        let topic = topic.clone();
        async move {
            let initial = geminga_broker::InitialPosition::Earliest;
            topic.create_subscription(&"new".into(), initial, Default::default(), true).await
        }
    });
    unload(&broker).await;
    let again = fixture::topic(&broker, NAME).await;
    let late = store.release().await;
    assert!(late.as_ref().is_err_and(|error| error.is_conflict()), "{late:?}");
    assert!(deleting.await.unwrap().is_err() && creating.await.unwrap().is_err());
    assert_eq!(metadata.list_subscriptions(&name(NAME)).await.unwrap().len(), 1);
    assert_eq!(messages(&again, "s", 3).await, ["1", "2", "3"]);
}

/// Nobody may go on with it, when it is loaded again, as if it were there.
#[tokio::test]
async fn a_topic_that_is_unloaded_while_it_is_deleted_is_deleted_before_it_is_loaded_or_not_at_all() {
    let store = Arc::new(LateStore::default());
    let (broker, _, _) = three_ledgers(&store).await;
    store.delay("topics/");
    let deleting = tokio::spawn({
        let broker = broker.clone();
        async move { broker.delete_topic(&name(NAME), true).await }
    });
    eventually("it is being deleted", || async { store.is_held() }).await;
    unload(&broker).await;
    let again = fixture::topic(&broker, NAME).await;
    assert!(store.release().await.is_err_and(|error| error.is_conflict()));
    assert!(deleting.await.unwrap().is_err());
    assert_eq!(messages(&again, "s", 3).await, ["1", "2", "3"]);
}

/// As what was spawned before it was closed, and begins only now.
#[tokio::test]
async fn a_closed_topic_writes_nothing() {
    let store = Arc::new(LateStore::default());
    let (broker, metadata, topic) = three_ledgers(&store).await;
    unload(&broker).await;
    let again = fixture::topic(&broker, NAME).await;
    assert!(topic.delete_subscription("s", None, true).await.is_err());
    assert!(topic.change_properties(|properties| properties.clear()).await.is_err());
    assert!(topic.set_subscription_properties("s", [("k".into(), "v".into())].into()).await.is_err());
    let subscriptions = metadata.list_subscriptions(&name(NAME)).await.unwrap();
    assert!(subscriptions[0].1.value.properties.is_empty());
    let client = Client::new();
    let producer = client.produce(&again, "p").await.unwrap();
    publish(&client, &producer, &["4"]).await;
    assert_eq!(messages(&again, "s", 4).await, ["1", "2", "3", "4"]);
}
