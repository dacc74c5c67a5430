//! Topic names, by the rules of Pulsar's `TopicName`, without the V1 form that had a cluster in it.

use std::cmp::Ordering;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{InvalidName, NamespaceName};

pub const PUBLIC_TENANT: &str = "public";
pub const DEFAULT_NAMESPACE: &str = "default";
/// What stands between a partitioned topic's name and a partition's number.
pub const PARTITION_SUFFIX: &str = "-partition-";

/// Where Pulsar keeps policies of topics and snapshots of transactions, in each namespace.
const SYSTEM_TOPICS: &[&str] = &[
    "__change_events",
    "__transaction_buffer_snapshot",
    "__transaction_buffer_snapshot_indexes",
    "__transaction_buffer_snapshot_segments",
];
const PENDING_ACKS_SUFFIX: &str = "__transaction_pending_ack";
const SYSTEM_NAMESPACE: &str = "pulsar/system";
/// How the names of its own topics begin there.
const COORDINATORS: &[&str] = &["transaction_coordinator_assign", "__transaction_log_"];

/// Longest full name that is accepted, in bytes; it bounds keys in metadata.
const NAME_LENGTH_MAX: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TopicDomain {
    #[serde(rename = "persistent")]
    Persistent,
    #[serde(rename = "non-persistent")]
    NonPersistent,
}

impl TopicDomain {
    pub const ALL: [TopicDomain; 2] = [TopicDomain::Persistent, TopicDomain::NonPersistent];

    pub const fn as_str(self) -> &'static str {
        match self {
            TopicDomain::Persistent => "persistent",
            TopicDomain::NonPersistent => "non-persistent",
        }
    }
}

impl fmt::Display for TopicDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TopicDomain {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "persistent" => Ok(TopicDomain::Persistent),
            "non-persistent" => Ok(TopicDomain::NonPersistent),
            _ => Err(InvalidName(format!("Invalid topic domain: '{text}'"))),
        }
    }
}

/// `domain://tenant/namespace/local`. Cloning shares the text; comparing and hashing use the full name.
#[derive(Clone)]
pub struct TopicName {
    full: Arc<str>,
    namespace: NamespaceName,
    domain: TopicDomain,
    local_start: u32,
    partition: Option<u32>,
}

impl TopicName {
    /// Reads a full name, `tenant/namespace/local` (persistent) or `local` (persistent, in `public/default`).
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let Some((domain, rest)) = text.split_once("://") else {
            return TopicName::parse_short(text);
        };
        let domain = domain.parse()?;
        let mut parts = rest.splitn(4, '/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(tenant), Some(namespace), Some(local), None) => {
                TopicName::new(domain, NamespaceName::new(tenant, namespace)?, local)
            }
            (Some(_), Some(_), Some(_), Some(_)) => Err(InvalidName(format!(
                "Invalid topic name: {text}: V1 topic names with a cluster are not supported, \
                 use {domain}://<tenant>/<namespace>/<topic>"
            ))),
            _ => Err(InvalidName(format!("Invalid topic name: {text}"))),
        }
    }

    fn parse_short(text: &str) -> Result<Self, InvalidName> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [local] => {
                let namespace = NamespaceName::new(PUBLIC_TENANT, DEFAULT_NAMESPACE)?;
                TopicName::new(TopicDomain::Persistent, namespace, local)
            }
            [tenant, namespace, local] => {
                TopicName::new(TopicDomain::Persistent, NamespaceName::new(tenant, namespace)?, local)
            }
            _ => Err(InvalidName(format!(
                "Invalid short topic name '{text}', it should be in the format of \
                 <tenant>/<namespace>/<topic> or <topic>"
            ))),
        }
    }

    /// Builds a name from its parts. `local` is any text that is not blank and has no slash.
    pub fn new(domain: TopicDomain, namespace: NamespaceName, local: &str) -> Result<Self, InvalidName> {
        let full = format!("{domain}://{namespace}/{local}");
        if local.trim().is_empty() {
            return Err(InvalidName(format!("Invalid topic name: {full}. Topic local name must not be blank.")));
        }
        if local.contains('/') || local.contains('\0') {
            return Err(InvalidName(format!(
                "Invalid topic name: {full}. Topic local name must not contain a slash or a NUL."
            )));
        }
        if full.len() > NAME_LENGTH_MAX {
            return Err(InvalidName(format!(
                "Invalid topic name: {} bytes long, the limit is {NAME_LENGTH_MAX}",
                full.len()
            )));
        }
        let partition = split_partition(local).map(|(_, index)| index);
        let local_start = (full.len() - local.len()) as u32;
        Ok(TopicName { full: full.into(), namespace, domain, local_start, partition })
    }

    /// The full name.
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The full name, shared.
    pub fn shared(&self) -> Arc<str> {
        self.full.clone()
    }

    pub fn domain(&self) -> TopicDomain {
        self.domain
    }

    pub fn is_persistent(&self) -> bool {
        self.domain == TopicDomain::Persistent
    }

    pub fn tenant(&self) -> &str {
        self.namespace.tenant()
    }

    pub fn namespace(&self) -> &NamespaceName {
        &self.namespace
    }

    pub fn local_name(&self) -> &str {
        &self.full[self.local_start as usize..]
    }

    /// The local name as one segment of a URL path: bytes other than ASCII letters, digits and `.-*_` as `%XX`.
    pub fn encoded_local_name(&self) -> String {
        let mut encoded = String::with_capacity(self.local_name().len());
        for byte in self.local_name().bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'*' | b'_') {
                encoded.push(char::from(byte));
            } else {
                write!(encoded, "%{byte:02X}").expect("writing to a String cannot fail");
            }
        }
        encoded
    }

    /// The number of the partition when the name ends in `-partition-N`.
    pub fn partition_index(&self) -> Option<u32> {
        self.partition
    }

    pub fn is_partition(&self) -> bool {
        self.partition.is_some()
    }

    /// The name of partition `index` of this topic; the name itself when it already is that partition.
    #[must_use]
    pub fn partition(&self, index: u32) -> TopicName {
        if self.partition == Some(index) {
            return self.clone();
        }
        TopicName {
            full: format!("{}{PARTITION_SUFFIX}{index}", self.full).into(),
            namespace: self.namespace.clone(),
            domain: self.domain,
            local_start: self.local_start,
            partition: i32::try_from(index).is_ok().then_some(index),
        }
    }

    /// The partitioned topic that a partition belongs to; the name itself when it is no partition.
    #[must_use]
    pub fn partitioned_base(&self) -> TopicName {
        let Some((base, _)) = split_partition(&self.full) else {
            return self.clone();
        };
        // No topic has a blank name.
        if base.get(self.local_start as usize..).is_none_or(|local| local.trim().is_empty()) {
            return self.clone();
        }
        TopicName {
            full: base.into(),
            namespace: self.namespace.clone(),
            domain: self.domain,
            local_start: self.local_start,
            partition: split_partition(&base[self.local_start as usize..]).map(|(_, index)| index),
        }
    }

    /// Whether the topic is one that Pulsar keeps for itself. Others may begin with two underscores too.
    pub fn is_system(&self) -> bool {
        let base = split_partition(self.local_name()).map_or(self.local_name(), |(base, _)| base);
        SYSTEM_TOPICS.contains(&base)
            || base.ends_with(PENDING_ACKS_SUFFIX)
            || self.namespace.as_str() == SYSTEM_NAMESPACE && COORDINATORS.iter().any(|prefix| base.starts_with(prefix))
    }
}

/// Splits `base-partition-N`. As in Pulsar, `N` is a Java int in its plain decimal form, so `-partition-01` is none.
fn split_partition(name: &str) -> Option<(&str, u32)> {
    let (base, digits) = name.rsplit_once(PARTITION_SUFFIX)?;
    let plain = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()));
    if !plain {
        return None;
    }
    let index: i32 = digits.parse().ok()?;
    Some((base, index as u32))
}

impl PartialEq for TopicName {
    fn eq(&self, other: &Self) -> bool {
        self.full == other.full
    }
}

impl Eq for TopicName {}

impl Hash for TopicName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.full.hash(state);
    }
}

impl PartialOrd for TopicName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for TopicName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.full.cmp(&other.full)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl FromStr for TopicName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TopicName::parse(text)
    }
}

impl Serialize for TopicName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.full)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        TopicName::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(text: &str) -> TopicName {
        TopicName::parse(text).unwrap()
    }

    #[test]
    fn short_and_full_forms() {
        assert_eq!(topic("a").as_str(), "persistent://public/default/a");
        assert_eq!(topic("t/n/a").as_str(), "persistent://t/n/a");
        let name = topic("non-persistent://t/n/grüße ü%");
        assert_eq!(name.domain(), TopicDomain::NonPersistent);
        assert_eq!((name.tenant(), name.namespace().as_str()), ("t", "t/n"));
        assert_eq!(name.local_name(), "grüße ü%");
        assert_eq!(name.encoded_local_name(), "gr%C3%BC%C3%9Fe%20%C3%BC%25");
    }

    #[test]
    fn refused_names() {
        for bad in [
            "",
            "/",
            "a/b",
            "a/b/c/d",
            "t/n/",
            "kafka://t/n/a",
            "://t/n/a",
            "persistent://a",
            "persistent://t/n",
            "persistent://t/n/",
            "persistent://t/n/  ",
            "persistent:///n/a",
            "persistent://t//a",
            "persistent://t/n!/a",
            "persistent://t/n/a/b",
        ] {
            assert!(TopicName::parse(bad).is_err(), "{bad}");
        }
        let legacy = TopicName::parse("persistent://prop/cluster/ns/topic").unwrap_err();
        assert!(legacy.to_string().contains("V1"), "{legacy}");
    }

    #[test]
    fn topics_of_pulsar_itself() {
        for name in [
            "__change_events",
            "__change_events-partition-3",
            "__transaction_buffer_snapshot",
            "s__transaction_pending_ack",
            "persistent://pulsar/system/__transaction_log_0",
        ] {
            assert!(topic(name).is_system(), "{name}");
        }
        for name in ["__mine", "change_events", "__transaction_log_0"] {
            assert!(!topic(name).is_system(), "{name}");
        }
    }

    #[test]
    fn partitions() {
        let base = topic("t/n/a");
        let third = base.partition(3);
        assert_eq!(third.as_str(), "persistent://t/n/a-partition-3");
        assert_eq!((third.partition_index(), base.partition_index()), (Some(3), None));
        assert_eq!(third.partition(3), third);
        assert_eq!(third.partitioned_base(), base);
        assert_eq!(base.partitioned_base(), base);
        for none in ["a-partition-", "a-partition-01", "a-partition--1", "a-partition-x", "a-partition-2147483648"] {
            assert_eq!(topic(none).partition_index(), None, "{none}");
        }
        let nested = topic("a-partition-1").partition(2);
        assert_eq!(nested.partition_index(), Some(2));
        assert_eq!(nested.partitioned_base(), topic("a-partition-1"));
        assert_eq!(nested.partitioned_base().partition_index(), Some(1));
        for blank in ["-partition-3", "\t-partition-47"] {
            assert_eq!(topic(blank).partitioned_base(), topic(blank));
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_stable(text in "\\PC{0,40}|(non-)?persistent://[a-c/]{0,8}[a-z0-9-]{0,20}|[ a]{0,2}-partition-[0-9]{1,2}") {
            if let Ok(name) = TopicName::parse(&text) {
                prop_assert_eq!(TopicName::parse(name.as_str()).unwrap(), name.clone());
                prop_assert_eq!(TopicName::parse(name.partition(7).as_str()).unwrap().partition_index(), Some(7));
                prop_assert_eq!(name.partition(7).domain(), name.domain());
                let base = name.partitioned_base();
                prop_assert_eq!(TopicName::parse(base.as_str()).unwrap(), base);
            }
        }
    }
}
