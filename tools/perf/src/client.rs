//! The blocking part of a connection: handshake, lookup, and any request that waits for its answer. Once set up, a
//! [`Session`] becomes a [`crate::link::Link`].

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::BytesMut;
use geminga_wire_pulsar::proto::command_lookup_topic_response::LookupType;
use geminga_wire_pulsar::proto::{self, ServerError};
use geminga_wire_pulsar::{Command, DEFAULT_MAX_MESSAGE_SIZE, FRAME_PADDING, decode_frame, encode_simple};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: u32 = 20;
const PROTOCOL_VERSION: i32 = 21;

/// A connection after its handshake.
pub(crate) struct Session {
    pub(crate) stream: TcpStream,
    pub(crate) received: BytesMut,
    pub(crate) max_message_size: usize,
    address: String,
    next_request: u64,
}

/// `host:port` of a `pulsar://` URL; of several hosts the first.
pub(crate) fn address_of(url: &str) -> Result<String> {
    let Some(rest) = url.strip_prefix("pulsar://") else {
        bail!("{url:?} is not a pulsar:// URL (TLS is not supported here)");
    };
    let host = rest.split(['/', ',']).next().unwrap_or_default();
    if host.is_empty() {
        bail!("{url:?} names no host");
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { host.to_owned() } else { format!("{host}:6650") })
}

fn dial(address: &str) -> Result<TcpStream> {
    let mut last = None;
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow!("the name has no address"), Into::into))
}

/// A broker's error as text.
pub(crate) fn describe(code: Option<i32>, message: Option<&str>) -> String {
    let name = match code.map(ServerError::try_from) {
        Some(Ok(error)) => error.as_str_name().to_owned(),
        Some(Err(unknown)) => format!("error {unknown}"),
        None => "unspecified error".to_owned(),
    };
    match message {
        Some(message) if !message.is_empty() => format!("{name}: {message}"),
        _ => name,
    }
}

impl Session {
    pub(crate) fn open(target: &Target) -> Result<Self> {
        let address = target.address.as_str();
        let stream = dial(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut session = Self {
            stream,
            received: BytesMut::new(),
            max_message_size: DEFAULT_MAX_MESSAGE_SIZE,
            address: address.to_owned(),
            next_request: 1,
        };
        session.handshake(target.proxied_to.clone()).with_context(|| format!("handshake with {address}"))?;
        Ok(session)
    }

    fn handshake(&mut self, proxy_to_broker_url: Option<String>) -> Result<()> {
        self.send(&[proto::CommandConnect {
            client_version: concat!("geminga-perf-", env!("CARGO_PKG_VERSION")).to_owned(),
            auth_method_name: Some("none".to_owned()),
            protocol_version: Some(PROTOCOL_VERSION),
            proxy_to_broker_url,
            feature_flags: Some(proto::FeatureFlags::default()),
            ..Default::default()
        }
        .into()])?;
        match self.receive()? {
            Command::Connected(connected) => {
                if let Some(size) = connected.max_message_size.filter(|size| *size > 0) {
                    self.max_message_size = size as usize;
                }
                Ok(())
            }
            Command::Error(error) => bail!(describe(Some(error.error), Some(&error.message))),
            other => bail!("got {} instead of CONNECTED", other.name()),
        }
    }

    pub(crate) fn request_id(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request - 1
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.max_message_size + FRAME_PADDING
    }

    pub(crate) fn send(&mut self, commands: &[Command]) -> Result<()> {
        let mut out = BytesMut::new();
        for command in commands {
            encode_simple(command, &mut out);
        }
        self.stream.write_all(&out).with_context(|| format!("write to {}", self.address))
    }

    /// The next command but PING, which is answered.
    fn receive(&mut self) -> Result<Command> {
        loop {
            let max_frame = self.max_frame();
            while let Some(frame) = decode_frame(&mut self.received, max_frame)? {
                match frame.command {
                    Command::Ping(_) => self.send(&[proto::CommandPong {}.into()])?,
                    command => return Ok(command),
                }
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk).with_context(|| format!("wait for an answer from {}", self.address))? {
                0 => bail!("{} closed the connection", self.address),
                n => self.received.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// The answer to a request; an ERROR becomes an error.
    pub(crate) fn answer(&mut self, request_id: u64) -> Result<Command> {
        loop {
            match self.receive()? {
                Command::Error(error) if error.request_id == request_id => {
                    bail!(describe(Some(error.error), Some(&error.message)))
                }
                command if command.request_id() == Some(request_id) => return Ok(command),
                _ => {}
            }
        }
    }

    fn partitions(&mut self, topic: &str) -> Result<u32> {
        let request_id = self.request_id();
        self.send(&[proto::CommandPartitionedTopicMetadata {
            topic: topic.to_owned(),
            request_id,
            ..Default::default()
        }
        .into()])?;
        match self.answer(request_id)? {
            Command::PartitionedMetadataResponse(response) if response.error.is_some() => {
                bail!(describe(response.error, response.message.as_deref()))
            }
            Command::PartitionedMetadataResponse(response) => Ok(response.partitions.unwrap_or(0)),
            other => bail!("got {} instead of partitioned metadata", other.name()),
        }
    }

    fn lookup(&mut self, topic: &str, authoritative: bool) -> Result<Box<proto::CommandLookupTopicResponse>> {
        let request_id = self.request_id();
        let lookup = proto::CommandLookupTopic {
            topic: topic.to_owned(),
            request_id,
            authoritative: Some(authoritative),
            ..Default::default()
        };
        self.send(&[lookup.into()])?;
        match self.answer(request_id)? {
            Command::LookupResponse(response) if response.response() == LookupType::Failed => {
                bail!(describe(response.error, response.message.as_deref()))
            }
            Command::LookupResponse(response) => Ok(response),
            other => bail!("got {} instead of a lookup response", other.name()),
        }
    }
}

/// Where to connect to, as `host:port`, and the broker behind it if that is a proxy (or says it is: a standalone does).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Target {
    address: String,
    proxied_to: Option<String>,
}

impl Target {
    /// `broker` as reached from the service URL `service`.
    fn of(service: &str, broker: String, proxied: bool) -> Self {
        if proxied && broker != service {
            Self { address: service.to_owned(), proxied_to: Some(broker) }
        } else {
            Self { address: broker, proxied_to: None }
        }
    }
}

/// A topic that is no partitioned one, and where it is served.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) topic: String,
    pub(crate) target: Target,
}

/// Finds topics and their partitions, keeping one connection per broker.
pub(crate) struct Finder {
    service: Target,
    sessions: HashMap<Target, Session>,
}

impl Finder {
    pub(crate) fn new(url: &str) -> Result<Self> {
        let service = Target { address: address_of(url)?, proxied_to: None };
        Ok(Self { service, sessions: HashMap::new() })
    }

    fn session(&mut self, target: &Target) -> Result<&mut Session> {
        if !self.sessions.contains_key(target) {
            self.sessions.insert(target.clone(), Session::open(target)?);
        }
        self.sessions.get_mut(target).context("the session was just put there")
    }

    /// Where each topic, or each of its partitions, is served.
    pub(crate) fn find(&mut self, topics: &[String]) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for topic in topics {
            let service = self.service.clone();
            let partitions =
                self.session(&service)?.partitions(topic).with_context(|| format!("partitions of {topic}"))?;
            let parts = match partitions {
                0 => vec![topic.clone()],
                count => (0..count).map(|i| format!("{topic}-partition-{i}")).collect(),
            };
            for topic in parts {
                let target = self.locate(&topic).with_context(|| format!("lookup of {topic}"))?;
                places.push(Place { topic, target });
            }
        }
        Ok(places)
    }

    fn locate(&mut self, topic: &str) -> Result<Target> {
        let mut target = self.service.clone();
        let mut authoritative = false;
        for _ in 0..MAX_REDIRECTS {
            let response = self.session(&target)?.lookup(topic, authoritative)?;
            let url = response.broker_service_url.as_deref().context("the answer has no pulsar:// address")?;
            target = Target::of(&self.service.address, address_of(url)?, response.proxy_through_service_url());
            if response.response() == LookupType::Connect {
                return Ok(target);
            }
            authoritative = response.authoritative();
        }
        bail!("redirected more than {MAX_REDIRECTS} times")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        assert_eq!(address_of("pulsar://h:1").unwrap(), "h:1");
        assert_eq!(address_of("pulsar://h").unwrap(), "h:6650");
        assert_eq!(address_of("pulsar://[::1]:7/").unwrap(), "[::1]:7");
        assert_eq!(address_of("pulsar://a:1,b:2").unwrap(), "a:1");
        assert!(address_of("pulsar+ssl://h:1").is_err() && address_of("pulsar://").is_err());
    }
}
