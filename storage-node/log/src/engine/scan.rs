//! Reading the records of a segment without its index: after a crash, or because the index is damaged.
//!
//! What is unreadable is one of two things. *Torn*: behind the last place that is known to have been durable; the log ends
//! there and nobody was told otherwise. *Damaged*: before that place; the scan goes on behind it and reports a hole. Three
//! things prove durability: the seal of the segment, a manifest in a later segment, and each later commit's record.
//!
//! A block that the disk cannot read is never torn: nobody knows whether what was there had been acknowledged.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use crate::disk::{DiskFile, read_around_noting};
use crate::format::{
    BLOCK_BYTES, DATA_AT, ManifestLine, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, RecordKind,
    decode_manifest,
};
use crate::index::footer::Hole;
use crate::index::{Control, OpenIndex, Run};
use crate::planted::{Bug, is_planted};
use crate::replica::ExplicitLac;

const WINDOW_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Scan {
    pub index: OpenIndex,
    pub data_end: u64,
    pub holes: Vec<Hole>,
    /// The last manifest and where it is.
    pub manifest: Option<(u64, Vec<ManifestLine>)>,
    /// How much of the segment its own commits prove to have been durable.
    pub proven: u64,
    pub torn: bool,
    /// Where blocks begin that the disk cannot read.
    pub unreadable: BTreeSet<u64>,
    damaged_manifest: bool,
}

impl Scan {
    /// Whether the last manifest of the segment is known.
    pub fn knows_manifest(&self) -> bool {
        self.manifest.is_some() && !self.damaged_manifest && self.holes.is_empty()
    }

    /// Whether anything was ever made durable in the segment, or may have been.
    pub fn is_used(&self) -> bool {
        self.manifest.is_some() || self.damaged_manifest || self.proven > DATA_AT || !self.holes.is_empty()
    }
}

/// Reads a file through one buffer, forwards.
struct Window<'f, F> {
    file: &'f F,
    bytes: Vec<u8>,
    at: u64,
    unreadable: BTreeSet<u64>,
}

impl<'f, F: DiskFile> Window<'f, F> {
    fn new(file: &'f F) -> Self {
        Self { file, bytes: Vec::new(), at: 0, unreadable: BTreeSet::new() }
    }

    /// The bytes at `offset`; fewer than `length` at the end of the file only.
    fn get(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let held = offset >= self.at && offset + length as u64 <= self.at + self.bytes.len() as u64;
        if !held {
            self.bytes.resize(length.max(WINDOW_BYTES), 0);
            let read = |piece: &mut [u8], offset| self.file.read_at(piece, offset);
            let unreadable = |block| {
                self.unreadable.insert(block);
            };
            let count = read_around_noting(&mut self.bytes, offset, read, unreadable)?;
            self.bytes.truncate(count);
            self.at = offset;
        }
        let start = ((offset - self.at) as usize).min(self.bytes.len());
        let end = (start + length).min(self.bytes.len());
        Ok(&self.bytes[start..end])
    }

    /// Whether the disk cannot read a part of it.
    fn is_unreadable(&self, range: Range<u64>) -> bool {
        let block = BLOCK_BYTES as u64;
        self.unreadable.range(range.start / block * block..range.end).next().is_some()
    }
}

/// `end` is where the records end, if a seal or manifest says so: all of them were durable then.
pub(super) fn scan<F: DiskFile>(file: &F, segment: u32, end: Option<u64>) -> io::Result<Scan> {
    let length = file.length()?;
    let proven = match end {
        Some(end) => end,
        None => proven_by_commits(file, segment, length)?,
    };
    let proven = proven.min(length);
    let mut scan = Scan { data_end: DATA_AT, proven, ..Scan::default() };
    let limit = end.unwrap_or(length).min(length);
    let mut window = Window::new(file);
    let mut at = DATA_AT;
    while at < limit {
        let header = RecordHeader::decode(window.get(at, RECORD_HEADER_BYTES)?, segment, at)
            .filter(|header| at + header.record_bytes() <= limit);
        let whole = match header {
            Some(header) => scan.take(&mut window, at, &header)?,
            None => false,
        };
        if let (Some(header), true) = (header, whole) {
            at += header.record_bytes();
        } else if at < proven {
            let next = next_record(&mut window, segment, at + RECORD_ALIGNMENT as u64, proven)?;
            scan.holes.push(Hole { offset: at, bytes: next - at });
            at = next;
        } else if window
            .is_unreadable(at..at + header.map_or(RECORD_HEADER_BYTES as u64, |header| header.record_bytes()))
        {
            // What follows was written by the segment itself, or else there is no telling where it ended.
            let next = next_record(&mut window, segment, at + RECORD_ALIGNMENT as u64, limit)?;
            scan.holes.push(Hole { offset: at, bytes: next - at });
            at = next;
        } else {
            scan.torn = header.is_some();
            break;
        }
    }
    // A file that is shorter than it was has lost records. The segment ends where it did, or who reads it next would miss nothing.
    if let Some(end) = end.filter(|end| *end > length && !is_planted(Bug::ShortFileIsWhole)) {
        scan.holes.push(Hole { offset: at, bytes: end - at });
        at = end;
    }
    scan.data_end = at;
    scan.unreadable = window.unreadable;
    Ok(scan)
}

/// Commits begin at block boundaries and say how far the log was durable before them.
fn proven_by_commits<F: DiskFile>(file: &F, segment: u32, length: u64) -> io::Result<u64> {
    let mut window = Window::new(file);
    let mut proven = DATA_AT;
    let mut at = DATA_AT;
    while at < length {
        let header = RecordHeader::decode(window.get(at, RECORD_HEADER_BYTES)?, segment, at);
        if let Some(RecordHeader { kind: RecordKind::Commit, ledger, entry, .. }) = header
            && ledger == u64::from(segment)
            && entry <= length
        {
            proven = proven.max(entry);
        }
        at += BLOCK_BYTES as u64;
    }
    Ok(proven)
}

/// The offset of the next valid header in `from..to`, or `to`.
fn next_record<F: DiskFile>(window: &mut Window<F>, segment: u32, from: u64, to: u64) -> io::Result<u64> {
    let mut at = from;
    while at < to {
        let bytes = window.get(at, (WINDOW_BYTES / 2).min((to - at) as usize + RECORD_HEADER_BYTES))?;
        if let Some((skipped, _)) = find_record(bytes, segment, at) {
            return Ok((at + skipped as u64).min(to));
        }
        if bytes.len() <= RECORD_HEADER_BYTES {
            break;
        }
        at += (bytes.len() - RECORD_HEADER_BYTES).next_multiple_of(RECORD_ALIGNMENT) as u64;
    }
    Ok(to)
}

/// The first valid header in `bytes`, which begin at `offset` of the segment.
pub(super) fn find_record(bytes: &[u8], segment: u32, offset: u64) -> Option<(usize, RecordHeader)> {
    let positions = (0..bytes.len().saturating_sub(RECORD_HEADER_BYTES - 1)).step_by(RECORD_ALIGNMENT);
    positions.into_iter().find_map(|at| Some((at, RecordHeader::decode(&bytes[at..], segment, offset + at as u64)?)))
}

impl Scan {
    /// Whether the record was taken. Bodies of entries that were durable are not looked at: a reader who meets a
    /// damaged one is told so. So is one who meets what may have been durable, and cannot be read.
    fn take<F: DiskFile>(&mut self, window: &mut Window<F>, at: u64, header: &RecordHeader) -> io::Result<bool> {
        let end = at + header.record_bytes();
        if end > self.proven || header.kind == RecordKind::Manifest {
            let body_bytes = header.body_bytes as usize;
            let body = window.get(at + RECORD_HEADER_BYTES as u64, body_bytes)?;
            let is_intact = header.body_is_intact(body);
            let lines = (is_intact && header.kind == RecordKind::Manifest).then(|| decode_manifest(body)).flatten();
            if !is_intact && end > self.proven && !window.is_unreadable(at..end) {
                return Ok(false);
            }
            self.damaged_manifest |= !is_intact && header.kind == RecordKind::Manifest;
            if let Some(lines) = lines {
                self.manifest = Some((at, lines));
            }
        }
        match header.kind {
            RecordKind::Entry | RecordKind::Entries => {
                let (count, bytes) = (header.entry_count(), header.record_bytes());
                let run = Run { first: header.entry, count, offset: at as u32, span: bytes as u32 };
                self.index.add_run(header.ledger, run, bytes);
            }
            RecordKind::Fence => self.index.add_control(Control::Fence { ledger: header.ledger, end: header.entry }),
            RecordKind::Tombstone => self.index.add_control(Control::Tombstone { ledger: header.ledger }),
            RecordKind::Key | RecordKind::ExplicitLac => return self.take_body(window, at, header),
            RecordKind::Commit | RecordKind::Pad | RecordKind::Manifest => (),
        }
        Ok(true)
    }

    /// A record of which the body counts: one that is damaged is a hole, wherever it is.
    fn take_body<F: DiskFile>(&mut self, window: &mut Window<F>, at: u64, header: &RecordHeader) -> io::Result<bool> {
        let body = window.get(at + RECORD_HEADER_BYTES as u64, header.body_bytes as usize)?;
        if !header.body_is_intact(body) {
            return Ok(false);
        }
        let ledger = header.ledger;
        let control = match header.kind {
            RecordKind::Key => body.try_into().ok().map(|key| Control::Key { ledger, key }),
            _ => ExplicitLac::new(header.entry as i64, body).map(|lac| Control::ExplicitLac { ledger, lac }),
        };
        control.into_iter().for_each(|control| self.index.add_control(control));
        Ok(control.is_some())
    }
}
