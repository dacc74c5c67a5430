//! All copies of one entry. Usually there is one; an entry that was added again, or repaired, has several, with the same
//! content, so that it does not matter which is read as long as it is intact.

use std::io;

use bytes::Bytes;

use super::catalog::IndexState;
use super::read::Walk;
use super::{Engine, SharedSegment};
use crate::buffer::AlignedBuffer;
use crate::disk::{Disk, DiskFile, read_around};
use crate::error::ReadError;
use crate::format::BLOCK_BYTES;
use crate::index::Run;

/// One place of an entry: a run that holds it.
struct Copy<F> {
    segment: SharedSegment<F>,
    run: Run,
}

/// Places of an entry, the newest first, and whether damage to the index may hide another.
type Copies<F> = (Vec<Copy<F>>, bool);

impl<D: Disk> Engine<D> {
    fn copies(&self, ledger: u64, entry: u64) -> Copies<D::File> {
        let (mut copies, mut sealed) = (Vec::new(), Vec::new());
        {
            let catalog = self.catalog.read();
            let Some(known) = catalog.ledgers.get(&ledger) else { return (copies, false) };
            for place in known.placements.iter().rev().filter(|place| (place.first..=place.last).contains(&entry)) {
                let holder = &catalog.segments[&place.segment];
                match &holder.index {
                    IndexState::Open(index) => {
                        let runs = index.get(ledger).into_iter().flat_map(|content| content.runs.holding(entry));
                        copies.extend(runs.map(|run| Copy { segment: holder.segment.clone(), run: *run }));
                    }
                    IndexState::Sealed { .. } => sealed.push((holder.segment.clone(), holder.data_end, *place)),
                }
            }
        }
        let mut may_hide = false;
        for (segment, data_end, place) in sealed {
            // One whose index is damaged does not hide the others.
            let Ok(known) = self.known_runs(&segment, data_end, ledger, &place) else {
                may_hide = true;
                continue;
            };
            copies.extend(known.runs.holding(entry).map(|run| Copy { segment: segment.clone(), run: *run }));
            may_hide |= !known.are_all;
        }
        (copies, may_hide)
    }

    /// Whether the index has the entry, readable or not, or had it before it was damaged.
    pub fn lists(&self, ledger: u64, entry: u64) -> bool {
        let (copies, may_hide) = self.copies(ledger, entry);
        may_hide || !copies.is_empty()
    }

    /// An intact copy, from the disk itself where the file system can; `None` if the index has none that is.
    pub fn intact_copy(&self, ledger: u64, entry: u64) -> Option<Bytes> {
        for Copy { segment, run } in self.copies(ledger, entry).0 {
            match read_copy(&segment.file, segment.id, ledger, &run, entry) {
                Ok(body) => return Some(body),
                Err(error) => tracing::debug!(%error, "a copy of an entry cannot be read"),
            }
        }
        None
    }
}

fn read_copy<F: DiskFile>(file: &F, segment: u32, ledger: u64, run: &Run, entry: u64) -> Result<Bytes, ReadError> {
    let mut window = Window::new(file);
    let bytes =
        window.get(u64::from(run.offset), run.span as usize).map_err(|error| ReadError::Io(error.to_string()))?;
    let buffer = Bytes::copy_from_slice(bytes);
    let walk = Walk { buffer: &buffer, base: u64::from(run.offset), segment, ledger };
    let (mut next, mut found) = (entry, Vec::new());
    walk.run(run, &mut next, entry, 1, &mut 0, &mut found)?;
    let unreadable =
        || ReadError::Corrupt { ledger, entry: Some(entry), detail: "its record is unreadable".to_owned() };
    found.pop().map(|(_, body)| body).ok_or_else(unreadable)
}

/// Read together when a file is read from its beginning to its end.
const WINDOW_BYTES: usize = 1 << 20;

/// Reads a file forwards through one aligned buffer, past the page cache where the file system can, and around what the disk cannot
/// read.
pub(super) struct Window<'f, F> {
    file: &'f F,
    buffer: AlignedBuffer,
    /// What of the file is in the buffer, from here on.
    at: u64,
    held: usize,
    /// Bytes that were read from the file so far.
    pub read_bytes: u64,
}

impl<'f, F: DiskFile> Window<'f, F> {
    pub fn new(file: &'f F) -> Self {
        Self { file, buffer: AlignedBuffer::default(), at: 0, held: 0, read_bytes: 0 }
    }

    /// The bytes at `offset`; fewer than `length` at the end of the file only.
    pub fn get(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let is_held = offset >= self.at && offset + length as u64 <= self.at + self.held as u64;
        if !is_held {
            let block = BLOCK_BYTES as u64;
            self.at = offset / block * block;
            let needed = (offset - self.at) as usize + length;
            let whole = needed.max(if self.read_bytes == 0 { 0 } else { WINDOW_BYTES }).next_multiple_of(BLOCK_BYTES);
            self.buffer.clear();
            self.buffer.extend_zeros(whole);
            let read = |piece: &mut [u8], offset| self.file.read_blocks_at(piece, offset);
            self.held = read_around(self.buffer.as_mut_slice(), self.at, read)?;
            self.read_bytes += self.held as u64;
        }
        let start = ((offset - self.at) as usize).min(self.held);
        let end = (start + length).min(self.held);
        Ok(&self.buffer.as_slice()[start..end])
    }
}
