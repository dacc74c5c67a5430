//! Who holds a place that somebody else wants is asked whether it is still there.

use std::sync::atomic::Ordering;

use geminga_broker::BrokerError;
use geminga_topic::SubscriptionType::{Exclusive, Failover, Shared};
use geminga_topic::producers::AccessMode;

use crate::fixture::{self, Client};

const NAME: &str = "persistent://public/default/t";

#[tokio::test]
async fn a_dead_consumer_makes_room() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let (first, second) = (Client::new(), Client::new());
    first.consume(&topic, "s", Exclusive).await.unwrap();
    let refused = second.consume(&topic, "s", Exclusive).await.err();
    assert!(matches!(refused, Some(BrokerError::ConsumerBusy(_))), "{refused:?}");
    assert_eq!(first.pinged.load(Ordering::Relaxed), 1);
    let refused = first.consume(&topic, "s", Exclusive).await.err();
    assert!(matches!(refused, Some(BrokerError::ConsumerBusy(_))), "a connection need not be asked about itself");
    assert_eq!(first.pinged.load(Ordering::Relaxed), 1);

    first.alive.store(false, Ordering::Relaxed);
    second.consume(&topic, "s", Shared).await.unwrap();
    let third = Client::new();
    third.consume(&topic, "s", Shared).await.unwrap();
    third.alive.store(false, Ordering::Relaxed);
    let refused = Client::new().consume(&topic, "s", Failover).await.err();
    assert!(matches!(refused, Some(BrokerError::ConsumerBusy(_))), "one of two is alive: {refused:?}");
    assert_eq!(topic.explain("s").unwrap()["consumers"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_dead_producer_makes_room() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let (first, second) = (Client::new(), Client::new());
    first.produce(&topic, "p").await.unwrap();
    let refused = second.produce(&topic, "p").await.err();
    assert!(matches!(refused, Some(BrokerError::ProducerBusy(_))), "{refused:?}");
    first.alive.store(false, Ordering::Relaxed);
    second.produce(&topic, "p").await.unwrap();

    let refused = first.produce_as(&topic, "q", AccessMode::Exclusive).await.err();
    assert!(matches!(refused, Some(BrokerError::ProducerFenced(_))), "{refused:?}");
    second.alive.store(false, Ordering::Relaxed);
    first.produce_as(&topic, "q", AccessMode::Exclusive).await.unwrap();
    first.alive.store(false, Ordering::Relaxed);
    second.produce(&topic, "p").await.unwrap();
}
