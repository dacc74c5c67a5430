//! The bytes on disk, as docs/formats.md describes them. When one of these fails, the format has changed: it needs a new
//! version and a reader of the old one.

use bytes::Bytes;
use geminga_ledger::cursor::{AckKind, Cursor, CursorDelta, CursorSnapshot};
use geminga_ledger::cursor_log::{Action, CursorLog, CursorLogConfig, Label, LogLedger, Record};
use geminga_ledger::ledger_list::{LedgerList, LedgerSpan};
use geminga_model::Position;

fn list(entries: u64) -> LedgerList {
    LedgerList::new([LedgerSpan { ledger_id: 300, entries, size: 0, timestamp_ms: 0, first_index: 0 }])
}

fn pos(entry_id: i64) -> Position {
    Position { ledger_id: 300, entry_id }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Entries 0, 2, 3 and 130 acknowledged, and of the batch at 5 messages 0 and 2 of 4.
fn cursor() -> Cursor {
    let list = list(200);
    let mut cursor = Cursor::new(pos(-1));
    for entry in [0, 2, 3, 130] {
        cursor.ack(&list, pos(entry), AckKind::Entry);
    }
    cursor.ack(&list, pos(5), AckKind::Batch { ack_set: &[0b1010], batch_size: 4 });
    cursor
}

const PARTS: &str = concat!(
    "ac0201", // mark-delete position 300:0
    "01ac02", // acknowledged entries in one ledger, 300:
    "00020201",
    "7e00",                 // 2 runs: 2 free, 2 long; 126 free, 1 long
    "01ac0206",             // one batch in part, 300:5:
    "04010a00000000000000"  // 4 messages, 1 word of what remains
);

#[test]
fn cursors() {
    let mut cursor = cursor();
    let delta = cursor.take_delta().unwrap();
    let mut bytes = Vec::new();
    delta.encode(&mut bytes);
    assert_eq!(hex(&bytes), format!("0100{PARTS}"));
    assert_eq!(CursorDelta::decode(&bytes).unwrap(), delta);

    let mut bytes = Vec::new();
    cursor.snapshot().encode(&mut bytes);
    assert_eq!(hex(&bytes), format!("0100{PARTS}"));
    assert_eq!(CursorSnapshot::decode(&bytes).unwrap(), cursor.snapshot());

    cursor.reset(&list(200), pos(0));
    let mut bytes = Vec::new();
    cursor.take_delta().unwrap().encode(&mut bytes);
    assert_eq!(hex(&bytes), "0101ac02000000", "a seek: reset flag, the position before the target, nothing above");
}

/// Many holes are stored in Roaring's portable format, where that is smaller than runs.
#[test]
fn cursor_with_many_holes() {
    let list = list(20_000);
    let mut cursor = Cursor::new(pos(-1));
    for entry in (1..20_000).step_by(2) {
        cursor.ack(&list, pos(entry), AckKind::Entry);
    }
    let mut bytes = Vec::new();
    cursor.snapshot().encode(&mut bytes);
    assert_eq!(hex(&bytes[..24]), "0100ac020001ac020190403a3000000100000000000f2710");
    assert_eq!((bytes.len(), crc_fast::crc32_iscsi(&bytes)), (8220, 0xfab3ec8e));
    assert_eq!(CursorSnapshot::decode(&bytes).unwrap(), cursor.snapshot());
}

/// The entries that a new log writes for these records.
fn entries(max_entry_bytes: usize, records: Vec<Record>) -> Vec<Bytes> {
    written(CursorLog::new(CursorLogConfig { max_entry_bytes, ..CursorLogConfig::default() }), records)
}

fn written(mut log: CursorLog, records: Vec<Record>) -> Vec<Bytes> {
    for record in records {
        log.append(record);
    }
    let mut written = Vec::new();
    while let Some(action) = log.poll_action() {
        match action {
            Action::CreateLedger => log.ledger_created(7),
            Action::SaveRecord { list, .. } => {
                assert_eq!(list, [LogLedger { ledger_id: 7, entries: None }]);
                log.record_saved();
            }
            Action::Write { entries, .. } => written.extend(entries),
            Action::DeleteLedgers(ids) => panic!("nothing is to be deleted, but {ids:?}"),
        }
    }
    written
}

#[test]
fn cursor_log_entries() {
    let mut cursor = cursor();
    let delta = cursor.take_delta().unwrap();
    let records = vec![
        Record::Delta { cursor_id: 200, delta },
        Record::Snapshot { cursor_id: 200, snapshot: CursorSnapshot::new(pos(9)) },
        Record::Dropped { cursor_id: 200 },
        Record::Blob { key: 4, bytes: Bytes::from_static(b"blob") },
        Record::BlobDropped { key: 4 },
    ];
    let written: Vec<String> = entries(4096, records).iter().map(|entry| hex(entry)).collect();
    let body = format!("01c8011c0100{PARTS}02c801070100ac020a000003c80100040404626c6f62050400");
    assert_eq!(written, [format!("0184d00364{body}")]);
}

/// The first entry of a ledger says whose it is, and is no state.
#[test]
fn cursor_log_labels() {
    let blob = Record::Blob { key: 4, bytes: Bytes::from_static(b"blob") };
    let entries = written(CursorLog::new(CursorLogConfig::default()).named("a/b/c"), vec![blob]);
    let head = "04feffffffffffffffff01";
    assert_eq!(hex(&entries[0]), format!("0130034a08{head}090105612f622f630107"));
    assert_eq!(entries.len(), 2);
    let label = Label { name: "a/b/c".to_owned(), ledgers: vec![7] };
    assert_eq!(Label::of_entry(&entries[0]), Ok(Some(label)));
    assert_eq!(Label::of_entry(&entries[1]), Ok(None));
    Label::of_entry(&entries[0][..9]).expect_err("it is cut short");
    let mut log = CursorLog::new(CursorLogConfig::default());
    log.replay_ledger(7);
    entries.iter().for_each(|entry| log.replay_entry(entry).expect("it is sound"));
    assert_eq!((log.blob(u64::MAX - 1), log.blob(4)), (None, Some(&Bytes::from_static(b"blob"))));
}

/// A record that is too large for an entry: a blob of 100 bytes in entries of at most 128.
#[test]
fn cursor_log_parts() {
    let blob = Record::Blob { key: 4, bytes: vec![0xab; 100].into() };
    let written: Vec<String> = entries(128, vec![blob]).iter().map(|entry| hex(entry)).collect();
    let part =
        |crc: &str, index: &str, len: &str, bytes: usize| format!("01{crc}0604{len}04{index}02{}", "ab".repeat(bytes));
    assert_eq!(written, [part("973fe770", "00", "4e", 75), part("ad8f3d37", "01", "1c", 25)]);
}
