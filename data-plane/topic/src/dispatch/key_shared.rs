//! Key_Shared: all entries of a key go to one consumer, in order.
//!
//! Keys are hashed to slots, slots belong to consumers (see [`Selector`]). When a slot moves to another consumer while
//! the previous one still holds entries of it, the slot is *draining* (Pulsar's PIP-379): entries of it wait until those
//! are acknowledged, given back, or their consumer is gone. Nothing else waits for that.
//!
//! An entry that cannot go out now waits by position: under its draining slot, or in the queue of the consumer it is for
//! (which has no permits, say). Reading goes on past it. What waits is bounded: each line may be as long as there is room
//! left altogether, so that a few consumers that never acknowledge cannot fill it. A line at its limit *overflows*: what
//! comes after for it is forgotten and read again when the line has moved up.
//!
//! Order per key holds because an entry is only handed out directly when its consumer's line is empty and has not
//! overflowed, and a draining slot's line joins its consumer's all at once.

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::Position;
use rustc_hash::FxHashMap;

use super::kept::KeptEntries;
use super::selector::{Assignment, Selector};
use super::{Budget, MAX_MISSING, ReadTurns};
use crate::entry::{Delivery, DispatchWait, Entry, EntryReader, Ready};
use crate::subscription::Mismatch;
use crate::subscription::consumers::Slot;
use crate::subscription::core::{Core, Pending};
use crate::unacked::table_bytes;

/// Bytes of a waiting position in a tree, with its share of the nodes.
const WAITING_BYTES: usize = size_of::<(Position, u16)>() * 3 / 2;

#[derive(Debug)]
pub(crate) struct KeyShared {
    pub selector: Selector,
    pub allow_out_of_order: bool,
    /// By consumer: entries that wait for its permits, or must be read again.
    queues: FxHashMap<Slot, BTreeMap<Position, u16>>,
    /// Entries in slots that no consumer has (sticky ranges with a gap).
    unassigned: BTreeMap<Position, u16>,
    /// Slots of which some consumer holds entries.
    pub held: FxHashMap<u16, Held>,
    /// All waiting entries.
    waiting: usize,
    /// From where on entries for a consumer were read and forgotten.
    overflow: FxHashMap<Slot, Position>,
    kept: KeptEntries,
    reads: ReadTurns,
}

/// Room that an empty map of slots that are held may keep.
const KEPT_HELD: usize = 1 << 10;

/// Stands for no consumer in `overflow`.
const NOBODY: Slot = Slot::MAX;

/// Pulsar's name of how slots are assigned.
fn mode_name(sticky: bool) -> &'static str {
    if sticky { "STICKY" } else { "AUTO_SPLIT" }
}

/// A slot of which a consumer holds entries.
#[derive(Debug)]
pub(crate) struct Held {
    pub holder: Slot,
    pub entries: u32,
    pub draining: Option<Box<Draining>>,
}

/// The slot belongs to another consumer than the one that holds its entries.
#[derive(Debug)]
pub(crate) struct Draining {
    pub since: u64,
    pub waiting: BTreeSet<Position>,
    /// How often an entry was put aside because of this.
    pub attempts: u64,
    /// From where on entries of the slot were read and forgotten.
    overflow: Option<Position>,
}

impl KeyShared {
    pub fn new(sticky: bool, allow_out_of_order: bool) -> Self {
        KeyShared {
            selector: if sticky { Selector::sticky() } else { Selector::auto_split() },
            allow_out_of_order,
            queues: FxHashMap::default(),
            unassigned: BTreeMap::new(),
            held: FxHashMap::default(),
            waiting: 0,
            overflow: FxHashMap::default(),
            kept: KeptEntries::default(),
            reads: ReadTurns::default(),
        }
    }

    pub fn mode(&self) -> &'static str {
        mode_name(self.selector.is_sticky())
    }

    /// What sets a consumer apart from those that are here.
    pub fn mismatch(&self, sticky: bool, allow_out_of_order: bool) -> Option<Mismatch> {
        match (self.allow_out_of_order, allow_out_of_order) {
            _ if self.selector.is_sticky() != sticky => {
                Some(Mismatch::KeySharedMode { active: self.mode(), joining: mode_name(sticky) })
            }
            (true, false) => Some(Mismatch::OutOfOrder),
            (false, true) => Some(Mismatch::Ordered),
            _ => None,
        }
    }

    pub fn start_over(&mut self) {
        self.queues.clear();
        self.unassigned.clear();
        self.held.clear();
        self.waiting = 0;
        self.overflow.clear();
        self.kept = KeptEntries::default();
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// With the slots that consumers hold entries of, which become more as these do.
    pub fn bytes_aside(&self) -> usize {
        self.waiting * WAITING_BYTES + self.kept.bytes() + table_bytes::<(u16, Held)>(self.held.capacity())
    }

    pub fn waiting_for(&self, slot: Slot) -> usize {
        self.queues.get(&slot).map_or(0, BTreeMap::len)
    }

    pub fn unassigned(&self) -> usize {
        self.unassigned.len()
    }

    pub fn overflow_of(&self, slot: Slot) -> Option<Position> {
        self.overflow.get(&slot).copied()
    }

    /// Slots change hands: which are draining, and who waits where, is derived anew.
    pub fn reassign(&mut self, now: u64, change: impl FnOnce(&mut Selector)) {
        let before = if self.overflow.is_empty() { Vec::new() } else { self.selector.assignments().to_vec() };
        change(&mut self.selector);
        let overflow_before = self.carry_overflow(&before);
        let mut moved: Vec<(Position, u16)> = std::mem::take(&mut self.unassigned).into_iter().collect();
        moved.extend(self.queues.drain().flat_map(|(_, queue)| queue));
        let (selector, ordered) = (&self.selector, !self.allow_out_of_order);
        for (&hash, held) in &mut self.held {
            let target = selector.select(hash);
            let moves = ordered && target != Some(held.holder);
            match (&held.draining, moves) {
                (None, true) => {
                    let overflow = overflow_before.get(&held.holder).copied();
                    let draining = Draining { since: now, waiting: BTreeSet::new(), attempts: 0, overflow };
                    held.draining = Some(Box::new(draining));
                }
                (Some(_), false) => {
                    let back = held.draining.take().expect("it is draining");
                    moved.extend(back.waiting.into_iter().map(|position| (position, hash)));
                    if let Some(from) = back.overflow {
                        note_overflow(&mut self.overflow, target.unwrap_or(NOBODY), from);
                    }
                }
                _ => {}
            }
        }
        self.waiting -= moved.len();
        for (position, hash) in moved {
            self.put_aside(position, hash);
        }
    }

    /// What was forgotten for a consumer is now missing to all that got slots of it. Returns what there was before.
    fn carry_overflow(&mut self, before: &[Assignment]) -> FxHashMap<Slot, Position> {
        if self.overflow.is_empty() {
            return FxHashMap::default();
        }
        let old = std::mem::take(&mut self.overflow);
        let old_from = |slot: Slot| old.get(&slot).copied();
        let mut at = 0;
        for new in self.selector.assignments() {
            while before.get(at).is_some_and(|b| b.end < new.start) {
                at += 1;
            }
            // A stretch that nobody had before may hide what was forgotten for nobody.
            let covered = before.get(at).is_some_and(|b| b.start <= new.start && new.end <= b.end);
            if let Some(from) = old_from(NOBODY).filter(|_| !covered) {
                note_overflow(&mut self.overflow, new.slot, from);
            }
            for overlapping in before[at..].iter().take_while(|b| b.start <= new.end) {
                if let Some(from) = old_from(overlapping.slot) {
                    note_overflow(&mut self.overflow, new.slot, from);
                }
            }
        }
        if self.selector.is_sticky() {
            old.values().for_each(|&from| note_overflow(&mut self.overflow, NOBODY, from));
        }
        old
    }

    /// Keeps an entry in mind until it can go out.
    pub fn put_aside(&mut self, position: Position, hash: u16) {
        let draining = self.held.get_mut(&hash).and_then(|held| held.draining.as_mut());
        let new = match (draining, self.selector.select(hash)) {
            (Some(draining), _) => {
                draining.attempts += 1;
                draining.waiting.insert(position)
            }
            (None, Some(slot)) => self.queues.entry(slot).or_default().insert(position, hash).is_none(),
            (None, None) => self.unassigned.insert(position, hash).is_none(),
        };
        self.waiting += usize::from(new);
    }

    /// Whether an entry waits until its consumer can take it.
    pub fn awaits(&self, entry: &Entry) -> bool {
        self.is_waiting(entry.position, self.selector.hash_slot(entry.meta.sticky_key_hash))
    }

    fn is_waiting(&self, position: Position, hash: u16) -> bool {
        if let Some(draining) = self.held.get(&hash).and_then(|held| held.draining.as_ref()) {
            return draining.waiting.contains(&position);
        }
        match self.selector.select(hash) {
            Some(slot) => self.queues.get(&slot).is_some_and(|queue| queue.contains_key(&position)),
            None => self.unassigned.contains_key(&position),
        }
    }

    /// A consumer does not hold an entry any more. Returns the consumer whose slot is drained by that.
    pub fn released(&mut self, pending: &Pending) -> Option<Slot> {
        let held = self.held.get_mut(&pending.hash)?;
        held.entries -= 1;
        if held.entries > 0 {
            return None;
        }
        let held = self.held.remove(&pending.hash)?;
        if self.held.is_empty() {
            self.held.shrink_to(KEPT_HELD);
        }
        let draining = held.draining?;
        if let Some(from) = draining.overflow {
            note_overflow(&mut self.overflow, self.selector.select(pending.hash).unwrap_or(NOBODY), from);
        }
        self.waiting -= draining.waiting.len();
        for position in draining.waiting {
            self.put_aside(position, pending.hash);
        }
        Some(held.holder)
    }

    pub fn dispatch(
        &mut self,
        core: &mut Core,
        now: u64,
        reader: &mut dyn EntryReader,
        max_bytes: usize,
        out: &mut Vec<Delivery>,
    ) -> DispatchWait {
        while let Some((position, hash)) = core.delayed.pop_due(now) {
            self.put_aside(position, hash);
        }
        if let Some(from) = core.delayed.take_forgotten(now) {
            core.feed.go_back(from);
        }
        if core.scarce {
            self.kept = KeptEntries::default();
        }
        let mut budget = Budget::new(max_bytes, core.max_messages);
        let missing = self.dispatch_queues(core, now, reader, &mut budget, out);
        self.recall_overflow(core);
        let wait = self.dispatch_new(core, now, reader, &mut budget, out);
        self.reads.choose(missing, wait)
    }

    /// Hands out what waits for consumers that can take it. Returns the entries that must be read first.
    fn dispatch_queues(
        &mut self,
        core: &mut Core,
        now: u64,
        reader: &mut dyn EntryReader,
        budget: &mut Budget,
        out: &mut Vec<Delivery>,
    ) -> Vec<Position> {
        let mut missing = Vec::new();
        if self.queues.is_empty() {
            return missing;
        }
        for index in 0..core.consumers.len() {
            let slot = core.consumers.order()[index];
            if !core.is_available(slot) || missing.len() >= 10 * MAX_MISSING {
                continue;
            }
            let Some(mut queue) = self.queues.remove(&slot) else { continue };
            self.dispatch_queue(core, now, slot, &mut queue, reader, budget, out, &mut missing);
            if !queue.is_empty() {
                self.queues.insert(slot, queue);
            }
        }
        missing
    }

    #[expect(clippy::too_many_arguments, reason = "one step of the dispatch, with all of its state")]
    fn dispatch_queue(
        &mut self,
        core: &mut Core,
        now: u64,
        slot: Slot,
        queue: &mut BTreeMap<Position, u16>,
        reader: &mut dyn EntryReader,
        budget: &mut Budget,
        out: &mut Vec<Delivery>,
        missing: &mut Vec<Position>,
    ) {
        // Slots of which an earlier entry must be read first; the others of this consumer go on.
        let mut stuck: Vec<u16> = Vec::new();
        let mut from = Position::EARLIEST;
        let mut permits = core.consumers[slot].permits();
        while permits > 0 && !budget.is_spent() && core.is_available(slot) && !core.is_full() {
            let Some((&position, &hash)) = queue.range(from..).next() else { break };
            from = position.next();
            if !core.is_wanted(reader.ledgers(), position) {
                queue.remove(&position);
                self.kept.take(position);
                core.redeliveries.remove(&position);
                reader.forget(position);
                self.waiting -= 1;
                continue;
            }
            let entry = match stuck.contains(&hash) {
                true => None,
                false => self.kept.take(position).or_else(|| reader.get(position)),
            };
            match entry {
                Some(entry) => {
                    queue.remove(&position);
                    self.waiting -= 1;
                    budget.spend(&entry);
                    self.hand_over(core, now, slot, entry, hash, out);
                    permits = permits.min(core.consumers[slot].permits());
                }
                None => {
                    missing.push(position);
                    stuck.push(hash);
                    permits -= 1;
                    if stuck.len() >= MAX_MISSING {
                        break;
                    }
                }
            }
        }
    }

    /// Goes back for what was forgotten for a consumer, once its line is gone and it could take it.
    fn recall_overflow(&mut self, core: &mut Core) {
        if self.overflow.is_empty() {
            return;
        }
        let mut to = None;
        self.overflow.retain(|&slot, &mut from| {
            let recall = slot != NOBODY && core.is_available(slot) && !self.queues.contains_key(&slot);
            if recall {
                to = Some(to.map_or(from, |to: Position| to.min(from)));
            }
            !recall
        });
        if let Some(to) = to {
            core.feed.go_back(to);
        }
    }

    fn dispatch_new(
        &mut self,
        core: &mut Core,
        now: u64,
        reader: &mut dyn EntryReader,
        budget: &mut Budget,
        out: &mut Vec<Delivery>,
    ) -> DispatchWait {
        loop {
            let permits = core.available_permits();
            if permits <= 0 || core.is_full() {
                return core.why_unavailable();
            }
            if budget.is_spent() {
                return DispatchWait::MoreWork;
            }
            let max_entries = core.feed.entries_for(permits);
            match core.feed.fill(&core.cursor, reader, max_entries, budget.left()) {
                Ready::Entries => {}
                Ready::NeedRead(from) => return DispatchWait::NeedRead { from, max_entries },
                Ready::CaughtUp => {
                    core.tell_end_of_topic(reader.ledgers());
                    return core.delayed.next_due().map_or(DispatchWait::CaughtUp, DispatchWait::Timer);
                }
            }
            while !budget.is_spent() && !core.is_full() {
                let Some(entry) = core.feed.pop() else { break };
                budget.spend(&entry);
                self.place(core, now, entry, reader, out);
            }
        }
    }

    /// Decides on an entry that was just read.
    fn place(&mut self, core: &mut Core, now: u64, entry: Entry, reader: &dyn EntryReader, out: &mut Vec<Delivery>) {
        let position = entry.position;
        if core.cursor.is_acked(position) || core.swallow_marker(reader.ledgers(), &entry) {
            return;
        }
        let hash = self.selector.hash_slot(entry.meta.sticky_key_hash);
        if core.feed.is_behind_frontier(position)
            && (core.pending.contains_key(&position) || self.is_waiting(position, hash))
        {
            return;
        }
        if core.options.delayed_delivery && entry.meta.deliver_at > now {
            core.delayed.add(entry.meta.deliver_at, position, hash);
            return;
        }
        let look_ahead = if core.scarce { 0 } else { core.options.look_ahead_bytes };
        let room = (look_ahead / WAITING_BYTES).saturating_sub(self.waiting);
        let draining = self.held.get_mut(&hash).and_then(|held| held.draining.as_mut());
        let length = match draining {
            Some(draining) => {
                if draining.overflow.is_some() || draining.waiting.len() >= room {
                    draining.overflow = Some(draining.overflow.map_or(position, |from| from.min(position)));
                    return;
                }
                draining.waiting.len()
            }
            None => {
                let target = self.selector.select(hash);
                let overflowed = self.overflow.contains_key(&target.unwrap_or(NOBODY));
                let length = match target {
                    Some(slot) => self.waiting_for(slot),
                    None => self.unassigned.len(),
                };
                if let Some(slot) = target
                    && length == 0
                    && !overflowed
                    && core.is_available(slot)
                {
                    self.hand_over(core, now, slot, entry, hash, out);
                    return;
                }
                if overflowed || length >= room {
                    note_overflow(&mut self.overflow, target.unwrap_or(NOBODY), position);
                    return;
                }
                length
            }
        };
        self.put_aside(position, hash);
        self.kept.keep(entry, length);
        core.note_aside(self.bytes_aside());
    }

    fn hand_over(&mut self, core: &mut Core, now: u64, slot: Slot, entry: Entry, hash: u16, out: &mut Vec<Delivery>) {
        let held = self.held.entry(hash).or_insert(Held { holder: slot, entries: 0, draining: None });
        held.entries += 1;
        held.holder = slot;
        core.deliver(now, slot, entry, Some(hash), out);
    }

    /// Panics when what is derived does not agree with what it is derived from.
    pub fn check_invariants(&self, core: &Core) {
        let mut held: FxHashMap<u16, (Slot, u32)> = FxHashMap::default();
        for pending in core.pending.values() {
            let entry = held.entry(pending.hash).or_insert((pending.slot, 0));
            entry.1 += 1;
            assert!(
                self.allow_out_of_order || entry.0 == pending.slot,
                "slot {} is held by two consumers",
                pending.hash
            );
        }
        assert_eq!(held.len(), self.held.len(), "slots held");
        let mut waiting = self.unassigned.len() + self.queues.values().map(BTreeMap::len).sum::<usize>();
        for (hash, state) in &self.held {
            assert_eq!(held[hash].1, state.entries, "entries held of slot {hash}");
            if !self.allow_out_of_order {
                let moved = self.selector.select(*hash) != Some(state.holder);
                assert_eq!(state.draining.is_some(), moved, "slot {hash} is draining if it moved");
            }
            waiting += state.draining.as_ref().map_or(0, |draining| draining.waiting.len());
        }
        assert_eq!(waiting, self.waiting, "entries waiting");
        for (&slot, queue) in &self.queues {
            assert!(!queue.is_empty(), "empty queues are removed");
            for (position, &hash) in queue {
                assert_eq!(self.selector.select(hash), Some(slot), "{position} waits for the consumer of its slot");
            }
        }
    }
}

fn note_overflow(overflow: &mut FxHashMap<Slot, Position>, slot: Slot, from: Position) {
    let noted = overflow.entry(slot).or_insert(from);
    *noted = from.min(*noted);
}
