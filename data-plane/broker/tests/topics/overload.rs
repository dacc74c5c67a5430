//! What the broker may hold in memory, and more acknowledgements than the disk takes.

use std::sync::Arc;

use geminga_broker::{Broker, BrokerConfig};
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, HeldLedgers, Told};

const NAME: &str = "persistent://public/default/t";

#[tokio::test]
async fn receipts_are_refused_and_the_rest_waits_in_its_cursor() {
    let config = BrokerConfig { max_pending_ack_bytes: 500, ..BrokerConfig::default() };
    let (metadata, ledgers) = (fixture::metadata().await, HeldLedgers::default());
    let broker = Broker::start(config, metadata.clone(), Arc::new(ledgers.clone())).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    let texts: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    fixture::publish(&client, &producer, &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    topic.flow(&consumer, 200);
    let mut positions = Vec::new();
    while positions.len() < 200 {
        positions.push(client.message().await.entry.position);
    }
    let ack = |at: usize| fixture::ack(positions[at]);

    ledgers.hold_acknowledgements();
    let mut asked = 0;
    let refused = loop {
        topic.acknowledge(&consumer, ack(2 * asked), Some(asked as u64));
        asked += 1;
        if let Some(Told::Acknowledged(request, false)) = client.told().pop() {
            break request as usize;
        }
        assert!(asked < 45, "nothing is refused");
    };
    assert!(asked > 5, "some fit into 500 bytes");
    // Without a receipt they are taken, and wait where they are.
    (100..200).for_each(|at| topic.acknowledge(&consumer, ack(at), None));

    ledgers.release_acknowledgements();
    for _ in 0..refused {
        let told = client.next().await;
        assert!(matches!(told, Told::Acknowledged(_, true)), "{told:?}");
    }
    topic.acknowledge(&consumer, ack(2 * refused), Some(1000));
    let told = client.next().await;
    assert!(matches!(told, Told::Acknowledged(1000, true)), "the disk has caught up: {told:?}");
    broker.shut_down().await;

    // All of it is there after a restart.
    let again = Broker::start(BrokerConfig::default(), metadata, Arc::new(ledgers)).await.unwrap();
    let topic = fixture::topic(&again, NAME).await;
    let left = topic.stats(&Default::default()).await.unwrap().subscriptions["s"].msg_backlog;
    assert_eq!(left, 200 - 100 - (refused as u64 + 1));
}

#[tokio::test]
async fn metrics_show_every_budget() {
    let broker = fixture::broker().await;
    let mut page = String::new();
    geminga_broker::metrics::render(&broker, &mut page);
    let fields = format!("{:#?}", broker.memory());
    let names: Vec<&str> = fields
        .lines()
        .filter_map(|line| line.strip_prefix("    ").filter(|line| line.starts_with(char::is_alphabetic)))
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert!(names.contains(&"receiving") && names.contains(&"delayed"), "{fields}");
    for name in names {
        for figure in ["used", "limit"] {
            let sample = format!("geminga_memory_{figure}_bytes{{purpose=\"{name}\"}} ");
            assert!(page.contains(&sample), "{sample}in {page}");
        }
    }
}
