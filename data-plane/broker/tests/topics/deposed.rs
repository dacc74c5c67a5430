//! A topic whose record somebody else has written.

use std::sync::Arc;

use geminga_broker::Broker;
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, Told};

const NAME: &str = "persistent://public/default/t";

async fn write_record(broker: &Broker) {
    let change = |record: &mut geminga_metadata::TopicRecord| {
        record.properties.insert("written".into(), "by somebody else".into());
        Ok(())
    };
    broker.metadata().update_topic(&fixture::name(NAME), change).await.unwrap();
}

#[tokio::test]
async fn it_closes_itself_and_is_loaded_again() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let (producing, consuming) = (Client::new(), Client::new());
    let producer = producing.produce(&topic, "p").await.unwrap();
    consuming.consume(&topic, "s", Shared).await.unwrap();
    write_record(&broker).await;
    // The first message wants a ledger, which has to go into the record.
    topic.publish(&producer, &mut fixture::messages(&["lost"]));
    assert!(matches!(producing.next().await, Told::SendFailed(0, _)));
    assert!(matches!(producing.next().await, Told::ProducerClosed(..)), "the client is to connect again");
    assert!(matches!(consuming.next().await, Told::ConsumerClosed(..)));
    assert!(producing.produce(&topic, "q").await.is_err());

    let again = fixture::topic(&broker, NAME).await;
    assert!(!Arc::ptr_eq(&again, &topic));
    let producer = producing.produce(&again, "p").await.unwrap();
    let consumer = consuming.consume(&again, "s", Shared).await.unwrap();
    again.flow(&consumer, 10);
    fixture::publish(&producing, &producer, &["kept"]).await;
    assert_eq!(fixture::text(&consuming.message().await), "kept");
}

#[tokio::test]
async fn an_acknowledgement_that_comes_after_its_end_is_refused() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let (producing, consuming) = (Client::new(), Client::new());
    let producer = producing.produce(&topic, "p").await.unwrap();
    let consumer = consuming.consume(&topic, "s", Shared).await.unwrap();
    topic.flow(&consumer, 10);
    fixture::publish(&producing, &producer, &["1"]).await;
    let message = consuming.message().await;
    write_record(&broker).await;
    assert!(topic.terminate().await.is_err());
    assert!(matches!(consuming.next().await, Told::ConsumerClosed(..)));
    let again = fixture::topic(&broker, NAME).await;
    topic.acknowledge(&consumer, fixture::ack(message.entry.position), Some(1));
    assert!(matches!(consuming.next().await, Told::Acknowledged(1, false)));
    let consumer = consuming.consume(&again, "s", Shared).await.unwrap();
    again.flow(&consumer, 10);
    assert_eq!(fixture::text(&consuming.message().await), "1", "and who has it now gives it out");
}

#[tokio::test]
async fn a_change_of_its_record_notices_it_too() {
    let broker = fixture::broker().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    client.produce(&topic, "p").await.unwrap();
    write_record(&broker).await;
    let refused = topic.terminate().await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(matches!(client.next().await, Told::ProducerClosed(..)));
    let again = fixture::topic(&broker, NAME).await;
    client.produce(&again, "p").await.unwrap();
}
