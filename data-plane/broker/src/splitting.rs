//! Cutting a bundle into smaller ones. The topics stay where they are; each new bundle gets a cursor log with the
//! acknowledgements of its own topics, and one commit puts the new bundles in the place of the old one.

use std::sync::Arc;

use geminga_metadata::{BundleSplit, Policies};
use geminga_model::{BundleName, BundleRange, NamespaceName, TopicDomain, TopicName, topic_hash};

use crate::broker::Broker;
use crate::bundle::Bundle;
use crate::cursors::{Cursors, Kept};
use crate::error::{BrokerError, Result};

/// Where a bundle is cut (Pulsar's split algorithms of the same meaning).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitAt {
    /// Into two halves of the range (`range_equally_divide`).
    Middle,
    /// Into two with as many topics (`topic_count_equally_divide`).
    Topics,
    /// At these hashes (`specified_positions_divide`).
    Positions(Vec<u32>),
}

impl SplitAt {
    /// The parts of `range`, in which topics have these hashes; sorted. Fewer than two: it cannot be cut like this.
    fn cut(&self, range: BundleRange, mut hashes: Vec<u32>) -> Vec<BundleRange> {
        hashes.sort_unstable();
        let mut positions = match self {
            SplitAt::Middle => vec![range.low + (range.high - range.low) / 2],
            SplitAt::Positions(positions) => positions.clone(),
            SplitAt::Topics => hashes.get(hashes.len() / 2).copied().into_iter().collect(),
        };
        positions.retain(|at| *at > range.low && *at < range.high);
        positions.sort_unstable();
        positions.dedup();
        let lows = std::iter::once(range.low).chain(positions.iter().copied());
        let highs = positions.iter().copied().chain(std::iter::once(range.high));
        lows.zip(highs).map(|(low, high)| BundleRange { low, high }).collect()
    }
}

impl Broker {
    /// Cuts a bundle, which must be this broker's. Its clients look their topics up again. Answers the new bundles, which are
    /// this broker's too.
    pub async fn split_bundle(self: &Arc<Self>, name: &BundleName, at: &SplitAt) -> Result<Vec<BundleName>> {
        let bundle = self.bundle(name).await?;
        let topics = self.topics_in(name).await?;
        let parts = at.cut(name.range, topics.iter().map(|topic| topic_hash(topic.as_str())).collect());
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
            let policies = with_parts(policies.value, namespace, bundle.name.range, parts)?;
            let split =
                BundleSplit { policies: &policies, policies_version: version, parts, owner: incarnation.as_ref() };
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

/// The policies with the parts in the place of the range.
fn with_parts(
    mut policies: Policies,
    namespace: &NamespaceName,
    range: BundleRange,
    parts: &[BundleName],
) -> Result<Policies> {
    let gone = || BrokerError::PreconditionFailed(format!("bundle {range} of {namespace} is no more"));
    let bundles = policies.bundles.as_mut().ok_or_else(gone)?;
    let at = bundles.boundaries.iter().position(|text| *text == format!("0x{:08x}", range.high)).ok_or_else(gone)?;
    if at == 0 || bundles.boundaries[at - 1] != format!("0x{:08x}", range.low) {
        return Err(gone());
    }
    let inner = parts[1..].iter().map(|part| format!("0x{:08x}", part.range.low));
    bundles.boundaries.splice(at..at, inner);
    bundles.bundle_count = bundles.boundaries.len() as u32 - 1;
    Ok(policies)
}

#[cfg(test)]
mod tests {
    use geminga_metadata::policies::BundlesData;

    use super::*;

    fn parts(at: SplitAt, range: &str, hashes: &[u32]) -> Vec<String> {
        at.cut(range.parse().unwrap(), hashes.to_vec()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_cut() {
        let range = "0x00000000_0x40000000";
        assert_eq!(parts(SplitAt::Middle, range, &[]), ["0x00000000_0x20000000", "0x20000000_0x40000000"]);
        let last = "0xc0000000_0xffffffff";
        assert_eq!(parts(SplitAt::Middle, last, &[]), ["0xc0000000_0xdfffffff", "0xdfffffff_0xffffffff"]);
        let topics = [9, 1, 5, 3];
        assert_eq!(parts(SplitAt::Topics, range, &topics), ["0x00000000_0x00000005", "0x00000005_0x40000000"]);
        let positions = SplitAt::Positions(vec![7, 5, 7, 0x4000_0000]);
        assert_eq!(
            parts(positions, range, &[]),
            ["0x00000000_0x00000005", "0x00000005_0x00000007", "0x00000007_0x40000000"]
        );
        assert_eq!(parts(SplitAt::Topics, range, &[]).len(), 1);
        assert_eq!(parts(SplitAt::Middle, "0x00000000_0x00000001", &[]).len(), 1);
    }

    #[test]
    fn boundaries_get_the_parts() {
        let namespace: NamespaceName = "public/default".parse().unwrap();
        let policies = Policies { bundles: Some(BundlesData::even(2)), ..Policies::default() };
        let range: BundleRange = "0x80000000_0xffffffff".parse().unwrap();
        let parts = SplitAt::Positions(vec![0x9000_0000, 0xa000_0000]).cut(range, Vec::new());
        let parts: Vec<BundleName> =
            parts.into_iter().map(|range| BundleName { namespace: namespace.clone(), range }).collect();
        let after = with_parts(policies, &namespace, range, &parts).unwrap();
        let bundles = after.bundles.clone().unwrap();
        assert_eq!(bundles.bundle_count, 4);
        assert_eq!(bundles.boundaries, ["0x00000000", "0x80000000", "0x90000000", "0xa0000000", "0xffffffff"]);
        assert!(with_parts(after, &namespace, range, &parts).is_err(), "cut already");
    }
}
