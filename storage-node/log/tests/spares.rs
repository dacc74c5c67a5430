//! The files of segments that are not needed any more go little by little, as some disks let everything wait for it.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_log::disk::sim::SimDisk;
use geminga_log::disk::{Disk, DiskFile};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, LogOptions};

const SEGMENTS: usize = 150;
/// Beside those that are kept to be used again.
const KEPT: usize = 2;
const SEGMENT_BYTES: u64 = 256 << 10;

fn options(reserve_bytes: u64) -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, reserve_bytes, ..LogOptions::default() }
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

/// Lengths of the spare files.
fn lengths(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list().unwrap().into_iter().filter(|name| name.starts_with("spare-"));
    let mut lengths: Vec<u64> = names.map(|name| disk.open(&name).unwrap().length().unwrap()).collect();
    lengths.sort();
    lengths
}

#[test]
fn a_large_file_goes_in_pieces_and_is_used_again_in_the_middle_of_that() {
    const LARGE: u64 = 5 << 20;
    let disk = SimDisk::new(1, 256 << 20);
    drop(after_dropping(&disk));
    let large = LogOptions { segment_bytes: LARGE, ..options(0) };
    let (engine, _) = Engine::open(disk.clone(), large.clone()).unwrap();
    while engine.thin_spares().unwrap() {}
    // As if they were of a log with larger segments.
    for name in disk.list().unwrap().into_iter().filter(|name| name.starts_with("spare-")) {
        disk.open(&name).unwrap().allocate(LARGE).unwrap();
    }
    let extra = disk.create("spare-00000001").unwrap();
    extra.allocate(LARGE).unwrap();
    drop(engine);
    let (engine, _) = Engine::open(disk.clone(), large.clone()).unwrap();
    let before = lengths(&disk);
    assert_eq!(before.len(), KEPT + 1);
    for left in [3 << 20, 1 << 20] {
        assert!(engine.thin_spares().unwrap());
        assert_eq!(lengths(&disk), [left, LARGE, LARGE]);
    }
    // Those that are kept are used first, then the one that was on its way out, after a restart.
    drop(engine);
    let (engine, _) = Engine::open(disk.clone(), large).unwrap();
    for left in [[1 << 20, LARGE].as_slice(), &[1 << 20], &[]] {
        let parts = [Bytes::from(vec![1; 4 << 20]), Bytes::new(), Bytes::new()];
        let entries = vec![Append { ledger: 2, entry: left.len() as u64, parts, reserve: false }];
        run(
            &engine,
            Request::Append { entries, admission: Admission::Whole, done: Box::new(|result| result.unwrap()) },
        );
        assert_eq!(lengths(&disk), left);
    }
    assert!(!engine.thin_spares().unwrap());
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
