//! The cursor log: format, splitting, rotation and what a tiny cursor costs. Crashes and failures are the simulation's.

use bytes::Bytes;
use geminga_ledger::cursor::{AckKind, Cursor};
use geminga_ledger::cursor_log::*;
use geminga_ledger::ledger_list::{LedgerList, LedgerSpan};
use geminga_ledger::managed_ledger::WriteError;
use geminga_model::Position;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn pos(ledger_id: u64, entry_id: i64) -> Position {
    Position { ledger_id, entry_id }
}

fn list(entries: u64) -> LedgerList {
    LedgerList::new([LedgerSpan { ledger_id: 1, entries, size: 0, timestamp_ms: 0, first_index: 0 }])
}

/// Stores what the log writes, at once.
#[derive(Default)]
struct Disk {
    ledgers: BTreeMap<u64, Vec<Bytes>>,
    record: Vec<LogLedger>,
    /// With the record that was saved last.
    dropped: Vec<u64>,
    next_id: u64,
    fail_writes: u32,
    largest_entry: usize,
    written: usize,
}

impl Disk {
    fn run(&mut self, log: &mut CursorLog) {
        while let Some(action) = log.poll_action() {
            match action {
                Action::CreateLedger => {
                    self.next_id += 1;
                    assert!(self.next_id < 10_000, "it never ends");
                    self.ledgers.insert(self.next_id, Vec::new());
                    log.ledger_created(self.next_id);
                }
                Action::Write { ledger_id, first_entry, entries } => self.write(log, ledger_id, first_entry, entries),
                Action::SaveRecord { list, dropped } => {
                    let is_listed = |id: &u64| list.iter().any(|ledger| ledger.ledger_id == *id);
                    assert!(!dropped.iter().any(is_listed));
                    let before = self.record.iter().map(|ledger| ledger.ledger_id);
                    assert!(before.clone().all(|id| is_listed(&id) || dropped.contains(&id)), "all that go are named");
                    (self.record, self.dropped) = (list, dropped);
                    log.record_saved();
                }
                Action::DeleteLedgers(ids) => {
                    assert_eq!(ids, self.dropped, "as they were noted");
                    ids.iter().for_each(|id| drop(self.ledgers.remove(id).expect("it was there")));
                }
            }
        }
    }

    fn write(&mut self, log: &mut CursorLog, ledger_id: u64, first_entry: i64, entries: Vec<Bytes>) {
        if self.fail_writes > 0 {
            self.fail_writes -= 1;
            log.written(ledger_id, first_entry, entries.len() as u64, Err(WriteError::Full));
            log.tick();
            return;
        }
        self.largest_entry = entries.iter().map(Bytes::len).max().unwrap().max(self.largest_entry);
        self.written += entries.iter().map(Bytes::len).sum::<usize>();
        let count = entries.len() as u64;
        let ledger = self.ledgers.get_mut(&ledger_id).unwrap();
        assert_eq!(ledger.len(), first_entry as usize);
        ledger.extend(entries);
        log.written(ledger_id, first_entry, count, Ok(()));
    }

    fn replay(&self, config: CursorLogConfig) -> CursorLog {
        let mut log = CursorLog::new(config);
        for ledger in &self.record {
            log.replay_ledger(ledger.ledger_id);
            let entries = &self.ledgers[&ledger.ledger_id];
            for entry in &entries[..ledger.entries.map_or(entries.len(), |n| n as usize)] {
                log.replay_entry(entry).unwrap();
            }
        }
        log
    }
}

fn tiny() -> CursorLogConfig {
    CursorLogConfig {
        max_entry_bytes: 1024,
        max_write_bytes: 4096,
        rotate_bytes: 4096,
        snapshot_step_bytes: 512,
        max_writes: 2,
        max_old_ledgers: 2,
    }
}

#[test]
fn rotates_moves_snapshots_and_frees_ledgers() {
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(tiny()));
    let list = list(100_000);
    let mut cursors: Vec<Cursor> = (0..20).map(|_| Cursor::new(pos(1, -1))).collect();
    log.append(Record::Blob { key: 9, bytes: Bytes::from_static(b"early") });
    for round in 0..3000i64 {
        let id = (round * round % 20) as usize;
        cursors[id].ack(&list, pos(1, round * 7 % 1000), AckKind::Entry);
        if let Some(delta) = cursors[id].take_delta() {
            let sequence = log.append(Record::Delta { cursor_id: id as u64, delta });
            if round % 500 == 0 {
                disk.fail_writes = 2;
            }
            disk.run(&mut log);
            assert!(log.durable_up_to() >= sequence);
            assert_eq!(log.durable_mark_delete(id as u64, Position::EARLIEST), cursors[id].mark_delete());
        }
    }
    assert!(disk.next_id > 5 && disk.record.len() <= 4, "{} ledgers created, {} left", disk.next_id, disk.record.len());
    let replayed = disk.replay(tiny());
    for (id, cursor) in cursors.iter().enumerate() {
        let id = id as u64;
        assert_eq!(replayed.state(id), log.state(id));
        if let Some(state) = log.state(id) {
            assert_eq!(*state, cursor.snapshot());
        }
    }
    assert_eq!(replayed.blob(9).unwrap(), "early");
}

#[test]
fn blobs_that_are_more_than_a_ledger_takes_are_not_copied_for_ever() {
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(tiny()));
    let bytes = |key: u64| Bytes::from(vec![key as u8; 500]);
    for key in 0..40 {
        log.append(Record::Blob { key, bytes: bytes(key) });
        disk.run(&mut log);
    }
    assert!(disk.written < 40 * 500 * 6, "{} bytes in {} ledgers", disk.written, disk.next_id);
    let replayed = disk.replay(tiny());
    assert!((0..40).all(|key| replayed.blob(key) == Some(&bytes(key))));
}

#[test]
fn large_snapshots_are_split_and_count_only_when_complete() {
    let list = list(200_000);
    let mut cursor = Cursor::new(pos(1, -1));
    for entry in (1..100_000).step_by(2) {
        cursor.ack(&list, pos(1, entry), AckKind::Entry);
    }
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(tiny()));
    log.append(Record::Snapshot { cursor_id: 1, snapshot: Cursor::new(pos(1, 0)).snapshot() });
    disk.run(&mut log);
    log.append(Record::Snapshot { cursor_id: 1, snapshot: cursor.snapshot() });
    disk.run(&mut log);
    assert!(disk.largest_entry <= 1024);
    assert_eq!(*disk.replay(tiny()).state(1).unwrap(), cursor.snapshot());
    for ledger in disk.ledgers.values_mut() {
        ledger.pop();
    }
    disk.record.iter_mut().for_each(|ledger| ledger.entries = None);
    assert_eq!(disk.replay(tiny()).state(1).unwrap().mark_delete(), pos(1, 0));
}

#[test]
fn damaged_entries_are_errors() {
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(tiny()));
    for id in 0..5 {
        log.append(Record::Snapshot { cursor_id: id, snapshot: Cursor::new(pos(1, 5)).snapshot() });
    }
    disk.run(&mut log);
    let entry = disk.ledgers[&1][0].clone();
    for at in 0..entry.len() {
        let mut damaged = entry.to_vec();
        damaged[at] ^= 0x10;
        let mut log = CursorLog::new(tiny());
        log.replay_ledger(1);
        assert!(log.replay_entry(&damaged).is_err(), "byte {at}");
        assert!(log.replay_entry(&entry[..at]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Entries whose checksum is right and whose content is anything.
    #[test]
    fn replay_survives_any_content(entries in prop::collection::vec(prop::collection::vec(0u8..12, 0..60), 1..4)) {
        let mut log = CursorLog::new(tiny());
        log.replay_ledger(1);
        for body in entries {
            let entry = [&[1u8][..], &crc_fast::crc32_iscsi(&body).to_le_bytes(), &body].concat();
            let _ = log.replay_entry(&entry);
        }
    }
}

#[test]
fn a_dropped_cursor_stays_dropped() {
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(tiny()));
    log.append(Record::Snapshot { cursor_id: 1, snapshot: Cursor::new(pos(1, 5)).snapshot() });
    disk.run(&mut log);
    disk.fail_writes = 3;
    let sequence = log.append(Record::Dropped { cursor_id: 1 });
    disk.run(&mut log);
    assert!(log.durable_up_to() >= sequence);
    let replayed = disk.replay(tiny());
    assert!(replayed.state(1).is_none());
    assert_eq!(replayed.durable_mark_delete(1, pos(1, 2)), pos(1, 2));
}

#[test]
fn a_fenced_log_lets_nothing_be_trimmed() {
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(tiny()));
    log.append(Record::Snapshot { cursor_id: 1, snapshot: Cursor::new(pos(1, 5)).snapshot() });
    disk.run(&mut log);
    assert_eq!(log.durable_mark_delete(1, pos(1, 2)), pos(1, 5));
    // A consumer may have gone back since, of which the log does not know.
    log.fence();
    assert_eq!(log.durable_mark_delete(1, pos(1, 2)), Position::EARLIEST);
}

#[test]
fn a_tiny_cursor_takes_less_than_150_bytes() {
    let config = CursorLogConfig { rotate_bytes: 1 << 20, ..CursorLogConfig::default() };
    let (mut disk, mut log) = (Disk::default(), CursorLog::new(config));
    let count = 115_000;
    for id in 0..count {
        log.append(Record::Snapshot { cursor_id: id, snapshot: Cursor::new(pos(1, 5)).snapshot() });
        if id % 1000 == 0 {
            disk.run(&mut log);
        }
    }
    disk.run(&mut log);
    assert!(log.memory_bytes() as u64 / count < 150, "{} bytes each", log.memory_bytes() as u64 / count);
    assert!(disk.written as u64 / count < 32, "{} bytes written each", disk.written as u64 / count);
    assert_eq!(disk.replay(config).cursor_ids().count() as u64, count);
}
