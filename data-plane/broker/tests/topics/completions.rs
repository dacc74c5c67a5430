//! Who handles what storage has finished.

use std::sync::Arc;

use geminga_broker::{Broker, BrokerConfig};
use geminga_topic::SubscriptionType::Exclusive;

use crate::fixture::{self, Client, HeldLedgers, Told};

const NAME: &str = "persistent://public/default/t";

/// Storage finishes what it holds, on a thread of its own. The only thread of the test's runtime waits for that, so that no task
/// runs meanwhile.
fn finish(ledgers: &HeldLedgers) {
    let ledgers = ledgers.clone();
    std::thread::spawn(move || ledgers.release_messages()).join().expect("handled without a panic");
}

fn numbers(told: &[Told]) -> Vec<u64> {
    let receipts = told.iter().filter_map(|told| match told {
        Told::Receipt(receipt) => Some(receipt.sequence_id),
        _ => None,
    });
    receipts.collect()
}

#[tokio::test]
async fn where_few_appends_are_under_way_the_thread_that_finishes_them_tells_clients() {
    let ledgers = HeldLedgers::default();
    let metadata = fixture::metadata().await;
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(ledgers.clone())).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    let (client, reader) = (Client::new(), Client::new());
    let producer = client.produce(&topic, "p").await.unwrap();
    let consumer = reader.consume(&topic, "s", Exclusive).await.unwrap();
    topic.flow(&consumer, 100);
    fixture::publish(&client, &producer, &["first"]).await;
    reader.message().await;

    ledgers.hold_messages();
    (1..4).for_each(|number| topic.publish(&producer, &mut vec![fixture::message("few", number)]));
    finish(&ledgers);
    assert_eq!(numbers(&client.told()), [1, 2, 3]);
    assert_eq!(reader.told().len(), 3);

    ledgers.hold_messages();
    (4..40).for_each(|number| topic.publish(&producer, &mut vec![fixture::message("many", number)]));
    finish(&ledgers);
    assert!(numbers(&client.told()).is_empty(), "many are handed over, and none goes before them");
    for number in 4..40 {
        assert_eq!(client.receipt().await.sequence_id, number);
    }
}

#[tokio::test]
async fn a_topic_with_many_subscriptions_does_not_keep_the_storage_waiting() {
    let ledgers = HeldLedgers::default();
    let metadata = fixture::metadata().await;
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(ledgers.clone())).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    for number in 0..9 {
        client.consume(&topic, &format!("s{number}"), Exclusive).await.unwrap();
    }
    fixture::publish(&client, &producer, &["first"]).await;

    ledgers.hold_messages();
    topic.publish(&producer, &mut vec![fixture::message("one", 1)]);
    finish(&ledgers);
    assert!(numbers(&client.told()).is_empty());
    assert_eq!(client.receipt().await.sequence_id, 1);
}
