//! Reads: they wait in a queue of their connection, and a few workers of it take them in groups into blocking calls.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_wire_bookkeeper::{BatchRead, Code, EntryList, LAST_ENTRY, MasterKey, Read, ReplyTo, Response, Wait};

use crate::connection::Connection;
use crate::errors;
use crate::node::StorageNode;

/// Reads that may wait on one connection; more are refused.
const WAITING_MAX: usize = 20_000;
/// Workers of one connection.
const WORKERS: usize = 4;
/// Reads, and about the bytes of their answers, in one blocking call.
const TOGETHER: usize = 32;
const TOGETHER_BYTES: usize = 1 << 20;
/// Bytes of an answer to a batch read, however many are asked for.
const BATCH_BYTES_MAX: i64 = 5 << 20;
/// Head of an answer to a batch read, and what precedes each entry in it.
const BATCH_HEAD_BYTES: i64 = 24 + 8 + 4;
const BATCH_ENTRY_HEAD_BYTES: i64 = 4;
/// The longest wait for a ledger to grow.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Something that has to look into the log.
pub enum Job {
    Read(Read),
    BatchRead(BatchRead),
    ReadLac(i64),
    ListEntries(i64),
}

struct Waiting {
    reply_to: ReplyTo,
    job: Job,
    since: Instant,
}

#[derive(Default)]
pub struct Reads {
    waiting: VecDeque<Waiting>,
    workers: usize,
}

impl Connection {
    /// A read of one or more entries, perhaps after fencing, perhaps after waiting.
    pub fn read(self: &Arc<Self>, reply_to: ReplyTo, read: Read) {
        match (read.fence, read.wait) {
            (true, _) => {
                let (ledger, key) = (read.ledger, read.master_key);
                self.fence(reply_to, ledger, key, Job::Read(Read { fence: false, ..read }));
            }
            (false, Some(wait)) => self.read_when_confirmed(reply_to, read, wait),
            (false, None) => self.enqueue(reply_to, Job::Read(read)),
        }
    }

    pub fn batch_read(self: &Arc<Self>, reply_to: ReplyTo, read: BatchRead) {
        if read.fence {
            let (ledger, key) = (read.ledger, read.master_key);
            return self.fence(reply_to, ledger, key, Job::BatchRead(BatchRead { fence: false, ..read }));
        }
        self.enqueue(reply_to, Job::BatchRead(read));
    }

    /// Fences, durably, before it reads: what the read finds is then all that the writer can have had acknowledged here.
    fn fence(self: &Arc<Self>, reply_to: ReplyTo, ledger: i64, key: Option<MasterKey>, then: Job) {
        let Some(key) = key else { return self.answer(&reply_to, Code::Unauthorized, &Response::Empty) };
        let Ok(ledger) = u64::try_from(ledger) else {
            return self.answer(&reply_to, Code::BadRequest, &Response::Empty);
        };
        tracing::debug!(ledger, address = %self.address, "fencing a ledger");
        self.node.stats.fences.fetch_add(1, Ordering::Relaxed);
        let (connection, runtime) = (self.clone(), tokio::runtime::Handle::current());
        self.node.log.fence_replica(
            ledger,
            key,
            Box::new(move |result| match result {
                Ok(_) => {
                    connection.node.confirmed.wake(ledger);
                    let _in_runtime = runtime.enter();
                    connection.enqueue(reply_to, then);
                }
                Err(error) => connection.answer(&reply_to, errors::of_fence(&error), &Response::Empty),
            }),
        );
    }

    /// Answers once the ledger is confirmed further than the client knows, or its patience is over.
    fn read_when_confirmed(self: &Arc<Self>, reply_to: ReplyTo, read: Read, wait: Wait) {
        let connection = self.clone();
        tokio::spawn(async move {
            if let Some(patience) = wait.timeout_ms {
                let patience = Duration::from_millis(patience.max(0) as u64).min(WAIT_MAX);
                tokio::select! {
                    waited = connection.confirmed_beyond(read.ledger, wait.previous_lac) => {
                        if let Err(code) = waited {
                            return connection.answer(&reply_to, code, &Response::Empty);
                        }
                    }
                    () = tokio::time::sleep(patience) => (),
                    () = connection.closed() => return,
                }
            }
            connection.enqueue(reply_to, Job::Read(read));
        });
    }

    async fn confirmed_beyond(&self, ledger: i64, previous_lac: i64) -> Result<(), Code> {
        let node = self.node.clone();
        let looked_up = blocking(&self.node, move || node.confirmation(ledger)).await?;
        if looked_up.last_add_confirmed > previous_lac {
            return Ok(());
        }
        let mut watch = self.node.confirmed.watch(ledger as u64);
        // Whatever has come between the look and the watch is in it already.
        while *watch.borrow_and_update() <= previous_lac {
            if watch.changed().await.is_err() {
                break;
            }
        }
        Ok(())
    }

    pub fn enqueue(self: &Arc<Self>, reply_to: ReplyTo, job: Job) {
        let mut reads = self.reads.lock();
        if reads.waiting.len() >= WAITING_MAX {
            drop(reads);
            return self.answer(&reply_to, Code::TooManyRequests, &Response::Empty);
        }
        let is_urgent = matches!(job, Job::Read(Read { high_priority: true, .. }));
        let is_large = matches!(job, Job::BatchRead(_));
        let waiting = Waiting { reply_to, job, since: Instant::now() };
        if is_urgent {
            reads.waiting.push_front(waiting)
        } else {
            reads.waiting.push_back(waiting)
        }
        // While one batch is on its way from the disk, another can be on its way to the client.
        if reads.workers < WORKERS && (is_large || reads.waiting.len() > reads.workers * TOGETHER) {
            reads.workers += 1;
            tokio::spawn(self.clone().work());
        }
    }

    async fn work(self: Arc<Self>) {
        loop {
            self.writable().await;
            let Ok(_turn) = self.node.reads.acquire().await else { return };
            let group: Vec<Waiting> = {
                let mut reads = self.reads.lock();
                if self.outbox.is_closed() {
                    reads.waiting.clear();
                }
                if reads.waiting.is_empty() {
                    reads.workers -= 1;
                    return;
                }
                let batch = reads.waiting.iter().position(|waiting| matches!(waiting.job, Job::BatchRead(_)));
                let count = batch.map_or(usize::MAX, |at| at + 1).min(reads.waiting.len()).min(TOGETHER);
                reads.waiting.drain(..count).collect()
            };
            let connection = self.clone();
            let left = tokio::task::spawn_blocking(move || connection.work_on(group)).await;
            match left {
                Ok(left) if !left.is_empty() => {
                    let mut reads = self.reads.lock();
                    left.into_iter().rev().for_each(|waiting| reads.waiting.push_front(waiting));
                }
                Ok(_) => (),
                Err(error) => tracing::error!(%error, "a reading thread ended"),
            }
        }
    }

    /// Answers them in order, and gives back those for which there was no room.
    fn work_on(self: &Arc<Self>, group: Vec<Waiting>) -> VecDeque<Waiting> {
        let mut group = VecDeque::from(group);
        let (mut answers, mut bytes) = (Vec::with_capacity(group.len()), 0);
        while bytes < TOGETHER_BYTES
            && let Some(Waiting { reply_to, job, since }) = group.pop_front()
        {
            let is_compact = matches!(reply_to, ReplyTo::Compact { .. });
            let (code, response) = match self.node.answer_to(&job, is_compact) {
                Ok(response) => (Code::Ok, response),
                Err(code) => (code, Response::Empty),
            };
            let stats = &self.node.stats;
            let answer_bytes = bytes_of(&response);
            bytes += answer_bytes;
            stats.read_bytes.fetch_add(answer_bytes as u64, Ordering::Relaxed);
            stats.failed_reads.fetch_add(u64::from(code != Code::Ok), Ordering::Relaxed);
            stats.read_time.record(since.elapsed());
            answers.push((reply_to, code, response));
        }
        self.answer_all(answers);
        group
    }
}

fn bytes_of(response: &Response) -> usize {
    match response {
        Response::Entry { body: Some(body), .. } => body.len(),
        Response::Entries(entries) => entries.iter().map(Bytes::len).sum(),
        Response::EntryList(list) => list.len(),
        _ => 0,
    }
}

/// Runs what blocks where blocking is allowed, in turn with the reads.
async fn blocking<T: Send + 'static>(
    node: &StorageNode,
    work: impl FnOnce() -> Result<T, Code> + Send + 'static,
) -> Result<T, Code> {
    let _turn = node.reads.acquire().await.map_err(|_| Code::Io)?;
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Code::Io))
}

impl StorageNode {
    fn answer_to(&self, job: &Job, is_compact: bool) -> Result<Response, Code> {
        match job {
            Job::Read(read) => match read.wait {
                Some(wait) if wait.piggyback => self.answer_with_piggyback(read, wait),
                _ => {
                    let body = self.read(read.ledger, read.entry)?;
                    // Version 2 has no place for it. It may be left out: damage to the last entry is no reason to keep this one back.
                    let max_lac = match is_compact {
                        true => None,
                        false => self.confirmation(read.ledger).ok().map(|now| now.last_add_confirmed),
                    };
                    Ok(Response::Entry { body: Some(body), max_lac, lac_updated: None, entry: None })
                }
            },
            Job::BatchRead(read) => self.answer_batch(read),
            &Job::ReadLac(ledger) => match self.lac_sources(ledger)? {
                (None, None) => Err(Code::NoEntry),
                (explicit, last_entry) => Ok(Response::Lac { explicit, last_entry }),
            },
            &Job::ListEntries(ledger) => {
                let ledger = u64::try_from(ledger).map_err(|_| Code::NoLedger)?;
                let stretches = self.log.stretches(ledger).map_err(|error| self.failed(&error))?;
                Ok(Response::EntryList(EntryList::from_stretches(stretches).encode()))
            }
        }
    }

    /// With the entry behind the last add confirmed that the client knows, if there is one by now and it is here.
    fn answer_with_piggyback(&self, read: &Read, wait: Wait) -> Result<Response, Code> {
        if read.entry != LAST_ENTRY {
            return Err(Code::BadRequest);
        }
        let now = self.confirmation(read.ledger)?;
        let max_lac = Some(now.last_add_confirmed);
        if now.last_add_confirmed <= wait.previous_lac {
            return Ok(Response::Entry { body: None, max_lac, lac_updated: None, entry: None });
        }
        let next = wait.previous_lac + 1;
        match self.read(read.ledger, next) {
            Ok(body) => {
                let lac_updated = Some(now.since_ms);
                Ok(Response::Entry { body: Some(body), max_lac, lac_updated, entry: Some(next) })
            }
            // Entries are striped: it may be on other nodes only.
            Err(Code::NoEntry) => Ok(Response::Entry { body: None, max_lac, lac_updated: None, entry: None }),
            Err(code) => Err(code),
        }
    }

    fn answer_batch(&self, read: &BatchRead) -> Result<Response, Code> {
        if read.entry == LAST_ENTRY {
            return Ok(Response::Entries(vec![self.read(read.ledger, read.entry)?]));
        }
        let limit = read.max_bytes.min(BATCH_BYTES_MAX);
        let max_count = if read.max_count <= 0 { i32::MAX as usize } else { read.max_count as usize };
        let (mut entries, mut bytes) = (Vec::new(), BATCH_HEAD_BYTES);
        while entries.len() < max_count {
            let Some(next) = read.entry.checked_add(entries.len() as i64) else { break };
            let more =
                match self.read_some(read.ledger, next, max_count - entries.len(), (limit - bytes).max(0) as usize) {
                    Err(code) if entries.is_empty() => return Err(code),
                    // The end of what is here ends the batch, for whatever reason.
                    Err(_) => break,
                    Ok(more) => more,
                };
            for entry in more {
                bytes += BATCH_ENTRY_HEAD_BYTES + entry.len() as i64;
                if bytes > limit && !entries.is_empty() {
                    return Ok(Response::Entries(entries));
                }
                entries.push(entry);
            }
        }
        Ok(Response::Entries(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use geminga_log::{Log, LogOptions};
    use geminga_wire_bookkeeper::{Digest, DigestKind};

    use super::*;
    use crate::node::NodeOptions;

    #[tokio::test]
    async fn a_damaged_last_entry_keeps_no_other_back() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
        let (log, _) = Log::open(folder.path(), options).expect("it opens");
        let node = StorageNode::new(log, NodeOptions::new(64 << 20));
        let digest = Digest::new(7, DigestKind::Crc32c, b"");
        for entry in 0..3 {
            let payload = Bytes::from(vec![100 + entry as u8; 5000]);
            let head = digest.entry_head(entry, entry - 1, 0, &[&payload]);
            let body = Bytes::from([head, payload].concat());
            node.write_copy(7, entry as u64, body).await.expect("it is written");
        }
        let path = folder.path().join("segment-00000001");
        let content = std::fs::read(&path).expect("it can be read");
        let last = content.windows(3000).position(|part| part == [102; 3000]).expect("it is there") as u64;
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it opens");
        file.write_all_at(b"other", last + 1000).expect("it is damaged");

        let read = |entry| {
            let read = Read { ledger: 7, entry, fence: false, master_key: None, high_priority: false, wait: None };
            node.answer_to(&Job::Read(read), false)
        };
        for entry in [0, 1] {
            let answer = read(entry);
            assert!(matches!(answer, Ok(Response::Entry { body: Some(_), max_lac: None, .. })), "{answer:?}");
        }
        assert!(matches!(read(2), Err(Code::UnknownLedgerState)));
        node.close();
    }

    #[tokio::test]
    async fn a_batch_is_read_in_one_piece_and_small_ones_ahead() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let (log, _) = Log::open(folder.path(), LogOptions::default()).expect("it opens");
        let node = StorageNode::new(log, NodeOptions::new(64 << 20));
        for (ledger, bytes, count) in [(7, 100_000, 20), (8, 100, 200)] {
            let digest = Digest::new(ledger, DigestKind::Crc32c, b"");
            for entry in 0..count {
                let payload = Bytes::from(vec![entry as u8; bytes]);
                let head = digest.entry_head(entry, entry - 1, 0, &[&payload]);
                let body = Bytes::from([head, payload].concat());
                node.write_copy(ledger as u64, entry as u64, body).await.expect("it is written");
            }
        }
        let read = |ledger, entry, max_count| {
            let (max_bytes, request_id, fence, master_key) = (1 << 20, 0, false, None);
            let batch = BatchRead { ledger, entry, request_id, max_count, max_bytes, fence, master_key };
            let misses = node.stats.cache_misses.load(Ordering::Relaxed);
            let Ok(Response::Entries(entries)) = node.answer_to(&Job::BatchRead(batch), true) else {
                panic!("no answer")
            };
            for (at, body) in (entry..).zip(&entries) {
                assert_eq!(body.last(), Some(&(at as u8)));
            }
            (entries.len(), node.stats.cache_misses.load(Ordering::Relaxed) - misses)
        };
        assert_eq!(read(7, 0, 8), (8, 1));
        assert_eq!(read(7, 8, 99), (10, 1), "bytes end it");
        assert_eq!(read(7, 18, 99).0, 2, "the ledger ends it");
        assert_eq!(node.cache.bytes(), 0, "whoever reads so much comes elsewhere for the next ones");
        assert_eq!(read(8, 0, 10), (10, 1));
        assert_eq!(read(8, 10, 10), (10, 1), "it is one who goes on");
        assert_eq!(read(8, 20, 10), (10, 0));
        node.close();
    }
}
