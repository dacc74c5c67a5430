//! What deduplication knows survives crashes, wherever it was stored by then.

use std::sync::Arc;

use geminga_broker::{Broker, BrokerConfig, Topic};
use geminga_metadata::{Metadata, TopicPolicies};
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, HeldLedgers, LateStore, Told, eventually, name};

const NAME: &str = "persistent://public/default/t";

async fn broker(metadata: &Metadata, ledgers: &HeldLedgers) -> Arc<Broker> {
    let config = BrokerConfig { deduplication: true, max_ledger_bytes: 200, ..BrokerConfig::default() };
    Broker::start(config, metadata.clone(), Arc::new(ledgers.clone())).await.unwrap()
}

/// Sends a message with this sequence id; whether it was stored.
async fn send(client: &Arc<Client>, topic: &Arc<Topic>, producer: &str, sequence_id: u64) -> bool {
    let producer = client.produce(topic, producer).await.unwrap();
    topic.publish(&producer, &mut vec![fixture::message("a text of some length, so that ledgers fill", sequence_id)]);
    let stored = client.receipt().await.position.is_some();
    topic.remove_producer(&producer);
    stored
}

/// The topic's first snapshot may be lost with the end of the cursor log: then all that is stored counts.
#[tokio::test]
async fn without_a_first_snapshot_everything_is_read() {
    let (metadata, ledgers) = (fixture::metadata().await, HeldLedgers::default());
    let client = Client::new();
    let first = broker(&metadata, &ledgers).await;
    ledgers.hold_acknowledgements();
    let topic = fixture::topic(&first, NAME).await;
    for sequence_id in 0..4 {
        assert!(send(&client, &topic, "p", sequence_id).await);
    }
    // A crash.
    let second = broker(&metadata, &ledgers.after_crash()).await;
    let topic = fixture::topic(&second, NAME).await;
    for sequence_id in 0..4 {
        assert!(!send(&client, &topic, "p", sequence_id).await, "{sequence_id} was stored twice");
    }
    assert!(send(&client, &topic, "p", 4).await);
}

/// Had a message been stored behind one that failed, the repeat of the one that failed would be taken for a duplicate.
#[tokio::test]
async fn nothing_passes_a_message_that_failed() {
    let (metadata, ledgers) = (fixture::metadata().await, HeldLedgers::default());
    let client = Client::new();
    let broker = broker(&metadata, &ledgers).await;
    let topic = fixture::topic(&broker, NAME).await;
    let producer = client.produce(&topic, "p").await.unwrap();
    ledgers.fail_once();
    for sequence_id in 0..3 {
        topic.publish(&producer, &mut vec![fixture::message("text", sequence_id)]);
        match client.next().await {
            Told::SendFailed(failed, _) => assert_eq!(failed, sequence_id),
            other => panic!("{sequence_id}: {other:?}"),
        }
    }
    producer.connected_again();
    topic.publish(&producer, &mut vec![fixture::message("text", 0)]);
    assert!(client.receipt().await.position.is_some());
    topic.remove_producer(&producer);
    for sequence_id in 1..3 {
        assert!(send(&client, &topic, "p", sequence_id).await, "{sequence_id} was not stored before");
        assert!(!send(&client, &topic, "p", sequence_id).await, "now it was");
    }
}

/// Entries that no snapshot takes account of are all that tells a message from its repetition.
#[tokio::test]
async fn trimming_waits_for_a_snapshot() {
    let (metadata, ledgers) = (fixture::metadata().await, HeldLedgers::default());
    let client = Client::new();
    let first = broker(&metadata, &ledgers).await;
    let topic = fixture::topic(&first, NAME).await;
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    assert!(send(&client, &topic, "early", 0).await);
    for sequence_id in 0..10 {
        assert!(send(&client, &topic, "late", sequence_id).await);
    }
    topic.flow(&consumer, 100);
    for _ in 0..11 {
        let position = client.message().await.entry.position;
        topic.acknowledge(&consumer, fixture::ack(position), None);
    }
    let before = topic.internal_stats().ledgers.len();
    fixture::eventually("the topic is trimmed", || {
        topic.trim_now();
        let left = topic.internal_stats().ledgers.len();
        async move { left < before.min(3) }
    })
    .await;
    // No snapshot is taken at the end.
    first.shut_down().await;
    let second = broker(&metadata, &ledgers.after_crash()).await;
    let topic = fixture::topic(&second, NAME).await;
    let client = Client::new();
    assert!(!send(&client, &topic, "early", 0).await, "it was stored, and was trimmed since");
    assert!(!send(&client, &topic, "late", 9).await);
    assert!(send(&client, &topic, "late", 10).await);
}

fn switched<E>(on: bool) -> impl FnMut(&mut TopicPolicies) -> Result<(), E> {
    move |policies| {
        policies.deduplication_enabled = Some(on);
        Ok(())
    }
}

async fn switch(broker: &Broker, on: bool) {
    broker.update_topic_policies(&name(NAME), switched(on)).await.unwrap();
}

async fn is_stored(metadata: &Metadata) -> bool {
    metadata.get_subscription(&name(NAME), "pulsar.dedup").await.unwrap().is_some()
}

/// While it is off, producers may begin to number their messages anew.
#[tokio::test]
async fn switched_on_again_it_starts_afresh() {
    let (metadata, ledgers) = (fixture::metadata().await, HeldLedgers::default());
    let client = Client::new();
    let first = broker(&metadata, &ledgers).await;
    let topic = fixture::topic(&first, NAME).await;
    for sequence_id in 0..4 {
        assert!(send(&client, &topic, "p", sequence_id).await);
    }
    assert!(client.consume(&topic, "pulsar.dedup", Shared).await.is_err(), "it is no subscription to be taken up");
    switch(&first, false).await;
    assert!(!is_stored(&metadata).await);
    assert!(send(&client, &topic, "p", 0).await);
    ledgers.hold_acknowledgements();
    switch(&first, true).await;
    assert!(is_stored(&metadata).await);
    assert!(send(&client, &topic, "p", 1).await);
    assert!(!send(&client, &topic, "p", 1).await);

    // A crash before the first snapshot: what was stored before it was switched on does not count.
    let second = broker(&metadata, &ledgers.after_crash()).await;
    let topic = fixture::topic(&second, NAME).await;
    assert!(!send(&client, &topic, "p", 1).await);
    assert!(send(&client, &topic, "p", 2).await);
    second.shut_down().await;

    // It is switched off while nobody serves the topic.
    metadata.update_topic_policies(&name(NAME), switched(false)).await.unwrap();
    let third = broker(&metadata, &ledgers.after_crash()).await;
    let topic = fixture::topic(&third, NAME).await;
    assert!(!is_stored(&metadata).await);
    assert!(send(&client, &topic, "p", 0).await);
    switch(&third, true).await;
    assert!(send(&client, &topic, "p", 1).await);
}

#[tokio::test]
async fn it_is_on_until_metadata_has_forgotten_it() {
    for switched_on_at_once in [true, false] {
        let (store, ledgers) = (Arc::new(LateStore::default()), HeldLedgers::default());
        let metadata = fixture::metadata_in(store.clone()).await;
        let client = Client::new();
        let broker = broker(&metadata, &ledgers).await;
        let topic = fixture::topic(&broker, NAME).await;
        for sequence_id in 0..4 {
            assert!(send(&client, &topic, "p", sequence_id).await);
        }
        store.hold("subscriptions/");
        broker.update_topic_policies(&name(NAME), switched(false)).await.unwrap_err();
        assert!(store.is_held());
        assert!(!send(&client, &topic, "p", 3).await, "what is stored knows of all messages");
        if !switched_on_at_once {
            eventually("it is tried again", || async { !is_stored(&metadata).await }).await;
            assert!(send(&client, &topic, "p", 0).await);
        }
        switch(&broker, true).await;
        assert!(is_stored(&metadata).await);
        for sequence_id in 1..4 {
            assert!(send(&client, &topic, "p", sequence_id).await);
            assert!(!send(&client, &topic, "p", sequence_id).await);
        }
    }
}

/// What was on its way when it was switched on was looked at by nobody; the first part of a message is not the message.
#[tokio::test]
async fn a_message_in_parts_is_stored_though_it_is_switched_on_between_them() {
    let (metadata, ledgers) = (fixture::metadata().await, HeldLedgers::default());
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(ledgers.clone())).await.unwrap();
    let client = Client::new();
    let topic = fixture::topic(&broker, NAME).await;
    let producer = client.produce(&topic, "p").await.unwrap();
    ledgers.hold_messages();
    let part = |inner_chunk| geminga_broker::Publish { inner_chunk, ..fixture::message("part", 0) };
    topic.publish(&producer, &mut vec![part(true)]);
    broker.update_topic_policies(&name(NAME), switched(true)).await.unwrap();
    ledgers.release_messages();
    assert!(client.receipt().await.position.is_some());
    topic.publish(&producer, &mut vec![part(false)]);
    assert!(client.receipt().await.position.is_some(), "the other part was taken for a repetition");
    topic.publish(&producer, &mut vec![part(false)]);
    assert!(client.receipt().await.position.is_none(), "this is one");
}
