//! Bundles, the hash ranges of a namespace, as paths name them.

use geminga_metadata::Policies;
use geminga_model::{BundleRange, NamespaceName};

use crate::error::{ApiError, Result};

/// Whether a segment of a path is meant to name a bundle.
pub(crate) fn is_bundle(segment: &str) -> bool {
    segment.starts_with("0x") && segment.parse::<BundleRange>().is_ok()
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
