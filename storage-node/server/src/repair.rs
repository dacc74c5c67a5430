//! Damaged entries are copied from other nodes of their ledger.
//!
//! A copy is added as a recovery adds entries: it goes to the end of the log, is found before the damaged one from then on,
//! and is carried on by compaction, which leaves the damaged one behind.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use geminga_log::{Append, AppendError};
use geminga_wire_bookkeeper::{EntryHead, MasterKey, master_key};

use crate::damage::EntryName;
use crate::node::StorageNode;

/// What could not be repaired is tried again after so long.
const AGAIN: Duration = Duration::from_secs(30);

/// What another node says of an entry.
#[derive(Debug)]
pub enum Fetched {
    /// As it is to be stored, its digest verified.
    Entry(Bytes),
    /// The ledger is gone, or this node need not have the entry.
    NotNeeded,
    /// Nobody can give it now.
    Unavailable(String),
}

pub type Fetching = Pin<Box<dyn Future<Output = Fetched> + Send>>;

/// The other nodes that have what this one should have.
pub trait Replicas: Send + Sync + 'static {
    fn fetch(&self, ledger: u64, entry: u64) -> Fetching;
}

/// Repairs what is found damaged, one entry at a time and so many bytes a second, until the process ends.
pub async fn repair(node: Arc<StorageNode>, replicas: Arc<dyn Replicas>, bytes_per_second: u64) {
    loop {
        while let Some(name) = node.damage.take() {
            let bytes = repair_entry(&node, &*replicas, name).await;
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64)).await;
        }
        if tokio::time::timeout(AGAIN, node.damage.found.notified()).await.is_err() {
            node.damage.try_again();
        }
    }
}

/// Answers the bytes that were copied.
async fn repair_entry(node: &Arc<StorageNode>, replicas: &dyn Replicas, name: EntryName) -> usize {
    let (ledger, entry) = name;
    if !node.is_damaged(name).await {
        return 0;
    }
    let reason = match replicas.fetch(ledger, entry).await {
        Fetched::NotNeeded => return 0,
        Fetched::Unavailable(reason) => reason,
        Fetched::Entry(body) => {
            let bytes = body.len();
            match node.write_copy(ledger, entry, body).await {
                Ok(()) if node.is_damaged(name).await => "the copy is damaged as well".to_owned(),
                Ok(()) => {
                    node.damage.counts.repaired.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(ledger, entry, "repaired a damaged entry");
                    return bytes;
                }
                Err(error) => error.to_string(),
            }
        }
    };
    if node.damage.set_aside(name) {
        tracing::error!(ledger, entry, reason, "a damaged entry cannot be repaired now");
    }
    0
}

impl StorageNode {
    async fn is_damaged(self: &Arc<Self>, (ledger, entry): EntryName) -> bool {
        let node = self.clone();
        let look = move || node.log.is_damaged(ledger, entry);
        // If it cannot be looked at, it is not known to be good.
        tokio::task::spawn_blocking(look).await.unwrap_or(true)
    }

    /// Adds an entry that other nodes have, durably.
    pub(crate) async fn write_copy(&self, ledger: u64, entry: u64, body: Bytes) -> Result<(), AppendError> {
        assert!(
            EntryHead::decode(&body).is_some_and(|head| (head.ledger, head.entry) == (ledger as i64, entry as i64)),
            "the copy is of another entry"
        );
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let append = Append { ledger, entry, parts: [body, Bytes::new(), Bytes::new()], reserve: true };
        let key = self.log.key(ledger).unwrap_or_else(default_key);
        self.log.append_copy(append, key, Box::new(move |result| drop(sender.send(result))));
        receiver.await.unwrap_or(Err(AppendError::Closed))
    }
}

/// Of the ledgers of our own brokers, where damage has hit the key itself.
pub(crate) fn default_key() -> MasterKey {
    master_key(b"")
}
