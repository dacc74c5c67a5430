//! What the writer of a ledger hears after one of its writes failed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::disk::sim::{Faults, SimDisk};
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, AppendError, LogOptions};

fn append_to(engine: &Engine<SimDisk>, ledger: u64, entry: u64) -> Result<(), AppendError> {
    let answer = Arc::new(Mutex::new(None));
    let told = answer.clone();
    let parts = [Bytes::from_static(b"entry"), Bytes::new(), Bytes::new()];
    let done = Box::new(move |result| *told.lock().unwrap() = Some(result));
    run(
        engine,
        Request::Append {
            entries: vec![Append { ledger, entry, parts, reserve: false }],
            admission: Admission::Whole,
            done,
        },
    );
    answer.lock().unwrap().take().expect("an answer")
}

fn append(engine: &Engine<SimDisk>, entry: u64) -> Result<(), AppendError> {
    append_to(engine, 1, entry)
}

fn run(engine: &Engine<SimDisk>, request: Request) {
    let mut queue = VecDeque::from([request]);
    while let Begin::Commit(commit) = engine.begin(&mut queue) {
        let written = commit.write();
        engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    }
}

/// "Fenced" tells a writer that somebody has taken its place, which a failing disk must not.
#[test]
fn only_a_fence_is_called_a_fence() {
    let disk = SimDisk::new(1, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), LogOptions::default()).unwrap();
    assert_eq!(append(&engine, 0), Ok(()));
    disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
    assert!(matches!(append(&engine, 1), Err(AppendError::Io(_))));
    disk.set_faults(Faults::default());
    assert_eq!(append(&engine, 2), Err(AppendError::GivenUp), "it would leave a gap");
    run(&engine, Request::Fence { ledger: 1, key: None, done: Box::new(|last| assert_eq!(last.unwrap(), Some(0))) });
    assert_eq!(append(&engine, 1), Err(AppendError::Fenced));
}

/// A disk that fails on is left alone, what it has is served, and when it recovers it is used again.
#[test]
fn a_disk_that_fails_is_read_only_until_it_takes_writes_again() {
    let disk = SimDisk::new(1, 64 << 20);
    let (engine, _) = Engine::open(disk.clone(), LogOptions::default()).unwrap();
    assert_eq!(append(&engine, 0), Ok(()));
    let failing = Faults { write_error: 1.0, ..Faults::default() };
    disk.set_faults(failing);
    for ledger in 2..10 {
        assert!(append_to(&engine, ledger, 0).is_err());
    }
    assert!(matches!(append_to(&engine, 10, 0), Err(AppendError::ReadOnly(_))));
    assert!(engine.stats().read_only && engine.try_again().is_err() && engine.stats().read_only);
    assert_eq!(engine.read(1, 0).unwrap(), "entry");

    disk.set_faults(Faults { sync_error: 1.0, ..Faults::default() });
    assert!(engine.try_again().is_err(), "a sync that fails is a failure");
    disk.set_faults(Faults::default());
    assert_eq!((engine.try_again().unwrap(), engine.stats().read_only), (true, false));
    assert_eq!(append_to(&engine, 11, 0), Ok(()));
    assert_eq!(append_to(&engine, 12, 0), Ok(()));
    disk.crash();
    let (engine, report) = Engine::open(disk.clone(), LogOptions::default()).unwrap();
    assert_eq!(
        (report.damage.len(), engine.read(1, 0).unwrap(), engine.read(12, 0).unwrap()),
        (0, "entry".into(), "entry".into())
    );

    // It fails once more: at once it is left alone again.
    disk.set_faults(failing);
    for ledger in 20..24 {
        assert!(append_to(&engine, ledger, 0).is_err());
    }
    assert!(engine.stats().read_only);
}

/// What is wrong with one segment holds up no other, and is tried again when the disk is.
#[test]
fn a_segment_that_cannot_be_sealed_or_removed_holds_up_no_other() {
    let disk = SimDisk::new(1, 64 << 20);
    let options = LogOptions { segment_bytes: 256 << 10, reserve_bytes: 0, ..LogOptions::default() };
    let (engine, _) = Engine::open(disk.clone(), options).unwrap();
    // Two fit into a segment.
    for ledger in 1..=5 {
        let parts = [Bytes::from(vec![1; 100_000]), Bytes::new(), Bytes::new()];
        let entries = vec![Append { ledger, entry: 0, parts, reserve: false }];
        let done = Box::new(|result: Result<(), AppendError>| result.unwrap());
        run(&engine, Request::Append { entries, admission: Admission::Whole, done });
    }
    run(&engine, Request::Delete { ledgers: (1..=5).collect(), done: Box::new(|result| result.unwrap()) });
    let drops = |engine: &Engine<SimDisk>| match engine.plan_reclaim(Box::new(|result| result.unwrap())).unwrap() {
        Some(Request::Housekeeping { controls, adopt, drop, done }) => {
            let dropped = drop.clone();
            run(engine, Request::Housekeeping { controls, adopt, drop, done });
            dropped
        }
        _ => Vec::new(),
    };

    disk.refuse_changes_of(Some("segment-00000001"));
    assert!(engine.seal_retired().is_err());
    assert!(engine.seal_retired().is_ok(), "it is left alone");
    assert_eq!(drops(&engine), [2], "the other one is sealed");
    disk.refuse_changes_of(Some("segment-00000002"));
    assert!(engine.dispose().is_err());
    assert_eq!(engine.dispose().unwrap(), 0, "it is left alone");

    disk.refuse_changes_of(None);
    engine.try_again().unwrap();
    assert_eq!(engine.dispose().unwrap(), 1);
    assert_eq!(disk.file_length("segment-00000002"), 0);
    engine.seal_retired().unwrap();
    assert_eq!(drops(&engine), [1]);
    assert_eq!(engine.dispose().unwrap(), 1);
}
