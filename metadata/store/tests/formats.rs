//! The keys and records in metadata, as docs/formats.md describes them. When this fails, the format has changed: what an
//! older Geminga would misread needs a new version, and a reader of the old one.

use std::sync::Arc;

use geminga_metadata::{
    AuditRecord, ClusterData, Expect, LedgerInfo, ManualClock, MemoryStore, Metadata, Op, PartitionedTopicRecord,
    Policies, RepairClaim, RepairRecord, RepairWorkerRecord, RestoredRecord, SchemaRecord, StorageNodeRecord,
    SubscriptionRecord, TenantInfo, TopicRecord, Witness, WitnessRecord,
};
use geminga_model::{Position, TopicName};

const RECORDS: &[(&str, &str)] = &[
    (
        "audit",
        r#"{"node":"a","started_ms":1,"finished_ms":2,"ledgers":9,"under_replicated":3,"misplaced":1,"waiting_for_writers":1,"lost":["b"],"draining":{"c":4}}"#,
    ),
    ("clusters/standalone", r#"{"serviceUrl":"http://127.0.0.1:8080"}"#),
    ("configuration/maxTopics", r#""7""#),
    ("cursor-logs/bundle", r#"[5,6]"#),
    ("decommissions/c", r#"{"since_ms":7}"#),
    ("garbage/00000000000000000017", "[17,18]"),
    ("partitioned/public/default/persistent/clicks", r#"{"partitions":4,"properties":{"a":"b"}}"#),
    (
        "repair-workers/a",
        r#"{"since_ms":1,"updated_ms":2,"ledgers":3,"entries":4,"bytes":5,"doing":{"17":"copies entries 0 to 9, is at 3"}}"#,
    ),
    ("repairs/00000000000000000017", r#"{"since_ms":7,"lost":["b"],"not_before_ms":0}"#),
    (
        "repairs/00000000000000000018",
        r#"{"since_ms":7,"blocked":"no node has a good copy of entry 3","writer_awaited_since_ms":6,"not_before_ms":9,"claim":{"node":"a","until_ms":8}}"#,
    ),
    ("restored/b", r#"{"since_ms":7,"remembered":{"count":5,"version":99,"ledger_ids_end":65,"cursor_ids_end":129}}"#),
    (
        "schemas/public/default/persistent/orders/00000000000000000000",
        r#"{"schema_type":2,"data":"t:{}","properties":{},"timestamp":3,"user":"","deleted":false}"#,
    ),
    (
        "schemas/public/default/persistent/orders/00000000000000000001",
        r#"{"schema_type":20,"data":"x:ff00","properties":{},"timestamp":4,"user":"me","deleted":false}"#,
    ),
    ("storage-nodes/c", r#"{"address":"127.0.0.1:3181","zone":"east","region":"default","read_only":false}"#),
    ("subscriptions/public/default/persistent/orders/billing", r#"{"cursor_id":3,"initial":"17:-1","created_at":9}"#),
    ("tenants/public", r#"{"adminRoles":[],"allowedClusters":["standalone"]}"#),
    ("topic-policies/public/default/persistent/orders", r#"{"maxProducerPerTopic":7}"#),
    (
        "topics/public/default/persistent/orders",
        r#"{"ledgers":[{"ledger_id":17,"entries":100,"size":2048,"timestamp":5},{"ledger_id":19,"timestamp":6,"first_index":250}],"last_open":true,"next_index":250,"terminated":"17:99","properties":{"k":"v"},"last_ledger":23,"announced_from":19,"created_at":4,"epoch":2}"#,
    ),
    ("witnesses/a", r#"{"count":3,"at_ms":7}"#),
];

async fn fill(metadata: &Metadata) {
    let cluster = ClusterData { service_url: Some("http://127.0.0.1:8080".into()), ..ClusterData::default() };
    metadata.create_cluster("standalone", &cluster).await.unwrap();
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..TenantInfo::default() };
    metadata.create_tenant("public", &tenant).await.unwrap();
    let namespace = "public/default".parse().unwrap();
    metadata.create_namespace(&namespace, &Policies::new_namespace("standalone", 4)).await.unwrap();
    metadata.set_dynamic_configuration("maxTopics", "7").await.unwrap();
    metadata.put_cursor_log("bundle", &[5, 6], None, &[], None).await.unwrap();
    metadata.note_garbage(&[17, 18]).await.unwrap();
    let properties = [("a".into(), "b".into())].into();
    let clicks = PartitionedTopicRecord { partitions: 4, properties, ..PartitionedTopicRecord::default() };
    metadata.create_partitioned_topic(&TopicName::parse("clicks").unwrap(), &clicks).await.unwrap();

    let orders = TopicName::parse("orders").unwrap();
    let topic = TopicRecord {
        ledgers: vec![
            LedgerInfo { ledger_id: 17, entries: 100, size: 2048, timestamp: 5, first_index: 0 },
            LedgerInfo { ledger_id: 19, timestamp: 6, first_index: 250, ..LedgerInfo::default() },
        ],
        last_open: true,
        next_index: 250,
        terminated: Some(Position { ledger_id: 17, entry_id: 99 }),
        properties: [("k".into(), "v".into())].into(),
        last_ledger: 23,
        announced_from: Some(19),
        created_at: 4,
        epoch: Some(2),
    };
    metadata.create_topic(&orders, topic).await.unwrap();
    let subscription = SubscriptionRecord {
        cursor_id: 3,
        initial: Position { ledger_id: 17, entry_id: -1 },
        properties: Default::default(),
        created_at: 9,
        replicated: false,
    };
    metadata.create_subscription(&orders, "billing", subscription).await.unwrap();
    metadata
        .update_topic_policies(&orders, |policies| {
            policies.max_producer_per_topic = Some(7);
            Ok(())
        })
        .await
        .unwrap();
    let text = SchemaRecord {
        schema_type: 2,
        data: b"{}".to_vec(),
        properties: Default::default(),
        timestamp: 3,
        user: String::new(),
        deleted: false,
    };
    let binary = SchemaRecord { schema_type: 20, data: vec![0xff, 0], timestamp: 4, user: "me".into(), ..text.clone() };
    metadata.append_schema(&orders, None, &text).await.unwrap();
    metadata.append_schema(&orders, Some(0), &binary).await.unwrap();
}

/// Of storage nodes, and of what is to be repaired on them.
async fn fill_storage(metadata: &Metadata) {
    let node = StorageNodeRecord {
        address: "127.0.0.1:3181".into(),
        zone: "east".into(),
        region: "default".into(),
        read_only: false,
        control: None,
    };
    metadata.put_storage_node("c", &node).await.unwrap();
    metadata.decommission_storage_node("c").await.unwrap();
    let audit = AuditRecord {
        node: "a".into(),
        started_ms: 1,
        finished_ms: 2,
        ledgers: 9,
        under_replicated: 3,
        misplaced: 1,
        waiting_for_writers: 1,
        lost: ["b".to_owned()].into(),
        draining: [("c".to_owned(), 4)].into(),
    };
    metadata.put_audit(&audit).await.unwrap();
    let worker = RepairWorkerRecord {
        since_ms: 1,
        updated_ms: 2,
        ledgers: 3,
        entries: 4,
        bytes: 5,
        doing: [("17".to_owned(), "copies entries 0 to 9, is at 3".to_owned())].into(),
    };
    metadata.put_repair_worker("a", &worker).await.unwrap();
    metadata.put_witness("a", &WitnessRecord { count: 3, at_ms: 7 }, None).await.unwrap();
    let remembered = Witness { count: 5, version: 99, ledger_ids_end: 65, cursor_ids_end: 129 };
    metadata.note_restored("b", &RestoredRecord { since_ms: 7, remembered }, None).await.unwrap();
    assert!(metadata.note_repair(17, &["b".to_owned()].into(), true).await.unwrap());
    assert!(!metadata.note_repair(17, &["b".to_owned()].into(), true).await.unwrap());
    assert!(metadata.note_repair(18, &Default::default(), false).await.unwrap());
    let noted = metadata.list_repairs(18, 10).await.unwrap();
    let blocked = RepairRecord {
        blocked: Some("no node has a good copy of entry 3".into()),
        writer_awaited_since_ms: Some(6),
        not_before_ms: 9,
        claim: Some(RepairClaim { node: "a".into(), until_ms: 8 }),
        ..noted[0].1.value.clone()
    };
    metadata.put_repair(18, &blocked, noted[0].1.version).await.unwrap();
    assert!(metadata.finish_repair(18, noted[0].1.version).await.unwrap_err().is_conflict());
    let claimed = metadata.get_repair(18).await.unwrap().unwrap();
    assert!(!metadata.note_repair(18, &Default::default(), false).await.unwrap());
    let noted_again = metadata.get_repair(18).await.unwrap().unwrap();
    assert!(
        noted_again.version > claimed.version && noted_again.value == claimed.value,
        "whoever works on it learns of it"
    );
    assert!((blocked.is_due(9), blocked.is_due(8)) == (true, false));
}

#[tokio::test]
async fn keys_and_records() {
    let metadata = Metadata::new(Arc::new(MemoryStore::with_clock(ManualClock::starting_at_ms(7))));
    fill(&metadata).await;
    fill_storage(&metadata).await;
    let mut stored = Vec::new();
    for (key, record) in metadata.store().scan("", None, 100).await.unwrap() {
        // Policies have the form of Pulsar's admin REST, whose tests hold it.
        if key != "namespaces/public/default" {
            stored.push((key, String::from_utf8(record.value.to_vec()).unwrap()));
        }
    }
    let expected: Vec<(String, String)> =
        RECORDS.iter().map(|(key, data)| (key.to_string(), format!("{{\"v\":1,\"d\":{data}}}"))).collect();
    assert_eq!(stored, expected);
}

/// The builds before wrote every number, also 0.
#[tokio::test]
async fn records_with_zeros_are_read_too() {
    let metadata = Metadata::new(Arc::new(MemoryStore::default()));
    let put = |key: &str, data: &str| Op::put(key, format!("{{\"v\":1,\"d\":{data}}}"), Expect::Any);
    let zeros = r#"{"ledgers":[{"ledger_id":57,"entries":0,"size":0,"timestamp":6}],"last_open":true,"next_index":0,"last_ledger":57,"announced_from":57,"created_at":4}"#;
    let subscription = r#"{"cursor_id":3,"initial":"17:-1","created_at":9,"replicated":false}"#;
    let ops = vec![
        put("topics/public/default/persistent/orders", zeros),
        put("subscriptions/public/default/persistent/orders/billing", subscription),
    ];
    metadata.store().commit(ops).await.unwrap();
    let orders = TopicName::parse("orders").unwrap();
    let expected = LedgerInfo { ledger_id: 57, timestamp: 6, ..LedgerInfo::default() };
    let read = metadata.get_topic(&orders).await.unwrap().unwrap().value;
    assert_eq!((read.ledgers.as_slice(), read.greatest_ledger()), ([expected].as_slice(), 57));
    assert!(!metadata.list_subscriptions(&orders).await.unwrap()[0].1.value.replicated);
}
