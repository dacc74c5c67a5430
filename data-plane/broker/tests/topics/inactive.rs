//! What the broker does by itself: inactive topics and subscriptions, messages beyond their time, backlogs over a quota.

use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig, BrokerError, SubscribeRequest};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::policies::{BACKLOG_QUOTA_SIZE, BacklogQuota, InactiveTopicPolicies, RetentionPolicies};
use geminga_metadata::{Policies, TopicPolicies};
use geminga_topic::SubscriptionType::Shared;

use crate::fixture::{self, Client, eventually, name, publish};

const NAMESPACE: &str = "public/default";
/// Rounds of upkeep after which something that is to happen has happened: more time than `max_topic_inactivity`.
const ROUNDS: u64 = 60;

fn config() -> BrokerConfig {
    BrokerConfig {
        housekeeping_interval: Duration::from_millis(5),
        max_topic_inactivity: Duration::from_millis(200),
        ..BrokerConfig::default()
    }
}

fn full(local: &str) -> String {
    format!("persistent://{NAMESPACE}/{local}")
}

/// Lets the broker do what it does by itself, when nothing is to come of it.
async fn upkeep(broker: &Broker) {
    let until = broker.housekeeping_rounds() + ROUNDS;
    eventually("rounds of upkeep", || async { broker.housekeeping_rounds() >= until }).await;
}

async fn exists(broker: &Broker, local: &str) -> bool {
    broker.metadata().get_topic(&name(&full(local))).await.unwrap().is_some()
}

async fn gone(broker: &Broker, local: &str) {
    eventually(&format!("{local} is deleted"), || async { !exists(broker, local).await }).await;
}

async fn policies(broker: &Broker, change: impl Fn(&mut Policies) + Send + Sync) {
    let namespace = NAMESPACE.parse().unwrap();
    let changed = broker.update_namespace_policies(&namespace, |policies| {
        change(policies);
        Ok(())
    });
    changed.await.unwrap();
}

fn inactive(mode: &str, seconds: i64, delete: bool) -> Option<InactiveTopicPolicies> {
    Some(InactiveTopicPolicies {
        inactive_topic_delete_mode: Some(mode.into()),
        max_inactive_duration_seconds: seconds,
        delete_while_inactive: delete,
        ..Default::default()
    })
}

#[tokio::test]
async fn topics_without_users_are_deleted() {
    let broker = fixture::broker_with(config()).await;
    let client = Client::new();
    let [produced, consumed] =
        [fixture::topic(&broker, &full("produced")).await, fixture::topic(&broker, &full("consumed")).await];
    client.produce(&produced, "p").await.unwrap();
    let reader = SubscribeRequest { durable: false, ..fixture::request("r", Shared) };
    client.subscribe(&consumed, reader).await.unwrap();
    let subscribed = fixture::topic(&broker, &full("subscribed")).await;
    Client::new().consume(&subscribed, "s", Shared).await.unwrap();
    broker.create_new_partitioned(&name(&full("parts")), 2, Default::default()).await.unwrap();
    let admin = fixture::topic(&broker, &full("created")).await;
    drop(admin);

    gone(&broker, "created").await;
    for index in 0..2 {
        gone(&broker, &format!("parts-partition-{index}")).await;
    }
    assert_eq!(broker.partitions(&name(&full("parts")), false).await.unwrap(), 2, "the partitioned topic stays");
    for used in ["produced", "consumed", "subscribed"] {
        assert!(exists(&broker, used).await, "{used}");
    }
    client.leave();
    gone(&broker, "produced").await;
    gone(&broker, "consumed").await;
    subscribed.delete_subscription("s", None, true).await.unwrap();
    gone(&broker, "subscribed").await;

    let again = fixture::topic(&broker, &full("parts-partition-0")).await;
    let producer = client.produce(&again, "p").await.unwrap();
    publish(&client, &producer, &["a"]).await;
}

#[tokio::test]
async fn topics_that_nobody_has_loaded_are_found() {
    let metadata = fixture::metadata().await;
    let ledgers = Arc::new(MemoryLedgers::default());
    let keep = BrokerConfig { delete_inactive_topics: false, ..config() };
    let broker = Broker::start(keep, metadata.clone(), ledgers.clone()).await.unwrap();
    for local in ["old", "subscribed"] {
        fixture::topic(&broker, &full(local)).await;
    }
    let subscribed = fixture::topic(&broker, &full("subscribed")).await;
    subscribed
        .create_subscription(&"s".into(), geminga_broker::InitialPosition::Latest, Default::default(), true)
        .await
        .unwrap();
    upkeep(&broker).await;
    assert!(exists(&broker, "old").await, "deletion is off");
    broker.shut_down().await;
    drop((broker, subscribed));

    let whole = BrokerConfig { delete_inactive_partitioned_topics: true, ..config() };
    let broker = Broker::start(whole, metadata, ledgers).await.unwrap();
    broker.create_new_partitioned(&name(&full("parts")), 2, Default::default()).await.unwrap();
    gone(&broker, "old").await;
    assert!(exists(&broker, "subscribed").await);
    // They were created after the first search: somebody has to load them.
    for index in 0..2 {
        fixture::topic(&broker, &full(&format!("parts-partition-{index}"))).await;
    }
    eventually("the partitioned topic goes with its partitions", || async {
        broker.metadata().get_partitioned_topic(&name(&full("parts"))).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn policies_say_when_a_topic_is_inactive() {
    let broker = fixture::broker_with(config()).await;
    policies(&broker, |policies| policies.inactive_topic_policies = inactive("delete_when_no_subscriptions", 0, false))
        .await;
    let client = Client::new();
    let kept = fixture::topic(&broker, &full("kept")).await;
    let caught_up = fixture::topic(&broker, &full("caught-up")).await;
    let producer = client.produce(&caught_up, "p").await.unwrap();
    let consumer = client.consume(&caught_up, "s", Shared).await.unwrap();
    publish(&client, &producer, &["a"]).await;
    client.leave();
    let own = TopicPolicies {
        inactive_topic_policies: inactive("delete_when_subscriptions_caught_up", 0, true),
        ..Default::default()
    };
    broker
        .update_topic_policies(&name(&full("caught-up")), |policies| {
            policies.clone_from(&own);
            Ok(())
        })
        .await
        .unwrap();
    upkeep(&broker).await;
    assert!(exists(&broker, "caught-up").await, "it has a backlog");
    caught_up.clear_backlog("s").await.unwrap();
    gone(&broker, "caught-up").await;
    drop(consumer);
    assert!(exists(&broker, "kept").await, "the namespace keeps its topics");

    let day = RetentionPolicies { retention_time_in_minutes: 1440, retention_size_in_mb: -1, ..Default::default() };
    policies(&broker, |policies| {
        policies.inactive_topic_policies = None;
        policies.retention_policies = Some(day.clone());
    })
    .await;
    upkeep(&broker).await;
    assert!(exists(&broker, "kept").await, "what is retained by time keeps its topic");
    policies(&broker, |policies| policies.retention_policies = None).await;
    gone(&broker, "kept").await;
    drop(kept);
}

#[tokio::test]
async fn messages_beyond_their_time_are_acknowledged() {
    let broker = fixture::broker_with(config()).await;
    policies(&broker, |policies| policies.message_ttl_in_seconds = Some(1)).await;
    let topic = fixture::topic(&broker, &full("t")).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    publish(&client, &producer, &["a", "b"]).await;
    eventually("both expire", || async { topic.backlogs()[0].1 == 0 }).await;
    publish(&client, &producer, &["c"]).await;
    topic.flow(&consumer, 10);
    assert_eq!(fixture::text(&client.message().await), "c");
}

#[tokio::test]
async fn backlogs_over_their_quota_are_evicted_or_hold_producers_back() {
    let broker = fixture::broker_with(config()).await;
    let topic = fixture::topic(&broker, &full("t")).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    client.consume(&topic, "s", Shared).await.unwrap();
    let text = "x".repeat(500);
    publish(&client, &producer, &[&*text; 20]).await;
    let quota = |policy: &str| BacklogQuota {
        limit: Some(10_000),
        limit_size: Some(10_000),
        policy: Some(policy.into()),
        ..Default::default()
    };
    let hold = quota("producer_request_hold");
    policies(&broker, |policies| drop(policies.backlog_quota_map.insert(BACKLOG_QUOTA_SIZE.into(), hold.clone())))
        .await;
    let refused = client.produce(&topic, "q").await.err();
    assert!(matches!(refused, Some(BrokerError::QuotaExceeded { hold: true, .. })), "{refused:?}");
    assert_eq!(topic.backlogs()[0].1, 20);

    let evict = quota("consumer_backlog_eviction");
    policies(&broker, |policies| drop(policies.backlog_quota_map.insert(BACKLOG_QUOTA_SIZE.into(), evict.clone())))
        .await;
    eventually("what is over is evicted", || async { topic.backlogs()[0].1 <= 9 }).await;
    assert!(topic.backlogs()[0].1 >= 7, "and no more than that: {:?}", topic.backlogs());
    client.produce(&topic, "q").await.unwrap();
}
