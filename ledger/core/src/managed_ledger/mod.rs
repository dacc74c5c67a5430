//! The managed ledger: the state machine that turns appends into writes to one ledger after the other.
//!
//! The driver feeds events in (`append`, `written`, `ledger_created`, …) and carries out what [`ManagedLedger::poll_action`]
//! returns, in that order, until it returns `None`. Metadata is touched only when a ledger is created, closed or trimmed.
//!
//! Promises:
//! - The record in metadata names every ledger that may hold an acknowledged entry, before that entry is written; all but the
//!   last are closed in it at an exact length.
//! - Entries are confirmed in the order in which they were appended, without gaps. After a failed write everything behind
//!   it fails, also what was still waiting (had a later entry of a producer succeeded, its repeat of the failed one would be
//!   out of order, or be taken for a duplicate), even if it later turns out to be stored; the ledger is closed at
//!   exactly the last confirmed entry, and what is stored behind that does not exist.
//! - A ledger is deleted only after the record without it was saved.
//! - Message indexes are continuous: an index is given when an entry is *written*, and given again if it fails.
//!
//! A ledger is created on the first append after loading, and after each close. Rolling over waits until what was written is
//! confirmed, because the record closes the old ledger at an exact length in the same compare-and-set that adds the new one.

mod types;

pub use types::{
    Action, EntryBytes, FailReason, ManagedLedgerConfig, ManagedLedgerRecord, Retention, WaitingFor, WriteError,
    Written,
};

use std::collections::VecDeque;

use geminga_model::Position;

use crate::confirmations::Confirmations;
use crate::ledger_list::{LedgerList, LedgerSpan};

/// How long nothing is tried after the second ledger in a row that came to nothing, in milliseconds; doubled with each further one.
const PAUSE_MIN_MS: u64 = 100;
pub const PAUSE_MAX_MS: u64 = 2000;

#[derive(Debug)]
struct OpenLedger {
    id: u64,
    created_ms: u64,
    /// Given to the next entry.
    next_entry: u64,
    next_index: u64,
    bytes: u64,
    in_flight: VecDeque<Batch>,
    /// As the completions have it; a batch counts in the list when it is complete.
    confirmations: Confirmations,
    /// Takes no more entries; closed as soon as nothing is in flight.
    closing: bool,
}

#[derive(Debug)]
struct Batch {
    first: u64,
    count: u64,
    bytes: u64,
    messages: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetaOp {
    Create,
    Save { terminated: bool },
}

/// See the module's head.
#[derive(Debug)]
pub struct ManagedLedger<E> {
    config: ManagedLedgerConfig,
    list: LedgerList,
    /// The greatest id that ever was in the list.
    last_ledger: u64,
    open: Option<OpenLedger>,
    /// The last ledger of the record, until its length is known.
    recovering: Option<LedgerSpan>,
    /// Index after the last confirmed message.
    confirmed_index: u64,
    waiting: VecDeque<Vec<E>>,
    pending_bytes: u64,
    actions: VecDeque<Action<E>>,
    /// The one metadata operation under way.
    meta: Option<MetaOp>,
    /// The saved record differs in more than the length of the open ledger.
    dirty: bool,
    save_failed: bool,
    /// Out of the list; the first `deletable` of them also out of the record under way.
    removed: Vec<u64>,
    deletable: usize,
    truncating: bool,
    terminating: bool,
    terminated: Option<Position>,
    termination_saved: bool,
    fenced: bool,
    /// So many ledgers in a row failed before anything in them was confirmed, and until when no other is tried. Without that
    /// producers that try again would have metadata filled with ledgers as long as storage refuses them.
    barren: u32,
    paused_until_ms: u64,
    now_ms: u64,
}

impl<E: EntryBytes> ManagedLedger<E> {
    /// Takes what metadata says. If that leaves the last ledger open, appends wait for [`recovered`](Self::recovered).
    pub fn new(record: ManagedLedgerRecord, config: ManagedLedgerConfig) -> ManagedLedger<E> {
        let mut spans = record.spans;
        let last_ledger = spans.last().map_or(0, |last| last.ledger_id).max(record.last_ledger);
        let recovering = if record.last_open { spans.pop() } else { None };
        let next_index = recovering.map_or(record.next_index, |last| last.first_index);
        ManagedLedger {
            config,
            list: LedgerList::new(spans),
            last_ledger,
            open: None,
            recovering,
            confirmed_index: next_index,
            waiting: VecDeque::new(),
            pending_bytes: 0,
            actions: VecDeque::new(),
            meta: None,
            dirty: false,
            save_failed: false,
            removed: Vec::new(),
            deletable: 0,
            truncating: false,
            terminating: record.terminated.is_some(),
            terminated: record.terminated,
            termination_saved: record.terminated.is_some(),
            fenced: false,
            barren: 0,
            paused_until_ms: 0,
            now_ms: 0,
        }
    }

    /// The confirmed entries.
    pub fn list(&self) -> &LedgerList {
        &self.list
    }

    pub fn last_confirmed(&self) -> Position {
        self.list.last_position()
    }

    /// Index that the next written message gets.
    pub fn next_index(&self) -> u64 {
        self.open.as_ref().map_or(self.confirmed_index, |open| open.next_index)
    }

    /// Index after the last confirmed message.
    pub fn confirmed_index(&self) -> u64 {
        self.confirmed_index
    }

    /// Bytes of entries that are neither confirmed nor failed. The driver bounds them.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Entries that are neither confirmed nor failed.
    pub fn pending_entries(&self) -> u64 {
        let in_flight = self.open.iter().flat_map(|open| &open.in_flight).map(|batch| batch.count);
        in_flight.sum::<u64>() + self.waiting.iter().map(|entries| entries.len() as u64).sum::<u64>()
    }

    /// The last position, once the topic's termination is saved.
    pub fn terminated(&self) -> Option<Position> {
        self.terminated.filter(|_| self.termination_saved)
    }

    /// Another owner took the topic.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// The driver learned, from a compare-and-set that found another's record, that it no longer owns the topic.
    pub fn fence(&mut self) {
        self.fenced = true;
        self.fail_waiting(WriteError::Fenced.into());
    }

    /// The ledger whose length the driver has to recover first.
    pub fn needs_recovery(&self) -> Option<u64> {
        self.recovering.map(|last| last.ledger_id)
    }

    /// What holds up appends or a change that was asked for.
    pub fn waiting_for(&self) -> Option<WaitingFor> {
        if let Some(last) = self.recovering {
            return Some(WaitingFor::Recovery { ledger_id: last.ledger_id });
        }
        match self.meta {
            Some(MetaOp::Create) => return Some(WaitingFor::LedgerCreation),
            Some(MetaOp::Save { .. }) => return Some(WaitingFor::RecordSave),
            None => {}
        }
        match &self.open {
            Some(open) if !open.in_flight.is_empty() => {
                Some(WaitingFor::Writes { ledger_id: open.id, first_entry: open.in_flight[0].first as i64 })
            }
            _ => (self.dirty && self.save_failed).then_some(WaitingFor::RecordSaveRetry),
        }
    }

    /// What metadata has to say now.
    pub fn record(&self) -> ManagedLedgerRecord {
        ManagedLedgerRecord {
            spans: self.list.spans().copied().chain(self.recovering).collect(),
            last_open: self.open.is_some() || self.recovering.is_some(),
            next_index: self.confirmed_index,
            terminated: self.terminated,
            last_ledger: self.last_ledger,
        }
    }

    /// The greatest id of all ledgers that the topic has, or had: that of a new one is to be above it, also when the list is
    /// empty.
    pub fn last_ledger_id(&self) -> u64 {
        self.last_ledger
    }

    /// Somebody knows positions in this ledger, which the list may not have any more: new ones come behind it.
    pub fn knows_of_ledger(&mut self, ledger_id: u64) {
        self.last_ledger = self.last_ledger.max(ledger_id);
    }

    /// What metadata has to say before the new ledger `ledger_id` is used.
    pub fn record_with(&self, ledger_id: u64, now_ms: u64) -> ManagedLedgerRecord {
        let mut record = self.record();
        record.spans.push(self.new_span(ledger_id, now_ms));
        record.last_ledger = ledger_id;
        record.last_open = true;
        record
    }

    fn new_span(&self, ledger_id: u64, now_ms: u64) -> LedgerSpan {
        LedgerSpan { ledger_id, entries: 0, size: 0, timestamp_ms: now_ms, first_index: self.confirmed_index }
    }

    /// The last ledger of the record was fenced and ends with `last_entry` (-1: it is empty), its entries take `size` bytes,
    /// and `next_index` follows its last message (`None` if entries carry no index: then each counts as one message).
    pub fn recovered(&mut self, now_ms: u64, ledger_id: u64, last_entry: i64, size: u64, next_index: Option<u64>) {
        self.now_ms = now_ms;
        let Some(last) = self.recovering.take_if(|last| last.ledger_id == ledger_id) else { return };
        let entries = (last_entry + 1).max(0) as u64;
        if entries == 0 {
            self.removed.push(ledger_id);
            return;
        }
        self.confirmed_index = next_index.unwrap_or(last.first_index + entries).max(last.first_index);
        self.list.push(LedgerSpan { entries, size, ..last });
        self.write_waiting();
    }

    /// Entries to be stored behind all that came before. Those of one call are confirmed or fail on their own.
    pub fn append(&mut self, now_ms: u64, entries: Vec<E>) {
        self.now_ms = self.now_ms.max(now_ms);
        if entries.is_empty() {
            return;
        }
        if let Some(reason) = self.refusal() {
            self.actions.push_back(Action::Fail { entries, reason });
            return;
        }
        self.pending_bytes += entry_bytes(&entries);
        self.waiting.push_back(entries);
        self.write_waiting();
    }

    fn refusal(&self) -> Option<FailReason> {
        if self.fenced {
            Some(WriteError::Fenced.into())
        } else if self.terminating {
            Some(FailReason::Terminated)
        } else {
            (self.now_ms < self.paused_until_ms).then_some(FailReason::Paused)
        }
    }

    /// Hands out what waits, as long as the open ledger takes it.
    fn write_waiting(&mut self) {
        self.roll_if_due();
        while let Some(open) = self.open.as_mut().filter(|open| !open.closing) {
            let Some(batch) = self.waiting.front() else { return };
            let full = open.bytes >= self.config.max_ledger_bytes
                || open.next_entry + batch.len() as u64 > self.config.max_ledger_entries;
            if full && open.next_entry > 0 {
                open.closing = true;
                return;
            }
            let entries = self.waiting.pop_front().expect("its front was there");
            let (first, count, bytes) = (open.next_entry, entries.len() as u64, entry_bytes(&entries));
            let messages = entries.iter().map(|entry| u64::from(entry.num_messages())).sum();
            open.in_flight.push_back(Batch { first, count, bytes, messages });
            let write =
                Action::Write { ledger_id: open.id, first_entry: first as i64, first_index: open.next_index, entries };
            open.next_entry += count;
            open.next_index += messages;
            open.bytes += bytes;
            self.actions.push_back(write);
        }
    }

    fn roll_if_due(&mut self) {
        if let Some(open) = &mut self.open
            && open.next_entry > 0
            && self.now_ms.saturating_sub(open.created_ms) >= self.config.max_ledger_age_ms
        {
            open.closing = true;
        }
    }

    /// The driver's answer to [`Action::CreateLedger`]. Panics if the id is not above all others of the topic.
    pub fn ledger_created(&mut self, now_ms: u64, ledger_id: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        if self.meta != Some(MetaOp::Create) {
            return;
        }
        self.meta = None;
        self.delete_removed();
        assert!(ledger_id > self.last_ledger, "ledger ids of a topic rise");
        self.last_ledger = ledger_id;
        self.list.push(self.new_span(ledger_id, now_ms));
        self.open = Some(OpenLedger {
            id: ledger_id,
            created_ms: now_ms,
            next_entry: 0,
            next_index: self.confirmed_index,
            bytes: 0,
            in_flight: VecDeque::new(),
            confirmations: Confirmations::default(),
            closing: self.terminating || self.truncating,
        });
        self.write_waiting();
    }

    /// The driver's answer to [`Action::CreateLedger`]: all that waits fails, the next append tries again.
    pub fn ledger_create_failed(&mut self, error: &str) {
        if self.meta == Some(MetaOp::Create) {
            self.meta = None;
            self.dirty = true;
            self.deletable = 0;
            self.fail_waiting(FailReason::Create(error.to_owned()));
        }
    }

    /// The driver's answer to [`Action::Write`]: `count` entries from `first_entry` on are stored, or a write that began there
    /// failed. Completions may join or split writes, and may arrive in any order.
    pub fn written(&mut self, ledger_id: u64, first_entry: i64, count: u64, result: Result<(), WriteError>) -> Written {
        let Some(open) = self.open.as_mut().filter(|open| open.id == ledger_id) else { return Written::default() };
        let first = first_entry.max(0) as u64;
        if first >= open.next_entry {
            return Written::default();
        }
        match result {
            Ok(()) => self.confirm(first, count),
            Err(error) => self.fail_from(first, error),
        }
    }

    fn confirm(&mut self, first: u64, count: u64) -> Written {
        let open = self.open.as_mut().expect("the caller has it");
        open.confirmations.completed(first, count, open.next_entry);
        let confirmed_to = open.confirmations.to();
        let (mut confirmed, mut bytes) = (0, 0);
        while let Some(batch) = open.in_flight.pop_front_if(|batch| batch.first + batch.count <= confirmed_to) {
            confirmed += batch.count;
            bytes += batch.bytes;
            self.confirmed_index += batch.messages;
        }
        if confirmed == 0 {
            return Written::default();
        }
        self.barren = 0;
        self.list.extend_last(confirmed, bytes);
        self.pending_bytes -= bytes;
        let lac = self.list.last_span().map(LedgerSpan::last_position);
        Written { lac, confirmed, failed_from: None }
    }

    /// Entry `first` failed: so does everything behind it. What is before it is still under way, and decides where the ledger ends.
    fn fail_from(&mut self, first: u64, error: WriteError) -> Written {
        let open = self.open.as_mut().expect("the caller has it");
        open.closing = true;
        self.fenced |= error == WriteError::Fenced;
        let mut failed_from = None;
        while let Some(batch) = open.in_flight.pop_back_if(|batch| batch.first + batch.count > first) {
            failed_from = Some(Position { ledger_id: open.id, entry_id: batch.first as i64 });
            self.pending_bytes -= batch.bytes;
            open.next_entry = batch.first;
            open.next_index -= batch.messages;
            open.bytes -= batch.bytes;
        }
        open.confirmations.cut(open.next_entry);
        if open.next_entry == 0 {
            let pause_ms = if self.barren == 0 { 0 } else { PAUSE_MIN_MS << (self.barren - 1).min(8) };
            self.barren += 1;
            self.paused_until_ms = self.now_ms + pause_ms.min(PAUSE_MAX_MS);
        }
        self.fail_waiting(error.into());
        Written { failed_from, ..Written::default() }
    }

    fn fail_waiting(&mut self, reason: FailReason) {
        let entries: Vec<E> = self.waiting.drain(..).flatten().collect();
        if !entries.is_empty() {
            self.pending_bytes -= entry_bytes(&entries);
            self.actions.push_back(Action::Fail { entries, reason });
        }
    }

    /// The driver's answer to [`Action::SaveRecord`].
    pub fn record_saved(&mut self) {
        if let Some(MetaOp::Save { terminated }) = self.meta {
            self.meta = None;
            self.save_failed = false;
            self.termination_saved |= terminated;
            self.delete_removed();
        }
    }

    /// The driver's answer to [`Action::SaveRecord`]; it may have been saved or not. It is tried again after the next `tick`.
    pub fn record_save_failed(&mut self) {
        if let Some(MetaOp::Save { .. }) = self.meta {
            self.meta = None;
            self.save_failed = true;
            self.dirty = true;
            self.deletable = 0;
        }
    }

    fn delete_removed(&mut self) {
        let ids: Vec<u64> = self.removed.drain(..self.deletable).collect();
        self.deletable = 0;
        if !ids.is_empty() {
            self.actions.push_back(Action::DeleteLedgers(ids));
        }
    }

    /// Time passes: closes a ledger that is old enough, tries again what failed.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.save_failed = false;
        self.roll_if_due();
    }

    /// No more appends, for ever. Done when [`terminated`](Self::terminated) says so; what was written before is still confirmed,
    /// what waits for a ledger fails.
    pub fn terminate(&mut self) {
        if !self.terminating {
            self.terminating = true;
            self.close_when_written();
            self.fail_waiting(FailReason::Terminated);
        }
    }

    /// Forgets all entries that were appended before; the cursors are the driver's to move.
    pub fn truncate(&mut self) {
        self.truncating = true;
        self.close_when_written();
    }

    fn close_when_written(&mut self) {
        if let Some(open) = &mut self.open {
            open.closing = true;
        }
    }

    /// Removes ledgers from the front that lie completely at or below `slowest` (the lowest *durable* mark-delete position of all durable
    /// subscriptions; `None` if there are none) and outside of the retention; never the open one, nor the last one of a topic that was
    /// terminated, so that whoever comes later finds its end. Returns how many.
    /// Not to be called when the retention, or a cursor, could not be read.
    pub fn trim(&mut self, now_ms: u64, slowest: Option<Position>, retention: Retention) -> usize {
        self.now_ms = self.now_ms.max(now_ms);
        let kept = usize::from(self.open.is_some() || self.terminating);
        let closed = self.list.len().saturating_sub(kept);
        if self.recovering.is_some() {
            return 0;
        }
        let mut kept_size = self.list.total_size();
        let mut count = 0;
        for span in self.list.spans().take(closed) {
            kept_size -= span.size;
            let acked = slowest.is_none_or(|slowest| span.last_position() <= slowest);
            let age = now_ms.saturating_sub(span.timestamp_ms);
            let expired = retention.time_ms == 0 || (retention.time_ms > 0 && age > retention.time_ms as u64);
            let excess = retention.size_bytes >= 0 && kept_size >= retention.size_bytes as u64;
            if !acked || !(expired || excess) {
                break;
            }
            count += 1;
        }
        self.remove_front(count);
        count
    }

    fn remove_front(&mut self, count: usize) {
        if count > 0 {
            self.removed.extend(self.list.remove_front(count));
            self.dirty = true;
        }
    }

    /// The next thing to do; see the module's head.
    pub fn poll_action(&mut self) -> Option<Action<E>> {
        if self.actions.is_empty() {
            self.close_if_written();
            self.finish_requests();
            self.start_metadata_operation();
        }
        self.actions.pop_front()
    }

    fn close_if_written(&mut self) {
        let Some(open) = self.open.take_if(|open| open.closing && open.in_flight.is_empty()) else { return };
        if self.fenced {
            return;
        }
        self.dirty = true;
        if open.next_entry == 0 {
            self.list.pop();
            self.removed.push(open.id);
            return;
        }
        let now_ms = self.now_ms;
        let span = self.list.last_mut().expect("the open ledger is in the list");
        span.timestamp_ms = now_ms.max(span.timestamp_ms);
        let last_entry = span.last_position().entry_id;
        self.actions.push_back(Action::Seal { ledger_id: open.id, last_entry });
    }

    /// Truncation and termination, when no ledger is open and none is about to be.
    fn finish_requests(&mut self) {
        if self.open.is_some() || self.recovering.is_some() || self.meta == Some(MetaOp::Create) {
            return;
        }
        if std::mem::take(&mut self.truncating) {
            self.remove_front(self.list.len());
        }
        if self.terminating && self.terminated.is_none() {
            self.terminated = Some(self.list.last_position());
            self.dirty = true;
        }
    }

    fn start_metadata_operation(&mut self) {
        if self.meta.is_some() || self.recovering.is_some() || self.fenced {
            return;
        }
        let (op, action) = if self.open.is_none() && !self.waiting.is_empty() {
            (MetaOp::Create, Action::CreateLedger)
        } else if self.dirty && !self.save_failed {
            (MetaOp::Save { terminated: self.terminated.is_some() }, Action::SaveRecord)
        } else {
            return;
        };
        self.meta = Some(op);
        self.dirty = false;
        self.deletable = self.removed.len();
        self.actions.push_back(action);
    }
}

fn entry_bytes<E: EntryBytes>(entries: &[E]) -> u64 {
    entries.iter().map(|entry| entry.size() as u64).sum()
}
