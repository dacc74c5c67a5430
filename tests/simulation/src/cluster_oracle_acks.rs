//! What must be true of the acknowledgements of one subscription.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ledger::cursor::Cursor;
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;

use crate::ledger_oracle::positions;

/// An acknowledgement, or a reset to `target`, that an owner has taken in and that is not durable yet.
pub struct AckToken {
    pub topic: usize,
    pub sub: usize,
    pub ownership: u64,
    pub order: u64,
    pub target: Option<Position>,
    pub positions: Vec<Position>,
}

#[derive(Default)]
pub struct SubTruth {
    /// Durably acknowledged: every owner to come has to know it.
    durable: BTreeSet<Position>,
    /// Acknowledged by anybody since the last durable reset, with the number of the last time.
    applied: BTreeMap<Position, u64>,
    /// Resets by those who were the present owner then: number, target.
    resets: Vec<(u64, Position)>,
    /// What the present owner has found.
    found: BTreeSet<Position>,
}

impl SubTruth {
    pub fn durable_acks(&self) -> &BTreeSet<Position> {
        &self.durable
    }

    pub fn applied(&mut self, positions: &[Position], order: u64) {
        self.applied.extend(positions.iter().map(|position| (*position, order)));
    }

    pub fn reset(&mut self, target: Position, order: u64) {
        drop(self.durable.split_off(&target));
        self.resets.push((order, target));
    }

    /// Entries before it that nobody has reset since.
    pub fn durable(&mut self, token: &AckToken, positions: &[Position], is_deposed: bool) {
        if is_deposed {
            let is_superseded = self.resets.last().is_some_and(|(order, _)| *order > token.order);
            if token.target.is_none() && !is_superseded {
                let lost = positions.iter().find(|position| !self.found.contains(position));
                assert_eq!(lost, None, "its ack is confirmed by a deposed owner, and the next one has not found it");
            }
            return;
        }
        let is_reset =
            |position: &Position| self.resets.iter().any(|(order, target)| *order > token.order && target <= position);
        let kept: Vec<Position> = positions.iter().copied().filter(|position| !is_reset(position)).collect();
        self.durable.extend(kept);
        if let Some(target) = token.target {
            self.applied.retain(|position, order| *position < target || *order > token.order);
        }
    }

    /// The entry is trimmed; whether that is allowed.
    pub fn forget(&mut self, position: Position) -> bool {
        self.applied.remove(&position);
        self.found.remove(&position);
        self.durable.remove(&position)
    }

    pub fn loaded(&mut self, list: &LedgerList, cursor: &Cursor, ownership: u64, order: u64) {
        let mut found = BTreeSet::new();
        for position in positions(list) {
            let is_acked = cursor.is_acked(position);
            assert!(
                is_acked || !self.durable.contains(&position),
                "the ack of {position} is lost in ownership {ownership}"
            );
            assert!(
                !is_acked || self.applied.contains_key(&position),
                "{position} counts as acknowledged in ownership {ownership}, and nobody has acknowledged it"
            );
            if is_acked {
                found.insert(position);
            }
        }
        self.applied = found.iter().map(|position| (*position, order)).collect();
        self.durable = found.clone();
        self.found = found;
    }
}
