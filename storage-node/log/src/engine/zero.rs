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

impl<D: Disk> Engine<D> {
    /// Zeros up to `bytes` of the segment that is being written or of the next one; answers how many, 0 if there is
    /// nothing to do. One thread at a time.
    pub fn zero_ahead(&self, bytes: u64) -> io::Result<u64> {
        let (segment, range) = {
            let mut writer = self.writer.lock();
            let writer = &mut *writer;
            let mut target = None;
            if let Some(active) = &mut writer.active {
                // A segment that has not been begun can be zeroed from its beginning.
                let distance = if active.has_manifest { MARGIN_BYTES } else { 0 };
                active.zeroed_to = active.zeroed_to.max((active.next_offset + distance).min(active.allocated));
                target = (active.zeroed_to < active.allocated && active.has_manifest)
                    .then(|| (active.segment.clone(), active.zeroed_to, active.allocated));
            }
            if let (None, Some(next)) = (&target, &writer.prepared) {
                target = Some((next.segment.clone(), next.zeroed_to, next.allocated));
            }
            let Some((segment, from, allocated)) = target.filter(|(segment, ..)| segment.file.overlaps()) else {
                return Ok(0);
            };
            let to = (from + bytes).min(allocated);
            if from >= to {
                return Ok(0);
            }
            writer.zeroing = Some((segment.id, from..to));
            (segment, from..to)
        };
        let mut zeros = AlignedBuffer::default();
        zeros.extend_zeros((range.end - range.start) as usize);
        let written = segment.file.write_at(zeros.as_slice(), range.start).and_then(|()| segment.file.sync_data());
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
