//! The thread that prepares and seals segments, frees and compacts them, and watches the disk.

use std::time::{Duration, Instant};

use crate::engine::Request;
use crate::log::Shared;

/// How often it looks; sealing and preparing a segment takes less time than filling one.
const ROUND: Duration = Duration::from_millis(20);
const SPACE_CHECK: Duration = Duration::from_millis(250);
/// After this long without a commit, an empty one proves that the last was durable.
const MARK_AFTER: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(crate) struct State {
    pub closed: bool,
}

pub(crate) fn run(shared: &Shared) {
    let mut space_checked = Instant::now();
    let mut idle_since = Instant::now();
    let mut reclaim = None;
    loop {
        {
            let mut state = shared.house_state.lock();
            if !state.closed {
                shared.house.wait_for(&mut state, ROUND);
            }
            if state.closed {
                return;
            }
        }
        let engine = &shared.engine;
        report("prepare a segment", engine.prepare_next());
        report("seal a segment", engine.seal_retired());
        if space_checked.elapsed() >= SPACE_CHECK {
            engine.check_space();
            space_checked = Instant::now();
        }
        reclaim_round(shared, &mut reclaim);
        if !shared.is_idle() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= MARK_AFTER && engine.wants_mark() {
            shared.submit(Request::Mark);
        }
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
