//! The in-memory backend against the conformance suite.

use std::sync::Arc;

use geminga_metadata::{Balanced, BundleRecord, ManualClock, MemoryStore, Metadata, MetadataStore, conformance};
use geminga_model::BundleName;

fn store() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new())
}

#[tokio::test]
async fn commits() {
    conformance::commits(store()).await;
}

#[tokio::test]
async fn scans() {
    conformance::scans(store()).await;
}

#[tokio::test]
async fn sequences() {
    conformance::sequences(store()).await;
}

#[tokio::test]
async fn contention() {
    conformance::contention(store()).await;
}

#[tokio::test]
async fn watches() {
    conformance::watches(store()).await;
}

#[tokio::test]
async fn quiet_puts() {
    conformance::quiet_puts(store()).await;
}

/// An owner's commits go through another store, which guards them.
#[tokio::test]
async fn quiet_puts_of_an_owner() {
    let metadata = Metadata::new(store());
    let bundle: BundleName = "t/n/0x00000000_0xffffffff".parse().unwrap();
    let record = BundleRecord { owner: Some("a".to_owned()), incarnation: 1, epoch: 1, balanced: Balanced::default() };
    let version = metadata.put_bundle(&bundle, &record, None).await.unwrap();
    conformance::quiet_puts(metadata.guarded_by_bundle(&bundle, version).store().clone()).await;
}

#[tokio::test]
async fn leases() {
    let clock = ManualClock::starting_at_ms(1_000_000);
    let store = Arc::new(MemoryStore::with_clock(clock.clone()));
    conformance::leases(store, async |step_ms| clock.advance_ms(step_ms)).await;
}

#[tokio::test]
async fn repositories() {
    conformance::repositories(store()).await;
}

#[tokio::test]
async fn persistence() {
    let store = MemoryStore::new();
    let again = store.clone();
    conformance::persistence(Arc::new(store), async |_| Arc::new(again.clone()) as Arc<dyn MetadataStore>).await;
}
