//! What other brokers, and whoever administers the cluster through them, change in metadata: policies hold for this broker's
//! topics too, and its clients hear of topics that come and go.

use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{MetadataChange, WatchEvent};

use crate::broker::Broker;
use crate::error::Result;

/// Times that a change is looked at until all of it was read, with such a pause between: some minutes.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_secs(5);

impl Broker {
    /// Follows metadata for as long as the broker lives.
    pub(crate) async fn follow_metadata(self: &Arc<Self>) -> Result<()> {
        let mut watch = self.shared.metadata.store().watch("").await?;
        let weak = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            while let Some(event) = watch.next().await {
                let Some(broker) = weak.upgrade() else { return };
                // Nobody says it again. What cannot be read may have come to stay, so that the others get their turn at last.
                for attempt in 1..=ATTEMPTS {
                    let followed = match &event {
                        WatchEvent::Changed(key) => broker.follow_change(key).await,
                        WatchEvent::Resync => broker.follow_anew().await,
                    };
                    let Err(error) = followed else { break };
                    tracing::warn!(%error, attempt, "could not follow a change of metadata");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
        Ok(())
    }

    async fn follow_change(&self, key: &str) -> Result<()> {
        match MetadataChange::of_key(key) {
            Some(MetadataChange::TopicList(namespace)) => self.topic_list_changed(&namespace),
            Some(MetadataChange::NamespacePolicies(namespace)) => self.apply_policies(&namespace, |_| true).await?,
            Some(MetadataChange::TopicPolicies(name)) => {
                self.apply_policies(name.namespace(), |topic| topic.partitioned_base() == name).await?;
            }
            Some(MetadataChange::Configuration) => self.read_dynamic().await?,
            None => {}
        }
        Ok(())
    }

    /// Changes were missed: everything that is loaded is looked at.
    async fn follow_anew(&self) -> Result<()> {
        let mut outcome = self.read_dynamic().await;
        let namespaces: rustc_hash::FxHashSet<_> =
            self.loaded_topics().iter().map(|topic| topic.name().namespace().clone()).collect();
        for namespace in namespaces {
            self.topic_list_changed(&namespace);
            outcome = outcome.and(self.apply_policies(&namespace, |_| true).await);
        }
        outcome
    }
}
