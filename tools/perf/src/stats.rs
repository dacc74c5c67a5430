//! What is counted while it runs, and the report at the end.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::Clock;

/// Longest latency that is told apart, in microseconds.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// Between two progress lines.
const TICK_NS: u64 = 1_000_000_000;

/// A histogram of microseconds.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, 3).expect("constant bounds are valid")
}

/// What happened since it was last taken. A worker adds to one under its lock once per round of I/O; the reporter takes it
/// each second.
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) redelivered: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) first_ns: Option<u64>,
    pub(crate) last_ns: u64,
    latencies: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            messages: 0,
            entries: 0,
            bytes: 0,
            redelivered: 0,
            errors: 0,
            first_error: None,
            first_ns: None,
            last_ns: 0,
            latencies: histogram(),
        }
    }
}

impl Tally {
    /// `count` messages, together `bytes` long, were done at `now_ns`.
    pub(crate) fn done(&mut self, count: u64, bytes: u64, now_ns: u64) {
        self.messages += count;
        self.entries += 1;
        self.bytes += bytes;
        self.first_ns.get_or_insert(now_ns);
        self.last_ns = self.last_ns.max(now_ns);
    }

    /// `count` messages took this long.
    pub(crate) fn latency(&mut self, ns: u64, count: u64) {
        self.latencies.saturating_record_n((ns / 1000).max(1), count);
    }

    pub(crate) fn error(&mut self, count: u64, text: impl FnOnce() -> String) {
        self.errors += count;
        if self.first_error.is_none() {
            self.first_error = Some(text());
        }
    }

    fn add(&mut self, other: &mut Tally) {
        self.messages += other.messages;
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.redelivered += other.redelivered;
        self.errors += other.errors;
        if self.first_error.is_none() {
            self.first_error = other.first_error.take();
        }
        self.first_ns = [self.first_ns, other.first_ns].into_iter().flatten().min();
        self.last_ns = self.last_ns.max(other.last_ns);
        self.latencies.add(&other.latencies).expect("the same bounds");
    }

    /// Empties it into `into`; the first time is told once.
    fn drain_into(&mut self, into: &mut Tally) {
        into.add(self);
        let Self { messages, entries, bytes, redelivered, errors, .. } = self;
        for count in [messages, entries, bytes, redelivered, errors] {
            *count = 0;
        }
        self.latencies.reset();
    }

    fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Shared by the workers and the reporter.
pub(crate) struct Stats {
    tallies: Vec<Mutex<Tally>>,
    /// Messages done by all workers, the warm-up included.
    total: AtomicU64,
}

impl Stats {
    pub(crate) fn new(workers: usize) -> Self {
        Self { tallies: (0..workers).map(|_| Mutex::default()).collect(), total: AtomicU64::new(0) }
    }

    /// The number of messages done by all workers, with `count` more.
    pub(crate) fn add_total(&self, count: u64) -> u64 {
        self.total.fetch_add(count, Ordering::Relaxed) + count
    }

    /// The tally of one worker.
    pub(crate) fn of(&self, worker: usize) -> parking_lot::MutexGuard<'_, Tally> {
        self.tallies[worker].lock()
    }

    /// Everything since the last call.
    fn take(&self) -> Tally {
        let mut all = Tally::default();
        for tally in &self.tallies {
            tally.lock().drain_into(&mut all);
        }
        all
    }
}

/// Prints progress, and adds up what it took.
pub(crate) struct Reporter<'a> {
    stats: &'a Stats,
    sum: Tally,
    verb: &'static str,
    told_error: bool,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(stats: &'a Stats, verb: &'static str) -> Self {
        Self { stats, sum: Tally::default(), verb, told_error: false }
    }

    /// A progress line for what happened in the last `interval`.
    pub(crate) fn tick(&mut self, elapsed: Duration, interval: Duration) {
        let mut now = self.stats.take();
        let seconds = interval.as_secs_f64();
        let mut line = format!(
            "{:6.1}s {} {:.0} msg/s, {:.1} MB/s, latency ms p50 {:.3} p99 {:.3} max {:.3}",
            elapsed.as_secs_f64(),
            self.verb,
            now.messages as f64 / seconds,
            now.bytes as f64 / seconds / 1e6,
            now.quantile_ms(0.5),
            now.quantile_ms(0.99),
            now.quantile_ms(1.0),
        );
        if now.errors > 0 {
            let _ = write!(line, ", {} errors", now.errors);
        }
        eprintln!("{line}");
        self.sum.add(&mut now);
        self.tell_error();
    }

    fn tell_error(&mut self) {
        if let (Some(error), false) = (&self.sum.first_error, self.told_error) {
            eprintln!("first error: {error}");
            self.told_error = true;
        }
    }

    /// The report; the time from `since_ns` (of the first message, if `None`) to the last message counts.
    pub(crate) fn finish(mut self, since_ns: Option<u64>, failure: Option<String>) -> Report {
        self.sum.add(&mut self.stats.take());
        self.tell_error();
        let sum = &self.sum;
        let from = since_ns.or(sum.first_ns).unwrap_or(0);
        let elapsed_s = (sum.last_ns.saturating_sub(from) as f64 / 1e9).max(1e-9);
        let none = sum.messages == 0;
        let per_second = |amount: u64| if none { 0.0 } else { amount as f64 / elapsed_s };
        Report {
            messages: sum.messages,
            entries: sum.entries,
            bytes: sum.bytes,
            msg_s: round(per_second(sum.messages), 1),
            mb_s: round(per_second(sum.bytes) / 1e6, 3),
            elapsed_s: if none { 0.0 } else { round(elapsed_s, 3) },
            mean_ms: round(sum.latencies.mean() / 1000.0, 3),
            p50_ms: sum.quantile_ms(0.5),
            p95_ms: sum.quantile_ms(0.95),
            p99_ms: sum.quantile_ms(0.99),
            p999_ms: sum.quantile_ms(0.999),
            max_ms: sum.quantile_ms(1.0),
            redelivered: sum.redelivered,
            errors: sum.errors,
            cpu_s: round(cpu_seconds(), 3),
            failure,
        }
    }
}

/// Runs each worker on a thread of its own, prints progress each second, and stops all when one fails. Returns when all have
/// ended, with the first failure.
pub(crate) fn supervise<'a, W: Send>(
    clock: Clock,
    mut reporter: Reporter<'a>,
    stop: &AtomicBool,
    workers: Vec<W>,
    run: impl Fn(usize, W) -> anyhow::Result<()> + Sync,
) -> (Reporter<'a>, Option<String>) {
    let (ended, endings) = mpsc::channel();
    let mut failure = None;
    std::thread::scope(|scope| {
        let run = &run;
        for (index, worker) in workers.into_iter().enumerate() {
            let ended = ended.clone();
            scope.spawn(move || ended.send(run(index, worker)));
        }
        drop(ended);
        let mut last = clock.now();
        loop {
            let next_tick = Duration::from_nanos((last + TICK_NS).saturating_sub(clock.now()));
            match endings.recv_timeout(next_tick) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    stop.store(true, Ordering::Relaxed);
                    failure.get_or_insert(format!("{error:#}"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let now = clock.now();
                    reporter.tick(Duration::from_nanos(now), Duration::from_nanos(now - last));
                    last = now;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    (reporter, failure)
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// CPU time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The result of a run; what `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Receipts got, or messages received.
    pub messages: u64,
    /// Batches, or messages that were sent alone.
    pub entries: u64,
    /// Application payload.
    pub bytes: u64,
    pub msg_s: f64,
    /// Application payload in 10^6 bytes per second.
    pub mb_s: f64,
    pub elapsed_s: f64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
    /// Messages that had been delivered before.
    pub redelivered: u64,
    pub errors: u64,
    /// CPU time of the load generator itself.
    pub cpu_s: f64,
    /// Why the run ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Report {
    /// One line.
    pub fn human(&self, verb: &str) -> String {
        format!(
            "{verb} {} messages in {:.2} s: {:.0} msg/s, {:.1} MB/s; latency ms p50 {:.3} p95 {:.3} p99 {:.3} p99.9 {:.3} max {:.3}; \
             {} errors; {:.2} s of CPU",
            self.messages,
            self.elapsed_s,
            self.msg_s,
            self.mb_s,
            self.p50_ms,
            self.p95_ms,
            self.p99_ms,
            self.p999_ms,
            self.max_ms,
            self.errors,
            self.cpu_s,
        )
    }
}
