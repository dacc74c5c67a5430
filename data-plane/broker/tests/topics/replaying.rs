//! Entries that are read to be delivered again take their share of memory only until they are, or need not be.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, ConsumerHandle};
use geminga_model::Position;
use geminga_topic::SubscriptionType::Shared;
use geminga_topic::{AckRequest, IndividualAck};

use crate::fixture::{self, Client, publish};

const NAME: &str = "persistent://public/default/t";

struct Redelivery {
    broker: Arc<Broker>,
    client: Arc<Client>,
    consumer: Arc<ConsumerHandle>,
    positions: Vec<Position>,
}

impl Redelivery {
    /// A consumer has given all messages back, and takes no more.
    async fn new() -> Self {
        let broker = fixture::broker().await;
        let topic = fixture::topic(&broker, NAME).await;
        let client = Client::new();
        let producer = client.produce(&topic, "p").await.unwrap();
        publish(&client, &producer, &["m"; 20]).await;
        let consumer = client.consume(&topic, "s", Shared).await.unwrap();
        topic.flow(&consumer, 20);
        let mut positions = Vec::new();
        while positions.len() < 20 {
            positions.push(client.message().await.entry.position);
        }
        topic.redeliver(&consumer, None, None);
        let redelivery = Self { broker, client, consumer, positions };
        assert_eq!(redelivery.held(), 0);
        redelivery
    }

    /// Permits for one message let all be read.
    fn begin(&self) {
        self.consumer.topic.flow(&self.consumer, 1);
    }

    fn held(&self) -> u64 {
        self.broker.memory().read_ahead.used()
    }

    fn acknowledge_all(&self) {
        let ack = |&position| IndividualAck { position, ack_set: Vec::new(), batch_size: None };
        let request = AckRequest::Individual(self.positions.iter().map(ack).collect());
        self.consumer.topic.acknowledge(&self.consumer, request, None);
    }
}

#[tokio::test]
async fn what_is_acknowledged_is_forgotten() {
    let redelivery = Redelivery::new().await;
    redelivery.begin();
    redelivery.client.message().await;
    assert!(redelivery.held() > 0, "the others wait for permits");
    redelivery.acknowledge_all();
    assert_eq!(redelivery.held(), 0);
}

#[tokio::test]
async fn the_last_consumer_leaves_nothing_behind() {
    let redelivery = Redelivery::new().await;
    redelivery.begin();
    redelivery.client.message().await;
    assert!(redelivery.held() > 0);
    redelivery.client.leave();
    assert_eq!(redelivery.held(), 0);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_when_it_was_read_is_not_kept() {
    let meanwhile: [fn(&Redelivery); 2] = [Redelivery::acknowledge_all, |redelivery| redelivery.client.leave()];
    for happens in meanwhile {
        let redelivery = Redelivery::new().await;
        redelivery.begin();
        happens(&redelivery);
        // The read, which has not begun yet, returns.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(redelivery.held(), 0);
    }
}
