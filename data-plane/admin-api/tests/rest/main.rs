//! The admin API as its tools call it.

mod bundles;
mod cluster;
mod fixture;
mod refusals;
mod storage_nodes;

use std::task::{Context, Waker};
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::StatusCode;
use fixture::{NONE, Rest, TOPICS, subscribe};
use serde_json::{Value, json};

#[tokio::test]
async fn clusters_tenants_and_namespaces() {
    let rest = Rest::start().await;
    rest.expect("PUT", "/clusters/c2", json!({"serviceUrl": "http://x:8080"}), 200).await;
    rest.expect("PUT", "/clusters/c2", json!({}), 409).await;
    rest.expect("PUT", "/clusters/c@2", json!({}), 412).await;
    assert_eq!(rest.get("/clusters").await, json!(["c2", "standalone"]));
    assert_eq!(rest.get("/clusters/c2").await["serviceUrl"], "http://x:8080");
    rest.expect("DELETE", "/clusters/standalone", NONE, 412).await;
    rest.expect("DELETE", "/clusters/c2", NONE, 204).await;
    rest.expect("GET", "/clusters/c2", NONE, 404).await;

    let tenant = json!({"adminRoles": ["r"], "allowedClusters": ["standalone"]});
    rest.expect("PUT", "/tenants/t", tenant.clone(), 204).await;
    rest.expect("PUT", "/tenants/t", tenant.clone(), 409).await;
    assert_eq!(rest.get("/tenants/t").await, tenant);
    let refused = rest.expect("PUT", "/tenants/u", json!({"allowedClusters": ["nowhere"]}), 412).await;
    assert_eq!(refused, json!({"reason": "Clusters do not exist"}));
    assert_eq!(rest.expect("GET", "/tenants/nope", NONE, 404).await["reason"], "Tenant does not exist");

    rest.expect("PUT", "/namespaces/t/n", json!({"bundles": {"numBundles": 8}}), 204).await;
    rest.expect("PUT", "/namespaces/t/n", NONE, 409).await;
    rest.expect("PUT", "/namespaces/nope/n", NONE, 404).await;
    rest.expect("PUT", "/namespaces/t/n@", NONE, 412).await;
    assert_eq!(rest.get("/namespaces/t").await, json!(["t/n"]));
    assert_eq!(rest.get("/namespaces/t/n/bundles").await["numBundles"], 8);
    assert_eq!(rest.get("/namespaces/t/n").await["replication_clusters"], json!(["standalone"]));
    rest.expect("DELETE", "/tenants/t", NONE, 409).await;
    rest.expect("PUT", "/persistent/t/n/a", NONE, 204).await;
    rest.expect("DELETE", "/namespaces/t/n", NONE, 409).await;
    rest.expect("DELETE", "/namespaces/t/n?force=true", NONE, 405).await;
    rest.expect("DELETE", "/tenants/t?force=true", NONE, 405).await;
    rest.expect("POST", "/brokers/configuration/forceDeleteNamespaceAllowed/true", NONE, 200).await;
    rest.expect("DELETE", "/namespaces/t/n?force=true", NONE, 204).await;
    rest.expect("DELETE", "/tenants/t", NONE, 204).await;
    rest.expect("GET", "/namespaces/t/n", NONE, 404).await;
}

#[tokio::test]
async fn policies_reach_loaded_topics() {
    let rest = Rest::start().await;
    let namespace = "/namespaces/public/default";
    assert_eq!(rest.get(&format!("{namespace}/retention")).await, NONE);
    let retention = json!({"retentionTimeInMinutes": 10, "retentionSizeInMB": 100});
    rest.expect("POST", &format!("{namespace}/retention"), retention.clone(), 204).await;
    assert_eq!(rest.get(&format!("{namespace}/retention")).await, retention);
    let quota = json!({"limitSize": 1_000_000, "policy": "producer_exception"});
    rest.expect("POST", &format!("{namespace}/backlogQuota"), quota, 204).await;
    assert_eq!(rest.get(&format!("{namespace}/backlogQuotaMap")).await["destination_storage"]["limitSize"], 1_000_000);
    let too_large = json!({"limitSize": 1_000_000_000, "policy": "producer_exception"});
    rest.expect("POST", &format!("{namespace}/backlogQuota"), too_large, 412).await;
    rest.expect("POST", &format!("{namespace}/messageTTL"), json!(-1), 412).await;
    rest.expect(
        "POST",
        &format!("{namespace}/persistence"),
        json!({"bookkeeperEnsemble": 1, "bookkeeperWriteQuorum": 2, "bookkeeperAckQuorum": 2}),
        400,
    )
    .await;
    let rate = json!({"dispatchThrottlingRateInMsg": 10, "dispatchThrottlingRateInByte": 100, "relativeToPublishRate": false, "ratePeriodInSecond": 1});
    rest.expect("POST", &format!("{namespace}/dispatchRate"), rate.clone(), 204).await;
    assert_eq!(rest.get(&format!("{namespace}/dispatchRate")).await, rate);
    let filters = json!({"entryFilterNames": "f"});
    rest.expect("POST", &format!("{namespace}/entryFilters"), filters.clone(), 400).await;
    rest.expect("POST", &format!("{namespace}/compactionThreshold"), json!(1000), 204).await;
    assert_eq!(rest.get(&format!("{namespace}/compactionThreshold")).await, 1000, "kept, though it has no effect");
    rest.expect("PUT", &format!("{namespace}/property/k/v"), NONE, 204).await;
    assert_eq!(rest.get(&format!("{namespace}/property/k")).await, "v");

    rest.expect("PUT", &format!("{TOPICS}/a"), NONE, 204).await;
    let topic = rest.topic("a").await;
    assert_eq!(topic.policies().max_producers(), None);
    rest.expect("POST", &format!("{namespace}/maxProducersPerTopic"), json!(3), 204).await;
    assert_eq!(topic.policies().max_producers(), Some(3));
    assert_eq!(rest.get(&format!("{TOPICS}/a/maxProducers")).await, NONE);
    assert_eq!(rest.get(&format!("{TOPICS}/a/maxProducers?applied=true")).await, 3);
    rest.expect("POST", &format!("{TOPICS}/a/maxProducers"), json!(7), 204).await;
    assert_eq!(topic.policies().max_producers(), Some(7));
    rest.expect("POST", &format!("{TOPICS}/a/messageTTL?messageTTL=5"), NONE, 204).await;
    assert_eq!(topic.policies().message_ttl_ms(), Some(5000));
    rest.expect("DELETE", &format!("{TOPICS}/a/maxProducers"), NONE, 204).await;
    rest.expect("DELETE", &format!("{namespace}/maxProducersPerTopic"), NONE, 204).await;
    assert_eq!(topic.policies().max_producers(), None);
    rest.expect("GET", &format!("{TOPICS}/nope/retention"), NONE, 404).await;
    rest.expect("POST", &format!("{namespace}/retention"), json!("nonsense"), 400).await;
}

#[tokio::test]
async fn topics_and_partitions() {
    let rest = Rest::start().await;
    rest.expect("PUT", &format!("{TOPICS}/a+b%2Bc"), NONE, 204).await;
    rest.expect("PUT", &format!("{TOPICS}/a+b%2Bc"), NONE, 409).await;
    assert_eq!(rest.get(TOPICS).await, json!(["persistent://public/default/a b+c"]));
    rest.expect("PUT", "/persistent/public/nope/a", NONE, 404).await;
    for number in ["0", "-1", "01"] {
        rest.expect("PUT", &format!("{TOPICS}/x-partition-{number}"), NONE, 412).await;
    }
    rest.expect("GET", &format!("{TOPICS}/x-partition-0/partitions"), NONE, 404).await;
    for (method, name) in [("PUT", "x-partition-"), ("POST", "x-partition-0"), ("DELETE", "x-partition-0")] {
        rest.expect(method, &format!("{TOPICS}/{name}/partitions"), json!(2), 412).await;
    }
    // Of the names with two underscores only those are hidden that Pulsar uses.
    for name in ["__mine", "__change_events"] {
        rest.expect("PUT", &format!("{TOPICS}/{name}"), NONE, 204).await;
    }
    assert_eq!(
        rest.get(TOPICS).await,
        json!(["persistent://public/default/__mine", "persistent://public/default/a b+c"])
    );
    assert_eq!(rest.get(&format!("{TOPICS}?includeSystemTopic=true")).await.as_array().unwrap().len(), 3);
    for name in ["__mine", "__change_events"] {
        rest.expect("DELETE", &format!("{TOPICS}/{name}"), NONE, 204).await;
    }

    rest.expect("PUT", &format!("{TOPICS}/p/partitions"), json!(2), 204).await;
    rest.expect("PUT", &format!("{TOPICS}/p/partitions"), json!(2), 409).await;
    rest.expect("PUT", &format!("{TOPICS}/q/partitions"), json!(0), 406).await;
    assert_eq!(rest.get(&format!("{TOPICS}/p/partitions")).await, json!({"partitions": 2, "deleted": false}));
    rest.expect("PUT", &format!("{TOPICS}/p/subscription/s"), NONE, 204).await;
    rest.publish("p-partition-0", &["1"]).await;
    rest.expect("POST", &format!("{TOPICS}/p/partitions"), json!(1), 422).await;
    rest.expect("POST", &format!("{TOPICS}/p/partitions"), json!(3), 204).await;
    assert_eq!(rest.get(&format!("{TOPICS}/p-partition-2/subscriptions")).await, json!(["s"]));
    let stats = rest.get(&format!("{TOPICS}/p/partitioned-stats")).await;
    assert_eq!(stats["metadata"]["partitions"], 3);
    assert_eq!(stats["msgInCounter"], 1);
    assert_eq!(stats["subscriptions"]["s"]["msgBacklog"], 1);
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 3);
    let internal = format!("{TOPICS}/p/partitioned-internalStats");
    assert_eq!(rest.get(&internal).await["metadata"], json!({"partitions": 3, "deleted": false}));
    rest.expect("PUT", &format!("{TOPICS}/p/properties"), json!({"a": "b"}), 204).await;
    assert_eq!(rest.get(&internal).await["metadata"]["properties"], json!({"a": "b"}));
    rest.expect("GET", &format!("{TOPICS}/p-partition-9/stats"), NONE, 404).await;
    rest.expect("DELETE", &format!("{TOPICS}/p"), NONE, 409).await;
    rest.expect("DELETE", &format!("{TOPICS}/p/partitions"), NONE, 204).await;
    rest.expect("DELETE", &format!("{TOPICS}/p/partitions"), NONE, 404).await;
    assert_eq!(rest.get(TOPICS).await.as_array().unwrap().len(), 1);
    rest.expect("DELETE", &format!("{TOPICS}/nope"), NONE, 404).await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_half_done() {
    let rest = Rest::start().await;
    rest.publish("a", &["1"]).await;
    {
        let mut asked = std::pin::pin!(rest.raw("PUT", "/admin/v2/namespaces/public/default/unload", ""));
        let begun = asked.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(begun.is_pending(), "it is done at once: the test shows nothing");
    }
    let served_again = async {
        while rest.broker.topic(&"persistent://public/default/a".parse().unwrap(), false).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), served_again).await.expect("the bundle is not closed for good");
    rest.publish("a", &["2"]).await;
}

#[tokio::test]
async fn subscriptions_move_and_messages_are_seen() {
    let rest = Rest::start().await;
    let sub = format!("{TOPICS}/a/subscription/s%2F1");
    rest.expect("PUT", &sub, json!({"ledgerId": -1, "entryId": -1}), 204).await;
    rest.expect("PUT", &sub, NONE, 409).await;
    rest.publish("a", &["0", "1", "2", "3", "4"]).await;
    let stats = rest.get(&format!("{TOPICS}/a/stats?getEarliestTimeInBacklog=true")).await;
    assert_eq!(stats["subscriptions"]["s/1"]["msgBacklog"], 5);
    assert_eq!(stats["subscriptions"]["s/1"]["earliestMsgPublishTimeInBacklog"], 1_700_000_000_000_u64);
    assert_eq!(stats["storageSize"], stats["backlogSize"]);
    rest.expect("PUT", &format!("{TOPICS}/a/subscription/end"), NONE, 204).await;
    let quota = json!({"limitTime": 60, "policy": "consumer_backlog_eviction"});
    rest.expect("POST", &format!("{TOPICS}/a/backlogQuota?backlogQuotaType=message_age"), quota, 204).await;
    let stats = rest.get(&format!("{TOPICS}/a/stats?getEarliestTimeInBacklog=true")).await;
    assert_eq!(stats["subscriptions"]["end"]["earliestMsgPublishTimeInBacklog"], -1, "there is none");
    assert_eq!(stats["earliestMsgPublishTimeInBacklogs"], 1_700_000_000_000_u64);
    assert_eq!(stats["backlogQuotaLimitTime"], 60);
    rest.expect("DELETE", &format!("{TOPICS}/a/subscription/end"), NONE, 204).await;

    let peek = async |nth: u32| {
        let response = rest.raw("GET", &format!("/admin/v2{sub}/position/{nth}"), "").await;
        let status = response.status();
        let property = response.headers().get("X-Pulsar-PROPERTY").cloned();
        let schema = response.headers().get("X-Pulsar-Base64-schema-version").cloned();
        let clusters = response.headers().get_all("X-Pulsar-replicated-to").iter().count();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        if status == StatusCode::OK {
            assert_eq!(property.unwrap(), r#"{"k":"v"}"#);
            assert_eq!((schema.unwrap().to_str().unwrap(), clusters), ("AAAAAAAAAAA=", 2));
            Some(String::from_utf8(body.to_vec()).unwrap())
        } else {
            assert_eq!(status, StatusCode::NOT_FOUND);
            None
        }
    };
    assert_eq!(peek(1).await.as_deref(), Some("0"));
    assert_eq!(peek(5).await.as_deref(), Some("4"));
    assert_eq!(peek(6).await, None);
    rest.expect("POST", &format!("{sub}/skip/2"), NONE, 204).await;
    assert_eq!(peek(1).await.as_deref(), Some("2"));
    let last = rest.get(&format!("{TOPICS}/a/lastMessageId")).await;
    let ledger = last["ledgerId"].as_u64().unwrap();
    assert_eq!(last["entryId"], 4);
    rest.expect("POST", &format!("{sub}/resetcursor"), json!({"ledgerId": ledger, "entryId": 1}), 204).await;
    assert_eq!(peek(1).await.as_deref(), Some("1"));
    rest.expect("POST", &format!("{sub}/resetcursor/0"), NONE, 204).await;
    assert_eq!(peek(1).await.as_deref(), Some("0"));
    rest.expect("POST", &format!("{sub}/skip_all"), NONE, 204).await;
    assert_eq!(peek(1).await, None);
    rest.expect("POST", &format!("{sub}/expireMessages/1"), NONE, 409).await;
    let later = json!({"ledgerId": ledger, "entryId": 3, "partitionIndex": -1});
    rest.expect("PUT", &format!("{TOPICS}/a/subscription/later"), later, 204).await;
    let analysis = rest.expect("POST", &format!("{TOPICS}/a/subscription/later/analyzeBacklog"), NONE, 200).await;
    assert_eq!((&analysis["entries"], &analysis["messages"]), (&json!(2), &json!(2)));
    let internal = rest.get(&format!("{TOPICS}/a/internalStats")).await;
    assert_eq!(internal["cursors"]["later"]["markDeletePosition"], format!("{ledger}:2"));
    assert_eq!(internal["cursors"]["s%2F1"]["markDeletePosition"], format!("{ledger}:4"));
    assert_eq!(rest.get(&format!("{TOPICS}/a/subscription/later/explain")).await["backlog"], 2);
    rest.expect("GET", &format!("{TOPICS}/a/ledger/{ledger}/entry/3"), NONE, 200).await;
    rest.expect("GET", &format!("{TOPICS}/a/ledger/{ledger}/entry/9"), NONE, 404).await;
    rest.expect("GET", &format!("{TOPICS}/a/examinemessage?initialPosition=latest&messagePosition=2"), NONE, 200).await;
    rest.expect("GET", &format!("{TOPICS}/a/examinemessage?initialPosition=nonsense"), NONE, 200).await;

    // What deduplication has stored is shown as Pulsar's cursor of it.
    assert_eq!(internal["cursors"].as_object().unwrap().get("pulsar.dedup"), None);
    rest.expect("PUT", &format!("{TOPICS}/d"), NONE, 204).await;
    rest.expect("POST", &format!("{TOPICS}/d/deduplicationEnabled"), json!(true), 204).await;
    rest.expect("PUT", &format!("{TOPICS}/d/unload"), NONE, 204).await;
    let internal = rest.get(&format!("{TOPICS}/d/internalStats")).await;
    assert_eq!(internal["cursors"]["pulsar.dedup"]["markDeletePosition"], internal["lastConfirmedEntry"], "{internal}");

    // A duplicate came in, too, though it is not stored.
    rest.publish("d", &["1"]).await;
    rest.publish("d", &["1"]).await;
    let stats = rest.get(&format!("{TOPICS}/d/stats")).await;
    assert_eq!(stats["msgInCounter"], 2);
    assert_eq!(rest.get(&format!("{TOPICS}/d/internalStats")).await["numberOfEntries"], 1);

    rest.expect("DELETE", &format!("{TOPICS}/a/subscription/nope"), NONE, 404).await;
    rest.expect("DELETE", &sub, NONE, 204).await;
    let end = rest.expect("POST", &format!("{TOPICS}/a/terminate"), NONE, 200).await;
    assert_eq!((&end["ledgerId"], &end["entryId"]), (&json!(ledger), &json!(4)));
    rest.expect("DELETE", &format!("{TOPICS}/a"), NONE, 204).await;
    rest.expect("GET", &format!("{TOPICS}/a/stats"), NONE, 404).await;
}

#[tokio::test]
async fn schemas_have_versions() {
    let rest = Rest::start().await;
    let schema = "/schemas/public/default/sc/schema";
    let avro = r#"{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}"#;
    rest.expect("GET", schema, NONE, 404).await;
    let first = json!({"type": "AVRO", "schema": avro, "properties": {"k": "v"}});
    assert_eq!(rest.expect("POST", schema, first.clone(), 200).await, json!({"version": {"version": 0}}));
    assert_eq!(rest.expect("POST", schema, first, 200).await, json!({"version": {"version": 0}}));
    let found = rest.get(schema).await;
    assert_eq!(
        (&found["type"], &found["data"], &found["properties"]["k"]),
        (&json!("AVRO"), &json!(avro), &json!("v"))
    );
    rest.expect("POST", schema, json!({"type": "STRING", "schema": ""}), 409).await;
    rest.expect("POST", schema, json!({"type": "AVRO", "schema": "garbage"}), 422).await;
    assert_eq!(rest.expect("DELETE", schema, NONE, 200).await, json!({"version": 1}));
    rest.expect("GET", schema, NONE, 404).await;
    assert_eq!(rest.get(&format!("{schema}s")).await, json!({"getSchemaResponses": []}));
    let string = json!({"type": "STRING", "schema": ""});
    assert_eq!(rest.expect("POST", schema, string, 200).await, json!({"version": {"version": 2}}));
}

#[tokio::test]
async fn health_lookup_metrics_and_what_is_not_served() {
    let rest = Rest::start().await;
    assert_eq!(rest.get("/brokers/health").await, "ok");
    rest.publish("a", &["1"]).await;
    let page = rest.raw("GET", "/metrics/", "").await;
    assert_eq!(page.status(), StatusCode::OK);
    let page = String::from_utf8(to_bytes(page.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap();
    let topics = "pulsar_topics_count{cluster=\"standalone\",namespace=\"public/default\"} 1\n";
    assert!(page.contains(topics), "{page}");
    for name in ["storage_backlog_quota_limit_time", "delayed_message_index_size_bytes", "publish_rate_limit_times"] {
        let name = format!("pulsar_{name}{{cluster=\"standalone\",namespace=\"public/default\",topic=\"persistent");
        assert!(page.contains(&name), "{name} in {page}");
    }
    assert!(page.contains("\npulsar_broker_storage_logical_size{"), "{page}");
    let bundle = rest.raw("GET", "/lookup/v2/topic/persistent/public/default/a/bundle", "").await;
    let bundle = String::from_utf8(to_bytes(bundle.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap();
    let figures = rest.get("/broker-stats/topics").await;
    let figures = &figures["public/default"][&bundle]["persistent"]["persistent://public/default/a"];
    assert_eq!((&figures["msgInCount"], &figures["producerCount"]), (&json!(1), &json!(0)), "{figures}");
    assert_eq!(rest.get("/broker-stats/allocator-stats/default").await["directArenas"], json!([]));
    rest.expect("GET", "/broker-stats/allocator-stats/nope", NONE, 406).await;
    rest.expect("GET", "/broker-stats/broker-resource-availability/public/default", NONE, 409).await;
    assert_eq!(rest.get("/broker-stats/mbeans").await, json!([]));
    let lookup = rest.raw("GET", "/lookup/v2/topic/persistent/public/default/a", "").await;
    let lookup: Value = serde_json::from_slice(&to_bytes(lookup.into_body(), usize::MAX).await.unwrap()).unwrap();
    assert_eq!(lookup["brokerUrl"], "pulsar://127.0.0.1:6650");
    let refused = rest.expect("GET", "/clusters/standalone/migrate", NONE, 501).await;
    assert_eq!(refused["reason"], "GET /admin/v2/clusters/standalone/migrate is not supported");
    rest.expect("GET", "/nonsense/x", NONE, 404).await;
    rest.expect("GET", "/sinks/x", NONE, 409).await;
    assert_eq!(rest.raw("GET", "/admin/v3/transactions/coordinators", "").await.status(), 503);
    assert_eq!(rest.raw("GET", "/nonsense", "").await.status(), StatusCode::NOT_FOUND);
    let malformed = rest.raw("PUT", "/admin/v2/tenants/t", "{bad").await;
    assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
    let large = rest.raw("PUT", "/admin/v2/tenants/t", &"x".repeat(3 << 20)).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(rest.raw("GET", "/admin/v2/tenants/%zz", "").await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn non_persistent_topics() {
    let rest = Rest::start().await;
    let topics = "/non-persistent/public/default";
    rest.expect("PUT", &format!("{topics}/t"), NONE, 204).await;
    rest.publish("non-persistent://public/default/t", &["a", "b"]).await;
    assert_eq!(rest.get(topics).await, json!(["non-persistent://public/default/t"]));
    assert_eq!(rest.get(TOPICS).await, json!([]));
    rest.expect("PUT", &format!("{topics}/t/subscription/s"), NONE, 400).await;
    subscribe(&rest, "non-persistent://public/default/t").await;
    let stats = rest.get(&format!("{topics}/t/stats")).await;
    assert_eq!((&stats["msgInCounter"], &stats["storageSize"]), (&json!(2), &json!(0)));
    assert_eq!((&stats["msgDropRate"], &stats["subscriptions"]["s"]["msgDropRate"]), (&json!(0.0), &json!(0.0)));
    let refused = rest.expect("POST", &format!("{topics}/t/subscription/s/skip/1"), NONE, 405).await;
    assert_eq!(refused["reason"], "Skip messages on a non-persistent topic is not allowed");
    rest.expect("DELETE", &format!("{topics}/t/subscription/s"), NONE, 204).await;

    rest.expect("PUT", &format!("{topics}/p/partitions"), json!(2), 204).await;
    rest.publish("non-persistent://public/default/p-partition-1", &["a"]).await;
    let stats = rest.get(&format!("{topics}/p/partitioned-stats")).await;
    assert_eq!((&stats["msgInCounter"], &stats["msgDropRate"]), (&json!(1), &json!(0.0)));
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 2);
    rest.expect("DELETE", &format!("{topics}/p-partition-0"), NONE, 204).await;
    let stats = rest.get(&format!("{topics}/p/partitioned-stats")).await;
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 1, "a partition that is gone is left out");
    subscribe(&rest, "non-persistent://public/default/p-partition-0").await;
    assert_eq!(rest.get(&format!("{topics}/p/subscriptions")).await, json!(["s"]));
    let stats = rest.get(&format!("{topics}/p/partitioned-stats")).await;
    assert_eq!(stats["partitions"].as_object().unwrap().len(), 2, "and comes back with its first use");
}
