//! What clients are told, and when.

use std::future::ready;

use geminga_broker::BrokerError;
use geminga_topic::SubscriptionType::Failover;

use crate::fixture::{self, Client, Told};

const NAME: &str = "persistent://public/default/t";

#[tokio::test]
async fn termination_closes_producers_and_answers_nothing_before() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    fixture::publish(&client, &producer, &["kept"]).await;

    let mut terminating = Box::pin(topic.terminate());
    tokio::select! {
        biased;
        ended = &mut terminating => panic!("stored without a store: {ended:?}"),
        () = ready(()) => {}
    }
    topic.publish(&producer, &mut fixture::messages(&["late"]));
    let last = terminating.await.unwrap();
    assert_eq!(last.entry_id, 0);
    let told = client.told();
    assert!(matches!(told.as_slice(), [Told::ProducerClosed(0, None)]), "{told:?}");
    let refused = client.produce(&topic, "p").await.err();
    assert!(matches!(refused, Some(BrokerError::TopicTerminated(_))), "{refused:?}");
}

#[tokio::test]
async fn consumers_learn_whether_they_are_active_once_they_listen() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let first = client.consume(&topic, "s", Failover).await.unwrap();
    let told = client.told();
    assert!(told.is_empty(), "{told:?}");
    topic.flow(&first, 10);
    let told = client.told();
    assert!(matches!(told.as_slice(), [Told::Active(id, true)] if *id == first.consumer_id), "{told:?}");
    topic.flow(&first, 10);
    assert!(client.told().is_empty());

    // This one never asks for messages: it is told after a while.
    let second = client.consume(&topic, "s", Failover).await.unwrap();
    let mut active = vec![first.consumer_id];
    loop {
        let Told::Active(id, is_active) = client.next().await else { panic!("nothing else to tell") };
        active.retain(|other| *other != id);
        if is_active {
            active.push(id);
        }
        if id == second.consumer_id {
            break;
        }
    }
    assert_eq!(active.len(), 1);
}
