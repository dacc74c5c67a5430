//! The queue before a backend's writer: commits and allocations that wait, bounded in bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_metadata::{MetadataError, Op};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::batch::{Batch, Decision};

/// Requests that share a transaction at most.
const BATCH_REQUESTS_MAX: usize = 1024;
/// Bytes of requests that wait or are being written; more wait in their callers.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// What a request counts besides its keys and values.
const REQUEST_OVERHEAD_BYTES: usize = 256;

/// Whoever waits for an answer, and what the request holds of the queue until then.
struct Caller<T> {
    reply: oneshot::Sender<Result<T, MetadataError>>,
    since: Instant,
    _bytes: OwnedSemaphorePermit,
}

impl<T> Caller<T> {
    fn tell(self, result: Result<T, MetadataError>) {
        // A caller that has gone does not want the answer.
        drop(self.reply.send(result));
    }
}

enum Request {
    Commit { ops: Vec<Op>, caller: Caller<Vec<u64>> },
    Allocate { sequence: String, count: u64, caller: Caller<u64> },
}

/// Sends requests to the writer and waits for their answers.
pub(crate) struct Queue {
    requests: Mutex<Option<mpsc::UnboundedSender<Request>>>,
    bytes: Arc<Semaphore>,
    subject: Arc<str>,
}

/// The writer's end of a [`Queue`].
pub(crate) struct Requests {
    requests: mpsc::UnboundedReceiver<Request>,
}

/// `subject` names the database for people.
pub(crate) fn queue(subject: Arc<str>) -> (Queue, Requests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let requests = Mutex::new(Some(sender));
    (Queue { requests, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)), subject }, Requests { requests: receiver })
}

impl Queue {
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<u64>, MetadataError> {
        let bytes = ops.iter().map(op_bytes).sum();
        self.ask(bytes, |caller| Request::Commit { ops, caller }).await
    }

    pub async fn allocate(&self, sequence: &str, count: u64) -> Result<u64, MetadataError> {
        let sequence = sequence.to_owned();
        self.ask(sequence.len(), |caller| Request::Allocate { sequence, count, caller }).await
    }

    /// The writer finishes what was sent and ends.
    pub fn close(&self) {
        self.requests.lock().take();
    }

    async fn ask<T>(&self, bytes: usize, request: impl FnOnce(Caller<T>) -> Request) -> Result<T, MetadataError> {
        let since = Instant::now();
        let bytes = (bytes + REQUEST_OVERHEAD_BYTES).min(QUEUE_BYTES_MAX) as u32;
        let permit = self.bytes.clone().acquire_many_owned(bytes).await.map_err(|_| self.closed())?;
        let (reply, answer) = oneshot::channel();
        self.send(request(Caller { reply, since, _bytes: permit }))?;
        answer.await.map_err(|_| self.closed())?
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
            Op::RaiseVersion { .. } => 0,
        }
}

impl Requests {
    /// Waits for requests and takes all that there are; none when the queue is closed and empty.
    pub async fn next(&mut self) -> Option<Asked> {
        let mut requests = Vec::new();
        self.requests.recv_many(&mut requests, BATCH_REQUESTS_MAX).await;
        (!requests.is_empty()).then(|| Asked::new(requests))
    }
}

/// A batch with those who wait for its outcome.
#[derive(Default)]
pub(crate) struct Asked {
    pub batch: Batch,
    commits: Vec<Caller<Vec<u64>>>,
    allocations: Vec<Caller<u64>>,
}

impl Asked {
    fn new(requests: Vec<Request>) -> Self {
        let mut asked = Asked::default();
        requests.into_iter().for_each(|request| asked.push(request));
        asked
    }

    fn push(&mut self, request: Request) {
        match request {
            Request::Commit { ops, caller } => {
                self.batch.commits.push(ops);
                self.commits.push(caller);
            }
            Request::Allocate { sequence, count, caller } => {
                self.batch.allocations.push((sequence, count));
                self.allocations.push(caller);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.commits.len() + self.allocations.len()
    }

    /// Fails what has waited longer than `age`, and answers the rest.
    pub fn younger_than(self, age: Duration, error: &MetadataError) -> Self {
        let mut rest = Asked::default();
        for (ops, caller) in self.batch.commits.into_iter().zip(self.commits) {
            match caller.since.elapsed() < age {
                true => rest.push(Request::Commit { ops, caller }),
                false => caller.tell(Err(error.clone())),
            }
        }
        for ((sequence, count), caller) in self.batch.allocations.into_iter().zip(self.allocations) {
            match caller.since.elapsed() < age {
                true => rest.push(Request::Allocate { sequence, count, caller }),
                false => caller.tell(Err(error.clone())),
            }
        }
        rest
    }

    /// Tells everybody what was decided about this batch, once it is durable.
    pub fn succeed(self, decision: Decision) {
        self.commits.into_iter().zip(decision.commits).for_each(|(caller, result)| caller.tell(result));
        self.allocations.into_iter().zip(decision.allocations).for_each(|(caller, first)| caller.tell(Ok(first)));
    }

    pub fn fail(self, error: &MetadataError) {
        self.commits.into_iter().for_each(|caller| caller.tell(Err(error.clone())));
        self.allocations.into_iter().for_each(|caller| caller.tell(Err(error.clone())));
    }
}
