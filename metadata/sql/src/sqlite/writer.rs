//! The task that owns the writing connection.

use std::sync::Arc;

use geminga_metadata::{ChangeFeed, MetadataError, Op, prefix_end};
use parking_lot::Mutex;
use sqlx::{Row, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::statements;
use crate::error::from_sqlx;
use crate::overlay::{Footprint, Overlay, Writes};

/// Requests that share a transaction at most.
const BATCH_REQUESTS_MAX: usize = 1024;
/// Bytes of requests that wait or are being written; more wait in their callers.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// What a request counts besides its keys and values.
const REQUEST_OVERHEAD_BYTES: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, MetadataError>>;

enum Request {
    Commit { ops: Vec<Op>, reply: Reply<Vec<u64>>, permit: OwnedSemaphorePermit },
    Allocate { sequence: String, count: u64, reply: Reply<u64>, permit: OwnedSemaphorePermit },
}

/// An answer that is told once the transaction is durable.
enum Answer {
    Commit(Reply<Vec<u64>>, Result<Vec<u64>, MetadataError>),
    Allocate(Reply<u64>, Result<u64, MetadataError>),
}

impl Answer {
    fn tell(self, failure: Option<&MetadataError>) {
        // A caller that has gone does not want the answer.
        match self {
            Answer::Commit(reply, result) => drop(reply.send(failure.map_or(result, |error| Err(error.clone())))),
            Answer::Allocate(reply, result) => drop(reply.send(failure.map_or(result, |error| Err(error.clone())))),
        }
    }
}

/// Sends requests to the writer and waits for their answers.
pub(super) struct Handle {
    requests: Mutex<Option<mpsc::UnboundedSender<Request>>>,
    queue_bytes: Arc<Semaphore>,
    subject: Arc<str>,
}

impl Handle {
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        let bytes = ops.iter().map(op_bytes).sum();
        let permit = self.admit(bytes).await?;
        let (reply, answer) = oneshot::channel();
        self.send(Request::Commit { ops, reply, permit })?;
        answer.await.map_err(|_| self.closed())?
    }

    pub async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        let permit = self.admit(sequence.len()).await?;
        let (reply, answer) = oneshot::channel();
        self.send(Request::Allocate { sequence: sequence.to_owned(), count, reply, permit })?;
        answer.await.map_err(|_| self.closed())?
    }

    /// The writer finishes what was sent and ends.
    pub fn close(&self) {
        self.requests.lock().take();
    }

    async fn admit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, MetadataError> {
        let bytes = (bytes + REQUEST_OVERHEAD_BYTES).min(QUEUE_BYTES_MAX) as u32;
        self.queue_bytes.clone().acquire_many_owned(bytes).await.map_err(|_| self.closed())
    }

    fn send(&self, request: Request) -> Result<(), MetadataError> {
        let requests = self.requests.lock();
        let sent = requests.as_ref().map(|requests| requests.send(request));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(self.closed()),
        }
    }

    fn closed(&self) -> MetadataError {
        MetadataError::Unavailable(format!("{} is closed", self.subject))
    }
}

fn op_bytes(op: &Op) -> usize {
    REQUEST_OVERHEAD_BYTES
        + match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } | Op::Check { key, .. } => key.len(),
            Op::CheckEmpty { prefix } | Op::DeletePrefix { prefix } => prefix.len(),
        }
}

pub(super) struct Writer {
    connection: SqliteConnection,
    requests: mpsc::UnboundedReceiver<Request>,
    subject: Arc<str>,
    feed: ChangeFeed,
}

impl Writer {
    pub fn new(connection: SqliteConnection, subject: Arc<str>, feed: ChangeFeed) -> (Writer, Handle) {
        let (sender, requests) = mpsc::unbounded_channel();
        let handle = Handle {
            requests: Mutex::new(Some(sender)),
            queue_bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            subject: subject.clone(),
        };
        (Writer { connection, requests, subject, feed }, handle)
    }

    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.requests.recv_many(&mut batch, BATCH_REQUESTS_MAX).await > 0 {
            self.transaction(std::mem::take(&mut batch)).await;
        }
        super::close_connection(&self.subject, self.connection).await;
    }

    /// Runs a batch in one transaction, then answers every request of it.
    async fn transaction(&mut self, batch: Vec<Request>) {
        let mut answers = Vec::with_capacity(batch.len());
        let mut permits = Vec::with_capacity(batch.len());
        let mut changed = Vec::new();
        let outcome = self.attempt(batch, &mut answers, &mut permits, &mut changed).await;
        let failure = match outcome {
            Ok(()) => {
                self.feed.publish(changed.iter().map(String::as_str));
                None
            }
            Err(error) => {
                // Nothing was open when BEGIN itself failed.
                let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
                let error = from_sqlx(&self.subject, error);
                tracing::warn!(%error, requests = answers.len(), "could not commit metadata");
                Some(error)
            }
        };
        for answer in answers {
            answer.tell(failure.as_ref());
        }
    }

    /// Leaves an answer for every request, whatever happens.
    async fn attempt(
        &mut self,
        batch: Vec<Request>,
        answers: &mut Vec<Answer>,
        permits: &mut Vec<OwnedSemaphorePermit>,
        changed: &mut Vec<String>,
    ) -> Result<(), sqlx::Error> {
        let mut outcome = sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await.map(drop);
        let mut plain = Vec::new();
        for request in batch {
            match request {
                Request::Commit { ops, reply, permit } => {
                    permits.push(permit);
                    let alone = Footprint::needs_prefixes(&ops);
                    if alone {
                        self.flush(&mut outcome, &mut plain, answers, changed).await;
                    }
                    plain.push((ops, reply));
                    if alone {
                        self.flush(&mut outcome, &mut plain, answers, changed).await;
                    }
                }
                Request::Allocate { sequence, count, reply, permit } => {
                    permits.push(permit);
                    let mut first = 0;
                    if outcome.is_ok() {
                        match self.allocate(&sequence, count).await {
                            Ok(id) => first = id,
                            Err(error) => outcome = Err(error),
                        }
                    }
                    answers.push(Answer::Allocate(reply, Ok(first)));
                }
            }
        }
        self.flush(&mut outcome, &mut plain, answers, changed).await;
        outcome?;
        sqlx::query("COMMIT").execute(&mut self.connection).await.map(drop)
    }

    /// Decides and writes the commits gathered so far. Once `outcome` is an error it only leaves their answers,
    /// which then are that error.
    async fn flush(
        &mut self,
        outcome: &mut Result<(), sqlx::Error>,
        commits: &mut Vec<(Vec<Op>, Reply<Vec<u64>>)>,
        answers: &mut Vec<Answer>,
        changed: &mut Vec<String>,
    ) {
        let (ops, replies): (Vec<_>, Vec<_>) = std::mem::take(commits).into_iter().unzip();
        if ops.is_empty() {
            return;
        }
        let mut results = Vec::new();
        if outcome.is_ok() {
            match self.decide(ops, changed).await {
                Ok(decided) => results = decided,
                Err(error) => *outcome = Err(error),
            }
        }
        let mut results = results.into_iter();
        for reply in replies {
            answers.push(Answer::Commit(reply, results.next().unwrap_or_else(|| Ok(Vec::new()))));
        }
    }

    async fn decide(
        &mut self,
        commits: Vec<Vec<Op>>,
        changed: &mut Vec<String>,
    ) -> Result<Vec<Result<Vec<u64>, MetadataError>>, sqlx::Error> {
        let mut overlay = self.load(&commits).await?;
        let last: i64 = sqlx::query_scalar(statements::ADVANCE_VERSION)
            .bind(commits.len() as i64)
            .fetch_one(&mut self.connection)
            .await?;
        let mut version = last as u64 - commits.len() as u64;
        let mut results = Vec::with_capacity(commits.len());
        for ops in commits {
            version += 1;
            results.push(overlay.apply(ops, version).map(|(versions, keys)| {
                changed.extend(keys);
                versions
            }));
        }
        self.write(overlay.into_writes()).await?;
        Ok(results)
    }

    async fn load(&mut self, commits: &[Vec<Op>]) -> Result<Overlay, sqlx::Error> {
        let mut overlay = Overlay::default();
        let mut footprint = Footprint::default();
        commits.iter().for_each(|ops| footprint.add(ops));
        let probe_limit = footprint.probe_limit();
        footprint.keys.sort_unstable();
        footprint.keys.dedup();
        for key in &footprint.keys {
            overlay.load((*key).to_owned(), None);
        }
        for (statement, keys) in statements::VERSIONS.pieces(&footprint.keys) {
            let mut query = sqlx::query(statement);
            for key in keys {
                query = query.bind(*key);
            }
            load_rows(&mut overlay, query.fetch_all(&mut self.connection).await?)?;
        }
        let everything = footprint.prefixes.iter().map(|prefix| (prefix, i64::MAX));
        let probes = footprint.probes.iter().map(|prefix| (prefix, probe_limit as i64));
        for (prefix, limit) in everything.chain(probes) {
            let rows = sqlx::query(statements::VERSIONS_UNDER)
                .bind(*prefix)
                .bind(prefix_end(prefix).unwrap_or_else(|| statements::BEYOND_ALL_KEYS.to_vec()))
                .bind(limit)
                .fetch_all(&mut self.connection)
                .await?;
            load_rows(&mut overlay, rows)?;
        }
        Ok(overlay)
    }

    async fn write(&mut self, writes: Writes) -> Result<(), sqlx::Error> {
        for (statement, rows) in statements::PUT.pieces(&writes.puts) {
            let mut query = sqlx::query(statement);
            for (key, version, value) in rows {
                query = query.bind(key.as_str()).bind(*version as i64).bind(&value[..]);
            }
            query.execute(&mut self.connection).await?;
        }
        for (statement, keys) in statements::DELETE.pieces(&writes.deletes) {
            let mut query = sqlx::query(statement);
            for key in keys {
                query = query.bind(key.as_str());
            }
            query.execute(&mut self.connection).await?;
        }
        Ok(())
    }

    async fn allocate(&mut self, sequence: &str, count: u64) -> Result<u64, sqlx::Error> {
        let next: i64 = sqlx::query_scalar(statements::ALLOCATE)
            .bind(sequence)
            .bind(count as i64)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(next as u64 - count)
    }
}

fn load_rows(overlay: &mut Overlay, rows: Vec<sqlx::sqlite::SqliteRow>) -> Result<(), sqlx::Error> {
    for row in rows {
        let version: i64 = row.try_get(1)?;
        overlay.load(row.try_get(0)?, Some(version as u64));
    }
    Ok(())
}
