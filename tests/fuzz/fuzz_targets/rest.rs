//! Requests to the admin API, several on one broker: each is answered, and none with an error of the server's own.

#![no_main]

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, Uri};
use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::MemoryLedgers;
use geminga_metadata::{ClusterData, MemoryStore, Metadata, Policies, TenantInfo};
use libfuzzer_sys::fuzz_target;
use tower::ServiceExt;

/// Ends all tasks of the broker when it goes. Time passes when nothing else is to be done.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().expect("a runtime can be built")
}

const METHODS: [&str; 4] = ["GET", "PUT", "POST", "DELETE"];

/// What paths are made of; other bytes stand for themselves.
const SEGMENTS: [&str; 64] = [
    "/admin/v2/persistent/public/default/t", "/admin/v2/namespaces/public/default", "/admin/v2/tenants/public",
    "/admin/v2/clusters/standalone", "/admin/v2/brokers", "/admin/v2/schemas/public/default/t", "/lookup/v2/topic",
    "/admin/v2/non-persistent/public/default/t", "/subscription/s", "/subscriptions", "/partitions", "/stats",
    "/internalStats", "/partitioned-stats", "/resetcursor", "/skip/1", "/skip_all", "/position/1", "/expireMessages/1",
    "/lastMessageId", "/terminate", "/unload", "/properties", "/backlog", "/retention", "/messageTTL",
    "/backlogQuota", "/backlogQuotaMap", "/maxProducers", "/maxConsumers", "/publishRate", "/dispatchRate",
    "/subscriptionDispatchRate", "/deduplication", "/permissions/role", "/bundles", "/autoTopicCreation",
    "/autoSubscriptionCreation", "/delayedDelivery", "/inactiveTopicPolicies", "/persistence", "/schema",
    "/compatibility", "/version", "/replication", "/offloadPolicies", "/compactionThreshold", "/maxMessageSize",
    "/configuration", "/values", "/health", "/leaderBroker", "/ledger/1/entry/0", "/examinemessage", "/truncate",
    "/all/expireMessages/1", "/subscriptionTypesEnabled", "?authoritative=true", "&force=true", "?applied=true",
    "?messageId=1:0", "/encryptionRequired", "/analyzeBacklog", "/explain",
];

fuzz_target!(|data: &[u8]| runtime().block_on(serve(data)));

async fn serve(data: &[u8]) {
    let metadata = Metadata::new(Arc::new(MemoryStore::default()));
    metadata.create_cluster("standalone", &ClusterData::default()).await.expect("it is empty");
    let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
    metadata.create_tenant("public", &tenant).await.expect("it is empty");
    let namespace = "public/default".parse().expect("a name");
    metadata.create_namespace(&namespace, &Policies::new_namespace("standalone", 4)).await.expect("it is empty");
    let broker = Broker::start(BrokerConfig::default(), metadata, Arc::new(MemoryLedgers::default())).await;
    let broker = broker.expect("it is empty");
    let router = geminga_admin_api::router(broker.clone(), |_| ());
    // Method, path, body, one request per three lines.
    let mut lines = data.split(|byte| *byte == b'\n');
    while let (Some(head), body) = (lines.next(), lines.next().unwrap_or_default()) {
        let Some((method, path)) = head.split_first() else { continue };
        let Ok(uri) = path_of(path).parse::<Uri>() else { continue };
        let request = Request::builder().method(METHODS[usize::from(method % 4)]).uri(uri.clone());
        let request = request.body(Body::from(body.to_vec())).expect("its parts are fine");
        let answer = router.clone().oneshot(request).await.expect("the router does not fail");
        let status = answer.status();
        // 501 names what is not served, 503 what is not ready.
        assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{method} {uri}: {status}");
        to_bytes(answer.into_body(), usize::MAX).await.expect("a whole body");
    }
    broker.shut_down().await;
}

fn path_of(bytes: &[u8]) -> String {
    let mut path = String::new();
    for &byte in bytes {
        match byte {
            128.. => path.push_str(SEGMENTS[usize::from(byte & 63)]),
            _ => path.push(char::from(byte)),
        }
    }
    path
}
