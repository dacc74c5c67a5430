//! The bundles of a simulated cluster: one namespace, cut by the hashes of its topics' names.

use geminga_metadata::Metadata;
use geminga_model::{BundleName, BundleRange, NamespaceName, topic_hash};

use crate::cluster_tasks::at_once;
use crate::cluster_topic::topic_name;

pub fn namespace() -> NamespaceName {
    NamespaceName::new("public", "default").expect("it is a name")
}

pub fn bundle_name(range: BundleRange) -> BundleName {
    BundleName { namespace: namespace(), range }
}

pub fn log_name(range: BundleRange) -> String {
    bundle_name(range).to_string()
}

pub fn hash_of(topic: usize) -> u32 {
    topic_hash(topic_name(topic).as_str())
}

/// Those of so many topics that are in a bundle.
pub fn topics_in(range: BundleRange, topics: usize) -> impl Iterator<Item = usize> {
    (0..topics).filter(move |topic| range.contains(hash_of(*topic)))
}

/// What the namespace and the records of bundles say of each other must fit: whoever has a bundle that was split would serve topics
/// that another one has, by acknowledgements that nobody reads any more.
pub fn check_bundles(metadata: &Metadata) {
    let policies = at_once(metadata.get_namespace(&namespace())).expect("it is in memory").expect("it exists");
    let ranges = policies.value.bundle_ranges();
    for (bundle, record) in at_once(metadata.list_bundles()).expect("they are in memory") {
        let exists = ranges.contains(&bundle.range);
        assert!(record.value.owner.is_none() || exists, "{bundle} has an owner, and was split: {ranges:?}");
    }
}
