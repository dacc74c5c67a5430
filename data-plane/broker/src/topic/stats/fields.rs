//! That statistics have each field that Pulsar's have.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::view::CompactionStats;
use super::*;

/// Fields of Pulsar's that are left out here, and why.
const LEFT_OUT: [(&str, &str, &str); 3] = [
    ("ConsumerStats", "appId", "null, and so not written, but of consumers with a role, which is not kept here"),
    ("ConsumerStats", "readPositionWhenJoining", "only Pulsar's classic Key_Shared dispatcher has one"),
    ("LedgerStats", "metadata", "BookKeeper's own text on a ledger, which Pulsar writes where it is asked for"),
];

/// By class.
fn of_pulsar() -> BTreeMap<&'static str, BTreeSet<String>> {
    let lines = include_str!("pulsar-4.0.8.txt").lines().filter(|line| !line.starts_with('#'));
    let split = lines.map(|line| line.split_once(": ").expect("a class and its fields"));
    split.map(|(class, fields)| (class, fields.split(' ').map(str::to_owned).collect())).collect()
}

fn of(value: &impl Serialize) -> BTreeSet<String> {
    let value = serde_json::to_value(value).unwrap();
    value.as_object().unwrap().keys().cloned().collect()
}

/// With everything that is not always written.
fn of_classes() -> Vec<(&'static str, BTreeSet<String>)> {
    let some = || "x".to_owned();
    let topic = |msg_drop_rate| TopicStats {
        oldest_backlog_message_subscription_name: Some(some()),
        deduplication_status: Some(some()),
        topic_epoch: Some(1),
        owner_broker: Some(some()),
        msg_drop_rate,
        ..TopicStats::default()
    };
    let subscription = |msg_drop_rate| SubscriptionStats {
        active_consumer_name: Some(some()),
        key_shared_mode: Some(some()),
        msg_drop_rate,
        ..SubscriptionStats::default()
    };
    let publisher = |msg_drop_rate| PublisherStats {
        access_mode: some(),
        producer_name: some(),
        address: some(),
        connected_since: some(),
        client_version: some(),
        metadata: Some(Properties::new()),
        msg_drop_rate,
        ..PublisherStats::default()
    };
    let consumer = ConsumerStats {
        key_hash_ranges: vec![some()],
        key_hash_range_arrays: vec![[0, 1]],
        ..ConsumerStats::default()
    };
    let internal = InternalStats {
        last_ledger_created_timestamp: Some(some()),
        last_ledger_creation_failure_timestamp: Some(some()),
        ..InternalStats::default()
    };
    // The answer about a partitioned topic is that of a topic and these.
    let mut partitioned = of(&topic(None));
    partitioned.extend(["metadata", "partitions"].map(str::to_owned));
    vec![
        ("TopicStats", of(&topic(None))),
        ("NonPersistentTopicStats", of(&topic(Some(0.0)))),
        ("PartitionedTopicStats", partitioned),
        ("PartitionedInternalStats", ["metadata", "partitions"].map(str::to_owned).into()),
        ("SubscriptionStats", of(&subscription(None))),
        ("NonPersistentSubscriptionStats", of(&subscription(Some(0.0)))),
        ("ConsumerStats", of(&consumer)),
        ("PublisherStats", of(&publisher(None))),
        ("NonPersistentPublisherStats", of(&publisher(Some(0.0)))),
        ("CompactionStats", of(&CompactionStats::default())),
        ("DrainingHash", of(&geminga_topic::DrainingHashStats::default())),
        ("InternalStats", of(&internal)),
        ("LedgerStats", of(&LedgerStats::default())),
        ("CursorStats", of(&CursorStats::default())),
    ]
}

#[test]
fn each_field_that_pulsar_has_is_there() {
    let mut of_pulsar = of_pulsar();
    let mut missing = Vec::new();
    for (class, fields) in of_classes() {
        let wanted = of_pulsar.remove(class).unwrap_or_else(|| panic!("Pulsar has no {class}"));
        missing.extend(wanted.difference(&fields).map(|field| (class, field.clone())));
    }
    let left_out = LEFT_OUT.map(|(class, field, _)| (class, field.to_owned()));
    assert_eq!(missing, left_out);
    assert!(of_pulsar.is_empty(), "nobody looked at {:?}", of_pulsar.keys());
}
