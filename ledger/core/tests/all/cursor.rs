//! `LedgerList` and `Cursor` against models that are too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use geminga_ledger::cursor::{AckKind, Cursor, CursorDelta, CursorSnapshot};
use geminga_ledger::ledger_list::{LedgerList, LedgerSpan, TimeSeek};
use geminga_model::Position;
use proptest::prelude::*;

fn pos(ledger_id: u64, entry_id: i64) -> Position {
    Position { ledger_id, entry_id }
}

fn list_of(sizes: &[(u64, u64)]) -> LedgerList {
    LedgerList::new(sizes.iter().map(|&(ledger_id, entries)| LedgerSpan {
        ledger_id,
        entries,
        size: entries * 10,
        timestamp_ms: 0,
        first_index: 0,
    }))
}

/// Ledgers with rising ids, some empty.
fn sizes() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((1u64..3, prop_oneof![1 => Just(0u64), 4 => 1u64..20]), 0..5).prop_map(|steps| {
        let mut id = 2;
        steps
            .into_iter()
            .map(|(step, entries)| {
                id += step;
                (id, entries)
            })
            .collect()
    })
}

fn all(sizes: &[(u64, u64)]) -> BTreeSet<Position> {
    sizes.iter().flat_map(|&(ledger, entries)| (0..entries as i64).map(move |entry| pos(ledger, entry))).collect()
}

fn any_position() -> impl Strategy<Value = Position> {
    prop_oneof![
        12 => (1u64..14, -1i64..22).prop_map(|(ledger, entry)| pos(ledger, entry)),
        1 => Just(Position::EARLIEST),
        1 => Just(Position::LATEST),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn list_arithmetic(sizes in sizes(), a in any_position(), b in any_position(), n in 0u64..40) {
        let (list, entries) = (list_of(&sizes), all(&sizes));
        let after = |p: Position| entries.range((std::ops::Bound::Excluded(p), std::ops::Bound::Unbounded));
        prop_assert_eq!(list.total_entries(), entries.len() as u64);
        prop_assert_eq!(list.next_after(a), after(a).next().copied());
        prop_assert_eq!(list.previous(a), entries.range(..a).next_back().copied());
        prop_assert_eq!(list.floor(a), entries.range(..=a).next_back().copied());
        prop_assert_eq!(list.ceiling(a), entries.range(a..).next().copied());
        prop_assert_eq!(list.contains(a), entries.contains(&a));
        let between = if a < b { after(a).filter(|p| **p <= b).count() as u64 } else { 0 };
        prop_assert_eq!(list.entries_between(a, b), between);
        prop_assert_eq!(list.size_between(a, b), between * 10);
        let nth = if n == 0 { None } else { after(a).take(n as usize).last().copied() };
        prop_assert_eq!(list.nth_after(a, n), nth);
        if let Some(first) = entries.first() {
            prop_assert_eq!(list.first_position(), *first);
            prop_assert_eq!(list.last_position(), *entries.last().unwrap());
        }
        let normal = list.normalize_mark_delete(a);
        prop_assert_eq!(after(normal).next(), after(a).next());
    }

    #[test]
    fn time_seek_finds_the_first_entry_at_or_after(sizes in sizes(), steps in prop::collection::vec(0u64..3, 100), time in 0u64..120) {
        let (list, entries) = (list_of(&sizes), all(&sizes));
        let mut clock = 0;
        let times: BTreeMap<Position, u64> = entries.iter().zip(steps).map(|(&p, step)| { clock += step; (p, clock) }).collect();
        let mut seek = TimeSeek::new(&list, time);
        let mut probes = 0;
        while let Some(probe) = seek.next_probe() {
            seek.probe_result(times[&probe]);
            probes += 1;
        }
        prop_assert!(probes <= 8);
        let expected = times.iter().find(|(_, t)| **t >= time).map(|(p, _)| *p);
        let found = seek.final_position().unwrap();
        prop_assert_eq!(list.ceiling(found), expected);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Ack(Position),
    Batch(Position, u64),
    Cumulative(Position),
    CumulativeBatch(Position, u64),
    Reset(Position),
    Skip(u64),
    Save,
    Recode,
    Grow(u64),
    Trim,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => any_position().prop_map(Op::Ack),
        6 => (any_position(), any::<u64>()).prop_map(|(p, set)| Op::Batch(p, set)),
        1 => any_position().prop_map(Op::Cumulative),
        1 => (any_position(), any::<u64>()).prop_map(|(p, set)| Op::CumulativeBatch(p, set)),
        1 => any_position().prop_map(Op::Reset),
        1 => (0u64..6).prop_map(Op::Skip),
        3 => Just(Op::Save),
        1 => Just(Op::Recode),
        2 => (1u64..4).prop_map(Op::Grow),
        1 => Just(Op::Trim),
    ]
}

const BATCH: u32 = 5;

/// Which messages of which entries are acknowledged, one by one.
#[derive(Clone, Default)]
struct Naive {
    /// Unacknowledged batch indexes of every existing entry; an entry that is acknowledged is not in here.
    left: BTreeMap<Position, BTreeSet<u32>>,
}

impl Naive {
    fn add(&mut self, p: Position) {
        self.left.insert(p, (0..BATCH).collect());
    }

    fn batch(&mut self, p: Position, ack_set: u64) -> u32 {
        let Some(left) = self.left.get_mut(&p) else { return 0 };
        let before = left.len();
        left.retain(|i| ack_set >> i & 1 == 1);
        let acked = before - left.len();
        if left.is_empty() {
            self.left.remove(&p);
        }
        acked as u32
    }

    fn set(&self, p: Position) -> Option<Vec<i64>> {
        let left = self.left.get(&p)?;
        (left.len() < BATCH as usize).then(|| vec![left.iter().map(|i| 1i64 << i).sum()])
    }
}

fn same(cursor: &Cursor, list: &LedgerList, entries: &BTreeSet<Position>, naive: &Naive) -> Result<(), TestCaseError> {
    for &p in entries {
        prop_assert_eq!(cursor.is_acked(p), !naive.left.contains_key(&p), "{}", p);
        prop_assert_eq!(cursor.remaining_set(p), naive.set(p), "{}", p);
        prop_assert_eq!(cursor.next_unacked(list, p), naive.left.range(p..).next().map(|(p, _)| *p));
    }
    prop_assert_eq!(cursor.unacked_entries(list), naive.left.len() as u64);
    let first = naive.left.keys().next().copied();
    prop_assert_eq!(cursor.next_unacked(list, Position::EARLIEST), first);
    // The mark is as far as it can be, and no further.
    prop_assert_eq!(list.next_after(cursor.mark_delete()), first);
    let mut runs = 0;
    let mut previous: Option<Position> = None;
    for &p in entries.iter().filter(|p| **p > cursor.mark_delete() && !naive.left.contains_key(p)) {
        runs += u64::from(previous.is_none_or(|q| q.ledger_id != p.ledger_id || q.entry_id + 1 != p.entry_id));
        previous = Some(p);
    }
    prop_assert_eq!(cursor.holes(), runs);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn cursor_against_naive(mut sizes in sizes(), start in any_position(), ops in prop::collection::vec(op(), 0..60)) {
        let mut list = list_of(&sizes);
        let mut entries = all(&sizes);
        let mut naive = Naive::default();
        entries.iter().filter(|p| **p > start).for_each(|&p| naive.add(p));
        // A start position beyond the end is not a mark-delete position.
        let start = if start > list.last_position() { list.last_position() } else { start };
        let mut cursor = Cursor::new(start);
        let mut replica = cursor.snapshot();
        for op in ops {
            match op {
                Op::Ack(p) => {
                    let left = naive.left.remove(&p).map_or(0, |left| left.len() as u32);
                    let outcome = cursor.ack(&list, p, AckKind::Entry);
                    prop_assert_eq!(outcome.entry_completed, left > 0);
                    prop_assert_eq!(outcome.messages_acked, if left == BATCH { 1 } else { left });
                }
                Op::Batch(p, set) => {
                    let acked = naive.batch(p, set);
                    let outcome = cursor.ack(&list, p, AckKind::Batch { ack_set: &[set], batch_size: BATCH });
                    prop_assert_eq!(outcome.messages_acked, acked);
                    prop_assert_eq!(outcome.entry_completed, acked > 0 && !naive.left.contains_key(&p));
                }
                Op::Cumulative(p) => {
                    let empty = p.entry_id < 0 && sizes.iter().any(|(id, _)| *id == p.ledger_id);
                    if empty || entries.last().is_some_and(|last| p <= *last) {
                        naive.left.retain(|q, _| *q > p);
                    }
                    cursor.ack_cumulative(&list, p, AckKind::Entry);
                }
                Op::CumulativeBatch(p, set) => {
                    let empty = p.entry_id < 0 && sizes.iter().any(|(id, _)| *id == p.ledger_id);
                    if empty || entries.last().is_some_and(|last| p <= *last) {
                        naive.left.retain(|q, _| *q >= p);
                        naive.batch(p, set);
                    }
                    cursor.ack_cumulative(&list, p, AckKind::Batch { ack_set: &[set], batch_size: BATCH });
                }
                Op::Reset(p) => {
                    naive.left.clear();
                    entries.range(p..).for_each(|&q| naive.add(q));
                    cursor.reset(&list, p);
                }
                Op::Skip(n) => {
                    let nth = naive.left.keys().take(n as usize).next_back().copied();
                    nth.inspect(|nth| naive.left.retain(|q, _| q > nth));
                    cursor.skip(&list, n);
                }
                Op::Save => {
                    if let Some(delta) = cursor.take_delta() {
                        let mut bytes = Vec::new();
                        delta.encode(&mut bytes);
                        replica.apply(&CursorDelta::decode(&bytes).unwrap());
                    }
                    prop_assert!(cursor.take_delta().is_none());
                    prop_assert_eq!(&replica, &cursor.snapshot());
                }
                Op::Recode => {
                    let mut bytes = Vec::new();
                    replica.encode(&mut bytes);
                    replica = CursorSnapshot::decode(&bytes).unwrap();
                }
                Op::Grow(n) => {
                    match sizes.last_mut() {
                        Some(last) if n != 3 => last.1 += n,
                        last => { let id = last.map_or(5, |last| last.0 + 2); sizes.push((id, n)); }
                    }
                    list = list_of(&sizes);
                    let known = std::mem::replace(&mut entries, all(&sizes));
                    entries.difference(&known).for_each(|&p| naive.add(p));
                }
                Op::Trim => {
                    if sizes.len() > 1 {
                        sizes.remove(0);
                        list = list_of(&sizes);
                        entries = all(&sizes);
                        naive.left.retain(|p, _| entries.contains(p));
                        cursor.on_trimmed(&list);
                    }
                }
            }
            same(&cursor, &list, &entries, &naive)?;
        }
    }

    #[test]
    fn decoders_survive_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), version in any::<bool>()) {
        let bytes = if version { [vec![1, 0], bytes].concat() } else { bytes };
        let _ = CursorDelta::decode(&bytes);
        let _ = CursorSnapshot::decode(&bytes);
    }
}

#[test]
fn five_million_alternating_holes_are_small_and_load_fast() {
    let list = list_of(&[(1, 10_000_000)]);
    let mut cursor = Cursor::new(pos(1, -1));
    for entry in (1..10_000_000).step_by(2) {
        cursor.ack(&list, pos(1, entry), AckKind::Entry);
    }
    let delta = cursor.take_delta().unwrap();
    assert_eq!(cursor.holes(), 5_000_000);
    assert!(cursor.memory_bytes() < 4 << 20, "{} bytes", cursor.memory_bytes());
    let mut bytes = Vec::new();
    cursor.snapshot().encode(&mut bytes);
    let mut delta_bytes = Vec::new();
    delta.encode(&mut delta_bytes);
    assert!(bytes.len() < 2 << 20 && delta_bytes.len() < 2 << 20);
    let start = Instant::now();
    let loaded = CursorSnapshot::decode(&bytes).unwrap();
    assert!(start.elapsed().as_secs_f64() < 1.0);
    assert_eq!(loaded, cursor.snapshot());
    assert_eq!(cursor.next_unacked(&list, pos(1, 1)), Some(pos(1, 2)));
    assert_eq!(cursor.unacked_entries(&list), 5_000_000);
    assert!(!cursor.is_acked(pos(1, 4_000_000)) && cursor.is_acked(pos(1, 4_000_001)));
}

#[test]
fn a_seek_makes_the_position_before_its_target_durable() {
    let list = list_of(&[(3, 10), (7, 10)]);
    let mut cursor = Cursor::new(pos(7, 4));
    cursor.reset(&list, pos(7, 0));
    assert_eq!(cursor.take_delta().unwrap().mark_delete(), pos(3, 9));
    cursor.reset(&list, Position::EARLIEST);
    assert_eq!(cursor.take_delta().unwrap().mark_delete(), pos(3, -1));
    cursor.reset(&list, Position::LATEST);
    assert_eq!(cursor.take_delta().unwrap().mark_delete(), pos(7, 9));
}

#[test]
fn acks_of_entries_that_do_not_exist_change_nothing() {
    let list = list_of(&[(3, 10)]);
    let mut cursor = Cursor::new(pos(3, 4));
    for missing in [pos(3, 10), pos(4, 0), pos(3, i64::MAX), Position::LATEST] {
        assert!(cursor.ack(&list, missing, AckKind::Entry).unknown);
        assert!(cursor.ack_cumulative(&list, missing, AckKind::Entry).unknown);
    }
    assert!(cursor.ack(&list, pos(2, 0), AckKind::Entry).already);
    assert!(cursor.take_delta().is_none());
}

/// Clients that acknowledge a list send no batch size; the messages that are left may all come before the acknowledged ones.
#[test]
fn an_ack_in_a_batch_of_unknown_size_is_kept() {
    let list = list_of(&[(3, 10)]);
    let mut cursor = Cursor::new(pos(3, -1));
    let outcome = cursor.ack(&list, pos(3, 4), AckKind::Batch { ack_set: &[0b1], batch_size: 0 });
    assert!(!outcome.already && !outcome.entry_completed);
    assert_eq!(cursor.remaining_set(pos(3, 4)), Some(vec![0b1]));
    assert!(cursor.ack(&list, pos(3, 4), AckKind::Batch { ack_set: &[0b1110], batch_size: 0 }).entry_completed);
}

/// A state that was read from disk may name entries that the list does not have.
#[test]
fn acknowledgements_beyond_the_list_do_no_harm() {
    let long = list_of(&[(3, 50), (4, 2)]);
    let mut cursor = Cursor::new(pos(3, -1));
    for entry in 0..48 {
        cursor.ack(&long, pos(3, entry), AckKind::Entry);
    }
    cursor.reset(&long, pos(3, 0));
    for entry in 1..48 {
        cursor.ack(&long, pos(3, entry), AckKind::Entry);
    }
    let short = list_of(&[(3, 20), (4, 2)]);
    let mut cursor = Cursor::from_snapshot(cursor.snapshot());
    assert_eq!(cursor.unacked_entries(&short), 0);
    cursor.skip(&short, 2);
    assert_eq!(cursor.next_unacked(&short, pos(3, 0)), Some(pos(4, 1)));
}

/// Two copies of a cursor whose changes go into one log, as when a topic was loaded while an earlier one still ended.
#[test]
fn a_change_to_an_older_state_takes_back_nothing() {
    let list = list_of(&[(3, 10)]);
    let (mut old, mut new) = (Cursor::new(pos(3, -1)), Cursor::new(pos(3, -1)));
    let mut state = new.snapshot();
    old.ack(&list, pos(3, 8), AckKind::Entry);
    for entry in 0..5 {
        new.ack(&list, pos(3, entry), AckKind::Entry);
    }
    for cursor in [&mut new, &mut old] {
        state.apply(&cursor.take_delta().unwrap());
    }
    assert_eq!(state.mark_delete(), pos(3, 4));
    assert!(state.is_acked(pos(3, 8)) && !state.is_acked(pos(3, 5)));
}
