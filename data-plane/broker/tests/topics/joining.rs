//! Consumers and producers that join while something else goes wrong.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, BrokerError, InitialPosition, SubscribeRequest};
use geminga_ledger_client::MemoryLedgers;
use geminga_topic::SubscriptionType::{Failover, KeyShared, Shared};
use geminga_topic::producers::AccessMode;
use geminga_topic::{ConsumerSpec, KeySharedMode, KeySharedSpec};

use crate::fixture::{self, Client, LateStore, Told, eventually, name, publish, request, text};

const NAME: &str = "persistent://public/default/t";

#[tokio::test]
async fn a_subscription_that_came_into_being_unnoticed_is_taken_up() {
    let store = Arc::new(LateStore::default());
    let metadata = fixture::metadata_in(store.clone()).await;
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(MemoryLedgers::default())).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    publish(&client, &producer, &["before"]).await;
    let latest = || SubscribeRequest { initial: InitialPosition::Latest, ..request("s", Shared) };
    store.hold("subscriptions/");
    client.subscribe(&topic, latest()).await.map(drop).unwrap_err();
    store.release().await.unwrap();
    publish(&client, &producer, &["after"]).await;
    let consumer = client.subscribe(&topic, latest()).await.unwrap();
    topic.flow(&consumer, 10);
    assert_eq!(text(&client.message().await), "after", "it begins where it was created");

    let admin = "admin".into();
    let create = || topic.create_subscription(&admin, InitialPosition::Latest, Default::default(), true);
    store.hold("subscriptions/");
    create().await.unwrap_err();
    store.release().await.unwrap();
    let refused = create().await;
    assert!(matches!(refused, Err(BrokerError::AlreadyExists(_))), "{refused:?}");
    client.consume(&topic, "admin", Shared).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_is_refused_leaves_no_subscription() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let ranges = KeySharedSpec { mode: KeySharedMode::Sticky(vec![(5, 1)]), allow_out_of_order: false };
    let refused = SubscribeRequest {
        durable: false,
        consumer: ConsumerSpec { sub_type: KeyShared, key_shared: Some(ranges), ..Default::default() },
        ..request("s", KeyShared)
    };
    let refused = Client::new().subscribe(&topic, refused).await.err();
    assert!(matches!(refused, Some(BrokerError::ConsumerAssign(_))), "{refused:?}");
    assert!(topic.subscription_names().is_empty());
}

/// Java's client never comes back from being fenced.
#[tokio::test]
async fn a_producer_whose_turn_comes_as_its_topic_closes_is_to_come_back() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let (first, second) = (Client::new(), Client::new());
    first.produce_as(&topic, "p", AccessMode::Exclusive).await.unwrap();
    let mut joining = std::pin::pin!(second.produce_as(&topic, "q", AccessMode::WaitForExclusive));
    let waits = tokio::time::timeout(Duration::ZERO, &mut joining).await;
    assert!(waits.is_err());
    first.leave();
    eventually("it is let in", || async { topic.has_clients() }).await;
    // And sent away again before it is told.
    broker.unload(&name(NAME)).await.unwrap();
    let refused = joining.await.err();
    assert!(matches!(refused, Some(BrokerError::ServiceNotReady(_))), "{refused:?}");
}

/// Its FLOW may come before the server has gone on from its answer to SUBSCRIBE.
#[tokio::test]
async fn a_consumer_that_asks_for_messages_at_once_is_told_once_that_it_is_active() {
    let broker = fixture::broker().await;
    let client = Client::new();
    let topic = fixture::topic(&broker, NAME).await;
    let consumer = topic.subscribe(request("s", Failover), client.clone()).await.unwrap();
    topic.flow(&consumer, 10);
    topic.consumer_ready(&consumer);
    let active = client.told().into_iter().filter_map(|told| match told {
        Told::Active(_, active) => Some(active),
        _ => None,
    });
    assert_eq!(active.collect::<Vec<_>>(), [true]);
}
