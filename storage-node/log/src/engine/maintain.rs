//! What keeps the log in shape beside the writing: preparing and sealing segments, reclaiming them, watching free space.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, RwLockReadGuard};
use rustc_hash::FxHashSet;

use super::batch::{Done, Request};
use super::catalog::{Catalog, IndexState, SegmentEntry};
use super::commit::Prepared;
use super::compact::write_in_steps;
use super::recovery::read_directory;
use super::{Engine, LogStats, Segment, SharedSegment, segment_name, spare_name};
use crate::buffer::AlignedBuffer;
use crate::disk::{Disk, DiskFile, Space};
use crate::format::{BLOCK_BYTES, DATA_AT, ManifestLine, SEAL_AT, Seal, SegmentHeader, SegmentKind};
use crate::index::Control;
use crate::index::footer::{self, Directory, Row};
use crate::options::LogOptions;
use crate::planted::{Bug, is_planted};

/// Ledgers that are looked at while commits wait.
const LEDGERS_TOGETHER: usize = 4096;
/// Files of reclaimed segments that are kept to be used again.
const SPARES_KEPT: usize = 2;
/// A piece of the files beyond that, and as many more as there are so many of them.
const THINNING_BYTES: u64 = 2 << 20;
const SPARES_THINNED: usize = 64;
/// So many times that where space is scarce.
const THINNING_WHEN_SCARCE: usize = 8;

/// Segments between two states.
pub(super) struct Pending<F> {
    /// A compacted segment, complete on disk, that waits for its manifest, with its rows.
    pub adopting: Mutex<Option<(SegmentEntry<F>, Vec<Row>)>>,
    /// Rows of the segments that a housekeeping commit is about to drop.
    pub dropping: Mutex<Vec<(u32, Vec<Row>)>>,
    /// Segments that are no longer part of the log, and whose files can go.
    pub dropped: Mutex<Vec<(SharedSegment<F>, Vec<Row>)>>,
    /// Segments that were found damaged when they were to be compacted or dropped.
    pub unreadable: Mutex<FxHashSet<u32>>,
    /// Segments with damage that harms no entry any more: what is live in them is to be moved.
    pub damaged: Mutex<FxHashSet<u32>>,
    /// Segments that could not be sealed; left alone until [`Engine::try_again`].
    pub unsealed: Mutex<FxHashSet<u32>>,
    /// Of [`Pending::dropped`], those whose files could not be removed; the same.
    pub unremoved: Mutex<Vec<(SharedSegment<F>, Vec<Row>)>>,
    /// A spare file that goes piece by piece.
    pub leaving: Mutex<Option<Leaving<F>>>,
}

pub(super) struct Leaving<F> {
    name: String,
    file: F,
    bytes_left: u64,
}

impl<F> Default for Pending<F> {
    fn default() -> Self {
        Self {
            adopting: Mutex::default(),
            dropping: Mutex::default(),
            dropped: Mutex::default(),
            unreadable: Mutex::default(),
            damaged: Mutex::default(),
            unsealed: Mutex::default(),
            unremoved: Mutex::default(),
            leaving: Mutex::default(),
        }
    }
}

impl<D: Disk> Engine<D> {
    /// A segment file with a header, space set aside for it and a durable name; and up to where it was written before.
    pub(super) fn create_segment(
        &self,
        kind: SegmentKind,
        id: u32,
        bytes: u64,
    ) -> io::Result<(SharedSegment<D::File>, u64)> {
        let name = segment_name(id);
        let spare = self.spares.lock().pop();
        let created = (|| {
            let file = match &spare {
                Some(spare) => {
                    self.disk.rename(spare, &name)?;
                    self.disk.open(&name)?
                }
                None => self.disk.create(&name)?,
            };
            // A recycled file was written before, unless it was on its way out; a new one has unwritten extents.
            let written_to = file.length()?.max(DATA_AT);
            file.allocate(bytes)?;
            let mut head = AlignedBuffer::with_capacity(DATA_AT as usize);
            head.extend(&SegmentHeader { segment: id, kind }.encode());
            head.extend_zeros(DATA_AT as usize - head.len());
            file.write_at(head.as_slice(), 0)?;
            file.sync_data()?;
            if spare.is_none() || !is_planted(Bug::RenameWithoutSync) {
                self.disk.sync_folder()?;
            }
            Ok((Arc::new(Segment { id, kind, file }), written_to))
        })();
        if created.is_err() {
            // It would only be in the way; recovery removes what is left of it.
            let _ = self.disk.remove(&name);
        }
        created
    }

    /// Has the next segment ready before it is needed.
    pub fn prepare_next(&self) -> io::Result<()> {
        let bytes = self.options.segment_bytes;
        if self.writer.lock().prepared.is_some() || self.disk.space()?.free_bytes < bytes + self.options.reserve_bytes {
            return Ok(());
        }
        let id = {
            let mut writer = self.writer.lock();
            if writer.prepared.is_some() || writer.read_only.is_some() {
                return Ok(());
            }
            writer.take_segment_id()
        };
        let (segment, written_to) = self.create_segment(SegmentKind::Log, id, bytes)?;
        let zeroed_to = written_to.min(bytes);
        let mut writer = self.writer.lock();
        let is_newest = writer.active.as_ref().is_none_or(|active| active.segment.id < id);
        if writer.prepared.is_none() && is_newest {
            writer.prepared = Some(Prepared { segment, allocated: bytes, zeroed_to });
            return Ok(());
        }
        drop(writer);
        // The writer could not wait and went on in a newer one.
        self.disk.remove(&segment_name(id))
    }

    /// Writes the index of each segment that takes no more commits into it.
    ///
    /// # Errors
    /// That of the first segment that could not be sealed. The others are, and it is left alone until [`Engine::try_again`].
    pub fn seal_retired(&self) -> io::Result<()> {
        let retired: Vec<u32> = {
            let catalog = self.catalog.read();
            let failed = self.pending.unsealed.lock();
            let unsealed =
                catalog.segments.values().filter(|entry| !entry.active && matches!(entry.index, IndexState::Open(_)));
            unsealed.map(|entry| entry.segment.id).filter(|id| !failed.contains(id)).collect()
        };
        let mut result = Ok(());
        for id in retired {
            if let Err(error) = self.seal(id) {
                self.pending.unsealed.lock().insert(id);
                result = result.and(Err(error));
            }
        }
        result
    }

    fn seal(&self, id: u32) -> io::Result<()> {
        let (segment, data_end, footer) = {
            let catalog = self.catalog.read();
            let entry = &catalog.segments[&id];
            let IndexState::Open(index) = &entry.index else { return Ok(()) };
            let at = footer_at(entry.data_end);
            let footer = footer::build(index, at, entry.manifest_at, &entry.holes);
            (entry.segment.clone(), entry.data_end, footer)
        };
        let state = write_footer(&segment, data_end, &footer, &self.options)?;
        self.catalog.write().seal(id, &footer.directory, state);
        Ok(())
    }

    /// What could not be sealed or removed is tried again.
    pub(super) fn reconsider_failed(&self) {
        self.pending.unsealed.lock().clear();
        self.pending.dropped.lock().append(&mut self.pending.unremoved.lock());
    }

    /// Whether only the reserve is left; to be called now and then.
    pub fn check_space(&self) -> u64 {
        match self.disk.space() {
            Ok(space) => {
                // Without a next segment, what is left of this one is for the requests that free space.
                let next = if self.writer.lock().prepared.is_some() { 0 } else { self.options.segment_bytes };
                let full = space.free_bytes <= self.options.reserve_bytes + next;
                if full {
                    self.remove_spares();
                }
                if self.full.swap(full, Ordering::Relaxed) != full {
                    tracing::warn!(
                        full,
                        free_bytes = space.free_bytes,
                        reserve_bytes = self.options.reserve_bytes,
                        "disk space"
                    );
                }
                self.short.store(space.free_bytes < space.total_bytes / 4, Ordering::Relaxed);
                self.scarce.store(space.free_bytes < space.total_bytes / 16, Ordering::Relaxed);
                space.free_bytes
            }
            Err(error) => {
                tracing::warn!(%error, "could not ask for free space");
                0
            }
        }
    }

    /// Frees memory of reads that are over.
    pub fn trim_read_buffers(&self) {
        self.read_buffers.trim();
    }

    /// Bytes of all commits since the log was opened.
    pub fn committed_bytes(&self) -> u64 {
        self.writer.lock().committed_bytes
    }

    /// Segment and offset up to which everything that was written is durable.
    pub fn durable_to(&self) -> (u32, u64) {
        self.writer.lock().durable
    }

    fn remove_spares(&self) {
        let leaving = self.pending.leaving.lock().take();
        let spares = std::mem::take(&mut *self.spares.lock());
        for spare in leaving.into_iter().map(|leaving| leaving.name).chain(spares) {
            self.remove_spare(&spare);
        }
    }

    fn remove_spare(&self, spare: &str) {
        if let Err(error) = self.disk.remove(spare) {
            tracing::warn!(%error, spare, "could not remove a spare file");
        }
    }

    /// Gives back a piece of the files that are not kept, and says whether there is more.
    ///
    /// A file system that tells the disk at once which blocks are free (ext4 and XFS mounted with `discard`) has all writes
    /// wait for that: 30 ms for a file of 128 MiB on a virtual disk, and more than a second for the 7 GB that one trimmed topic may
    /// free; 1 to 2 ms for a piece. So they go in pieces, more at a time the more there are.
    ///
    /// # Errors
    /// That of the file that was to go; it is removed as a whole instead.
    pub fn thin_spares(&self) -> io::Result<bool> {
        let mut leaving = self.pending.leaving.lock();
        let surplus = || self.spares.lock().len().saturating_sub(SPARES_KEPT);
        let mut pieces = 1 + surplus() / SPARES_THINNED;
        if self.is_space_scarce() {
            pieces *= THINNING_WHEN_SCARCE;
        }
        for _ in 0..pieces {
            let Some(file) = leaving.take().map_or_else(|| self.next_to_leave(), |file| Ok(Some(file)))? else {
                return Ok(false);
            };
            *leaving = self.give_back(file)?;
        }
        Ok(leaving.is_some() || surplus() > 0)
    }

    fn next_to_leave(&self) -> io::Result<Option<Leaving<D::File>>> {
        let name = {
            let mut spares = self.spares.lock();
            match spares.len() > SPARES_KEPT {
                true => spares.remove(0),
                false => return Ok(None),
            }
        };
        let opened = self.disk.open(&name).and_then(|file| Ok((file.length()?, file)));
        let (bytes_left, file) = opened.inspect_err(|_| self.remove_spare(&name))?;
        Ok(Some(Leaving { name, file, bytes_left }))
    }

    /// What is left of the file, if anything is.
    fn give_back(&self, mut leaving: Leaving<D::File>) -> io::Result<Option<Leaving<D::File>>> {
        leaving.bytes_left = leaving.bytes_left.saturating_sub(THINNING_BYTES);
        if leaving.bytes_left == 0 {
            self.remove_spare(&leaving.name);
            return Ok(None);
        }
        // Synced, as a file system with a journal would put the work off and do it all together.
        let given_back = leaving.file.truncate(leaving.bytes_left).and_then(|()| leaving.file.sync_data());
        given_back.inspect_err(|_| self.remove_spare(&leaving.name))?;
        Ok(Some(leaving))
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether less than a quarter of the disk is free, as of the last [`Engine::check_space`].
    pub fn is_short_of_space(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether less than a sixteenth is free, likewise.
    pub fn is_space_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// Whether an empty commit would prove something that is not proven on disk yet.
    pub fn wants_mark(&self) -> bool {
        let writer = self.writer.lock();
        !writer.marked && writer.in_flight == 0 && writer.active.as_ref().is_some_and(|active| !active.failed)
    }

    /// A request that drops segments without a live entry; `None` if there is none. `done` hears when their files can go
    /// ([`Engine::dispose`]). One at a time.
    pub fn plan_reclaim(&self, done: Done) -> io::Result<Option<Request>> {
        let dead: Vec<u32> = {
            let catalog = self.catalog.read();
            let unreadable = self.pending.unreadable.lock();
            let dead = catalog.segments.values().filter(|entry| {
                !entry.active
                    && (entry.live_bytes == 0 || counts_as_garbage(&entry.segment))
                    && entry.holes.is_empty()
                    && matches!(entry.index, IndexState::Sealed { .. })
                    && !unreadable.contains(&entry.segment.id)
            });
            dead.map(|entry| entry.segment.id).collect()
        };
        if dead.is_empty() {
            return Ok(None);
        }
        let mut rows = Vec::new();
        for id in dead {
            // Without its directory it is unknown which fences and tombstones are in it. Others can go.
            let directory = self.directory(id).unwrap_or_else(|error| {
                tracing::error!(segment = id, %error, "the index directory of a segment cannot be read, the segment is kept");
                None
            });
            match directory {
                Some(directory) => rows.push((id, directory.rows)),
                None => {
                    self.pending.unreadable.lock().insert(id);
                }
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        self.save_deleted();
        let controls = self.controls_to_keep(&rows);
        let drop = rows.iter().map(|(id, _)| *id).collect();
        *self.pending.dropping.lock() = rows;
        Ok(Some(Request::Housekeeping { controls, adopt: None, drop, done }))
    }

    /// The directory of a sealed segment, `None` if it is damaged.
    pub(super) fn directory(&self, id: u32) -> io::Result<Option<Directory>> {
        let (segment, seal) = {
            let catalog = self.catalog.read();
            let entry = &catalog.segments[&id];
            let IndexState::Sealed { directory_at, directory_bytes, directory_crc } = entry.index else {
                return Ok(None);
            };
            let seal = Seal { segment: id, data_end: entry.data_end, directory_at, directory_bytes, directory_crc };
            (entry.segment.clone(), seal)
        };
        let directory = read_directory(&segment.file, &seal)?;
        if directory.is_none() {
            tracing::error!(segment = id, "the index directory of a segment is damaged, the segment is kept");
        }
        Ok(directory)
    }

    /// Fences, keys and confirmations of ledgers that exist, and tombstones of ledgers of which other segments still hold something,
    /// or which nothing else says to be deleted.
    pub(super) fn controls_to_keep(&self, dropping: &[(u32, Vec<Row>)]) -> Vec<Control> {
        let mut rows: Vec<&Row> = dropping.iter().flat_map(|(_, rows)| rows).collect();
        rows.sort_by_key(|row| row.ledger);
        let mut controls = Vec::new();
        let mut catalog = self.catalog.read();
        for (number, rows) in rows.chunk_by(|one, other| one.ledger == other.ledger).enumerate() {
            if number % LEDGERS_TOGETHER == 0 {
                // Commits wait for this, and there may be millions.
                RwLockReadGuard::bump(&mut catalog);
            }
            let ledger = rows[0].ledger;
            if let Some(known) = catalog.ledgers.get(&ledger) {
                let here = |has: fn(&Row) -> bool| rows.iter().any(|row| has(row));
                let key = known.key.filter(|_| here(|row| row.key.is_some()));
                let lac = known.explicit_lac.as_ref().filter(|_| here(|row| row.explicit_lac.is_some()));
                let fence = known.fence.filter(|_| here(|row| row.fence.is_some()));
                controls.extend(key.map(|key| Control::Key { ledger, key }));
                controls.extend(lac.map(|lac| Control::ExplicitLac { ledger, lac: **lac }));
                controls.extend(fence.map(|end| Control::Fence { ledger, end }));
            } else if rows.iter().any(|row| row.deleted) {
                let held_here = rows.iter().filter(|row| row.holds_something()).count() as u32;
                let remains = catalog.graves.get(&ledger).map_or(0, |grave| grave.remains);
                if remains > held_here || catalog.deleted.unsaved {
                    controls.push(Control::Tombstone { ledger });
                }
            }
        }
        controls
    }

    pub(super) fn adopted_line(&self, id: u32) -> Option<ManifestLine> {
        let adopting = self.pending.adopting.lock();
        let (entry, _) = adopting.as_ref().filter(|(entry, _)| entry.segment.id == id)?;
        Some(ManifestLine { segment: id, kind: entry.segment.kind, data_end: entry.data_end })
    }

    /// The manifest is durable: the log now consists of other segments.
    pub(super) fn apply_housekeeping(&self, catalog: &mut Catalog<D::File>, adopt: Option<u32>, drop: &[u32]) {
        if adopt.is_some()
            && let Some((entry, rows)) = self.pending.adopting.lock().take()
        {
            let id = entry.segment.id;
            catalog.segments.insert(id, entry);
            catalog.add_rows(id, &rows);
        }
        if drop.is_empty() {
            return;
        }
        let mut dropped = self.pending.dropped.lock();
        for (id, rows) in std::mem::take(&mut *self.pending.dropping.lock()) {
            debug_assert!(drop.contains(&id));
            let Some(entry) = catalog.segments.remove(&id) else { continue };
            for row in &rows {
                if let Some(known) = catalog.ledgers.get_mut(&row.ledger) {
                    known.placements.retain(|place| place.segment != id);
                }
            }
            dropped.push((entry.segment, rows));
        }
    }

    /// Removes the files of dropped segments, or keeps them for new ones.
    ///
    /// # Errors
    /// That of the first file that could not be removed. It is left alone until [`Engine::try_again`].
    pub fn dispose(&self) -> io::Result<usize> {
        let dropped = std::mem::take(&mut *self.pending.dropped.lock());
        if dropped.is_empty() {
            return Ok(0);
        }
        let mut gone = Vec::new();
        let mut result = Ok(());
        for (segment, rows) in dropped {
            // A file that is still read is not reused.
            let in_use = Arc::strong_count(&segment) > 1;
            let removed = if in_use { self.disk.remove(&segment_name(segment.id)) } else { self.discard(segment.id) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.pending.unremoved.lock().push((segment, rows));
                    result = result.and(Err(error));
                }
                // It had gone when the folder could not be synced.
                Ok(()) | Err(_) => gone.push((segment, rows)),
            }
        }
        if let Err(error) = self.disk.sync_folder() {
            self.pending.unremoved.lock().append(&mut gone);
            return result.and(Err(error));
        }
        let count = gone.len();
        let mut catalog = self.catalog.write();
        for row in gone.into_iter().flat_map(|(_, rows)| rows) {
            let Some(grave) = catalog.graves.get_mut(&row.ledger) else { continue };
            grave.remains = grave.remains.saturating_sub(u32::from(row.holds_something()));
            grave.stones = grave.stones.saturating_sub(u32::from(row.deleted));
            if grave.remains == 0 && grave.stones == 0 {
                catalog.graves.remove(&row.ledger);
            }
        }
        result.map(|()| count)
    }

    /// Keeps the file for a new segment, or until [`Engine::thin_spares`], or removes it where it is too small or space is short.
    /// The folder is to be synced by the caller.
    pub(super) fn discard(&self, id: u32) -> io::Result<()> {
        let name = segment_name(id);
        let length = self.disk.open(&name)?.length()?;
        if length < self.options.segment_bytes || self.is_full() {
            return self.disk.remove(&name);
        }
        let spare = spare_name(id);
        self.disk.rename(&name, &spare)?;
        self.spares.lock().push(spare);
        Ok(())
    }

    /// Seals the segment that is being written. To be called when nothing is under way and nothing will come.
    pub fn shut_down(&self) -> io::Result<()> {
        {
            let mut writer = self.writer.lock();
            assert_eq!(writer.in_flight, 0, "the log is shut down when nothing is under way");
            writer.read_only.get_or_insert_with(|| "the log is closed".to_owned());
            if let Some(active) = writer.active.take() {
                self.retire(&mut self.catalog.write(), active.segment);
            }
        }
        self.pending.unsealed.lock().clear();
        self.seal_retired()
    }

    pub fn ledgers(&self) -> Vec<u64> {
        let mut ledgers: Vec<u64> = self.catalog.read().ledgers.keys().copied().collect();
        ledgers.sort_unstable();
        ledgers
    }

    pub fn stats(&self) -> LogStats {
        let space = self.disk.space().unwrap_or(Space { free_bytes: 0, total_bytes: 0 });
        let writer = self.writer.lock();
        let catalog = self.catalog.read();
        let open_bytes = |entry: &SegmentEntry<D::File>| match &entry.index {
            IndexState::Open(index) => index.memory_bytes(),
            IndexState::Sealed { .. } => 0,
        };
        LogStats {
            segments: catalog.segments.len(),
            ledgers: catalog.ledgers.len(),
            deleted_ranges: catalog.deleted.ids.len(),
            data_bytes: catalog.segments.values().map(|entry| entry.data_end - DATA_AT).sum(),
            live_bytes: catalog.segments.values().map(|entry| entry.live_bytes).sum(),
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            index_cache_bytes: self.cache.lock().bytes(),
            open_index_bytes: catalog.segments.values().map(open_bytes).sum(),
            full: self.is_full(),
            read_only: writer.read_only.is_some(),
            holes: usize::from(catalog.deleted.lost)
                + catalog.lost.len()
                + catalog.segments.values().map(|entry| entry.holes.len()).sum::<usize>(),
            commits: writer.commits,
            committed_bytes: writer.committed_bytes,
            queued_bytes: 0,
            failed_commits: writer.failed_commits,
        }
    }
}

/// Only where it is planted.
fn counts_as_garbage<F: DiskFile>(segment: &Segment<F>) -> bool {
    let mut head = [0; BLOCK_BYTES];
    is_planted(Bug::TornHeaderIsGarbage)
        && (segment.file.read_at(&mut head, 0).is_err() || SegmentHeader::decode(&head).is_err())
}

pub(super) fn footer_at(data_end: u64) -> u64 {
    data_end.next_multiple_of(BLOCK_BYTES as u64)
}

/// Sections and directory first, then, when they are durable, the seal that points to them. What the file has beyond is given
/// back if it is much: a server that crashes often would fill the disk with what it has set aside.
pub(super) fn write_footer<F: DiskFile>(
    segment: &Segment<F>,
    data_end: u64,
    footer: &footer::Footer,
    options: &LogOptions,
) -> io::Result<IndexState> {
    let at = footer_at(data_end);
    let mut buffer =
        AlignedBuffer::with_capacity(footer.sections.len() + footer.directory_bytes.len() + 2 * BLOCK_BYTES);
    buffer.extend(&footer.sections);
    buffer.extend_zeros(buffer.len().next_multiple_of(8) - buffer.len());
    let directory_at = at + buffer.len() as u64;
    buffer.extend(&footer.directory_bytes);
    buffer.pad_to_block();
    write_in_steps(&segment.file, buffer.as_slice(), at)?;
    segment.file.sync_data()?;
    let end = at + buffer.len() as u64;
    let seal = Seal {
        segment: segment.id,
        data_end,
        directory_at,
        directory_bytes: footer.directory_bytes.len() as u32,
        directory_crc: crc_fast::crc32_iscsi(&footer.directory_bytes),
    };
    buffer.clear();
    buffer.extend(&seal.encode());
    buffer.pad_to_block();
    segment.file.write_at(buffer.as_slice(), SEAL_AT)?;
    segment.file.sync_data()?;
    if segment.file.length()? >= end + options.segment_bytes / 16
        && let Err(error) = segment.file.truncate(end)
    {
        tracing::warn!(segment = segment.id, %error, "could not give back what a segment does not use");
    }
    Ok(IndexState::Sealed { directory_at, directory_bytes: seal.directory_bytes, directory_crc: seal.directory_crc })
}
