//! Connections over TCP, with a broker on metadata and ledgers in memory.

mod client;
mod fixture;

use std::time::Duration;

use geminga_broker::{BrokerConfig, Peer};
use geminga_wire_pulsar::{Command, proto};

use client::Client;
use fixture::{broker, broker_with, eventually, name};

use crate::waiting::move_to_small_buffer;

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

#[test]
fn the_beginning_of_a_frame_takes_a_small_buffer() {
    let mut buffer = bytes::BytesMut::with_capacity(1 << 20);
    buffer.extend_from_slice(&[7; 5000]);
    move_to_small_buffer(&mut buffer);
    assert_eq!(buffer, [7; 5000][..]);
    assert!(buffer.capacity() < 20_000, "{}", buffer.capacity());
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
