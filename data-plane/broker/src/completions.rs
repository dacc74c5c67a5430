//! From the storage's threads to the broker's: finished appends, handed over in batches.
//!
//! Storage finishes many appends with one sync and calls back for each on its own thread. Where many are under way, the
//! calls only queue; the first of a batch wakes a task, which handles all that has come by then. Where few are, waking
//! it would take longer than its work, so that the storage's thread does that itself. Topics are spread over several such
//! queues, each topic always on the same one, so that its completions stay in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use geminga_ledger_client::LedgerError;
use geminga_topic::EntryMeta;
use parking_lot::Mutex;
use tokio::runtime::Handle;
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

/// With so many appends of a lane under way, or fewer, each is handled by the thread that finishes it.
const FEW: usize = 4;

#[derive(Default)]
struct Lane {
    queue: Mutex<Vec<Completion>>,
    wake: Notify,
    /// Held by whoever handles completions, from before it takes them.
    turn: Mutex<()>,
    /// Appends that storage has not finished.
    under_way: AtomicUsize,
}

#[derive(Clone)]
pub(crate) struct Completions {
    lanes: Arc<[Lane]>,
    /// For what topics start when they hear on a thread of the storage.
    runtime: Handle,
}

impl Completions {
    /// Starts `lanes` tasks; they end when the runtime does.
    pub fn start(lanes: usize) -> Self {
        let lanes: Arc<[Lane]> = (0..lanes.max(1)).map(|_| Lane::default()).collect();
        for index in 0..lanes.len() {
            let lanes = lanes.clone();
            tokio::spawn(async move { lanes[index].run().await });
        }
        Self { lanes, runtime: Handle::current() }
    }

    fn lane(&self, topic: &Arc<Topic>) -> &Lane {
        &self.lanes[Arc::as_ptr(topic).addr() / 64 % self.lanes.len()]
    }

    /// An append of the topic begins; [`Completions::push`] ends it.
    pub fn begin(&self, topic: &Arc<Topic>) {
        self.lane(topic).under_way.fetch_add(1, Ordering::Relaxed);
    }

    pub fn push(&self, completion: Completion) {
        let lane = self.lane(&completion.topic);
        let are_few = lane.under_way.fetch_sub(1, Ordering::Relaxed) <= FEW;
        match are_few.then(|| lane.turn.try_lock()).flatten() {
            Some(_turn) if lane.queue.lock().is_empty() => {
                let topic = completion.topic.clone();
                let _context = self.runtime.enter();
                if let Err(completion) = topic.written_at_once(completion) {
                    lane.hand_over(completion);
                }
            }
            _ => lane.hand_over(completion),
        }
    }
}

impl Lane {
    fn hand_over(&self, completion: Completion) {
        let mut queue = self.queue.lock();
        let first = queue.is_empty();
        queue.push(completion);
        drop(queue);
        if first {
            self.wake.notify_one();
        }
    }

    async fn run(&self) {
        loop {
            self.wake.notified().await;
            let _turn = self.turn.lock();
            let batch = std::mem::take(&mut *self.queue.lock());
            let mut rest = batch.into_iter().peekable();
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
