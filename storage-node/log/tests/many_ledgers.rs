//! As many ledgers as a million topics have: what is done to all of them keeps nobody waiting.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_log::disk::sim::SimDisk;
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, LogOptions};

const LEDGERS: u64 = 400_000;
const ADDED_TOGETHER: usize = 1000;

fn run(engine: &Engine<SimDisk>, requests: impl IntoIterator<Item = Request>) {
    let mut queue: VecDeque<Request> = requests.into_iter().collect();
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

fn body(ledger: u64) -> Bytes {
    Bytes::from(ledger.to_le_bytes().to_vec())
}

fn add(ledger: u64, entry: u64) -> Request {
    let append = Append { ledger, entry, parts: [body(ledger), Bytes::new(), Bytes::new()], reserve: false };
    let admission = Admission::Replica { key: [7; 20], recovery: false };
    Request::Append { entries: vec![append], admission, done: Box::new(|result| result.unwrap()) }
}

#[test]
fn compaction_keeps_no_commit_waiting() {
    let options =
        LogOptions { segment_bytes: 128 << 20, reserve_bytes: 0, compact_below: 2.0, ..LogOptions::default() };
    let disk = SimDisk::new(1, 8 << 30);
    let (engine, _) = Engine::open(disk.clone(), options.clone()).unwrap();
    for first in (1..=LEDGERS).step_by(ADDED_TOGETHER) {
        run(&engine, (first..first + ADDED_TOGETHER as u64).map(|ledger| add(ledger, 0)));
        engine.prepare_next().and_then(|()| engine.seal_retired()).unwrap();
    }
    engine.shut_down().unwrap();
    drop(engine);
    let (engine, _) = Engine::open(disk, options).unwrap();

    let plan = engine.plan_compaction(|_, _| true).expect("it is worth it");
    let (is_over, begin) = (AtomicBool::new(false), Instant::now());
    let (longest, request) = std::thread::scope(|scope| {
        let appending = scope.spawn(|| {
            let (mut longest, mut entry) = (Duration::ZERO, 1);
            while !is_over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                run(&engine, [add(LEDGERS, entry)]);
                longest = longest.max(begin.elapsed());
                entry += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            longest
        });
        let request = engine.compact(&plan, &mut |_| true, Box::new(|result| result.unwrap())).unwrap();
        is_over.store(true, Ordering::Relaxed);
        (appending.join().unwrap(), request.expect("nothing is damaged"))
    });
    let compacted = begin.elapsed();
    let begin = Instant::now();
    run(&engine, [request]);
    let put_in_place = begin.elapsed();
    println!("compacted in {compacted:?}, put in place in {put_in_place:?}, the longest commit meanwhile {longest:?}");
    assert!(longest < Duration::from_secs(1) && put_in_place < Duration::from_secs(2));
    assert_eq!(engine.ledgers().len() as u64, LEDGERS);
    assert_eq!(engine.read(LEDGERS / 2, 0).unwrap(), body(LEDGERS / 2));
}
