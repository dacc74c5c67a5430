//! What this node remembers of metadata, so that a restored dump is noticed: see `geminga_metadata`'s `restored.rs`.
//!
//! Metadata are counted up first, and the disks follow. So a disk never has more than metadata, unless these are a dump from before.
//! The file is in every data directory, and the greatest count is what the node remembers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError, RestoredRecord, Witness, WitnessRecord};
use tokio::sync::Mutex;

use crate::directories::Directories;
use crate::state_file::{self, StateFileError};

const FILE: &str = "witness";
/// How often metadata are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a look at metadata has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Current,
    /// Some node remembers newer ones: nothing is to be deleted, repaired or closed because of what these say.
    Restored,
}

#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("{0}: unless metadata were restored from a dump since this node ran, remove the file and start again")]
    Unreadable(StateFileError),
    #[error("{0}")]
    Unwritten(StateFileError),
}

/// Clones share everything.
#[derive(Clone)]
pub struct MetadataWitness {
    node: String,
    folders: Arc<[PathBuf]>,
    memory: Arc<Mutex<Memory>>,
}

struct Memory {
    remembered: Witness,
    standing: Standing,
    /// The last write, which was said.
    has_failed: bool,
}

impl MetadataWitness {
    /// # Errors
    /// A file is there and cannot be read: what the node has seen is unknown then.
    pub fn open(node: &str, directories: &Directories) -> Result<Self, WitnessError> {
        Self::of_folders(node, directories.all().iter().map(|directory| directory.path.clone()).collect())
    }

    fn of_folders(node: &str, folders: Arc<[PathBuf]>) -> Result<Self, WitnessError> {
        let remembered = remembered(&folders)?;
        let memory = Memory { remembered, standing: Standing::Current, has_failed: false };
        Ok(Self { node: node.to_owned(), folders, memory: Arc::new(Mutex::new(memory)) })
    }

    /// Compares metadata with what is remembered. What is older is noted for everybody; what is not is counted up, and remembered.
    ///
    /// # Errors
    /// Whether they are current is not known.
    pub async fn look(&self, metadata: &Metadata) -> Result<Standing, WitnessError> {
        let mut memory = self.memory.lock().await;
        if memory.standing == Standing::Current && !metadata.is_restored().await? {
            // Nobody else writes the record: with the version that it was left with it is not from a dump.
            let Witness { count, version, .. } = memory.remembered;
            match self.count_up(&mut memory, metadata, count, Some(version)).await {
                Err(error) if error.is_conflict() => (),
                counted => return Ok(counted.map(|()| Standing::Current)?),
            }
        }
        let found = metadata.get_witness(&self.node).await?;
        let count = found.as_ref().map_or(0, |found| found.value.count);
        let remembered = memory.remembered;
        if count < remembered.count {
            let record = RestoredRecord { since_ms: metadata.store().now_ms(), remembered };
            let version = found.as_ref().map(|found| found.version);
            metadata.note_restored(&self.node, &record, version).await?;
        }
        let standing = if metadata.is_restored().await? { Standing::Restored } else { Standing::Current };
        if standing != memory.standing {
            memory.standing = standing;
            match standing {
                Standing::Restored => tracing::error!(
                    count,
                    remembered = remembered.count,
                    "metadata were restored from an older dump: this node deletes and repairs nothing until 'geminga doctor' has settled it"
                ),
                Standing::Current => tracing::info!("metadata are current again"),
            }
        }
        if standing == Standing::Current {
            self.count_up(&mut memory, metadata, count, found.map(|found| found.version)).await?;
        }
        Ok(standing)
    }

    /// Counts metadata up that have counted to `count` in a record with this version (none: there is no record), and remembers that.
    async fn count_up(
        &self,
        memory: &mut Memory,
        metadata: &Metadata,
        count: u64,
        version: Option<u64>,
    ) -> Result<(), MetadataError> {
        // Before the count: what is given out later is not remembered with it.
        let (ledger_ids_end, cursor_ids_end) = (metadata.ledger_ids_end().await?, metadata.cursor_ids_end().await?);
        let record = WitnessRecord { count: count + 1, at_ms: metadata.store().now_ms() };
        let version = metadata.put_witness(&self.node, &record, version).await?;
        let witness = Witness { count: count + 1, version, ledger_ids_end, cursor_ids_end };
        memory.remembered = witness;
        // A disk that is full is no reason to keep garbage; the node remembers a little less.
        let failed = self.write(&witness).err();
        if let Some(error) = failed.as_ref().filter(|_| !memory.has_failed) {
            tracing::warn!(%error, "could not remember how new metadata are");
        }
        memory.has_failed = failed.is_some();
        Ok(())
    }

    fn write(&self, witness: &Witness) -> Result<(), WitnessError> {
        let mut written = 0;
        let mut failure = None;
        for folder in self.folders.iter() {
            match state_file::write(FILE, folder, witness) {
                Ok(()) => written += 1,
                Err(error) => failure = Some(WitnessError::Unwritten(error)),
            }
        }
        // One directory that remembers is enough; others may be full or failing, which is said elsewhere.
        failure.filter(|_| written == 0).map_or(Ok(()), Err)
    }

    /// Looks from time to time, for ever.
    pub async fn keep_looking(self, metadata: Metadata) {
        let mut has_failed = false;
        loop {
            let looked = self.look(&metadata).await;
            if let Err(error) = &looked
                && !has_failed
            {
                tracing::warn!(%error, "could not find out whether metadata are current");
            }
            has_failed = looked.is_err();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// A bound that every ledger id is below that metadata had given when a node last remembered them in one of these folders. Metadata
/// may be older than that.
///
/// # Errors
/// A file is there and cannot be read.
pub fn witnessed_ledger_ids_end(folders: &[PathBuf]) -> Result<u64, WitnessError> {
    remembered(folders).map(|remembered| remembered.ledger_ids_end)
}

fn remembered(folders: &[PathBuf]) -> Result<Witness, WitnessError> {
    let mut remembered = Witness::default();
    for folder in folders {
        let found = state_file::read::<Witness>(FILE, folder).map_err(WitnessError::Unreadable)?;
        if let Some(found) = found.filter(|found| found.count > remembered.count) {
            remembered = found;
        }
    }
    Ok(remembered)
}

#[cfg(test)]
mod tests {
    use geminga_metadata::MemoryStore;

    use super::*;
    use crate::state_file::tests::check_damage;

    fn witness(folders: &[&std::path::Path]) -> MetadataWitness {
        let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
        MetadataWitness::of_folders("n", folders).expect("readable")
    }

    /// The witness of the dump, put back; what else was written since stays, as if others had gone on.
    async fn restore(metadata: &Metadata, dump: WitnessRecord) {
        let version = metadata.get_witness("n").await.expect("read").map(|found| found.version);
        metadata.put_witness("n", &dump, version).await.expect("written");
    }

    #[tokio::test]
    async fn a_dump_from_before_is_noticed_whatever_was_written_since_and_until_it_is_settled() {
        let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let metadata = Metadata::new(Arc::new(MemoryStore::new()));
        let node = witness(&[one.path(), two.path()]);
        assert_eq!(node.look(&metadata).await.expect("looked"), Standing::Current);
        let dump = metadata.get_witness("n").await.expect("read").expect("counted").value;
        metadata.raise_ledger_ids(700).await.expect("raised");
        assert_eq!(node.look(&metadata).await.expect("looked"), Standing::Current);
        restore(&metadata, dump).await;
        metadata.raise_ledger_ids(9000).await.expect("raised");
        // After a restart, with one of its disks new.
        std::fs::remove_file(two.path().join(FILE)).expect("it was there");
        let node = witness(&[one.path(), two.path()]);
        for _ in 0..3 {
            assert_eq!(node.look(&metadata).await.expect("looked"), Standing::Restored);
        }
        let restored = metadata.restored().await.expect("read");
        assert_eq!((restored.len(), restored[0].1.value.remembered.ledger_ids_end), (1, 700));
        assert!(metadata.next_ledger_id(0).await.is_err(), "no id is given out");
        metadata.settle_restored("n", &restored[0].1).await.expect("settled");
        assert!(metadata.settle_restored("n", &restored[0].1).await.expect_err("it is settled").is_conflict());
        // A look that began before that.
        metadata.note_restored("n", &restored[0].1.value, Some(1)).await.expect("no error");
        assert!(!metadata.is_restored().await.expect("read"));
        assert_eq!(node.look(&metadata).await.expect("looked"), Standing::Current);
        assert!(metadata.next_ledger_id(0).await.is_ok());
    }

    #[tokio::test]
    async fn what_another_node_remembers_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let metadata = Metadata::new(Arc::new(MemoryStore::new()));
        let record = RestoredRecord { since_ms: 1, remembered: Witness { count: 9, ..Witness::default() } };
        metadata.note_restored("other", &record, None).await.expect("noted");
        let node = witness(&[folder.path()]);
        assert_eq!(node.look(&metadata).await.expect("looked"), Standing::Restored);
        assert!(!folder.path().join(FILE).exists(), "nothing is remembered of them");
    }

    #[test]
    fn damage_is_no_absence() {
        let folder = tempfile::tempdir().expect("a folder");
        let remembered = Witness { count: 9, version: 77, ledger_ids_end: 700, cursor_ids_end: 70 };
        witness(&[folder.path()]).write(&remembered).expect("written");
        check_damage(FILE, folder.path(), || match super::remembered(&[folder.path().to_path_buf()]) {
            Err(WitnessError::Unreadable(error)) => Err(error),
            found => Ok(found.expect("no other error")),
        });
        std::fs::write(folder.path().join(FILE), b"{").expect("written");
        let opened = MetadataWitness::of_folders("n", [folder.path().to_path_buf()].into());
        assert!(matches!(opened, Err(WitnessError::Unreadable(_))));
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_keeps_no_garbage() {
        let folder = tempfile::tempdir().expect("a folder");
        let metadata = Metadata::new(Arc::new(MemoryStore::new()));
        let node = witness(&[&folder.path().join("gone")]);
        for _ in 0..2 {
            assert_eq!(node.look(&metadata).await.expect("looked"), Standing::Current);
        }
    }
}
