//! Topics and their ledger lists: `topics/<tenant>/<namespace>/<domain>/<local>`.

use std::collections::BTreeMap;

use geminga_model::{NamespaceName, Position, TopicDomain, TopicName};
use serde::{Deserialize, Serialize};

use super::{Metadata, Page, Parent, Versioned, garbage, ledgers, namespaces, schemas, subscriptions, topic_policies};
use crate::{Expect, MetadataError, Op, codec};

pub(super) const WHAT: &str = "topic";
pub(super) const PREFIX: &str = "topics/";

/// A ledger in a topic's list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerInfo {
    pub ledger_id: u64,
    /// Of a closed ledger; 0 while it is open, which only the last of a list is.
    #[serde(skip_serializing_if = "is_zero")]
    pub entries: u64,
    /// In bytes, of a closed ledger.
    #[serde(skip_serializing_if = "is_zero")]
    pub size: u64,
    /// When it was closed, in milliseconds since the Unix epoch; when it was created while it is open.
    pub timestamp: u64,
    /// Index of its first message within the topic.
    #[serde(skip_serializing_if = "is_zero")]
    pub first_index: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a broker needs to load a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicRecord {
    /// In the order of the topic, with growing ids.
    pub ledgers: Vec<LedgerInfo>,
    /// The last ledger may have grown since this was written.
    pub last_open: bool,
    /// Index of the next message; meaningless while `last_open`.
    #[serde(skip_serializing_if = "is_zero")]
    pub next_index: u64,
    /// The last entry of a terminated topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated: Option<Position>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// The greatest id of all ledgers that were ever in the list, 0 where that is the last's in it (older records say it there
    /// too); [`greatest_ledger`](Self::greatest_ledger) reads it.
    #[serde(skip_serializing_if = "is_zero")]
    pub last_ledger: u64,
    /// Of ledgers from this one on there is a record from the commit on that put them into the list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announced_from: Option<u64>,
    /// Milliseconds since the Unix epoch.
    pub created_at: u64,
    /// The epoch of the last exclusive producer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

impl TopicRecord {
    /// The greatest id of all ledgers that are or ever were in the list; 0 if there were none.
    pub fn greatest_ledger(&self) -> u64 {
        self.greatest_listed().max(self.last_ledger)
    }

    /// Says that ids up to this one were in the list, which has to be as it will be written.
    pub fn set_greatest_ledger(&mut self, ledger_id: u64) {
        self.last_ledger = if ledger_id > self.greatest_listed() { ledger_id } else { 0 };
    }

    fn greatest_listed(&self) -> u64 {
        self.ledgers.iter().map(|ledger| ledger.ledger_id).max().unwrap_or(0)
    }
}

pub(super) fn key(name: &TopicName) -> String {
    format!("{PREFIX}{}", path(name))
}

/// `<tenant>/<namespace>/<domain>/<local>`; local names have no slash, so this never is another one's prefix
/// once a slash follows.
pub(super) fn path(name: &TopicName) -> String {
    format!("{}/{}/{}", name.namespace(), name.domain(), name.local_name())
}

/// Reads what [`path`] writes.
pub(super) fn of_path(path: &str) -> Option<TopicName> {
    let mut parts = path.splitn(4, '/');
    let (tenant, namespace) = (parts.next()?, parts.next()?);
    let (domain, local) = (parts.next()?, parts.next()?);
    TopicName::new(domain.parse().ok()?, NamespaceName::new(tenant, namespace).ok()?, local).ok()
}

impl Metadata {
    /// Fails with [`MetadataError::NotFound`] of the namespace when there is no such namespace.
    pub async fn create_topic(
        &self,
        name: &TopicName,
        record: TopicRecord,
    ) -> Result<Versioned<TopicRecord>, MetadataError> {
        let namespace = name.namespace();
        let parent = Parent { what: namespaces::WHAT, name: namespace.as_str(), key: namespaces::key(namespace) };
        let version = self.create(WHAT, name.as_str(), &key(name), &record, Some(parent)).await?;
        Ok(Versioned { value: record, version })
    }

    pub async fn get_topic(&self, name: &TopicName) -> Result<Option<Versioned<TopicRecord>>, MetadataError> {
        self.read(&key(name)).await
    }

    /// Changes the record, whatever its version.
    pub async fn update_topic<F>(&self, name: &TopicName, change: F) -> Result<Versioned<TopicRecord>, MetadataError>
    where
        F: FnMut(&mut TopicRecord) -> Result<(), MetadataError> + Send,
    {
        self.update(WHAT, name.as_str(), &key(name), change).await
    }

    /// Writes the record if its version still is `version`, otherwise fails with [`MetadataError::Conflict`], which
    /// tells an owner that somebody else has taken the topic over. Answers the new version.
    ///
    /// `dropped` are ledgers that the new record no longer has: they are noted as garbage in the same commit. `announced` says in it what
    /// metadata say of a new one.
    pub async fn replace_topic(
        &self,
        name: &TopicName,
        record: &TopicRecord,
        version: u64,
        dropped: &[u64],
        announced: Option<Op>,
    ) -> Result<u64, MetadataError> {
        let mut ops = vec![Op::put(key(name), codec::encode(record)?, Expect::Version(version))];
        ops.extend(garbage::note(dropped)?);
        ops.extend(announced);
        Ok(self.store.commit(ops).await.map_err(ledgers::explained)?[0])
    }

    /// These metadata for an instance of a topic: every commit is refused with [`MetadataError::OwnershipLost`] once the topic's record
    /// has another version than `version`.
    pub fn guarded_by_topic(&self, name: &TopicName, version: u64) -> Metadata {
        self.guarded(key(name), version, name.to_string())
    }

    /// Deletes the topic with its subscriptions, policies and schemas, in one commit that also notes its ledgers as
    /// garbage. Answers the record as it was.
    pub async fn delete_topic(&self, name: &TopicName) -> Result<TopicRecord, MetadataError> {
        let key = key(name);
        loop {
            let Some(record) = self.read::<TopicRecord>(&key).await? else {
                return Err(MetadataError::NotFound { what: WHAT, name: name.to_string() });
            };
            let ledgers: Vec<u64> = record.value.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
            let mut ops = vec![
                Op::delete(&*key, Expect::Version(record.version)),
                Op::delete_prefix(subscriptions::prefix(name)),
                Op::delete(topic_policies::key(name), Expect::Any),
                Op::delete_prefix(schemas::prefix(name)),
            ];
            ops.extend(garbage::note(&ledgers)?);
            match self.store.commit(ops).await {
                Ok(_) => return Ok(record.value),
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Every topic of a namespace, partitions as topics of their own, in the order of their names.
    pub async fn list_topics(
        &self,
        namespace: &NamespaceName,
        domain: TopicDomain,
    ) -> Result<Vec<TopicName>, MetadataError> {
        let locals = self.list_names(&format!("{PREFIX}{namespace}/{domain}/")).await?;
        locals.into_iter().map(|local| Ok(TopicName::new(domain, namespace.clone(), &local)?)).collect()
    }

    /// Every topic, of all namespaces.
    pub async fn all_topics(&self) -> Result<Vec<(TopicName, Versioned<TopicRecord>)>, MetadataError> {
        let name_of = |path: &str| {
            of_path(path).ok_or_else(|| MetadataError::Corrupt {
                subject: format!("record '{PREFIX}{path}'"),
                reason: "its key is no topic's".to_owned(),
            })
        };
        let topics = self.list::<TopicRecord>(PREFIX).await?.into_iter();
        topics.map(|(path, record)| Ok((name_of(&path)?, record))).collect()
    }

    /// At most `limit` topics of a namespace, from the first local name after `after`.
    pub async fn list_topics_page(
        &self,
        namespace: &NamespaceName,
        domain: TopicDomain,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<TopicName>, MetadataError> {
        let page = self.names_page(&format!("{PREFIX}{namespace}/{domain}/"), after, limit).await?;
        let names = page.items.iter().map(|local| Ok(TopicName::new(domain, namespace.clone(), local)?));
        Ok(Page { items: names.collect::<Result<_, MetadataError>>()?, next: page.next })
    }

    /// The prefix of the keys of a namespace's topics, for [`crate::MetadataStore::watch`];
    /// [`Metadata::topic_of_key`] reads the keys.
    pub fn topics_prefix(namespace: &NamespaceName) -> String {
        format!("{PREFIX}{namespace}/")
    }

    /// The topic that a key under [`Metadata::topics_prefix`] belongs to.
    pub fn topic_of_key(key: &str) -> Option<TopicName> {
        of_path(key.strip_prefix(PREFIX)?)
    }
}
