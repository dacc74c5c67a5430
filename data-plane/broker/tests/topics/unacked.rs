//! Subscriptions whose consumers do not acknowledge, in little memory.

use geminga_broker::BrokerConfig;
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, eventually, publish};

const NAME: &str = "persistent://public/default/t";
const MESSAGES: usize = 3000;

/// Nothing comes to the second subscription's own consumer that would let it look again.
#[tokio::test]
async fn a_subscription_goes_on_when_another_one_gives_back_memory() {
    let config = BrokerConfig { memory_limit: 1 << 20, ..BrokerConfig::default() };
    let broker = fixture::broker_with(config).await;
    let topic = fixture::topic(&broker, NAME).await;
    let (first, second, producing) = (Client::new(), Client::new(), Client::new());
    let consumers =
        [first.consume(&topic, "a", Shared).await.unwrap(), second.consume(&topic, "b", Shared).await.unwrap()];
    let producer = producing.produce(&topic, "p").await.unwrap();
    let texts = vec!["text"; MESSAGES];
    publish(&producing, &producer, &texts).await;
    for consumer in &consumers {
        topic.flow(consumer, MESSAGES as u32);
    }
    let unacked = || {
        let topic = topic.clone();
        async move {
            let stats = topic.stats(&Default::default()).await.unwrap();
            ["a", "b"].map(|name| stats.subscriptions[name].unacked_messages as usize)
        }
    };
    eventually("both wait for memory", || {
        let explain = |name| topic.explain(name).unwrap()["summary"].to_string();
        let waits =
            ["a", "b"].map(explain).iter().all(|why| why.contains("memory for unacknowledged messages is used up"));
        async move { waits }
    })
    .await;
    let [many, few] = unacked().await;
    assert!(many < MESSAGES && few < many && few >= 64, "{many} and {few}");
    assert!(broker.memory().unacked.used() <= broker.memory().unacked.limit());
    first.leave();
    eventually("the other one has more", || async { unacked().await[1] > few }).await;
}
