//! The ordered list of ledgers that make up a topic, and position arithmetic on it.
//!
//! Only *confirmed* entries exist here: a reader that stays inside the list never sees an entry that might
//! not be durable. Every question is a binary search: each span knows the *ordinal* of its first entry (how many
//! entries the list has held before it since it was loaded), so that distances are subtractions.
//!
//! Ledger ids in a list rise. Ledgers that were trimmed, or that were closed empty, are gaps: positions in them do not exist,
//! and are ordered like any other.

use geminga_model::Position;

/// One ledger of a topic, as the topic's metadata record holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LedgerSpan {
    pub ledger_id: u64,
    /// Confirmed entries: ids `0..entries` exist.
    pub entries: u64,
    /// Bytes of those entries.
    pub size: u64,
    /// Milliseconds since the epoch: when it was closed, or while it is open, when it was created.
    pub timestamp_ms: u64,
    /// Index (in messages, over the whole life of the topic) of its first message.
    #[serde(default)]
    pub first_index: u64,
}

impl LedgerSpan {
    /// The last confirmed entry; `{ledger, -1}` while there is none.
    pub fn last_position(&self) -> Position {
        Position { ledger_id: self.ledger_id, entry_id: self.entries as i64 - 1 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Located {
    span: LedgerSpan,
    /// Entries and bytes in the list before this span; trimmed ones stay counted.
    first_ordinal: u64,
    first_byte: u64,
}

impl Located {
    fn end_ordinal(&self) -> u64 {
        self.first_ordinal + self.span.entries
    }
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct LedgerList {
    spans: Vec<Located>,
}

impl LedgerList {
    /// Takes spans whose ids rise. Panics if they do not: a record like that is not a ledger list.
    pub fn new(spans: impl IntoIterator<Item = LedgerSpan>) -> LedgerList {
        let mut list = LedgerList::default();
        for span in spans {
            list.push(span);
        }
        list
    }

    /// Appends a ledger. Panics unless its id is above all others.
    pub fn push(&mut self, span: LedgerSpan) {
        let (first_ordinal, first_byte) = match self.spans.last() {
            Some(last) => {
                assert!(last.span.ledger_id < span.ledger_id, "ledger ids of a topic rise");
                (last.end_ordinal(), last.first_byte + last.span.size)
            }
            None => (0, 0),
        };
        self.spans.push(Located { span, first_ordinal, first_byte });
    }

    /// The last ledger has `entries` and `bytes` more.
    pub(crate) fn extend_last(&mut self, entries: u64, bytes: u64) {
        if let Some(last) = self.spans.last_mut() {
            last.span.entries += entries;
            last.span.size += bytes;
        }
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut LedgerSpan> {
        self.spans.last_mut().map(|located| &mut located.span)
    }

    pub(crate) fn pop(&mut self) -> Option<LedgerSpan> {
        self.spans.pop().map(|located| located.span)
    }

    /// Removes the first `count` ledgers and returns their ids.
    pub(crate) fn remove_front(&mut self, count: usize) -> Vec<u64> {
        self.spans.drain(..count).map(|located| located.span.ledger_id).collect()
    }

    pub fn spans(&self) -> impl DoubleEndedIterator<Item = &LedgerSpan> + ExactSizeIterator {
        self.spans.iter().map(|located| &located.span)
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// No ledger at all (a list of empty ledgers is not empty).
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    pub fn get(&self, ledger_id: u64) -> Option<&LedgerSpan> {
        let at = self.spans.binary_search_by_key(&ledger_id, |l| l.span.ledger_id).ok()?;
        Some(&self.spans[at].span)
    }

    pub fn last_span(&self) -> Option<&LedgerSpan> {
        self.spans.last().map(|located| &located.span)
    }

    pub fn total_entries(&self) -> u64 {
        self.end_ordinal() - self.base_ordinal()
    }

    pub fn total_size(&self) -> u64 {
        match (self.spans.first(), self.spans.last()) {
            (Some(first), Some(last)) => last.first_byte + last.span.size - first.first_byte,
            _ => 0,
        }
    }

    fn base_ordinal(&self) -> u64 {
        self.spans.first().map_or(0, |l| l.first_ordinal)
    }

    fn end_ordinal(&self) -> u64 {
        self.spans.last().map_or(0, Located::end_ordinal)
    }

    /// How many entries (trimmed ones included) are at or before `pos`.
    fn ordinal_after(&self, pos: Position) -> u64 {
        if pos == Position::EARLIEST {
            return self.base_ordinal();
        }
        let at = self.spans.partition_point(|l| l.span.ledger_id <= pos.ledger_id);
        let Some(located) = at.checked_sub(1).map(|i| &self.spans[i]) else {
            return self.base_ordinal();
        };
        if located.span.ledger_id < pos.ledger_id || pos.entry_id >= located.span.entries as i64 {
            return located.end_ordinal();
        }
        located.first_ordinal + (pos.entry_id + 1).max(0) as u64
    }

    /// The existing entry with this ordinal.
    fn at_ordinal(&self, ordinal: u64) -> Option<Position> {
        if ordinal < self.base_ordinal() || ordinal >= self.end_ordinal() {
            return None;
        }
        let at = self.spans.partition_point(|l| l.first_ordinal <= ordinal);
        // Empty ledgers share their ordinal with the next one; the last with it holds the entry.
        let located = &self.spans[at - 1];
        Some(Position { ledger_id: located.span.ledger_id, entry_id: (ordinal - located.first_ordinal) as i64 })
    }

    /// The first existing entry; without entries, where the first will be; without ledgers, `EARLIEST`.
    pub fn first_position(&self) -> Position {
        self.at_ordinal(self.base_ordinal()).unwrap_or_else(|| match self.spans.first() {
            Some(first) => Position { ledger_id: first.span.ledger_id, entry_id: 0 },
            None => Position::EARLIEST,
        })
    }

    /// The last confirmed entry; without entries `{first ledger, -1}`; without ledgers, `EARLIEST`.
    pub fn last_position(&self) -> Position {
        match self.end_ordinal().checked_sub(1).and_then(|ordinal| self.at_ordinal(ordinal)) {
            Some(last) => last,
            None => self.before_first(),
        }
    }

    /// The mark-delete position of a cursor that has acknowledged nothing.
    pub fn before_first(&self) -> Position {
        match self.at_ordinal(self.base_ordinal()).or_else(|| self.spans.first().map(|l| l.span.last_position())) {
            Some(first) => Position { ledger_id: first.ledger_id, entry_id: -1 },
            None => Position::EARLIEST,
        }
    }

    /// Where a reader that has read everything waits: behind the last entry.
    pub fn end_position(&self) -> Position {
        let last = self.last_position();
        if last == Position::EARLIEST { last } else { Position { entry_id: last.entry_id + 1, ..last } }
    }

    /// The next existing entry strictly after `pos`.
    pub fn next_after(&self, pos: Position) -> Option<Position> {
        self.at_ordinal(self.ordinal_after(pos))
    }

    /// The last existing entry strictly before `pos`.
    pub fn previous(&self, pos: Position) -> Option<Position> {
        self.at_ordinal(self.ordinal_before(pos).checked_sub(1)?)
    }

    /// The last existing entry at or before `pos`.
    pub fn floor(&self, pos: Position) -> Option<Position> {
        self.at_ordinal(self.ordinal_after(pos).checked_sub(1)?)
    }

    /// The first existing entry at or after `pos`.
    pub fn ceiling(&self, pos: Position) -> Option<Position> {
        self.at_ordinal(self.ordinal_before(pos))
    }

    /// How many entries are strictly before `pos`.
    fn ordinal_before(&self, pos: Position) -> u64 {
        if pos == Position::EARLIEST {
            return self.base_ordinal();
        }
        self.ordinal_after(Position { ledger_id: pos.ledger_id, entry_id: pos.entry_id.max(0) - 1 })
    }

    /// Existing entries in `(after, to]`.
    pub fn entries_between(&self, after: Position, to: Position) -> u64 {
        self.ordinal_after(to).saturating_sub(self.ordinal_after(after))
    }

    /// Bytes of the entries in `(after, to]`, from each ledger's average entry.
    pub fn size_between(&self, after: Position, to: Position) -> u64 {
        self.bytes_through(to).saturating_sub(self.bytes_through(after))
    }

    fn bytes_through(&self, pos: Position) -> u64 {
        let ordinal = self.ordinal_after(pos);
        let at = self.spans.partition_point(|l| l.first_ordinal < ordinal);
        match at.checked_sub(1).map(|i| &self.spans[i]) {
            Some(l) if l.span.entries > 0 => {
                let here = u128::from(ordinal - l.first_ordinal);
                l.first_byte + (u128::from(l.span.size) * here / u128::from(l.span.entries)) as u64
            }
            Some(l) => l.first_byte,
            None => self.spans.first().map_or(0, |l| l.first_byte),
        }
    }

    /// The `n`-th existing entry after `pos` (`n` = 1 is [`next_after`](Self::next_after)); the last one if there are fewer,
    /// `None` if there is none or `n` is 0.
    pub fn nth_after(&self, pos: Position, n: u64) -> Option<Position> {
        let from = self.ordinal_after(pos);
        let ordinal = from.saturating_add(n).min(self.end_ordinal()).checked_sub(1)?;
        if n == 0 || ordinal < from { None } else { self.at_ordinal(ordinal) }
    }

    /// Whether this entry exists: confirmed and not trimmed.
    pub fn contains(&self, pos: Position) -> bool {
        pos.entry_id >= 0 && self.get(pos.ledger_id).is_some_and(|span| (pos.entry_id as u64) < span.entries)
    }

    /// The position inside the list that says the same as `mark` does as a mark-delete position: an existing
    /// entry, or [`before_first`](Self::before_first).
    pub fn normalize_mark_delete(&self, mark: Position) -> Position {
        self.floor(mark).unwrap_or_else(|| self.before_first())
    }
}

/// Finds the first entry that was published at or after a time, by bisection over entries that somebody else reads.
///
/// Publish times are the producers' clocks and need not rise; the answer is then one of the places where they pass the
/// time, as in Pulsar.
#[derive(Clone, Debug)]
pub struct TimeSeek {
    list: LedgerList,
    time_ms: u64,
    /// Ordinals: all before `low` are earlier, `high` and all after it are not.
    low: u64,
    high: u64,
}

impl TimeSeek {
    /// `list` is copied: entries appended later do not move the target.
    pub fn new(list: &LedgerList, time_ms: u64) -> TimeSeek {
        TimeSeek { list: list.clone(), time_ms, low: list.base_ordinal(), high: list.end_ordinal() }
    }

    /// The entry to read next; `None` when the search is over.
    pub fn next_probe(&self) -> Option<Position> {
        if self.low == self.high { None } else { self.list.at_ordinal(self.low + (self.high - self.low) / 2) }
    }

    /// The publish time of the entry that [`next_probe`](Self::next_probe) named.
    pub fn probe_result(&mut self, publish_time_ms: u64) {
        if self.low == self.high {
            return;
        }
        let middle = self.low + (self.high - self.low) / 2;
        if publish_time_ms < self.time_ms { self.low = middle + 1 } else { self.high = middle }
    }

    /// Once the search is over: the first entry at or after the time, or the position behind the last entry.
    pub fn final_position(&self) -> Option<Position> {
        if self.low != self.high {
            return None;
        }
        Some(self.list.at_ordinal(self.low).unwrap_or_else(|| self.list.end_position()))
    }
}
