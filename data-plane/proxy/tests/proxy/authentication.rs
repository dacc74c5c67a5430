//! Credentials are the broker's business: they pass, and so do its challenges.

use std::sync::Arc;

use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::{Command, proto};
use parking_lot::Mutex;

use crate::fixture::{Broker, Peer, Running, answer, connect, connect_to, connected, options};

fn data(bytes: &'static str) -> Option<proto::AuthData> {
    Some(proto::AuthData { auth_method_name: Some("token".into()), auth_data: Some(bytes.into()) })
}

fn challenge(bytes: &'static str) -> proto::CommandAuthChallenge {
    proto::CommandAuthChallenge { challenge: data(bytes), ..Default::default() }
}

fn with_token(connect: proto::CommandConnect) -> proto::CommandConnect {
    proto::CommandConnect {
        auth_method_name: Some("token".into()),
        auth_data: Some("first".into()),
        original_principal: Some("alice".into()),
        original_auth_data: Some("hers".into()),
        original_auth_method: Some("token".into()),
        ..connect
    }
}

/// What a broker has heard, in order.
type Heard = Arc<Mutex<Vec<String>>>;

async fn ask(peer: &mut Peer, question: &'static str, heard: &Heard) {
    peer.send(challenge(question)).await;
    let Some(Command::AuthResponse(response)) = peer.next().await else { panic!("expected AUTH_RESPONSE") };
    let credentials = response.response.unwrap().auth_data.unwrap();
    heard.lock().push(String::from_utf8(credentials.to_vec()).unwrap());
}

/// Notes whom it is shown, asks a riddle before it agrees, and for new credentials with each lookup.
async fn challenging(heard: Heard) -> Broker {
    Broker::start(move |mut peer| {
        let heard = heard.clone();
        async move {
            let connect = peer.expect_connect().await;
            assert_eq!(connect.proxy_to_broker_url, None);
            assert!(connect.proxy_version.is_some_and(|version| version.starts_with("Geminga-")));
            assert_eq!(connect.auth_method_name.as_deref(), Some("token"));
            assert_eq!(connect.original_principal.as_deref(), Some("alice"));
            assert_eq!(connect.original_auth_data.as_deref(), Some("hers"));
            assert_eq!(connect.original_auth_method.as_deref(), Some("token"));
            heard.lock().push(String::from_utf8(connect.auth_data.unwrap().to_vec()).unwrap());
            ask(&mut peer, "riddle", &heard).await;
            peer.send(connected()).await;
            while let Some(command) = peer.next().await {
                let Command::Lookup(lookup) = command else { panic!("expected LOOKUP, got {command:?}") };
                ask(&mut peer, "PulsarAuthRefresh", &heard).await;
                peer.send(answer(lookup.request_id, LookupType::Connect, "pulsar://owner:1")).await;
            }
        }
    })
    .await
}

/// As a client: hears a challenge, and answers it.
async fn respond(client: &mut Peer, question: &'static str, credentials: &'static str) {
    assert_eq!(client.next().await, Some(challenge(question).into()));
    client.send(proto::CommandAuthResponse { response: data(credentials), ..Default::default() }).await;
}

#[tokio::test]
async fn challenges_pass_while_lookups_are_asked_and_new_credentials_are_used_from_then_on() {
    let heard = Heard::default();
    let first = challenging(heard.clone()).await;
    let second_heard = Heard::default();
    let second = challenging(second_heard.clone()).await;
    let proxy = Running::start(options(vec![first.endpoint(), second.endpoint()])).await;
    let mut client = proxy.client().await;
    client.send(with_token(connect())).await;
    respond(&mut client, "riddle", "solved").await;
    assert!(matches!(client.next().await, Some(Command::Connected(_))));
    client.send(crate::fixture::lookup(1)).await;
    respond(&mut client, "PulsarAuthRefresh", "second").await;
    assert!(matches!(client.next().await, Some(Command::LookupResponse(_))));
    assert_eq!(*heard.lock(), ["first", "solved", "second"]);

    // The next broker is shown the newest credentials, and its riddle reaches the client too.
    drop(first);
    client.send(crate::fixture::lookup(2)).await;
    respond(&mut client, "riddle", "solved again").await;
    respond(&mut client, "PulsarAuthRefresh", "third").await;
    assert!(matches!(client.next().await, Some(Command::LookupResponse(_))));
    assert_eq!(*second_heard.lock(), ["second", "solved again", "third"]);
}

#[tokio::test]
async fn challenges_pass_before_a_pipe_and_through_it() {
    let heard = Heard::default();
    let broker = challenging(heard.clone()).await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    let mut client = proxy.client().await;
    client.send(with_token(connect_to(&broker.address.to_string()))).await;
    respond(&mut client, "riddle", "solved").await;
    assert!(matches!(client.next().await, Some(Command::Connected(_))));
    client.send(crate::fixture::lookup(1)).await;
    respond(&mut client, "PulsarAuthRefresh", "second").await;
    let answer = client.next().await;
    let Some(Command::LookupResponse(response)) = answer else { panic!("expected LOOKUP_RESPONSE, got {answer:?}") };
    assert_eq!(response.proxy_through_service_url, None, "what passes a pipe is not touched");
    assert_eq!(*heard.lock(), ["first", "solved", "second"]);
}

#[tokio::test]
async fn a_refusal_reaches_the_client() {
    let broker = Broker::start(|mut peer| async move {
        peer.expect_connect().await;
        let error = proto::ServerError::AuthenticationError as i32;
        peer.send(proto::CommandError { request_id: u64::MAX, error, message: "who are you".into() }).await;
    })
    .await;
    let proxy = Running::start(options(vec![broker.endpoint()])).await;
    for connect in [connect(), connect_to(&broker.address.to_string())] {
        let mut client = proxy.client().await;
        client.send(with_token(connect)).await;
        match client.next().await {
            Some(Command::Error(error)) => {
                assert_eq!(
                    (error.error(), error.message.as_str()),
                    (proto::ServerError::AuthenticationError, "who are you")
                );
            }
            other => panic!("expected ERROR, got {other:?}"),
        }
        assert_eq!(client.next().await, None);
    }
}
