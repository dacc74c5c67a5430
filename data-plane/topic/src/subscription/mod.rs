//! A subscription: its cursor, its consumers, and the dispatcher between them.
//!
//! The type is that of the connected consumers; when the last one leaves, the next may bring another. What consumers hold is
//! not durable: with the last consumer gone, or after a restart, delivery starts at the first unacknowledged entry.
//!
//! Promises: every unacknowledged entry is handed out again until it is acknowledged, as long as consumers have permits; a
//! consumer's permits are what it was granted minus what it was sent; for Exclusive and Failover the order is that of the topic,
//! for Key_Shared that of the topic per key, each between two redeliveries.

pub(crate) mod consumers;
pub(crate) mod core;
pub(crate) mod feed;
mod offer;
mod spec;
mod stats;

use std::sync::Arc;

use geminga_ledger::cursor::{AckKind, Advance, Cursor, CursorDelta};
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;

use self::consumers::{Consumers, Slot};
use self::core::{Core, Pending};
pub(crate) use crate::dispatch::Dispatcher;
use crate::dispatch::key_shared::KeyShared;
use crate::dispatch::selector::Selector;
use crate::dispatch::shared::Shared;
use crate::dispatch::single_active::SingleActive;
use crate::entry::{Delivery, DispatchWait, Entry, EntryReader};
use crate::planted::{Bug, is_planted};

pub use spec::{
    AckError, AckRequest, AckSummary, ConsumerKey, ConsumerSpec, Event, IndividualAck, KeySharedMode, KeySharedSpec,
    Mismatch, SubscribeError, SubscriptionOptions, SubscriptionType,
};
pub use stats::{ConsumerStats, DrainingHashStats, SubscriptionStats};

/// See the module's head.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) core: Core,
    pub(crate) dispatcher: Option<Dispatcher>,
    /// Of the consumers that are or were last connected.
    sub_type: Option<SubscriptionType>,
    ack_words: Vec<u64>,
}

impl Subscription {
    pub fn new(name: impl Into<Arc<str>>, cursor: Cursor, options: SubscriptionOptions) -> Self {
        Subscription {
            core: Core::new(name.into(), cursor, options),
            dispatcher: None,
            sub_type: None,
            ack_words: Vec::new(),
        }
    }

    pub fn name(&self) -> &Arc<str> {
        &self.core.name
    }

    pub fn options(&self) -> &SubscriptionOptions {
        &self.core.options
    }

    /// New limits hold from the next dispatch on.
    pub fn options_mut(&mut self) -> &mut SubscriptionOptions {
        &mut self.core.options
    }

    /// Of the consumers that are or were last connected.
    pub fn sub_type(&self) -> Option<SubscriptionType> {
        self.sub_type
    }

    pub fn has_consumers(&self) -> bool {
        !self.core.consumers.is_empty()
    }

    pub fn consumer_count(&self) -> usize {
        self.core.consumers.len()
    }

    /// Where reading goes on (inclusive). Entries before it that are still needed are asked for one by one.
    pub fn read_position(&self) -> Position {
        self.core.feed.next()
    }

    pub fn cursor(&self) -> &Cursor {
        &self.core.cursor
    }

    /// What changed in the cursor since the last call.
    pub fn take_delta(&mut self) -> Option<CursorDelta> {
        self.core.cursor.take_delta()
    }

    pub fn has_events(&self) -> bool {
        !self.core.events.is_empty()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.core.events.pop_front()
    }

    /// A consumer joins. It gets nothing before it grants permits.
    pub fn add_consumer(&mut self, spec: ConsumerSpec, now: u64) -> Result<(), SubscribeError> {
        self.check_joinable(&spec)?;
        self.core.now = now;
        if self.core.consumers.is_empty() {
            self.core.start_over();
            self.dispatcher = None;
        }
        self.sub_type = Some(spec.sub_type);
        let (name, ranges) = (spec.name.clone(), ranges_of(&spec));
        let dispatcher = self.dispatcher.get_or_insert_with(|| new_dispatcher(&spec));
        let slot = self.core.consumers.add(spec);
        match dispatcher {
            Dispatcher::SingleActive(single) => single.added(&mut self.core, slot, now),
            Dispatcher::Shared(_) => {}
            Dispatcher::KeyShared(keyed) => keyed.reassign(now, |selector| selector.add(slot, &name, &ranges)),
        }
        Ok(())
    }

    fn check_joinable(&self, spec: &ConsumerSpec) -> Result<(), SubscribeError> {
        let empty = self.core.consumers.is_empty();
        if !empty {
            if let Some(active) = self.sub_type.filter(|active| *active != spec.sub_type) {
                return Err(SubscribeError::TypeMismatch(Mismatch::Type { active, joining: spec.sub_type }));
            }
            if spec.sub_type == SubscriptionType::Exclusive {
                return Err(SubscribeError::ExclusiveTaken);
            }
        }
        let max = self.core.options.max_consumers;
        if max > 0 && self.core.consumers.len() >= max as usize {
            return Err(SubscribeError::MaxConsumers);
        }
        if spec.sub_type != SubscriptionType::KeyShared {
            let ranges = ranges_of(spec);
            return match spec.sub_type == SubscriptionType::Exclusive && !ranges.is_empty() {
                true => Selector::sticky().check_ranges(&ranges, |_| ""),
                false => Ok(()),
            };
        }
        let (sticky, out_of_order) = key_shared_policy(spec);
        match &self.dispatcher {
            Some(Dispatcher::KeyShared(keyed)) if !empty => {
                if let Some(mismatch) = keyed.mismatch(sticky, out_of_order) {
                    return Err(SubscribeError::TypeMismatch(mismatch));
                }
                if sticky {
                    let name_of = |slot: Slot| self.core.consumers[slot].spec.name.as_str();
                    keyed.selector.check_ranges(&ranges_of(spec), name_of)?;
                }
            }
            _ if sticky => {
                Selector::sticky().check_ranges(&ranges_of(spec), |_| "")?;
            }
            _ => {}
        }
        Ok(())
    }

    /// A consumer is gone; what it held is delivered to others. As in Pulsar that counts as no redelivery: nobody refused it. Unknown
    /// keys are ignored.
    pub fn remove_consumer(&mut self, key: ConsumerKey, list: &LedgerList, now: u64) {
        let Some(slot) = self.core.consumers.slot(key) else { return };
        let held = self.held_by(slot);
        let mut released = Vec::with_capacity(held.len());
        for position in held {
            if let Some(pending) = self.core.release(position) {
                released.push((position, pending));
            }
        }
        let Some((_, consumer)) = self.core.consumers.remove(key) else { return };
        if self.core.consumers.is_empty() {
            self.core.start_over();
            self.dispatcher = None;
            return;
        }
        let core = &mut self.core;
        if let Some(Dispatcher::KeyShared(keyed)) = self.dispatcher.as_mut() {
            for (_, pending) in &released {
                keyed.released(pending);
            }
        }
        released.retain(|(position, _)| core.is_wanted(list, *position));
        match self.dispatcher.as_mut() {
            Some(Dispatcher::SingleActive(single)) => single.removed(core, slot, now),
            Some(Dispatcher::Shared(shared)) => {
                shared.removed(slot);
                for (position, _) in released {
                    shared.put_back(position);
                }
            }
            Some(Dispatcher::KeyShared(keyed)) => {
                keyed.reassign(now, |selector| selector.remove(slot, &consumer.spec.name));
                for (position, pending) in released {
                    keyed.put_aside(position, pending.hash);
                }
            }
            None => {}
        }
    }

    fn held_by(&self, slot: Slot) -> Vec<Position> {
        let expected = self.core.consumers[slot].pending_entries as usize;
        let mut held = Vec::with_capacity(expected);
        if expected > 0 {
            held.extend(self.core.pending.iter().filter(|(_, p)| p.slot == slot).map(|(&position, _)| position));
            held.sort_unstable();
        }
        held
    }

    /// Whether a consumer of a Failover subscription gets the messages; `None` for others.
    pub fn is_active(&self, key: ConsumerKey) -> Option<bool> {
        match &self.dispatcher {
            Some(Dispatcher::SingleActive(single)) if self.sub_type == Some(SubscriptionType::Failover) => {
                self.core.consumers.slot(key).map(|slot| single.active == Some(slot))
            }
            _ => None,
        }
    }

    /// A consumer can take so many more messages.
    pub fn flow(&mut self, key: ConsumerKey, permits: u32) {
        let now = self.core.now;
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.granted += u64::from(permits);
            consumer.last_flow_at = now;
            self.core.totals.last_flow_at = now;
        }
    }

    /// Whether a consumer's connection takes more; one that does not is passed over.
    pub fn set_writable(&mut self, key: ConsumerKey, writable: bool) {
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.writable = writable;
        }
    }

    fn consumer_mut(&mut self, key: ConsumerKey) -> Option<&mut consumers::Consumer> {
        let slot = self.core.consumers.slot(key)?;
        self.core.consumers.get_mut(slot)
    }

    /// Acknowledges. Any consumer may acknowledge what another one holds.
    pub fn ack(
        &mut self,
        key: ConsumerKey,
        request: AckRequest,
        list: &LedgerList,
        now: u64,
    ) -> Result<AckSummary, AckError> {
        let mark_delete = self.core.cursor.mark_delete();
        let summary = match request {
            AckRequest::Individual(acks) => {
                let mut summary = AckSummary::default();
                for ack in &acks {
                    self.ack_one(ack, list, &mut summary);
                }
                summary
            }
            AckRequest::Cumulative { position, ack_set } => self.ack_cumulative(position, &ack_set, list)?,
        };
        self.core.totals.acked += summary.messages;
        self.core.totals.last_acked_at = now;
        self.core.now = now;
        if self.core.cursor.mark_delete() != mark_delete {
            self.core.totals.mark_delete_moved_at = now;
        }
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.acked += summary.messages;
            consumer.last_acked_at = now;
        }
        Ok(summary)
    }

    fn ack_one(&mut self, ack: &IndividualAck, list: &LedgerList, summary: &mut AckSummary) {
        let position = ack.position;
        let outcome = if ack.ack_set.is_empty() {
            self.core.cursor.ack(list, position, AckKind::Entry)
        } else {
            let known = self.core.pending.get(&position).map(|pending| pending.batch_size);
            let batch_size = known.or(ack.batch_size).unwrap_or(0);
            self.ack_words.clear();
            self.ack_words.extend(ack.ack_set.iter().map(|&word| word as u64));
            self.core.cursor.ack(list, position, AckKind::Batch { ack_set: &self.ack_words, batch_size })
        };
        if outcome.unknown {
            // Perhaps it was trimmed while a consumer held it.
            self.settle(position);
            summary.ignored += 1;
            return;
        }
        if outcome.entry_completed || (outcome.already && self.core.cursor.is_acked(position)) {
            let held = self.settle(position);
            summary.messages += u64::from(held.map_or(outcome.messages_acked, |pending| pending.messages));
        } else {
            self.core.release_part(position, outcome.messages_acked);
            summary.messages += u64::from(outcome.messages_acked);
        }
        summary.entries += u64::from(outcome.entry_completed);
        summary.ignored += u64::from(outcome.already);
    }

    /// An entry is acknowledged: nobody holds it any more.
    fn settle(&mut self, position: Position) -> Option<Pending> {
        if !self.core.redeliveries.is_empty() {
            self.core.redeliveries.remove(&position);
        }
        let pending = self.core.release(position)?;
        if let Some(Dispatcher::KeyShared(keyed)) = &mut self.dispatcher
            && let Some(holder) = keyed.released(&pending)
        {
            self.core.consumers[holder].drained_hashes += 1;
        }
        Some(pending)
    }

    fn ack_cumulative(
        &mut self,
        position: Position,
        ack_set: &[i64],
        list: &LedgerList,
    ) -> Result<AckSummary, AckError> {
        if let Some(sub_type) = self.sub_type.filter(|sub_type| sub_type.is_individual()) {
            return Err(AckError::CumulativeOnShared(sub_type));
        }
        let words: Vec<u64> = ack_set.iter().map(|&word| word as u64).collect();
        let kind = match words.is_empty() {
            true => AckKind::Entry,
            false => AckKind::Batch { ack_set: &words, batch_size: 0 },
        };
        let advance = self.core.cursor.ack_cumulative(list, position, kind);
        if advance.unknown {
            // Beyond the end: as in Pulsar, nothing is acknowledged, and nobody is told.
            return Ok(AckSummary { ignored: 1, ..AckSummary::default() });
        }
        Ok(AckSummary {
            messages: advance.entries_acked,
            entries: advance.entries_acked,
            ignored: u64::from(advance.already),
        })
    }

    /// Delivers again what a consumer holds: the given entries, or all. On Exclusive and Failover subscriptions it is always all,
    /// and only the active consumer may ask. A request with an epoch below the consumer's is ignored.
    pub fn redeliver(
        &mut self,
        key: ConsumerKey,
        epoch: Option<u64>,
        positions: Option<&[Position]>,
        list: &LedgerList,
        _now: u64,
    ) {
        let Some(slot) = self.core.consumers.slot(key) else { return };
        if let Some(Dispatcher::SingleActive(single)) = &mut self.dispatcher {
            single.redeliver(&mut self.core, slot, epoch);
            return;
        }
        let all;
        let positions = match positions {
            Some(positions) => positions,
            None => {
                all = self.held_by(slot);
                &all
            }
        };
        for &position in positions {
            if self.core.pending.get(&position).is_none_or(|pending| pending.slot != slot) {
                continue;
            }
            let Some(pending) = self.core.release(position) else { continue };
            if is_planted(Bug::RedeliveryGivesPermits) {
                self.core.consumers[slot].granted += u64::from(pending.messages);
            }
            let wanted = self.core.is_wanted(list, position);
            if wanted {
                self.core.count_redelivery(position, &pending);
            }
            match &mut self.dispatcher {
                Some(Dispatcher::Shared(shared)) if wanted => shared.put_back(position),
                Some(Dispatcher::KeyShared(keyed)) => {
                    // First back into line, so that nothing of its key overtakes it.
                    if wanted {
                        keyed.put_aside(position, pending.hash);
                    }
                    if let Some(holder) = keyed.released(&pending) {
                        self.core.consumers[holder].drained_hashes += 1;
                    }
                }
                _ => {}
            }
        }
    }

    /// Chooses what goes to whom, up to about `max_bytes`, and says what it waits for.
    pub fn dispatch(
        &mut self,
        now: u64,
        reader: &mut dyn EntryReader,
        max_bytes: usize,
        out: &mut Vec<Delivery>,
    ) -> DispatchWait {
        let core = &mut self.core;
        core.now = now;
        core.note_aside(self.dispatcher.as_ref().map_or(0, Dispatcher::bytes_aside));
        match &mut self.dispatcher {
            None => DispatchWait::NoConsumers,
            Some(Dispatcher::SingleActive(single)) => single.dispatch(core, now, reader, max_bytes, out),
            Some(Dispatcher::Shared(shared)) => shared.dispatch(core, now, reader, max_bytes, out),
            Some(Dispatcher::KeyShared(keyed)) => keyed.dispatch(core, now, reader, max_bytes, out),
        }
    }

    /// Whether an entry that [`DispatchWait::NeedEntries`] asked for is still to be delivered again.
    pub fn awaits(&self, entry: &Entry, list: &LedgerList) -> bool {
        self.core.is_wanted(list, entry.position)
            && match &self.dispatcher {
                Some(Dispatcher::Shared(shared)) => shared.awaits(entry.position),
                Some(Dispatcher::KeyShared(keyed)) => keyed.awaits(entry),
                Some(Dispatcher::SingleActive(_)) | None => false,
            }
    }

    /// Bounds what a call of [`dispatch`](Self::dispatch) hands out, in messages; a batch may exceed it. What is left is
    /// answered with [`DispatchWait::MoreWork`].
    pub fn limit_messages(&mut self, messages: u64) {
        self.core.max_messages = messages;
    }

    /// Seek: delivery starts again at `position`, what was acknowledged from there on is forgotten. Consumers may stay.
    pub fn reset(&mut self, position: Position, list: &LedgerList) {
        self.core.cursor.reset(list, position);
        self.start_over();
    }

    /// Acknowledges the next `count` unacknowledged entries.
    pub fn skip(&mut self, count: u64, list: &LedgerList) -> Advance {
        let advance = self.core.cursor.skip(list, count);
        if advance.entries_acked > 0 {
            self.core.totals.mark_delete_moved_at = self.core.now;
        }
        self.settle_unwanted(list);
        advance
    }

    /// To be called when ledgers were trimmed from the front of the topic.
    pub fn on_trimmed(&mut self, list: &LedgerList) {
        self.core.cursor.on_trimmed(list);
        self.core.feed.drop_stash();
        self.settle_unwanted(list);
    }

    /// The topic takes no more messages: once everything is acknowledged, consumers are told.
    pub fn terminated(&mut self) {
        self.core.terminated = true;
    }

    /// Frees room that traffic which is over has left behind.
    pub fn give_back_spare(&mut self) {
        self.core.feed.give_back_spare();
        if self.core.pending.is_empty() {
            self.core.pending.shrink_to_fit();
            self.core.settle();
        }
        if self.core.consumers.is_empty() {
            self.core.consumers = Consumers::default();
        }
        self.ack_words.shrink_to_fit();
    }

    fn settle_unwanted(&mut self, list: &LedgerList) {
        let core = &self.core;
        let unwanted: Vec<Position> =
            core.pending.keys().copied().filter(|&position| !core.is_wanted(list, position)).collect();
        for position in unwanted {
            self.settle(position);
        }
    }

    fn start_over(&mut self) {
        self.core.start_over();
        match &mut self.dispatcher {
            Some(Dispatcher::Shared(shared)) => shared.start_over(),
            Some(Dispatcher::KeyShared(keyed)) => keyed.start_over(),
            Some(Dispatcher::SingleActive(_)) | None => {}
        }
    }

    /// Panics when a count does not agree with what it counts. For tests.
    pub fn check_invariants(&self) {
        let core = &self.core;
        let mut total = 0;
        for (slot, consumer) in core.consumers.iter() {
            let held = core.pending.values().filter(|pending| pending.slot == slot);
            let (entries, messages) = held.fold((0, 0), |(e, m), p| (e + 1, m + u64::from(p.messages)));
            assert_eq!(consumer.pending_entries, entries, "entries of {}", consumer.spec.name);
            assert_eq!(consumer.unacked, messages, "messages of {}", consumer.spec.name);
            total += messages;
        }
        assert_eq!(core.unacked, total);
        assert!(core.pending.values().all(|pending| core.consumers.get(pending.slot).is_some()));
        assert!(core.pending.keys().all(|&position| !core.cursor.is_acked(position)));
        if let Some(Dispatcher::KeyShared(keyed)) = &self.dispatcher {
            keyed.check_invariants(core);
        }
        if core.consumers.is_empty() {
            assert!(self.dispatcher.is_none() && core.pending.is_empty());
        }
    }
}

fn new_dispatcher(spec: &ConsumerSpec) -> Dispatcher {
    match spec.sub_type {
        SubscriptionType::Exclusive => Dispatcher::SingleActive(SingleActive::new(false, ranges_of(spec))),
        SubscriptionType::Failover => Dispatcher::SingleActive(SingleActive::new(true, Vec::new())),
        SubscriptionType::Shared => Dispatcher::Shared(Shared::default()),
        SubscriptionType::KeyShared => {
            let (sticky, out_of_order) = key_shared_policy(spec);
            Dispatcher::KeyShared(Box::new(KeyShared::new(sticky, out_of_order)))
        }
    }
}

/// Whether slots are sticky, and whether keys may overtake themselves.
fn key_shared_policy(spec: &ConsumerSpec) -> (bool, bool) {
    match &spec.key_shared {
        Some(key_shared) => (matches!(key_shared.mode, KeySharedMode::Sticky(_)), key_shared.allow_out_of_order),
        None => (false, is_planted(Bug::KeysDoNotDrain)),
    }
}

fn ranges_of(spec: &ConsumerSpec) -> Vec<(u32, u32)> {
    match &spec.key_shared {
        Some(KeySharedSpec { mode: KeySharedMode::Sticky(ranges), .. }) => ranges.clone(),
        _ => Vec::new(),
    }
}
