//! The CONNECT that goes on to a broker, and what passes until the broker has agreed to it.
//!
//! Authentication is the broker's: it gets what the client has sent, nothing is added and nothing is decided here. Fields in
//! which a proxy speaks for others (`original_principal` …) pass as they came, so a client gains nothing by them that it
//! would not have at the broker itself.

use bytes::Bytes;
use geminga_wire_pulsar::{Command, proto};

use crate::answers::Refusal;
use crate::frame::Frame;

const PROXY_VERSION: &str = concat!("Geminga-", env!("CARGO_PKG_VERSION"));

/// What a broker sends as a challenge when it wants new credentials instead of those that expire (`AuthData` of Pulsar's
/// client API).
const REFRESH: &[u8] = b"PulsarAuthRefresh";

/// The client's CONNECT as a broker gets it.
pub fn introduction(connect: &proto::CommandConnect) -> Frame {
    let mut connect = connect.clone();
    connect.proxy_to_broker_url = None;
    connect.proxy_version.get_or_insert_with(|| PROXY_VERSION.to_owned());
    Frame::new(connect)
}

/// Whether the answer to this challenge is whole credentials, as they stand in a CONNECT.
pub fn asks_for_new_credentials(challenge: &proto::CommandAuthChallenge) -> bool {
    challenge.challenge.as_ref().and_then(|challenge| challenge.auth_data.as_deref()) == Some(REFRESH)
}

/// What comes of a frame while a client and the one broker that it has named get to know each other.
#[derive(Debug)]
pub enum Step {
    ToClient(Bytes),
    ToBroker(Bytes),
    /// The broker has agreed; after these bytes for the client, everything passes as it comes.
    Agreed(Bytes),
    /// The broker has refused, and says so to the client.
    Refused(Bytes, Refusal),
    Nothing,
    /// This does not belong here.
    Unexpected(&'static str),
}

pub fn from_broker(frame: Frame) -> Step {
    match &frame.command {
        Command::Connected(_) => Step::Agreed(frame.bytes),
        Command::AuthChallenge(_) => Step::ToClient(frame.bytes),
        Command::Error(error) => Step::Refused(frame.bytes, Refusal::of(error)),
        Command::Ping(_) => Step::ToBroker(Frame::new(proto::CommandPong {}).bytes),
        Command::Pong(_) => Step::Nothing,
        other => Step::Unexpected(other.name()),
    }
}

pub fn from_client(frame: Frame) -> Step {
    match &frame.command {
        Command::AuthResponse(_) => Step::ToBroker(frame.bytes),
        Command::Ping(_) => Step::ToClient(Frame::new(proto::CommandPong {}).bytes),
        Command::Pong(_) => Step::Nothing,
        other => Step::Unexpected(other.name()),
    }
}
