//! A ledger that was deleted stays so, when nothing of it is left in the log and whatever comes late.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, AppendError, FenceError, LogOptions, MasterKey, OpenError, ReadError};

const KEY: MasterKey = [3; 20];
const FILE: &str = "deleted";

fn options() -> LogOptions {
    LogOptions { segment_bytes: 256 << 10, reserve_bytes: 0, ..LogOptions::default() }
}

fn open(disk: &SimDisk) -> Engine<SimDisk> {
    Engine::open(disk.clone(), options()).expect("it opens").0
}

/// As after an orderly stop.
fn restarted(disk: &SimDisk, engine: Engine<SimDisk>) -> Engine<SimDisk> {
    engine.shut_down().expect("it is sealed");
    drop(engine);
    open(disk)
}

/// What the call that `request` makes is answered; `None` if the disk went away first.
fn ask<T: Send + 'static>(
    engine: &Engine<SimDisk>,
    request: impl FnOnce(Box<dyn FnOnce(T) + Send>) -> Request,
) -> Option<T> {
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    run(engine, request(Box::new(move |result| *told.lock().unwrap() = Some(result))));
    answer.lock().unwrap().take()
}

fn run(engine: &Engine<SimDisk>, request: Request) {
    let mut queue = VecDeque::from([request]);
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

fn try_add(engine: &Engine<SimDisk>, ledger: u64, recovery: bool) -> Option<Result<(), AppendError>> {
    let parts = [Bytes::from(vec![ledger as u8; 2000]), Bytes::new(), Bytes::new()];
    let entries = vec![Append { ledger, entry: 0, parts, reserve: false }];
    let admission = Admission::Replica { key: KEY, recovery };
    ask(engine, |done| Request::Append { entries, admission, done })
}

fn add(engine: &Engine<SimDisk>, ledger: u64, recovery: bool) -> Result<(), AppendError> {
    try_add(engine, ledger, recovery).expect("an answer")
}

fn fence(engine: &Engine<SimDisk>, ledger: u64) -> Result<Option<u64>, FenceError> {
    ask(engine, |done| Request::Fence { ledger, key: Some(KEY), done }).expect("an answer")
}

fn try_delete(engine: &Engine<SimDisk>, ledgers: &[u64]) -> Option<Result<(), AppendError>> {
    ask(engine, |done| Request::Delete { ledgers: ledgers.to_vec(), done })
}

fn delete(engine: &Engine<SimDisk>, ledgers: &[u64]) {
    assert_eq!(try_delete(engine, ledgers), Some(Ok(())));
}

/// Drops segments without a live entry, as far as the disk goes along.
fn reclaim(engine: &Engine<SimDisk>) {
    let _ = engine.seal_retired();
    if let Ok(Some(request)) = engine.plan_reclaim(Box::new(drop)) {
        run(engine, request);
    }
    let _ = engine.dispose();
}

/// Segments in the folder that anything was written to.
fn segments(disk: &SimDisk) -> usize {
    disk.contents().iter().filter(|(name, _)| name.starts_with("segment-")).count()
}

fn assert_is_gone(engine: &Engine<SimDisk>, ledger: u64) {
    for recovery in [false, true] {
        assert_eq!(add(engine, ledger, recovery), Err(AppendError::Fenced), "ledger {ledger}, recovery {recovery}");
    }
    assert_eq!(fence(engine, ledger), Ok(None));
    assert_eq!(engine.read(ledger, 0), Err(ReadError::NoSuchLedger { ledger }));
    assert_eq!(engine.last_entry(ledger), Err(ReadError::NoSuchLedger { ledger }));
    assert_eq!(engine.stretches(ledger), Err(ReadError::NoSuchLedger { ledger }));
    assert!(engine.has_deleted(ledger) && !engine.knows(ledger) && !engine.ledgers().contains(&ledger));
}

#[test]
fn what_comes_late_finds_it_gone_when_its_segments_are() {
    let disk = SimDisk::new(1, 64 << 20);
    let engine = open(&disk);
    for ledger in [1, 2, 4] {
        assert_eq!(add(&engine, ledger, false), Ok(()));
    }
    assert_eq!(fence(&engine, 5), Ok(None), "only a fence is there of it");
    delete(&engine, &[1, 2, 4, 5, 77]);
    let engine = restarted(&disk, engine);
    reclaim(&engine);
    let engine = restarted(&disk, engine);
    reclaim(&engine);
    assert_eq!(disk.contents().iter().filter(|(name, _)| name == FILE).count(), 1);
    assert!(segments(&disk) <= 1, "no segment has a tombstone any more");
    for _ in 0..2 {
        [1, 2, 4, 5].into_iter().for_each(|ledger| assert_is_gone(&engine, ledger));
    }
    assert!(!engine.has_deleted(3) && !engine.has_deleted(77), "there was nothing to be deleted");
    assert_eq!((add(&engine, 3, true), add(&engine, 6, false)), (Ok(()), Ok(())));
    drop(engine);
    disk.crash();
    let engine = open(&disk);
    [1, 2, 4, 5].into_iter().for_each(|ledger| assert_is_gone(&engine, ledger));
    assert_eq!(engine.ledgers(), [3, 6]);
}

/// The machine crashes at each change of the disk in turn, in deletions, reclaims and restarts; writes are torn.
#[test]
fn a_crash_at_any_point_brings_none_back() {
    let (mut all_deleted, mut unfinished) = (0, 0);
    for changes in 0..60 {
        let disk = SimDisk::new(100 + changes, 64 << 20);
        let engine = open(&disk);
        for ledger in 1..=6 {
            assert_eq!(add(&engine, ledger, false), Ok(()));
        }
        engine.shut_down().expect("it is sealed");
        drop(engine);
        disk.crash_after(changes);
        let mut deleted = Vec::new();
        for round in 0..3 {
            let Ok((engine, _)) = Engine::open(disk.clone(), options()) else { break };
            let ledgers = [2 * round + 1, 2 * round + 2];
            if try_delete(&engine, &ledgers) == Some(Ok(())) {
                deleted.extend(ledgers);
            }
            reclaim(&engine);
            if engine.shut_down().is_err() {
                break;
            }
        }
        disk.crash();
        disk.set_faults(Faults::default());
        all_deleted += u32::from(deleted.len() == 6);
        unfinished += u32::from(disk.contents().iter().any(|(name, _)| name == "deleted-new"));
        for _ in 0..3 {
            let engine = open(&disk);
            deleted.iter().for_each(|ledger| assert_is_gone(&engine, *ledger));
            reclaim(&engine);
            deleted.iter().for_each(|ledger| assert_is_gone(&engine, *ledger));
            engine.shut_down().expect("no faults");
        }
    }
    assert!(
        (1..60).contains(&all_deleted) && unfinished > 0,
        "{all_deleted} went through, {unfinished} lists unfinished"
    );
}

#[test]
fn a_list_that_cannot_be_read_is_not_an_empty_one() {
    let disk = SimDisk::new(2, 64 << 20);
    let engine = open(&disk);
    assert_eq!((add(&engine, 1, false), add(&engine, 2, false)), (Ok(()), Ok(())));
    delete(&engine, &[1]);
    engine.shut_down().expect("it is sealed");
    drop(engine);
    // Ledger 2 keeps that segment, so the next one brings the file about.
    let engine = open(&disk);
    assert_eq!(add(&engine, 3, false), Ok(()));
    delete(&engine, &[3]);
    let engine = restarted(&disk, engine);
    reclaim(&engine);
    engine.shut_down().expect("it is sealed");
    drop(engine);
    let intact = disk.file_length(FILE);
    assert!(intact > 0);
    disk.flip_bit(FILE, 40, 2);

    let (engine, report) = Engine::open(disk.clone(), options()).expect("it opens");
    assert_eq!((report.damage.len(), engine.stats().holes), (1, 1), "{report:?}");
    assert!(matches!(engine.read(3, 0), Err(ReadError::Corrupt { .. })), "it may have been deleted, or not");
    assert_eq!(engine.read(2, 0).expect("it is there").len(), 2000);
    delete(&engine, &[2]);
    reclaim(&engine);
    engine.shut_down().expect("it is sealed");
    drop(engine);
    // What is known by now has not taken the place of what was there.
    let (engine, report) = Engine::open(disk.clone(), options()).expect("it opens");
    assert_eq!(report.damage.len(), 1);
    assert_is_gone(&engine, 2);

    engine.forgive_holes();
    assert!(matches!(engine.read(3, 0), Err(ReadError::NoSuchLedger { .. })));
    for _ in 0..3 {
        reclaim(&engine);
        engine.shut_down().expect("it is sealed");
    }
    drop(engine);
    let engine = open(&disk);
    reclaim(&engine);
    drop(engine);
    let (engine, report) = Engine::open(disk, options()).expect("it opens");
    assert_eq!((report.damage.len(), engine.stats().holes), (0, 0), "it was written anew: {report:?}");
    assert_is_gone(&engine, 2);
}

#[test]
fn a_list_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut head = [0; 32];
    head[..8].copy_from_slice(b"GmLogDel");
    head[8] = 2;
    let crc = crc_fast::crc32_iscsi(&head[..28]);
    head[28..].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(folder.path().join(FILE), head).expect("written");
    let refused = geminga_log::Log::open(folder.path(), options()).err();
    assert!(matches!(&refused, Some(OpenError::NewerFormat { file, version: 2, .. }) if file == FILE), "{refused:?}");
}

#[test]
fn ranges_join_where_nothing_is_or_comes() {
    let disk = SimDisk::new(3, 64 << 20);
    let engine = open(&disk);
    for ledger in [1, 3, 6, 9] {
        assert_eq!(add(&engine, ledger, false), Ok(()));
    }
    delete(&engine, &[1, 3, 9]);
    assert_eq!(engine.deleted_gaps(), [(2, 2), (4, 8)]);
    // The first record of ledger 2 is on its way.
    let parts = [Bytes::from_static(b"x"), Bytes::new(), Bytes::new()];
    let entries = vec![Append { ledger: 2, entry: 0, parts, reserve: false }];
    let admission = Admission::Replica { key: KEY, recovery: false };
    let mut queue = VecDeque::from([Request::Append { entries, admission, done: Box::new(drop) }]);
    let Begin::Commit(commit) = engine.begin(&mut queue) else { panic!("nothing else is under way") };
    engine.fill_deleted_gaps(&[(2, 2), (4, 8)]);
    let written = commit.write();
    engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    assert_eq!((engine.deleted_gaps(), engine.ledgers()), (vec![(2, 2), (4, 8)], vec![2, 6]));
    delete(&engine, &[2, 6]);
    assert_eq!(engine.deleted_gaps(), [(4, 5), (7, 8)]);
    engine.fill_deleted_gaps(&[(4, 5), (7, 8)]);
    assert_eq!(engine.deleted_gaps(), []);
    (1..=9).for_each(|ledger| assert_is_gone(&engine, ledger));
    assert_eq!(add(&engine, 10, false), Ok(()));
}
