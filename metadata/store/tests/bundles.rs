//! What commits about bundles are refused, so that a bundle which is split leaves neither an owner nor acknowledgements behind.

use std::sync::Arc;

use geminga_metadata::policies::BundlesData;
use geminga_metadata::{
    Balanced, BundleRecord, BundleSplit, MemoryStore, Metadata, MetadataError, MovedFor, Policies, TenantInfo, Wanted,
};
use geminga_model::{BundleName, NamespaceName};

fn namespace() -> NamespaceName {
    "public/default".parse().unwrap()
}

fn bundle(range: &str) -> BundleName {
    BundleName { namespace: namespace(), range: range.parse().unwrap() }
}

fn policies(bundles: u32) -> Policies {
    Policies { bundles: Some(BundlesData::even(bundles)), ..Policies::default() }
}

fn owned() -> BundleRecord {
    BundleRecord { owner: Some("broker-1".into()), incarnation: 1, epoch: 1, balanced: Balanced::default() }
}

/// A namespace with one bundle, and the version of its policies.
async fn metadata() -> (Metadata, u64) {
    let metadata = Metadata::new(Arc::new(MemoryStore::new()));
    metadata.create_tenant_with_namespace(&TenantInfo::default(), &namespace(), &policies(1)).await.unwrap();
    let version = metadata.get_namespace(&namespace()).await.unwrap().unwrap().version;
    (metadata, version)
}

/// Splits the namespace's one bundle into halves.
async fn split(metadata: &Metadata, policies_version: u64, log_version: Option<u64>) -> Result<(), MetadataError> {
    let (policies, owner) = (policies(2), owned());
    let parts = [bundle("0x00000000_0x80000000"), bundle("0x80000000_0xffffffff")];
    let split = BundleSplit { policies: &policies, policies_version, parts: &parts, log_version, owner: Some(&owner) };
    metadata.split_bundle(&bundle("0x00000000_0xffffffff"), split, &[]).await
}

#[tokio::test]
async fn a_bundle_that_was_split_gets_no_owner_any_more() {
    let (metadata, version) = metadata().await;
    let whole = bundle("0x00000000_0xffffffff");
    let owner = metadata.create_bundle(&whole, &owned(), version).await.unwrap();
    split(&metadata.guarded_by_bundle(&whole, owner), version, None).await.unwrap();
    // Whoever read the policies before knows of no record either, as it went with the bundle.
    assert_eq!(metadata.get_bundle(&whole).await.unwrap(), None);
    assert!(metadata.create_bundle(&whole, &owned(), version).await.unwrap_err().is_conflict());
    assert_eq!(metadata.get_bundle(&whole).await.unwrap(), None);
}

#[tokio::test]
async fn a_split_that_comes_late_drops_nothing_that_was_acknowledged_since() {
    let (metadata, policies_version) = metadata().await;
    let name = bundle("0x00000000_0xffffffff");
    let sealed = metadata.put_cursor_log(&name.to_string(), &"ledgers", None, &[], None).await.unwrap();
    let since = metadata.put_cursor_log(&name.to_string(), &"more ledgers", Some(sealed), &[], None).await.unwrap();
    for log_version in [None, Some(sealed)] {
        let late = split(&metadata, policies_version, log_version).await;
        assert!(matches!(late, Err(MetadataError::OwnershipLost { .. })), "{late:?}");
    }
    let log = metadata.get_cursor_log::<String>(&name.to_string()).await.unwrap();
    assert_eq!(log.map(|log| log.value).as_deref(), Some("more ledgers"));
    split(&metadata, policies_version, Some(since)).await.unwrap();
    assert_eq!(metadata.get_cursor_log::<String>(&name.to_string()).await.unwrap(), None);
}

/// Brokers of both builds read and write these while a cluster is upgraded.
#[test]
fn what_an_earlier_build_wrote_of_moves_is_read() {
    let record = r#"{"owner":"a","incarnation":1,"epoch":2,"balanced_at_ms":7,"balanced_before_ms":5}"#;
    let record: BundleRecord = serde_json::from_str(record).unwrap();
    assert_eq!(record.balanced, Balanced { levelled_ms: Some(7), filled_ms: None });
    let [filled, moved] = [MovedFor::FILLING, MovedFor::default()].map(|reason| record.balanced.after_move(reason, 9));
    assert_eq!((filled.levelled_ms, filled.filled_ms), (Some(7), Some(9)));
    assert_eq!(moved, record.balanced);

    let levelling = Wanted::Handover { to: None, reason: MovedFor::LEVELLING };
    let written = r#"{"handover":{"to":null,"for_balance":true}}"#;
    assert_eq!(serde_json::from_str::<Wanted>(written).unwrap(), levelling);
    assert_eq!(serde_json::to_string(&levelling).unwrap(), written);
    let unload: Wanted = serde_json::from_str(r#"{"handover":{"to":"b"}}"#).unwrap();
    assert_eq!(unload, Wanted::Handover { to: Some("b".into()), reason: MovedFor::default() });
}
