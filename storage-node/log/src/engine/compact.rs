//! Compaction: what is live of several segments moves, ledger by ledger, into a new one, and they are dropped.
//!
//! The new segment is complete and synced before a manifest names it, and the same manifest drops the old ones: a
//! crash before it leaves a file that recovery removes, a crash after it leaves old ones that recovery removes.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

use super::batch::{Append, Batch, Done, Request};
use super::catalog::{IndexState, Placement, SegmentEntry};
use super::maintain::write_footer;
use super::read::{Found, Stretch, read_stretch};
use super::{Engine, SharedSegment, segment_name};
use crate::buffer::AlignedBuffer;
use crate::disk::{Disk, DiskFile};
use crate::error::ReadError;
use crate::format::{BLOCK_BYTES, DATA_AT, SegmentKind};
use crate::index::footer::{self, Row};
use crate::index::{OpenIndex, Run};

/// Read and written at once: commits wait for it, on the disk.
const STEP_BYTES: usize = 128 << 10;
/// Put together before it is written.
const CHUNK_BYTES: usize = 1 << 20;
/// So many small segments, as restarts leave them, are put together.
const SMALL_MANY: usize = 8;
/// Runs that are looked at together.
const RUNS_TOGETHER: usize = 256;

/// Segments that are worth it, and what is live in them.
#[derive(Debug, PartialEq, Eq)]
pub struct CompactionPlan {
    pub segments: Vec<u32>,
    pub live_bytes: u64,
}

/// A segment that is complete on disk, with its rows.
type NewSegment<F> = (SegmentEntry<F>, Vec<Row>);

/// The segment that is being written.
struct Output<F> {
    segment: SharedSegment<F>,
    batch: Batch,
    index: OpenIndex,
}

impl<D: Disk> Engine<D> {
    /// `None` if nothing is to be gained, or damage forbids to move anything. Asks of each segment of which little is live, with its
    /// live bytes, whether it is worth it now.
    pub fn plan_compaction(&self, mut is_settled: impl FnMut(u32, u64) -> bool) -> Option<CompactionPlan> {
        let catalog = self.catalog.read();
        if catalog.damaged {
            return None;
        }
        let unreadable = self.pending.unreadable.lock();
        let damaged = self.pending.damaged.lock();
        let used = |entry: &SegmentEntry<D::File>| entry.data_end - DATA_AT;
        let mut sealed: Vec<_> = catalog
            .segments
            .values()
            .filter(|entry| !entry.active && entry.live_bytes > 0 && matches!(entry.index, IndexState::Sealed { .. }))
            .filter(|entry| !unreadable.contains(&entry.segment.id))
            .collect();
        let is_small = |entry: &SegmentEntry<D::File>| used(entry) < self.options.segment_bytes / 4;
        let merge_small = sealed.iter().filter(|entry| is_small(entry)).count() >= SMALL_MANY;
        sealed.retain(|entry| {
            let is_little = (entry.live_bytes as f64) < used(entry) as f64 * self.options.compact_below;
            is_little && is_settled(entry.segment.id, entry.live_bytes)
                || (merge_small && is_small(entry))
                || damaged.contains(&entry.segment.id)
        });
        sealed.sort_by_key(|entry| entry.live_bytes);
        let mut plan = CompactionPlan { segments: Vec::new(), live_bytes: 0 };
        for entry in sealed {
            if plan.live_bytes + entry.live_bytes > self.options.segment_bytes / 4 * 3 && !plan.segments.is_empty() {
                break;
            }
            plan.segments.push(entry.segment.id);
            plan.live_bytes += entry.live_bytes;
        }
        (!plan.segments.is_empty()).then_some(plan)
    }

    /// Writes the new segment, and answers the request that puts it in the place of the old ones; `None` if it was given up.
    /// `pace` is called with the bytes of each step and says whether to go on.
    pub fn compact(
        &self,
        plan: &CompactionPlan,
        pace: &mut dyn FnMut(u64) -> bool,
        done: Done,
    ) -> io::Result<Option<Request>> {
        let mut dropping = Vec::new();
        for &id in &plan.segments {
            match self.directory(id)? {
                Some(directory) => dropping.push((id, directory.rows)),
                None => return Ok(self.give_up(id)),
            }
        }
        let needed = plan.live_bytes + plan.live_bytes / 8 + 64 * BLOCK_BYTES as u64;
        if self.disk.space()?.free_bytes < needed + self.options.reserve_bytes / 4 {
            return Ok(None);
        }
        self.save_deleted();
        let id = self.writer.lock().take_segment_id();
        let (segment, _) =
            self.create_segment(SegmentKind::Compacted, id, needed.next_multiple_of(BLOCK_BYTES as u64))?;
        match self.move_ledgers(segment, &dropping, pace) {
            Ok(Some((entry, rows))) => {
                *self.pending.adopting.lock() = Some((entry, rows));
                *self.pending.dropping.lock() = dropping;
                let drop = plan.segments.clone();
                Ok(Some(Request::Housekeeping { controls: Vec::new(), adopt: Some(id), drop, done }))
            }
            Ok(None) => {
                self.disk.remove(&segment_name(id))?;
                Ok(None)
            }
            Err(error) => {
                let _ = self.disk.remove(&segment_name(id));
                Err(error)
            }
        }
    }

    fn give_up<T>(&self, segment: u32) -> Option<T> {
        tracing::error!(segment, "a segment is damaged and is not compacted");
        self.pending.unreadable.lock().insert(segment);
        None
    }

    fn move_ledgers(
        &self,
        segment: SharedSegment<D::File>,
        dropping: &[(u32, Vec<Row>)],
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> io::Result<Option<NewSegment<D::File>>> {
        let batch = Batch::new(segment.id, DATA_AT, AlignedBuffer::with_capacity(CHUNK_BYTES), (0, 0));
        let mut output = Output { segment, batch, index: OpenIndex::default() };
        self.controls_to_keep(dropping).into_iter().for_each(|control| output.batch.add_control(control));
        let mut by_ledger: BTreeMap<u64, Vec<(u32, &Row)>> = BTreeMap::new();
        for (id, rows) in dropping {
            for row in rows.iter().filter(|row| row.first <= row.last) {
                by_ledger.entry(row.ledger).or_default().push((*id, row));
            }
        }
        for (ledger, mut rows) in by_ledger {
            rows.sort_by_key(|(_, row)| row.first);
            for (from, row) in rows {
                match self.move_entries(&mut output, from, ledger, row, pace) {
                    Ok(true) => (),
                    Ok(false) => return Ok(None),
                    Err(ReadError::Io(error)) => return Err(io::Error::other(error)),
                    Err(_) => return Ok(self.give_up(from)),
                }
            }
        }
        output.flush()?;
        output.segment.file.sync_data()?;
        let data_end = output.batch.offset;
        let footer = footer::build(&output.index, data_end, 0, &[]);
        let index = write_footer(&output.segment, data_end, &footer, &self.options)?;
        let segment = output.segment;
        let entry =
            SegmentEntry { segment, data_end, index, live_bytes: 0, manifest_at: 0, holes: Vec::new(), active: false };
        Ok(Some((entry, footer.directory.rows)))
    }

    /// Whether to go on.
    fn move_entries(
        &self,
        output: &mut Output<D::File>,
        from: u32,
        ledger: u64,
        row: &Row,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, ReadError> {
        let (source, data_end, end) = {
            let catalog = self.catalog.read();
            // It may have been deleted meanwhile.
            let Some(known) = catalog.ledgers.get(&ledger) else { return Ok(true) };
            let entry = &catalog.segments[&from];
            (entry.segment.clone(), entry.data_end, known.fence.unwrap_or(u64::MAX))
        };
        let place = Placement {
            segment: from,
            section_at: row.section_at,
            section_bytes: row.section_bytes,
            first: row.first,
            last: row.last,
            bytes: row.bytes,
        };
        let runs = self.sealed_runs(&source, data_end, ledger, &place)?;
        let mut next = 0;
        let mut rest: &[Run] = runs.as_slice();
        while let Some(run) = rest.first() {
            next = run.first.max(next);
            if next >= run.end() || next >= end {
                rest = &rest[1..];
                continue;
            }
            let stretch = Stretch { segment: source.clone(), runs: rest[..rest.len().min(RUNS_TOGETHER)].to_vec() };
            let mut found = Found::default();
            match read_stretch(&stretch, ledger, next, end - 1, STEP_BYTES, &self.read_buffers, &mut found) {
                // One that was repaired is intact elsewhere.
                Err(error @ ReadError::Corrupt { .. }) => {
                    found.entries.push((next, self.intact_copy(ledger, next).ok_or(error)?));
                }
                read => read?,
            }
            let mut bytes = 0;
            let append = |(entry, body): (u64, Bytes)| {
                bytes += body.len() as u64;
                next = entry + 1;
                Append { ledger, entry, parts: [body, Bytes::new(), Bytes::new()], reserve: false }
            };
            let entries = found.entries.into_iter().map(append).collect();
            output.batch.add_entries(entries, true);
            output.flush_if_full().map_err(|error| ReadError::Io(error.to_string()))?;
            if !pace(2 * bytes) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// So that nothing else that is to be written waits for all of it.
pub(super) fn write_in_steps<F: DiskFile>(file: &F, bytes: &[u8], offset: u64) -> io::Result<()> {
    bytes.chunks(STEP_BYTES).zip(0..).try_for_each(|(step, n)| file.write_at(step, offset + n * STEP_BYTES as u64))
}

impl<F: DiskFile> Output<F> {
    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.batch.bytes() < CHUNK_BYTES as u64 { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.batch.pad();
        write_in_steps(&self.segment.file, self.batch.buffer.as_slice(), self.batch.offset)?;
        for added in &self.batch.runs {
            self.index.add_run(added.ledger, added.run, added.bytes);
        }
        for &control in &self.batch.controls {
            self.index.add_control(control);
        }
        let mut buffer = std::mem::take(&mut self.batch.buffer);
        let end = self.batch.offset + buffer.len() as u64;
        buffer.clear();
        self.batch = Batch::new(self.segment.id, end, buffer, (0, 0));
        Ok(())
    }
}
