//! The log with its threads on a real disk.

use std::sync::mpsc;

use bytes::Bytes;
use geminga_log::{Append, AppendError, FenceError, Log, LogOptions, OpenError, ReadError};

fn options() -> LogOptions {
    LogOptions { segment_bytes: 1 << 20, reserve_bytes: 0, ..LogOptions::default() }
}

fn entry(ledger: u64, entry: u64) -> Append {
    let body = Bytes::from(vec![(ledger * 31 + entry) as u8; 1000 + entry as usize % 500]);
    Append { ledger, entry, parts: [Bytes::from_static(b"head"), body, Bytes::from_static(b"tail")], reserve: false }
}

fn payload(append: &Append) -> Vec<u8> {
    append.parts.concat()
}

fn append_and_wait(log: &Log, entries: Vec<Append>) -> Result<(), AppendError> {
    let (sender, receiver) = mpsc::channel();
    log.append(entries, Box::new(move |result| sender.send(result).expect("waits")));
    receiver.recv().expect("every call is answered")
}

fn delete_and_wait(log: &Log, ledgers: &[u64]) -> Result<(), AppendError> {
    let (sender, receiver) = mpsc::channel();
    log.delete_ledgers(ledgers, Box::new(move |result| sender.send(result).expect("waits")));
    receiver.recv().expect("every call is answered")
}

#[test]
fn entries_survive_reopening_and_deleted_segments_are_freed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (log, _) = Log::open(folder.path(), options()).expect("opens");
    assert!(matches!(Log::open(folder.path(), options()), Err(OpenError::Locked(_))));
    let (sender, receiver) = mpsc::channel();
    for first in (0..4000).step_by(10) {
        for ledger in 1..=2 {
            let sender = sender.clone();
            let entries = (first..first + 10).map(|number| entry(ledger, number)).collect();
            log.append(entries, Box::new(move |result| sender.send((ledger, first, result)).expect("waits")));
        }
    }
    for first in (0..4000).step_by(10) {
        for ledger in 1..=2 {
            assert_eq!(receiver.recv().expect("answered"), (ledger, first, Ok(())), "in the order of the calls");
        }
    }
    assert_eq!(log.fence(1), Ok(Some(3999)));
    assert_eq!(append_and_wait(&log, vec![entry(1, 4000)]), Err(AppendError::Fenced));
    log.close();
    assert_eq!(append_and_wait(&log, vec![entry(2, 4000)]), Err(AppendError::Closed));
    assert_eq!(log.fence(2), Err(FenceError::NotDurable(AppendError::Closed)));
    drop(log);

    let (log, report) = Log::open(folder.path(), options()).expect("opens again");
    assert_eq!((report.ledgers, report.scanned, report.damage.len()), (2, 0, 0));
    let mut next = 0;
    while next < 4000 {
        let entries = log.read_range(2, next, u64::MAX, 100_000).expect("readable");
        for (number, bytes) in &entries {
            assert_eq!((*number, &bytes[..]), (next, &payload(&entry(2, next))[..]));
            next += 1;
        }
    }
    assert_eq!(log.read(2, 4000), Err(ReadError::NoSuchEntry { ledger: 2, entry: 4000 }));
    assert_eq!(append_and_wait(&log, vec![entry(1, 4000)]), Err(AppendError::Fenced));
    assert_eq!(delete_and_wait(&log, &[1, 2, 77]), Ok(()));
    assert_eq!(log.ledgers(), [0; 0]);
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while log.stats().data_bytes > 1 << 20 {
        assert!(std::time::Instant::now() < limit, "space is not freed: {:?}", log.stats());
        std::thread::yield_now();
    }
}

/// A segment is set aside as a whole; whoever starts and ends often must not keep all of them.
#[test]
fn many_starts_do_not_fill_the_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    for number in 0..20 {
        let (log, _) = Log::open(folder.path(), options()).expect("opens");
        assert_eq!(append_and_wait(&log, vec![entry(1, number)]), Ok(()));
    }
    let (log, _) = Log::open(folder.path(), options()).expect("opens");
    assert!((0..20).all(|number| log.read(1, number).expect("it is stored") == payload(&entry(1, number))));
    let lengths =
        std::fs::read_dir(folder.path()).expect("a folder").map(|file| file?.metadata().map(|file| file.len()));
    let bytes: u64 = lengths.map(|length| length.expect("a file")).sum();
    assert!(bytes < 6 << 20, "20 entries take {bytes} bytes");
}

#[test]
fn a_full_queue_refuses_and_the_order_of_answers_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let (log, _) = Log::open(folder.path(), LogOptions { max_queued_bytes: 20_000, ..options() }).expect("opens");
    let (sender, receiver) = mpsc::channel();
    for number in 0..2000 {
        let sender = sender.clone();
        log.append(vec![entry(5, number)], Box::new(move |result| sender.send((number, result)).expect("waits")));
    }
    let answers: Vec<_> = (0..2000).map(|_| receiver.recv().expect("answered")).collect();
    assert!(answers.iter().map(|(number, _)| *number).eq(0..2000));
    let stored = answers.iter().take_while(|(_, result)| result.is_ok()).count() as u64;
    assert!(stored > 0 && answers[stored as usize..].iter().all(|(_, result)| result.is_err()), "no gap");
    assert_eq!(log.fence(5), Ok(Some(stored - 1)));
}

#[test]
fn an_entry_larger_than_a_segment_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let (log, _) = Log::open(folder.path(), options()).expect("opens");
    let body = Bytes::from((0..5 << 20).map(|at: u32| at as u8).collect::<Vec<u8>>());
    for number in 0..3 {
        let large =
            Append { ledger: 1, entry: number, parts: [body.clone(), Bytes::new(), Bytes::new()], reserve: false };
        assert_eq!(append_and_wait(&log, vec![large]), Ok(()));
    }
    drop(log);
    let (log, _) = Log::open(folder.path(), options()).expect("opens again");
    assert!((0..3).all(|number| log.read(1, number) == Ok(body.clone())));
}
