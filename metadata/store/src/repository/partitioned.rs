//! Partitioned topics: `partitioned/<tenant>/<namespace>/<domain>/<local>`. Each partition is a topic of its own.

use std::collections::BTreeMap;

use geminga_model::{NamespaceName, TopicDomain, TopicName};
use serde::{Deserialize, Serialize};

use super::{Metadata, Parent, Versioned, namespaces, schemas, topic_policies, topics};
use crate::{Expect, MetadataError, Op};

const WHAT: &str = "partitioned topic";
pub(super) const PREFIX: &str = "partitioned/";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionedTopicRecord {
    pub partitions: u32,
    pub properties: BTreeMap<String, String>,
    /// Its partitions are being deleted: none may come into being again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

fn key(name: &TopicName) -> String {
    format!("{PREFIX}{}/{}/{}", name.namespace(), name.domain(), name.local_name())
}

impl Metadata {
    /// Fails with [`MetadataError::NotFound`] of the namespace when there is no such namespace.
    pub async fn create_partitioned_topic(
        &self,
        name: &TopicName,
        record: &PartitionedTopicRecord,
    ) -> Result<(), MetadataError> {
        let namespace = name.namespace();
        let parent = Parent { what: namespaces::WHAT, name: namespace.as_str(), key: namespaces::key(namespace) };
        self.create(WHAT, name.as_str(), &key(name), record, Some(parent)).await.map(drop)
    }

    /// Every partitioned topic, of all namespaces.
    pub async fn all_partitioned_topics(&self) -> Result<Vec<(TopicName, PartitionedTopicRecord)>, MetadataError> {
        let name_of = |path: &str| {
            topics::of_path(path).ok_or_else(|| MetadataError::Corrupt {
                subject: format!("record '{PREFIX}{path}'"),
                reason: "its key is no topic's".to_owned(),
            })
        };
        let all = self.list::<PartitionedTopicRecord>(PREFIX).await?.into_iter();
        all.map(|(path, record)| Ok((name_of(&path)?, record.value))).collect()
    }

    pub async fn get_partitioned_topic(
        &self,
        name: &TopicName,
    ) -> Result<Option<Versioned<PartitionedTopicRecord>>, MetadataError> {
        self.read(&key(name)).await
    }

    pub async fn update_partitioned_topic<F>(
        &self,
        name: &TopicName,
        change: F,
    ) -> Result<Versioned<PartitionedTopicRecord>, MetadataError>
    where
        F: FnMut(&mut PartitionedTopicRecord) -> Result<(), MetadataError> + Send,
    {
        self.update(WHAT, name.as_str(), &key(name), change).await
    }

    /// Deletes the record with its policies and schemas; its partitions are deleted as topics.
    pub async fn delete_partitioned_topic(&self, name: &TopicName) -> Result<(), MetadataError> {
        let key = key(name);
        let ops = vec![
            Op::delete(&*key, Expect::Present),
            Op::delete(topic_policies::key(name), Expect::Any),
            Op::delete_prefix(schemas::prefix(name)),
        ];
        self.delete(WHAT, name.as_str(), &key, ops).await
    }

    pub async fn list_partitioned_topics(
        &self,
        namespace: &NamespaceName,
        domain: TopicDomain,
    ) -> Result<Vec<(TopicName, PartitionedTopicRecord)>, MetadataError> {
        let records = self.list(&format!("{PREFIX}{namespace}/{domain}/")).await?;
        records
            .into_iter()
            .map(|(local, record)| Ok((TopicName::new(domain, namespace.clone(), &local)?, record.value)))
            .collect()
    }
}
