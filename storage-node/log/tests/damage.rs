//! Damage to the log, from its discovery to the day when nothing is left of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::disk::sim::SimDisk;
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, AppendError, LogOptions, MasterKey, ReadError};

const KEY: MasterKey = [3; 20];
const BODY_BYTES: usize = 4000;

fn options() -> LogOptions {
    LogOptions { segment_bytes: 256 << 10, reserve_bytes: 0, ..LogOptions::default() }
}

fn run(engine: &Engine<SimDisk>, request: Request) {
    let mut queue = VecDeque::from([request]);
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

fn body(ledger: u64, entry: u64) -> Bytes {
    Bytes::from(vec![(ledger * 50 + entry) as u8; BODY_BYTES])
}

fn add(engine: &Engine<SimDisk>, ledger: u64, entry: u64, recovery: bool) -> Result<(), AppendError> {
    add_all(engine, ledger, entry..=entry, recovery)
}

fn add_all(
    engine: &Engine<SimDisk>,
    ledger: u64,
    entries: impl Iterator<Item = u64>,
    recovery: bool,
) -> Result<(), AppendError> {
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    let append =
        |entry| Append { ledger, entry, parts: [body(ledger, entry), Bytes::new(), Bytes::new()], reserve: false };
    let entries = entries.map(append).collect();
    let done = Box::new(move |result| *told.lock().unwrap() = Some(result));
    run(engine, Request::Append { entries, admission: Admission::Replica { key: KEY, recovery }, done });
    answer.lock().unwrap().take().expect("an answer")
}

fn position(content: &[u8], of: &[u8]) -> usize {
    content.windows(of.len()).position(|part| part == of).expect("it is on the disk")
}

/// Turns a bit in the head of a record or in its body.
fn damage(disk: &SimDisk, ledger: u64, entry: u64, in_head: bool) {
    let pattern = body(ledger, entry);
    for (name, content) in disk.contents() {
        if let Some(at) = content.windows(BODY_BYTES).position(|part| part == &pattern[..]) {
            let byte = if in_head { at as u64 - 10 } else { at as u64 + 100 };
            return disk.flip_bit(&name, byte, 3);
        }
    }
    panic!("entry {ledger}:{entry} is not on the disk");
}

fn maintain(engine: &Engine<SimDisk>) {
    engine.seal_retired().unwrap();
    if let Some(plan) = engine.plan_compaction()
        && let Some(request) = engine.compact(&plan, &mut |_| true, Box::new(|result| result.unwrap())).unwrap()
    {
        run(engine, request);
    }
    engine.dispose().unwrap();
}

fn scrub(engine: &Engine<SimDisk>) -> (u64, Vec<(u64, u64)>) {
    let (mut places, mut entries) = (0, Vec::new());
    for segment in engine.scrub_order() {
        let scrubbed = engine.scrub(segment, &mut |_| true).unwrap().expect("it is there");
        places += scrubbed.damaged_places;
        entries.extend(scrubbed.damaged_entries);
    }
    engine.reconsider_damaged();
    (places, entries)
}

#[test]
fn holes_hide_until_they_are_forgiven_and_compaction_takes_them_away() {
    let disk = SimDisk::new(5, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    for entry in 0..20 {
        assert_eq!(add(&engine, 1 + entry % 2, entry / 2, false), Ok(()));
    }
    drop(engine);
    disk.crash();
    damage(&disk, 1, 3, true);
    let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
    assert!(!report.damage.is_empty() && engine.stats().holes == 1, "{report:?}");
    assert!(matches!(engine.read(1, 3), Err(ReadError::Corrupt { .. })));
    assert!(matches!(engine.read(9, 0), Err(ReadError::Corrupt { .. })), "the hole may hide a ledger");
    assert_eq!(add(&engine, 2, 10, false), Err(AppendError::Unknown), "the hole may hide its fence");

    assert_eq!(add(&engine, 1, 3, true), Ok(()), "a repair");
    engine.forgive_holes();
    assert_eq!(engine.stats().holes, 0);
    assert_eq!((engine.read(1, 3).unwrap(), engine.read(2, 9).unwrap()), (body(1, 3), body(2, 9)));
    assert!(matches!(engine.read(9, 0), Err(ReadError::NoSuchLedger { .. })));
    assert_eq!(add(&engine, 2, 10, false), Ok(()), "it takes entries again");

    maintain(&engine);
    engine.shut_down().unwrap();
    drop(engine);
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!((report.damage.len(), engine.stats().holes), (0, 0), "the damaged segment is gone: {report:?}");
    assert!((0..10).all(|entry| engine.read(1, entry).unwrap() == body(1, entry)));
    assert!((0..11).all(|entry| engine.read(2, entry).unwrap() == body(2, entry)));
}

#[test]
fn a_scrub_finds_heads_and_bodies_and_a_repaired_segment_is_moved() {
    let disk = SimDisk::new(6, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    for entry in 0..20 {
        assert_eq!(add(&engine, 1, entry, false), Ok(()));
    }
    engine.shut_down().unwrap();
    drop(engine);
    damage(&disk, 1, 4, false);
    damage(&disk, 1, 11, true);
    let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
    assert_eq!(report.damage, [""; 0], "what is sealed is not read at a start");
    assert_eq!(scrub(&engine), (2, vec![(1, 4), (1, 11)]));
    for entry in [4, 11] {
        assert!(matches!(engine.read(1, entry), Err(ReadError::Corrupt { .. })));
        assert_eq!(add(&engine, 1, entry, true), Ok(()));
        assert_eq!(engine.read(1, entry).unwrap(), body(1, entry));
    }
    assert_eq!(scrub(&engine), (2, vec![]), "the damage is there and does no harm");
    maintain(&engine);
    assert_eq!(scrub(&engine), (0, vec![]), "it is not even there any more");
    drop(engine);
    disk.crash();
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!(report.damage, [""; 0]);
    assert!((0..20).all(|entry| engine.read(1, entry).unwrap() == body(1, entry)));
}

#[test]
fn a_damaged_index_is_written_again() {
    let disk = SimDisk::new(7, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    for entry in 0..20 {
        assert_eq!(add(&engine, 1, entry, false), Ok(()));
    }
    engine.shut_down().unwrap();
    drop(engine);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    // The runs of the only ledger are the first thing behind the records.
    let records_end = 8192 + engine.stats().data_bytes;
    disk.flip_bit("segment-00000001", records_end + 5, 1);
    let scrub_first = || engine.scrub(1, &mut |_| true).unwrap().expect("it is there");
    assert!(scrub_first().index_rewritten);
    assert!(!scrub_first().index_rewritten, "it is intact now");
    drop(engine);
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!((report.scanned, report.damage.len()), (0, 0));
    assert!((0..20).all(|entry| engine.read(1, entry).unwrap() == body(1, entry)));
}

type Place = fn(&[u8]) -> usize;

/// Entries that come in one commit share a record, with one head and one table.
#[test]
fn damage_to_a_record_of_several_entries_costs_no_more_than_it_must() {
    let cases: [(&str, Place, Vec<u64>); 3] = [
        ("an entry", |content| position(content, &body(1, 6)) + 100, vec![6]),
        ("a row", |content| position(content, &body(1, 9)) + BODY_BYTES + 4 * 6 + 3, vec![4]),
        ("the head", |content| position(content, &body(1, 0)) - 10, (0..10).collect()),
    ];
    for (what, place, expected) in cases {
        let disk = SimDisk::new(8, 64 << 20);
        let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
        add_all(&engine, 1, 0..10, false).unwrap();
        add_all(&engine, 1, 10..20, false).unwrap();
        engine.shut_down().unwrap();
        drop(engine);
        let segment = "segment-00000001";
        let content = disk.contents().into_iter().find(|(name, _)| name == segment).expect("it is there").1;
        disk.flip_bit(segment, place(&content) as u64, 3);
        let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
        let suffer: Vec<(u64, u64)> = expected.iter().map(|entry| (1, *entry)).collect();
        assert_eq!(scrub(&engine).1, suffer, "{what}");
        for entry in 0..20 {
            let read = engine.read(1, entry);
            match expected.contains(&entry) {
                true => assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{what}: {entry} gives {read:?}"),
                false => assert_eq!(read, Ok(body(1, entry)), "{what}"),
            }
        }
        add_all(&engine, 1, expected.into_iter(), true).unwrap();
        assert_eq!(scrub(&engine), (1, vec![]), "the damage is there and does no harm");
        maintain(&engine);
        assert_eq!(scrub(&engine), (0, vec![]), "{what} was repaired, and what was damaged is gone");
        assert!((0..20).all(|entry| engine.read(1, entry) == Ok(body(1, entry))), "{what}");
    }
}

const FIRST: &str = "segment-00000001";

fn content(disk: &SimDisk, segment: &str) -> Vec<u8> {
    disk.contents().into_iter().find(|(name, _)| name == segment).expect("it is there").1
}

#[test]
fn what_the_disk_cannot_read_is_damage_like_wrong_bytes() {
    let disk = SimDisk::new(9, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    add_all(&engine, 1, 0..100, false).unwrap();
    engine.shut_down().unwrap();
    drop(engine);
    let place = position(&content(&disk, FIRST), &body(1, 40)) as u64;
    disk.fail_reads(FIRST, place + 100);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    let (places, damaged) = scrub(&engine);
    assert!(places > 0 && damaged.len() <= 2 && damaged.contains(&(1, 40)), "{damaged:?}");
    let whole = engine.read_range(1, 0, u64::MAX, 1 << 20).unwrap();
    assert_eq!(Some(whole.len() as u64), damaged.iter().map(|(_, entry)| *entry).min(), "up to the first of them");
    for entry in 0..100 {
        let read = engine.read(1, entry);
        match damaged.contains(&(1, entry)) {
            true => assert!(matches!(read, Err(ReadError::Corrupt { entry: Some(_), .. })), "{entry} gives {read:?}"),
            false => assert_eq!(read, Ok(body(1, entry))),
        }
    }
    add_all(&engine, 1, damaged.into_iter().map(|(_, entry)| entry), true).unwrap();
    assert!((0..100).all(|entry| engine.read(1, entry) == Ok(body(1, entry))), "a second copy is intact");
    assert_eq!(scrub(&engine).1, [], "the damage is there and does no harm");
    maintain(&engine);
    assert_eq!(scrub(&engine), (0, vec![]), "what could not be read is gone");
    assert!((0..100).all(|entry| engine.read(1, entry) == Ok(body(1, entry))));
}

#[test]
fn a_segment_without_a_readable_index_keeps_no_other_from_going() {
    let disk = SimDisk::new(10, 64 << 20);
    // Segments of which all, all, most and most is deleted.
    for ledgers in [1..=1, 2..=2, 3..=8, 9..=14] {
        let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
        ledgers.for_each(|ledger| add_all(&engine, ledger, 0..5, false).unwrap());
        engine.shut_down().unwrap();
    }
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    let gone = (1..=14).filter(|ledger| ![3, 9].contains(ledger)).collect();
    run(&engine, Request::Delete { ledgers: gone, done: Box::new(|result| result.unwrap()) });
    for segment in ["segment-00000001", "segment-00000003"] {
        // Behind the records of that segment there is nothing but the index.
        let content = content(&disk, segment);
        let end = content.iter().rposition(|byte| *byte != 0).expect("it was written");
        disk.fail_reads(segment, end as u64);
    }
    let reclaim = engine.plan_reclaim(Box::new(|result| result.unwrap())).unwrap().expect("one can go");
    assert!(matches!(&reclaim, Request::Housekeeping { drop, .. } if *drop == [2]));
    run(&engine, reclaim);
    assert_eq!(engine.dispose().unwrap(), 1);
    assert!(engine.plan_reclaim(Box::new(drop)).unwrap().is_none(), "the other one is not tried again and again");

    let compact = |engine: &Engine<SimDisk>| {
        let plan = engine.plan_compaction()?;
        engine.compact(&plan, &mut |_| true, Box::new(|result| result.unwrap())).unwrap()
    };
    assert!(compact(&engine).is_none(), "one of the two cannot be read");
    let moving = compact(&engine).expect("the other one is moved");
    assert!(matches!(&moving, Request::Housekeeping { drop, .. } if *drop == [4]));
    run(&engine, moving);
    assert!(engine.plan_compaction().is_none());
    assert!((0..5).all(|entry| engine.read(9, entry) == Ok(body(9, entry))));
}
