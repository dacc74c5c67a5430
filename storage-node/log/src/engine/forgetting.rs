//! What is remembered of deleted ledgers when nothing of them is left: that they were deleted.

use std::io;

use super::Engine;
use crate::buffer::AlignedBuffer;
use crate::deleted;
use crate::disk::{Disk, DiskFile};
use crate::planted::{Bug, is_planted};

impl<D: Disk> Engine<D> {
    /// Writes down which ledgers are deleted, if that has changed, before tombstones are dropped. Where it fails, they are kept.
    pub(super) fn save_deleted(&self) {
        let bytes = {
            let mut catalog = self.catalog.write();
            // What was on the disk is not known, and must not be replaced by less.
            if !catalog.deleted.unsaved || catalog.deleted.lost {
                return;
            }
            catalog.deleted.unsaved = false;
            deleted::encode(&catalog.deleted.ids)
        };
        if let Err(error) = self.write_deleted(&bytes) {
            tracing::warn!(%error, "could not write down which ledgers are deleted; their tombstones are kept");
            self.catalog.write().deleted.unsaved = true;
        }
    }

    fn write_deleted(&self, bytes: &[u8]) -> io::Result<()> {
        let mut buffer = AlignedBuffer::with_capacity(bytes.len());
        buffer.extend(bytes);
        buffer.pad_to_block();
        let file = self.disk.create(deleted::NEW_FILE)?;
        file.write_at(buffer.as_slice(), 0)?;
        file.sync_data()?;
        drop(file);
        self.disk.rename(deleted::NEW_FILE, deleted::FILE)?;
        if is_planted(Bug::RenameWithoutSync) { Ok(()) } else { self.disk.sync_folder() }
    }

    /// Ids between those of deleted ledgers, in order, each with the first and the last of a stretch.
    pub fn deleted_gaps(&self) -> Vec<(u64, u64)> {
        self.catalog.read().deleted.ids.gaps().collect()
    }

    /// Of these ids there never was a ledger here, and never will be: they are remembered like deleted ones, so that ranges join.
    /// Stretches in which there is a replica are left out, and those with one of which the first record is on its way.
    pub fn fill_deleted_gaps(&self, gaps: &[(u64, u64)]) {
        let writer = self.writer.lock();
        let mut catalog = self.catalog.write();
        let mut is_free = vec![true; gaps.len()];
        for ledger in catalog.ledgers.keys().chain(writer.replicas_coming()) {
            let after = gaps.partition_point(|(first, _)| first <= ledger);
            if after > 0 && *ledger <= gaps[after - 1].1 {
                is_free[after - 1] = false;
            }
        }
        for ((first, last), _) in gaps.iter().zip(is_free).filter(|(_, is_free)| *is_free) {
            catalog.deleted.note(*first, *last);
        }
    }
}
