//! Shared: entries go round robin to the consumers that have permits, those of the highest priority first.

use std::collections::{BTreeMap, BTreeSet};

use geminga_model::Position;
use rustc_hash::FxHashMap;

use super::{Budget, MAX_MISSING, ReadTurns};
use crate::entry::{BlockReason, Delivery, DispatchWait, Entry, EntryReader, Ready};
use crate::planted::{Bug, is_planted};
use crate::subscription::consumers::Slot;
use crate::subscription::core::Core;

/// Bytes of a position in the tree, with its share of the nodes.
const POSITION_BYTES: usize = size_of::<Position>() * 3 / 2;

#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Entries to deliver again, and delayed ones whose time has come.
    replay: BTreeSet<Position>,
    /// Chunks whose consumer, the one that has the others of the message, could not take them.
    waiting_chunks: BTreeMap<Slot, BTreeSet<Position>>,
    turn: Turn,
    chunks: ChunkOwners,
    reads: ReadTurns,
}

/// Whose turn it is: an index into the order of the consumers.
#[derive(Debug)]
struct Turn {
    index: usize,
    /// Messages left in this turn.
    left: u32,
}

impl Default for Turn {
    fn default() -> Self {
        Turn { index: usize::MAX, left: 0 }
    }
}

/// Which consumer gets the other chunks of a message.
#[derive(Debug, Default)]
struct ChunkOwners {
    by_uuid: FxHashMap<u64, (Slot, Position)>,
    prune_at: usize,
}

impl Shared {
    pub fn start_over(&mut self) {
        self.replay.clear();
        self.waiting_chunks.clear();
        self.chunks = ChunkOwners::default();
    }

    /// Entries that were read and wait.
    pub fn waiting(&self) -> usize {
        self.replay.len() + self.waiting_chunks.values().map(BTreeSet::len).sum::<usize>()
    }

    pub fn bytes_aside(&self) -> usize {
        self.waiting() * POSITION_BYTES
    }

    /// Whether an entry is to be delivered again as soon as somebody can take it.
    pub fn awaits(&self, position: Position) -> bool {
        self.replay.contains(&position)
    }

    pub fn put_back(&mut self, position: Position) {
        self.replay.insert(position);
    }

    pub fn removed(&mut self, slot: Slot) {
        self.turn = Turn::default();
        self.chunks.by_uuid.retain(|_, (owner, _)| *owner != slot);
        if let Some(chunks) = self.waiting_chunks.remove(&slot) {
            self.replay.extend(chunks);
        }
    }

    pub fn dispatch(
        &mut self,
        core: &mut Core,
        now: u64,
        reader: &mut dyn EntryReader,
        max_bytes: usize,
        out: &mut Vec<Delivery>,
    ) -> DispatchWait {
        while let Some((position, _)) = core.delayed.pop_due(now) {
            self.replay.insert(position);
        }
        if let Some(from) = core.delayed.take_forgotten(now) {
            core.feed.go_back(from);
        }
        self.recall_chunks(core);
        self.turn.end();
        let mut budget = Budget::new(max_bytes, core.max_messages);
        let missing = self.dispatch_replays(core, now, reader, &mut budget, out);
        if !missing.is_empty() && !reader.single_reads_fail() {
            self.turn.end();
            return DispatchWait::NeedEntries(missing);
        }
        let wait = self.dispatch_new(core, now, reader, &mut budget, out);
        self.turn.end();
        self.reads.choose(missing, wait)
    }

    /// Chunks go out when their consumer can take some again.
    fn recall_chunks(&mut self, core: &Core) {
        let replay = &mut self.replay;
        self.waiting_chunks.retain(|&slot, chunks| {
            let permits = if core.is_available(slot) { core.consumers[slot].permits() } else { 0 };
            replay.extend((0..permits).map_while(|_| chunks.pop_first()));
            !chunks.is_empty()
        });
    }

    /// Hands out what comes again, in order and before anything new, as Pulsar does: who joins gets what another consumer held
    /// before what nobody had. Returns the entries that must be read first.
    fn dispatch_replays(
        &mut self,
        core: &mut Core,
        now: u64,
        reader: &mut dyn EntryReader,
        budget: &mut Budget,
        out: &mut Vec<Delivery>,
    ) -> Vec<Position> {
        let mut missing = Vec::new();
        let in_order = !reader.single_reads_fail();
        // Looked at behind one that is missing: they wait for it, whether they have to be read or not.
        let mut behind = 0;
        let mut from = Position::EARLIEST;
        while let Some(&position) = self.replay.range(from..).next() {
            if budget.is_spent() || missing.len() >= MAX_MISSING {
                break;
            }
            from = position.next();
            if !core.is_wanted(reader.ledgers(), position) {
                self.replay.remove(&position);
                core.redeliveries.remove(&position);
                reader.forget(position);
                continue;
            }
            let Some(slot) = self.turn.pick(core) else { break };
            if in_order && !missing.is_empty() {
                behind += 1;
                if behind >= MAX_MISSING {
                    break;
                }
                if !reader.has(position) {
                    missing.push(position);
                }
                continue;
            }
            let Some(entry) = reader.get(position) else {
                missing.push(position);
                continue;
            };
            budget.spend(&entry);
            self.replay.remove(&position);
            self.hand_out(core, now, slot, entry, out);
        }
        missing
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
            if self.turn.pick(core).is_none() {
                return core.why_unavailable();
            }
            if budget.is_spent() {
                return DispatchWait::MoreWork;
            }
            if self.bytes_aside() > core.options.look_ahead_bytes {
                return DispatchWait::Blocked(BlockReason::LookAheadFull);
            }
            let max_entries = core.feed.entries_for(core.available_permits());
            match core.feed.fill(&core.cursor, reader, max_entries, budget.left()) {
                Ready::Entries => {}
                Ready::NeedRead(from) => return DispatchWait::NeedRead { from, max_entries },
                Ready::CaughtUp => {
                    core.tell_end_of_topic(reader.ledgers());
                    return core.delayed.next_due().map_or(DispatchWait::CaughtUp, DispatchWait::Timer);
                }
            }
            while !budget.is_spent() {
                let Some(slot) = self.turn.pick(core) else { break };
                let Some(entry) = core.feed.pop() else { break };
                budget.spend(&entry);
                self.place(core, now, slot, entry, reader, out);
            }
        }
    }

    /// Decides on an entry that was just read; `slot` has the turn.
    fn place(
        &mut self,
        core: &mut Core,
        now: u64,
        slot: Slot,
        entry: Entry,
        reader: &dyn EntryReader,
        out: &mut Vec<Delivery>,
    ) {
        let position = entry.position;
        if core.cursor.is_acked(position) || core.swallow_marker(reader.ledgers(), &entry) {
            if is_planted(Bug::AckedTakesPermits) {
                core.consumers[slot].delivered += u64::from(entry.meta.num_messages);
            }
            return;
        }
        if core.feed.is_behind_frontier(position)
            && (core.pending.contains_key(&position)
                || self.replay.contains(&position)
                || self.waiting_chunks.values().any(|chunks| chunks.contains(&position)))
        {
            return;
        }
        if core.options.delayed_delivery && entry.meta.deliver_at > now {
            core.delayed.add(entry.meta.deliver_at, position, 0);
            return;
        }
        self.hand_out(core, now, slot, entry, out);
    }

    /// The consumer for an entry that is not stored; the turn moves on with each.
    pub fn choose(&mut self, core: &Core, entry: &Entry) -> Option<Slot> {
        self.turn.end();
        let turn = self.turn.pick(core)?;
        self.chunks.owner(core, entry, turn).ok()
    }

    /// To the consumer with the turn, or to the one that has the other chunks of the message.
    fn hand_out(&mut self, core: &mut Core, now: u64, turn: Slot, entry: Entry, out: &mut Vec<Delivery>) {
        match self.chunks.owner(core, &entry, turn) {
            Ok(owner) => {
                self.turn.left = self.turn.left.saturating_sub(entry.meta.num_messages.max(1));
                core.deliver(now, owner, entry, Some(0), out);
            }
            Err(owner) => {
                self.waiting_chunks.entry(owner).or_default().insert(entry.position);
            }
        }
    }
}

impl Turn {
    /// The next pick moves on.
    fn end(&mut self) {
        self.left = 0;
    }

    /// The consumer whose turn it is; `None` if none can take an entry.
    fn pick(&mut self, core: &Core) -> Option<Slot> {
        if core.is_full() {
            return None;
        }
        let order = core.consumers.order();
        if self.left > 0
            && let Some(&slot) = order.get(self.index)
            && core.is_available(slot)
        {
            return Some(slot);
        }
        let mut level_start = 0;
        while level_start < order.len() {
            let priority = core.consumers[order[level_start]].spec.priority;
            let size =
                order[level_start..].iter().take_while(|&&s| core.consumers[s].spec.priority == priority).count();
            let level = level_start..level_start + size;
            let after = if level.contains(&self.index) { self.index + 1 - level_start } else { 0 };
            let next = (0..size).map(|i| level_start + (after + i) % size).find(|&i| core.is_available(order[i]));
            if let Some(index) = next {
                *self = Turn { index, left: core.options.round_robin_batch.max(1) };
                return Some(order[index]);
            }
            level_start = level.end;
        }
        None
    }
}

impl ChunkOwners {
    /// Who gets an entry: the consumer with the turn, or for a chunk the one that has the others. `Err` if that one cannot
    /// take it now.
    fn owner(&mut self, core: &Core, entry: &Entry, turn: Slot) -> Result<Slot, Slot> {
        let meta = &entry.meta;
        if meta.num_chunks <= 1 || meta.chunk_uuid_hash == 0 {
            return Ok(turn);
        }
        let slot = match self.by_uuid.get(&meta.chunk_uuid_hash) {
            Some(&(slot, _)) => slot,
            None => turn,
        };
        if !core.is_available(slot) {
            return Err(slot);
        }
        if meta.chunk_id + 1 >= meta.num_chunks {
            self.by_uuid.remove(&meta.chunk_uuid_hash);
        } else {
            self.by_uuid.insert(meta.chunk_uuid_hash, (slot, entry.position));
            if self.by_uuid.len() > self.prune_at.max(64) {
                // Messages whose last chunk never came: once what was sent of them is acknowledged, nobody waits.
                self.by_uuid.retain(|_, (_, last)| *last == entry.position || core.pending.contains_key(last));
                self.prune_at = self.by_uuid.len() * 2;
            }
        }
        Ok(slot)
    }
}
