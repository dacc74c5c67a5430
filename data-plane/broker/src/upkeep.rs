//! What the broker does by itself from time to time: its topics' upkeep, inactive topics, ledgers that are garbage.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use geminga_model::{NamespaceName, TopicDomain, TopicName};

use crate::broker::Broker;
use crate::bundle::bundle_of;
use crate::error::{BrokerError, Result};
use crate::topic::Topic;

/// Topics in metadata that one round looks at.
const SEARCHED_AT_ONCE: usize = 100;
/// Rounds between two searches through all of metadata.
const ROUNDS_BETWEEN_SEARCHES: u32 = 60;

/// Where the search for topics that nobody has loaded, and nobody needs, has got to.
#[derive(Default)]
struct Search {
    /// Still to be searched, and the topic after which to go on in the first.
    lists: VecDeque<(NamespaceName, TopicDomain)>,
    after: Option<String>,
    rest: u32,
}

impl Broker {
    pub(crate) fn start_housekeeping(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.shared.config.housekeeping_interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let weak = Arc::downgrade(&self);
        let task = tokio::spawn(async move {
            let mut search = Search::default();
            loop {
                ticks.tick().await;
                let Some(broker) = weak.upgrade() else { return };
                for topic in broker.loaded_topics() {
                    if topic.is_closed() {
                        broker.forget(&topic);
                        continue;
                    }
                    topic.housekeeping();
                    if topic.close_if_inactive() {
                        broker.delete_inactive(&topic).await;
                    }
                }
                let limit = broker.shared.config.housekeeping_interval / 2;
                broker.rest_and_wake(broker.loaded_topics(), limit).await;
                broker.reopen_fenced_bundles();
                broker.shared.unsettled.prune(&broker.ownership);
                if let Err(error) = broker.load_unneeded(&mut search).await {
                    tracing::warn!(%error, "could not look for inactive topics");
                }
                broker.sweep_garbage().await;
                broker.housekeeping_rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        *self.housekeeping.lock() = Some(task);
    }

    /// How often upkeep has been through since the start.
    pub fn housekeeping_rounds(&self) -> u64 {
        self.housekeeping_rounds.load(Ordering::Relaxed)
    }

    /// What is under way is given up, which is as safe as a crash.
    pub(crate) async fn stop_housekeeping(&self) {
        let task = self.housekeeping.lock().take();
        if let Some(task) = task {
            task.abort();
            // An aborted task ends with an error that says just that.
            let _ = task.await;
        }
    }

    async fn delete_inactive(&self, topic: &Arc<Topic>) {
        if let Err(error) = self.finish_deletion(topic).await {
            tracing::warn!(topic = %topic.name(), %error, "could not delete an inactive topic");
            return;
        }
        if self.shared.config.delete_inactive_partitioned_topics
            && topic.name().is_partition()
            && let Err(error) = self.delete_partitioned_without_partitions(&topic.name().partitioned_base()).await
        {
            tracing::warn!(topic = %topic.name(), %error, "could not delete an inactive partitioned topic");
        }
    }

    async fn delete_partitioned_without_partitions(&self, name: &TopicName) -> Result<()> {
        let metadata = &self.shared.metadata;
        let Some(record) = metadata.get_partitioned_topic(name).await? else { return Ok(()) };
        for index in 0..record.value.partitions {
            if metadata.get_topic(&name.partition(index)).await?.is_some() {
                return Ok(());
            }
        }
        metadata.delete_partitioned_topic(name).await?;
        self.topic_list_changed(name.namespace());
        Ok(())
    }

    /// Loads topics without subscriptions that nobody has loaded since the broker started (or that were unloaded), so
    /// that their inactivity counts.
    async fn load_unneeded(&self, search: &mut Search) -> Result<()> {
        if search.lists.is_empty() {
            search.rest = search.rest.saturating_sub(1);
            if search.rest > 0 {
                return Ok(());
            }
            search.rest = ROUNDS_BETWEEN_SEARCHES;
            for tenant in self.shared.metadata.list_tenants().await? {
                for namespace in self.shared.metadata.list_namespaces(&tenant).await? {
                    search.lists.extend(TopicDomain::ALL.map(|domain| (namespace.clone(), domain)));
                }
            }
        }
        let mut left = SEARCHED_AT_ONCE;
        while left > 0 {
            let Some((namespace, domain)) = search.lists.front() else { return Ok(()) };
            let page = self.shared.metadata.list_topics_page(namespace, *domain, search.after.as_deref(), left).await?;
            left -= page.items.len().min(left);
            search.after = page.next;
            if search.after.is_none() {
                search.lists.pop_front();
            }
            for name in page.items {
                self.load_if_unneeded(&name).await?;
            }
        }
        Ok(())
    }

    async fn load_if_unneeded(&self, name: &TopicName) -> Result<()> {
        if self.loaded(name).is_some() || name.is_system() {
            return Ok(());
        }
        let policies = match self.policies(name).await {
            Err(BrokerError::NamespaceNotFound(_)) => return Ok(()),
            other => other?,
        };
        if let Some(bundle) = self.bundles.get(&bundle_of(name, &policies))
            && bundle.resting.lock().is_disturbed_by(name, &policies)
        {
            return self.load_if_there(name).await;
        }
        let Some(policy) = policies.inactivity(&self.shared.config) else { return Ok(()) };
        if self.ownership.owner_known(&bundle_of(name, &policies)).is_some() {
            return Ok(());
        }
        let subscriptions = self.shared.metadata.list_subscriptions(name).await?;
        let subscribed = subscriptions.iter().any(|(name, _)| !name.starts_with("pulsar."));
        if subscribed && !policy.caught_up_suffices {
            return Ok(());
        }
        self.load_if_there(name).await
    }

    pub(crate) async fn load_if_there(&self, name: &TopicName) -> Result<()> {
        match self.topic(name, false).await {
            Ok(_) | Err(BrokerError::TopicNotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes ledgers that no topic has any more and whose deletion did not come through.
    async fn sweep_garbage(&self) {
        let groups = match self.shared.metadata.list_garbage(64).await {
            Ok(groups) => groups,
            Err(error) => {
                tracing::warn!(%error, "could not read which ledgers are garbage");
                return;
            }
        };
        for group in groups {
            if let Err(error) = self.shared.ledgers.delete(group.clone()).await {
                tracing::warn!(?group, %error, "could not delete garbage ledgers");
                return;
            }
            if let Err(error) = self.shared.metadata.forget_garbage(&group).await {
                tracing::warn!(?group, %error, "could not forget deleted ledgers");
            }
        }
    }
}
