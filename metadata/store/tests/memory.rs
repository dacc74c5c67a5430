//! The in-memory backend against the conformance suite.

use std::sync::Arc;

use geminga_metadata::{ManualClock, MemoryStore, MetadataStore, conformance};

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
