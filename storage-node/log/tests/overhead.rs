//! What is written beyond the payload.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_log::disk::sim::SimDisk;
use geminga_log::engine::{Begin, Engine, Request};
use geminga_log::{Admission, Append, LogOptions};

const BLOCK_BYTES: usize = 4096;
/// Of BookKeeper: ledger, entry, last add confirmed, length, CRC-32C.
const ENTRY_HEAD_BYTES: usize = 36;
const PAYLOAD_BYTES: usize = 1024;

fn body(ledger: u64, entry: u64, bytes: usize) -> Bytes {
    Bytes::from((0..bytes).map(|at| (ledger * 7 + entry * 31) as u8 ^ at as u8).collect::<Vec<_>>())
}

fn call(ledger: u64, entries: impl Iterator<Item = u64>, bytes: usize) -> Request {
    let append = |entry| Append {
        ledger,
        entry,
        parts: [body(ledger, entry, bytes), Bytes::new(), Bytes::new()],
        reserve: false,
    };
    let admission = Admission::Replica { key: [1; 20], recovery: false };
    Request::Append { entries: entries.map(append).collect(), admission, done: Box::new(|result| result.unwrap()) }
}

/// The bytes of the one commit that takes all of these.
fn written(engine: &Engine<SimDisk>, calls: Vec<Request>) -> usize {
    let mut queue = VecDeque::from(calls);
    let Begin::Commit(commit) = engine.begin(&mut queue) else { panic!("there is something to write") };
    assert!(queue.is_empty(), "it all goes into one commit");
    let (bytes, written) = (commit.bytes(), commit.write());
    engine.finish(commit, written).into_iter().for_each(|outcome| outcome.tell());
    bytes
}

fn engine() -> Engine<SimDisk> {
    let options = LogOptions { segment_bytes: 2 << 20, reserve_bytes: 0, ..LogOptions::default() };
    let (engine, _) = Engine::open(SimDisk::new(1, 256 << 20), options).unwrap();
    // Manifest and key.
    written(&engine, vec![call(1, 0..1, 10)]);
    engine
}

fn check(engine: &Engine<SimDisk>, ledger: u64, entries: impl Iterator<Item = u64>, bytes: usize) {
    for entry in entries {
        assert_eq!(engine.read(ledger, entry), Ok(body(ledger, entry, bytes)));
    }
}

#[test]
fn an_entry_of_1_kib_costs_no_more_than_a_twentieth_beyond_its_payload() {
    let (engine, bytes) = (engine(), ENTRY_HEAD_BYTES + PAYLOAD_BYTES);
    // As many as come while the commit before is written, in calls of what a connection has received at once.
    let calls = (0..17).map(|call_number| call(1, 1 + call_number * 20..21 + call_number * 20, bytes)).collect();
    let written = written(&engine, calls);
    let payload = 340 * PAYLOAD_BYTES;
    assert!(written * 100 <= payload * 105, "{written} bytes for {payload}");
    check(&engine, 1, 1..341, bytes);
    let entries = engine.read_range(1, 1, 340, usize::MAX).unwrap();
    assert!(entries.into_iter().map(|(entry, _)| entry).eq(1..341), "read together");
}

/// Each entry for itself costs 32 bytes and what aligns it, as before there were records of several.
#[test]
fn what_does_not_follow_costs_what_it_did() {
    let engine = engine();
    let cases: [(&str, Vec<u64>, usize); 4] = [
        ("gaps", (1..200).map(|number| number * 2).collect(), 100),
        ("stripes", (400..700).filter(|entry| entry % 3 != 0).collect(), 100),
        ("backwards", (700..800).rev().collect(), 100),
        ("long ones", (800..810).collect(), 65_536),
    ];
    for (what, entries, bytes) in cases {
        let alone = entries.len() * (32 + bytes).next_multiple_of(8);
        let written = written(&engine, vec![call(1, entries.iter().copied(), bytes)]);
        assert!(written <= (alone + 32).next_multiple_of(BLOCK_BYTES), "{what}: {written} bytes, {alone} alone");
        check(&engine, 1, entries.into_iter(), bytes);
    }
}

/// A node has many ledgers, and each commit a few entries of each.
#[test]
fn entries_of_a_ledger_come_together_whatever_comes_between() {
    let (engine, bytes) = (engine(), ENTRY_HEAD_BYTES + PAYLOAD_BYTES);
    let calls = (0..400).map(|turn| call(2 + turn % 10, turn / 10..turn / 10 + 1, bytes)).collect();
    let written = written(&engine, calls);
    let payload = 400 * PAYLOAD_BYTES;
    assert!(written * 100 <= payload * 105, "{written} bytes for {payload}");
    (2..12).for_each(|ledger| check(&engine, ledger, 0..40, bytes));
}
