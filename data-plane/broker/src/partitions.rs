//! Topics as operators create, grow and delete them.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use geminga_metadata::{MetadataError, Policies, SubscriptionRecord, TopicRecord};
use geminga_model::{PARTITION_SUFFIX, Position, TopicName};

use crate::broker::Broker;
use crate::error::{BrokerError, Result};
use crate::shared::now_ms;
use crate::topic::InitialPosition;

/// Partitions that one request is busy with at a time: their commits to metadata come together.
pub const PARTITIONS_AT_ONCE: usize = 64;

impl Broker {
    /// Creates a topic that is not partitioned.
    pub async fn create_topic(&self, name: &TopicName, properties: BTreeMap<String, String>) -> Result<()> {
        let policies = self.check_new_topic(name).await?;
        let limit = self.check_topic_limit(&policies, name, 1).await;
        limit.map_err(|error| BrokerError::Conflict(error.to_string()))?;
        if let Some(base) = base_of_numbered(name)
            && !self.is_known_partition(name).await?
        {
            let topic = name.local_name();
            let known = self.shared.metadata.get_partitioned_topic(&base).await?.is_some();
            let base = base.local_name();
            return Err(BrokerError::PreconditionFailed(match known {
                true => format!(
                    "Can't create topic {topic} with \"-partition-\" followed by a number smaller than number of \
                     partition of partitioned topic {base}"
                ),
                false => format!(
                    "Can't create topic {topic} with \"-partition-\" followed by numeric value if there isn't a \
                     partitioned topic {base} created."
                ),
            }));
        }
        let record = TopicRecord { created_at: now_ms(), properties, ..Default::default() };
        match self.shared.metadata.create_topic(name, record).await {
            Ok(_) => {
                self.topic_list_changed(name.namespace());
                Ok(())
            }
            Err(MetadataError::AlreadyExists { .. }) => Err(already_exists()),
            Err(error) if error.is_not_found() => Err(BrokerError::NamespaceNotFound(name.namespace().to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates a partitioned topic that must not exist yet.
    pub async fn create_new_partitioned(
        &self,
        name: &TopicName,
        partitions: u32,
        properties: BTreeMap<String, String>,
    ) -> Result<()> {
        let policies = self.check_new_topic(name).await?;
        let is_taken = async |index| match self.shared.metadata.get_topic(&name.partition(index)).await? {
            // Somebody has taken the name of a partition for a topic of its own.
            Some(_) => Err(already_exists()),
            None => Ok(()),
        };
        stream::iter(0..partitions).map(is_taken).buffer_unordered(PARTITIONS_AT_ONCE).try_collect::<()>().await?;
        self.check_topic_limit(&policies, name, partitions as usize).await?;
        self.create_partitioned(name, partitions, properties).await
    }

    /// Refuses a name that is taken; answers what applies to the namespace.
    async fn check_new_topic(&self, name: &TopicName) -> Result<Policies> {
        let policies = self.namespace_policies(name.namespace()).await?;
        if policies.deleted {
            return Err(BrokerError::NotAllowed(format!("namespace {} is being deleted", name.namespace())));
        }
        let metadata = &self.shared.metadata;
        if metadata.get_partitioned_topic(name).await?.is_some() || metadata.get_topic(name).await?.is_some() {
            return Err(already_exists());
        }
        Ok(policies)
    }

    /// Refuses `more` topics above the namespace's limit.
    pub(crate) async fn check_topic_limit(&self, policies: &Policies, name: &TopicName, more: usize) -> Result<()> {
        let Some(limit) = policies.max_topics_per_namespace.filter(|limit| *limit > 0) else { return Ok(()) };
        if name.is_system() {
            return Ok(());
        }
        let topics = self.shared.metadata.list_topics(name.namespace(), name.domain()).await?;
        if topics.iter().filter(|topic| !topic.is_system()).count() + more > limit as usize {
            return Err(BrokerError::PreconditionFailed("Exceed maximum number of topics in namespace.".into()));
        }
        Ok(())
    }

    /// Adds partitions. The subscriptions of the first partition exist on the new ones from their beginning, so that
    /// nothing published there is missed.
    pub async fn grow_partitioned(&self, name: &TopicName, partitions: u32) -> Result<()> {
        let not_partitioned = || BrokerError::Conflict(format!("Topic {name} is not the partitioned topic."));
        let Some(current) = self.shared.metadata.get_partitioned_topic(name).await? else {
            return Err(not_partitioned());
        };
        let before = current.value.partitions;
        let subscriptions = self.shared.metadata.list_subscriptions(&name.partition(0)).await?;
        for index in before..partitions {
            let partition = name.partition(index);
            self.create_record(&partition, BTreeMap::new()).await?;
            for (subscription, record) in &subscriptions {
                if !subscription.starts_with("pulsar.") {
                    self.subscribe_unloaded(&partition, subscription, record.value.properties.clone()).await?;
                }
            }
        }
        // Clients see the new number only when all that belongs to it exists.
        let updated = self
            .shared
            .metadata
            .update_partitioned_topic(name, |record| {
                record.partitions = record.partitions.max(partitions);
                Ok(())
            })
            .await;
        match updated {
            Ok(_) => {
                self.topic_list_changed(name.namespace());
                Ok(())
            }
            Err(error) if error.is_not_found() => Err(not_partitioned()),
            Err(error) => Err(error.into()),
        }
    }

    /// Creates a subscription from the beginning on a topic that nobody has asked for yet, without loading it: whoever owns it
    /// will.
    async fn subscribe_unloaded(
        &self,
        name: &TopicName,
        subscription: &str,
        properties: BTreeMap<String, String>,
    ) -> Result<()> {
        if let Some(topic) = self.loaded(name) {
            return topic.create_subscription(&subscription.into(), InitialPosition::Earliest, properties, false).await;
        }
        let cursor_id = self.shared.metadata.next_cursor_id().await?;
        let record = SubscriptionRecord {
            cursor_id,
            initial: Position::EARLIEST,
            properties,
            created_at: now_ms(),
            replicated: false,
        };
        match self.shared.metadata.create_subscription(name, subscription, record).await {
            Ok(_) | Err(MetadataError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a partitioned topic with its partitions. Unless forced, nobody may be connected to any of them.
    pub async fn delete_partitioned(&self, name: &TopicName, force: bool) -> Result<()> {
        let not_found = || BrokerError::NotFound(format!("Topic {name} not found."));
        let Some(record) = self.shared.metadata.get_partitioned_topic(name).await? else {
            return Err(not_found());
        };
        let partitions = record.value.partitions;
        if !force {
            let loaded = (0..partitions).filter_map(|index| self.loaded(&name.partition(index)));
            if loaded.into_iter().any(|topic| topic.has_clients()) {
                return Err(BrokerError::PreconditionFailed("Topic has active producers/subscriptions".into()));
            }
        }
        self.delete_partitions_first(name, self.delete_partitions(name, partitions, force)).await?;
        match self.shared.metadata.delete_partitioned_topic(name).await {
            Ok(()) => {
                self.topic_list_changed(name.namespace());
                Ok(())
            }
            Err(error) if error.is_not_found() => Err(not_found()),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete_partitions(&self, name: &TopicName, partitions: u32, force: bool) -> Result<()> {
        for index in 0..partitions {
            let partition = name.partition(index);
            // Whoever owns it may have deleted it already.
            if self.shared.metadata.get_topic(&partition).await?.is_none() {
                continue;
            }
            match self.delete_topic(&partition, force).await {
                Ok(()) | Err(BrokerError::TopicNotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs what deletes the partitions of a topic. Meanwhile nobody, as a producer that was sent away, makes them come into being
    /// again; when it fails, those that are left are used as before.
    pub async fn delete_partitions_first<T, E: From<BrokerError>>(
        &self,
        name: &TopicName,
        deletion: impl Future<Output = std::result::Result<T, E>>,
    ) -> std::result::Result<T, E> {
        self.note_deletion(name, true).await?;
        let deleted = deletion.await;
        if deleted.is_err()
            && let Err(error) = self.note_deletion(name, false).await
        {
            tracing::warn!(topic = %name, %error, "could not note that a topic is not being deleted any more; delete it again");
        }
        deleted
    }

    async fn note_deletion(&self, name: &TopicName, deleted: bool) -> Result<()> {
        let noted = self.shared.metadata.update_partitioned_topic(name, |record| {
            record.deleted = deleted;
            Ok(())
        });
        match noted.await {
            Err(error) if error.is_not_found() => Err(BrokerError::NotFound(format!("Topic {name} not found."))),
            noted => Ok(noted.map(drop)?),
        }
    }

    /// Ends every partition; answers the last position of each.
    pub async fn terminate_partitioned(&self, name: &TopicName, partitions: u32) -> Result<Vec<Position>> {
        let mut ends = Vec::with_capacity(partitions as usize);
        for index in 0..partitions {
            ends.push(self.topic(&name.partition(index), false).await?.terminate().await?);
        }
        Ok(ends)
    }
}

/// The topic whose partition a name seems to mean: any whole number counts here, also those that no partition has.
fn base_of_numbered(name: &TopicName) -> Option<TopicName> {
    let (base, number) = name.local_name().rsplit_once(PARTITION_SUFFIX)?;
    number.parse::<i64>().ok()?;
    TopicName::new(name.domain(), name.namespace().clone(), base).ok()
}

fn already_exists() -> BrokerError {
    BrokerError::AlreadyExists("This topic already exists".into())
}
