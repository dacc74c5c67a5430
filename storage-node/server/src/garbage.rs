//! Ledgers that are here and in no metadata any more.
//!
//! A ledger is in metadata before its first entry is anywhere, so one that is not there was deleted. It goes when it was missing
//! in two rounds, some time apart; where metadata could not be read, nothing goes. Nor does anything while storage has ledgers
//! with ids that metadata have not given yet, or while a node remembers newer metadata: then metadata are older than storage, as after a
//! restore. What is missing then stays
//! also when metadata have given more ids: see noted.rs.
//!
//! That a ledger was deleted is remembered for good. Ids between deleted ones of which metadata have none either were given out
//! before the last of those came and went. They are remembered as well, so that all are few ranges. Should one of them still be
//! created, by a broker that slept in between or has not used up the block of ids that it took, this node refuses it, and the broker
//! begins another one, of another block.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use geminga_metadata::{Metadata, MetadataError};

use crate::node::StorageNode;
use crate::noted::{DOUBTFUL, Noted};
use crate::state_file::StateFileError;
use crate::witness::{MetadataWitness, Standing, WitnessError};

/// Looks for garbage every `interval`, until the process ends.
pub async fn collect_garbage(node: Arc<StorageNode>, metadata: Metadata, witness: MetadataWitness, interval: Duration) {
    let folders = node.directories().all().iter().map(|directory| directory.path.clone()).collect();
    let mut doubtful = match Noted::read(DOUBTFUL, folders) {
        Ok(doubtful) => doubtful,
        Err(error) => {
            tracing::error!(%error, "could not read which ledgers are doubtful: none is deleted until the next start");
            return;
        }
    };
    let mut missing = BTreeSet::new();
    loop {
        node.set_doubtful(doubtful.ledgers().clone());
        tokio::time::sleep(interval).await;
        round(&node, &metadata, &witness, &mut doubtful, &mut missing).await;
    }
}

/// Deletes what is missing and was missing in the round before.
async fn round(
    node: &StorageNode,
    metadata: &Metadata,
    witness: &MetadataWitness,
    doubtful: &mut Noted,
    missing: &mut BTreeSet<u64>,
) {
    match look(node, metadata, witness, doubtful).await {
        Ok(Look { missing: found, free_gaps }) => {
            for (directory, gaps) in node.log.all().iter().zip(free_gaps) {
                directory.log.fill_deleted_gaps(&gaps);
            }
            let gone: Vec<u64> = found.intersection(missing).copied().collect();
            *missing = found;
            if gone.is_empty() {
                return;
            }
            tracing::info!(ledgers = gone.len(), "deleting ledgers that are in no metadata");
            if let Err(error) = node.delete_ledgers(gone).await {
                tracing::warn!(%error, "could not delete ledgers");
            }
        }
        Err(error) => {
            missing.clear();
            tracing::warn!(%error, "could not find out which ledgers are garbage");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum GarbageError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Witness(#[from] WitnessError),
    #[error("could not note which ledgers are doubtful: {0}")]
    Note(#[from] StateFileError),
}

/// What metadata do not have, and may be deleted if that stays so.
#[derive(Default)]
struct Look {
    /// Of the ledgers that are here.
    missing: BTreeSet<u64>,
    /// Of each directory, stretches between deleted ledgers that no ledger is in.
    free_gaps: Vec<Vec<(u64, u64)>>,
}

async fn look(
    node: &StorageNode,
    metadata: &Metadata,
    witness: &MetadataWitness,
    doubtful: &mut Noted,
) -> Result<Look, GarbageError> {
    let mut missing: BTreeSet<u64> = node.log.ledgers().into_iter().collect();
    let mut gaps: Vec<Gaps> = node.log.all().iter().map(|directory| Gaps::new(directory.log.deleted_gaps())).collect();
    let gaps_first = gaps.iter().filter_map(|gaps| gaps.unseen.front()).map(|(first, _)| *first);
    let Some(first) = missing.first().copied().into_iter().chain(gaps_first).min() else { return Ok(Look::default()) };
    let gaps_last = gaps.iter().filter_map(|gaps| gaps.unseen.back()).map(|(_, last)| *last);
    let last = missing.last().copied().into_iter().chain(gaps_last).max().unwrap_or(first);
    let mut next = first;
    loop {
        let page = metadata.list_ledgers(next, 1000).await?;
        for ledger in &page {
            missing.remove(ledger);
            gaps.iter_mut().for_each(|gaps| gaps.see(*ledger));
        }
        match page.last() {
            Some(&end) if end < last => next = end + 1,
            _ => break,
        }
    }
    doubtful.keep(&missing)?;
    let free_gaps: Vec<Vec<(u64, u64)>> = gaps.into_iter().map(Gaps::free).collect();
    let has_found = !missing.is_empty() || free_gaps.iter().any(|gaps| !gaps.is_empty());
    // After the list was read, so that it was none of metadata that were restored meanwhile.
    let are_old = async || -> Result<bool, GarbageError> {
        let is_restored = witness.look(metadata).await? == Standing::Restored;
        Ok(is_restored || metadata.ledger_ids_end().await? <= last)
    };
    if has_found && are_old().await? {
        tracing::error!(last, "metadata are older than what is stored here: no ledger is deleted");
        doubtful.note(&missing)?;
        return Ok(Look::default());
    }
    // What was lost in a restore may have to come here yet.
    let free_gaps = if doubtful.ledgers().is_empty() { free_gaps } else { Vec::new() };
    missing.retain(|ledger| !doubtful.ledgers().contains(ledger));
    Ok(Look { missing, free_gaps })
}

/// Stretches of ids, in order, and which of them no ledger of the metadata is in.
struct Gaps {
    unseen: VecDeque<(u64, u64)>,
    free: Vec<(u64, u64)>,
}

impl Gaps {
    fn new(gaps: Vec<(u64, u64)>) -> Self {
        Self { unseen: gaps.into(), free: Vec::new() }
    }

    /// Metadata have this ledger, and none between it and the one before.
    fn see(&mut self, ledger: u64) {
        while let Some((first, last)) = self.unseen.pop_front_if(|(first, _)| *first <= ledger) {
            if last < ledger {
                self.free.push((first, last));
            }
        }
    }

    /// Metadata have no more.
    fn free(mut self) -> Vec<(u64, u64)> {
        self.free.extend(self.unseen);
        self.free
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use geminga_log::{Log, LogOptions};
    use geminga_metadata::MemoryStore;
    use geminga_wire_bookkeeper::{Digest, DigestKind};

    use super::*;
    use crate::directories::{Directories, Directory};
    use crate::node::NodeOptions;

    #[tokio::test]
    async fn a_ledger_that_is_missing_once_is_kept_and_one_that_is_missing_again_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(&path.join("log"), options).expect("it opens");
        let directories = Directories::new(vec![Directory { path, log }], 0).expect("there is one");
        let node = StorageNode::new(directories, NodeOptions::new(64 << 20));
        let metadata = Metadata::new(Arc::new(MemoryStore::new()));
        metadata.raise_ledger_ids(100).await.expect("raised");
        for ledger in [5, 6] {
            metadata.put_ledger(ledger, &"record", None).await.expect("written");
            let head = Digest::new(ledger as i64, DigestKind::Crc32c, b"").entry_head(0, -1, 0, &[b"content"]);
            let body = Bytes::from([&head[..], b"content"].concat());
            node.write_copy(ledger, 0, body).await.expect("written");
        }
        let witness = MetadataWitness::open("n", node.directories()).expect("no file yet");
        let mut doubtful = Noted::read(DOUBTFUL, Vec::new()).expect("no file yet");
        let mut missing = BTreeSet::new();
        // 5 is missing in every other round, 6 from the second one on.
        for (number, expected) in [vec![5, 6], vec![5, 6], vec![5], vec![5], vec![5]].into_iter().enumerate() {
            if number % 2 == 0 {
                let version = metadata.get_ledger::<String>(5).await.expect("read").map(|found| found.version);
                metadata.put_ledger(5, &"record", version).await.expect("written");
            } else {
                metadata.delete_ledger(5).await.expect("deleted");
            }
            if number == 1 {
                metadata.delete_ledger(6).await.expect("deleted");
            }
            round(&node, &metadata, &witness, &mut doubtful, &mut missing).await;
            assert_eq!(node.log.ledgers(), expected, "round {number}");
        }
        metadata.delete_ledger(5).await.expect("deleted");
        round(&node, &metadata, &witness, &mut doubtful, &mut missing).await;
        assert_eq!(node.log.ledgers(), [5]);
        round(&node, &metadata, &witness, &mut doubtful, &mut missing).await;
        assert!(node.log.ledgers().is_empty());
        node.close();
    }

    #[test]
    fn a_gap_with_a_ledger_is_not_free() {
        let gaps = vec![(1, 4), (8, 8), (10, 20), (30, 40)];
        let free = |ledgers: &[u64]| {
            let mut gaps = Gaps::new(gaps.clone());
            ledgers.iter().for_each(|ledger| gaps.see(*ledger));
            gaps.free()
        };
        assert_eq!(free(&[]), gaps);
        assert_eq!(free(&[0, 5, 9, 21, 29, 41]), gaps);
        assert_eq!(free(&[1, 8, 20, 30]), []);
        assert_eq!(free(&[4, 9, 15, 16, 99]), [(8, 8), (30, 40)]);
    }
}
