//! Requests about one of a namespace's bundles, and what is kept with clusters.

use serde_json::{Value, json};

use crate::fixture::{NONE, Rest};

const NAMESPACE: &str = "/namespaces/public/default";

#[tokio::test]
async fn a_bundle_is_split_and_names_its_topics() {
    let rest = Rest::start().await;
    rest.expect("PUT", "/persistent/public/default/a", NONE, 204).await;
    let listed = rest.get("/persistent/public/default?bundle=0xc0000000_0xffffffff").await;
    assert_eq!(listed, json!(["persistent://public/default/a"]));
    assert_eq!(rest.get("/persistent/public/default/0x00000000_0x40000000").await, json!([]));
    let refused = rest.expect("PUT", &format!("{NAMESPACE}/0x00000000_0x50000000/unload"), NONE, 412).await;
    let reason = "Invalid upper boundary for bundle public/default/0x00000000_0x50000000. Expected upper boundary of \
                  public/default/0x00000000_0x40000000";
    assert_eq!(refused["reason"], reason);
    rest.expect("PUT", &format!("{NAMESPACE}/0x00000000_0x40000000/split"), NONE, 204).await;
    assert_eq!(rest.get(&format!("{NAMESPACE}/bundles")).await["numBundles"], 5);
    rest.expect("PUT", &format!("{NAMESPACE}/0x00000000_0x40000000/split"), NONE, 412).await;
    // The bundle that the topic is in.
    rest.expect("PUT", &format!("{NAMESPACE}/LARGEST/split"), NONE, 204).await;
    let boundaries = rest.get(&format!("{NAMESPACE}/bundles")).await["boundaries"].clone();
    assert_eq!(boundaries[4], "0xc0000000", "the cut is behind it: {boundaries}");
    let empty = format!("{NAMESPACE}/0x00000000_0x20000000/split?splitAlgorithmName=");
    rest.expect("PUT", &format!("{empty}topic_count_equally_divide"), NONE, 204).await;
    rest.expect("PUT", &format!("{empty}nonsense"), NONE, 412).await;
    assert_eq!(rest.get(&format!("{NAMESPACE}/bundles")).await["numBundles"], 6);
    for path in ["0x00000000_0x20000000/clearBacklog", "0x00000000_0x20000000/unsubscribe/s"] {
        rest.expect("POST", &format!("{NAMESPACE}/{path}"), NONE, 204).await;
    }
}

#[tokio::test]
async fn failure_domains_and_isolation_policies_outlive_a_change_of_the_cluster() {
    let rest = Rest::start().await;
    let cluster = json!({ "serviceUrl": "http://x:8080" });
    rest.expect("PUT", "/clusters/c", cluster.clone(), 200).await;
    rest.expect("PUT", "/clusters/bad", json!({ "serviceUrl": "x:8080" }), 400).await;
    rest.expect("POST", "/clusters/c/peers", json!(["c"]), 412).await;
    rest.expect("GET", "/clusters/c/namespaceIsolationPolicies", NONE, 404).await;
    rest.expect("POST", "/clusters/c/failureDomains/d", json!({ "brokers": ["b"] }), 204).await;
    rest.expect("POST", "/clusters/c/failureDomains/e", json!({ "brokers": ["b"] }), 409).await;
    rest.expect("POST", "/clusters/c/namespaceIsolationPolicies/p", json!({ "namespaces": ["a/.*"] }), 400).await;
    let limits = json!({ "min_limit": "1", "usage_threshold": "80" });
    let policy = |parameters: Value| {
        json!({
            "namespaces": ["a/.*"],
            "primary": ["127.*"],
            "secondary": ["b.*"],
            "auto_failover_policy": { "policy_type": "min_available", "parameters": parameters },
        })
    };
    rest.expect("POST", "/clusters/c/namespaceIsolationPolicies/p", policy(json!({})), 400).await;
    rest.expect("POST", "/clusters/c/namespaceIsolationPolicies/p", policy(limits), 204).await;
    let of = |broker: &str, primary: bool| json!({ "brokerName": broker, "policyName": "p", "namespaceRegex": ["a/.*"], "primary": primary });
    let brokers = "/clusters/c/namespaceIsolationPolicies/brokers";
    assert_eq!(rest.get(&format!("{brokers}/127.0.0.1:80")).await, of("127.0.0.1:80", true));
    assert_eq!(rest.get(&format!("{brokers}/b1:80")).await, of("b1:80", false));
    assert_eq!(rest.get(&format!("{brokers}/c:80")).await["namespaceRegex"], json!([]));
    rest.expect("POST", "/clusters/c", cluster, 200).await;
    assert_eq!(rest.get("/clusters/c/failureDomains").await, json!({ "d": { "brokers": ["b"] } }));
    assert_eq!(rest.get("/clusters/c/namespaceIsolationPolicies/p").await["namespaces"], json!(["a/.*"]));
    assert!(rest.get("/clusters/c").await.get("failureDomains").is_none());
    rest.expect("DELETE", "/clusters/c/failureDomains/d", NONE, 200).await;
    rest.expect("DELETE", "/clusters/c/failureDomains/d", NONE, 404).await;
    rest.expect("GET", "/clusters/c/failureDomains/d", NONE, 404).await;
}

#[tokio::test]
async fn groups_of_anti_affinity_are_kept() {
    let rest = Rest::start().await;
    let path = format!("{NAMESPACE}/antiAffinity");
    rest.expect("GET", &path, NONE, 204).await;
    assert_eq!(rest.raw("POST", &format!("/admin/v2{path}"), "group").await.status(), 204);
    assert_eq!(rest.get(&path).await, "group");
    let members = |group: &str| format!("/namespaces/standalone/antiAffinity/{group}?property=public");
    assert_eq!(rest.get(&members("group")).await, json!(["public/default"]));
    let unversioned = rest.raw("GET", &format!("/admin{}", members("group")), "").await;
    assert_eq!(unversioned.status(), 200, "the Java client asks there");
    assert_eq!(rest.get(&members("other")).await, json!([]));
    rest.expect("GET", "/namespaces/nowhere/antiAffinity/group?property=public", NONE, 404).await;
    rest.expect("DELETE", &path, NONE, 204).await;
    assert_eq!(rest.get(&members("group")).await, json!([]));
    rest.expect("GET", &path, NONE, 204).await;
}
