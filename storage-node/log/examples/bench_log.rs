//! Drives a log on a real disk: commit latency at a fixed rate, streaming throughput, and the time of a restart.
//!
//! `cargo run --release -p geminga-log --example bench_log -- FOLDER [seconds] [payload bytes] [messages per second, 0 = full speed]
//! [ledgers] [entries per call]`. Prints one line of figures; the folder keeps the log.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_log::{Append, Log, LogOptions};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("a folder"));
    let mut number = |default: u64| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (seconds, payload_bytes, rate, ledgers, per_call) =
        (number(5), number(1024), number(10_000), number(1), number(1));
    let begin = Instant::now();
    let (log, report) = Log::open(&folder, LogOptions::default()).expect("opens");
    println!("opened in {:?}: {report:?}", begin.elapsed());
    let base = log.ledgers().last().map_or(0, |ledger| ledger + 1);
    let payload = Bytes::from(vec![0x5a; payload_bytes as usize]);
    let latencies = Arc::new(Mutex::new(Vec::<u32>::new()));
    let (outstanding, failures) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut next = vec![0; ledgers as usize];
    let (begin, cpu, stats) = (Instant::now(), cpu_time(), log.stats());
    let (mut calls, mut bytes) = (0_u64, 0_u64);
    while begin.elapsed() < Duration::from_secs(seconds) {
        let due = if rate == 0 { u64::MAX } else { (begin.elapsed().as_secs_f64() * rate as f64) as u64 / per_call };
        if calls >= due || outstanding.load(Ordering::Relaxed) > 16 << 20 {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        let ledger = (calls % ledgers) as usize;
        let append = |entry| Append {
            ledger: base + ledger as u64,
            entry,
            parts: [payload.clone(), Bytes::new(), Bytes::new()],
            reserve: false,
        };
        let entries: Vec<Append> = (next[ledger]..next[ledger] + per_call).map(append).collect();
        next[ledger] += per_call;
        let asked = Instant::now();
        let size = payload_bytes * per_call;
        outstanding.fetch_add(size, Ordering::Relaxed);
        let (latencies, outstanding, failures) = (latencies.clone(), outstanding.clone(), failures.clone());
        log.append(
            entries,
            Box::new(move |result| {
                outstanding.fetch_sub(size, Ordering::Relaxed);
                failures.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
                latencies.lock().expect("not poisoned").push(asked.elapsed().as_micros() as u32);
            }),
        );
        calls += 1;
        bytes += size;
    }
    while outstanding.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_micros(50));
    }
    let (elapsed, cpu, after) = (begin.elapsed(), cpu_time() - cpu, log.stats());
    let mut latencies = std::mem::take(&mut *latencies.lock().expect("not poisoned"));
    latencies.sort_unstable();
    let at = |quantile: f64| latencies[((latencies.len() - 1) as f64 * quantile) as usize];
    let entries = calls * per_call;
    println!(
        "{entries} entries, {:.0} MB/s, p50 {} us, p99 {} us, p99.9 {} us, max {} us, {:.2} us CPU per entry, {} commits, \
         written {:.3} x payload, {} failures",
        bytes as f64 / elapsed.as_secs_f64() / 1e6,
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        cpu.as_secs_f64() * 1e6 / entries as f64,
        after.commits - stats.commits,
        (after.committed_bytes - stats.committed_bytes) as f64 / bytes as f64,
        failures.load(Ordering::Relaxed),
    );
    let (begin, mut read) = (Instant::now(), 0_u64);
    let mut entry = 0;
    while entry < next[0] && begin.elapsed() < Duration::from_secs(2) {
        let entries = log.read_range(base, entry, u64::MAX, 4 << 20).expect("readable");
        read += entries.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        entry = entries.last().expect("one at least").0 + 1;
    }
    println!("read one ledger at {:.0} MB/s; {:?}", read as f64 / begin.elapsed().as_secs_f64() / 1e6, log.stats());
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
