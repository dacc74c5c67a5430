//! Bad input, with the status codes of Apache Pulsar 4.0.8.

use serde_json::{Value, json};

use crate::fixture::{NONE, Rest, TOPICS};

const NAMESPACE: &str = "/namespaces/public/default";

#[tokio::test]
async fn policies_of_namespaces() {
    let rest = Rest::start().await;
    let quota = |size: u64| json!({ "limitSize": size, "policy": "producer_exception" });
    let refused: [(&str, &str, Value, u16); 12] = [
        ("POST", "deduplicationSnapshotInterval", json!(-1), 412),
        (
            "POST",
            "autoTopicCreation",
            json!({ "allowAutoTopicCreation": true, "topicType": "non-partitioned", "defaultNumPartitions": 3 }),
            412,
        ),
        ("POST", "offloadPolicies", json!({ "managedLedgerOffloadDriver": "bad" }), 412),
        ("POST", "replication", json!([]), 412),
        ("POST", "replication", json!(["global"]), 412),
        ("POST", "allowedClusters", json!(["nope"]), 403),
        ("POST", "allowedClusters", json!([]), 400),
        ("POST", "resourcegroup/g", NONE, 412),
        ("POST", "backlogQuota?backlogQuotaType=bad", quota(1), 404),
        ("POST", "backlogQuota", json!({ "limitSize": 1 }), 400),
        ("POST", "entryFilters", json!({ "entryFilterNames": "x" }), 400),
        ("POST", "subscriptionTypesEnabled", json!(["Bad"]), 400),
    ];
    for (method, path, body, status) in refused {
        rest.expect(method, &format!("{NAMESPACE}/{path}"), body, status).await;
    }
    rest.expect("POST", &format!("{NAMESPACE}/backlogQuota"), quota(5 << 20), 204).await;
    let retention = json!({ "retentionTimeInMinutes": 1, "retentionSizeInMB": 2 });
    rest.expect("POST", &format!("{NAMESPACE}/retention"), retention.clone(), 412).await;
    let bad = json!({ "retention_policies": { "retentionTimeInMinutes": -5, "retentionSizeInMB": 2 } });
    rest.expect("PUT", "/namespaces/public/new", bad, 400).await;
    rest.expect("PUT", "/namespaces/public/new", json!({ "bundles": { "numBundles": -1 } }), 204).await;
    assert_eq!(rest.get("/namespaces/public/new/bundles").await["numBundles"], 4);
    let of = |boundaries: Value| json!({ "bundles": { "boundaries": boundaries, "numBundles": 7 } });
    let halves = json!(["0x00000000", "0x80000000", "0xffffffff"]);
    rest.expect("PUT", "/namespaces/public/half", of(json!(["0x10000000", "0xffffffff"])), 400).await;
    rest.expect("PUT", "/namespaces/public/half", of(halves.clone()), 204).await;
    assert_eq!(rest.get("/namespaces/public/half/bundles").await, json!({ "boundaries": halves, "numBundles": 2 }));
}

#[tokio::test]
async fn names_that_pulsar_does_not_know_are_not_kept() {
    let rest = Rest::start().await;
    rest.expect("POST", &format!("{NAMESPACE}/subscriptionAuthMode"), json!("Bad"), 204).await;
    assert_eq!(rest.get(&format!("{NAMESPACE}/subscriptionAuthMode")).await, "None");
    let policy =
        json!({ "inactiveTopicDeleteMode": "bad", "maxInactiveDurationSeconds": 1, "deleteWhileInactive": true });
    rest.expect("POST", &format!("{NAMESPACE}/inactiveTopicPolicies"), policy, 204).await;
    let policy = rest.get(&format!("{NAMESPACE}/inactiveTopicPolicies")).await;
    assert!(policy.get("inactiveTopicDeleteMode").is_none(), "{policy}");
    for properties in [json!({ "a": "b" }), json!({ "c": "d" })] {
        rest.expect("PUT", &format!("{NAMESPACE}/properties"), properties, 204).await;
    }
    assert_eq!(rest.get(&format!("{NAMESPACE}/properties")).await, json!({ "a": "b", "c": "d" }));
}

#[tokio::test]
async fn policies_of_topics() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/t"), NONE, 204).await;
    for (path, body) in [
        ("maxMessageSize", json!(100_000_000)),
        ("maxMessageSize", json!(-1)),
        ("deduplicationSnapshotInterval", json!(-1)),
        ("replication", json!(["nope"])),
        ("replication", json!([])),
        ("offloadPolicies", json!({ "managedLedgerOffloadDriver": "bad" })),
    ] {
        rest.expect("POST", &format!("{TOPICS}/t/{path}"), body, 412).await;
    }
    assert_eq!(rest.get(&format!("{TOPICS}/t/subscriptionTypesEnabled")).await, json!([]));
    let rate = json!({ "dispatchThrottlingRateInMsg": 3, "dispatchThrottlingRateInByte": 0, "ratePeriodInSecond": 1 });
    let of_one = format!("{TOPICS}/t/s/dispatchRate");
    rest.expect("POST", &of_one, rate, 204).await;
    assert_eq!(rest.get(&of_one).await["dispatchThrottlingRateInMsg"], 3);
    rest.expect("DELETE", &of_one, NONE, 204).await;
    rest.expect("GET", &of_one, NONE, 200).await;
    assert_eq!(rest.get(&format!("{of_one}?applied=true")).await["dispatchThrottlingRateInMsg"], 0);
}

#[tokio::test]
async fn topics_and_subscriptions() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/t"), NONE, 204).await;
    rest.expect("PUT", &format!("{TOPICS}/p/partitions"), json!(2), 204).await;
    rest.expect("DELETE", &format!("{TOPICS}/t/partitions"), NONE, 409).await;
    rest.expect("GET", &format!("{TOPICS}/p/messageid/0"), NONE, 405).await;
    rest.expect("PUT", &format!("{TOPICS}/p/backlogSize"), json!({ "ledgerId": 1, "entryId": 1 }), 405).await;
    rest.expect("GET", &format!("{TOPICS}/t/subscription/none/replicatedSubscriptionStatus"), NONE, 404).await;
    rest.expect("PUT", "/tenants/t", json!({ "adminRoles": [" x"], "allowedClusters": ["standalone"] }), 412).await;

    rest.expect("POST", &format!("{NAMESPACE}/maxSubscriptionsPerTopic"), json!(1), 204).await;
    rest.expect("PUT", &format!("{TOPICS}/t/subscription/a"), NONE, 204).await;
    rest.expect("PUT", &format!("{TOPICS}/t/subscription/b"), NONE, 409).await;
    rest.expect("POST", &format!("{NAMESPACE}/maxTopicsPerNamespace"), json!(3), 204).await;
    rest.expect("PUT", &format!("{TOPICS}/more"), NONE, 409).await;
    rest.expect("PUT", &format!("{TOPICS}/more/partitions"), json!(2), 412).await;

    rest.expect("POST", &format!("{NAMESPACE}/autoTopicCreation"), json!({ "allowAutoTopicCreation": false }), 204)
        .await;
    rest.expect("PUT", &format!("{TOPICS}/none/subscription/s"), NONE, 412).await;
    for (topic, status) in [("none", 404), ("t", 200), ("p", 200), ("p-partition-1", 200), ("p-partition-2", 404)] {
        let lookup = rest.raw("GET", &format!("/lookup/v2/topic/persistent/public/default/{topic}"), "").await;
        assert_eq!(lookup.status(), status, "{topic}");
    }
}

#[tokio::test]
async fn grants_of_topics_are_shown_with_those_of_the_namespace() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/t"), NONE, 204).await;
    rest.expect("POST", &format!("{NAMESPACE}/permissions/all"), json!(["consume"]), 204).await;
    let path = format!("{TOPICS}/t/permissions");
    rest.expect("POST", &format!("{path}/one"), json!(["produce"]), 204).await;
    assert_eq!(rest.get(&path).await, json!({ "all": ["consume"], "one": ["produce"] }));
    rest.expect("DELETE", &format!("{path}/one"), NONE, 204).await;
    assert_eq!(rest.get(&path).await, json!({ "all": ["consume"] }));
    rest.expect("POST", &format!("{TOPICS}/none/permissions/one"), json!(["produce"]), 404).await;
}

#[tokio::test]
async fn settings_of_pulsar_are_kept_and_others_refused() {
    let rest = Rest::start().await;
    let names = rest.get("/brokers/configuration").await;
    let names: Vec<&str> = names.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in ["allowAutoTopicCreation", "forceDeleteNamespaceAllowed"] {
        assert!(names.contains(&name), "{name}");
        rest.expect("POST", &format!("/brokers/configuration/{name}/true"), NONE, 200).await;
        assert_eq!(rest.get("/brokers/configuration/values").await[name], "true");
        rest.expect("DELETE", &format!("/brokers/configuration/{name}"), NONE, 200).await;
    }
    assert_eq!(rest.get("/brokers/configuration/values").await, json!({}));
    rest.expect("POST", "/brokers/configuration/nonsense/1", NONE, 412).await;
    rest.expect("DELETE", "/brokers/configuration/nonsense", NONE, 412).await;
}

#[tokio::test]
async fn what_pulsar_does_not_have_is_not_found_and_what_we_lack_is_named() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/t"), NONE, 204).await;
    for (method, path, status) in [
        ("HEAD", "/clusters", 200),
        ("PATCH", "/clusters/standalone", 405),
        ("POST", "/tenants", 405),
        ("POST", &format!("{TOPICS}/t"), 405),
        ("GET", &format!("{TOPICS}/t/nonsense"), 404),
        ("GET", "/nonsense", 404),
        ("GET", "/namespaces", 404),
        ("PUT", &format!("{TOPICS}/t/compaction"), 501),
    ] {
        rest.expect(method, path, NONE, status).await;
    }
    rest.expect("PUT", "/tenants/n", json!({ "adminRoles": null, "allowedClusters": ["standalone"] }), 204).await;
    rest.expect("GET", "/non-persistent/public/default/t/properties", NONE, 406).await;
}

#[tokio::test]
async fn expiry_is_refused_where_nothing_waits() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/t/subscription/s"), NONE, 204).await;
    let expiry = format!("{TOPICS}/t/subscription/s/expireMessages");
    rest.expect("POST", &format!("{expiry}/1000000000"), NONE, 409).await;
    rest.publish("persistent://public/default/t", &["a"]).await;
    rest.expect("POST", &format!("{expiry}/1000000000"), NONE, 204).await;
    let stats = rest.get(&format!("{TOPICS}/t/stats")).await;
    assert_eq!(stats["subscriptions"]["s"]["msgBacklog"], 1);
    rest.expect("POST", &expiry, json!({ "ledgerId": 99, "entryId": 0 }), 409).await;
    rest.expect("PUT", &format!("{TOPICS}/t/subscription/caught-up"), NONE, 204).await;
    rest.expect("POST", &format!("{TOPICS}/t/all_subscription/expireMessages/1000000000"), NONE, 409).await;
}

#[tokio::test]
async fn schemas_as_pulsar_answers_them() {
    let rest = Rest::start().await;
    let schemas = "/schemas/public/default/t";
    rest.expect("GET", &format!("{schemas}/metadata"), NONE, 200).await;
    rest.expect("GET", &format!("{schemas}/schema/-1"), NONE, 404).await;
    let schema = |kind: &str| json!({ "type": kind, "schema": "", "properties": {} });
    rest.expect("POST", &format!("{schemas}/schema"), schema("AUTO_CONSUME"), 422).await;
    rest.expect("POST", &format!("{schemas}/schema"), schema("STRING"), 200).await;
    let answer = rest.expect("POST", &format!("{schemas}/compatibility"), schema("STRING"), 202).await;
    assert_eq!(answer["compatibility"], true);
    let refused = rest.expect("POST", &format!("{schemas}/compatibility"), schema("INT32"), 500).await;
    assert!(refused["reason"].as_str().unwrap().contains("exists schema type STRING, new schema type INT32"));
    rest.expect("PUT", &format!("{NAMESPACE}/schemaCompatibilityStrategy"), json!("ALWAYS_INCOMPATIBLE"), 204).await;
    rest.expect("POST", &format!("{schemas}/compatibility"), schema("STRING"), 202).await;
    let forced = rest.expect("DELETE", &format!("{schemas}/schema?force=true"), NONE, 200).await;
    assert_eq!(forced, json!({ "version": -1 }));

    let of = |kind: &str, fields: Value| {
        let record = json!({ "type": "record", "name": "R", "fields": fields });
        json!({ "type": kind, "schema": record.to_string(), "properties": {} })
    };
    let field = |name: &str| json!({ "name": name, "type": "int" });
    for fields in [json!([field("a b")]), json!([field("a"), field("a")])] {
        rest.expect("POST", &format!("{schemas}/schema"), of("AVRO", fields), 422).await;
    }
    rest.expect("POST", &format!("{schemas}/schema"), json!({ "type": "JSON", "schema": "{}" }), 422).await;
    rest.expect("POST", &format!("{schemas}/schema"), of("JSON", json!([field("a")])), 200).await;
}

#[tokio::test]
async fn replication_of_a_subscription_is_kept_and_shown() {
    let rest = Rest::start().await;
    let path = |subscription: &str| format!("{TOPICS}/t/subscription/{subscription}");
    let status = |subscription: &str| format!("{}/replicatedSubscriptionStatus", path(subscription));
    rest.expect("PUT", &format!("{}?replicated=true", path("a")), NONE, 204).await;
    rest.expect("PUT", &path("b"), NONE, 204).await;
    let name = "persistent://public/default/t";
    assert_eq!(rest.get(&status("a")).await, json!({ name: true }));
    assert_eq!(rest.get(&status("b")).await, json!({ name: false }));
    rest.expect("POST", &status("a"), json!(false), 204).await;
    rest.expect("POST", &status("b"), json!(true), 204).await;
    rest.expect("POST", &status("none"), json!(true), 404).await;
    rest.expect("PUT", &format!("{TOPICS}/t/unload"), NONE, 204).await;
    let stats = rest.get(&format!("{TOPICS}/t/stats")).await;
    assert_eq!(stats["subscriptions"]["a"]["isReplicated"], false);
    assert_eq!(stats["subscriptions"]["b"]["isReplicated"], true);
}
