//! Damage to the log, from its discovery to the day when nothing is left of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, AppendError, FenceError, LogOptions, MasterKey, OpenError, ReadError};

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
    if let Some(plan) = engine.plan_compaction(|_, _| true)
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
        let plan = engine.plan_compaction(|_, _| true)?;
        engine.compact(&plan, &mut |_| true, Box::new(|result| result.unwrap())).unwrap()
    };
    assert!(compact(&engine).is_none(), "one of the two cannot be read");
    let moving = compact(&engine).expect("the other one is moved");
    assert!(matches!(&moving, Request::Housekeeping { drop, .. } if *drop == [4]));
    run(&engine, moving);
    assert!(engine.plan_compaction(|_, _| true).is_none());
    assert!((0..5).all(|entry| engine.read(9, entry) == Ok(body(9, entry))));
}

const SEAL_AT: u64 = 4096;
const DATA_AT: u64 = 8192;

fn is_unknown<T: std::fmt::Debug>(answer: &Result<T, ReadError>) -> bool {
    matches!(answer, Err(ReadError::Corrupt { .. }))
}

/// A log of which each segment has a ledger of its own: the first two are sealed, the last one was in use at a crash.
fn three_segments() -> SimDisk {
    let disk = SimDisk::new(11, 64 << 20);
    for ledger in 1..=3 {
        let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
        add_all(&engine, ledger, 0..5, false).unwrap();
        match ledger {
            3 => disk.crash(),
            _ => engine.shut_down().unwrap(),
        }
    }
    disk
}

fn whole_fence(engine: &Engine<SimDisk>, ledger: u64) -> Result<Option<u64>, FenceError> {
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    let done = Box::new(move |result| *told.lock().unwrap() = Some(result));
    run(engine, Request::Fence { ledger, key: None, done });
    answer.lock().unwrap().take().expect("an answer")
}

fn has_all(engine: &Engine<SimDisk>, ledger: u64) -> bool {
    (0..5).all(|entry| engine.read(ledger, entry) == Ok(body(ledger, entry)))
}

#[test]
fn a_head_or_an_index_that_cannot_be_read_costs_no_entry() {
    let cases: [(&str, Place, bool); 3] = [
        ("header", |_| 0, false),
        ("seal", |_| SEAL_AT as usize, true),
        ("index", |content| content.iter().rposition(|byte| *byte != 0).expect("it was written"), true),
    ];
    for (what, place, rewritten) in cases {
        let disk = three_segments();
        disk.fail_reads(FIRST, place(&content(&disk, FIRST)) as u64);
        let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
        assert!(!report.damage.is_empty(), "{what} is not reported");
        assert_eq!(engine.stats().holes, 0, "{what}: {report:?}");
        assert!((1..=3).all(|ledger| has_all(&engine, ledger)), "{what}");
        assert!(matches!(engine.read(1, 5), Err(ReadError::NoSuchEntry { .. })), "{what}");
        engine.shut_down().unwrap();
        drop(engine);
        let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
        assert_eq!(report.damage.is_empty(), rewritten, "{what}: {report:?}");
        assert_eq!(scrub(&engine), (u64::from(!rewritten), vec![]), "{what}");
        maintain(&engine);
        assert_eq!(scrub(&engine), (0, vec![]), "{what} is still there");
        assert!((1..=3).all(|ledger| has_all(&engine, ledger)), "{what}");
        drop(engine);
        disk.crash();
        assert_eq!(Engine::open(disk, options()).unwrap().1.damage, [""; 0], "{what}");
    }
}

/// The header says that it is one.
#[test]
fn a_compacted_segment_of_which_the_header_cannot_be_read_is_no_end_of_the_log() {
    let disk = three_segments();
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    run(&engine, Request::Delete { ledgers: vec![1], done: Box::new(|result| result.unwrap()) });
    disk.flip_bit("segment-00000002", 0, 0);
    scrub(&engine);
    maintain(&engine);
    let compacted = |content: &[u8]| content.starts_with(b"GmLogSeg") && content[10] == 1;
    add_all(&engine, 4, 0..5, false).unwrap();
    disk.crash();
    let (name, _) = disk.contents().into_iter().find(|(_, content)| compacted(content)).expect("there is one");
    disk.fail_reads(&name, 0);
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!(report.damage.len(), 1, "{report:?}");
    assert!((2..=4).all(|ledger| has_all(&engine, ledger)));
    assert!(matches!(engine.read(1, 0), Err(ReadError::NoSuchLedger { .. })));
}

/// A torn write leaves what can be read; what cannot be may have been acknowledged.
#[test]
fn the_end_of_the_log_is_unknown_if_it_cannot_be_read() {
    let third = "segment-00000003";
    let disk = three_segments();
    let content = content(&disk, third);
    let in_head = position(&content, &body(3, 0)) as u64 - 10;
    disk.fail_reads(third, in_head);
    let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
    assert!(!report.damage.is_empty() && !report.torn_tail && engine.stats().holes == 1, "{report:?}");
    assert!((0..5).all(|entry| is_unknown(&engine.read(3, entry))));
    assert!(is_unknown(&engine.read(9, 0)), "it may hide a ledger");
    assert_eq!(add(&engine, 2, 5, false), Err(AppendError::Unknown), "it may hide a fence");
    assert!((1..=2).all(|ledger| has_all(&engine, ledger)));
    assert!(matches!(whole_fence(&engine, 8), Err(FenceError::Unknown(_))), "it may hide the end of a ledger");
    drop(engine);

    // What is written meanwhile leaves the place alone: it may be readable again some day.
    let left = self::content(&disk, third);
    assert!((0..5).all(|entry| position(&left, &body(3, entry)) == position(&content, &body(3, entry))));
    let (engine, report) = Engine::open(disk.clone(), options()).unwrap();
    assert!(!report.damage.is_empty() && engine.stats().holes == 1, "it is not forgotten: {report:?}");
    drop(engine);
    disk.mend_reads();
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!((report.damage.len(), engine.stats().holes), (0, 0), "{report:?}");
    assert!((1..=3).all(|ledger| has_all(&engine, ledger)));
}

/// The block that cannot be read is behind one that can, in the same commit.
#[test]
fn an_entry_at_the_end_of_the_log_that_cannot_be_read_hides_no_other() {
    let third = "segment-00000003";
    let disk = three_segments();
    disk.fail_reads(third, position(&content(&disk, third), &body(3, 2)) as u64 + 100);
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert!(!report.damage.is_empty() && engine.stats().holes == 0, "{report:?}");
    let (_, damaged) = scrub(&engine);
    assert!(damaged.contains(&(3, 2)) && damaged.len() <= 2, "{damaged:?}");
    for entry in 0..5 {
        let read = engine.read(3, entry);
        match damaged.contains(&(3, entry)) {
            true => assert!(is_unknown(&read), "{entry} gives {read:?}"),
            false => assert_eq!(read, Ok(body(3, entry))),
        }
    }
    assert!(matches!(engine.read(3, 5), Err(ReadError::NoSuchEntry { .. })));
}

/// With the key of a replica went all that was there before.
#[test]
fn a_replica_of_which_the_key_is_hidden_is_no_whole_ledger() {
    let disk = three_segments();
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    add(&engine, 3, 2, true).unwrap();
    drop(engine);
    disk.fail_reads("segment-00000003", DATA_AT);
    let footer = content(&disk, "segment-00000003").iter().rposition(|byte| *byte != 0).expect("it was written");
    disk.fail_reads("segment-00000003", footer as u64);
    let (engine, _) = Engine::open(disk, LogOptions { only_replicas: true, ..options() }).unwrap();
    assert_eq!(engine.read(3, 2), Ok(body(3, 2)));
    assert!(engine.key(3).is_none() && is_unknown(&engine.read(3, 4)) && is_unknown(&engine.last_entry(3)));
}

/// In a row of zeros are an empty entry's length and checksum.
#[test]
fn a_table_that_cannot_be_read_makes_no_entry_an_empty_one() {
    let disk = SimDisk::new(12, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    add_all(&engine, 1, 0..10, false).unwrap();
    engine.shut_down().unwrap();
    drop(engine);
    let table_at = position(&content(&disk, FIRST), &body(1, 9)) + BODY_BYTES;
    disk.fail_reads(FIRST, table_at as u64);
    let (engine, _) = Engine::open(disk, options()).unwrap();
    for entry in 0..10 {
        let read = engine.read(1, entry);
        assert!(is_unknown(&read) || read == Ok(body(1, entry)), "{entry} gives {read:?}");
    }
}

#[test]
fn an_index_and_a_record_that_cannot_be_read_hide_no_other() {
    let disk = SimDisk::new(13, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    for entry in 0..20 {
        add(&engine, 1, entry, false).unwrap();
    }
    engine.shut_down().unwrap();
    let records_end = DATA_AT + engine.stats().data_bytes;
    drop(engine);
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    disk.fail_reads(FIRST, records_end);
    disk.fail_reads(FIRST, position(&content(&disk, FIRST), &body(1, 7)) as u64 - 10);
    let (_, damaged) = scrub(&engine);
    assert_eq!(damaged, [(1, 7)]);
    assert!(is_unknown(&engine.read(1, 7)) && engine.lists(1, 7));
    assert!((0..20).filter(|entry| *entry != 7).all(|entry| engine.read(1, entry) == Ok(body(1, entry))));
    add(&engine, 1, 7, true).unwrap();
    assert!((0..20).all(|entry| engine.read(1, entry) == Ok(body(1, entry))), "a repair");
}

#[test]
fn which_ledgers_were_deleted_is_unknown_if_it_cannot_be_read() {
    let disk = three_segments();
    let (engine, _) = Engine::open(disk.clone(), options()).unwrap();
    run(&engine, Request::Delete { ledgers: vec![1], done: Box::new(|result| result.unwrap()) });
    let reclaim = engine.plan_reclaim(Box::new(|result| result.unwrap())).unwrap().expect("one can go");
    run(&engine, reclaim);
    engine.shut_down().unwrap();
    drop(engine);
    disk.fail_reads("deleted", 0);
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!((report.damage.len(), engine.stats().holes), (1, 1), "{report:?}");
    assert!(is_unknown(&engine.read(9, 0)) && has_all(&engine, 2) && has_all(&engine, 3));
}

#[test]
fn a_disk_that_reads_nothing_is_no_empty_log() {
    let disk = three_segments();
    disk.set_faults(Faults { read_error: 1.0, ..Faults::default() });
    let Err(error) = Engine::open(disk.clone(), options()) else { panic!("it opens") };
    assert!(matches!(&error, OpenError::Io { source, .. } if source.raw_os_error() == Some(5)), "{error:?}");
    assert_eq!(error.to_string(), "reading any segment in the log's folder");
    disk.set_faults(Faults::default());
    let (engine, report) = Engine::open(disk, options()).unwrap();
    assert_eq!(report.damage, [""; 0], "nothing was changed");
    assert!((1..=3).all(|ledger| has_all(&engine, ledger)));
}
