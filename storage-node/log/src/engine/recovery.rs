//! From the files of a folder to an engine that serves.
//!
//! The newest segment that was used has a manifest, which says what the log consists of. Sealed segments give their
//! directories; the others, usually one, are scanned and then sealed, so that what a crash left behind their end can never
//! come back. Only then is anything appended.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::catalog::{Catalog, Deletions, IndexState, SegmentEntry};
use super::commit::Writer;
use super::scan::{Scan, scan};
use super::{Engine, Segment, SharedSegment, segment_id, spare_id};
use crate::buffer::AlignedBuffer;
use crate::deleted;
use crate::disk::{Disk, DiskFile, read_around, read_around_noting};
use crate::error::OpenError;
use crate::format::{
    BLOCK_BYTES, BadBlock, DATA_AT, ManifestLine, RECORD_HEADER_BYTES, RecordHeader, RecordKind, SEAL_AT, Seal,
    SegmentHeader, SegmentKind, VERSION, decode_manifest,
};
use crate::index::OpenIndex;
use crate::index::cache::IndexCache;
use crate::index::footer::{Directory, Row, decode_directory};
use crate::options::LogOptions;
use crate::planted::{Bug, is_planted};

const SEGMENT_BYTES_MIN: u64 = 256 << 10;
/// Places of a segment that are tried when of no segment the head can be read.
const PROBES: u64 = 16;

/// What [`crate::Log::open`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub segments: usize,
    /// Segments whose records had to be read, because they were in use at a crash or their index is damaged.
    pub scanned: usize,
    pub ledgers: usize,
    /// The end of the log was torn by a crash; nobody had been told that it was durable.
    pub torn_tail: bool,
    /// What could not be read though it had been durable. Where it may matter, reads answer "corrupt".
    pub damage: Vec<String>,
}

struct Found<F> {
    segment: SharedSegment<F>,
    seal: Option<Seal>,
    directory: Option<Directory>,
    scan: Option<Scan>,
    has_header: bool,
    /// The disk cannot read the block of the seal: whether there is one is not known.
    seal_is_unreadable: bool,
}

/// A segment that was scanned: how far it was proven durable, and which blocks could not be read.
type Scanned = (u32, u64, BTreeSet<u64>);

impl<D: Disk> Engine<D> {
    pub fn open(disk: D, mut options: LogOptions) -> Result<(Self, RecoveryReport), OpenError> {
        let failed = |action| move |source| OpenError::Io { action, folder: "the log's folder".to_owned(), source };
        let space = disk.space().map_err(failed("asking for free space"))?;
        let block = BLOCK_BYTES as u64;
        options.reserve_bytes = options.reserve_bytes.min(space.total_bytes / 16);
        options.segment_bytes =
            options.segment_bytes.min((space.total_bytes / 32).max(SEGMENT_BYTES_MIN)).next_multiple_of(block);
        let names = disk.list().map_err(failed("listing the files"))?;
        let (found, report) = (BTreeMap::new(), RecoveryReport::default());
        let mut recovery = Recovery { disk: &disk, found, report, reads: false, fails: false };
        for id in names.iter().filter_map(|name| segment_id(name)) {
            recovery.look_at(id)?;
        }
        recovery.check_disk().map_err(failed("reading any segment"))?;
        let deleted = recovery.read_deleted(&names)?;
        let live = recovery.find_manifest().map_err(failed("reading the newest segment"))?;
        let (unused, lost) = recovery.select(live.as_deref());
        recovery.scan_unsealed(live.as_deref()).map_err(failed("reading a segment"))?;
        let Recovery { found, mut report, .. } = recovery;
        // A spare still holds records of the segment that it was, and is valid under no other id: ids are not used again.
        let spare_ids = names.iter().filter_map(|name| spare_id(name));
        let next_segment =
            found.keys().chain(&unused).chain(&lost).copied().chain(spare_ids).max().map_or(1, |id| id + 1);
        let scanned = |(id, found): (&u32, &Found<D::File>)| {
            let scan = found.scan.as_ref()?;
            Some((*id, scan.proven, scan.unreadable.clone()))
        };
        let scanned: Vec<Scanned> = found.iter().filter_map(scanned).collect();
        let mut catalog = build_catalog(found, lost, deleted, &mut report);
        (catalog.opened_at, catalog.only_replicas) = (next_segment, options.only_replicas);
        report.segments = catalog.segments.len();
        report.ledgers = catalog.ledgers.len();
        for damage in &report.damage {
            tracing::error!(damage, "the log is damaged");
        }
        let spares = names.into_iter().filter(|name| spare_id(name).is_some()).collect();
        let engine = Self {
            cache: parking_lot::Mutex::new(IndexCache::new(options.index_memory_bytes)),
            disk,
            options,
            catalog: parking_lot::RwLock::new(catalog),
            writer: parking_lot::Mutex::new(Writer::new(next_segment)),
            spares: parking_lot::Mutex::new(spares),
            zeroed: parking_lot::Condvar::new(),
            full: false.into(),
            short: false.into(),
            scarce: false.into(),
            reads: 0.into(),
            pending: Default::default(),
            read_buffers: Default::default(),
        };
        engine.make_durable(&scanned).map_err(failed("syncing what was recovered"))?;
        // After that, as the manifest that calls them unused must not be lost; before anything is sealed, so that none
        // of them can look newer than what is sealed now.
        for &id in &unused {
            engine.discard(id).map_err(failed("removing an unused segment"))?;
        }
        engine.disk.sync_folder().map_err(failed("syncing the folder"))?;
        if let Err(error) = engine.seal_retired() {
            tracing::warn!(%error, "could not seal a recovered segment, it will be read again at the next start");
        }
        engine.check_space();
        Ok((engine, report))
    }

    /// Where only the process ended, records may be readable that no sync has covered, or that a failed one has lost and
    /// only the page cache still has. Before they are served they are written again, and synced. What cannot be read is left
    /// alone, as some day it may be read.
    fn make_durable(&self, scanned: &[Scanned]) -> io::Result<()> {
        let (catalog, block) = (self.catalog.read(), BLOCK_BYTES as u64);
        for (id, proven, unreadable) in scanned {
            let entry = &catalog.segments[id];
            let file = &entry.segment.file;
            let last_hole = entry.holes.last().filter(|hole| hole.offset + hole.bytes == entry.data_end);
            let end = last_hole.map_or(entry.data_end, |hole| hole.offset);
            let from = proven / block * block;
            let mut buffer = AlignedBuffer::default();
            buffer.extend_zeros(super::maintain::footer_at(end).saturating_sub(from) as usize);
            let (mut lost, read) = (BTreeSet::new(), |piece: &mut [u8], offset| file.read_at(piece, offset));
            let count = read_around_noting(buffer.as_mut_slice(), from, read, |at| {
                lost.insert(at);
            })?;
            if !lost.is_subset(unreadable) {
                return Err(io::Error::other("what was read before cannot be read any more"));
            }
            let is_whole = count == buffer.len();
            let mut begin = from;
            for stop in lost.into_iter().chain([from + count as u64]).filter(|_| is_whole) {
                if begin < stop {
                    file.write_at(&buffer.as_slice()[(begin - from) as usize..(stop - from) as usize], begin)?;
                }
                begin = stop + block;
            }
            file.sync_data()?;
        }
        Ok(())
    }
}

struct Recovery<'d, D: Disk> {
    disk: &'d D,
    found: BTreeMap<u32, Found<D::File>>,
    report: RecoveryReport,
    /// Of the head of some segment the disk has read something, or has not.
    reads: bool,
    fails: bool,
}

impl<D: Disk> Recovery<'_, D> {
    fn look_at(&mut self, id: u32) -> Result<(), OpenError> {
        let name = super::segment_name(id);
        let failed = |action| {
            let folder = name.clone();
            move |source| OpenError::Io { action, folder, source }
        };
        let file = self.disk.open(&name).map_err(failed("opening a segment"))?;
        let mut head = vec![0; DATA_AT as usize];
        let (mut lost, read) = (Vec::new(), |piece: &mut [u8], offset| file.read_at(piece, offset));
        let noting = |at| lost.push(at);
        let count = read_around_noting(&mut head, 0, read, noting).map_err(failed("reading a segment's header"))?;
        head.truncate(count);
        self.reads |= count.div_ceil(BLOCK_BYTES) > lost.len();
        self.fails |= !lost.is_empty();
        let newer = |version| OpenError::NewerFormat { file: name.clone(), version, known: VERSION };
        let header = match SegmentHeader::decode(&head) {
            Ok(header) if header.segment == id => Some(header),
            Err(BadBlock::Newer(version)) => return Err(newer(version)),
            _ => None,
        };
        let seal = match head.get(SEAL_AT as usize..).map(|bytes| Seal::decode(bytes, id)) {
            Some(Ok(seal)) => Some(seal),
            Some(Err(BadBlock::Newer(version))) => return Err(newer(version)),
            _ => None,
        };
        let mut directory = match &seal {
            Some(seal) => read_directory(&file, seal).map_err(failed("reading a segment's index"))?,
            None => None,
        };
        if seal.is_some() && directory.is_none() {
            self.report.damage.push(format!("the index of segment {id} is damaged; its records are read instead"));
        }
        let kind = header.map_or(SegmentKind::Log, |header| header.kind);
        let mut scan = None;
        if let (Some(seal), Some(known)) = (&seal, &directory)
            && (!known.holes.is_empty() || (kind == SegmentKind::Log && known.manifest_at == 0))
        {
            // What the disk could not read then, it may read now.
            let again = self::scan(&file, id, Some(seal.data_end)).map_err(failed("reading a segment"))?;
            if again.holes.is_empty() && (kind == SegmentKind::Compacted || again.knows_manifest()) {
                (directory, scan) = (None, Some(again));
            }
        }
        let segment = std::sync::Arc::new(Segment { id, kind, file });
        let (has_header, seal_is_unreadable) = (header.is_some(), lost.contains(&SEAL_AT));
        self.found.insert(id, Found { segment, seal, directory, scan, has_header, seal_is_unreadable });
        Ok(())
    }

    /// A disk that reads nothing at all is not one with damage: what is on it may be in order.
    fn check_disk(&self) -> io::Result<()> {
        if self.reads || !self.fails {
            return Ok(());
        }
        let mut result = Ok(());
        let mut block = [0; BLOCK_BYTES];
        for file in self.found.values().map(|found| &found.segment.file) {
            let length = file.length()?;
            for probe in 0..PROBES {
                let at = length / PROBES * probe / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
                match file.read_at(&mut block, at) {
                    Ok(count) if count > 0 => return Ok(()),
                    Ok(_) => (),
                    Err(error) => result = Err(error),
                }
            }
        }
        result
    }

    /// Which ledgers were deleted, as far as segments that are gone have said so.
    fn read_deleted(&mut self, names: &[String]) -> Result<Deletions, OpenError> {
        let has = |name: &str| names.iter().any(|known| known == name);
        let failed = |action| move |source| OpenError::Io { action, folder: deleted::FILE.to_owned(), source };
        // It was not finished, and nothing was dropped because of it.
        if has(deleted::NEW_FILE) {
            self.disk.remove(deleted::NEW_FILE).map_err(failed("removing an unfinished file"))?;
        }
        let mut deletions = Deletions::default();
        if !has(deleted::FILE) {
            return Ok(deletions);
        }
        let reading = failed("reading which ledgers were deleted");
        let file = self.disk.open(deleted::FILE).map_err(reading)?;
        let mut bytes = vec![0; file.length().map_err(reading)? as usize];
        let read = |piece: &mut [u8], offset| file.read_at(piece, offset);
        let count = read_around(&mut bytes, 0, read).map_err(reading)?;
        match deleted::decode(&bytes[..count]) {
            Ok(ids) => deletions.ids = ids,
            Err(BadBlock::Newer(version)) => {
                let known = deleted::VERSION;
                return Err(OpenError::NewerFormat { file: deleted::FILE.to_owned(), version, known });
            }
            Err(BadBlock::Damaged) => {
                deletions.lost = true;
                self.report.damage.push("the list of deleted ledgers is damaged".to_owned());
            }
        }
        Ok(deletions)
    }

    /// The list of segments in the newest log segment that was used; `None` if there is no segment, or it is unreadable.
    fn find_manifest(&mut self) -> io::Result<Option<Vec<ManifestLine>>> {
        // Without a header, one that has no manifest may be a compacted one. If so, the next manifest names it.
        let mut doubtful: Option<u32> = None;
        for found in self.found.values_mut().rev().filter(|found| found.segment.kind == SegmentKind::Log) {
            let id = found.segment.id;
            let (lines, data_end) = match &found.directory {
                Some(directory) => {
                    let lines = read_manifest(&found.segment.file, id, directory.manifest_at)?;
                    (lines, found.seal.map_or(DATA_AT, |seal| seal.data_end))
                }
                None => {
                    let result = match found.scan.take() {
                        Some(result) => result,
                        None => scan(&found.segment.file, id, found.seal.map(|seal| seal.data_end))?,
                    };
                    let result = found.scan.insert(result);
                    if !result.is_used() {
                        continue;
                    }
                    let lines = result.manifest.as_ref().filter(|_| result.knows_manifest());
                    (lines.map(|(_, lines)| lines.clone()), result.data_end)
                }
            };
            let names = |lines: &[ManifestLine], id| lines.iter().any(|line| line.segment == id);
            match lines {
                Some(lines) if doubtful.is_none_or(|doubtful| names(&lines, doubtful)) => {
                    return Ok(Some(with_itself(lines, id, data_end)));
                }
                None if !found.has_header && doubtful.is_none() => doubtful = Some(id),
                Some(_) | None => {
                    let id = doubtful.unwrap_or(id);
                    self.report.damage.push(format!("the manifest in segment {id} is damaged"));
                    return Ok(None);
                }
            }
        }
        if let Some(id) = doubtful {
            self.report.damage.push(format!("the manifest in segment {id} is damaged"));
        }
        Ok(None)
    }

    /// Keeps what is part of the log; answers what is not, and what should be there and isn't. Without a manifest,
    /// everything is kept that holds anything.
    fn select(&mut self, live: Option<&[ManifestLine]>) -> (Vec<u32>, Vec<u32>) {
        let is_live = |id: u32, found: &Found<D::File>| match live {
            Some(lines) => lines.iter().any(|line| line.segment == id),
            None => found.directory.is_some() || found.scan.as_ref().is_none_or(Scan::is_used),
        };
        let unused: Vec<u32> =
            self.found.iter().filter(|(id, found)| !is_live(**id, found)).map(|(id, _)| *id).collect();
        unused.iter().for_each(|id| drop(self.found.remove(id)));
        let missing = live.unwrap_or_default().iter().filter(|line| !self.found.contains_key(&line.segment));
        let lost: Vec<u32> = missing.map(|line| line.segment).collect();
        for id in &lost {
            self.report.damage.push(format!("segment {id} is missing"));
        }
        (unused, lost)
    }

    fn scan_unsealed(&mut self, live: Option<&[ManifestLine]>) -> io::Result<()> {
        for (&id, found) in &mut self.found {
            let line = live.unwrap_or_default().iter().find(|line| line.segment == id);
            if let Some(line) = line
                && !found.has_header
            {
                self.report.damage.push(format!("the header of segment {id} is damaged"));
                let file_of = std::sync::Arc::get_mut(&mut found.segment).expect("nobody else has it yet");
                file_of.kind = line.kind;
                // It was taken for a log segment, of which no manifest says where it ends.
                found.scan.take_if(|_| line.kind == SegmentKind::Compacted);
            }
            if found.seal_is_unreadable {
                self.report.damage.push(format!("the disk cannot read whether segment {id} is sealed"));
            }
            if found.directory.is_some() {
                continue;
            }
            if found.scan.is_none() {
                let end = found.seal.map(|seal| seal.data_end).or(line.map(|line| line.data_end));
                found.scan = Some(scan(&found.segment.file, id, end)?);
            }
            let result = found.scan.as_ref().expect("just scanned");
            self.report.scanned += 1;
            self.report.torn_tail |= result.torn;
            let unreadable = result.unreadable.range(..result.data_end).count();
            if unreadable > 0 {
                self.report.damage.push(format!("segment {id}: the disk cannot read {unreadable} blocks"));
            }
            for hole in &result.holes {
                self.report
                    .damage
                    .push(format!("segment {id}: {} bytes at {} are unreadable", hole.bytes, hole.offset));
            }
        }
        Ok(())
    }
}

fn with_itself(mut lines: Vec<ManifestLine>, segment: u32, data_end: u64) -> Vec<ManifestLine> {
    lines.push(ManifestLine { segment, kind: SegmentKind::Log, data_end });
    lines
}

/// `None` if it is damaged.
pub(super) fn read_directory<F: DiskFile>(file: &F, seal: &Seal) -> io::Result<Option<Directory>> {
    let length = file.length()?;
    if u64::from(seal.directory_bytes) > length || seal.data_end > length {
        return Ok(None);
    }
    let mut bytes = vec![0; seal.directory_bytes as usize];
    let count = read_around(&mut bytes, seal.directory_at, |piece, offset| file.read_at(piece, offset))?;
    let fits = crc_fast::crc32_iscsi(&bytes) == seal.directory_crc || is_planted(Bug::IndexUnchecked);
    let intact = count == bytes.len() && fits;
    Ok(intact.then(|| decode_directory(&bytes)).flatten())
}

fn read_manifest<F: DiskFile>(file: &F, segment: u32, at: u64) -> io::Result<Option<Vec<ManifestLine>>> {
    let read = |piece: &mut [u8], offset| file.read_at(piece, offset);
    let mut header = [0; RECORD_HEADER_BYTES];
    read_around(&mut header, at, read)?;
    let Some(header) = RecordHeader::decode(&header, segment, at) else { return Ok(None) };
    if header.kind != RecordKind::Manifest || u64::from(header.body_bytes) > file.length()? {
        return Ok(None);
    }
    let mut body = vec![0; header.body_bytes as usize];
    let count = read_around(&mut body, at + RECORD_HEADER_BYTES as u64, read)?;
    body.truncate(count);
    let intact = header.body_is_intact(&body) || is_planted(Bug::StateUnchecked);
    Ok(intact.then(|| decode_manifest(&body)).flatten())
}

fn build_catalog<F>(
    found: BTreeMap<u32, Found<F>>,
    lost: Vec<u32>,
    deleted: Deletions,
    report: &mut RecoveryReport,
) -> Catalog<F> {
    let mut catalog = Catalog::new();
    catalog.deleted = deleted;
    let mut rows_of: Vec<(u32, Vec<Row>)> = Vec::new();
    for (id, found) in found {
        let (data_end, manifest_at, holes, rows, index) = match (found.seal, found.directory, found.scan) {
            (Some(seal), Some(directory), _) => {
                let index = IndexState::Sealed {
                    directory_at: seal.directory_at,
                    directory_bytes: seal.directory_bytes,
                    directory_crc: seal.directory_crc,
                };
                (seal.data_end, directory.manifest_at, directory.holes, directory.rows, index)
            }
            (_, _, scan) => {
                let scan = scan.unwrap_or_default();
                let rows = rows_of_index(&scan.index);
                let manifest_at = scan.manifest.map_or(0, |(at, _)| at);
                (scan.data_end, manifest_at, scan.holes, rows, IndexState::Open(scan.index))
            }
        };
        if !holes.is_empty() && matches!(index, IndexState::Sealed { .. }) {
            report.damage.push(format!("segment {id} has {} unreadable places", holes.len()));
        }
        let entry =
            SegmentEntry { segment: found.segment, data_end, index, live_bytes: 0, manifest_at, holes, active: false };
        catalog.segments.insert(id, entry);
        rows_of.push((id, rows));
    }
    let rows = rows_of.iter().flat_map(|(_, rows)| rows);
    rows.filter(|row| row.deleted).for_each(|row| catalog.deleted.note(row.ledger, row.ledger));
    for (id, rows) in &rows_of {
        catalog.add_rows(*id, rows);
    }
    catalog.damaged =
        catalog.deleted.lost || !lost.is_empty() || catalog.segments.values().any(|entry| !entry.holes.is_empty());
    catalog.lost = lost;
    catalog
}

fn rows_of_index(index: &OpenIndex) -> Vec<Row> {
    let mut rows: Vec<Row> = index
        .ledgers()
        .iter()
        .map(|(&ledger, content)| Row {
            ledger,
            section_at: 0,
            section_bytes: 0,
            first: content.runs.first().unwrap_or(1),
            last: content.runs.last().unwrap_or(0),
            bytes: content.bytes,
            fence: content.fence,
            deleted: content.deleted,
            key: content.key,
            explicit_lac: content.explicit_lac,
        })
        .collect();
    rows.sort_unstable_by_key(|row| row.ledger);
    rows
}
