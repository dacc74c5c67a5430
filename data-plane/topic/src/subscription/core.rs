//! What all dispatchers share: the cursor, the consumers, where reading has got to, who holds what.

use std::collections::VecDeque;
use std::sync::Arc;

use geminga_ledger::cursor::Cursor;
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;
use rustc_hash::FxHashMap;

use super::consumers::{Consumers, Slot};
use super::feed::Feed;
use super::spec::{Event, SubscriptionOptions};
use crate::delayed::DelayedIndex;
use crate::entry::{BlockReason, Delivery, DispatchWait, Entry};
use crate::unacked::{ALWAYS, Charge, table_bytes};

/// An entry that a consumer holds (Shared and Key_Shared).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub slot: Slot,
    /// Messages of it that are not acknowledged.
    pub messages: u32,
    /// Messages in the entry.
    pub batch_size: u32,
    /// Slot of its key; 0 for Shared.
    pub hash: u16,
}

/// Room that an empty map of what consumers hold may keep while there is memory.
const KEPT_ROOM: usize = 16 << 10;
/// What a dispatcher has put aside is charged in steps of so many bytes.
const ASIDE_STEP: usize = 4 << 10;

/// Totals since the subscription was loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub messages_out: u64,
    pub bytes_out: u64,
    pub entries_out: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub last_consumed_at: u64,
    pub last_acked_at: u64,
    pub last_flow_at: u64,
    pub active_changed_at: u64,
    /// When the mark-delete position last moved.
    pub mark_delete_moved_at: u64,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub name: Arc<str>,
    pub options: SubscriptionOptions,
    pub cursor: Cursor,
    pub consumers: Consumers,
    pub feed: Feed,
    pub pending: FxHashMap<Position, Pending>,
    /// That one call of the dispatcher may hand out.
    pub max_messages: u64,
    /// Sum of the consumers' unacknowledged messages.
    pub unacked: u64,
    /// How often an entry was sent in vain. Only Shared and Key_Shared count.
    pub redeliveries: FxHashMap<Position, u32>,
    pub delayed: DelayedIndex,
    pub charge: Charge,
    /// Whether no more memory is to be had for what consumers hold.
    pub scarce: bool,
    /// Entries handed out and come back since the charge was last looked at.
    changes: usize,
    /// Bytes of what the dispatcher has put aside.
    aside: usize,
    pub events: VecDeque<Event>,
    pub terminated: bool,
    pub totals: Totals,
    /// The latest time that a call brought, in milliseconds since the epoch.
    pub now: u64,
}

impl Core {
    pub fn new(name: Arc<str>, cursor: Cursor, options: SubscriptionOptions) -> Self {
        Core {
            name,
            feed: Feed::new(cursor.mark_delete()),
            delayed: DelayedIndex::new(options.delayed_budget.clone()),
            charge: Charge::new(options.unacked_budget.clone()),
            scarce: false,
            changes: 0,
            aside: 0,
            options,
            cursor,
            consumers: Consumers::default(),
            pending: FxHashMap::default(),
            max_messages: u64::MAX,
            unacked: 0,
            redeliveries: FxHashMap::default(),
            events: VecDeque::new(),
            terminated: false,
            totals: Totals::default(),
            now: 0,
        }
    }

    /// Delivery starts again at the first unacknowledged entry; nobody holds anything.
    pub fn start_over(&mut self) {
        self.feed.reset(self.cursor.mark_delete());
        self.pending = FxHashMap::default();
        self.unacked = 0;
        self.redeliveries = FxHashMap::default();
        self.delayed.clear();
        self.aside = 0;
        self.settle();
        for consumer in self.consumers.iter_mut() {
            consumer.unacked = 0;
            consumer.pending_entries = 0;
        }
    }

    /// Whether an entry that was put aside is still to be delivered.
    pub fn is_wanted(&self, list: &LedgerList, position: Position) -> bool {
        !self.cursor.is_acked(position) && list.contains(position)
    }

    /// Acknowledges a marker instead of delivering it.
    pub fn swallow_marker(&mut self, list: &LedgerList, entry: &Entry) -> bool {
        if entry.meta.flags.is_marker {
            self.cursor.ack(list, entry.position, geminga_ledger::cursor::AckKind::Entry);
        }
        entry.meta.flags.is_marker
    }

    /// Hands an entry to a consumer. With `hash` it is tracked until it is acknowledged.
    pub fn deliver(&mut self, now: u64, slot: Slot, entry: Entry, hash: Option<u16>, out: &mut Vec<Delivery>) {
        let batch_size = entry.meta.num_messages.max(1);
        let ack_set = if entry.meta.is_batch() { self.cursor.remaining_set(entry.position) } else { None };
        let messages = match &ack_set {
            Some(words) => words.iter().map(|word| word.count_ones()).sum::<u32>().min(batch_size),
            None => batch_size,
        };
        let bytes = entry.data.len() as u64;
        let redelivery_count =
            if self.redeliveries.is_empty() { 0 } else { self.redeliveries.get(&entry.position).copied().unwrap_or(0) };
        let consumer = &mut self.consumers[slot];
        let (key, epoch) = (consumer.spec.key, consumer.epoch);
        consumer.delivered += u64::from(messages);
        consumer.entries_out += 1;
        consumer.bytes_out += bytes;
        consumer.chunks_out += u64::from(entry.meta.num_chunks > 1);
        consumer.last_consumed_at = now;
        if consumer.first_sent_at == 0 {
            consumer.first_sent_at = now;
        }
        self.totals.messages_out += u64::from(messages);
        self.totals.entries_out += 1;
        self.totals.bytes_out += bytes;
        self.totals.last_consumed_at = now;
        if let Some(hash) = hash {
            consumer.unacked += u64::from(messages);
            consumer.pending_entries += 1;
            self.unacked += u64::from(messages);
            self.pending.insert(entry.position, Pending { slot, messages, batch_size, hash });
            self.changed();
        }
        out.push(Delivery {
            consumer: key,
            redelivery_count,
            ack_set: ack_set.map(Vec::into_boxed_slice),
            consumer_epoch: if hash.is_none() { epoch } else { None },
            entry,
        });
    }

    /// A consumer does not hold this entry any more.
    pub fn release(&mut self, position: Position) -> Option<Pending> {
        let pending = self.pending.remove(&position)?;
        let consumer = &mut self.consumers[pending.slot];
        consumer.unacked -= u64::from(pending.messages);
        consumer.pending_entries -= 1;
        self.unacked -= u64::from(pending.messages);
        self.changed();
        Some(pending)
    }

    /// Messages of an entry that a consumer holds were acknowledged, but not all.
    pub fn release_part(&mut self, position: Position, messages: u32) {
        if let Some(pending) = self.pending.get_mut(&position) {
            let messages = messages.min(pending.messages);
            pending.messages -= messages;
            self.consumers[pending.slot].unacked -= u64::from(messages);
            self.unacked -= u64::from(messages);
        }
    }

    /// Sent in vain: counts it.
    pub fn count_redelivery(&mut self, position: Position, pending: &Pending) {
        *self.redeliveries.entry(position).or_default() += 1;
        self.totals.redelivered += u64::from(pending.messages);
        if let Some(consumer) = self.consumers.get_mut(pending.slot) {
            consumer.redelivered += u64::from(pending.messages);
        }
    }

    pub fn at_unacked_limit(&self) -> bool {
        let max = self.options.max_unacked_per_subscription;
        max > 0 && self.unacked >= u64::from(max)
    }

    /// Whether nobody may hold more entries, though they may have permits.
    pub fn is_full(&self) -> bool {
        self.at_unacked_limit() || self.at_memory_limit()
    }

    /// Room that is there may be used.
    pub fn at_memory_limit(&self) -> bool {
        self.scarce && self.pending.len() >= self.pending.capacity().max(ALWAYS)
    }

    /// The dispatcher has put aside so many bytes.
    pub fn note_aside(&mut self, bytes: usize) {
        if self.scarce || bytes.abs_diff(self.aside) >= ASIDE_STEP {
            self.aside = bytes;
            self.settle();
        }
    }

    fn changed(&mut self) {
        self.changes += 1;
        if self.changes >= ALWAYS {
            self.settle();
        }
    }

    /// Gives back what is empty, charges what is there, and sees whether it may become more.
    pub fn settle(&mut self) {
        self.changes = 0;
        let kept = if self.scarce { 0 } else { KEPT_ROOM };
        shrink(&mut self.pending, kept);
        shrink(&mut self.redeliveries, kept);
        let room = self.pending.capacity();
        let held = table_bytes::<(Position, Pending)>(room);
        let counts = table_bytes::<(Position, u32)>(self.redeliveries.capacity());
        self.charge.set(held + counts + self.aside);
        // A table grows by its own size.
        let growth = if self.pending.len() + ALWAYS > room { held } else { 0 };
        self.scarce = !self.charge.has_room(growth);
    }

    pub fn is_available(&self, slot: Slot) -> bool {
        self.consumers[slot].is_available(self.options.max_unacked_per_consumer)
    }

    /// Permits of the consumers that can take entries now.
    pub fn available_permits(&self) -> i64 {
        let max = self.options.max_unacked_per_consumer;
        self.consumers.iter().filter(|(_, c)| c.is_available(max)).map(|(_, c)| c.permits()).sum()
    }

    /// Why no consumer can take an entry.
    pub fn why_unavailable(&self) -> DispatchWait {
        if self.consumers.is_empty() {
            return DispatchWait::NoConsumers;
        }
        if self.at_unacked_limit() {
            return DispatchWait::Blocked(BlockReason::SubscriptionUnacked);
        }
        if self.at_memory_limit() && self.available_permits() > 0 {
            return DispatchWait::Blocked(BlockReason::Memory);
        }
        let max = self.options.max_unacked_per_consumer;
        let mut wait = DispatchWait::NoPermits;
        for (_, consumer) in self.consumers.iter().filter(|(_, consumer)| consumer.permits() > 0) {
            if !consumer.at_unacked_limit(max) {
                return DispatchWait::Blocked(BlockReason::NotWritable);
            }
            wait = DispatchWait::Blocked(BlockReason::ConsumersUnacked);
        }
        wait
    }

    /// Tells consumers that nothing will come any more, each once.
    pub fn tell_end_of_topic(&mut self, list: &LedgerList) {
        if !self.terminated || self.cursor.unacked_entries(list) > 0 {
            return;
        }
        for consumer in self.consumers.iter_mut().filter(|consumer| !consumer.told_end) {
            consumer.told_end = true;
            self.events.push_back(Event::EndOfTopic { consumer: consumer.spec.key });
        }
    }
}

/// Gives back most of a table that is almost empty.
fn shrink<V>(table: &mut FxHashMap<Position, V>, kept: usize) {
    if table.capacity() > kept && table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}
