use std::sync::{Arc, OnceLock};
use std::time::Duration;

use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::{Command, proto};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::fixture::{Broker, Peer, Running, answer, connect, connect_to, lookup, nowhere, options};

/// A broker that names itself.
async fn lonely_broker() -> Broker {
    let url = Arc::new(OnceLock::new());
    let named = url.clone();
    let broker = Broker::answering(LookupType::Connect, move || named.get().cloned().unwrap_or_default()).await;
    url.set(broker.url.clone()).unwrap();
    broker
}

#[tokio::test]
async fn a_lookup_redirected_between_brokers_ends_in_a_pipe() {
    let owner = lonely_broker().await;
    let owner_url = owner.url.clone();
    let asked = Broker::answering(LookupType::Redirect, move || owner_url.clone()).await;
    let proxy = Running::start(options(vec![asked.endpoint()])).await;

    let mut denied = proxy.client().await;
    denied.send(connect_to(&owner.address.to_string())).await;
    let refusal = denied.next().await;
    assert!(matches!(refusal, Some(Command::Error(_))), "not known before a lookup: {refusal:?}");
    assert_eq!(denied.next().await, None);
    assert_eq!(proxy.metric("geminga_proxy_denied_targets").await, 1);

    let mut client = proxy.client().await;
    client.hello(connect()).await;
    let found = client.look_up(7).await;
    assert_eq!((found.response(), found.request_id), (LookupType::Connect, 7));
    assert_eq!(found.proxy_through_service_url, Some(true));
    assert_eq!(found.broker_service_url.as_deref(), Some(owner.url.as_str()));

    let mut through = proxy.client().await;
    through.hello(connect_to(&owner.address.to_string())).await;
    // Whatever it is, it passes: this broker sends it back.
    let flow = proto::CommandFlow { consumer_id: 3, message_permits: 9 };
    through.send(flow).await;
    assert_eq!(through.next().await, Some(Command::Flow(flow)));
    assert!(proxy.metric("pulsar_proxy_binary_bytes").await > 0);
    assert_eq!(proxy.metric("pulsar_proxy_active_connections").await, 2);
}

#[tokio::test]
async fn a_lot_passes_both_ways_to_a_slow_reader() {
    const BYTES: usize = 20 << 20;
    let broker = Broker::start(|mut peer| async move {
        peer.greet().await;
        peer.stream.write_all(&vec![5; BYTES]).await.unwrap();
        peer.exactly(BYTES).await;
        peer.stream.write_all(b"got it").await.unwrap();
    })
    .await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    let mut client = proxy.client().await;
    // The first bytes come with the CONNECT, before the broker has agreed.
    client.send(connect_to(&broker.address.to_string())).await;
    assert!(matches!(client.next().await, Some(Command::Connected(_))));
    let mut taken_in = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = proxy.metric("pulsar_proxy_binary_bytes").await;
        assert!(now < BYTES as u64, "nobody reads: it is not all taken in");
        if now > 0 && now == taken_in {
            break;
        }
        taken_in = now;
    }
    assert!(client.exactly(BYTES).await.iter().all(|byte| *byte == 5));
    client.stream.write_all(&vec![6; BYTES]).await.unwrap();
    assert_eq!(&client.exactly(6).await[..], b"got it");
}

#[tokio::test]
async fn dead_brokers_are_passed_over() {
    let broker = lonely_broker().await;
    let proxy = Running::start(options(vec![nowhere().await, broker.endpoint(), nowhere().await])).await;
    for _ in 0..6 {
        let mut client = proxy.client().await;
        client.hello(connect()).await;
        assert_eq!(client.look_up(1).await.response(), LookupType::Connect);
    }
}

#[tokio::test]
async fn a_broker_that_comes_back_is_used_again() {
    let first = lonely_broker().await;
    let second = lonely_broker().await;
    let proxy = Running::start(options(vec![first.endpoint(), second.endpoint()])).await;
    let mut client = proxy.client().await;
    client.hello(connect()).await;
    assert_eq!(client.look_up(1).await.broker_service_url, Some(first.url.clone()));
    drop(first);
    // The connection to the proxy stays, and the other broker answers on it.
    assert_eq!(client.look_up(2).await.broker_service_url, Some(second.url.clone()));
    drop(second);
    let failed = client.look_up(3).await;
    assert_eq!(failed.response(), LookupType::Failed);
    assert_eq!(crate::http::get(proxy.http, "/readyz").await.0, 503);
}

#[tokio::test]
async fn without_any_broker_a_client_is_told_so() {
    let proxy = Running::start(options(vec![nowhere().await])).await;
    let mut client = proxy.client().await;
    client.send(connect()).await;
    match client.next().await {
        Some(Command::Error(error)) => assert_eq!(error.error(), proto::ServerError::ServiceNotReady),
        other => panic!("expected ERROR, got {other:?}"),
    }
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn a_lookup_that_outlives_its_broker_is_answered_by_another() {
    let dying = Broker::start(|mut peer| async move {
        peer.greet().await;
        // Takes the question with it.
        peer.next().await;
    })
    .await;
    let other = lonely_broker().await;
    let proxy = Running::start(options(vec![dying.endpoint(), other.endpoint()])).await;
    let mut client = proxy.client().await;
    client.hello(connect()).await;
    assert_eq!(client.look_up(1).await.broker_service_url, Some(other.url.clone()));
}

#[tokio::test]
async fn clients_beyond_the_limit_are_refused() {
    let broker = lonely_broker().await;
    let proxy =
        Running::start(geminga_proxy::ProxyOptions { max_connections: 2, ..options(vec![broker.endpoint()]) }).await;
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    first.hello(connect()).await;
    second.hello(connect()).await;
    let mut third = proxy.client().await;
    let _ = third.stream.write_all(b"hello").await;
    assert_eq!(third.next().await, None);
    drop(first);
    // Its place is free again, once the proxy has noticed.
    for attempt in 0.. {
        let mut client = proxy.client().await;
        client.send(connect()).await;
        if client.next().await.is_some() {
            break;
        }
        assert!(attempt < 500, "no place in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(proxy.metric("pulsar_proxy_rejected_connections").await >= 1);
    assert_eq!(proxy.metric("pulsar_proxy_new_connections").await, 3);
}

#[tokio::test]
async fn nonsense_ends_only_the_connection_that_it_comes_on() {
    let broker = lonely_broker().await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    let mut healthy = proxy.client().await;
    healthy.hello(connect()).await;
    let before_hello: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0, 0, 0, 4, 0, 0, 0, 9], &[0, 0, 0, 6, 0, 0, 0, 2, 8, 18]];
    for nonsense in before_hello {
        let mut client = proxy.client().await;
        client.stream.write_all(nonsense).await.unwrap();
        assert_eq!(client.next().await, None, "{nonsense:?}");
    }
    for nonsense in [&[0xff; 64][..], &[0, 0, 0, 8, 0, 0, 0, 4, 8, 23, 1, 1]] {
        let mut client = proxy.client().await;
        client.hello(connect()).await;
        client.stream.write_all(nonsense).await.unwrap();
        assert_eq!(client.next().await, None, "{nonsense:?}");
    }
    assert_eq!(healthy.look_up(1).await.response(), LookupType::Connect);
}

#[tokio::test]
async fn a_broker_that_speaks_nonsense_is_left() {
    let mad = Broker::start(|mut peer| async move {
        peer.expect_connect().await;
        let _ = peer.stream.write_all(&[0xff; 64]).await;
    })
    .await;
    let sane = lonely_broker().await;
    let proxy = Running::start(options(vec![mad.endpoint(), sane.endpoint()])).await;
    let mut client = proxy.client().await;
    client.hello(connect()).await;
    assert_eq!(client.look_up(1).await.broker_service_url, Some(sane.url.clone()));
    let mut named = proxy.client().await;
    named.send(connect_to(&mad.address.to_string())).await;
    assert!(!matches!(named.next().await, Some(Command::Connected(_))));
}

#[tokio::test]
async fn questions_may_come_before_the_broker_agrees_and_answers_in_any_order() {
    let broker = Broker::start(|mut peer| async move {
        peer.expect_connect().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        peer.send(super::fixture::connected()).await;
        let (first, second) = (peer.next().await, peer.next().await);
        assert_eq!([first, second], [Some(lookup(1).into()), Some(lookup(2).into())]);
        for request_id in [2, 1] {
            peer.send(answer(request_id, LookupType::Connect, "pulsar://b:1")).await;
        }
        peer.next().await;
    })
    .await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    let mut client = proxy.client().await;
    client.send(connect()).await;
    client.send(lookup(1)).await;
    client.send(lookup(2)).await;
    assert!(matches!(client.next().await, Some(Command::Connected(_))));
    let ids = [client.next().await, client.next().await].map(|answer| answer.and_then(|answer| answer.request_id()));
    assert_eq!(ids, [Some(2), Some(1)]);
}

#[tokio::test]
async fn a_stop_ends_what_is_connected() {
    let broker = lonely_broker().await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    let (mut asking, mut piped) = (proxy.client().await, proxy.client().await);
    asking.hello(connect()).await;
    piped.hello(connect_to(&broker.address.to_string())).await;
    let address = proxy.pulsar;
    proxy.stop().await;
    assert_eq!((asking.next().await, piped.next().await), (None, None));
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn either_side_may_close_first() {
    let broker = Broker::start(|mut peer| async move {
        peer.greet().await;
        peer.send(proto::CommandPing {}).await;
        // Until the client closes its half; then a last word.
        while peer.next().await.is_some() {}
        peer.send(proto::CommandPong {}).await;
    })
    .await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    let mut client: Peer = proxy.client().await;
    client.hello(connect_to(&broker.address.to_string())).await;
    assert_eq!(client.next().await, Some(Command::Ping(proto::CommandPing {})));
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.next().await, Some(Command::Pong(proto::CommandPong {})));
    assert_eq!(client.next().await, None);
}
