//! The files of segments that are not needed any more go little by little, as some disks let everything wait for it.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_log::disk::sim::SimDisk;
use geminga_log::disk::{Disk, DiskFile};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, Log, LogOptions};

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

/// Appends an entry of so many bytes, and waits until it is durable.
fn append(log: &Log, entry: u64, bytes: usize) {
    let (sender, receiver) = mpsc::channel();
    let parts = [Bytes::from(vec![1; bytes]), Bytes::new(), Bytes::new()];
    let entries = vec![Append { ledger: 1 + u64::from(bytes < 1000), entry, parts, reserve: false }];
    log.append(entries, Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap();
}

fn spare_bytes(folder: &Path) -> u64 {
    let names = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let spares = names.filter(|entry| entry.file_name().to_string_lossy().starts_with("spare-"));
    spares.filter_map(|spare| Some(spare.metadata().ok()?.len())).sum()
}

/// Needs a file system of which a sixteenth is free.
#[test]
fn beside_commits_they_hardly_go_and_at_rest_they_do() {
    const SEGMENT: u64 = 4 << 20;
    const PIECE: u64 = 2 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(folder.path(), LogOptions { segment_bytes: SEGMENT, ..LogOptions::default() }).unwrap();
    // They fill the segments: what a sealed one has left over would be given back, and it not be used again.
    for entry in 0..1000 {
        append(&log, entry, 118_000);
    }
    let (sender, receiver) = mpsc::channel();
    log.delete_ledgers(&[1], Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap();
    let (begin, mut entry, mut most) = (Instant::now(), 0, (Instant::now(), 0));
    while begin.elapsed() < Duration::from_secs(3) {
        append(&log, entry, 100);
        entry += 1;
        std::thread::sleep(Duration::from_millis(2));
        let bytes = spare_bytes(folder.path());
        if bytes > most.1 {
            most = (Instant::now(), bytes);
        }
    }
    let (left, seconds) = (spare_bytes(folder.path()), most.0.elapsed().as_secs() + 1);
    assert!(most.1 >= 20 * SEGMENT, "{} bytes in spare files", most.1);
    // The log itself uses some again.
    assert!(left >= most.1 - seconds * PIECE - 3 * SEGMENT, "{left} of {} bytes left after {seconds} s", most.1);
    while spare_bytes(folder.path()) > KEPT as u64 * SEGMENT {
        assert!(begin.elapsed() < Duration::from_secs(30), "they do not go at rest");
        std::thread::sleep(Duration::from_millis(20));
    }
    log.close();
}
