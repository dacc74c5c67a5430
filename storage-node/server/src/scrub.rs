//! The background scrub: all that is live is read at a bounded rate, one pass after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use geminga_log::{Log, Scrubbed};
use parking_lot::{Condvar, Mutex};

use crate::node::StorageNode;

#[derive(Debug, Clone, Copy)]
pub struct ScrubOptions {
    /// What may be read for it; 0 turns it off.
    pub bytes_per_second: u64,
    /// Pause between the end of a pass and the begin of the next.
    pub interval: Duration,
}

/// A thread that scrubs until this is dropped.
pub struct Scrubber {
    asked: Arc<Asked>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
pub(crate) struct Asked {
    state: Mutex<State>,
    woken: Condvar,
}

#[derive(Default)]
struct State {
    /// There is somebody who does it.
    scrubs: bool,
    stopped: bool,
    pass_now: bool,
}

impl Asked {
    /// A pass begins at once, if none is under way; `false` if nobody scrubs.
    pub fn pass(&self) -> bool {
        let mut state = self.state.lock();
        state.pass_now = state.scrubs;
        self.woken.notify_all();
        state.scrubs
    }

    /// Waits for so long, or until a pass is asked for; `false` when all is over.
    fn pause(&self, duration: Duration) -> bool {
        let deadline = Instant::now().checked_add(duration);
        let mut state = self.state.lock();
        while !state.stopped && !state.pass_now {
            match deadline {
                Some(deadline) if self.woken.wait_until(&mut state, deadline).timed_out() => break,
                Some(_) => (),
                None => self.woken.wait(&mut state),
            }
        }
        state.pass_now = false;
        !state.stopped
    }

    /// The same in the middle of a pass.
    fn pace(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut state = self.state.lock();
        while !state.stopped && !self.woken.wait_until(&mut state, deadline).timed_out() {}
        !state.stopped
    }
}

impl Scrubber {
    /// # Errors
    /// There is no thread to be had.
    pub fn start(node: Arc<StorageNode>, options: ScrubOptions) -> std::io::Result<Self> {
        let asked = node.scrub_asked.clone();
        asked.state.lock().scrubs = options.bytes_per_second > 0;
        let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || {
            while options.bytes_per_second > 0 && pass(&node, options.bytes_per_second) {
                if !node.scrub_asked.pause(options.interval) {
                    return;
                }
            }
        })?;
        Ok(Self { asked, thread: Some(thread) })
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        {
            let mut state = self.asked.state.lock();
            (state.stopped, state.scrubs) = (true, false);
        }
        self.asked.woken.notify_all();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the scrub panicked");
        }
    }
}

/// Reads everything once; whether to go on.
fn pass(node: &StorageNode, bytes_per_second: u64) -> bool {
    let counts = &node.damage.counts;
    let orders: Vec<Vec<u32>> = node.log.all().iter().map(|directory| directory.log.scrub_order()).collect();
    let segments = orders.iter().map(Vec::len).sum::<usize>() as u64;
    counts.segments.store(segments, Ordering::Relaxed);
    counts.segments_left.store(segments, Ordering::Relaxed);
    let mut read = Paced { node, bytes_per_second, begin: Instant::now(), bytes: 0, goes_on: true };
    for (directory, order) in node.log.all().iter().zip(orders) {
        for segment in order {
            if let Some(scrubbed) = read.segment(&directory.log, segment) {
                counts.places.fetch_add(scrubbed.damaged_places, Ordering::Relaxed);
                counts.indexes_rewritten.fetch_add(u64::from(scrubbed.index_rewritten), Ordering::Relaxed);
                if !scrubbed.damaged_entries.is_empty() || scrubbed.index_rewritten {
                    let (places, entries) = (scrubbed.damaged_places, scrubbed.damaged_entries.len());
                    let folder = directory.path.display();
                    tracing::warn!(%folder, segment, places, entries, scrubbed.index_rewritten, "damage on disk");
                }
                scrubbed.damaged_entries.into_iter().for_each(|name| node.damage.note(name));
            }
            if !read.goes_on {
                return false;
            }
            counts.segments_left.fetch_sub(1, Ordering::Relaxed);
        }
        directory.log.reconsider_damaged();
    }
    counts.passes.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    counts.last_pass.store(now, Ordering::Relaxed);
    tracing::debug!(segments, bytes = read.bytes, "scrubbed everything");
    true
}

/// Keeps to the rate over a whole pass.
struct Paced<'n> {
    node: &'n StorageNode,
    bytes_per_second: u64,
    begin: Instant,
    bytes: u64,
    goes_on: bool,
}

impl Paced<'_> {
    fn took(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.node.damage.counts.scrubbed_bytes.fetch_add(bytes, Ordering::Relaxed);
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        self.goes_on = self.node.scrub_asked.pace(due.saturating_sub(self.begin.elapsed()));
    }

    fn segment(&mut self, log: &Log, segment: u32) -> Option<Scrubbed> {
        let mut paced = 0;
        let outcome = log.scrub(segment, &mut |bytes| {
            paced += bytes;
            self.took(bytes);
            self.goes_on
        });
        match outcome {
            Ok(scrubbed) => {
                let rest = scrubbed.as_ref().map_or(0, |scrubbed| scrubbed.read_bytes - paced);
                if self.goes_on {
                    self.took(rest);
                }
                scrubbed
            }
            Err(error) => {
                tracing::error!(segment, %error, "a segment cannot be scrubbed");
                None
            }
        }
    }
}
