//! Durable subscriptions: `subscriptions/<tenant>/<namespace>/<domain>/<local>/<subscription>`.

use std::collections::BTreeMap;

use geminga_model::{Position, TopicName};
use serde::{Deserialize, Serialize};

use super::{Metadata, Parent, Versioned, topics};
use crate::{Expect, MetadataError, Op};

const WHAT: &str = "subscription";
const PREFIX: &str = "subscriptions/";

/// What exists of a subscription besides its cursor's state, which is in a cursor log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionRecord {
    /// Names the cursor in the cursor log; never used again after the subscription is gone.
    pub cursor_id: u64,
    /// The mark-delete position that the cursor starts from when the cursor log does not know it.
    pub initial: Position,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub created_at: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replicated: bool,
}

pub(super) fn prefix(topic: &TopicName) -> String {
    format!("{PREFIX}{}/", topics::path(topic))
}

fn key(topic: &TopicName, subscription: &str) -> String {
    format!("{}{subscription}", prefix(topic))
}

fn full_name(topic: &TopicName, subscription: &str) -> String {
    format!("{subscription} of {topic}")
}

impl Metadata {
    /// Fails with [`MetadataError::NotFound`] of the topic when there is no such topic.
    pub async fn create_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        record: SubscriptionRecord,
    ) -> Result<Versioned<SubscriptionRecord>, MetadataError> {
        if subscription.is_empty() {
            return Err(MetadataError::Invalid("a subscription's name must not be empty".into()));
        }
        let parent = Parent { what: topics::WHAT, name: topic.as_str(), key: topics::key(topic) };
        let name = full_name(topic, subscription);
        let version = self.create(WHAT, &name, &key(topic, subscription), &record, Some(parent)).await?;
        Ok(Versioned { value: record, version })
    }

    pub async fn get_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
    ) -> Result<Option<Versioned<SubscriptionRecord>>, MetadataError> {
        self.read(&key(topic, subscription)).await
    }

    pub async fn update_subscription<F>(
        &self,
        topic: &TopicName,
        subscription: &str,
        change: F,
    ) -> Result<Versioned<SubscriptionRecord>, MetadataError>
    where
        F: FnMut(&mut SubscriptionRecord) -> Result<(), MetadataError> + Send,
    {
        self.update(WHAT, &full_name(topic, subscription), &key(topic, subscription), change).await
    }

    pub async fn delete_subscription(&self, topic: &TopicName, subscription: &str) -> Result<(), MetadataError> {
        let key = key(topic, subscription);
        let ops = vec![Op::delete(&*key, Expect::Present)];
        self.delete(WHAT, &full_name(topic, subscription), &key, ops).await
    }

    /// Every subscription, of all topics: topic, name and record.
    pub async fn all_subscriptions(&self) -> Result<Vec<(TopicName, String, SubscriptionRecord)>, MetadataError> {
        let name_of = |path: &str| {
            // Only what stands behind the topic may have a slash.
            let end = path.match_indices('/').nth(3).map(|(at, _)| at);
            let names = end.and_then(|end| Some((topics::of_path(&path[..end])?, path[end + 1..].to_owned())));
            names.ok_or_else(|| MetadataError::Corrupt {
                subject: format!("record '{PREFIX}{path}'"),
                reason: "its key is no subscription's".to_owned(),
            })
        };
        let all = self.list::<SubscriptionRecord>(PREFIX).await?.into_iter();
        all.map(|(path, record)| name_of(&path).map(|(topic, name)| (topic, name, record.value))).collect()
    }

    /// Every subscription of a topic with its record, in the order of the names.
    pub async fn list_subscriptions(
        &self,
        topic: &TopicName,
    ) -> Result<Vec<(String, Versioned<SubscriptionRecord>)>, MetadataError> {
        self.list(&prefix(topic)).await
    }
}
