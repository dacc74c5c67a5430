//! Storage nodes, emptying them, and what is being repaired.

use std::time::Duration;

use geminga_metadata::{AuditRecord, LeaseOutcome, Metadata, RepairRecord, StorageNodeRecord};
use serde_json::{Value, json};

use crate::fixture::Rest;

/// Paths that are not under `/admin/v2`.
async fn call(rest: &Rest, method: &str, path: &str) -> (u16, Value) {
    rest.call_at(method, &format!("/admin/geminga{path}"), Value::Null).await
}

async fn register(metadata: &Metadata, id: &str, port: u16, is_alive: bool) {
    let record = StorageNodeRecord {
        address: format!("127.0.0.1:{port}"),
        zone: "east".to_owned(),
        region: "north".to_owned(),
        read_only: false,
        control: None,
    };
    metadata.put_storage_node(id, &record).await.unwrap();
    if is_alive {
        let lease = metadata.acquire_storage_node(id, "me", Duration::from_secs(60)).await.unwrap();
        assert!(matches!(lease, LeaseOutcome::Acquired(_)));
    }
}

#[tokio::test]
async fn nodes_are_listed_emptied_and_forgotten() {
    let rest = Rest::start().await;
    let metadata = rest.broker.metadata();
    assert_eq!(rest.get("/bookies/all").await, json!({ "bookies": [{ "bookieId": "embedded" }] }));
    register(metadata, "a", 1, true).await;
    register(metadata, "b", 2, false).await;
    let bookies = json!({ "bookies": [{ "bookieId": "127.0.0.1:1" }, { "bookieId": "127.0.0.1:2" }] });
    assert_eq!(rest.get("/bookies/all").await, bookies);
    assert_eq!(rest.get("/bookies/racks-info").await["default"]["127.0.0.1:1"]["rack"], "/north/east");

    assert_eq!(call(&rest, "PUT", "/storage-nodes/c/decommission").await.0, 404);
    assert_eq!(call(&rest, "PUT", "/storage-nodes/b/decommission").await.0, 204);
    let (_, nodes) = call(&rest, "GET", "/storage-nodes").await;
    assert_eq!((&nodes[0]["alive"], &nodes[0]["decommission"]), (&json!(true), &Value::Null));
    assert_eq!((&nodes[1]["alive"], &nodes[1]["decommission"]["done"]), (&json!(false), &json!(false)));
    assert_eq!(call(&rest, "DELETE", "/storage-nodes/a").await.0, 409, "it is alive");
    assert_eq!(call(&rest, "DELETE", "/storage-nodes/b").await.0, 409, "nobody knows what depends on it");

    // An audit that began too early proves nothing, a later one does.
    let since_ms = nodes[1]["decommission"]["since_ms"].as_u64().unwrap();
    for (started_ms, left, done) in
        [(since_ms + 1, 0, false), (since_ms + 9_000, 3, false), (since_ms + 9_000, 0, true)]
    {
        let audit = AuditRecord { started_ms, draining: [("b".to_owned(), left)].into(), ..AuditRecord::default() };
        metadata.put_audit(&audit).await.unwrap();
        let (_, nodes) = call(&rest, "GET", "/storage-nodes").await;
        assert_eq!(nodes[1]["decommission"]["done"], done);
        assert_eq!(call(&rest, "DELETE", "/storage-nodes/b").await.0, if done { 204 } else { 409 });
    }
    assert_eq!(metadata.storage_node_statuses().await.unwrap().len(), 1);
    assert_eq!(call(&rest, "PUT", "/storage-nodes/a/decommission").await.0, 204);
    assert_eq!(call(&rest, "DELETE", "/storage-nodes/a/decommission").await.0, 204);
    assert_eq!(call(&rest, "GET", "/storage-nodes").await.1[0]["decommission"], Value::Null);
    assert_eq!(call(&rest, "GET", "/storage-nodes/a").await.0, 404);
}

#[tokio::test]
async fn what_is_repaired_says_what_stands_in_the_way() {
    let rest = Rest::start().await;
    let metadata = rest.broker.metadata();
    assert_eq!(call(&rest, "GET", "/recovery").await.1["ledgers_to_repair"], 0);
    for ledger in 0..2_500 {
        metadata.note_repair(ledger, &Default::default(), false).await.unwrap();
    }
    let noted = metadata.get_repair(7).await.unwrap().unwrap();
    let blocked = RepairRecord { blocked: Some("nobody is there".to_owned()), ..noted.value };
    metadata.put_repair(7, &blocked, noted.version).await.unwrap();
    let (status, recovery) = call(&rest, "GET", "/recovery").await;
    assert_eq!((status, &recovery["ledgers_to_repair"]), (200, &json!(2_500)));
    assert_eq!(recovery["blocked"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&recovery["blocked"][0]["reason"], &recovery["blocked"][0]["some"]),
        (&json!("nobody is there"), &json!([7]))
    );
}
