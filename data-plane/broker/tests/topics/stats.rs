//! What a topic says of itself.

use std::sync::Arc;

use geminga_broker::{Broker, BrokerConfig, StatsOptions};
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, HeldLedgers, eventually, name, publish};

const NAME: &str = "persistent://public/default/t";

#[tokio::test]
async fn entries_are_counted_since_the_topic_was_loaded() {
    let ledgers = HeldLedgers::default();
    let config = BrokerConfig { max_ledger_bytes: 1, ..BrokerConfig::default() };
    let broker = Broker::start(config, fixture::metadata().await, Arc::new(ledgers.clone())).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    let producer = client.produce(&topic, "p").await.unwrap();
    for text in ["1", "2", "3", "4"] {
        publish(&client, &producer, &[text]).await;
    }
    topic.flow(&consumer, 3);
    for _ in 0..3 {
        let position = client.message().await.entry.position;
        topic.acknowledge(&consumer, fixture::ack(position), None);
    }
    eventually("what is acknowledged is trimmed", || {
        topic.trim_now();
        let left = topic.internal_stats().number_of_entries;
        async move { left < 3 }
    })
    .await;
    let stats = topic.internal_stats();
    let cursor = &stats.cursors["s"];
    assert_eq!((stats.entries_added_counter, cursor.messages_consumed_counter), (4, 3));
    assert!(cursor.cursor_ledger >= 0, "acknowledgements are kept in some ledger");

    ledgers.hold_messages();
    topic.publish(&producer, &mut fixture::messages(&["5", "6"]));
    assert_eq!(topic.internal_stats().pending_add_entries_count, 2);
    ledgers.release_messages();
    client.receipt().await;
    client.receipt().await;
    assert_eq!(topic.internal_stats().pending_add_entries_count, 0);

    client.leave();
    broker.unload(&name(NAME)).await.unwrap();
    let stats = fixture::topic(&broker, NAME).await.internal_stats();
    assert_eq!((stats.entries_added_counter, stats.cursors["s"].messages_consumed_counter), (0, -3));
}

#[tokio::test]
async fn the_oldest_message_of_a_backlog_has_an_age() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let [early, late] =
        [client.consume(&topic, "early", Shared).await.unwrap(), client.consume(&topic, "late", Shared).await.unwrap()];
    let producer = client.produce(&topic, "p").await.unwrap();
    let oldest = || async {
        let stats = topic.stats(&StatsOptions::default()).await.unwrap();
        (stats.oldest_backlog_message_age_seconds, stats.oldest_backlog_message_subscription_name)
    };
    assert_eq!(oldest().await, (-1, None));
    publish(&client, &producer, &["1", "2"]).await;
    for (consumer, permits) in [(&late, 2), (&early, 1)] {
        topic.flow(consumer, permits);
        for _ in 0..permits {
            let position = client.message().await.entry.position;
            assert!(oldest().await.0 >= 0);
            topic.acknowledge(consumer, fixture::ack(position), None);
        }
    }
    let (age, subscription) = oldest().await;
    assert!((0..10).contains(&age), "{age} s");
    assert_eq!(subscription.as_deref(), Some("early"));
}
