//! From the storage's threads to the broker's: finished appends, handed over in batches.
//!
//! Storage finishes many appends with one sync and calls back for each on its own thread. The calls only queue; the
//! first of a batch wakes a task, which handles all that has come by then. Topics are spread over several such queues,
//! each topic always on the same one, so that its completions stay in order.

use std::sync::Arc;
use std::time::Instant;

use geminga_ledger_client::LedgerError;
use geminga_topic::EntryMeta;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::topic::{Origin, Topic};

/// One append of a topic that is durable or has failed.
pub(crate) struct Completion {
    pub topic: Arc<Topic>,
    pub ledger_id: u64,
    pub first_entry: u64,
    pub written: Vec<Written>,
    pub result: Result<(), LedgerError>,
    /// When storage got the append, and when it called back.
    pub started: Instant,
    pub finished: Instant,
}

/// What is remembered of an entry while storage has its bytes.
pub(crate) struct Written {
    pub bytes: u64,
    pub meta: EntryMeta,
    pub origin: Origin,
}

#[derive(Default)]
struct Lane {
    queue: Mutex<Vec<Completion>>,
    wake: Notify,
}

#[derive(Clone)]
pub(crate) struct Completions {
    lanes: Arc<[Lane]>,
}

impl Completions {
    /// Starts `lanes` tasks; they end when the runtime does.
    pub fn start(lanes: usize) -> Self {
        let lanes: Arc<[Lane]> = (0..lanes.max(1)).map(|_| Lane::default()).collect();
        for index in 0..lanes.len() {
            let lanes = lanes.clone();
            tokio::spawn(async move { lanes[index].run().await });
        }
        Self { lanes }
    }

    pub fn push(&self, completion: Completion) {
        let lane = &self.lanes[Arc::as_ptr(&completion.topic).addr() / 64 % self.lanes.len()];
        let mut queue = lane.queue.lock();
        let first = queue.is_empty();
        queue.push(completion);
        drop(queue);
        if first {
            lane.wake.notify_one();
        }
    }
}

impl Lane {
    async fn run(&self) {
        let mut batch = Vec::new();
        loop {
            self.wake.notified().await;
            std::mem::swap(&mut batch, &mut *self.queue.lock());
            let mut rest = batch.drain(..).peekable();
            while let Some(first) = rest.next() {
                let topic = first.topic.clone();
                let mut run = vec![first];
                while let Some(next) = rest.next_if(|next| Arc::ptr_eq(&next.topic, &topic)) {
                    run.push(next);
                }
                topic.written(run);
            }
        }
    }
}
