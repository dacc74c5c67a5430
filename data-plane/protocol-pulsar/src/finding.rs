//! CONNECT, lookups, partitions, topics of a namespace, and what is not supported.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::{BrokerError, Owner};
use geminga_model::{NamespaceName, TopicDomain, TopicName};
use geminga_wire_pulsar::{Command, NO_REQUEST, proto};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::connection::{ClientInfo, Connection};
use crate::error::{ConnectionError, error_command, server_error};
use crate::keeping::{no_room_for_list, watch_bytes};

/// The newest protocol version that we speak.
pub const PROTOCOL_VERSION: i32 = 21;
/// How long changes of a list of topics are gathered.
const BURST: Duration = Duration::from_millis(100);
/// Longest pattern of topics; Pulsar's `subscriptionPatternMaxLength` is 50.
const PATTERN_MAX: usize = 1024;
/// Bound of what a pattern may become when it is compiled.
const PATTERN_BYTES_MAX: usize = 1 << 20;
const SERVER_VERSION: &str = concat!("Geminga-", env!("CARGO_PKG_VERSION"));

impl Connection {
    pub(crate) fn connect(&self, connect: proto::CommandConnect) -> Result<(), ConnectionError> {
        let flags = connect.feature_flags.unwrap_or_default();
        let info = ClientInfo {
            version: connect.client_version,
            protocol_version: connect.protocol_version.unwrap_or(0),
            partial_producer: flags.supports_partial_producer.unwrap_or(false),
            broker_entry_metadata: flags.supports_broker_entry_metadata.unwrap_or(false),
        };
        let version = info.protocol_version.min(PROTOCOL_VERSION);
        tracing::debug!(address = %self.address, client = %info.version, version, "client connected");
        if self.client.set(info).is_err() {
            return Err(ConnectionError::Refused("second CONNECT on one connection".into()));
        }
        self.broker.connections().accepted();
        self.send(&Command::from(proto::CommandConnected {
            server_version: SERVER_VERSION.into(),
            protocol_version: Some(version),
            max_message_size: Some(self.broker.config().max_message_bytes as i32),
            feature_flags: Some(proto::FeatureFlags {
                supports_broker_entry_metadata: Some(true),
                supports_partial_producer: Some(true),
                supports_topic_watchers: Some(true),
                supports_get_partitioned_metadata_without_auto_creation: Some(true),
                ..Default::default()
            }),
        }));
        Ok(())
    }

    pub(crate) fn lookup(self: &Arc<Self>, lookup: proto::CommandLookupTopic) {
        self.spawn(|connection| async move {
            let request_id = lookup.request_id;
            let response = match connection.find(&lookup).await {
                Ok((url, through_service_url)) => proto::CommandLookupTopicResponse {
                    broker_service_url: Some(url),
                    response: Some(proto::command_lookup_topic_response::LookupType::Connect as i32),
                    request_id,
                    authoritative: Some(true),
                    proxy_through_service_url: Some(through_service_url),
                    ..Default::default()
                },
                Err(error) => proto::CommandLookupTopicResponse {
                    response: Some(proto::command_lookup_topic_response::LookupType::Failed as i32),
                    request_id,
                    error: Some(server_error(&error) as i32),
                    message: Some(error.to_string()),
                    ..Default::default()
                },
            };
            connection.send(&Command::from(response));
        });
    }

    /// The URL at which the topic is served, and whether the client is to stay with the one that it has. It is, as in Pulsar, when
    /// there is no other broker and the address is of use on this machine only: the client may have come through a forwarded port.
    async fn find(&self, lookup: &proto::CommandLookupTopic) -> Result<(String, bool), BrokerError> {
        let name = TopicName::parse(&lookup.topic).map_err(|error| BrokerError::InvalidName(error.to_string()))?;
        let owner = self.broker.lookup(&name).await?;
        let listener =
            lookup.advertised_listener_name.as_deref().map(str::trim).filter(|listener| !listener.is_empty());
        let url = match (&owner, listener) {
            (Owner::Me(tenure), None) => {
                let advertised = &self.broker.config().advertised_pulsar;
                return Ok((self.service_url(), tenure.version.is_none() && !is_known_elsewhere(advertised)));
            }
            (Owner::Other(broker), None) => return Ok((broker.record.pulsar_url.clone(), false)),
            (Owner::Me(_), Some(listener)) => self.broker.config().advertised_listeners.get(listener).cloned(),
            (Owner::Other(broker), Some(listener)) => broker.record.listeners.get(listener).cloned(),
        };
        url.map(|url| (url, false)).ok_or_else(|| {
            BrokerError::ServiceNotReady(format!("the broker has no listener {}", listener.unwrap_or_default()))
        })
    }

    /// Where this client reaches this broker.
    fn service_url(&self) -> String {
        match &self.broker.config().advertised_pulsar {
            advertised if advertised.is_empty() => format!("pulsar://{}", self.local_address),
            advertised => format!("pulsar://{advertised}"),
        }
    }

    pub(crate) fn partition_metadata(self: &Arc<Self>, command: proto::CommandPartitionedTopicMetadata) {
        self.spawn(|connection| async move {
            let request_id = command.request_id;
            let create = command.metadata_auto_creation_enabled.unwrap_or(true);
            let found = match TopicName::parse(&command.topic) {
                Ok(name) => connection.broker.partitions(&name, create).await,
                Err(error) => Err(BrokerError::InvalidName(error.to_string())),
            };
            let response = match found {
                Ok(partitions) => proto::CommandPartitionedTopicMetadataResponse {
                    partitions: Some(partitions),
                    request_id,
                    response: Some(proto::command_partitioned_topic_metadata_response::LookupType::Success as i32),
                    ..Default::default()
                },
                Err(error) => proto::CommandPartitionedTopicMetadataResponse {
                    request_id,
                    response: Some(proto::command_partitioned_topic_metadata_response::LookupType::Failed as i32),
                    error: Some(server_error(&error) as i32),
                    message: Some(error.to_string()),
                    ..Default::default()
                },
            };
            connection.send(&Command::from(response));
        });
    }

    pub(crate) fn topics_of_namespace(self: &Arc<Self>, command: proto::CommandGetTopicsOfNamespace) {
        self.spawn(|connection| async move {
            let Some(_turn) = connection.turn_to_answer().await else { return };
            let answer = connection.list_topics(&command).await;
            let answer = answer.unwrap_or_else(|error| error_command(command.request_id, &error));
            connection.send(&answer);
        });
    }

    async fn list_topics(&self, command: &proto::CommandGetTopicsOfNamespace) -> Result<Command, BrokerError> {
        let namespace = parse_namespace(&command.namespace)?;
        let domains: &[TopicDomain] = match command.mode() {
            proto::command_get_topics_of_namespace::Mode::Persistent => &[TopicDomain::Persistent],
            proto::command_get_topics_of_namespace::Mode::NonPersistent => &[TopicDomain::NonPersistent],
            proto::command_get_topics_of_namespace::Mode::All => &TopicDomain::ALL,
        };
        let mut topics = self.topics(&namespace, domains).await?;
        let mut filtered = false;
        if let Some(pattern) = command.topics_pattern.as_deref().filter(|pattern| !pattern.is_empty())
            && let Ok(pattern) = TopicPattern::new(pattern)
        {
            topics.retain(|topic| pattern.matches(topic));
            filtered = true;
        }
        let hash = topics_hash(&topics);
        let changed = command.topics_hash.as_deref() != Some(hash.as_str());
        Ok(Command::from(proto::CommandGetTopicsOfNamespaceResponse {
            request_id: command.request_id,
            topics: if changed { topics } else { Vec::new() },
            filtered: Some(filtered),
            topics_hash: Some(hash),
            changed: Some(changed),
        }))
    }

    /// Tells a regex consumer the topics that match, and from then on what comes and goes.
    pub(crate) fn watch_topic_list(self: &Arc<Self>, command: proto::CommandWatchTopicList) {
        let (connection, permit) = (self.clone(), self.permit());
        let watcher_id = command.watcher_id;
        let mut watchers = self.watchers.lock();
        let task = tokio::spawn(async move {
            if let Err(error) = connection.watch(&command, permit).await {
                connection.send(&error_command(command.request_id, &error));
                let mut watchers = connection.watchers.lock();
                if watchers.get(&watcher_id).is_some_and(|watcher| watcher.id() == tokio::task::id()) {
                    watchers.remove(&watcher_id);
                }
            }
        });
        if let Some(old) = watchers.insert(watcher_id, task.abort_handle()) {
            old.abort();
        }
    }

    /// Gives `permit` back with the first answer.
    async fn watch(
        &self,
        command: &proto::CommandWatchTopicList,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<(), BrokerError> {
        let namespace = parse_namespace(&command.namespace)?;
        let pattern = command.topics_pattern.as_str();
        TopicPattern::new(pattern)?;
        let mut room = self.keep_watch(command)?;
        let mut changes = self.broker.topic_changes();
        let Some(turn) = self.turn_to_answer().await else { return Ok(()) };
        let mut known = self.matching(&namespace, pattern).await?;
        if !room.resize(watch_bytes(command, &known)) {
            return Err(no_room_for_list());
        }
        let hash = topics_hash(&known);
        let changed = command.topics_hash.as_deref() != Some(hash.as_str());
        self.send(&Command::from(proto::CommandWatchTopicListSuccess {
            request_id: command.request_id,
            watcher_id: command.watcher_id,
            topic: if changed { known.clone() } else { Vec::new() },
            topics_hash: hash,
        }));
        drop((turn, permit));
        loop {
            // A missed change is no loss: the list is read anew after whatever came.
            match changes.recv().await {
                Ok(changed) if changed != namespace => continue,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            }
            // Changes come in bursts, and one look sees all that have come.
            tokio::time::sleep(BURST).await;
            while matches!(changes.try_recv(), Ok(_) | Err(TryRecvError::Lagged(_))) {}
            let Some(_turn) = self.turn_to_answer().await else { return Ok(()) };
            let now = match self.matching(&namespace, pattern).await {
                Ok(now) => now,
                Err(error) => {
                    tracing::warn!(%namespace, %error, "could not read the topics for a watcher");
                    continue;
                }
            };
            let (new_topics, deleted_topics) = (not_in(&known, &now), not_in(&now, &known));
            known = now;
            if !room.resize(watch_bytes(command, &known)) {
                tracing::info!(address = %self.address, %namespace, "a list that is watched grew out of its memory: ended");
                self.shut_down();
                return Ok(());
            }
            if new_topics.is_empty() && deleted_topics.is_empty() {
                continue;
            }
            self.send(&Command::from(proto::CommandWatchTopicUpdate {
                watcher_id: command.watcher_id,
                new_topics,
                deleted_topics,
                topics_hash: topics_hash(&known),
            }));
        }
    }

    /// A namespace that does not exist has no persistent topics, as in Pulsar (its HTTP lookup answers 404 instead); whoever
    /// asks for others too is told.
    async fn topics(&self, namespace: &NamespaceName, domains: &[TopicDomain]) -> Result<Vec<String>, BrokerError> {
        match self.broker.topics(namespace, domains).await {
            Err(BrokerError::TenantNotFound(_) | BrokerError::NamespaceNotFound(_))
                if domains.contains(&TopicDomain::NonPersistent) =>
            {
                Err(BrokerError::NotFound("Namespace not found".into()))
            }
            Err(BrokerError::TenantNotFound(_) | BrokerError::NamespaceNotFound(_)) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Sorted, as all lists of topics are. The pattern is compiled for each look, as it may take more room than the list.
    async fn matching(&self, namespace: &NamespaceName, pattern: &str) -> Result<Vec<String>, BrokerError> {
        let mut topics = self.topics(namespace, &[TopicDomain::Persistent]).await?;
        let pattern = TopicPattern::new(pattern)?;
        topics.retain(|topic| pattern.matches(topic));
        Ok(topics)
    }

    pub(crate) fn close_watch(&self, close: &proto::CommandWatchTopicListClose) {
        if let Some(watcher) = self.watchers.lock().remove(&close.watcher_id) {
            watcher.abort();
        }
        self.succeed(close.request_id);
    }

    /// A command that this broker does not serve: an error that names it, never silence.
    pub(crate) fn unsupported(&self, command: &Command) {
        let error = BrokerError::Unsupported(format!("command {}", command.label()));
        self.send(&error_command(command.request_id().unwrap_or(NO_REQUEST), &error));
    }
}

/// Whether `host:port`, as it is advertised, means this broker on other machines too.
fn is_known_elsewhere(advertised: &str) -> bool {
    match advertised.parse::<SocketAddr>() {
        Ok(address) => !address.ip().is_loopback(),
        Err(_) => !advertised.is_empty() && !advertised.starts_with("localhost:"),
    }
}

fn parse_namespace(text: &str) -> Result<NamespaceName, BrokerError> {
    NamespaceName::parse(text).map_err(|error| BrokerError::InvalidName(error.to_string()))
}

/// The topics that another list does not have; that one is sorted.
fn not_in(other: &[String], topics: &[String]) -> Vec<String> {
    topics.iter().filter(|topic| other.binary_search(topic).is_err()).cloned().collect()
}

/// A regular expression over topic names, matched as Pulsar does: against the whole name without its domain and without
/// a partition suffix.
struct TopicPattern(regex::Regex);

impl TopicPattern {
    fn new(pattern: &str) -> Result<Self, BrokerError> {
        if pattern.len() > PATTERN_MAX {
            let error = format!("Unable to create topic list watcher: Pattern longer than maximum: {PATTERN_MAX}");
            return Err(BrokerError::NotAllowed(error));
        }
        let bare = pattern.split_once("://").map_or(pattern, |(_, rest)| rest);
        let compiled = regex::RegexBuilder::new(&format!("^(?:{bare})$")).size_limit(PATTERN_BYTES_MAX).build();
        compiled.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                BrokerError::NotAllowed(format!("Topics pattern takes more than {PATTERN_BYTES_MAX} bytes: {pattern}"))
            }
            _ => BrokerError::InvalidName(format!("Invalid topics pattern: {pattern}")),
        })
    }

    fn matches(&self, topic: &str) -> bool {
        let bare = topic.split_once("://").map_or(topic, |(_, rest)| rest);
        let base = match bare.rsplit_once("-partition-") {
            Some((base, index)) if !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()) => base,
            _ => bare,
        };
        self.0.is_match(base)
    }
}

/// Pulsar's hash of a topic list: CRC32C over the sorted names joined by commas, its bytes in hex from the lowest one on.
fn topics_hash(topics: &[String]) -> String {
    let mut sorted: Vec<&str> = topics.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    format!("{:08x}", geminga_wire_pulsar::crc32c(sorted.join(",").as_bytes()).swap_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// As Pulsar 4.0.8's `TopicList.calculateHash` answers.
    #[test]
    fn topics_have_pulsars_hash() {
        assert_eq!(topics_hash(&["b".into(), "a".into()]), "3ae8eccf");
        assert_eq!(topics_hash(&["persistent://public/default/t".into()]), "977bd9c6");
        assert_eq!(topics_hash(&[]), "00000000");
    }

    #[test]
    fn many_topics_are_compared_at_once() {
        let names = |numbers: std::ops::Range<u32>| numbers.map(|number| format!("t-{number:06}")).collect::<Vec<_>>();
        let (known, now) = (names(0..50_000), names(1..50_002));
        let since = Instant::now();
        assert_eq!(not_in(&known, &now), names(50_000..50_002));
        assert_eq!(not_in(&now, &known), names(0..1));
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    }
}
