//! The engine with threads around it: two that write, one that keeps house.
//!
//! The writing threads are equals. One takes what has arrived and encodes it; while it writes and syncs, requests gather
//! for the next commit, which is begun when the first is finished, or at once by the other thread when there is enough
//! ([`OVERLAP_BYTES`]) that two writes under way pay off. So a lone append costs no hand-over between threads, and a
//! stream keeps the disk busy during encoding and syncing.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::disk::real::{RealDisk, RealFile};
use crate::engine::{
    Admission, Append, Begin, Commit, Done, Engine, FenceDone, LogStats, RecoveryReport, Request, Scrubbed, ZeroFirst,
    Zeros,
};
use crate::error::{AppendError, FenceError, OpenError, ReadError};
use crate::housekeeping;
use crate::options::LogOptions;
use crate::replica::{ExplicitLac, MasterKey};

/// A second commit is begun beside one under way when this much waits.
const OVERLAP_BYTES: usize = 256 << 10;
const WRITERS: usize = 2;
/// Written with zeros before the log is open, unless that takes longer than so long.
const ZEROED_AT_START_BYTES: u64 = 32 << 20;
const ZEROING_AT_START: Duration = Duration::from_millis(25);
const ZEROING_STEP_BYTES: usize = 4 << 20;

/// A handle to an open log; clones share it. The log closes when [`Log::close`] is called or the last handle goes.
#[derive(Clone)]
pub struct Log {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

pub(crate) struct Shared {
    pub engine: Engine<RealDisk>,
    pub options: LogOptions,
    queue: Mutex<Queue>,
    /// Woken when there may be something to write, and when a commit was finished.
    work: Condvar,
    /// Wakes the housekeeper.
    pub house: Condvar,
    pub house_state: Mutex<housekeeping::State>,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    bytes: usize,
    /// A thread is between taking requests and having encoded them.
    encoding: bool,
    under_way: usize,
    /// The ones under way allow others beside them.
    overlaps: bool,
    /// The engine wants everything under way finished first.
    must_wait: bool,
    /// How many commits were begun and finished, for their order.
    begun: u64,
    finished: u64,
    idle_writers: usize,
    closed: bool,
}

impl Queue {
    fn may_begin(&self) -> bool {
        if self.encoding || self.requests.is_empty() {
            return false;
        }
        match self.under_way {
            0 => true,
            under_way => under_way < WRITERS && self.overlaps && !self.must_wait && self.bytes >= OVERLAP_BYTES,
        }
    }
}

impl Log {
    /// Opens the log in a folder of a real disk, creating it if need be, and recovers what a crash left.
    pub fn open(folder: &Path, options: LogOptions) -> Result<(Self, RecoveryReport), OpenError> {
        let disk = RealDisk::open(folder)?;
        let (engine, report) = Engine::open(disk, options.clone())?;
        if let Err(error) = engine.prepare_next() {
            tracing::warn!(%error, "could not prepare a segment");
        }
        zero_first_blocks(&engine);
        let shared = Arc::new(Shared {
            engine,
            options,
            queue: Mutex::default(),
            work: Condvar::new(),
            house: Condvar::new(),
            house_state: Mutex::default(),
        });
        let mut threads = Vec::new();
        let mut start = |name: String, run: fn(Arc<Shared>)| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                let _indispensable = Indispensable;
                run(shared);
            });
            threads.push(thread.map_err(|source| OpenError::Io {
                action: "starting a thread",
                folder: folder.display().to_string(),
                source,
            })?);
            Ok(())
        };
        for writer in 0..WRITERS {
            start(format!("log-writer-{writer}"), |shared| write_commits(&shared))?;
        }
        start("log-keeper".to_owned(), |shared| housekeeping::run(&shared))?;
        Ok((Self { owner: Arc::new(Owner { shared, threads: Mutex::new(threads) }) }, report))
    }

    fn shared(&self) -> &Shared {
        &self.owner.shared
    }

    /// Writes entries, all or none of them. Never blocks. `done` hears once, on a thread of the log, in the order of the
    /// calls: `Ok` means that everything in the call survives a crash. What it does the next commit waits for.
    pub fn append(&self, entries: Vec<Append>, done: Done) {
        self.shared().submit(Request::Append { entries, admission: Admission::Whole, done });
    }

    /// As [`Log::append`], for a replica: entries in any order, with gaps and again. `recovery` is allowed on a fenced one.
    pub fn append_to_replica(&self, entries: Vec<Append>, key: MasterKey, recovery: bool, done: Done) {
        self.shared().submit(Request::Append { entries, admission: Admission::Replica { key, recovery }, done });
    }

    /// Fences a replica, durably: later appends to it that are no recovery, and those that wait behind this call, fail
    /// with [`AppendError::Fenced`]. `done` hears its last entry. One of which nothing is known is noted as an empty one.
    pub fn fence_replica(&self, ledger: u64, key: MasterKey, done: FenceDone) {
        self.shared().submit(Request::Fence { ledger, key: Some(key), done });
    }

    /// Notes a last add confirmed that came without an entry, durably.
    pub fn confirm_replica(&self, ledger: u64, key: MasterKey, lac: ExplicitLac, done: Done) {
        self.shared().submit(Request::ExplicitLac { ledger, key, lac, done });
    }

    /// Whether anything durable is known of the ledger, a deletion apart.
    pub fn knows(&self, ledger: u64) -> bool {
        self.shared().engine.knows(ledger)
    }

    /// Whether the ledger was deleted here, so that it takes nothing for good.
    pub fn has_deleted(&self, ledger: u64) -> bool {
        self.shared().engine.has_deleted(ledger)
    }

    /// Ids between those of deleted ledgers, in order, each with the first and the last of a stretch.
    pub fn deleted_gaps(&self) -> Vec<(u64, u64)> {
        self.shared().engine.deleted_gaps()
    }

    /// Stretches of ids, in order, of which there is no ledger anywhere any more and never will be: they are remembered like those of
    /// deleted ledgers, so that these are few ranges. Where a replica is or comes, nothing is done.
    pub fn fill_deleted_gaps(&self, gaps: &[(u64, u64)]) {
        self.shared().engine.fill_deleted_gaps(gaps);
    }

    /// Whether a replica is fenced, and its explicit last add confirmed; `None` if nothing is known of it.
    pub fn replica(&self, ledger: u64) -> Option<(bool, Option<ExplicitLac>)> {
        self.shared().engine.replica(ledger)
    }

    /// The entries that there are of a ledger, as stretches of a first entry and a number of entries, in order.
    pub fn stretches(&self, ledger: u64) -> Result<Vec<(u64, u64)>, ReadError> {
        self.shared().engine.stretches(ledger)
    }

    /// The master key of a replica, if it is known.
    pub fn key(&self, ledger: u64) -> Option<MasterKey> {
        self.shared().engine.key(ledger)
    }

    /// Segments that hold something, to be scrubbed one after the other.
    pub fn scrub_order(&self) -> Vec<u32> {
        self.shared().engine.scrub_order()
    }

    /// Reads a segment and says what is damaged in it; `pace` is called with the bytes of each step and says whether to go on.
    /// `None` if it is gone, or was given up. Blocks.
    ///
    /// # Errors
    /// The disk does not read it.
    pub fn scrub(&self, segment: u32, pace: &mut dyn FnMut(u64) -> bool) -> std::io::Result<Option<Scrubbed>> {
        self.shared().engine.scrub(segment, pace)
    }

    /// As what the holes of the log may hide is known by now to be of no consequence, what is not in the index is not there from
    /// now on. The next start may find the same holes again.
    pub fn forgive_holes(&self) {
        self.shared().engine.forgive_holes();
    }

    /// To be called when damaged entries may have been repaired: compaction had left their segments alone.
    pub fn reconsider_damaged(&self) {
        self.shared().engine.reconsider_damaged();
    }

    /// Whether the index has the entry, readable or not. Blocks.
    pub fn lists(&self, ledger: u64, entry: u64) -> bool {
        self.shared().engine.lists(ledger, entry)
    }

    /// Whether the index has an entry of which no copy can be read. Blocks.
    pub fn is_damaged(&self, ledger: u64, entry: u64) -> bool {
        self.shared().engine.is_damaged(ledger, entry)
    }

    /// One entry.
    pub fn read(&self, ledger: u64, entry: u64) -> Result<Bytes, ReadError> {
        self.shared().engine.read(ledger, entry)
    }

    /// Entries from `first` on, in order: up to `last`, to the end of the ledger, to the first that is missing or
    /// unreadable, or until there are `max_bytes` of them. At least one; if `first` cannot be had, the error says why.
    pub fn read_range(
        &self,
        ledger: u64,
        first: u64,
        last: u64,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, ReadError> {
        self.shared().engine.read_range(ledger, first, last, max_bytes)
    }

    /// Ends the ledger, durably: later appends to it, and those that wait behind this call, fail with
    /// [`AppendError::Fenced`]. Answers its last entry. A ledger that does not exist is fenced as an empty one. Blocks.
    pub fn fence(&self, ledger: u64) -> Result<Option<u64>, FenceError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.fence_then(ledger, Box::new(move |result| drop(sender.send(result))));
        receiver.recv().unwrap_or(Err(FenceError::NotDurable(AppendError::Closed)))
    }

    /// [`Log::fence`] without blocking.
    pub fn fence_then(&self, ledger: u64, done: FenceDone) {
        self.shared().submit(Request::Fence { ledger, key: None, done });
    }

    /// The last durable entry, `None` for a ledger without one.
    pub fn last_entry(&self, ledger: u64) -> Result<Option<u64>, ReadError> {
        self.shared().engine.last_entry(ledger)
    }

    /// Bytes that the ledger takes on disk, about; 0 if it does not exist.
    pub fn ledger_bytes(&self, ledger: u64) -> u64 {
        self.shared().engine.ledger_bytes(ledger)
    }

    /// Deletes ledgers, durably, also on a full disk; those that do not exist are no error. Their space is freed later.
    pub fn delete_ledgers(&self, ledgers: &[u64], done: Done) {
        self.shared().submit(Request::Delete { ledgers: ledgers.to_vec(), done });
    }

    /// Ids of all ledgers, in order.
    pub fn ledgers(&self) -> Vec<u64> {
        self.shared().engine.ledgers()
    }

    pub fn stats(&self) -> LogStats {
        LogStats { queued_bytes: self.shared().queue.lock().bytes, ..self.shared().engine.stats() }
    }

    /// Writes what waits, seals the log and ends its threads. Later appends answer [`AppendError::Closed`]; reads go on.
    pub fn close(&self) {
        self.owner.close();
    }
}

/// The first commits find written blocks.
fn zero_first_blocks(engine: &Engine<RealDisk>) {
    let (zeros, begin, mut zeroed) = (Zeros::new(ZEROING_STEP_BYTES), Instant::now(), 0);
    while zeroed < ZEROED_AT_START_BYTES && begin.elapsed() < ZEROING_AT_START {
        match engine.zero_ahead(&zeros, ZeroFirst::Active) {
            Ok(0) => break,
            Ok(bytes) => zeroed += bytes,
            Err(error) => {
                tracing::warn!(%error, "could not write zeros");
                break;
            }
        }
    }
}

/// Ends the process when its thread panics. Without that thread nobody would be answered any more; with the process gone, others
/// take over or it is started again, and whatever was acknowledged is on the disk.
struct Indispensable;

impl Drop for Indispensable {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a thread of the log panicked: the process ends");
            std::process::abort();
        }
    }
}

impl Owner {
    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.work.notify_all();
        self.shared.house_state.lock().closed = true;
        self.shared.house.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return;
        }
        let this = std::thread::current().id();
        for thread in threads {
            // A callback may hold the last handle; it cannot wait for its own thread.
            if thread.thread().id() != this {
                let _ = thread.join();
            }
        }
        if self.shared.queue.lock().under_way == 0
            && let Err(error) = self.shared.engine.shut_down()
        {
            tracing::warn!(%error, "could not seal the log, its end will be read again at the next start");
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    pub fn submit(&self, mut request: Request) {
        let mut bytes = request.queued_bytes();
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return refuse(request, AppendError::Closed);
        }
        // Only appends can be many and large; the others are what frees space and memory.
        let is_append = matches!(request, Request::Append { .. });
        if is_append && queue.bytes > 0 && queue.bytes + bytes > self.options.max_queued_bytes {
            let Request::Append { entries, admission, done } = request else { unreachable!("just matched") };
            let whole = entries.iter().filter(|_| admission == Admission::Whole);
            let mut ledgers: Vec<u64> = whole.map(|entry| entry.ledger).collect();
            ledgers.dedup();
            request = Request::Refused { ledgers, done, error: AppendError::Overloaded };
            bytes = request.queued_bytes();
        }
        queue.requests.push_back(request);
        queue.bytes += bytes;
        let wake = queue.idle_writers > 0 && queue.may_begin();
        drop(queue);
        if wake {
            self.work.notify_one();
        }
    }

    pub fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.requests.is_empty() && queue.under_way == 0
    }
}

fn refuse(request: Request, error: AppendError) {
    match request {
        Request::Append { done, .. }
        | Request::Delete { done, .. }
        | Request::ExplicitLac { done, .. }
        | Request::Refused { done, .. }
        | Request::Housekeeping { done, .. } => done(Err(error)),
        Request::Fence { done, .. } => done(Err(FenceError::NotDurable(error))),
        Request::Mark => (),
    }
}

/// What each writing thread does until the log is closed and nothing is left.
fn write_commits(shared: &Shared) {
    while let Some((turn, commit)) = next_commit(shared) {
        let written = commit.write();
        let mut queue = shared.queue.lock();
        while queue.finished != turn {
            shared.work.wait(&mut queue);
        }
        drop(queue);
        // Nobody else finishes before this turn is over, so answers come in order.
        shared.engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
        let mut queue = shared.queue.lock();
        queue.finished += 1;
        queue.under_way -= 1;
        queue.must_wait = false;
        // For its turn to finish, or the end. What else is queued this thread takes itself.
        let someone_waits = queue.under_way > 0 || queue.closed;
        drop(queue);
        if someone_waits {
            shared.work.notify_all();
        }
    }
}

/// Waits for requests and encodes them; `None` when the log is closed and drained.
fn next_commit(shared: &Shared) -> Option<(u64, Box<Commit<RealFile>>)> {
    let mut queue = shared.queue.lock();
    loop {
        while !queue.may_begin() {
            if queue.closed && queue.requests.is_empty() && !queue.encoding {
                return None;
            }
            queue.idle_writers += 1;
            shared.work.wait(&mut queue);
            queue.idle_writers -= 1;
        }
        queue.encoding = true;
        let mut taken = std::mem::take(&mut queue.requests);
        let taken_bytes = queue.bytes;
        drop(queue);
        let begin = shared.engine.begin(&mut taken);
        let left_bytes: usize = taken.iter().map(Request::queued_bytes).sum();
        queue = shared.queue.lock();
        queue.encoding = false;
        queue.bytes = queue.bytes - taken_bytes + left_bytes;
        // What was not taken goes back before what came in the meantime.
        taken.append(&mut queue.requests);
        queue.requests = taken;
        match begin {
            Begin::Commit(commit) => {
                queue.under_way += 1;
                queue.overlaps = commit.overlaps();
                queue.begun += 1;
                if queue.idle_writers > 0 && queue.may_begin() {
                    shared.work.notify_one();
                }
                return Some((queue.begun - 1, commit));
            }
            Begin::Wait => queue.must_wait = true,
            Begin::Nothing => (),
        }
    }
}
