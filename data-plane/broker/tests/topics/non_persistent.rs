//! Non-persistent topics.

use std::sync::atomic::Ordering;

use geminga_broker::{BrokerError, StatsOptions};
use geminga_model::{Position, TopicDomain};
use geminga_topic::{AckRequest, SubscriptionType};

use crate::fixture::{self, Client, Told, messages, name, text};

const NAME: &str = "non-persistent://public/default/t";

fn texts(told: Vec<Told>) -> Vec<String> {
    let text_of = |told| match told {
        Told::Message(_, delivery) => Some(text(&delivery)),
        Told::Active(..) => None,
        other => panic!("{other:?}"),
    };
    told.into_iter().filter_map(text_of).collect()
}

#[tokio::test]
async fn messages_reach_who_is_there_and_are_answered_at_once() {
    use SubscriptionType::*;
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let sender = Client::new();
    let producer = sender.produce(&topic, "p").await.unwrap();
    let mut clients = Vec::new();
    for (subscription, sub_type) in [("e", Exclusive), ("f", Failover), ("s", Shared), ("k", KeyShared)] {
        let client = Client::new();
        let consumer = client.consume(&topic, subscription, sub_type).await.unwrap();
        topic.flow(&consumer, 2);
        clients.push((client, consumer));
    }
    topic.publish(&producer, &mut messages(&["a", "b", "c"]));
    let positions: Vec<Position> = sender
        .told()
        .into_iter()
        .map(|told| match told {
            Told::Receipt(receipt) => receipt.position.unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    for (client, _) in &clients {
        assert_eq!(texts(client.told()), ["a", "b"], "two permits");
    }

    let (slow, consumer) = &clients[0];
    slow.writable.store(false, Ordering::Relaxed);
    topic.flow(consumer, 10);
    topic.publish(&producer, &mut messages(&["d"]));
    topic.publish(&producer, &mut messages(&["lost"]));
    assert_eq!(texts(slow.told()), ["d"], "a connection that takes no more is passed over");
    slow.writable.store(true, Ordering::Relaxed);
    topic.consumer_writable(consumer);
    topic.publish(&producer, &mut messages(&["e"]));
    assert_eq!(texts(slow.told()), ["e"], "and gets what comes later");

    topic.acknowledge(consumer, AckRequest::Cumulative { position: positions[1], ack_set: Vec::new() }, Some(7));
    assert!(matches!(slow.told()[..], [Told::Acknowledged(7, true)]));
    let stats = topic.stats(&StatsOptions::default()).await.unwrap();
    assert_eq!((stats.msg_in_counter, stats.msg_out_counter, stats.storage_size), (6, 10, 0));
    assert_eq!(stats.msg_drop_rate, Some(0.0), "rates need two samples");
    let sub = &stats.subscriptions["s"];
    assert_eq!((sub.msg_backlog, sub.unacked_messages, sub.durable, &*sub.sub_type), (0, 0, false, "Shared"));
    let record = broker.metadata().get_topic(&name(NAME)).await.unwrap().unwrap();
    assert!(record.value.ledgers.is_empty());
}

#[tokio::test]
async fn subscriptions_last_as_long_as_the_topic_is_loaded() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    client.consume(&topic, "asked-durable", SubscriptionType::Shared).await.unwrap();
    let reader = fixture::request("reader", SubscriptionType::Exclusive);
    client.subscribe(&topic, geminga_broker::SubscribeRequest { durable: false, ..reader }).await.unwrap();
    topic
        .create_subscription(&"admin".into(), geminga_broker::InitialPosition::Latest, Default::default(), true)
        .await
        .unwrap();
    assert_eq!(topic.subscription_names().len(), 3);
    client.leave();
    let names: Vec<String> = topic.subscription_names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["admin", "asked-durable"]);
    topic.delete_subscription("admin", None, false).await.unwrap();
    assert!(broker.metadata().list_subscriptions(&name(NAME)).await.unwrap().is_empty());
    drop(producer);

    broker.unload(&name(NAME)).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    assert!(topic.subscription_names().is_empty());
    assert_eq!(broker.topics(&"public/default".parse().unwrap(), &[TopicDomain::NonPersistent]).await.unwrap(), [NAME]);
    assert!(broker.topics(&"public/default".parse().unwrap(), &[TopicDomain::Persistent]).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_needs_stored_messages_is_refused() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let consumer = client.consume(&topic, "s", SubscriptionType::Exclusive).await.unwrap();
    let refusals = [
        topic.skip_messages("s", 1).await.err(),
        topic.clear_backlog("s").await.err(),
        topic.expire("s", 1).await.err(),
        topic.peek("s", 1).await.err(),
        topic.last_message(&consumer).await.err(),
        topic.terminate().await.err(),
        topic.truncate().await.err(),
    ];
    // A seek is no error, as in Pulsar, and does nothing.
    topic.seek("s", Position::EARLIEST, &[]).await.unwrap();
    topic.reset_to_time("s", 0).await.unwrap();
    assert!(topic.seek("none", Position::EARLIEST, &[]).await.is_err());
    for refusal in refusals {
        match refusal {
            Some(BrokerError::NotAllowed(text)) => assert!(text.ends_with("on a non-persistent topic is not allowed")),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn partitions_are_non_persistent_too() {
    let broker = fixture::broker().await;
    broker.create_new_partitioned(&name(NAME), 2, Default::default()).await.unwrap();
    assert_eq!(broker.partitions(&name(NAME), true).await.unwrap(), 2);
    let client = Client::new();
    let topic = fixture::topic(&broker, &format!("{NAME}-partition-1")).await;
    let producer = client.produce(&topic, "p").await.unwrap();
    let receiver = Client::new();
    let consumer = receiver.consume(&topic, "s", SubscriptionType::Failover).await.unwrap();
    topic.flow(&consumer, 10);
    topic.publish(&producer, &mut messages(&["a"]));
    assert_eq!(texts(receiver.told()), ["a"]);
    broker.delete_partitioned(&name(NAME), true).await.unwrap();
    assert!(matches!(receiver.told()[..], [Told::ConsumerClosed(..)]));
    assert!(broker.topics(&"public/default".parse().unwrap(), &TopicDomain::ALL).await.unwrap().is_empty());
}
