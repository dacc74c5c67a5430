//! Logs of earlier and later programs.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_log::disk::sim::SimDisk;
use geminga_log::disk::{Disk, DiskFile};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, LogOptions, MasterKey, OpenError, ReadError};

const KEY: MasterKey = [7; 20];
const FIRST_SEGMENT: &str = "segment-00000001";

fn options() -> LogOptions {
    LogOptions { segment_bytes: 256 << 10, reserve_bytes: 0, compact_below: 2.0, ..LogOptions::default() }
}

/// Files as lines: a name and a length, then offsets and the bytes there, where they are not zero.
fn restore(text: &str) -> SimDisk {
    let disk = SimDisk::new(1, 64 << 20);
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in text.lines() {
        let (left, right) = line.split_once(' ').expect("two words");
        match left.parse::<usize>() {
            Ok(at) => {
                let digits = right.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
                let bytes: Vec<u8> = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
                let (_, content) = files.last_mut().expect("a name comes first");
                content[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Err(_) => files.push((left, vec![0; right.parse().unwrap()])),
        }
    }
    for (name, content) in files {
        let file = disk.create(name).unwrap();
        file.write_at(&content, 0).and_then(|()| file.sync_data()).unwrap();
    }
    disk.sync_folder().unwrap();
    disk
}

fn run(engine: &Engine<SimDisk>, request: Request) {
    let mut queue = VecDeque::from([request]);
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

fn body(ledger: u64, entry: u64) -> Bytes {
    Bytes::from(format!("entry {ledger}:{entry}"))
}

fn add(engine: &Engine<SimDisk>, ledger: u64, entries: &[u64], admission: Admission) {
    let append =
        |&entry| Append { ledger, entry, parts: [body(ledger, entry), Bytes::new(), Bytes::new()], reserve: false };
    let entries = entries.iter().map(append).collect();
    run(engine, Request::Append { entries, admission, done: Box::new(|result| result.unwrap()) });
}

fn check(engine: &Engine<SimDisk>, expected: &[(u64, &[u64])]) {
    assert_eq!(engine.ledgers(), expected.iter().map(|(ledger, _)| *ledger).collect::<Vec<_>>());
    for (ledger, entries) in expected {
        let found: Vec<u64> = (0..20)
            .filter(|&entry| match engine.read(*ledger, entry) {
                Ok(bytes) => bytes == body(*ledger, entry),
                Err(ReadError::NoSuchEntry { .. }) => false,
                Err(error) => panic!("{error}"),
            })
            .collect();
        assert_eq!(&found, entries, "ledger {ledger}");
    }
    let (fenced, lac) = engine.replica(2).expect("it is there");
    assert_eq!((fenced, lac.map(|lac| lac.last_add_confirmed), engine.key(2)), (false, Some(6), Some(KEY)));
    assert!(engine.has_deleted(3));
    assert_eq!(engine.last_entry(1), Ok(Some(5)), "it is fenced");
    for segment in engine.scrub_order() {
        let scrubbed = engine.scrub(segment, &mut |_| true).unwrap().expect("it is there");
        assert_eq!((scrubbed.damaged_places, scrubbed.index_rewritten), (0, false));
    }
}

fn versions(disk: &SimDisk) -> Vec<u8> {
    disk.contents().iter().filter(|(name, _)| name.starts_with("segment-")).map(|(_, bytes)| bytes[8]).collect()
}

#[test]
fn a_log_of_version_2_is_read_and_goes_on() {
    let disk = restore(include_str!("../golden/log.v2.txt"));
    let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
    assert_eq!((report.segments, report.scanned, report.damage.len()), (2, 1, 0), "a sealed one and an open one");
    check(&engine, &[(1, &[0, 1, 2, 3, 4, 5]), (2, &[3, 5, 6, 9, 10, 11]), (4, &[0, 1, 2, 3])]);

    add(&engine, 2, &[12, 13, 14, 16], Admission::Replica { key: KEY, recovery: false });
    add(&engine, 4, &[4, 5, 6], Admission::Whole);
    let expected: [(u64, &[u64]); 3] =
        [(1, &[0, 1, 2, 3, 4, 5]), (2, &[3, 5, 6, 9, 10, 11, 12, 13, 14, 16]), (4, &[0, 1, 2, 3, 4, 5, 6])];
    check(&engine, &expected);
    assert_eq!(versions(&disk), [2, 2, 3]);
    drop(engine);
    disk.crash();
    let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
    assert_eq!((report.segments, report.scanned, report.damage.len()), (3, 1, 0));
    check(&engine, &expected);

    // Of all of them, one is made.
    let plan = engine.plan_compaction(|_, _| true).expect("it is worth it");
    assert_eq!(plan.segments.len(), 3);
    let done = Box::new(|result: Result<(), _>| result.unwrap());
    let request = engine.compact(&plan, &mut |_| true, done).unwrap().expect("nothing is damaged");
    run(&engine, request);
    engine.dispose().unwrap();
    assert_eq!(versions(&disk), [3, 3], "entries, and the log that says so");
    check(&engine, &expected);
    engine.shut_down().unwrap();
    drop(engine);
    check(&Engine::open(disk, options()).unwrap().0, &expected);
}

#[test]
fn a_newer_version_is_refused_in_one_line() {
    let disk = restore(include_str!("../golden/log.v2.txt"));
    let mut content = disk.contents().into_iter().find(|(name, _)| name == FIRST_SEGMENT).expect("it is there").1;
    content[8] = 4;
    let crc = crc_fast::crc32_iscsi(&content[..28]);
    content[28..32].copy_from_slice(&crc.to_le_bytes());
    disk.open(FIRST_SEGMENT).unwrap().write_at(&content, 0).unwrap();
    let Err(error) = Engine::open(disk, options()) else { panic!("it opens") };
    assert!(matches!(error, OpenError::NewerFormat { version: 4, known: 3, .. }), "{error}");
    assert_eq!(error.to_string(), "segment file segment-00000001 has format version 4; this program reads up to 3");
}
