//! Topics that nobody uses leave memory, and nobody notices.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, Topic};
use geminga_metadata::Policies;
use geminga_metadata::policies::RetentionPolicies;
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, ack, eventually, name, publish, text};

const TOPIC: &str = "persistent://public/default/idle";

fn config() -> BrokerConfig {
    BrokerConfig {
        housekeeping_interval: Duration::from_millis(5),
        idle_topics_unloaded_after: Duration::from_millis(100),
        ..BrokerConfig::default()
    }
}

fn metric(broker: &Broker, name: &str) -> u64 {
    let mut page = String::new();
    geminga_broker::metrics::render(broker, &mut page);
    let lines = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

async fn rests(broker: &Broker) {
    eventually("the topic leaves memory", || async {
        broker.loaded(&name(TOPIC)).is_none() && metric(broker, "geminga_topics_resting") == 1
    })
    .await;
}

/// A topic with a subscription, and messages that nobody has acknowledged but the first.
async fn topic_with_backlog(broker: &Arc<Broker>) -> Arc<Topic> {
    let client = Client::new();
    let topic = fixture::topic(broker, TOPIC).await;
    let producer = client.produce(&topic, "p").await.unwrap();
    publish(&client, &producer, &["a", "b", "c"]).await;
    client.leave();
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    topic.flow(&consumer, 1);
    let first = client.message().await;
    topic.acknowledge(&consumer, ack(first.entry.position), None);
    client.leave();
    topic
}

async fn policies(broker: &Broker, change: impl Fn(&mut Policies) + Send + Sync) {
    let namespace = "public/default".parse().unwrap();
    let changed = broker.update_namespace_policies(&namespace, |policies| {
        change(policies);
        Ok(())
    });
    changed.await.unwrap();
}

async fn rounds(broker: &Broker, rounds: u64) {
    let until = broker.housekeeping_rounds() + rounds;
    eventually("rounds of upkeep", || async { broker.housekeeping_rounds() >= until }).await;
}

#[tokio::test]
async fn an_idle_topic_leaves_memory_and_comes_back_as_it_was() {
    let broker = fixture::broker_with(config()).await;
    drop(topic_with_backlog(&broker).await);
    rests(&broker).await;
    for (figure, expected) in [
        ("pulsar_topics_count", 1),
        ("pulsar_broker_topics_count", 1),
        ("pulsar_subscriptions_count", 1),
        ("pulsar_msg_backlog", 2),
        ("pulsar_broker_msg_backlog", 2),
        ("pulsar_in_messages_total", 3),
        ("pulsar_out_messages_total", 1),
    ] {
        assert_eq!(metric(&broker, figure), expected, "{figure}");
    }

    let client = Client::new();
    let topic = fixture::topic(&broker, TOPIC).await;
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    topic.flow(&consumer, 10);
    let texts = [text(&client.message().await), text(&client.message().await)];
    assert_eq!(texts, ["b", "c"], "what was acknowledged is not delivered again");
    let producer = client.produce(&topic, "p").await.unwrap();
    publish(&client, &producer, &["d"]).await;
    rounds(&broker, 100).await;
    assert!(topic.is_serving(), "whoever is connected keeps it in memory");
    for (figure, expected) in [
        ("geminga_topics_resting", 0),
        ("pulsar_topics_count", 1),
        ("pulsar_msg_backlog", 3),
        ("pulsar_in_messages_total", 4),
        ("pulsar_out_messages_total", 4),
    ] {
        assert_eq!(metric(&broker, figure), expected, "{figure}");
    }
}

#[tokio::test]
async fn a_topic_stays_while_a_policy_has_something_to_do_in_it() {
    let broker = fixture::broker_with(config()).await;
    policies(&broker, |policies| policies.message_ttl_in_seconds = Some(4_000_000_000)).await;
    let topic = topic_with_backlog(&broker).await;
    rounds(&broker, 100).await;
    assert!(topic.is_serving(), "its messages are to expire");
    policies(&broker, |policies| policies.message_ttl_in_seconds = None).await;
    drop(topic);
    rests(&broker).await;
    policies(&broker, |policies| policies.message_ttl_in_seconds = Some(1)).await;
    eventually("it is woken, and its messages expire", || async { metric(&broker, "pulsar_msg_backlog") == 0 }).await;
    rests(&broker).await;
}

#[tokio::test]
async fn a_topic_wakes_when_its_ledgers_are_to_be_trimmed() {
    let retention = RetentionPolicies { retention_time_in_minutes: -1, retention_size_in_mb: -1, ..Default::default() };
    let broker = fixture::broker_with(BrokerConfig { max_ledger_age: Duration::from_secs(3), ..config() }).await;
    policies(&broker, |policies| policies.retention_policies = Some(retention.clone())).await;
    let topic = topic_with_backlog(&broker).await;
    topic.clear_backlog("s").await.unwrap();
    drop(topic);
    rests(&broker).await;
    rounds(&broker, 100).await;
    assert!(metric(&broker, "pulsar_storage_size") > 0, "everything is retained");
    policies(&broker, |policies| policies.retention_policies = None).await;
    eventually("it is woken, and trimmed", || async { metric(&broker, "pulsar_storage_size") == 0 }).await;
    rests(&broker).await;
    // What is acknowledged while nothing is retained goes when its ledger is old enough.
    drop(topic_with_backlog(&broker).await);
    fixture::topic(&broker, TOPIC).await.clear_backlog("s").await.unwrap();
    rests(&broker).await;
    assert!(metric(&broker, "pulsar_storage_size") > 0, "its ledger is still open");
    eventually("it is woken by time, and trimmed", || async { metric(&broker, "pulsar_storage_size") == 0 }).await;
}
