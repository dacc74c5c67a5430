//! The acknowledgements of one subscription.
//!
//! Everything at or before the *mark-delete position* is acknowledged; above it, entries that were acknowledged out of
//! order are bits in one Roaring bitmap per ledger, and batches that were acknowledged in part keep the set of what
//! remains. Nothing is ever dropped, however many holes there are: five million alternating holes take 1.3 MiB.
//!
//! A [`Cursor`] is driven by the topic's owner. What changes is collected until [`Cursor::take_delta`], whose result is
//! appended to the bundle's [cursor log](crate::cursor_log); an acknowledgement may be confirmed to its consumer when that
//! record is durable. The *read* position is no part of a cursor: it is the dispatcher's, and a seek stores the position
//! before its target as the mark-delete position, never the target itself (that would lose one message).
//!
//! Promises: the mark-delete position never passes an entry that was not acknowledged, except by a seek or a skip; applying all
//! deltas to the state they started from gives the state they came from.

mod ack_set;
mod state;

pub use ack_set::AckSet;
pub use state::{CursorDelta, CursorSnapshot};

use std::collections::BTreeSet;

use geminga_model::Position;

use crate::ledger_list::LedgerList;
use state::{Acked, acked_bytes, entry_bit, run_end};

/// What a consumer acknowledges at one position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind<'a> {
    /// The whole entry.
    Entry,
    /// Those messages of a batch whose bit is **not** set (Pulsar's `ack_set`). `batch_size` is the number of messages in
    /// the entry, which the caller has checked; 0 if it is unknown.
    Batch { ack_set: &'a [u64], batch_size: u32 },
}

/// What one individual ack did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckOutcome {
    /// This ack completed the entry: it will not be delivered again.
    pub entry_completed: bool,
    /// Messages that are newly acknowledged: of a batch that was acknowledged in part before, what remained; of a whole entry,
    /// 1 (the cursor does not know how many messages it holds).
    pub messages_acked: u32,
    /// The entry was acknowledged before.
    pub already: bool,
    /// There is no such entry: it is beyond the last confirmed one, or was trimmed. Nothing was done.
    pub unknown: bool,
}

/// What a cumulative ack, a skip or a seek did to the mark-delete position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// Entries that are newly acknowledged.
    pub entries_acked: u64,
    /// Nothing new was acknowledged.
    pub already: bool,
    /// The position is beyond the last confirmed entry: nothing was done.
    pub unknown: bool,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Cursor {
    state: CursorSnapshot,
    changes: Changes,
}

#[derive(Clone, Debug, Default)]
struct Changes {
    any: bool,
    reset: bool,
    acked: Acked,
    batches: BTreeSet<Position>,
}

impl Cursor {
    /// A subscription that has acknowledged everything up to and including `mark_delete`.
    pub fn new(mark_delete: Position) -> Cursor {
        Cursor::from_snapshot(CursorSnapshot::new(mark_delete))
    }

    /// A subscription as the cursor log has it.
    pub fn from_snapshot(state: CursorSnapshot) -> Cursor {
        Cursor { state, changes: Changes::default() }
    }

    pub fn mark_delete(&self) -> Position {
        self.state.mark_delete()
    }

    pub fn is_acked(&self, pos: Position) -> bool {
        self.state.is_acked(pos)
    }

    /// The state of a batch that is acknowledged in part.
    pub fn batch_state(&self, pos: Position) -> Option<&AckSet> {
        self.state.above()?.batches.get(&pos)
    }

    /// What of a partially acknowledged batch is to be delivered, for `CommandMessage.ack_set`; `None` if the entry is whole.
    pub fn remaining_set(&self, pos: Position) -> Option<Vec<i64>> {
        self.batch_state(pos).map(AckSet::to_longs)
    }

    /// Acknowledges one entry, or messages of one batch.
    pub fn ack(&mut self, list: &LedgerList, pos: Position, kind: AckKind<'_>) -> AckOutcome {
        if self.is_acked(pos) {
            return AckOutcome { already: true, ..AckOutcome::default() };
        }
        if !list.contains(pos) || entry_bit(pos).is_none() {
            return AckOutcome { unknown: true, ..AckOutcome::default() };
        }
        match kind {
            AckKind::Entry => {
                let messages_acked = self.batch_state(pos).map_or(1, AckSet::remaining);
                self.complete(list, pos);
                AckOutcome { entry_completed: true, messages_acked, ..AckOutcome::default() }
            }
            AckKind::Batch { ack_set, batch_size } => self.ack_batch(list, pos, ack_set, batch_size),
        }
    }

    fn ack_batch(&mut self, list: &LedgerList, pos: Position, ack_set: &[u64], batch_size: u32) -> AckOutcome {
        let (messages_acked, remaining) = match self.state.above().and_then(|above| above.batches.get(&pos)) {
            Some(_) => {
                let set = self.state.above_mut().batches.get_mut(&pos).expect("was found above");
                (set.intersect(ack_set), set.remaining())
            }
            None => {
                let set = AckSet::of_whole_batch(ack_set, batch_size);
                let (mut acked, remaining) = (set.batch_size() - set.remaining(), set.remaining());
                if batch_size == 0 {
                    // Of unknown size: what is acknowledged may all lie behind the last bit that is set.
                    acked = acked.max(1);
                }
                if acked > 0 && remaining > 0 {
                    self.state.above_mut().batches.insert(pos, set);
                }
                (acked, remaining)
            }
        };
        if remaining == 0 {
            self.complete(list, pos);
            return AckOutcome { entry_completed: true, messages_acked, ..AckOutcome::default() };
        }
        if messages_acked > 0 {
            self.changes.any = true;
            self.changes.batches.insert(pos);
        }
        AckOutcome { messages_acked, already: messages_acked == 0, ..AckOutcome::default() }
    }

    /// Marks an existing entry above the mark-delete position.
    fn complete(&mut self, list: &LedgerList, pos: Position) {
        self.changes.any = true;
        if list.next_after(self.mark_delete()) == Some(pos) {
            self.advance_to(list, pos);
            return;
        }
        let entry = entry_bit(pos).expect("the caller checked it");
        self.state.above_mut().insert(pos.ledger_id, entry);
        self.changes.acked.entry(pos.ledger_id).or_default().insert(entry);
    }

    /// Moves the mark to an existing entry (or a normalized mark) and over all that is acknowledged behind it.
    fn advance_to(&mut self, list: &LedgerList, pos: Position) {
        let mut mark = pos;
        if let Some(above) = self.state.above() {
            while let Some(next) = list.next_after(mark) {
                let run = entry_bit(next).and_then(|entry| run_end(above.acked.get(&next.ledger_id)?, entry));
                let Some(end) = run else { break };
                mark = Position { ledger_id: next.ledger_id, entry_id: i64::from(end) };
            }
        }
        self.state.set_mark(mark);
        self.changes.any = true;
    }

    /// Acknowledges everything before `pos`, and of `pos` itself what `kind` says. A position that no longer exists counts as
    /// the last entry before it; one that does not exist yet changes nothing (Pulsar: "Invalid mark deleted position").
    pub fn ack_cumulative(&mut self, list: &LedgerList, pos: Position, kind: AckKind<'_>) -> Advance {
        let start_of_empty_ledger = pos.entry_id < 0 && list.get(pos.ledger_id).is_some();
        if list.total_entries() == 0 || (pos > list.last_position() && !start_of_empty_ledger) {
            return Advance { unknown: true, ..Advance::default() };
        }
        let before = self.unacked_entries(list);
        let partial = match kind {
            AckKind::Batch { ack_set, batch_size } if list.contains(pos) => Some((ack_set, batch_size)),
            _ => None,
        };
        let target = if partial.is_some() { list.previous(pos) } else { list.floor(pos) };
        let mut already = true;
        if let Some(target) = target.filter(|&target| target > self.mark_delete()) {
            self.advance_to(list, target);
            already = false;
        }
        if let Some((ack_set, batch_size)) = partial {
            already &= self.ack(list, pos, AckKind::Batch { ack_set, batch_size }).already;
        }
        Advance { entries_acked: before.saturating_sub(self.unacked_entries(list)), already, unknown: false }
    }

    /// The first existing entry at or after `from` that is not (completely) acknowledged.
    pub fn next_unacked(&self, list: &LedgerList, from: Position) -> Option<Position> {
        let mut at =
            if from <= self.mark_delete() { list.next_after(self.mark_delete())? } else { list.ceiling(from)? };
        let Some(above) = self.state.above() else { return Some(at) };
        loop {
            let run = entry_bit(at).and_then(|entry| run_end(above.acked.get(&at.ledger_id)?, entry));
            let Some(end) = run else { return Some(at) };
            at = list.next_after(Position { entry_id: i64::from(end), ..at })?;
        }
    }

    /// The backlog: entries that exist and are not (completely) acknowledged.
    pub fn unacked_entries(&self, list: &LedgerList) -> u64 {
        // Saturates: a state that was read from disk may name entries that do not exist.
        list.entries_between(self.mark_delete(), list.last_position()).saturating_sub(self.acked_in(list))
    }

    /// Entries of the list that are acknowledged above the mark-delete position: all, unless ledgers were removed since.
    fn acked_in(&self, list: &LedgerList) -> u64 {
        let Some(above) = self.state.above() else { return 0 };
        let first = list.first_position().ledger_id;
        match above.acked.first_key_value() {
            Some((&ledger, _)) if ledger < first || list.is_empty() => {
                let kept = above.acked.iter().filter(|(ledger, _)| list.get(**ledger).is_some());
                kept.map(|(_, bitmap)| bitmap.len()).sum()
            }
            _ => above.entries,
        }
    }

    /// Runs of acknowledged entries above the mark-delete position. Takes time in proportion to them.
    pub fn holes(&self) -> u64 {
        let runs = |bitmap: &roaring::RoaringBitmap| {
            let mut iter = bitmap.iter();
            std::iter::from_fn(|| iter.next_range()).count() as u64
        };
        self.state.above().map_or(0, |above| above.acked.values().map(runs).sum())
    }

    /// Bytes held, about: the state and the changes that were not taken yet.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Changes>()
            + self.state.memory_bytes()
            + acked_bytes(&self.changes.acked)
            + self.changes.batches.len() * size_of::<Position>() * 2
    }

    /// Seek: delivery starts again at `pos` (clamped to what exists), all acknowledgements from there on are forgotten.
    /// What becomes durable is the position *before* it. Without any ledger the mark stays: it is at the end already.
    pub fn reset(&mut self, list: &LedgerList, pos: Position) {
        let mark = match list.previous(pos) {
            Some(previous) => previous,
            None if list.is_empty() => self.mark_delete(),
            None => list.before_first(),
        };
        self.state.clear(mark);
        self.changes = Changes { any: true, reset: true, ..Changes::default() };
    }

    /// Acknowledges the next `count` unacknowledged entries.
    pub fn skip(&mut self, list: &LedgerList, count: u64) -> Advance {
        let before = self.unacked_entries(list);
        let mut left = count;
        let mut target = None;
        let mut from = list.next_after(self.mark_delete());
        while let Some(start) = from.filter(|_| left > 0).and_then(|from| self.next_unacked(list, from)) {
            let take = self.gap_len(list, start).clamp(1, left);
            left -= take;
            let last = Position { entry_id: start.entry_id + (take - 1) as i64, ..start };
            target = Some(last);
            from = list.next_after(last);
        }
        if let Some(target) = target {
            self.advance_to(list, target);
        }
        let entries_acked = before.saturating_sub(self.unacked_entries(list));
        Advance { entries_acked, already: entries_acked == 0, unknown: false }
    }

    /// How many entries of its ledger, from `start` on, are unacknowledged without interruption.
    fn gap_len(&self, list: &LedgerList, start: Position) -> u64 {
        let end = list.get(start.ledger_id).map_or(0, |span| span.entries);
        let bitmap = self.state.above().and_then(|above| above.acked.get(&start.ledger_id));
        let next = bitmap.zip(entry_bit(start)).and_then(|(bitmap, entry)| {
            let mut iter = bitmap.iter();
            iter.advance_to(entry);
            iter.next().map(u64::from)
        });
        next.unwrap_or(end).min(end).saturating_sub(start.entry_id as u64)
    }

    /// Forgets acknowledgements in ledgers that were removed from the front of the list, and takes in what is contiguous now.
    /// Answers are right without it; it frees memory. Returns whether the mark-delete position moved.
    pub fn on_trimmed(&mut self, list: &LedgerList) -> bool {
        let Some(above) = self.state.above() else { return false };
        let first = list.before_first().ledger_id;
        let acked = above.acked.keys().copied();
        let batches = above.batches.keys().map(|pos| pos.ledger_id);
        let last_gone = acked.chain(batches).filter(|&ledger| list.is_empty() || ledger < first).max();
        let mark = match last_gone {
            Some(_) if !list.is_empty() => list.before_first(),
            Some(ledger_id) => Position { ledger_id, entry_id: i64::MAX - 1 },
            None if list.next_after(self.mark_delete()).is_some_and(|next| self.is_acked(next)) => self.mark_delete(),
            None => return false,
        };
        self.advance_to(list, mark);
        true
    }

    /// All changes since the last call; `None` if there are none.
    pub fn take_delta(&mut self) -> Option<CursorDelta> {
        if !self.changes.any {
            return None;
        }
        let changes = std::mem::take(&mut self.changes);
        let mark_delete = self.mark_delete();
        let mut acked = changes.acked;
        acked.retain(|&ledger, bitmap| {
            if ledger == mark_delete.ledger_id && mark_delete.entry_id >= 0 {
                bitmap.remove_range(..=u32::try_from(mark_delete.entry_id).unwrap_or(u32::MAX));
            }
            ledger >= mark_delete.ledger_id && !bitmap.is_empty()
        });
        let batches =
            changes.batches.into_iter().filter_map(|pos| Some((pos, self.batch_state(pos)?.clone()))).collect();
        Some(CursorDelta { reset: changes.reset, mark_delete, acked, batches })
    }

    /// Whether [`take_delta`](Self::take_delta) would return something.
    pub fn is_changed(&self) -> bool {
        self.changes.any
    }

    /// Follows a change that was made to another copy of this cursor.
    pub fn apply(&mut self, delta: &CursorDelta) {
        self.state.apply(delta);
    }

    pub fn snapshot(&self) -> CursorSnapshot {
        self.state.clone()
    }
}
