//! Reading entries. Nothing here changes the log; reads run in the callers' threads, beside the writer.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::catalog::{IndexState, Placement};
use super::scan::{Scan, find_record, scan};
use super::{Engine, SharedSegment};
use crate::buffer::{READ_BUFFER_BYTES, ReadBuffers};
use crate::disk::{Disk, DiskFile, read_around};
use crate::error::ReadError;
use crate::format::{BLOCK_BYTES, RECORD_HEADER_BYTES, Table};
use crate::index::cache::KnownRuns;
use crate::index::footer::decode_section;
use crate::index::{Run, Runs};
use crate::replica::{ExplicitLac, MasterKey};

/// Runs are read together up to this size.
const READ_BYTES: u64 = 4 << 20;
/// From this size on, the page cache costs more than it saves.
const LARGE_BYTES: usize = 256 << 10;
/// A gap between two runs that is cheaper to read than to skip.
const GAP_BYTES: u64 = 64 << 10;
/// How many runs of a segment that is being written are copied for one read.
const RUNS_COPIED: usize = 64;

/// A part of a segment that holds the entry asked for, in its first run, and maybe its successors.
pub(super) struct Stretch<F> {
    pub segment: SharedSegment<F>,
    pub runs: Vec<Run>,
}

/// What a read has found so far.
#[derive(Default)]
pub(super) struct Found {
    pub entries: Vec<(u64, Bytes)>,
    pub bytes: usize,
}

impl<D: Disk> Engine<D> {
    pub fn read(&self, ledger: u64, entry: u64) -> Result<Bytes, ReadError> {
        let mut entries = self.read_range(ledger, entry, entry, 1)?;
        entries.pop().map(|(_, bytes)| bytes).ok_or(ReadError::NoSuchEntry { ledger, entry })
    }

    /// Entries from `first` on, in order: up to `last`, to the end of the ledger, to the first that is missing or cannot be
    /// read, or until there are `max_bytes` of them. At least one; if `first` cannot be had, the error says why.
    pub fn read_range(
        &self,
        ledger: u64,
        first: u64,
        last: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, ReadError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut found = Found::default();
        let mut next = first;
        let last = last.min(self.last_readable(ledger, first)?);
        while next <= last && (found.entries.is_empty() || found.bytes < max_bytes) {
            let read = self.locate(ledger, next, max_bytes.saturating_sub(found.bytes)).and_then(|stretch| {
                read_stretch(&stretch, ledger, next, last, max_bytes, &self.read_buffers, &mut found)
            });
            match read {
                Ok(()) => next = found.entries.last().map_or(next, |(entry, _)| entry + 1),
                // It may have been repaired, or written twice.
                Err(error @ ReadError::Corrupt { .. }) if found.entries.is_empty() => {
                    let copy = self.intact_copy(ledger, next).ok_or(error)?;
                    found.bytes += copy.len();
                    found.entries.push((next, copy));
                    next += 1;
                }
                Err(error) if found.entries.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(found.entries)
    }

    /// How often entries were read since the log was opened.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// The last entry that is durable, `None` for a ledger without one.
    pub fn last_entry(&self, ledger: u64) -> Result<Option<u64>, ReadError> {
        let catalog = self.catalog.read();
        if catalog.last_is_uncertain(ledger) && !catalog.is_deleted(ledger) {
            let detail = "damage to the log leaves open what its last entry is".to_owned();
            return Err(ReadError::Corrupt { ledger, entry: None, detail });
        }
        Ok(catalog.ledgers.get(&ledger).ok_or(ReadError::NoSuchLedger { ledger })?.last())
    }

    /// Whether anything durable is known of the ledger, a deletion apart.
    pub fn knows(&self, ledger: u64) -> bool {
        self.catalog.read().ledgers.contains_key(&ledger)
    }

    /// Whether it is certain that there was a ledger of this id, or could have been, and will not be again.
    pub fn has_deleted(&self, ledger: u64) -> bool {
        self.catalog.read().is_deleted(ledger)
    }

    /// What else there is of a replica: whether it is fenced, and its explicit last add confirmed. Both `None`s mean that
    /// nothing is known of it.
    pub fn replica(&self, ledger: u64) -> Option<(bool, Option<ExplicitLac>)> {
        let catalog = self.catalog.read();
        let known = catalog.ledgers.get(&ledger)?;
        Some((known.fence.is_some(), known.explicit_lac.as_deref().copied()))
    }

    /// The master key of a replica, if it is known.
    pub fn key(&self, ledger: u64) -> Option<MasterKey> {
        self.catalog.read().ledgers.get(&ledger)?.key
    }

    /// The entries that there are of a ledger, as stretches of a first entry and a number of entries, in order.
    pub fn stretches(&self, ledger: u64) -> Result<Vec<(u64, u64)>, ReadError> {
        let (mut runs, sealed) = {
            let catalog = self.catalog.read();
            let Some(known) = catalog.ledgers.get(&ledger) else {
                let unknown = catalog.damaged && !catalog.is_deleted(ledger);
                return Err(if unknown { hidden(ledger, None) } else { ReadError::NoSuchLedger { ledger } });
            };
            let (mut runs, mut sealed): (Vec<Run>, Vec<_>) = (Vec::new(), Vec::new());
            for place in known.placements.iter().filter(|place| place.first <= place.last) {
                let holder = &catalog.segments[&place.segment];
                match &holder.index {
                    IndexState::Open(index) => {
                        runs.extend(index.get(ledger).into_iter().flat_map(|content| content.runs.as_slice()));
                    }
                    IndexState::Sealed { .. } => sealed.push((holder.segment.clone(), holder.data_end, *place)),
                }
            }
            (runs, sealed)
        };
        for (segment, data_end, place) in sealed {
            runs.extend(self.sealed_runs(&segment, data_end, ledger, &place)?.as_slice());
        }
        runs.sort_unstable_by_key(|run| run.first);
        let mut stretches: Vec<(u64, u64)> = Vec::new();
        for run in runs {
            match stretches.last_mut() {
                Some((first, count)) if run.first <= *first + *count => *count = (*count).max(run.end() - *first),
                _ => stretches.push((run.first, u64::from(run.count))),
            }
        }
        Ok(stretches)
    }

    /// Bytes that the ledger takes on disk; 0 if it does not exist.
    pub fn ledger_bytes(&self, ledger: u64) -> u64 {
        self.catalog
            .read()
            .ledgers
            .get(&ledger)
            .map_or(0, |known| known.placements.iter().map(|place| place.bytes).sum())
    }

    fn last_readable(&self, ledger: u64, first: u64) -> Result<u64, ReadError> {
        let catalog = self.catalog.read();
        let uncertain = || hidden(ledger, Some(first));
        let Some(known) = catalog.ledgers.get(&ledger) else {
            let gone = catalog.is_deleted(ledger);
            return Err(if catalog.damaged && !gone { uncertain() } else { ReadError::NoSuchLedger { ledger } });
        };
        match known.last() {
            Some(last) if first <= last => Ok(last),
            _ if catalog.last_is_uncertain(ledger) => Err(uncertain()),
            _ => Err(ReadError::NoSuchEntry { ledger, entry: first }),
        }
    }

    fn locate(&self, ledger: u64, entry: u64, max_bytes: usize) -> Result<Stretch<D::File>, ReadError> {
        let candidates = {
            let catalog = self.catalog.read();
            let known = catalog.ledgers.get(&ledger).ok_or(ReadError::NoSuchLedger { ledger })?;
            let mut candidates: Vec<(SharedSegment<D::File>, u64, Placement)> = Vec::new();
            // The newest first; almost always there is one.
            for place in known.placements.iter().rev().filter(|place| (place.first..=place.last).contains(&entry)) {
                let holder = &catalog.segments[&place.segment];
                if let IndexState::Open(index) = &holder.index {
                    if let Some(runs) = index.get(ledger).and_then(|content| content.runs.from(entry)) {
                        let runs = runs[..runs.len().min(RUNS_COPIED)].to_vec();
                        return Ok(Stretch { segment: holder.segment.clone(), runs });
                    }
                } else {
                    candidates.push((holder.segment.clone(), holder.data_end, *place));
                }
            }
            candidates
        };
        let mut may_have = None;
        for (segment, data_end, place) in candidates {
            let known = self.known_runs(&segment, data_end, ledger, &place)?;
            if let Some(runs) = known.runs.from(entry) {
                let wanted = (max_bytes as u64).div_ceil(16 << 10).clamp(1, 256) as usize;
                return Ok(Stretch { segment, runs: runs[..runs.len().min(wanted)].to_vec() });
            }
            may_have = may_have.or((!known.are_all).then_some(segment.id));
        }
        if let Some(segment) = may_have {
            return Err(index_is_damaged(segment, ledger, Some(entry)));
        }
        if self.catalog.read().damaged {
            return Err(hidden(ledger, Some(entry)));
        }
        Err(ReadError::NoSuchEntry { ledger, entry })
    }

    /// All runs of the ledger in a sealed segment.
    pub(super) fn sealed_runs(
        &self,
        segment: &SharedSegment<D::File>,
        data_end: u64,
        ledger: u64,
        place: &Placement,
    ) -> Result<Arc<Runs>, ReadError> {
        let known = self.known_runs(segment, data_end, ledger, place)?;
        if known.are_all { Ok(known.runs) } else { Err(index_is_damaged(segment.id, ledger, None)) }
    }

    /// From the cache, the segment's footer, or, if that is damaged, from the records themselves.
    pub(super) fn known_runs(
        &self,
        segment: &SharedSegment<D::File>,
        data_end: u64,
        ledger: u64,
        place: &Placement,
    ) -> Result<KnownRuns, ReadError> {
        let key = (segment.id, ledger);
        if let Some(known) = self.cache.lock().get(key) {
            return Ok(known);
        }
        let mut section = vec![0; place.section_bytes as usize];
        let read = |buffer: &mut [u8], offset| segment.file.read_at(buffer, offset);
        let count = read_around(&mut section, u64::from(place.section_at), read).map_err(io_error)?;
        let (runs, are_all) = match decode_section(&section[..count]) {
            Some(runs) => (runs, true),
            None => {
                tracing::error!(segment = segment.id, ledger, "the index in a segment is damaged, reading its records");
                let Scan { index, holes, .. } = scan(&segment.file, segment.id, Some(data_end)).map_err(io_error)?;
                (index.get(ledger).map(|content| content.runs.clone()).unwrap_or_default(), holes.is_empty())
            }
        };
        let known = KnownRuns { runs: Arc::new(runs), are_all };
        self.cache.lock().put(key, known.clone());
        Ok(known)
    }
}

fn index_is_damaged(segment: u32, ledger: u64, entry: Option<u64>) -> ReadError {
    let detail = format!("index and records of segment {segment} are damaged");
    ReadError::Corrupt { ledger, entry, detail }
}

fn hidden(ledger: u64, entry: Option<u64>) -> ReadError {
    let detail = "it is not in the index, and damage to the log may hide it".to_owned();
    ReadError::Corrupt { ledger, entry, detail }
}

fn io_error(error: std::io::Error) -> ReadError {
    ReadError::Io(error.to_string())
}

/// Reads as many of the runs as continue each other and lie close together, in one piece.
pub(super) fn read_stretch<F: DiskFile>(
    stretch: &Stretch<F>,
    ledger: u64,
    mut next: u64,
    last: u64,
    max_bytes: usize,
    buffers: &ReadBuffers,
    into: &mut Found,
) -> Result<(), ReadError> {
    let first = stretch.runs[0];
    let wanted = (max_bytes.saturating_sub(into.bytes) as u64).clamp(1, READ_BYTES);
    let mut joined = 1;
    let mut end = first.span_end();
    for (before, run) in stretch.runs.iter().zip(&stretch.runs[1..]) {
        let fits = u64::from(run.offset) >= end
            && u64::from(run.offset) - end <= GAP_BYTES
            && run.span_end() - u64::from(first.offset) <= READ_BYTES;
        if run.first != before.end() || run.first > last || !fits || end - u64::from(first.offset) >= wanted {
            break;
        }
        joined += 1;
        end = run.span_end();
    }
    let buffer = read_piece(&stretch.segment.file, u64::from(first.offset)..end, buffers).map_err(io_error)?;
    let mut found = Vec::new();
    let mut result = Ok(());
    for run in &stretch.runs[..joined] {
        let walk = Walk { buffer: &buffer, base: u64::from(first.offset), segment: stretch.segment.id, ledger };
        result = walk.run(run, &mut next, last, max_bytes, &mut into.bytes, &mut found);
        if result.is_err() || next > last || into.bytes >= max_bytes {
            break;
        }
    }
    if result.is_err() && found.is_empty() {
        return result;
    }
    // Do not let a few small entries hold a large buffer.
    let useful: usize = found.iter().map(|(_, entry)| entry.len()).sum();
    if useful * 2 < buffer.len() {
        found.iter_mut().for_each(|(_, entry)| *entry = Bytes::copy_from_slice(entry));
    }
    into.entries.append(&mut found);
    Ok(())
}

/// A part of a file, or what there is of it. Large parts bypass the page cache, into memory that is used again.
fn read_piece<F: DiskFile>(file: &F, range: Range<u64>, buffers: &ReadBuffers) -> io::Result<Bytes> {
    let (block, length) = (BLOCK_BYTES as u64, (range.end - range.start) as usize);
    let from = range.start / block * block;
    let whole = (range.end.next_multiple_of(block) - from) as usize;
    if length < LARGE_BYTES || whole > READ_BUFFER_BYTES {
        let mut buffer = vec![0; length];
        let count = read_around(&mut buffer, range.start, |piece, offset| file.read_at(piece, offset))?;
        buffer.truncate(count);
        return Ok(Bytes::from(buffer));
    }
    let mut buffer = buffers.take(whole);
    let read = |piece: &mut [u8], offset| file.read_blocks_at(piece, offset);
    let count = read_around(&mut buffer.as_mut_slice()[..whole], from, read)?;
    let start = (range.start - from) as usize;
    Ok(buffer.freeze(start.min(count)..(start + length).min(count)))
}

/// Walks the records of a piece of a segment.
pub(super) struct Walk<'b> {
    pub buffer: &'b Bytes,
    /// Where in the segment the buffer begins.
    pub base: u64,
    pub segment: u32,
    pub ledger: u64,
}

impl Walk<'_> {
    /// Takes entries of the run from `next` on. One that is damaged may come again later in the run.
    pub fn run(
        &self,
        run: &Run,
        next: &mut u64,
        last: u64,
        max_bytes: usize,
        bytes: &mut usize,
        found: &mut Vec<(u64, Bytes)>,
    ) -> Result<(), ReadError> {
        let end = ((run.span_end() - self.base) as usize).min(self.buffer.len());
        let mut at = (u64::from(run.offset) - self.base) as usize;
        let mut missing = "its record is unreadable";
        let is_full = |bytes: usize, found: &Vec<_>| bytes >= max_bytes && !found.is_empty();
        while *next < run.end() && *next <= last && !is_full(*bytes, found) {
            let record = find_record(&self.buffer[at.min(end)..end], self.segment, self.base + at as u64);
            let Some((skipped, header)) = record else { return Err(self.corrupt(*next, missing)) };
            let body_at = at + skipped + RECORD_HEADER_BYTES;
            at += skipped + header.record_bytes() as usize;
            if header.ledger != self.ledger || !header.holds_entries() || *header.entries().end() < *next {
                continue;
            }
            if header.entry > *next {
                return Err(self.corrupt(*next, missing));
            }
            let body = self.buffer.get(body_at..body_at + header.body_bytes as usize).unwrap_or_default();
            let Some(table) = Table::of(&header, body) else { continue };
            for slot in table.slots().skip((*next - header.entry) as usize) {
                if *next > last || is_full(*bytes, found) {
                    break;
                }
                if !slot.is_intact(body) {
                    missing = "its checksum is wrong";
                    break;
                }
                *bytes += slot.range.len();
                found.push((*next, self.buffer.slice(body_at + slot.range.start..body_at + slot.range.end)));
                *next += 1;
            }
        }
        Ok(())
    }

    fn corrupt(&self, entry: u64, what: &str) -> ReadError {
        let detail = format!("{what}, in segment {}", self.segment);
        ReadError::Corrupt { ledger: self.ledger, entry: Some(entry), detail }
    }
}
