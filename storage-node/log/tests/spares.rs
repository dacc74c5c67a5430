//! The files of segments that are not needed any more go little by little, as some disks let everything wait for it.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_log::disk::Disk;
use geminga_log::disk::sim::SimDisk;
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, LogOptions};

const SEGMENTS: usize = 150;
/// Beside those that are kept to be used again.
const KEPT: usize = 2;

fn options(reserve_bytes: u64) -> LogOptions {
    LogOptions { segment_bytes: 256 << 10, reserve_bytes, ..LogOptions::default() }
}

fn run(engine: &Engine<SimDisk>, request: Request) {
    let mut queue = VecDeque::from([request]);
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

/// A log that has dropped so many segments, and disposed of them.
fn after_dropping(disk: &SimDisk) -> Engine<SimDisk> {
    let (engine, _) = Engine::open(disk.clone(), options(0)).unwrap();
    for entry in 0..SEGMENTS as u64 {
        let parts = [Bytes::from(vec![1; 236_000]), Bytes::new(), Bytes::new()];
        let entries = vec![Append { ledger: 1, entry, parts, reserve: false }];
        run(
            &engine,
            Request::Append { entries, admission: Admission::Whole, done: Box::new(|result| result.unwrap()) },
        );
        engine.prepare_next().unwrap();
    }
    run(&engine, Request::Delete { ledgers: vec![1], done: Box::new(|result| result.unwrap()) });
    engine.seal_retired().unwrap();
    run(&engine, engine.plan_reclaim(Box::new(|result| result.unwrap())).unwrap().expect("there is much to drop"));
    assert!(engine.dispose().unwrap() > SEGMENTS - 10);
    engine
}

fn spares(disk: &SimDisk) -> usize {
    disk.list().unwrap().iter().filter(|name| name.starts_with("spare-")).count()
}

#[test]
fn files_that_are_not_needed_go_a_few_at_a_time() {
    let disk = SimDisk::new(1, 256 << 20);
    let engine = after_dropping(&disk);
    let mut left = spares(&disk);
    assert!(left > SEGMENTS - 10);
    while left > KEPT {
        let more = engine.thin_spares().unwrap();
        let now = spares(&disk);
        assert!((1..=3).contains(&(left - now)), "{left} before, {now} after");
        assert_eq!(more, now > KEPT);
        left = now;
    }
    assert!(!engine.thin_spares().unwrap());
    assert_eq!(spares(&disk), KEPT);
}

#[test]
fn after_a_crash_they_still_go() {
    let disk = SimDisk::new(1, 256 << 20);
    drop(after_dropping(&disk));
    let (engine, _) = Engine::open(disk.clone(), options(0)).unwrap();
    let left = spares(&disk);
    assert!(left > SEGMENTS - 10, "opening waits for none");
    assert!(engine.thin_spares().unwrap());
    assert!(spares(&disk) < left);
}

#[test]
fn on_a_full_disk_they_go_at_once() {
    let disk = SimDisk::new(1, 39 << 20);
    drop(after_dropping(&disk));
    drop(Engine::open(disk.clone(), options(2 << 20)).unwrap());
    assert_eq!(spares(&disk), 0);
}
