//! A disk in memory that behaves badly on purpose, and the same way for the same seed.
//!
//! It keeps what a reader sees apart from what would survive a crash. [`SimDisk::crash`] decides, sector by sector, which
//! unsynced writes survive, and how many of the changes of names. A failed sync loses some of the writes for good,
//! although readers still see them and a later sync succeeds, as Linux does it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{Disk, DiskFile, Space};
use crate::engine::segment_id;
use crate::format::{BLOCK_BYTES, DATA_AT, SEAL_AT, Seal};

const SECTOR_BYTES: usize = 512;

/// What goes wrong, as probabilities per call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub write_error: f64,
    pub sync_error: f64,
    /// Of a read; the next one of the same place may succeed.
    pub read_error: f64,
}

#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    rng: SmallRng,
    faults: Faults,
    capacity_bytes: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    files: BTreeMap<u64, FileState>,
    next_file: u64,
    /// Calls that change something.
    changes: u64,
    failed_reads: u64,
    crash_at: Option<u64>,
    crashed: bool,
    /// A file that takes no changes.
    refused: Option<String>,
}

enum NameChange {
    Bind(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Default)]
struct FileState {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Offset and bytes of writes that no sync has covered.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// A new length that no sync has covered.
    truncated: Option<usize>,
    /// Blocks that cannot be read until they are written again.
    unreadable: BTreeSet<usize>,
}

impl FileState {
    fn write(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if image.len() < end {
            image.resize(end, 0);
        }
        image[offset..end].copy_from_slice(bytes);
    }

    /// What was cut off is gone for good.
    fn cut(&mut self) {
        if let Some(length) = self.truncated.take() {
            self.durable.truncate(length);
        }
    }

    /// Some writes survive whole, some not at all, some in part.
    fn settle(&mut self, rng: &mut SmallRng) {
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            let survives = match rng.random_range(0..3) {
                0 => 0.0,
                1 => 1.0,
                _ => rng.random::<f64>(),
            };
            for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if rng.random_bool(survives) {
                    Self::write(&mut self.durable, offset + index * SECTOR_BYTES, sector);
                }
            }
        }
        if rng.random_bool(0.5) {
            self.cut();
        }
        self.truncated = None;
    }
}

impl State {
    /// Counts a change; from the crash on, and by chance, it fails. `Ok(true)` means that it is the last one.
    fn change(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("the machine has crashed"));
        }
        self.changes += 1;
        self.crashed = self.crash_at.is_some_and(|at| self.changes >= at);
        Ok(self.crashed)
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|file| self.files[file].seen.len() as u64).sum()
    }

    fn is_refused(&self, name: &str) -> bool {
        self.refused.as_deref() == Some(name)
    }

    fn name_changed(&mut self, change: NameChange) -> io::Result<()> {
        if let NameChange::Remove(name) | NameChange::Rename(name, _) = &change
            && self.is_refused(name)
        {
            return Err(io::Error::other("the file is not changed"));
        }
        let crashed = self.change()?;
        apply(&mut self.names, &change);
        self.name_changes.push(change);
        if crashed { Err(io::Error::other("the machine crashes")) } else { Ok(()) }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Bind(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Remove(name) => drop(names.remove(name)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

impl SimDisk {
    pub fn new(seed: u64, capacity_bytes: u64) -> Self {
        let state = State {
            rng: SmallRng::seed_from_u64(seed),
            faults: Faults::default(),
            capacity_bytes,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            files: BTreeMap::new(),
            next_file: 0,
            changes: 0,
            failed_reads: 0,
            crash_at: None,
            crashed: false,
            refused: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// From now on this file is not written to, renamed or removed, if there is such a name.
    pub fn refuse_changes_of(&self, name: Option<&str>) {
        self.state.lock().refused = name.map(str::to_owned);
    }

    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// The machine will crash in the middle of one of the next changes.
    pub fn crash_after(&self, changes: u64) {
        let mut state = self.state.lock();
        state.crash_at = Some(state.changes + changes.max(1));
    }

    pub fn has_crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// Loses what was not synced, or a part of it, and lets the machine start again.
    pub fn crash(&self) {
        let state = &mut *self.state.lock();
        let surviving = state.rng.random_range(0..=state.name_changes.len());
        for change in state.name_changes.drain(..).take(surviving) {
            apply(&mut state.durable_names, &change);
        }
        state.names = state.durable_names.clone();
        let named: Vec<u64> = state.names.values().copied().collect();
        state.files.retain(|file, _| named.contains(file));
        for file in state.files.values_mut() {
            file.settle(&mut state.rng);
            file.seen = file.durable.clone();
        }
        (state.crashed, state.crash_at) = (false, None);
    }

    /// The process ends, the machine goes on: nothing is lost, and nothing more is durable than before.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        (state.crashed, state.crash_at) = (false, None);
    }

    /// Turns a bit that was durable.
    pub fn flip_bit(&self, name: &str, byte: u64, bit: u8) {
        let mut state = self.state.lock();
        let Some(file) = state.names.get(name).copied() else { return };
        let file = state.files.get_mut(&file).expect("named files exist");
        for image in [&mut file.seen, &mut file.durable] {
            if let Some(byte) = image.get_mut(byte as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// From now on the block with this byte cannot be read, until it is written again.
    pub fn fail_reads(&self, name: &str, byte: u64) {
        let mut state = self.state.lock();
        let Some(file) = state.names.get(name).copied() else { return };
        let file = state.files.get_mut(&file).expect("named files exist");
        file.unreadable.insert(byte as usize / BLOCK_BYTES);
    }

    /// Every block can be read again.
    pub fn mend_reads(&self) {
        self.state.lock().files.values_mut().for_each(|file| file.unreadable.clear());
    }

    /// How many reads have failed so far.
    pub fn failed_reads(&self) -> u64 {
        self.state.lock().failed_reads
    }

    /// A write of the block at `from` went to `to`, in the same file: it is missing where it belongs.
    pub fn misdirect(&self, name: &str, from: u64, to: u64) {
        let mut state = self.state.lock();
        let Some(file) = state.names.get(name).copied() else { return };
        let file = state.files.get_mut(&file).expect("named files exist");
        let block = |at: u64| at as usize / BLOCK_BYTES * BLOCK_BYTES..(at as usize / BLOCK_BYTES + 1) * BLOCK_BYTES;
        for image in [&mut file.seen, &mut file.durable] {
            if image.len() >= block(from.max(to)).end {
                image.copy_within(block(from), block(to).start);
                image[block(from)].fill(0);
            }
        }
    }

    /// Misdirects a write, as where [`SimDisk::flip_proven_bit`] turns a bit, heads of segments apart. Answers the file, and the
    /// bytes at which the two blocks begin.
    pub fn misdirect_proven_write(&self, proven: (u32, u64), rng: &mut SmallRng) -> Option<(String, u64, u64)> {
        let (name, bytes) = self.proven_file(proven, rng)?;
        let block = BLOCK_BYTES as u64;
        let blocks = DATA_AT / block..bytes / block;
        if blocks.end < blocks.start + 2 {
            return None;
        }
        let (from, to) = (rng.random_range(blocks.clone()) * block, rng.random_range(blocks) * block);
        if from == to {
            return None;
        }
        self.misdirect(&name, from, to);
        Some((name, from, to))
    }

    /// Turns a bit at random where the log is known to have been durable: in a segment before the one that `proven` names, or
    /// in so many bytes of that one. Answers the file, the byte and the bit; `None` if no segment holds more than its head there.
    pub fn flip_proven_bit(&self, proven: (u32, u64), rng: &mut SmallRng) -> Option<(String, u64, u8)> {
        let (name, bytes) = self.proven_file(proven, rng)?;
        let (byte, bit) = (rng.random_range(0..bytes), rng.random_range(0..8));
        self.flip_bit(&name, byte, bit);
        Some((name, byte, bit))
    }

    /// Cuts blocks off a sealed segment, as where [`SimDisk::flip_proven_bit`] turns a bit: behind its head, which has the seal.
    /// Answers the file and its new length.
    pub fn cut_proven_file(&self, proven: (u32, u64), rng: &mut SmallRng) -> Option<(String, u64)> {
        let (name, bytes) = self.proven_file(proven, rng)?;
        let mut state = self.state.lock();
        let file = state.names[&name];
        let file = state.files.get_mut(&file).expect("named files exist");
        let id = segment_id(&name).expect("it is one");
        let seal = file.durable.get(SEAL_AT as usize..).map(|bytes| Seal::decode(bytes, id));
        if !matches!(seal, Some(Ok(_))) || !file.unsynced.is_empty() || file.truncated.is_some() {
            return None;
        }
        let block = BLOCK_BYTES as u64;
        let length = rng.random_range(DATA_AT / block..bytes.div_ceil(block)) * block;
        file.seen.truncate(length as usize);
        file.durable.truncate(length as usize);
        Some((name, length))
    }

    /// Turns a bit at random of a whole file that was durable, the zeros at its end apart. Answers the byte and the bit.
    pub fn flip_bit_of(&self, name: &str, rng: &mut SmallRng) -> Option<(u64, u8)> {
        let last = {
            let state = self.state.lock();
            let file = state.names.get(name)?;
            state.files[file].seen.iter().rposition(|byte| *byte != 0)? as u64
        };
        let (byte, bit) = (rng.random_range(0..=last), rng.random_range(0..8));
        self.flip_bit(name, byte, bit);
        Some((byte, bit))
    }

    /// A segment, and how many of its bytes are known to have been durable: more than its head.
    fn proven_file(&self, proven: (u32, u64), rng: &mut SmallRng) -> Option<(String, u64)> {
        let mut candidates: Vec<(String, u64)> = {
            let state = self.state.lock();
            let segments = state.names.iter().filter_map(|(name, file)| Some((name, segment_id(name)?, file)));
            let proven_bytes = segments.filter_map(|(name, id, file)| {
                let length = state.files[file].seen.len() as u64;
                let bytes = match id.cmp(&proven.0) {
                    Ordering::Less => length,
                    Ordering::Equal => length.min(proven.1),
                    Ordering::Greater => 0,
                };
                (bytes > DATA_AT).then(|| (name.clone(), bytes))
            });
            proven_bytes.collect()
        };
        if candidates.is_empty() {
            return None;
        }
        Some(candidates.swap_remove(rng.random_range(0..candidates.len())))
    }

    /// Every file as a reader sees it.
    pub fn contents(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.state.lock();
        state.names.iter().map(|(name, file)| (name.clone(), state.files[file].seen.clone())).collect()
    }

    pub fn file_length(&self, name: &str) -> u64 {
        let state = self.state.lock();
        state.names.get(name).map_or(0, |file| state.files[file].seen.len() as u64)
    }

    fn file(&self, id: u64) -> SimFile {
        SimFile { state: self.state.clone(), id }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.state.lock();
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, FileState::default());
        state.name_changed(NameChange::Bind(name.to_owned(), id))?;
        drop(state);
        Ok(self.file(id))
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let id = self.state.lock().names.get(name).copied();
        id.map(|id| self.file(id)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state.lock().names.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state.lock().name_changed(NameChange::Remove(name.to_owned()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.state.lock().name_changed(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn sync_folder(&self) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if state.change()? {
            return Err(io::Error::other("the machine crashes"));
        }
        for change in state.name_changes.drain(..) {
            apply(&mut state.durable_names, &change);
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state.lock();
        let free_bytes = state.capacity_bytes.saturating_sub(state.used_bytes());
        Ok(Space { free_bytes, total_bytes: state.capacity_bytes.max(64 << 20) })
    }
}

pub struct SimFile {
    state: Arc<Mutex<State>>,
    id: u64,
}

impl SimFile {
    /// Fails if the file could not grow to `length`.
    fn grow(state: &State, file: &FileState, length: usize) -> io::Result<()> {
        let more = length.saturating_sub(file.seen.len()) as u64;
        if more > 0 && state.used_bytes() + more > state.capacity_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.state.lock().files[&self.id].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = &mut *self.state.lock();
        let FileState { seen: bytes, unreadable, .. } = &state.files[&self.id];
        let start = (offset as usize).min(bytes.len());
        let count = buffer.len().min(bytes.len() - start);
        let blocks = start / BLOCK_BYTES..(start + count).div_ceil(BLOCK_BYTES);
        let read_error = state.faults.read_error;
        if count > 0
            && (unreadable.range(blocks).next().is_some() || (read_error > 0.0 && state.rng.random_bool(read_error)))
        {
            state.failed_reads += 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn read_blocks_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096), "large reads are whole blocks");
        assert_eq!(buffer.as_ptr().align_offset(4096), 0, "large reads go to aligned memory");
        self.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let state = &mut *self.state.lock();
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096), "writes are whole blocks");
        let crashed = state.change()?;
        if state.names.iter().any(|(name, file)| *file == self.id && state.is_refused(name)) {
            return Err(io::Error::other("the file is not changed"));
        }
        Self::grow(state, &state.files[&self.id], offset as usize + bytes.len())?;
        let fails = state.rng.random_bool(state.faults.write_error);
        let file = state.files.get_mut(&self.id).expect("files that are open exist");
        file.cut();
        let blocks = offset as usize / BLOCK_BYTES..(offset as usize + bytes.len()) / BLOCK_BYTES;
        file.unreadable.retain(|block| !blocks.contains(block));
        FileState::write(&mut file.seen, offset as usize, bytes);
        file.unsynced.push((offset as usize, bytes.to_vec()));
        match () {
            () if crashed => Err(io::Error::other("the machine crashes")),
            () if fails => Err(io::Error::other("the write fails")),
            () => Ok(()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if state.change()? {
            return Err(io::Error::other("the machine crashes"));
        }
        let file = state.files.get_mut(&self.id).expect("files that are open exist");
        if !file.unsynced.is_empty() && state.rng.random_bool(state.faults.sync_error) {
            file.settle(&mut state.rng);
            return Err(io::Error::other("the sync fails"));
        }
        for (offset, bytes) in file.unsynced.drain(..) {
            FileState::write(&mut file.durable, offset, &bytes);
        }
        file.cut();
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let state = &mut *self.state.lock();
        let crashed = state.change()?;
        Self::grow(state, &state.files[&self.id], bytes as usize)?;
        let file = state.files.get_mut(&self.id).expect("files that are open exist");
        for image in [&mut file.seen, &mut file.durable] {
            if image.len() < bytes as usize {
                image.resize(bytes as usize, 0);
            }
        }
        if crashed { Err(io::Error::other("the machine crashes")) } else { Ok(()) }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let state = &mut *self.state.lock();
        if state.change()? {
            return Err(io::Error::other("the machine crashes"));
        }
        let file = state.files.get_mut(&self.id).expect("files that are open exist");
        file.seen.truncate(bytes as usize);
        file.truncated = Some(bytes as usize);
        Ok(())
    }

    fn overlaps(&self) -> bool {
        true
    }
}
