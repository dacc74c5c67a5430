//! Writing zeros ahead of the log.
//!
//! The first write to a block that was only set aside changes the file's extents, and the sync after it has to commit the
//! file system's journal: twice the latency. So blocks that will soon be used are written once before, at a rate that the
//! caller chooses, and files are reused. At full speed this does not pay: the same sync covers megabytes then.

use std::io;

use super::Engine;
use crate::buffer::AlignedBuffer;
use crate::disk::{Disk, DiskFile};

/// Distance to what is written, so that the two do not meet.
const MARGIN_BYTES: u64 = 8 << 20;
/// Written at once into the segment that takes commits: they wait for the same inode meanwhile.
const STEP_BESIDE_COMMITS: u64 = 64 << 10;
/// So much of a segment that is not in use is written before it is synced.
const SYNC_BYTES: u64 = 8 << 20;

/// Which segment is zeroed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroFirst {
    /// The one that takes commits: there are none just now.
    Active,
    /// The next one: commits go on beside it.
    Next,
}

/// What a step writes, made once for many.
pub struct Zeros(AlignedBuffer);

impl Zeros {
    /// For steps of so many bytes, a multiple of the block's size.
    pub fn new(bytes: usize) -> Self {
        let mut zeros = AlignedBuffer::default();
        zeros.extend_zeros(bytes);
        Self(zeros)
    }
}

impl<D: Disk> Engine<D> {
    /// Zeros a step of the segment that is being written or of the next one; answers how many bytes, 0 if there is nothing to
    /// do. One thread at a time.
    pub fn zero_ahead(&self, zeros: &Zeros, first: ZeroFirst) -> io::Result<u64> {
        let bytes = zeros.0.len() as u64;
        let (segment, range, needs_sync) = {
            let mut writer = self.writer.lock();
            let writer = &mut *writer;
            let active = writer.active.as_mut().and_then(|active| {
                // A segment that has not been begun can be zeroed from its beginning.
                let distance = if active.has_manifest { MARGIN_BYTES } else { 0 };
                active.zeroed_to = active.zeroed_to.max((active.next_offset + distance).min(active.allocated));
                let step = if first == ZeroFirst::Active { bytes } else { bytes.min(STEP_BESIDE_COMMITS) };
                (active.zeroed_to < active.allocated && active.has_manifest)
                    .then(|| (active.segment.clone(), active.zeroed_to, active.allocated, step, true))
            });
            let next = writer.prepared.as_ref().filter(|next| next.zeroed_to < next.allocated).map(|next| {
                let to = next.zeroed_to + bytes;
                let needs_sync = to >= next.allocated || to / SYNC_BYTES != next.zeroed_to / SYNC_BYTES;
                (next.segment.clone(), next.zeroed_to, next.allocated, bytes, needs_sync)
            });
            let target = if first == ZeroFirst::Active { active.or(next) } else { next.or(active) };
            let Some((segment, from, allocated, step, needs_sync)) =
                target.filter(|(segment, ..)| segment.file.overlaps())
            else {
                return Ok(0);
            };
            let range = from..(from + step).min(allocated);
            writer.zeroing = Some((segment.id, range.clone()));
            (segment, range, needs_sync)
        };
        let zeros = &zeros.0.as_slice()[..(range.end - range.start) as usize];
        let mut written = segment.file.write_at(zeros, range.start);
        if needs_sync {
            written = written.and_then(|()| segment.file.sync_data());
        }
        let mut writer = self.writer.lock();
        writer.zeroing = None;
        self.zeroed.notify_all();
        // Whatever came of it: the next attempt is for what follows.
        let writer = &mut *writer;
        if let Some(active) = writer.active.as_mut().filter(|active| active.segment.id == segment.id) {
            active.zeroed_to = active.zeroed_to.max(range.end);
            // The error may be that of a commit, told to the wrong one.
            active.failed |= written.is_err();
        } else if let Some(next) = writer.prepared.as_mut().filter(|next| next.segment.id == segment.id) {
            next.zeroed_to = range.end;
        }
        written.map(|()| range.end - range.start)
    }
}
