//! Entries of a cursor log with right checksums: what is replayed can be used, written out and replayed to the same.

#![no_main]

use bytes::Bytes;
use geminga_ledger::cursor::{AckKind, Cursor, CursorDelta, CursorSnapshot};
use geminga_ledger::cursor_log::{Action, CursorLog, CursorLogConfig, Record};
use geminga_ledger::{LedgerList, LedgerSpan};
use geminga_model::Position;
use libfuzzer_sys::fuzz_target;

const CONFIG: CursorLogConfig = CursorLogConfig {
    max_entry_bytes: 128,
    max_write_bytes: 256,
    rotate_bytes: 512,
    snapshot_step_bytes: 256,
    max_writes: 2,
    max_old_ledgers: 1,
};

fuzz_target!(|data: &[u8]| {
    snapshots_and_deltas(data);
    let mut log = CursorLog::new(CONFIG).named("a");
    log.replay_ledger(1);
    let mut entries = Vec::new();
    let mut rest = data;
    while let Some((&[length, high], after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(length) | usize::from(high & 3) << 8;
        let (body, after) = after.split_at(length.min(after.len()));
        rest = after;
        let entry = entry(body);
        match log.replay_entry(&entry) {
            Ok(()) => entries.push(entry),
            Err(_) => return,
        }
    }
    let states = states(&log);
    states.iter().for_each(|(_, state)| use_cursor(state));
    let mut again = CursorLog::new(CONFIG);
    again.replay_ledger(1);
    entries.iter().for_each(|entry| again.replay_entry(entry).expect("it was replayed before"));
    assert_eq!(self::states(&again), states);
    let written = write_on(log);
    assert_eq!(self::states(&written), states);
});

fn entry(body: &[u8]) -> Vec<u8> {
    let mut entry = vec![1];
    entry.extend(crc_fast::crc32_iscsi(body).to_le_bytes());
    entry.extend(body);
    entry
}

fn states(log: &CursorLog) -> Vec<(u64, CursorSnapshot)> {
    let mut ids: Vec<u64> = log.cursor_ids().collect();
    ids.sort_unstable();
    ids.into_iter().filter_map(|id| Some((id, log.state(id)?.clone()))).collect()
}

fn snapshots_and_deltas(data: &[u8]) {
    if let Ok(snapshot) = CursorSnapshot::decode(data) {
        let mut bytes = Vec::new();
        snapshot.encode(&mut bytes);
        assert_eq!(CursorSnapshot::decode(&bytes).as_ref(), Ok(&snapshot));
        use_cursor(&snapshot);
    }
    if let Ok(delta) = CursorDelta::decode(data) {
        let mut bytes = Vec::new();
        delta.encode(&mut bytes);
        assert_eq!(CursorDelta::decode(&bytes).as_ref(), Ok(&delta));
        let mut state = CursorSnapshot::new(Position { ledger_id: 1, entry_id: 3 });
        state.apply(&delta);
        use_cursor(&state);
    }
}

fn use_cursor(state: &CursorSnapshot) {
    let span = |ledger_id, entries| LedgerSpan { ledger_id, entries, size: 10, timestamp_ms: 0, first_index: 0 };
    let list = LedgerList::new([span(1, 20), span(2, 0), span(9, 70_000), span(255, 3)]);
    let mut cursor = Cursor::from_snapshot(state.clone());
    let _ = (cursor.holes(), cursor.unacked_entries(&list), cursor.memory_bytes());
    for pos in [Position { ledger_id: 1, entry_id: 7 }, Position { ledger_id: 9, entry_id: 65_535 }] {
        let _ = (cursor.next_unacked(&list, pos), cursor.remaining_set(pos), cursor.is_acked(pos));
        cursor.ack(&list, pos, AckKind::Batch { ack_set: &[5], batch_size: 3 });
        cursor.ack(&list, pos, AckKind::Entry);
        assert!(cursor.is_acked(pos));
    }
    cursor.skip(&list, 5);
    cursor.on_trimmed(&list);
    let delta = cursor.take_delta();
    let mut changed = state.clone();
    delta.iter().for_each(|delta| changed.apply(delta));
    assert_eq!(changed, cursor.snapshot());
}

/// Lets the log write what it has to, with one record more, and replays what is stored then. Without that record.
fn write_on(mut log: CursorLog) -> CursorLog {
    let extra = log.cursor_ids().max().map_or(1, |id| id.wrapping_add(1));
    let known = log.state(extra).is_some();
    let mut stored: std::collections::BTreeMap<u64, Vec<Bytes>> = Default::default();
    let mut saved = Vec::new();
    let mut next_ledger = 2;
    let mut sequence = 0;
    if !known {
        sequence = log.append(Record::Snapshot { cursor_id: extra, snapshot: CursorSnapshot::new(Position::EARLIEST) });
        sequence = sequence.max(log.append(Record::Dropped { cursor_id: extra }));
    }
    for _ in 0..100_000 {
        let Some(action) = log.poll_action() else {
            assert!(log.durable_up_to() >= sequence, "it waits for nothing");
            break;
        };
        match action {
            Action::CreateLedger => {
                log.ledger_created(next_ledger);
                next_ledger += 1;
            }
            Action::SaveRecord { list, .. } => {
                saved = list;
                log.record_saved();
            }
            Action::Write { ledger_id, first_entry, entries } => {
                let ledger = stored.entry(ledger_id).or_default();
                assert_eq!(ledger.len() as i64, first_entry);
                let count = entries.len() as u64;
                ledger.extend(entries);
                log.written(ledger_id, first_entry, count, Ok(()));
            }
            Action::DeleteLedgers(_) => {}
        }
    }
    // If the first ledger is still needed, the machine itself stands for it.
    if saved.is_empty() || saved.iter().any(|ledger| ledger.ledger_id == 1) {
        return log;
    }
    let mut again = CursorLog::new(CONFIG);
    for ledger in &saved {
        again.replay_ledger(ledger.ledger_id);
        let none = Vec::new();
        let entries = stored.get(&ledger.ledger_id).unwrap_or(&none);
        let count = ledger.entries.unwrap_or(entries.len() as u64);
        for entry in &entries[..count as usize] {
            again.replay_entry(entry).expect("our own entry");
        }
    }
    again
}
