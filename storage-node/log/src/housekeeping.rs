//! The thread that prepares and seals segments, frees and compacts them, and watches the disk.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::engine::{Request, ZeroFirst, Zeros};
use crate::log::Shared;

/// How often it looks while something goes on; sealing and preparing a segment takes less time than filling one.
const ROUND: Duration = Duration::from_millis(20);
/// The same while zeros are written beside commits: little at a time, so that a commit seldom meets them on the disk.
const ZEROING_ROUND: Duration = Duration::from_millis(5);
/// And while nothing does.
const IDLE_ROUND: Duration = Duration::from_millis(250);
const SPACE_CHECK: Duration = Duration::from_millis(250);
/// How often a piece of the files that are not needed any more goes: others may wait for the disk, too.
const THINNING: Duration = Duration::from_millis(200);
/// The same where space is scarce.
const THINNING_IN_HASTE: Duration = Duration::from_millis(25);
/// And beside commits and reads, which have to wait until the disk has heard of it.
const THINNING_GENTLY: Duration = Duration::from_secs(1);
/// After this long without either nobody waits.
const QUIET_AFTER: Duration = Duration::from_millis(250);
/// How often a disk that failed is tried.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// A segment of which little goes for this long is compacted, if little of it is live.
const SETTLED_AFTER: Duration = Duration::from_secs(300);
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
    let mut house = House::new(shared);
    let mut reclaim = None;
    let (mut tried, mut read_again) = (Instant::now(), Instant::now());
    let mut idle_since = Instant::now();
    let mut round = ROUND;
    while !house.rest(round) {
        let soon = house.keep_up();
        let is_busy = reclaim.is_some() || house.zeroing.rate > 1.0;
        round = soon.unwrap_or(IDLE_ROUND).min(if is_busy { ROUND } else { IDLE_ROUND });
        let engine = &shared.engine;
        if tried.elapsed() >= TRY_AGAIN {
            // What it answers is in the figures of the log, and was said when it failed.
            let _ = engine.try_again();
            tried = Instant::now();
        }
        if read_again.elapsed() >= READ_AGAIN {
            engine.reconsider_damaged();
            read_again = Instant::now();
        }
        house.reclaim_round(&mut reclaim);
        if !shared.is_idle() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= MARK_AFTER && engine.wants_mark() {
            shared.submit(Request::Mark);
        }
    }
}

/// What goes on all the time, while segments are compacted, too.
struct House<'a> {
    shared: &'a Shared,
    zeroing: Zeroing,
    settling: Settling,
    space_checked: Instant,
    thinned: Instant,
    is_thinning: bool,
    /// Bytes that were committed and reads that were made, and when these changed last.
    done: (u64, u64),
    active_at: Instant,
}

impl<'a> House<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = Instant::now();
        let (zeroing, settling) = (Zeroing::new(), Settling::default());
        Self {
            shared,
            zeroing,
            settling,
            space_checked: now,
            thinned: now,
            is_thinning: false,
            done: (0, 0),
            active_at: now,
        }
    }

    /// Whether the log closes.
    fn rest(&self, round: Duration) -> bool {
        let mut state = self.shared.house_state.lock();
        if !state.closed {
            self.shared.house.wait_for(&mut state, round);
        }
        state.closed
    }

    /// Has the next segment ready, those that are full sealed, and an eye on space; answers after how long at most it wants to go on.
    fn keep_up(&mut self) -> Option<Duration> {
        let engine = &self.shared.engine;
        report("prepare a segment", engine.prepare_next());
        report("seal a segment", engine.seal_retired());
        let zeroed = self.zeroing.round(self.shared);
        let is_zeroing = matches!(zeroed, Ok(true));
        report("write zeros ahead", zeroed.map(drop));
        if self.space_checked.elapsed() >= SPACE_CHECK {
            engine.check_space();
            engine.trim_read_buffers();
            self.space_checked = Instant::now();
        }
        let done = (engine.committed_bytes(), engine.reads());
        if self.done != done {
            (self.done, self.active_at) = (done, Instant::now());
        }
        let thinning = match (engine.is_space_scarce(), self.active_at.elapsed() < QUIET_AFTER) {
            (true, _) => THINNING_IN_HASTE,
            (false, true) => THINNING_GENTLY,
            (false, false) => THINNING,
        };
        if self.thinned.elapsed() >= thinning {
            let thinned = engine.thin_spares();
            self.is_thinning = *thinned.as_ref().unwrap_or(&true);
            report("remove spare files", thinned.map(drop));
            self.thinned = Instant::now();
        }
        match is_zeroing {
            true => Some(ZEROING_ROUND),
            false => self.is_thinning.then_some(thinning),
        }
    }

    /// One change of the log's segments at a time: asked for in one round, followed by the removal of files in a later one.
    fn reclaim_round(&mut self, under_way: &mut Option<Answer>) {
        report("remove a segment", self.shared.engine.dispose().map(drop));
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
        let planned = match self.shared.engine.plan_reclaim(done(sender.clone())) {
            Ok(None) => self.compact(done(sender)),
            other => other,
        };
        match planned {
            Ok(Some(request)) => {
                *under_way = Some(receiver);
                self.shared.submit(request);
            }
            Ok(None) => (),
            Err(error) => tracing::warn!(%error, "could not free segments"),
        }
    }

    /// Works at the rate of the options, and gives up when the log closes.
    fn compact(&mut self, done: crate::Done) -> std::io::Result<Option<Request>> {
        let (shared, now) = (self.shared, Instant::now());
        let engine = &shared.engine;
        let is_short = engine.is_short_of_space();
        let planned = {
            let mut is_settled = self.settling.look(now);
            engine.plan_compaction(|id, live_bytes| is_settled(id, live_bytes) || is_short)
        };
        let Some(plan) = planned else { return Ok(None) };
        tracing::info!(segments = plan.segments.len(), live_bytes = plan.live_bytes, "compacting the log");
        let mut worked = 0;
        let mut pace = |bytes: u64| {
            worked += bytes;
            let due = now + Duration::from_secs_f64(worked as f64 / shared.options.compaction_bytes_per_second as f64);
            // Meanwhile the writer must not run out of segments, nor of zeros.
            loop {
                let round = self.keep_up().unwrap_or(ROUND).min(ROUND);
                let wait = due.saturating_duration_since(Instant::now());
                if self.rest(wait.min(round)) {
                    return false;
                }
                if wait <= round {
                    return true;
                }
            }
        };
        engine.compact(&plan, &mut pace, done)
    }
}

/// Which segments are worth compacting because they lose little any more. What goes in turn, as ledgers that are trimmed do, soon
/// goes whole segments at a time: to move the rest of them first would only keep the disk busy.
#[derive(Default)]
struct Settling {
    /// Live bytes of those that are less live than compaction asks for, and since when they are about that.
    since: FxHashMap<u32, (u64, Instant)>,
}

impl Settling {
    /// For one look at all segments.
    fn look(&mut self, now: Instant) -> impl FnMut(u32, u64) -> bool {
        let before = std::mem::take(&mut self.since);
        move |segment, live_bytes| {
            let (was, since) =
                *before.get(&segment).filter(|(was, _)| live_bytes >= was - was / 8).unwrap_or(&(live_bytes, now));
            self.since.insert(segment, (was, since));
            now - since >= SETTLED_AFTER
        }
    }
}

type Answer = std::sync::mpsc::Receiver<Result<(), crate::AppendError>>;

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

fn report(action: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "could not {action}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_turn_is_left_alone_and_what_stays_is_not() {
        let (mut settling, begin) = (Settling::default(), Instant::now());
        let at = |n: u32| begin + n * SETTLED_AFTER / 4;
        // The first loses a fifth at each look, the second drips, the third is as it was.
        let live = |n: u32| [1000 * 4_u64.pow(n) / 5_u64.pow(n), 1000 - u64::from(n), 1000];
        for n in 0..8 {
            let mut look = settling.look(at(n));
            let settled: Vec<bool> = (1..=3).zip(live(n)).map(|(id, live)| look(id, live)).collect();
            assert_eq!(settled, [false, n >= 4, n >= 4], "look {n}");
        }
        // One that was more than half live at a look begins anew.
        settling.look(at(8))(3, 1000);
        assert!(!settling.look(at(9))(2, 992));
        assert!(settling.since.len() == 1);
    }
}
