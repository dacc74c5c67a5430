//! Bundles, the hash ranges of a namespace, as paths name them.

use geminga_metadata::Policies;
use geminga_model::{BundleRange, NamespaceName, TopicDomain, topic_hash};

use crate::call::Call;
use crate::error::{ApiError, Result};

/// Stands for the bundle with the most topics, where one is split.
pub(crate) const LARGEST: &str = "LARGEST";

/// Whether a segment of a path is meant to name a bundle.
pub(crate) fn is_bundle(segment: &str) -> bool {
    segment.starts_with("0x") && segment.parse::<BundleRange>().is_ok()
}

/// The bundle that is to be split: by its name, or that with the most topics.
pub(crate) async fn to_split(call: &Call, namespace: &NamespaceName, name: &str) -> Result<BundleRange> {
    let policies = call.broker.namespace_policies(namespace).await?;
    if name != LARGEST {
        return named(&policies, namespace, name);
    }
    let hashes: Vec<u32> =
        call.broker.topics(namespace, &TopicDomain::ALL).await?.iter().map(|topic| topic_hash(topic)).collect();
    let topics = |range: &BundleRange| hashes.iter().filter(|hash| range.contains(**hash)).count();
    // Of several the first.
    let largest = policies.bundle_ranges().into_iter().rev().filter(|range| topics(range) > 0).max_by_key(topics);
    largest.ok_or_else(|| ApiError::not_found(format!("Bundle range {LARGEST} not found")))
}

/// A bundle by its name, which must be one of the namespace's.
pub(crate) fn named(policies: &Policies, namespace: &NamespaceName, name: &str) -> Result<BundleRange> {
    let wanted: BundleRange = name
        .parse()
        .map_err(|_| ApiError::precondition(format!("Invalid bundle range {name} of namespace {namespace}")))?;
    if policies.bundle_ranges().contains(&wanted) {
        return Ok(wanted);
    }
    Err(ApiError::precondition(match policies.bundle_ranges().iter().find(|range| range.low == wanted.low) {
        Some(expected) => format!(
            "Invalid upper boundary for bundle {namespace}/{name}. Expected upper boundary of {namespace}/{expected}"
        ),
        None => format!("Invalid lower boundary for bundle {namespace}/{name}"),
    }))
}
