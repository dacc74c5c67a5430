//! What any broker of a cluster answers, whoever has the topics.

use geminga_broker::Owner;
use geminga_ledger_client::MemoryLedgers;
use serde_json::json;

use crate::fixture::{self, NONE, Rest};

/// Two brokers and topics of a tenant's namespace; the broker that does not have the first of these comes first.
async fn two_brokers(topics: &[&str]) -> [Rest; 2] {
    let (metadata, ledgers) = (fixture::metadata().await, MemoryLedgers::default());
    let (a, b) = (Rest::join(&metadata, &ledgers).await, Rest::join(&metadata, &ledgers).await);
    let tenant = json!({"adminRoles": [], "allowedClusters": ["standalone"]});
    a.expect("PUT", "/tenants/t", tenant, 204).await;
    a.expect("PUT", "/namespaces/t/n", json!({"bundles": {"numBundles": 8}}), 204).await;
    let mut is_mine = Vec::new();
    for topic in topics {
        let name = format!("persistent://t/n/{topic}").parse().unwrap();
        let mine = matches!(a.broker.lookup(&name).await.unwrap(), Owner::Me(_));
        let owner = if mine { &a } else { &b };
        owner.publish(name.as_str(), &["1"]).await;
        is_mine.push(mine);
    }
    if is_mine[0] { [b, a] } else { [a, b] }
}

#[tokio::test]
async fn grants_of_a_topic() {
    let [other, owner] = two_brokers(&["a"]).await;
    let grants = "/persistent/t/n/a/permissions";
    other.expect("POST", &format!("{grants}/role"), json!(["produce"]), 204).await;
    for rest in [&other, &owner] {
        assert_eq!(rest.get(grants).await, json!({"role": ["produce"]}));
    }
    other.expect("DELETE", &format!("{grants}/role"), NONE, 204).await;
    assert_eq!(owner.get(grants).await, json!({}));
    other.expect("GET", "/persistent/t/n/nope/permissions", NONE, 404).await;
}

#[tokio::test]
async fn a_tenant_is_deleted_with_topics_that_others_have() {
    let [other, owner] = two_brokers(&["a", "b", "c", "d", "e", "f"]).await;
    other.expect("DELETE", "/tenants/t", NONE, 409).await;
    other.expect("POST", "/brokers/configuration/forceDeleteTenantAllowed/true", NONE, 200).await;
    other.expect("DELETE", "/tenants/t?force=true", NONE, 204).await;
    for rest in [&other, &owner] {
        rest.expect("GET", "/tenants/t", NONE, 404).await;
        assert!(rest.broker.loaded_topics().iter().all(|topic| !topic.name().as_str().contains("t/n/")));
    }
}
