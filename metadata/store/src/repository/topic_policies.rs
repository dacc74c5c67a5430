//! Policies of single topics: `topic-policies/<tenant>/<namespace>/<domain>/<local>`.
//!
//! A partitioned topic's policies are under its own name and hold for its partitions.

use geminga_model::TopicName;

use super::{Metadata, Versioned, topics};
use crate::{Expect, MetadataError, Op, TopicPolicies, codec};

pub(super) const PREFIX: &str = "topic-policies/";

pub(super) fn key(topic: &TopicName) -> String {
    format!("{PREFIX}{}", topics::path(topic))
}

impl Metadata {
    pub async fn get_topic_policies(
        &self,
        topic: &TopicName,
    ) -> Result<Option<Versioned<TopicPolicies>>, MetadataError> {
        self.read(&key(topic)).await
    }

    /// Changes the policies, creating them when there are none yet.
    pub async fn update_topic_policies<F>(
        &self,
        topic: &TopicName,
        mut change: F,
    ) -> Result<Versioned<TopicPolicies>, MetadataError>
    where
        F: FnMut(&mut TopicPolicies) -> Result<(), MetadataError> + Send,
    {
        let key = key(topic);
        loop {
            let current = self.read::<TopicPolicies>(&key).await?;
            let (mut policies, expect) = match current {
                Some(current) => (current.value, Expect::Version(current.version)),
                None => (TopicPolicies::default(), Expect::Absent),
            };
            change(&mut policies)?;
            match self.store.commit(vec![Op::put(&*key, codec::encode(&policies)?, expect)]).await {
                Ok(versions) => return Ok(Versioned { value: policies, version: versions[0] }),
                Err(error) if error.is_conflict() => continue,
                Err(error) => return Err(error),
            }
        }
    }

    pub async fn delete_topic_policies(&self, topic: &TopicName) -> Result<(), MetadataError> {
        self.store.commit(vec![Op::delete(key(topic), Expect::Any)]).await.map(drop)
    }
}
