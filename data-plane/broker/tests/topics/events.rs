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

#[tokio::test]
async fn a_consumer_learns_that_it_is_active_before_it_gets_messages() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let clients = [Client::new(), Client::new()];
    let mut consumers = Vec::new();
    for client in &clients {
        consumers.push(client.consume(&topic, "s", Failover).await.unwrap());
    }
    let is_active = |told: Vec<Told>| matches!(told.last(), Some(Told::Active(_, true)));
    let mut active = Vec::new();
    for (client, consumer) in clients.iter().zip(&consumers) {
        // Listens, and has no permits.
        topic.flow(consumer, 0);
        active.push(is_active(client.told()));
    }
    let other = active.iter().position(|active| !active).unwrap();
    topic.flow(&consumers[other], 10);
    let publisher = Client::new();
    let producer = publisher.produce(&topic, "p").await.unwrap();
    fixture::publish(&publisher, &producer, &["a", "b"]).await;
    let told = clients[other].told();
    assert!(told.is_empty(), "{told:?}");
    clients[1 - other].leave();
    let told = clients[other].told();
    let id = consumers[other].consumer_id;
    assert!(
        matches!(told.as_slice(), [Told::Active(active, true), Told::Message(..), ..] if *active == id),
        "{told:?}"
    );
}
