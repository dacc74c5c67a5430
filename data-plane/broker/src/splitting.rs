//! Cutting a bundle into smaller ones. The topics stay where they are; each new bundle gets a cursor log with the
//! acknowledgements of its own topics, and one commit puts the new bundles in the place of the old one.

use std::sync::Arc;

use geminga_metadata::BundleSplit;
use geminga_model::{BundleName, TopicDomain, TopicName, topic_hash};
pub use geminga_ownership::SplitAt;
use geminga_ownership::with_parts;

use crate::broker::Broker;
use crate::bundle::Bundle;
use crate::cursors::{Cursors, Kept};
use crate::error::{BrokerError, Result};

impl Broker {
    /// Cuts a bundle, which must be this broker's. Its clients look their topics up again. Answers the new bundles, which are
    /// this broker's too.
    pub async fn split_bundle(self: &Arc<Self>, name: &BundleName, at: &SplitAt) -> Result<Vec<BundleName>> {
        let bundle = self.bundle(name).await?;
        let topics = self.topics_in(name).await?;
        let parts = at.cut(name.range, topics.iter().map(|topic| topic_hash(topic.as_str())).collect());
        // As in Pulsar, there is nothing to do for topics of which there are none.
        if parts.len() < 2 && *at == SplitAt::Topics && topics.is_empty() {
            return Ok(vec![name.clone()]);
        }
        if parts.len() < 2 {
            return Err(BrokerError::PreconditionFailed(format!("bundle {name} cannot be split")));
        }
        let parts: Vec<BundleName> =
            parts.into_iter().map(|range| BundleName { namespace: name.namespace.clone(), range }).collect();
        let Some(closed) = self.close_bundle(&bundle).await else {
            return Err(BrokerError::Conflict(format!("bundle {name} is being unloaded")));
        };
        let cut = self.cut(&bundle, &parts).await;
        self.dismiss(&bundle, closed, None);
        cut.map(|()| parts)
    }

    /// The topics of a bundle that have something in its cursor log.
    async fn topics_in(&self, name: &BundleName) -> Result<Vec<TopicName>> {
        let mut topics = self.shared.metadata.list_topics(&name.namespace, TopicDomain::Persistent).await?;
        topics.retain(|topic| name.range.contains(topic_hash(topic.as_str())));
        Ok(topics)
    }

    async fn cut(&self, bundle: &Arc<Bundle>, parts: &[BundleName]) -> Result<()> {
        // Consumers are still there, and what they acknowledge from now on would be in none of the parts.
        bundle.cursors.seal();
        for part in parts {
            let kept = self.kept_for(&bundle.cursors, part).await?;
            self.write_cursor_log(part, bundle, kept).await?;
        }
        let ledgers = bundle.cursors.ledger_ids();
        let incarnation = self.ownership.me();
        loop {
            let namespace = &bundle.name.namespace;
            let Some(policies) = self.shared.metadata.get_namespace(namespace).await? else {
                return Err(BrokerError::NamespaceNotFound(namespace.to_string()));
            };
            let version = policies.version;
            let policies = with_parts(policies.value, bundle.name.range, parts).ok_or_else(|| {
                BrokerError::PreconditionFailed(format!("bundle {} of {namespace} is no more", bundle.name.range))
            })?;
            let split = BundleSplit {
                policies: &policies,
                policies_version: version,
                parts,
                log_version: bundle.cursors.record_version(),
                owner: incarnation.as_ref(),
            };
            match bundle.metadata.split_bundle(&bundle.name, split, &ledgers).await {
                Ok(()) => {
                    tracing::info!(bundle = %bundle.name, parts = parts.len(), "bundle was split");
                    return Ok(());
                }
                // Other policies of the namespace have changed.
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What a cursor log has of the topics of one bundle.
    pub(crate) async fn kept_for(&self, cursors: &Cursors, part: &BundleName) -> Result<Vec<Kept>> {
        let mut kept = Vec::new();
        for topic in self.topics_in(part).await? {
            for (_, subscription) in self.shared.metadata.list_subscriptions(&topic).await? {
                kept.extend(cursors.kept(subscription.value.cursor_id));
            }
        }
        Ok(kept)
    }

    async fn write_cursor_log(&self, part: &BundleName, bundle: &Arc<Bundle>, kept: Vec<Kept>) -> Result<()> {
        let shared = &self.shared;
        // What an attempt that failed has left behind is overwritten: the same cursors, and no others count.
        let (metadata, ledgers) = (bundle.metadata.clone(), shared.ledgers.clone());
        Cursors::open(part.to_string(), metadata, ledgers, shared.pending_acks.clone()).await?.adopt(kept).await
    }
}
