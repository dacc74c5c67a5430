//! What policies say of subscribing, publishing and dispatching.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use geminga_broker::{Broker, BrokerConfig, BrokerError, SubscribeRequest, Topic};
use geminga_metadata::TopicPolicies;
use geminga_metadata::policies::{
    BACKLOG_QUOTA_AGE, BACKLOG_QUOTA_SIZE, BacklogQuota, DispatchRate, PublishRate, SubscribeRate,
};
use geminga_model::TopicDomain;
use geminga_topic::SubscriptionType::{Exclusive, Failover, KeyShared, Shared};

use crate::fixture::{self, Client, Told, eventually, messages, name, publish};

const NAME: &str = "persistent://public/default/t";

async fn topic_with(policies: TopicPolicies) -> (Arc<Broker>, Arc<Topic>) {
    let config = BrokerConfig { housekeeping_interval: Duration::from_millis(5), ..BrokerConfig::default() };
    let broker = fixture::broker_with(config).await;
    let topic = fixture::topic(&broker, NAME).await;
    set(&broker, policies).await;
    (broker, topic)
}

async fn set(broker: &Broker, wanted: TopicPolicies) {
    let topic = name(NAME);
    let set = broker.update_topic_policies(&topic, |policies| {
        policies.clone_from(&wanted);
        Ok(())
    });
    set.await.unwrap();
}

fn delivered(client: &Client) -> usize {
    client.told().iter().filter(|told| matches!(told, Told::Message(..))).count()
}

#[tokio::test]
async fn subscriptions_may_begin_some_time_ago() {
    let (_broker, topic) = topic_with(TopicPolicies::default()).await;
    let sender = Client::new();
    let producer = sender.produce(&topic, "p").await.unwrap();
    publish(&sender, &producer, &["old"]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let since = Instant::now();
    publish(&sender, &producer, &["new"]).await;
    for durable in [true, false] {
        let client = Client::new();
        let request = fixture::request(if durable { "durable" } else { "reader" }, Exclusive);
        let rollback_ms = since.elapsed().as_millis() as u64 + 100;
        let request =
            SubscribeRequest { rollback_ms, durable, initial: geminga_broker::InitialPosition::Latest, ..request };
        let consumer = client.subscribe(&topic, request).await.unwrap();
        topic.flow(&consumer, 10);
        assert_eq!(fixture::text(&client.message().await), "new", "durable: {durable}");
    }
}

#[tokio::test]
async fn only_allowed_subscription_types_may_subscribe() {
    let types = ["Shared".to_owned(), "Key_Shared".to_owned()];
    let (broker, topic) =
        topic_with(TopicPolicies { subscription_types_enabled: types.into(), ..Default::default() }).await;
    let client = Client::new();
    for (sub_type, allowed) in [(Exclusive, false), (Failover, false), (Shared, true), (KeyShared, true)] {
        let result = client.consume(&topic, sub_type.name(), sub_type).await;
        assert_eq!(result.is_ok(), allowed, "{sub_type:?}");
        assert!(allowed || matches!(result.err(), Some(BrokerError::NotAllowed(_))));
    }
    assert_eq!(topic.subscription_names().len(), 2, "a refused one leaves nothing behind");
    set(&broker, TopicPolicies::default()).await;
    client.consume(&topic, "e", Exclusive).await.unwrap();
}

#[tokio::test]
async fn a_namespace_takes_only_so_many_topics() {
    let broker = fixture::broker().await;
    let namespace = "public/default".parse().unwrap();
    let limited = broker.update_namespace_policies(&namespace, |policies| {
        policies.max_topics_per_namespace = Some(2);
        Ok(())
    });
    limited.await.unwrap();
    for local in ["a", "b"] {
        fixture::topic(&broker, local).await;
    }
    let refused = broker.topic(&name("c"), true).await.err();
    assert!(matches!(refused, Some(BrokerError::NotAllowed(_))), "{refused:?}");
    let refused = broker.create_topic(&name("c"), Default::default()).await.err();
    assert!(matches!(refused, Some(BrokerError::Conflict(_))), "{refused:?}");
    let refused = broker.create_new_partitioned(&name("c"), 1, Default::default()).await.err();
    assert!(matches!(refused, Some(BrokerError::PreconditionFailed(_))), "{refused:?}");
    fixture::topic(&broker, "a").await;
    assert_eq!(broker.topics(&namespace, &TopicDomain::ALL).await.unwrap().len(), 2);
}

#[tokio::test]
async fn producers_above_the_rate_are_held_back() {
    let rate = PublishRate { publish_throttling_rate_in_msg: 10, ..Default::default() };
    let (broker, topic) = topic_with(TopicPolicies { publish_rate: Some(rate), ..Default::default() }).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    publish(&client, &producer, &["m"; 9]).await;
    assert_eq!(client.held_back(), Duration::ZERO);
    publish(&client, &producer, &["m"; 21]).await;
    let pause = client.held_back();
    assert!((Duration::from_millis(1900)..=Duration::from_millis(2100)).contains(&pause), "20 too many: {pause:?}");
    let stats = topic.stats(&geminga_broker::StatsOptions::default()).await.unwrap();
    assert_eq!(stats.publish_rate_limited_times, 1);
    set(&broker, TopicPolicies::default()).await;
    publish(&client, &producer, &["m"; 100]).await;
    assert_eq!(client.held_back(), Duration::ZERO);
}

#[tokio::test]
async fn dispatch_keeps_to_its_rate() {
    let rate = |messages| DispatchRate {
        dispatch_throttling_rate_in_msg: messages,
        dispatch_throttling_rate_in_byte: -1,
        rate_period_in_second: 1,
        ..Default::default()
    };
    for sub_type in [Exclusive, Shared, KeyShared] {
        for of_subscription in [false, true] {
            let policies = if of_subscription {
                TopicPolicies { subscription_dispatch_rate: Some(rate(20)), ..Default::default() }
            } else {
                TopicPolicies { dispatch_rate: Some(rate(20)), ..Default::default() }
            };
            let (broker, topic) = topic_with(policies).await;
            let client = Client::new();
            let producer = client.produce(&topic, "p").await.unwrap();
            let consumer = client.consume(&topic, "s", sub_type).await.unwrap();
            publish(&client, &producer, &["m"; 100]).await;
            let since = Instant::now();
            topic.flow(&consumer, 1000);
            let mut got = delivered(&client);
            assert_eq!(got, 20, "one second's worth at once: {sub_type:?}");
            while since.elapsed() < Duration::from_millis(300) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                got += delivered(&client);
                let allowed = 20.0 + since.elapsed().as_secs_f64() * 20.0;
                assert!(got as f64 <= allowed, "{got} of {allowed}");
            }
            assert!(got > 20, "it goes on by itself: {sub_type:?}");
            set(&broker, TopicPolicies::default()).await;
            topic.flow(&consumer, 1);
            eventually("the rest comes without a rate", || {
                got += delivered(&client);
                let all = got == 100;
                async move { all }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_consumer_may_not_subscribe_too_often() {
    let rate =
        SubscribeRate { subscribe_throttling_rate_per_consumer: 2, rate_period_in_second: 30, ..Default::default() };
    let (_broker, topic) = topic_with(TopicPolicies { subscribe_rate: Some(rate), ..Default::default() }).await;
    let client = Client::new();
    let again = || {
        let mut request = fixture::request("s", Shared);
        request.consumer.name = "same".into();
        request.consumer.consumer_id = 7;
        request
    };
    for _ in 0..2 {
        client.subscribe(&topic, again()).await.unwrap();
    }
    let refused = client.subscribe(&topic, again()).await.err();
    assert!(matches!(refused, Some(BrokerError::NotAllowed(_))), "{refused:?}");
    client.consume(&topic, "s", Shared).await.unwrap();
}

#[tokio::test]
async fn messages_out_of_bounds_are_refused() {
    let (_broker, topic) = topic_with(TopicPolicies {
        max_message_size: Some(500),
        delayed_delivery_enabled: Some(true),
        delayed_delivery_max_delay_in_millis: Some(1000),
        ..Default::default()
    })
    .await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    let mut batch = messages(&["small", &"x".repeat(300), "late"]);
    batch[2].meta.deliver_at = u64::MAX;
    topic.publish(&producer, &mut batch);
    let mut refused = Vec::new();
    while refused.len() < 2 {
        match client.next().await {
            Told::SendFailed(sequence_id, _) => refused.push(sequence_id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, [1, 2]);
    assert_eq!(client.receipt().await.sequence_id, 0);
}

#[tokio::test]
async fn delays_are_ignored_where_they_are_switched_off() {
    let off = TopicPolicies { delayed_delivery_enabled: Some(false), ..Default::default() };
    let (_broker, topic) = topic_with(off).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    let consumer = client.consume(&topic, "s", Shared).await.unwrap();
    let mut batch = messages(&["later"]);
    batch[0].meta.deliver_at = u64::MAX;
    topic.publish(&producer, &mut batch);
    client.receipt().await;
    topic.flow(&consumer, 1);
    assert_eq!(fixture::text(&client.message().await), "later");
}

#[tokio::test]
async fn a_backlog_over_its_quota_refuses_producers_that_join() {
    let quota =
        BacklogQuota { limit_size: Some(1000), policy: Some("producer_exception".into()), ..Default::default() };
    let policies =
        TopicPolicies { backlog_quota_map: [(BACKLOG_QUOTA_SIZE.to_owned(), quota)].into(), ..Default::default() };
    let (_broker, topic) = topic_with(policies).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    client.consume(&topic, "s", Shared).await.unwrap();
    let text = "x".repeat(200);
    // One that is there may go on until it is looked after.
    publish(&client, &producer, &[&*text; 20]).await;
    let refused = client.produce(&topic, "q").await.err();
    assert!(matches!(refused, Some(BrokerError::QuotaExceeded { hold: false, .. })), "{refused:?}");
}

#[tokio::test]
async fn an_old_backlog_holds_producers_back_or_is_evicted() {
    let quota = |policy: &str| TopicPolicies {
        backlog_quota_map: [(
            BACKLOG_QUOTA_AGE.to_owned(),
            BacklogQuota { limit_time: Some(1), policy: Some(policy.into()), ..Default::default() },
        )]
        .into(),
        ..Default::default()
    };
    let (broker, topic) = topic_with(quota("producer_exception")).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    client.consume(&topic, "s", Shared).await.unwrap();
    publish(&client, &producer, &["a"]).await;
    client.produce(&topic, "q").await.unwrap();
    eventually("producers are refused", || async {
        matches!(
            client.produce(&topic, "r").await.map(|producer| topic.remove_producer(&producer)),
            Err(BrokerError::QuotaExceeded { hold: false, .. })
        )
    })
    .await;
    set(&broker, quota("consumer_backlog_eviction")).await;
    eventually("the message is evicted", || async { topic.backlogs()[0].1 == 0 }).await;
    client.produce(&topic, "s").await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_sent_at_once() {
    let (_broker, topic) = topic_with(TopicPolicies { max_message_size: Some(10), ..Default::default() }).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    let before = client.flushed.load(Ordering::Relaxed);
    topic.publish(&producer, &mut messages(&["larger than ten bytes"]));
    assert!(matches!(client.told()[..], [Told::SendFailed(0, _)]));
    assert_eq!(client.flushed.load(Ordering::Relaxed), before + 1);
}
