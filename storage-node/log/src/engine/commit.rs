//! Writing: requests become commits, commits become durable, and only then the catalog changes.
//!
//! [`Engine::begin`] encodes, [`Commit::write`] does the I/O without a lock, [`Engine::finish`] draws the consequences.
//! Several commits to one segment may be under way; they are finished in the order in which they were begun. A new segment
//! is begun only when nothing is under way, so what its first commit says about the end of the one before is final.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use rustc_hash::FxHashMap;

use super::batch::{Admission, Append, Batch, Class, Done, FenceDone, Request};
use super::catalog::{Catalog, IndexState, SegmentEntry};
use super::closing::Closing;
use super::{Engine, SharedSegment, segment_name};
use crate::buffer::AlignedBuffer;
use crate::disk::{Disk, DiskFile};
use crate::error::{AppendError, FenceError, ReadError};
use crate::format::{BLOCK_BYTES, BODY_BYTES_MAX, DATA_AT, SegmentKind, encode_manifest};
use crate::index::{Control, OpenIndex};
use crate::options::LogOptions;
use crate::planted::{Bug, is_planted};
use crate::replica::{FENCE_WITHOUT_END, MasterKey};

/// After so many failed commits without a good one between, the log is read-only.
const FAILURES_MAX: u32 = 3;
/// One call may not be larger, so that offsets in a segment fit into 32 bits.
const REQUEST_BYTES_MAX: u64 = 1 << 30;
/// A segment that is made of the reserve has at least this.
const RESERVE_SEGMENT_BYTES_MIN: u64 = 32 << 10;
/// Left for the footer beyond what the index needs now.
const FOOTER_SLACK_BYTES: u64 = 8 << 10;
/// Buffers larger than this are given back to the system.
const KEPT_BUFFERS: usize = 2;

/// Written and removed to see whether a disk that failed has recovered.
const PROBE_NAME: &str = "write-probe";

pub(super) struct Active<F> {
    pub segment: SharedSegment<F>,
    pub next_offset: u64,
    /// Space set aside for it.
    pub allocated: u64,
    /// Blocks before this were written once, if only with zeros.
    pub zeroed_to: u64,
    /// A write or sync of it failed: what is not durable by now will never be.
    pub failed: bool,
    pub has_manifest: bool,
}

pub(super) struct Prepared<F> {
    pub segment: SharedSegment<F>,
    pub allocated: u64,
    pub zeroed_to: u64,
}

pub(super) struct Writer<F> {
    pub active: Option<Active<F>>,
    /// The next segment, ready to be used.
    pub prepared: Option<Prepared<F>>,
    /// Bytes of a segment that are being zeroed just now.
    pub zeroing: Option<(u32, Range<u64>)>,
    pub next_segment: u32,
    /// How far the log is durable.
    pub durable: (u32, u64),
    pub in_flight: usize,
    closing: Closing,
    /// Of replicas of which the first record is on its way.
    keys: FxHashMap<u64, MasterKey>,
    buffers: Vec<AlignedBuffer>,
    next_ticket: u64,
    finished_ticket: u64,
    failures: u32,
    pub read_only: Option<String>,
    /// It is read-only because of failed writes, and may take some again.
    pub failing: bool,
    /// What was written last is known, on disk, to be durable.
    pub marked: bool,
    pub commits: u64,
    pub committed_bytes: u64,
    pub failed_commits: u64,
}

impl<F> Writer<F> {
    pub fn new(next_segment: u32) -> Self {
        Self {
            active: None,
            prepared: None,
            zeroing: None,
            next_segment,
            durable: (0, 0),
            in_flight: 0,
            closing: Closing::default(),
            keys: FxHashMap::default(),
            buffers: Vec::new(),
            next_ticket: 0,
            finished_ticket: 0,
            failures: 0,
            read_only: None,
            failing: false,
            marked: true,
            commits: 0,
            committed_bytes: 0,
            failed_commits: 0,
        }
    }

    fn allows_writing(&self) -> Result<(), AppendError> {
        match &self.read_only {
            Some(reason) => Err(AppendError::ReadOnly(reason.clone())),
            None => Ok(()),
        }
    }

    fn give_up_if_it_fails_on(&mut self, failure: &str) {
        if self.failures >= FAILURES_MAX && self.read_only.is_none() {
            tracing::error!(failure, "the log is read-only after {FAILURES_MAX} failed writes in a row");
            self.read_only = Some(failure.to_owned());
            self.failing = true;
        }
    }

    /// The next failure makes it read-only again.
    fn write_again(&mut self) {
        (self.read_only, self.failing) = (None, false);
        self.failures = FAILURES_MAX - 1;
    }

    /// Replicas of which the first record is on its way.
    pub fn replicas_coming(&self) -> impl Iterator<Item = &u64> {
        self.keys.keys()
    }

    pub fn take_segment_id(&mut self) -> u32 {
        self.next_segment += 1;
        self.next_segment - 1
    }
}

enum Completion {
    Append(Done, Result<(), AppendError>),
    Fence(u64, FenceDone, Result<(), AppendError>),
}

/// An answer that is due; to be given without any lock held.
pub enum Outcome {
    Append(Done, Result<(), AppendError>),
    Fence(FenceDone, Result<Option<u64>, FenceError>),
}

impl Outcome {
    pub fn tell(self) {
        match self {
            Self::Append(done, result) => done(result),
            Self::Fence(done, result) => done(result),
        }
    }
}

pub enum Begin<F> {
    /// No request.
    Nothing,
    /// The next request has to wait until the commits under way are finished.
    Wait,
    Commit(Box<Commit<F>>),
}

/// Bytes that are to be written and synced, in whatever thread; then [`Engine::finish`].
pub struct Commit<F> {
    ticket: u64,
    /// `None` if there is nothing to write, only answers to give.
    target: Option<(SharedSegment<F>, Batch)>,
    adopt: Option<u32>,
    drop: Vec<u32>,
    buffer_was_empty: Option<AlignedBuffer>,
    completions: Vec<Completion>,
}

impl<F: DiskFile> Commit<F> {
    pub fn write(&self) -> io::Result<()> {
        let Some((segment, batch)) = &self.target else { return Ok(()) };
        segment.file.write_at(batch.buffer.as_slice(), batch.offset)?;
        segment.file.sync_data()
    }

    /// Bytes that [`Commit::write`] writes.
    pub fn bytes(&self) -> usize {
        self.target.as_ref().map_or(0, |(_, batch)| batch.buffer.len())
    }

    /// Whether another commit may be written at the same time.
    pub fn overlaps(&self) -> bool {
        self.target.as_ref().is_none_or(|(segment, _)| segment.file.overlaps())
    }
}

impl<D: Disk> Engine<D> {
    /// Takes requests from the front of the queue, as many as fit into one commit.
    pub fn begin(&self, queue: &mut VecDeque<Request>) -> Begin<D::File> {
        let Some(front) = queue.front() else { return Begin::Nothing };
        let mut writer = self.writer.lock();
        if self.must_roll(&writer, front.encoded_bytes()) {
            if writer.in_flight > 0 {
                return Begin::Wait;
            }
            let class = front.class();
            if let Err(error) = self.roll(&mut writer, class) {
                if let AppendError::Io(failure) = &error {
                    writer.failures += 1;
                    writer.give_up_if_it_fails_on(failure);
                }
                return Begin::Commit(Box::new(self.refuse(&mut writer, queue, &error, class)));
            }
        }
        let mut commit = Commit {
            ticket: 0,
            target: None,
            adopt: None,
            drop: Vec::new(),
            buffer_was_empty: None,
            completions: Vec::new(),
        };
        let mut batch = self.new_batch(&mut writer);
        let blank_bytes = batch.bytes();
        let footer_bytes = self.footer_bytes(batch.segment);
        let mut must_write = false;
        while let Some(request) = queue.front() {
            let is_first = commit.completions.is_empty() && !must_write;
            if !is_first && !self.has_room(&writer, &batch, request.encoded_bytes(), footer_bytes) {
                break;
            }
            // These look at what a ledger holds, so nothing of it may be under way.
            if matches!(
                request,
                Request::Fence { key: None, .. } | Request::Delete { .. } | Request::Housekeeping { .. }
            ) && writer.in_flight > 0
            {
                if is_first {
                    self.keep_buffer(&mut writer, batch.buffer);
                    return Begin::Wait;
                }
                break;
            }
            let ends_commit = matches!(request, Request::Housekeeping { .. });
            must_write |= matches!(request, Request::Mark) && !writer.marked;
            let request = queue.pop_front().expect("just seen");
            self.encode(&mut writer, &mut batch, request, &mut commit);
            if ends_commit {
                break;
            }
        }
        must_write |= batch.bytes() > blank_bytes;
        self.dispatch(&mut writer, batch, must_write, commit)
    }

    fn new_batch(&self, writer: &mut Writer<D::File>) -> Batch {
        let mut buffer = writer.buffers.pop().unwrap_or_default();
        buffer.clear();
        let active = writer.active.as_ref().expect("rolled if there was none");
        let mut batch = Batch::new(active.segment.id, active.next_offset, buffer, writer.durable);
        if !active.has_manifest {
            batch.add_manifest(&encode_manifest(&self.catalog.read().manifest(active.segment.id, &[])));
        }
        batch
    }

    fn dispatch(
        &self,
        writer: &mut MutexGuard<Writer<D::File>>,
        mut batch: Batch,
        must_write: bool,
        mut commit: Commit<D::File>,
    ) -> Begin<D::File> {
        if must_write {
            batch.pad();
            // Rare: zeroing keeps a distance.
            while writer.zeroing.as_ref().is_some_and(|(id, range)| *id == batch.segment && range.start < batch.end()) {
                self.zeroed.wait(writer);
            }
            let writer = &mut **writer;
            let active = writer.active.as_mut().expect("the batch is for it");
            active.has_manifest = true;
            active.next_offset = batch.end();
            writer.marked = batch.runs.is_empty() && batch.controls.is_empty() && batch.manifest_at.is_none();
            commit.target = Some((active.segment.clone(), batch));
        } else {
            commit.buffer_was_empty = Some(batch.buffer);
        }
        commit.ticket = writer.next_ticket;
        writer.next_ticket += 1;
        writer.in_flight += 1;
        Begin::Commit(Box::new(commit))
    }

    fn encode(&self, writer: &mut Writer<D::File>, batch: &mut Batch, request: Request, commit: &mut Commit<D::File>) {
        match request {
            Request::Append { entries, admission, done } => {
                let allowed = self.allow_append(writer, &entries, admission);
                match (&allowed, admission) {
                    (Ok(()), Admission::Whole) => batch.add_entries(entries, true),
                    (Ok(()), Admission::Replica { key, .. }) => {
                        for of_ledger in entries.chunk_by(|one, next| one.ledger == next.ledger) {
                            self.encode_key(writer, batch, of_ledger[0].ledger, key);
                        }
                        batch.add_entries(entries, false);
                    }
                    (Err(_), Admission::Whole) => writer.closing.fail(entries.iter().map(|entry| entry.ledger)),
                    (Err(_), Admission::Replica { .. }) => (),
                }
                commit.completions.push(Completion::Append(done, allowed));
            }
            Request::Fence { ledger, key, done } => {
                let allowed = writer.allows_writing().and_then(|()| match key {
                    Some(key) => self.catalog.read().check_key(writer.keys.get(&ledger), ledger, key),
                    None => Ok(()),
                });
                match (&allowed, key) {
                    (Ok(()), Some(key)) => self.encode_replica_fence(writer, batch, ledger, key),
                    (Ok(()), None) => self.encode_fence(writer, batch, ledger),
                    (Err(_), _) => (),
                }
                commit.completions.push(Completion::Fence(ledger, done, allowed));
            }
            Request::ExplicitLac { ledger, key, lac, done } => {
                let allowed = writer.allows_writing().and_then(|()| {
                    let catalog = self.catalog.read();
                    catalog.check_key(writer.keys.get(&ledger), ledger, key)?;
                    let is_gone = catalog.is_deleted(ledger) || !writer.closing.allows_recovery(ledger);
                    if is_gone { Err(AppendError::Fenced) } else { Ok(()) }
                });
                if allowed.is_ok() {
                    self.encode_key(writer, batch, ledger, key);
                    batch.add_control(Control::ExplicitLac { ledger, lac });
                }
                commit.completions.push(Completion::Append(done, allowed));
            }
            Request::Delete { ledgers, done } => {
                let allowed = writer.allows_writing();
                if allowed.is_ok() {
                    self.encode_deletions(writer, batch, &ledgers);
                }
                commit.completions.push(Completion::Append(done, allowed));
            }
            Request::Refused { ledgers, done, error } => {
                writer.closing.fail(ledgers);
                commit.completions.push(Completion::Append(done, Err(error)));
            }
            Request::Mark => (),
            Request::Housekeeping { controls, adopt, drop, done } => {
                controls.into_iter().for_each(|control| batch.add_control(control));
                let mut lines = self.catalog.read().manifest(batch.segment, &drop);
                if let Some(adopted) = adopt {
                    lines.extend(self.adopted_line(adopted));
                }
                batch.add_manifest(&encode_manifest(&lines));
                (commit.adopt, commit.drop) = (adopt, drop);
                commit.completions.push(Completion::Append(done, Ok(())));
            }
        }
    }

    /// Whether all entries of a call may be written: either all of them are, or none.
    fn allow_append(
        &self,
        writer: &Writer<D::File>,
        entries: &[Append],
        admission: Admission,
    ) -> Result<(), AppendError> {
        writer.allows_writing()?;
        if self.full.load(Ordering::Relaxed) && entries.iter().any(|entry| !entry.reserve) {
            return Err(AppendError::DiskFull);
        }
        let bytes: u64 = entries.iter().map(|entry| entry.payload_bytes() as u64 + 64).sum();
        if bytes > REQUEST_BYTES_MAX || entries.iter().any(|entry| entry.payload_bytes() > BODY_BYTES_MAX) {
            return Err(AppendError::TooLarge { bytes });
        }
        let catalog = self.catalog.read();
        let mut checked = None;
        for entry in entries {
            if checked.replace(entry.ledger) == Some(entry.ledger) {
                continue;
            }
            match admission {
                Admission::Whole => {
                    writer.closing.check(entry.ledger)?;
                    catalog.check_whole(entry.ledger)?;
                }
                Admission::Replica { key, recovery } => {
                    catalog.check_key(writer.keys.get(&entry.ledger), entry.ledger, key)?;
                    let passes = recovery || is_planted(Bug::AddPassesFence);
                    if !(passes && writer.closing.allows_recovery(entry.ledger)) {
                        writer.closing.check(entry.ledger)?;
                    }
                    catalog.check_replica(entry.ledger, recovery)?;
                }
            }
        }
        Ok(())
    }

    /// The key goes before whatever else there is of a replica.
    fn encode_key(&self, writer: &mut Writer<D::File>, batch: &mut Batch, ledger: u64, key: MasterKey) {
        let is_known = self.catalog.read().ledgers.get(&ledger).is_some_and(|known| known.key.is_some());
        if !is_known && writer.keys.insert(ledger, key).is_none() {
            batch.add_control(Control::Key { ledger, key });
        }
    }

    fn encode_replica_fence(&self, writer: &mut Writer<D::File>, batch: &mut Batch, ledger: u64, key: MasterKey) {
        let needs_none = {
            let catalog = self.catalog.read();
            let is_fenced = catalog.ledgers.get(&ledger).is_some_and(|known| known.fence.is_some());
            is_fenced || catalog.is_deleted(ledger) || !writer.closing.allows_recovery(ledger)
        };
        if needs_none {
            return;
        }
        writer.closing.fence(ledger);
        self.encode_key(writer, batch, ledger, key);
        batch.add_control(Control::Fence { ledger, end: FENCE_WITHOUT_END });
    }

    /// States the last entry too, so that entries which a failed write left behind never turn up behind a fence.
    fn encode_fence(&self, writer: &mut Writer<D::File>, batch: &mut Batch, ledger: u64) {
        let catalog = self.catalog.read();
        let known = catalog.ledgers.get(&ledger);
        if known.is_some_and(|known| known.fence.is_some()) || catalog.is_deleted(ledger) {
            return;
        }
        writer.closing.fence(ledger);
        if catalog.last_is_uncertain(ledger) {
            return;
        }
        let last = known.and_then(|known| known.last()).max(batch.last_of(ledger));
        batch.add_control(Control::Fence { ledger, end: last.map_or(0, |last| last.saturating_add(1)) });
    }

    fn encode_deletions(&self, writer: &mut Writer<D::File>, batch: &mut Batch, ledgers: &[u64]) {
        let catalog = self.catalog.read();
        for &ledger in ledgers {
            // Also of one of which only a failed write is known: its writer may not have noticed yet.
            let exists =
                catalog.ledgers.contains_key(&ledger) || batch.holds(ledger) || writer.closing.contains(ledger);
            if exists || (catalog.damaged && !catalog.is_deleted(ledger)) {
                batch.add_control(Control::Tombstone { ledger });
                writer.closing.delete(ledger);
            }
        }
    }

    /// A commit of answers only: nothing can be written now, or nothing of this class if the disk is full.
    fn refuse(
        &self,
        writer: &mut Writer<D::File>,
        queue: &mut VecDeque<Request>,
        error: &AppendError,
        class: Class,
    ) -> Commit<D::File> {
        let is_other = |request: &Request| *error == AppendError::DiskFull && request.class() != class;
        let count = queue.iter().position(is_other).unwrap_or(queue.len());
        let closing = &mut writer.closing;
        let refused = |request| match request {
            Request::Append { entries, admission, done } => {
                if admission == Admission::Whole {
                    closing.fail(entries.iter().map(|entry| entry.ledger));
                }
                Some(Completion::Append(done, Err(error.clone())))
            }
            Request::Delete { done, .. } | Request::Housekeeping { done, .. } | Request::ExplicitLac { done, .. } => {
                Some(Completion::Append(done, Err(error.clone())))
            }
            Request::Refused { ledgers, done, error } => {
                closing.fail(ledgers);
                Some(Completion::Append(done, Err(error)))
            }
            Request::Fence { ledger, done, .. } => Some(Completion::Fence(ledger, done, Err(error.clone()))),
            Request::Mark => None,
        };
        let completions = queue.drain(..count).filter_map(refused).collect();
        let ticket = writer.next_ticket;
        writer.next_ticket += 1;
        writer.in_flight += 1;
        Commit { ticket, target: None, adopt: None, drop: Vec::new(), buffer_was_empty: None, completions }
    }

    fn has_room(&self, writer: &Writer<D::File>, batch: &Batch, bytes: u64, footer_bytes: u64) -> bool {
        let active = writer.active.as_ref().expect("the batch is for it");
        batch.bytes() + bytes <= self.options.commit_bytes as u64
            && batch.end() + bytes + footer_bytes <= active.allocated
    }

    fn must_roll(&self, writer: &Writer<D::File>, bytes: u64) -> bool {
        let Some(active) = &writer.active else { return true };
        if active.failed {
            return true;
        }
        if active.next_offset == DATA_AT {
            return false;
        }
        let needed = bytes + 2 * BLOCK_BYTES as u64 + self.footer_bytes(active.segment.id);
        active.next_offset + needed > active.allocated || self.index_is_too_large(active.segment.id)
    }

    fn footer_bytes(&self, segment: u32) -> u64 {
        match self.catalog.read().segments.get(&segment) {
            Some(SegmentEntry { index: IndexState::Open(index), .. }) => index.footer_bytes_max() + FOOTER_SLACK_BYTES,
            _ => FOOTER_SLACK_BYTES,
        }
    }

    fn index_is_too_large(&self, segment: u32) -> bool {
        match self.catalog.read().segments.get(&segment) {
            Some(SegmentEntry { index: IndexState::Open(index), .. }) => {
                index.memory_bytes() > self.options.index_memory_bytes / 2
            }
            _ => false,
        }
    }

    /// Goes on in a new segment; the one before is sealed by the way (`maintain`).
    fn roll(&self, writer: &mut Writer<D::File>, class: Class) -> Result<(), AppendError> {
        assert_eq!(writer.in_flight, 0, "a segment is begun when nothing is under way");
        if let Some(reason) = &writer.read_only {
            return Err(AppendError::ReadOnly(reason.clone()));
        }
        let Prepared { segment, allocated, zeroed_to } = match writer.prepared.take() {
            Some(prepared) => prepared,
            None => {
                let bytes = self.affordable_segment(class)?;
                let id = writer.take_segment_id();
                let (segment, written_to) = self
                    .create_segment(SegmentKind::Log, id, bytes)
                    .map_err(|error| self.creation_failed(id, &error))?;
                Prepared { segment, allocated: bytes, zeroed_to: written_to.min(bytes) }
            }
        };
        let mut catalog = self.catalog.write();
        if let Some(before) = writer.active.take() {
            self.retire(&mut catalog, before.segment);
        }
        let entry = SegmentEntry {
            segment: segment.clone(),
            data_end: DATA_AT,
            index: IndexState::Open(OpenIndex::default()),
            live_bytes: 0,
            manifest_at: 0,
            holes: Vec::new(),
            active: true,
        };
        catalog.segments.insert(segment.id, entry);
        writer.active =
            Some(Active { segment, next_offset: DATA_AT, allocated, zeroed_to, failed: false, has_manifest: false });
        Ok(())
    }

    /// The segment takes no more commits. One in which nothing became durable was never a part of the log.
    pub(super) fn retire(&self, catalog: &mut Catalog<D::File>, segment: SharedSegment<D::File>) {
        let entry = catalog.segments.get_mut(&segment.id).expect("the active segment is in the catalog");
        entry.active = false;
        if entry.data_end == DATA_AT {
            catalog.segments.remove(&segment.id);
            self.pending.dropped.lock().push((segment, Vec::new()));
        }
    }

    /// The size of a new segment. Small ones are made of the reserve.
    fn affordable_segment(&self, class: Class) -> Result<u64, AppendError> {
        let free_bytes = self.disk.space().map_err(|error| AppendError::Io(error.to_string()))?.free_bytes;
        let LogOptions { segment_bytes, reserve_bytes, .. } = self.options;
        if free_bytes >= segment_bytes + reserve_bytes {
            return Ok(segment_bytes);
        }
        self.full.store(true, Ordering::Relaxed);
        if class == Class::Normal || (class == Class::Reserved && free_bytes < reserve_bytes / 2) {
            return Err(AppendError::DiskFull);
        }
        Ok((free_bytes / 8).clamp(RESERVE_SEGMENT_BYTES_MIN, segment_bytes).next_multiple_of(BLOCK_BYTES as u64))
    }

    fn creation_failed(&self, id: u32, error: &io::Error) -> AppendError {
        if error.kind() == io::ErrorKind::StorageFull {
            self.full.store(true, Ordering::Relaxed);
            return AppendError::DiskFull;
        }
        tracing::error!(segment = segment_name(id), %error, "could not create a segment");
        AppendError::Io(error.to_string())
    }

    /// Whether a log that failed writes have made read-only takes some from now on: if its disk takes a file. What could not be
    /// sealed or removed is tried again from now on, too.
    pub fn try_again(&self) -> io::Result<bool> {
        self.reconsider_failed();
        if !self.writer.lock().failing {
            return Ok(false);
        }
        let file = self.disk.create(PROBE_NAME)?;
        let mut block = AlignedBuffer::default();
        block.extend_zeros(BLOCK_BYTES);
        file.write_at(block.as_slice(), 0)?;
        file.sync_data()?;
        self.disk.remove(PROBE_NAME)?;
        self.disk.sync_folder()?;
        self.writer.lock().write_again();
        tracing::warn!("the disk takes writes again");
        Ok(true)
    }

    fn keep_buffer(&self, writer: &mut Writer<D::File>, buffer: AlignedBuffer) {
        if writer.buffers.len() < KEPT_BUFFERS && buffer.capacity() <= 2 * self.options.commit_bytes {
            writer.buffers.push(buffer);
        }
    }

    /// Must be called in the order in which the commits were begun. The answers are for the caller to give.
    pub fn finish(&self, mut commit: Box<Commit<D::File>>, written: io::Result<()>) -> Vec<Outcome> {
        let mut writer = self.writer.lock();
        assert_eq!(commit.ticket, writer.finished_ticket, "commits are finished in order");
        writer.finished_ticket += 1;
        writer.in_flight -= 1;
        if let Some(buffer) = commit.buffer_was_empty.take() {
            self.keep_buffer(&mut writer, buffer);
        }
        let result = match commit.target.take() {
            None => Ok(()),
            Some((segment, batch)) => {
                let result = self.conclude(&mut writer, &segment, &batch, written);
                match result {
                    Ok(()) => self.apply(&batch, &commit),
                    Err(_) => {
                        writer.closing.fail(batch.runs.iter().filter(|run| run.whole).map(|run| run.ledger));
                        let replicas = batch.runs.iter().filter(|run| !run.whole).map(|run| run.ledger);
                        writer.closing.doubt(replicas.chain(batch.controls.iter().map(Control::ledger)));
                    }
                }
                for control in &batch.controls {
                    match control {
                        Control::Fence { ledger, .. } | Control::Tombstone { ledger } if result.is_ok() => {
                            writer.closing.settled(*ledger);
                        }
                        Control::Key { ledger, .. } => drop(writer.keys.remove(ledger)),
                        _ => (),
                    }
                }
                self.keep_buffer(&mut writer, batch.buffer);
                result
            }
        };
        drop(writer);
        commit.completions.into_iter().map(|completion| self.outcome(completion, &result)).collect()
    }

    /// Whether the commit is durable. One that follows a failed one in its segment is not, whatever its own sync said.
    fn conclude(
        &self,
        writer: &mut Writer<D::File>,
        segment: &SharedSegment<D::File>,
        batch: &Batch,
        written: io::Result<()>,
    ) -> Result<(), AppendError> {
        let active = writer.active.as_mut().expect("a segment stays active while it is written");
        assert_eq!(active.segment.id, segment.id, "no segment is begun while commits are under way");
        let failure = match written {
            Err(error) => Some(error.to_string()),
            Ok(()) if active.failed => Some("an earlier write to the segment failed".to_owned()),
            Ok(()) => None,
        };
        let Some(failure) = failure else {
            writer.durable = (segment.id, batch.end());
            writer.failures = 0;
            writer.commits += 1;
            writer.committed_bytes += batch.buffer.len() as u64;
            return Ok(());
        };
        if !active.failed {
            active.failed = true;
            writer.failures += 1;
            tracing::error!(segment = segment_name(segment.id), error = failure, "could not write the log");
        }
        writer.failed_commits += 1;
        writer.give_up_if_it_fails_on(&failure);
        Err(AppendError::Io(failure))
    }

    fn apply(&self, batch: &Batch, commit: &Commit<D::File>) {
        let mut catalog = self.catalog.write();
        let entry = catalog.segments.get_mut(&batch.segment).expect("the active segment is in the catalog");
        entry.data_end = batch.end();
        if let Some(at) = batch.manifest_at {
            entry.manifest_at = at;
        }
        for run in &batch.runs {
            catalog.add_run(batch.segment, run);
        }
        for &control in &batch.controls {
            catalog.add_control(batch.segment, control);
        }
        self.apply_housekeeping(&mut catalog, commit.adopt, &commit.drop);
    }

    fn outcome(&self, completion: Completion, written: &Result<(), AppendError>) -> Outcome {
        match completion {
            Completion::Append(done, allowed) => Outcome::Append(done, allowed.and_then(|()| written.clone())),
            Completion::Fence(ledger, done, allowed) => {
                let result = match allowed.and_then(|()| written.clone()) {
                    Err(error) => Err(FenceError::NotDurable(error)),
                    Ok(()) => self.last_entry_of_fenced(ledger).map_err(FenceError::Unknown),
                };
                Outcome::Fence(done, result)
            }
        }
    }

    fn last_entry_of_fenced(&self, ledger: u64) -> Result<Option<u64>, ReadError> {
        match self.last_entry(ledger) {
            Err(ReadError::NoSuchLedger { .. }) => Ok(None),
            other => other,
        }
    }
}
