//! A topic's list of ledgers as it is with those that were lost: pure.

use geminga_metadata::{LedgerInfo, TopicRecord};

/// What a ledger turned out to be, once it was closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    pub ledger: u64,
    /// Those that count, and their bytes.
    pub entries: u64,
    pub size: u64,
    /// Of the first message, and the one after the last; none if it has none, or they say nothing.
    pub indexes: Option<(u64, u64)>,
    /// When the last entry was written, in milliseconds since the Unix epoch; 0 if that is not known.
    pub time_ms: u64,
}

/// The record with these ledgers at their places, all of them closed. Those that it has already are as they were, but for an open one,
/// which has to be among the measured.
pub fn extended(record: &TopicRecord, measured: &[Measured]) -> TopicRecord {
    let mut extended = record.clone();
    extended.ledgers.retain(|ledger| measured.iter().all(|measured| measured.ledger != ledger.ledger_id));
    extended.ledgers.extend(measured.iter().map(|measured| LedgerInfo {
        ledger_id: measured.ledger,
        entries: measured.entries,
        size: measured.size,
        timestamp: measured.time_ms,
        first_index: measured.indexes.map_or(0, |(first, _)| first),
    }));
    extended.ledgers.sort_by_key(|ledger| ledger.ledger_id);
    let end_of = |id: u64| measured.iter().find(|it| it.ledger == id).and_then(|it| it.indexes).map(|(_, end)| end);
    // A ledger that does not say where it begins does so where the one before it ends.
    let mut end = 0;
    for ledger in &mut extended.ledgers {
        ledger.first_index = ledger.first_index.max(end);
        end = end_of(ledger.ledger_id).unwrap_or(ledger.first_index).max(end);
    }
    let was_last = record.ledgers.last().map(|last| last.ledger_id);
    let is_last_measured = |last: &LedgerInfo| measured.iter().any(|measured| measured.ledger == last.ledger_id);
    if extended.ledgers.last().is_some_and(is_last_measured) {
        let known = if record.last_open { 0 } else { record.next_index };
        extended.next_index = end.max(known);
    }
    let was_open = record.last_open && was_last.is_some_and(|last| measured.iter().all(|it| it.ledger != last));
    extended.last_open = was_open && extended.ledgers.last().map(|last| last.ledger_id) == was_last;
    extended.set_greatest_ledger(record.greatest_ledger());
    extended
}

/// The record without a ledger, if it has it.
pub fn without(record: &TopicRecord, ledger: u64) -> Option<TopicRecord> {
    let place = record.ledgers.iter().position(|it| it.ledger_id == ledger)?;
    let mut rest = record.clone();
    let gone = rest.ledgers.remove(place);
    rest.set_greatest_ledger(record.greatest_ledger());
    if rest.last_open && place == rest.ledgers.len() {
        // How many messages it had nobody knows.
        rest.last_open = false;
        rest.next_index = gone.first_index;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ledger_id: u64, entries: u64, first_index: u64) -> LedgerInfo {
        LedgerInfo { ledger_id, entries, size: entries * 10, timestamp: 5, first_index }
    }

    fn measured(ledger: u64, entries: u64, indexes: Option<(u64, u64)>) -> Measured {
        Measured { ledger, entries, size: entries * 10, indexes, time_ms: 5 }
    }

    #[test]
    fn lost_ledgers_come_to_their_places_and_the_open_one_is_closed() {
        let record = TopicRecord {
            ledgers: vec![info(3, 10, 0), info(7, 0, 10)],
            last_open: true,
            last_ledger: 7,
            ..TopicRecord::default()
        };
        let lost = [measured(7, 5, Some((10, 15))), measured(5, 0, None), measured(9, 4, Some((15, 25)))];
        let whole = extended(&record, &lost);
        let expected = vec![info(3, 10, 0), info(5, 0, 0), info(7, 5, 10), info(9, 4, 15)];
        assert_eq!((whole.ledgers, whole.last_open, whole.next_index, whole.last_ledger), (expected, false, 25, 0));
    }

    #[test]
    fn what_lies_before_a_closed_list_changes_nothing_behind_it() {
        let record =
            TopicRecord { ledgers: vec![info(7, 5, 10)], next_index: 15, last_ledger: 20, ..TopicRecord::default() };
        let whole = extended(&record, &[measured(5, 10, Some((0, 10)))]);
        assert_eq!(whole.ledgers, [info(5, 10, 0), info(7, 5, 10)]);
        assert_eq!((whole.last_open, whole.next_index, whole.last_ledger), (false, 15, 20));
    }

    #[test]
    fn a_ledger_that_is_given_up_keeps_its_place_in_the_count_of_ids() {
        let record =
            TopicRecord { ledgers: vec![info(3, 10, 0), info(7, 0, 10)], last_open: true, ..TopicRecord::default() };
        let rest = without(&record, 7).expect("it was there");
        assert_eq!((rest.ledgers.len(), rest.last_open, rest.next_index, rest.last_ledger), (1, false, 10, 7));
        assert_eq!(without(&rest, 7), None);
    }
}
