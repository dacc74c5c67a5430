//! Connections over TCP, with a broker on metadata and ledgers in memory.

mod client;
mod fixture;

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_broker::{Broker, BrokerConfig, Peer};
use geminga_flow::HARD_LIMIT;
use geminga_wire_pulsar::{Command, encode_simple, proto};

use client::Client;
use fixture::{broker, broker_with, eventually, name};

use crate::waiting::{REQUESTS_MAX, move_to_small_buffer};

const TOPIC: &str = "persistent://public/default/t";

#[tokio::test]
async fn a_consumer_that_its_topic_has_let_go_joins_again() {
    let broker = broker().await;
    let mut client = Client::connect(&broker).await;
    client.subscribe(1, "s").await;
    client.create_producer(2).await;
    let consumer = client.connection.consumer(1).unwrap();
    consumer.topic.remove_consumer(&consumer);
    client.subscribe(1, "s").await;
    client.send(&proto::CommandFlow { consumer_id: 1, message_permits: 10 }.into()).await;
    client.publish(2, 0).await;
    let (mut receipt, mut message) = (false, false);
    while !(receipt && message) {
        match client.next().await {
            Command::SendReceipt(_) => receipt = true,
            Command::Message(_) => message = true,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_producer_that_its_topic_has_let_go_joins_again() {
    let broker = broker().await;
    let mut client = Client::connect(&broker).await;
    client.create_producer(2).await;
    let producer = client.connection.producer(2).unwrap();
    producer.topic.remove_producer(&producer);
    broker.unload(&name(TOPIC)).await.unwrap();
    client.create_producer(2).await;
    client.publish(2, 0).await;
    let answer = client.next().await;
    assert!(matches!(answer, Command::SendReceipt(_)), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_is_held_back_hears_of_us() {
    let config = BrokerConfig { keep_alive: Duration::from_millis(100), ..BrokerConfig::default() };
    let broker = broker_with(config).await;
    let mut client = Client::connect(&broker).await;
    let share = client.connection.publishing.limit();

    // Too much of it is not durable yet.
    client.connection.published(share);
    client.is_held_back().await;
    // Its rate is too high.
    client.connection.hold_back(Duration::from_secs(2));
    client.connection.settled(share);
    client.is_held_back().await;
    client.hears("PONG").await;

    // There is no room for a large frame.
    let receiving = broker.memory().receiving.clone();
    receiving.take(receiving.limit());
    client.send_bytes(&(1u32 << 20).to_be_bytes()).await;
    client.is_held_back().await;
    client.connection.shut_down();
    tokio::time::timeout(Duration::from_secs(5), client.served).await.expect("it ends").unwrap();
    receiving.give_back(receiving.limit());
}

#[tokio::test]
async fn a_quiet_client_is_asked_and_a_silent_one_let_go() {
    let config = BrokerConfig { keep_alive: Duration::from_millis(400), ..BrokerConfig::default() };
    let mut client = Client::connect(&broker_with(config).await).await;
    for _ in 0..3 {
        client.hears("PING").await;
        client.send(&proto::CommandPong {}.into()).await;
    }
    client.hears("PING").await;
    assert!(client.has_ended().await);
}

#[test]
fn the_beginning_of_a_frame_takes_a_small_buffer() {
    let mut buffer = bytes::BytesMut::with_capacity(1 << 20);
    buffer.extend_from_slice(&[7; 5000]);
    move_to_small_buffer(&mut buffer);
    assert_eq!(buffer, [7; 5000][..]);
    assert!(buffer.capacity() < 20_000, "{}", buffer.capacity());
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    const REQUESTS: u64 = 4000;
    let broker = broker().await;
    for number in 0..500 {
        let topic = name(&format!("persistent://public/default/a-topic-{number:03}"));
        broker.metadata().create_topic(&topic, Default::default()).await.unwrap();
    }
    let mut client = Client::connect(&broker).await;
    for request_id in 0..REQUESTS {
        let namespace = "public/default".to_owned();
        client.queue(&proto::CommandGetTopicsOfNamespace { request_id, namespace, ..Default::default() }.into());
    }
    client.send_queued().await;
    let (mut most, since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(2) {
        most = most.max(client.connection.outbox.queued());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!((1 << 20..3 << 20).contains(&most), "{most} bytes wait");
    let mut missing: std::collections::BTreeSet<u64> = (0..REQUESTS).collect();
    let mut bytes = 0;
    while !missing.is_empty() {
        let Command::GetTopicsOfNamespaceResponse(answer) = client.next().await else { continue };
        assert_eq!(answer.topics.len(), 500);
        bytes += answer.topics.iter().map(String::len).sum::<usize>();
        assert!(missing.remove(&answer.request_id));
    }
    assert!(bytes > HARD_LIMIT, "the client would have been cut off");
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_cut_off() {
    let config = BrokerConfig { keep_alive: Duration::from_millis(200), ..BrokerConfig::default() };
    let broker = broker_with(config).await;
    for number in 0..500 {
        let topic = name(&format!("persistent://public/default/a-topic-{number:03}"));
        broker.metadata().create_topic(&topic, Default::default()).await.unwrap();
    }
    let mut client = Client::connect(&broker).await;
    for request_id in 0..2000 {
        let namespace = "public/default".to_owned();
        client.queue(&proto::CommandGetTopicsOfNamespace { request_id, namespace, ..Default::default() }.into());
    }
    client.send_queued().await;
    tokio::time::timeout(Duration::from_secs(20), client.served).await.expect("it ends").unwrap();
}

const LONG_ANSWERS: u64 = 10_000;

/// Asks for far more than sockets take.
async fn ask_for_long_answers(client: &mut Client) {
    let consumer = proto::CommandSubscribe {
        topic: TOPIC.into(),
        subscription: "s".into(),
        consumer_id: 1,
        consumer_name: Some("n".repeat(8 << 10)),
        ..Default::default()
    };
    client.ask(consumer).await;
    for request_id in 0..LONG_ANSWERS {
        client.queue(&proto::CommandConsumerStats { request_id, consumer_id: 1 }.into());
    }
    client.send_queued().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_read_either() {
    for (is_scarce, most) in [(false, 5 << 20), (true, 64 << 10)] {
        let broker = broker().await;
        let outbound = broker.memory().outbound.clone();
        let scarce = if is_scarce { outbound.limit() } else { 0 };
        outbound.take(scarce);
        let mut client = Client::connect(&broker).await;
        ask_for_long_answers(&mut client).await;
        let connection = client.connection.clone();
        let outbox = &connection.outbox;
        eventually("no more is taken", || !outbox.takes_requests()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(outbox.queued() < most, "{} bytes wait", outbox.queued());
        // What was held back comes as the client reads.
        let mut answers = 0;
        while answers < LONG_ANSWERS {
            let Command::ConsumerStatsResponse(answer) = client.next().await else { continue };
            assert_eq!(answer.request_id, answers);
            answers += 1;
        }
        outbound.give_back(scarce);
    }
}

#[tokio::test]
async fn a_client_that_asks_on_without_reading_is_cut_off() {
    let config = BrokerConfig { keep_alive: Duration::from_millis(200), ..BrokerConfig::default() };
    let mut client = Client::connect(&broker_with(config).await).await;
    ask_for_long_answers(&mut client).await;
    tokio::time::timeout(Duration::from_secs(20), client.served).await.expect("it ends").unwrap();
}

/// What comes within a moment.
async fn soon<T>(what: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(200), what).await.ok()
}

#[tokio::test]
async fn large_answers_take_turns_and_have_theirs_once_there_was_room() {
    const MESSAGES: usize = 32;
    let broker = broker().await;
    let mut client = Client::connect(&broker).await;
    let connection = client.connection.clone();
    let first = soon(connection.turn_to_answer()).await.expect("there is room").expect("the connection is there");
    assert!(soon(connection.turn_to_answer()).await.is_none(), "one at a time");
    drop(first);

    // Messages to consumers fill the outbox, and whenever there is room again they are faster.
    let message = Command::from(proto::CommandError { request_id: 0, error: 0, message: "m".repeat(1 << 20) });
    connection.outbox.push(|frames| (0..MESSAGES).for_each(|_| frames.head(|out| encode_simple(&message, out))));
    connection.outbox.flush();
    let turn = connection.turn_to_answer();
    tokio::pin!(turn);
    assert!(soon(turn.as_mut()).await.is_none(), "the client reads nothing");
    connection.room.notify_waiters();
    let second = soon(turn).await.expect("there was room").expect("the connection is there");
    assert!(!connection.outbox.writable(), "others have taken it");
    drop(second);
    assert!(soon(connection.turn_to_answer()).await.is_none(), "for the next there is none");

    let (next, ()) = tokio::join!(connection.turn_to_answer(), async {
        for _ in 0..MESSAGES {
            client.hears("ERROR").await;
        }
    });
    drop(next.expect("the client has read"));
    connection.shut_down();
    client.served.await.unwrap();
    assert!(connection.turn_to_answer().await.is_none(), "nobody is there to be answered");
}

#[tokio::test]
async fn producers_that_wait_for_each_other_hold_up_no_requests() {
    let broker = broker().await;
    let mut client = Client::connect(&broker).await;
    let last = REQUESTS_MAX as u64 + 10;
    for id in 0..=last {
        client.queue(
            &proto::CommandProducer {
                topic: TOPIC.into(),
                producer_id: id,
                request_id: id,
                producer_access_mode: Some(proto::ProducerAccessMode::WaitForExclusive as i32),
                ..Default::default()
            }
            .into(),
        );
    }
    client.send_queued().await;
    let mut ready = None;
    for _ in 0..=last {
        let Command::ProducerSuccess(success) = client.next().await else { panic!("a producer was refused") };
        if success.producer_ready == Some(true) {
            assert_eq!(ready.replace(success.request_id), None);
        }
    }
    client.ask(proto::CommandCloseProducer { producer_id: ready.unwrap(), request_id: 1, ..Default::default() }).await;
    let next = client.next().await;
    assert!(matches!(&next, Command::ProducerSuccess(success) if success.producer_ready == Some(true)), "{next:?}");
}

#[tokio::test]
async fn a_burst_of_new_topics_is_looked_at_few_times() {
    const TOPICS: usize = 500;
    let (broker, store) = fixture::broker_and_store(BrokerConfig::default()).await;
    let mut client = Client::connect(&broker).await;
    let watch = proto::CommandWatchTopicList {
        request_id: 1,
        watcher_id: 1,
        namespace: "public/default".into(),
        topics_pattern: "persistent://public/default/.*".into(),
        ..Default::default()
    };
    client.ask(watch).await;
    let before = store.listings();
    for number in 0..TOPICS {
        create(&broker, &format!("persistent://public/default/t-{number}")).await;
    }
    let mut known = 0;
    while known < TOPICS {
        let update = client.next().await;
        let Command::WatchTopicUpdate(update) = update else { panic!("{update:?}") };
        known += update.new_topics.len();
    }
    let listings = store.listings() - before;
    assert!(listings < 50, "{listings} listings");
}

async fn create(broker: &Broker, topic: &str) {
    broker.create_topic(&name(topic), Default::default()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_ends_tells_its_client_though_somebody_holds_it() {
    let broker = broker().await;
    let mut client = Client::connect(&broker).await;
    let held = client.connection.clone();
    held.shut_down();
    assert!(client.has_ended().await);
    eventually("nobody else holds it", || std::sync::Arc::strong_count(&held) == 2).await;
}

#[tokio::test]
async fn a_connection_that_is_to_end_answers_what_it_has_taken() {
    let broker = broker_with(BrokerConfig { finish_timeout: Duration::from_secs(5), ..BrokerConfig::default() }).await;
    let mut client = Client::connect(&broker).await;
    client.connection.published(1);
    client.connection.shut_down();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    client.connection.send(&proto::CommandSendReceipt::default().into());
    client.connection.settled(1);
    client.hears("SEND_RECEIPT").await;
    assert!(client.has_ended().await);

    // What never becomes durable does not keep it for ever.
    let client = Client::connect(&broker).await;
    client.connection.published(1);
    client.connection.shut_down();
    tokio::time::timeout(Duration::from_secs(15), client.served).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn nothing_is_offered_that_is_not_served() {
    let mut client = Client::connect(&broker().await).await;
    let flags = client.connected.feature_flags.take().unwrap();
    assert!(flags.supports_topic_watchers() && !flags.supports_auth_refresh(), "{flags:?}");
    let refused = client.is_refused(proto::CommandAuthResponse::default()).await;
    assert_eq!(refused, proto::ServerError::NotAllowedError);
}

fn properties(bytes: usize) -> Vec<proto::KeyValue> {
    vec![proto::KeyValue { key: "k".into(), value: "v".repeat(bytes) }]
}

fn consumer_with(subscription_properties: Vec<proto::KeyValue>) -> proto::CommandSubscribe {
    let (topic, subscription) = (TOPIC.to_owned(), "s".to_owned());
    proto::CommandSubscribe { topic, subscription, consumer_id: 1, subscription_properties, ..Default::default() }
}

fn producer_with(metadata: Vec<proto::KeyValue>) -> proto::CommandProducer {
    proto::CommandProducer { topic: TOPIC.into(), producer_id: 2, metadata, ..Default::default() }
}

#[tokio::test]
async fn what_clients_say_of_producers_and_consumers_is_bounded() {
    use proto::ServerError::{NotAllowedError, ServiceNotReady};
    let broker = broker().await;
    let kept = broker.memory().kept.clone();
    let mut client = Client::connect(&broker).await;
    assert_eq!(client.is_refused(consumer_with(properties(40 << 10))).await, NotAllowedError);
    assert_eq!(client.is_refused(producer_with(properties(40 << 10))).await, NotAllowedError);

    client.ask(consumer_with(properties(20 << 10))).await;
    let of_consumer = kept.used();
    client.ask(producer_with(properties(20 << 10))).await;
    assert!(of_consumer > 19 << 10 && kept.used() > 38 << 10, "{of_consumer} and {} bytes are kept", kept.used());
    client.ask(proto::CommandCloseConsumer { consumer_id: 1, ..Default::default() }).await;
    client.ask(proto::CommandCloseProducer { producer_id: 2, ..Default::default() }).await;
    assert_eq!(kept.used(), 0);

    // Others have taken all: a few words are free.
    kept.take(kept.limit());
    assert_eq!(client.is_refused(consumer_with(properties(20 << 10))).await, ServiceNotReady);
    assert_eq!(client.is_refused(producer_with(properties(20 << 10))).await, ServiceNotReady);
    client.ask(consumer_with(properties(100))).await;
    client.ask(producer_with(properties(100))).await;
    kept.give_back(kept.limit());
}

fn watch_of(watcher_id: u64, topics_pattern: &str) -> proto::CommandWatchTopicList {
    let (namespace, topics_pattern) = ("public/default".to_owned(), topics_pattern.to_owned());
    proto::CommandWatchTopicList { watcher_id, namespace, topics_pattern, ..Default::default() }
}

#[tokio::test]
async fn watched_lists_are_bounded() {
    let broker = broker().await;
    let kept = broker.memory().kept.clone();
    let mut client = Client::connect(&broker).await;
    for pattern in ["t".repeat(2000), "(t{1000}){1000}".to_owned()] {
        assert_eq!(client.is_refused(watch_of(1, &pattern)).await, proto::ServerError::NotAllowedError);
    }
    let connection = client.connection.clone();
    eventually("what was refused leaves nothing", || connection.watchers.lock().is_empty()).await;

    client.ask(watch_of(1, "public/default/.*")).await;
    let empty = kept.used();
    assert!(empty > 0);
    create(&broker, TOPIC).await;
    client.hears("WATCH_TOPIC_UPDATE").await;
    assert!(kept.used() >= empty + TOPIC.len() as u64);
    client.ask(proto::CommandWatchTopicListClose { watcher_id: 1, ..Default::default() }).await;
    eventually("the list is given back", || kept.used() == 0).await;

    // Others have taken the rest: there is none to be had for another list, nor for this one to grow.
    client.ask(watch_of(2, "public/default/.*")).await;
    let rest = kept.limit() - kept.used();
    kept.take(rest);
    assert_eq!(client.is_refused(watch_of(3, "public/default/.*")).await, proto::ServerError::NotAllowedError);
    create(&broker, &format!("{TOPIC}-2")).await;
    assert!(client.has_ended().await);
    kept.give_back(rest);
}

#[tokio::test]
async fn frames_of_some_kib_have_room_and_are_given_up_when_they_are_in_the_way() {
    let broker = broker().await;
    let receiving = broker.memory().receiving.clone();
    let mut client = Client::connect(&broker).await;
    client.send_bytes(&(10u32 << 10).to_be_bytes()).await;
    eventually("it has room", || receiving.used() == (10 << 10) + 4).await;
    receiving.take(receiving.limit());
    assert!(client.has_ended().await);
    eventually("its room is free", || receiving.used() == receiving.limit()).await;
    receiving.give_back(receiving.limit());
}

/// What the Go client does when it is busy: message 3 passed 2, which the broker had left out, and so its producer was closed once more.
async fn client_whose_message_has_passed_another(broker: &Arc<Broker>) -> Client {
    let mut client = Client::connect(broker).await;
    client.create_producer(1).await;
    client.publish(1, 1).await;
    client.hears("SEND_RECEIPT").await;
    broker.unload(&name(TOPIC)).await.unwrap();
    client.hears("CLOSE_PRODUCER").await;
    client.publish(1, 2).await;

    client.create_producer(1).await;
    client.publish(1, 3).await;
    client.hears("CLOSE_PRODUCER").await;
    client.publish(1, 2).await;
    client.create_producer(1).await;
    client
}

#[tokio::test]
async fn a_message_that_passes_others_that_were_left_out_is_not_taken() {
    let broker = broker().await;
    let mut client = client_whose_message_has_passed_another(&broker).await;
    for sequence_id in [2, 3] {
        client.publish(1, sequence_id).await;
        let Command::SendReceipt(receipt) = client.next().await else { panic!("no receipt") };
        assert_eq!(receipt.sequence_id, sequence_id);
    }
}

/// What has a long queue passes others also when its producer is closed again. Only another connection helps.
#[tokio::test]
async fn a_connection_on_which_messages_pass_others_again_ends() {
    let broker = broker().await;
    let mut client = client_whose_message_has_passed_another(&broker).await;
    client.publish(1, 3).await;
    assert!(client.has_ended().await);
}

/// So does the Go client when the broker is too slow for it.
#[tokio::test]
async fn a_producer_that_is_given_up_and_made_again_owes_what_was_left_out() {
    let broker = broker().await;
    let mut client = Client::connect(&broker).await;
    client.create_producer(1).await;
    broker.unload(&name(TOPIC)).await.unwrap();
    client.hears("CLOSE_PRODUCER").await;
    client.publish(1, 2).await;

    client.ask(proto::CommandCloseProducer { producer_id: 1, ..Default::default() }).await;
    client.create_producer(1).await;
    client.publish(1, 3).await;
    client.hears("CLOSE_PRODUCER").await;
}
