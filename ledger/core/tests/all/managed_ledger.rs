//! Scenarios of the managed ledger that the simulation reaches only by luck.

use geminga_ledger::ledger_list::LedgerSpan;
use geminga_ledger::managed_ledger::*;
use geminga_model::Position;

#[derive(Debug, PartialEq, Eq, Clone)]
struct Entry(u32);

impl EntryBytes for Entry {
    fn size(&self) -> usize {
        100
    }
    fn num_messages(&self) -> u32 {
        self.0
    }
}

fn pos(ledger_id: u64, entry_id: i64) -> Position {
    Position { ledger_id, entry_id }
}

fn entries(n: usize) -> Vec<Entry> {
    vec![Entry(2); n]
}

fn small() -> ManagedLedgerConfig {
    ManagedLedgerConfig { max_ledger_bytes: 1000, max_ledger_entries: 100, max_ledger_age_ms: 1000 }
}

fn actions(ml: &mut ManagedLedger<Entry>) -> Vec<Action<Entry>> {
    std::iter::from_fn(|| ml.poll_action()).collect()
}

fn opened(config: ManagedLedgerConfig) -> ManagedLedger<Entry> {
    let mut ml = ManagedLedger::new(ManagedLedgerRecord::default(), config);
    ml.append(0, entries(1));
    assert_eq!(actions(&mut ml), [Action::CreateLedger]);
    assert_eq!(ml.record_with(7, 0).spans.len(), 1);
    ml.ledger_created(0, 7);
    let write = Action::Write { ledger_id: 7, first_entry: 0, first_index: 0, entries: entries(1) };
    assert_eq!(actions(&mut ml), [write]);
    ml.written(7, 0, 1, Ok(()));
    ml
}

#[test]
fn idle_topic_costs_no_metadata() {
    let mut ml: ManagedLedger<Entry> = ManagedLedger::new(ManagedLedgerRecord::default(), small());
    ml.tick(5000);
    assert_eq!(ml.trim(5000, None, Retention::NONE), 0);
    assert_eq!(actions(&mut ml), []);
    let mut ml = opened(ManagedLedgerConfig::default());
    for i in 1..100 {
        ml.append(0, entries(1));
        assert!(matches!(actions(&mut ml)[..], [Action::Write { first_index, .. }] if first_index == 2 * i));
        ml.written(7, i as i64, 1, Ok(()));
    }
}

#[test]
fn rollover_waits_for_the_writes_under_way() {
    let mut ml = opened(small());
    ml.append(1, entries(9));
    ml.append(1, entries(3));
    ml.append(1, entries(1));
    assert!(matches!(actions(&mut ml)[..], [Action::Write { first_entry: 1, .. }]));
    assert_eq!(ml.pending_bytes(), 1300);
    let done = ml.written(7, 1, 9, Ok(()));
    assert_eq!((done.lac, done.confirmed), (Some(pos(7, 9)), 9));
    assert_eq!(actions(&mut ml), [Action::Seal { ledger_id: 7, last_entry: 9 }, Action::CreateLedger]);
    let record = ml.record_with(9, 1);
    assert!(record.last_open && record.spans[0].entries == 10 && record.spans[1].first_index == 20);
    ml.ledger_created(1, 9);
    let after = actions(&mut ml);
    assert!(matches!(
        after[..],
        [Action::Write { ledger_id: 9, first_index: 20, .. }, Action::Write { first_entry: 3, .. }]
    ));
    ml.written(9, 0, 4, Ok(()));
    assert_eq!((ml.pending_bytes(), ml.last_confirmed(), ml.confirmed_index()), (0, pos(9, 3), 28));
}

#[test]
fn after_a_failed_write_all_behind_it_fails_and_the_ledger_ends_at_the_lac() {
    let mut ml = opened(small());
    for _ in 0..4 {
        ml.append(1, entries(3));
    }
    assert_eq!(actions(&mut ml).len(), 3, "the fourth waits for the rollover");
    // Out of order: the second batch fails before the first is confirmed, the third succeeds.
    assert_eq!(ml.written(7, 4, 3, Err(WriteError::Full)).failed_from, Some(pos(7, 4)));
    assert_eq!(ml.written(7, 7, 3, Ok(())), Written::default());
    let failed = Action::Fail { entries: entries(3), reason: FailReason::Write(WriteError::Full) };
    assert_eq!(actions(&mut ml), [failed]);
    assert_eq!(ml.written(7, 1, 3, Ok(())).lac, Some(pos(7, 3)));
    assert_eq!(actions(&mut ml), [Action::Seal { ledger_id: 7, last_entry: 3 }, Action::SaveRecord]);
    assert_eq!((ml.record().spans[0].entries, ml.record().last_open, ml.next_index()), (4, false, 8));
    ml.record_saved();
    ml.append(2, entries(1));
    assert_eq!(actions(&mut ml), [Action::CreateLedger]);
    ml.ledger_create_failed("metadata is away");
    let failed = Action::Fail { entries: entries(1), reason: FailReason::Create("metadata is away".into()) };
    assert_eq!(actions(&mut ml), [failed, Action::SaveRecord], "whether the record was saved is not known");
    assert_eq!(ml.pending_bytes(), 0);
}

#[test]
fn after_ledgers_that_came_to_nothing_there_is_a_pause_that_grows() {
    let mut ml = opened(small());
    ml.append(1, entries(1));
    actions(&mut ml);
    let refuse = || Err(WriteError::Failed("nobody takes it".into()));
    ml.written(7, 1, 1, refuse());
    let (mut now, mut ledger, mut pauses) = (1, 7, Vec::new());
    for _ in 0..8 {
        actions(&mut ml);
        ml.record_saved();
        actions(&mut ml);
        // One that had entries is followed at once, and so is the first without.
        let since = now;
        while {
            ml.append(now, entries(1));
            actions(&mut ml) == [Action::Fail { entries: entries(1), reason: FailReason::Paused }]
        } {
            now += 10;
        }
        pauses.push(now - since);
        ledger += 1;
        ml.ledger_created(now, ledger);
        actions(&mut ml);
        ml.written(ledger, 0, 1, refuse());
    }
    assert_eq!(pauses, [0, 0, 100, 200, 400, 800, 1600, 2000]);
    assert_eq!(ml.pending_bytes(), 0);
    actions(&mut ml);
    ml.record_saved();
    ml.append(now + 2000, entries(1));
    actions(&mut ml);
    ml.ledger_created(now + 2000, ledger + 1);
    ml.written(ledger + 1, 0, 1, Ok(()));
    actions(&mut ml);
    ml.append(now + 2000, entries(1));
    ml.written(ledger + 1, 1, 1, refuse());
    actions(&mut ml);
    ml.record_saved();
    ml.append(now + 2000, entries(1));
    assert!(actions(&mut ml).contains(&Action::CreateLedger), "what was confirmed ends it");
}

#[test]
fn a_fenced_owner_does_nothing_more() {
    let mut ml = opened(small());
    ml.append(1, entries(3));
    actions(&mut ml);
    ml.written(7, 1, 3, Err(WriteError::Fenced));
    ml.append(1, entries(1));
    ml.tick(100_000);
    let refused = Action::Fail { entries: entries(1), reason: FailReason::Write(WriteError::Fenced) };
    assert!(ml.is_fenced());
    assert_eq!(actions(&mut ml), [refused]);
}

#[test]
fn empty_closed_ledgers_vanish_and_are_deleted_after_the_record_is_saved() {
    let mut ml = opened(small());
    ml.append(1, entries(1));
    actions(&mut ml);
    ml.written(7, 1, 1, Err(WriteError::Failed("io".into())));
    actions(&mut ml);
    ml.record_saved();
    ml.append(2, entries(1));
    assert_eq!(actions(&mut ml), [Action::CreateLedger]);
    ml.ledger_created(2, 8);
    actions(&mut ml);
    ml.written(8, 0, 1, Err(WriteError::Failed("io".into())));
    assert_eq!(actions(&mut ml), [Action::SaveRecord]);
    assert_eq!(ml.record().spans.len(), 1);
    ml.record_save_failed();
    assert_eq!(actions(&mut ml), []);
    assert_eq!(ml.waiting_for(), Some(WaitingFor::RecordSaveRetry));
    ml.tick(3);
    assert_eq!(actions(&mut ml), [Action::SaveRecord]);
    ml.record_saved();
    assert_eq!(actions(&mut ml), [Action::DeleteLedgers(vec![8])]);
}

#[test]
fn trims_whole_closed_ledgers_below_the_slowest_mark_and_outside_the_retention() {
    let span =
        |ledger_id| LedgerSpan { ledger_id, entries: 10, size: 100, timestamp_ms: ledger_id * 1000, first_index: 0 };
    let record = ManagedLedgerRecord { spans: (1..5).map(span).collect(), next_index: 40, ..Default::default() };
    let trimmed = |slowest: Option<Position>, time_ms, size_bytes| {
        let mut ml: ManagedLedger<Entry> = ManagedLedger::new(record.clone(), small());
        ml.trim(10_000, slowest, Retention { time_ms, size_bytes })
    };
    assert_eq!(trimmed(Some(pos(3, 8)), 0, 0), 2);
    assert_eq!(trimmed(Some(pos(3, 9)), 0, 0), 3);
    assert_eq!(trimmed(Some(pos(3, 9)), -1, -1), 0);
    assert_eq!(trimmed(Some(pos(3, 9)), 7500, -1), 2, "older than 7.5 s");
    assert_eq!(trimmed(Some(pos(3, 9)), -1, 150), 2, "what stays behind is at least 150 bytes");
    assert_eq!(trimmed(None, 0, 0), 4, "no subscription, no ledger open");
    assert_eq!(trimmed(Some(Position::EARLIEST), 0, 0), 0);

    let mut ml: ManagedLedger<Entry> = ManagedLedger::new(record, small());
    ml.trim(10_000, None, Retention::NONE);
    assert_eq!(actions(&mut ml), [Action::SaveRecord]);
    assert_eq!((ml.record().spans.len(), ml.record().next_index), (0, 40), "the index goes on when nothing is left");
    let again: ManagedLedger<Entry> = ManagedLedger::new(ml.record(), small());
    assert_eq!(
        (ml.last_ledger_id(), again.last_ledger_id()),
        (4, 4),
        "cursors stand there: what is new comes behind it"
    );
    ml.record_saved();
    assert_eq!(actions(&mut ml), [Action::DeleteLedgers(vec![1, 2, 3, 4])]);
}

#[test]
fn recovery_comes_before_everything() {
    let mut ml = opened(small());
    ml.append(1, entries(3));
    let record = ml.record();
    let mut ml: ManagedLedger<Entry> = ManagedLedger::new(record.clone(), small());
    ml.append(2, entries(1));
    assert_eq!(ml.needs_recovery(), Some(7));
    assert_eq!((actions(&mut ml), ml.trim(9999, None, Retention::NONE)), (vec![], 0));
    assert_eq!((ml.record().spans, ml.record().last_open), (record.spans, true));
    ml.recovered(2, 7, 3, 400, Some(8));
    assert_eq!((ml.last_confirmed(), ml.next_index()), (pos(7, 3), 8));
    assert_eq!(actions(&mut ml), [Action::CreateLedger]);
    assert_eq!(ml.record_with(8, 2).spans[0].entries, 4);
}

#[test]
fn termination_and_truncation_wait_for_the_writes_under_way() {
    let mut ml = opened(small());
    ml.append(1, entries(2));
    actions(&mut ml);
    ml.truncate();
    ml.terminate();
    ml.append(1, entries(1));
    assert_eq!(actions(&mut ml), [Action::Fail { entries: entries(1), reason: FailReason::Terminated }]);
    ml.written(7, 1, 2, Ok(()));
    assert_eq!(actions(&mut ml), [Action::Seal { ledger_id: 7, last_entry: 2 }, Action::SaveRecord]);
    assert_eq!(ml.terminated(), None);
    let record = ml.record();
    ml.record_saved();
    assert_eq!(actions(&mut ml), [Action::DeleteLedgers(vec![7])]);
    assert_eq!((ml.terminated(), record.next_index), (Some(Position::EARLIEST), 6));
}

#[test]
fn a_terminated_topic_keeps_its_last_ledger() {
    let mut ml = opened(small());
    ml.append(1, entries(2));
    actions(&mut ml);
    ml.terminate();
    ml.written(7, 1, 2, Ok(()));
    actions(&mut ml);
    ml.record_saved();
    assert_eq!(ml.terminated(), Some(pos(7, 2)));
    assert_eq!(ml.trim(9999, Some(pos(7, 2)), Retention::NONE), 0);
}

#[test]
fn closes_by_time_without_a_successor() {
    let mut ml = opened(small());
    ml.tick(999);
    assert_eq!(actions(&mut ml), []);
    ml.tick(1000);
    assert_eq!(actions(&mut ml), [Action::Seal { ledger_id: 7, last_entry: 0 }, Action::SaveRecord]);
    assert_eq!(ml.record().spans[0].timestamp_ms, 1000);
}

#[test]
fn records_that_cannot_be_ours_are_noticed() {
    let span = |ledger_id, entries| LedgerSpan { ledger_id, entries, size: 1, timestamp_ms: 0, first_index: 0 };
    let record = |spans: &[LedgerSpan]| ManagedLedgerRecord { spans: spans.to_vec(), ..Default::default() };
    assert_eq!(record(&[span(1, 5), span(3, 0)]).check(), Ok(()));
    for bad in [[span(3, 5), span(1, 5)], [span(3, 5), span(3, 5)], [span(1, u64::MAX), span(2, 1)]] {
        assert!(record(&bad).check().is_err(), "{bad:?}");
    }
    let huge = LedgerSpan { size: u64::MAX, ..span(1, 1) };
    assert!(record(&[huge, span(2, 1)]).check().is_err());
}

/// A list that was restored from a dump has lost ledgers that cursors know.
#[test]
fn what_is_new_comes_behind_every_ledger_that_a_cursor_names() {
    let span = LedgerSpan { ledger_id: 3, entries: 5, size: 1, timestamp_ms: 0, first_index: 0 };
    let record = ManagedLedgerRecord { spans: vec![span], next_index: 5, ..Default::default() };
    let mut ml: ManagedLedger<Entry> = ManagedLedger::new(record, small());
    ml.knows_of_ledger(9);
    ml.knows_of_ledger(4);
    assert_eq!((ml.last_ledger_id(), ml.record().last_ledger), (9, 9));
    let list = ml.list();
    assert_eq!(list.next_after(Position { ledger_id: 9, entry_id: 2 }), None, "all that there is was acknowledged");
}
