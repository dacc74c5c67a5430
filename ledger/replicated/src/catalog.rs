//! The metadata of ledgers.

use std::time::Duration;

use geminga_ensemble::{LedgerMetadata, MetadataOutcome};
use geminga_metadata::{Metadata, MetadataError};

/// Pause before metadata that could not be reached are asked again. Meanwhile entries are not confirmed, and none is lost.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub struct Catalog {
    metadata: Metadata,
}

/// What there is of a ledger.
#[derive(Debug, Clone)]
pub struct Known {
    pub metadata: LedgerMetadata,
    pub version: u64,
}

impl Catalog {
    pub fn new(metadata: Metadata) -> Self {
        Self { metadata }
    }

    /// `None` if the ledger does not exist. Metadata that make no sense are an error.
    pub async fn get(&self, ledger: u64) -> Result<Option<Known>, MetadataError> {
        let Some(found) = self.metadata.get_ledger::<LedgerMetadata>(ledger).await? else { return Ok(None) };
        found.value.check().map_err(|error| MetadataError::Corrupt {
            subject: format!("ledger {ledger}"),
            reason: error.to_string(),
        })?;
        Ok(Some(Known { metadata: found.value, version: found.version }))
    }

    /// Creates a ledger, which may have been announced; whoever was faster is answered.
    pub async fn create(&self, ledger: u64, metadata: &LedgerMetadata) -> Result<Known, MetadataError> {
        let announced = match self.get(ledger).await? {
            None => None,
            Some(known) if known.metadata.is_announced() => Some(known.version),
            Some(known) => return Ok(known),
        };
        match self.metadata.put_ledger(ledger, metadata, announced).await {
            Ok(version) => Ok(Known { metadata: metadata.clone(), version }),
            Err(MetadataError::Conflict { .. }) => match self.get(ledger).await? {
                Some(known) => Ok(known),
                None => Err(MetadataError::NotFound { what: "ledger", name: ledger.to_string() }),
            },
            Err(error) => Err(error),
        }
    }

    /// Writes metadata if they have that version still. Tries for as long as metadata cannot be written; `None` if the ledger
    /// is gone.
    pub async fn write(
        &self,
        ledger: u64,
        metadata: &LedgerMetadata,
        expected_version: u64,
    ) -> Option<MetadataOutcome> {
        loop {
            let is_changed = match self.metadata.put_ledger(ledger, metadata, Some(expected_version)).await {
                Ok(version) => return Some(MetadataOutcome::Written { version }),
                Err(MetadataError::Conflict { .. }) => true,
                Err(error) => {
                    tracing::warn!(ledger, %error, "could not write a ledger's metadata");
                    false
                }
            };
            // Whoever does not know what became of a write looks.
            match self.get(ledger).await {
                // Metadata that can be read and not written. Whoever was told what it knows would write the same again at once.
                Ok(Some(known)) if !is_changed && known.version == expected_version => (),
                Ok(Some(Known { metadata, version })) => return Some(MetadataOutcome::Found { metadata, version }),
                Ok(None) => return None,
                Err(error) => tracing::warn!(ledger, %error, "could not read a ledger's metadata"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Ids of ledgers from `first` on, in order.
    pub async fn list(&self, first: u64, limit: usize) -> Result<Vec<u64>, MetadataError> {
        self.metadata.list_ledgers(first, limit).await
    }

    pub async fn delete(&self, ledger: u64) -> Result<(), MetadataError> {
        self.metadata.delete_ledger(ledger).await
    }

    /// A node took a new ledger for deleted, and may do so with the next ones.
    pub fn skip_ids(&self) {
        self.metadata.skip_ledger_ids();
    }

    /// A node may have lost what it had of ledgers with ids up to a bound that is above this one.
    pub fn skip_ids_with(&self, refused: u64) {
        self.metadata.skip_ledger_ids_with(refused);
    }

    /// The same; tries for as long as metadata cannot be reached.
    pub async fn delete_at_last(&self, ledger: u64) {
        while let Err(error) = self.delete(ledger).await {
            tracing::warn!(ledger, %error, "could not delete a ledger's metadata");
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use geminga_ensemble::Quorum;
    use geminga_metadata::{Disturbance, DisturbedStore, MemoryStore, MetadataStore, Op};

    use super::*;

    /// Metadata that can be read, and written at times.
    #[derive(Default)]
    struct FullDisk {
        is_full: AtomicBool,
        refused: AtomicUsize,
    }

    impl Disturbance for FullDisk {
        async fn commit(&self, stored: &MemoryStore, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
            if self.is_full.load(Ordering::Relaxed) {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(MetadataError::Unavailable("the disk is full".into()));
            }
            stored.commit(ops).await
        }
    }

    fn metadata_of(nodes: &[&str]) -> LedgerMetadata {
        let ensemble = nodes.iter().map(|node| (*node).to_owned()).collect();
        LedgerMetadata::new(Quorum { ensemble: 2, write: 2, ack: 1 }, ensemble, BTreeMap::new())
    }

    #[tokio::test]
    async fn metadata_that_cannot_be_written_are_tried_again_after_a_pause() {
        let store = Arc::new(DisturbedStore::<FullDisk>::default());
        let catalog = Catalog::new(Metadata::new(store.clone()));
        let created = catalog.create(7, &metadata_of(&["a", "b"])).await.expect("it is new");
        store.is_full.store(true, Ordering::Relaxed);
        let (writing, wanted) = (catalog.clone(), metadata_of(&["a", "c"]));
        let written = tokio::spawn(async move { writing.write(7, &wanted, created.version).await });
        tokio::time::sleep(RETRY * 5).await;
        let refused = store.refused.load(Ordering::Relaxed);
        assert!((1..=6).contains(&refused), "{refused} attempts within a second");
        assert!(!written.is_finished());
        store.is_full.store(false, Ordering::Relaxed);
        let version = match written.await.expect("it ends") {
            Some(MetadataOutcome::Written { version }) => version,
            other => panic!("{other:?}"),
        };
        let known = catalog.get(7).await.expect("metadata").expect("it exists");
        assert_eq!((known.version, known.metadata), (version, metadata_of(&["a", "c"])));
        // What somebody else has written is found without a pause.
        let found = catalog.write(7, &metadata_of(&["b", "c"]), created.version).await;
        assert!(matches!(found, Some(MetadataOutcome::Found { version: found, .. }) if found == version), "{found:?}");
    }
}
