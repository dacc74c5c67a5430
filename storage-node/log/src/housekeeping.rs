//! The thread that prepares and seals segments, frees and compacts them, and watches the disk.

use std::time::{Duration, Instant};

use crate::engine::{Request, ZeroFirst, Zeros};
use crate::log::Shared;

/// How often it looks while something goes on; sealing and preparing a segment takes less time than filling one.
const ROUND: Duration = Duration::from_millis(20);
/// The same while zeros are written beside commits: little at a time, so that a commit seldom meets them on the disk.
const ZEROING_ROUND: Duration = Duration::from_millis(5);
/// And while nothing does.
const IDLE_ROUND: Duration = Duration::from_millis(250);
const SPACE_CHECK: Duration = Duration::from_millis(250);
/// How often a disk that failed is tried.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// How often a segment that could not be read is tried: much of it is read each time.
const READ_AGAIN: Duration = Duration::from_secs(3600);
/// After this long without a commit, an empty one proves that the last was durable.
const MARK_AFTER: Duration = Duration::from_millis(200);

/// Written at once; a commit may wait for one step, on the disk if not for the file.
const ZEROING_STEP_BYTES: usize = 128 << 10;
/// So much faster than commits use blocks up are they zeroed: the next segment has to be done when the active one is full.
const ZEROING_LEAD: f64 = 1.25;
/// Bytes per second.
const ZEROING_RATE_MIN: f64 = (8 << 20) as f64;
/// Bytes per second while nothing is committed.
const ZEROING_RATE_IDLE: f64 = (256 << 20) as f64;
/// Bytes per second. Above, commits are large, and zeros would cost more than they save.
const ZEROING_PAYS_BELOW: f64 = (96 << 20) as f64;
/// The rate of writing is smoothed over about so long.
const RATE_OVER: Duration = Duration::from_millis(60);
/// After this long without such a rate, a pause is no longer taken for one between two bursts.
const BURSTS_END_AFTER: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(crate) struct State {
    pub closed: bool,
}

pub(crate) fn run(shared: &Shared) {
    let (mut space_checked, mut tried, mut read_again) = (Instant::now(), Instant::now(), Instant::now());
    let mut idle_since = Instant::now();
    let mut reclaim = None;
    let mut round = ROUND;
    let mut zeroing = Zeroing::new();
    loop {
        {
            let mut state = shared.house_state.lock();
            if !state.closed {
                shared.house.wait_for(&mut state, round);
            }
            if state.closed {
                return;
            }
        }
        let engine = &shared.engine;
        report("prepare a segment", engine.prepare_next());
        report("seal a segment", engine.seal_retired());
        let zeroed = zeroing.round(shared);
        let is_busy = reclaim.is_some() || zeroing.rate > 1.0;
        round = match zeroed {
            Ok(true) => ZEROING_ROUND,
            _ if is_busy => ROUND,
            _ => IDLE_ROUND,
        };
        report("write zeros ahead", zeroed.map(drop));
        if space_checked.elapsed() >= SPACE_CHECK {
            engine.check_space();
            engine.trim_read_buffers();
            space_checked = Instant::now();
        }
        if tried.elapsed() >= TRY_AGAIN {
            // What it answers is in the figures of the log, and was said when it failed.
            let _ = engine.try_again();
            tried = Instant::now();
        }
        if read_again.elapsed() >= READ_AGAIN {
            engine.reconsider_damaged();
            read_again = Instant::now();
        }
        reclaim_round(shared, &mut reclaim);
        if !shared.is_idle() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= MARK_AFTER && engine.wants_mark() {
            shared.submit(Request::Mark);
        }
    }
}

/// How fast blocks are zeroed ahead of the writing: somewhat faster than they are used, not at all at full speed nor in the
/// pauses between.
struct Zeroing {
    zeros: Zeros,
    committed_bytes: u64,
    at: Instant,
    /// Bytes per second that are written, smoothed.
    rate: f64,
    /// When something was written last.
    written_at: Instant,
    /// When they last were more than zeroing pays for.
    fast_at: Option<Instant>,
    /// Bytes that may be zeroed now.
    budget: u64,
}

impl Zeroing {
    fn new() -> Self {
        let zeros = Zeros::new(ZEROING_STEP_BYTES);
        let now = Instant::now();
        Self { zeros, committed_bytes: 0, at: now, rate: 0.0, written_at: now, fast_at: None, budget: 0 }
    }

    /// Whether there was anything to do.
    fn round(&mut self, shared: &Shared) -> std::io::Result<bool> {
        let (now, committed_bytes) = (Instant::now(), shared.engine.committed_bytes());
        let seconds = (now - self.at).as_secs_f64().max(0.001);
        let rate = (committed_bytes - self.committed_bytes) as f64 / seconds;
        self.rate += (rate - self.rate) * (1.0 - (-seconds / RATE_OVER.as_secs_f64()).exp());
        if rate > 0.0 {
            self.written_at = now;
        }
        (self.committed_bytes, self.at) = (committed_bytes, now);
        if self.rate > ZEROING_PAYS_BELOW {
            self.fast_at = Some(now);
        }
        if self.fast_at.is_some_and(|at| now - at < BURSTS_END_AFTER) {
            return Ok(false);
        }
        let is_idle = now - self.written_at >= ROUND && shared.is_idle();
        let (least, first) =
            if is_idle { (ZEROING_RATE_IDLE, ZeroFirst::Active) } else { (ZEROING_RATE_MIN, ZeroFirst::Next) };
        let budget = ((ZEROING_LEAD * self.rate).max(least) * seconds.min(0.1)) as u64;
        self.budget = (self.budget + budget).min(if is_idle { 256 } else { 8 } * ZEROING_STEP_BYTES as u64);
        while self.budget >= ZEROING_STEP_BYTES as u64 {
            let zeroed = shared.engine.zero_ahead(&self.zeros, first)?;
            if zeroed == 0 {
                return Ok(false);
            }
            self.budget -= zeroed;
            if is_idle && !shared.is_idle() {
                break;
            }
        }
        Ok(true)
    }
}

type Answer = std::sync::mpsc::Receiver<Result<(), crate::AppendError>>;

/// One change of the log's segments at a time: asked for in one round, followed by the removal of files in a later one.
fn reclaim_round(shared: &Shared, under_way: &mut Option<Answer>) {
    report("remove a segment", shared.engine.dispose().map(drop));
    if let Some(answer) = under_way {
        match answer.try_recv() {
            Err(std::sync::mpsc::TryRecvError::Empty) => return,
            Ok(Ok(())) => (),
            Ok(Err(error)) => tracing::warn!(%error, "could not record which segments are free"),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => (),
        }
        *under_way = None;
    }
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let done = |sender: std::sync::mpsc::SyncSender<_>| Box::new(move |result| drop(sender.send(result)));
    let planned = match shared.engine.plan_reclaim(done(sender.clone())) {
        Ok(None) => compact(shared, done(sender)),
        other => other,
    };
    match planned {
        Ok(Some(request)) => {
            *under_way = Some(receiver);
            shared.submit(request);
        }
        Ok(None) => (),
        Err(error) => tracing::warn!(%error, "could not free segments"),
    }
}

/// Works at the rate of the options, and gives up when the log closes.
fn compact(shared: &Shared, done: crate::Done) -> std::io::Result<Option<Request>> {
    let Some(plan) = shared.engine.plan_compaction() else { return Ok(None) };
    tracing::info!(segments = plan.segments.len(), live_bytes = plan.live_bytes, "compacting the log");
    let (begin, mut worked) = (Instant::now(), 0);
    let mut pace = |bytes: u64| {
        worked += bytes;
        let due = Duration::from_secs_f64(worked as f64 / shared.options.compaction_bytes_per_second as f64);
        // Meanwhile the writer must not run out of segments.
        report("prepare a segment", shared.engine.prepare_next());
        report("seal a segment", shared.engine.seal_retired());
        let mut state = shared.house_state.lock();
        while !state.closed && begin.elapsed() < due {
            shared.house.wait_for(&mut state, due.saturating_sub(begin.elapsed()).min(ROUND));
        }
        !state.closed
    };
    shared.engine.compact(&plan, &mut pace, done)
}

fn report(action: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "could not {action}");
    }
}
