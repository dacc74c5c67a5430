//! Reading everything that is stored, to find damage before somebody needs what it has hit.
//!
//! A segment is read from its beginning to its end, past the page cache where the file system can, and every checksum is
//! computed. Where a record is not what it should be, the index says which entries may have suffered; those of which no
//! intact copy is here are reported. What suffers beside entries is of no consequence as long as the log is open: fences, keys
//! and confirmations are in memory and in the segment's index, which is written anew if it is damaged itself.

use std::io;

use super::catalog::{IndexState, Placement};
use super::copies::Window;
use super::recovery::read_directory;
use super::scan::{find_record, scan};
use super::{Engine, Segment, SharedSegment};
use crate::disk::{Disk, DiskFile};
use crate::format::{
    BLOCK_BYTES, DATA_AT, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, RecordKind, SEAL_AT, Seal,
    SegmentHeader, Table,
};
use crate::index::footer::{self, decode_section};
use crate::index::{Run, Runs};

/// How far one look for the next record goes.
const LOOK_BYTES: usize = 256 << 10;
/// Bytes of one step of the pace.
const STEP_BYTES: u64 = 1 << 20;

/// What the scrub of one segment found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub read_bytes: u64,
    /// Places where a record is not what it was, whatever that means for entries.
    pub damaged_places: u64,
    /// Ledger and entry: no copy of these is intact.
    pub damaged_entries: Vec<(u64, u64)>,
    /// The segment's index was damaged, and has been written again.
    pub index_rewritten: bool,
}

/// Something between two intact records.
enum Damage {
    /// The head of the record is intact.
    Entry { ledger: u64, entry: u64 },
    /// Nothing is known of what was there.
    Place { from: u64, to: u64 },
    /// No entry's.
    Other,
}

impl<D: Disk> Engine<D> {
    /// Segments with something that is live, the oldest first. To be scrubbed one after the other.
    pub fn scrub_order(&self) -> Vec<u32> {
        let catalog = self.catalog.read();
        catalog.segments.values().filter(|entry| entry.live_bytes > 0).map(|entry| entry.segment.id).collect()
    }

    /// Scrubs what of a segment is durable. `pace` is called with the bytes of each step and says whether to go on. `None` if
    /// the segment is gone, or the scrub was given up.
    ///
    /// # Errors
    /// The segment cannot be read.
    pub fn scrub(&self, id: u32, pace: &mut dyn FnMut(u64) -> bool) -> io::Result<Option<Scrubbed>> {
        let Some((segment, data_end)) =
            self.catalog.read().segments.get(&id).map(|of| (of.segment.clone(), of.data_end))
        else {
            return Ok(None);
        };
        let Some((read_bytes, mut found)) = read_records(&segment.file, id, data_end, pace)? else { return Ok(None) };
        if !header_is_intact(&segment)? {
            found.push(Damage::Other);
        }
        let mut scrubbed = Scrubbed { read_bytes, damaged_places: found.len() as u64, ..Scrubbed::default() };
        let mut suspects = Vec::new();
        for damage in found {
            match damage {
                Damage::Entry { ledger, entry } => suspects.push((ledger, entry)),
                Damage::Place { from, to } => suspects.extend(self.entries_within(&segment, data_end, from, to)),
                Damage::Other => (),
            }
        }
        suspects.sort_unstable();
        suspects.dedup();
        suspects.retain(|(ledger, entry)| self.is_damaged(*ledger, *entry));
        scrubbed.damaged_entries = suspects;
        if scrubbed.damaged_places > 0 && scrubbed.damaged_entries.is_empty() {
            self.pending.damaged.lock().insert(id);
        }
        scrubbed.index_rewritten = self.mend_index(&segment, data_end)?;
        Ok(Some(scrubbed))
    }

    /// Whatever the holes of the log may hide is known by now to be of no consequence: what is not in the index is not there. The
    /// segments that have them are moved; until then, a start finds them again.
    pub fn forgive_holes(&self) {
        let mut catalog = self.catalog.write();
        let mut damaged = self.pending.damaged.lock();
        for entry in catalog.segments.values_mut().filter(|entry| !entry.holes.is_empty()) {
            entry.holes.clear();
            damaged.insert(entry.segment.id);
        }
        catalog.lost.clear();
        // The file is written anew at the next opportunity.
        catalog.deleted.unsaved |= std::mem::take(&mut catalog.deleted.lost);
        catalog.damaged = false;
    }

    /// Compaction looks again at segments that it had found damaged.
    pub fn reconsider_damaged(&self) {
        self.pending.unreadable.lock().clear();
        self.cache.lock().forget_incomplete();
    }

    /// Whether the entry belongs to a ledger that exists, is in the index, and cannot be read.
    pub fn is_damaged(&self, ledger: u64, entry: u64) -> bool {
        let belongs =
            self.catalog.read().ledgers.get(&ledger).is_some_and(|known| known.fence.is_none_or(|end| entry < end));
        belongs && self.lists(ledger, entry) && self.intact_copy(ledger, entry).is_none()
    }

    /// Entries of runs that touch a place of the segment, and those that only a damaged index may have had.
    fn entries_within(&self, segment: &SharedSegment<D::File>, data_end: u64, from: u64, to: u64) -> Vec<(u64, u64)> {
        let touches = |run: &&Run| u64::from(run.offset) < to && run.span_end() > from;
        let mut entries = Vec::new();
        let mut take = |ledger: u64, runs: &Runs| {
            let touched = runs.as_slice().iter().filter(touches);
            entries.extend(touched.flat_map(|run| (run.first..run.end()).map(|entry| (ledger, entry))));
        };
        let (mut sealed, mut hidden) = (Vec::<(u64, Placement)>::new(), Vec::new());
        {
            let catalog = self.catalog.read();
            let Some(holder) = catalog.segments.get(&segment.id) else { return Vec::new() };
            match &holder.index {
                IndexState::Open(index) => {
                    index.ledgers().iter().for_each(|(ledger, content)| take(*ledger, &content.runs));
                }
                IndexState::Sealed { .. } => {
                    for (ledger, known) in &catalog.ledgers {
                        let here = known.placements.iter().filter(|place| place.segment == segment.id);
                        sealed.extend(here.filter(|place| place.first <= place.last).map(|place| (*ledger, *place)));
                    }
                }
            }
        }
        for (ledger, place) in sealed {
            match self.known_runs(segment, data_end, ledger, &place) {
                Ok(known) => {
                    take(ledger, &known.runs);
                    if !known.are_all {
                        // No more than there is room for.
                        let entries = not_in(&known.runs, &place).take((to - from) as usize);
                        hidden.extend(entries.map(|entry| (ledger, entry)));
                    }
                }
                Err(error) => tracing::warn!(%error, "an index cannot be read"),
            }
        }
        entries.append(&mut hidden);
        entries
    }

    /// Writes the index of a sealed segment again if it is damaged and the records are not. What a crash in the middle of it
    /// leaves is a damaged index again, in whose place the records are read.
    fn mend_index(&self, segment: &SharedSegment<D::File>, data_end: u64) -> io::Result<bool> {
        let (seal, manifest_at) = {
            let catalog = self.catalog.read();
            let Some(holder) = catalog.segments.get(&segment.id) else { return Ok(false) };
            let IndexState::Sealed { directory_at, directory_bytes, directory_crc } = holder.index else {
                return Ok(false);
            };
            let seal = Seal { segment: segment.id, data_end, directory_at, directory_bytes, directory_crc };
            (seal, holder.manifest_at)
        };
        if self.index_is_intact(segment, &seal)? {
            return Ok(false);
        }
        let found = match scan(&segment.file, segment.id, Some(data_end))? {
            found if found.holes.is_empty() => found,
            _ => {
                tracing::error!(segment = segment.id, "index and records of a segment are damaged");
                return Ok(false);
            }
        };
        let footer = footer::build(&found.index, super::maintain::footer_at(data_end), manifest_at, &[]);
        let state = super::maintain::write_footer(segment, data_end, &footer, &self.options)?;
        {
            let mut catalog = self.catalog.write();
            if catalog.segments.contains_key(&segment.id) {
                catalog.seal(segment.id, &footer.directory, state);
            }
        }
        self.cache.lock().forget_segment(segment.id);
        Ok(true)
    }

    fn index_is_intact(&self, segment: &SharedSegment<D::File>, seal: &Seal) -> io::Result<bool> {
        let mut window = Window::new(&segment.file);
        if Seal::decode(window.get(SEAL_AT, BLOCK_BYTES)?, segment.id).is_err() {
            return Ok(false);
        }
        let Some(directory) = read_directory(&segment.file, seal)? else { return Ok(false) };
        for row in directory.rows.iter().filter(|row| row.section_bytes > 0) {
            let section = window.get(u64::from(row.section_at), row.section_bytes as usize)?;
            if decode_section(section).is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Entries of the place that are in none of the runs.
fn not_in(runs: &Runs, place: &Placement) -> impl Iterator<Item = u64> {
    let end = place.last.saturating_add(1);
    let held = runs.as_slice().iter().map(|run| (run.first, run.end())).chain([(end, end)]);
    let gaps = held.scan(place.first, |next, (first, end)| {
        let gap = *next..first;
        *next = end.max(*next);
        Some(gap)
    });
    gaps.flatten()
}

/// A header that is not is of no consequence until the next start.
fn header_is_intact<F: DiskFile>(segment: &Segment<F>) -> io::Result<bool> {
    let mut window = Window::new(&segment.file);
    let header = SegmentHeader::decode(window.get(0, BLOCK_BYTES)?);
    Ok(header.is_ok_and(|header| header.segment == segment.id))
}

/// Goes through the records of a segment. `None` if it was given up.
fn read_records<F: DiskFile>(
    file: &F,
    segment: u32,
    end: u64,
    pace: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Option<(u64, Vec<Damage>)>> {
    let (mut window, mut damage) = (Window::new(file), Vec::new());
    let (mut at, mut paced) = (DATA_AT, 0);
    while at < end {
        if window.read_bytes >= paced + STEP_BYTES {
            if !pace(window.read_bytes - paced) {
                return Ok(None);
            }
            paced = window.read_bytes;
        }
        let header = RecordHeader::decode(window.get(at, RECORD_HEADER_BYTES)?, segment, at)
            .filter(|header| at + header.record_bytes() <= end);
        let Some(header) = header else {
            let next = next_record(&mut window, segment, at + RECORD_ALIGNMENT as u64, end)?;
            damage.push(Damage::Place { from: at, to: next });
            at = next;
            continue;
        };
        if header.kind != RecordKind::Pad {
            let body = window.get(at + RECORD_HEADER_BYTES as u64, header.body_bytes as usize)?;
            check_body(&header, body, &mut damage);
        }
        at += header.record_bytes();
    }
    Ok(Some((window.read_bytes, damage)))
}

fn check_body(header: &RecordHeader, body: &[u8], damage: &mut Vec<Damage>) {
    let Some(table) = Table::of(header, body) else {
        damage.extend((!header.body_is_intact(body)).then_some(Damage::Other));
        return;
    };
    let damaged = header.entries().zip(table.slots()).filter(|(_, slot)| !slot.is_intact(body));
    let before = damage.len();
    damage.extend(damaged.map(|(entry, _)| Damage::Entry { ledger: header.ledger, entry }));
    // One that all entries could be found in spite of.
    if damage.len() == before && !table.is_intact {
        damage.push(Damage::Other);
    }
}

/// The offset of the next record in `from..end`, or `end`.
fn next_record<F: DiskFile>(window: &mut Window<F>, segment: u32, from: u64, end: u64) -> io::Result<u64> {
    let mut at = from;
    while at < end {
        let bytes = window.get(at, LOOK_BYTES.min((end - at) as usize + RECORD_HEADER_BYTES))?;
        if let Some((skipped, _)) = find_record(bytes, segment, at) {
            return Ok((at + skipped as u64).min(end));
        }
        if bytes.len() <= RECORD_HEADER_BYTES {
            break;
        }
        at += (bytes.len() - RECORD_HEADER_BYTES).next_multiple_of(RECORD_ALIGNMENT) as u64;
    }
    Ok(end)
}
