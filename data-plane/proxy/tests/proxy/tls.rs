use std::sync::Arc;

use geminga_proxy::{Endpoint, ProxyOptions};
use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::{Command, proto};
use tokio::net::TcpStream;

use crate::fixture::{Broker, Certificates, Peer, Running, connect, connect_to, options, serve_lookups};

/// A broker with TLS that names itself.
async fn secure_broker(certificates: &Certificates) -> Broker {
    let url = Arc::new(std::sync::OnceLock::<String>::new());
    let named = url.clone();
    let broker = Broker::with_tls(Some(certificates.server()), move |peer| {
        let named = named.clone();
        serve_lookups(peer, LookupType::Connect, move || named.get().cloned().unwrap_or_default())
    })
    .await;
    url.set(broker.url.clone()).unwrap();
    broker
}

#[tokio::test]
async fn both_sides_may_have_it() {
    let (inside, outside) = (Certificates::new(), Certificates::new());
    let broker = secure_broker(&inside).await;
    let options = ProxyOptions { broker_tls: Some(inside.client()), ..options(vec![broker.endpoint()]) };
    let proxy = Running::with_tls(options, Some(Arc::new(outside.server()))).await;
    let trust = outside.client();
    let secure = async || {
        let stream = TcpStream::connect(proxy.pulsar).await.unwrap();
        Peer::new(trust.connect("127.0.0.1", stream).await.unwrap())
    };
    let mut client = secure().await;
    client.hello(connect()).await;
    assert_eq!(client.look_up(1).await.broker_service_url_tls, Some(broker.url.clone()));
    let mut piped = secure().await;
    piped.hello(connect_to(&broker.address.to_string())).await;
    piped.send(proto::CommandPong {}).await;
    assert_eq!(piped.next().await, Some(Command::Pong(proto::CommandPong {})));

    // Without TLS nobody is heard on that port, and nobody else is disturbed.
    let mut plain = proxy.client().await;
    plain.send(connect()).await;
    while plain.next_bytes().await {}
    piped.send(proto::CommandPing {}).await;
    assert_eq!(piped.next().await, Some(Command::Ping(proto::CommandPing {})));
}

#[tokio::test]
async fn a_broker_that_is_not_trusted_is_none() {
    let (inside, other) = (Certificates::new(), Certificates::new());
    let broker = secure_broker(&inside).await;
    for broker_tls in [Some(other.client()), None] {
        let proxy = Running::start(ProxyOptions { broker_tls, ..options(vec![broker.endpoint()]) }).await;
        let mut client = proxy.client().await;
        client.send(connect()).await;
        assert!(matches!(client.next().await, Some(Command::Error(_))));
    }
    // A name that the certificate is not for.
    let by_name = Endpoint { host: "localhost".into(), ..broker.endpoint() };
    let proxy = Running::start(ProxyOptions { broker_tls: Some(inside.client()), ..options(vec![by_name]) }).await;
    let mut client = proxy.client().await;
    client.send(connect()).await;
    assert!(matches!(client.next().await, Some(Command::Error(_))));
}
