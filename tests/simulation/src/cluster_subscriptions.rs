//! Subscriptions of a topic in a simulated broker: the real dispatchers and cursors, and reading for them.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use geminga_ledger::cursor::{AckKind, Cursor};
use geminga_ledger::cursor_log::Record;
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;
use geminga_topic::hash::sticky_key_hash;
use geminga_topic::{
    AckRequest, ConsumerSpec, Delivery, DispatchWait, Entry, EntryMeta, EntryReader, IndividualAck, Ready,
    Subscription, SubscriptionType,
};

use crate::cluster_broker::{Broker, Connection};
use crate::cluster_cursors::Durable;
use crate::cluster_ledgers::Part;
use crate::cluster_messages::{Message, ToClient};
use crate::cluster_oracle_deliveries::OwnedSub;
use crate::cluster_ownership::Bundle;
use crate::cluster_plant::Plant;
use crate::cluster_sim::{MS, Sim};
use crate::cluster_topic::Topic;
use crate::ledger_oracle::{Entry as Sent, positions};

/// Entries read at once for consumers that are behind.
const READ: usize = 16;

/// An id that no cursor has: its record says nothing.
const NO_CURSOR: u64 = u64::MAX;

/// A consumer that wants to join, with the acknowledgements that were durable when it came.
pub struct Admission {
    topic: usize,
    subscription: usize,
    connection: u64,
    known: BTreeSet<Position>,
}

pub struct Sub {
    pub cursor_id: u64,
    pub initial: Position,
    pub core: Subscription,
}

/// The first subscription of a topic is exclusive, the other one is shared, or shared by key.
pub fn type_of(sim: &Sim, topic: usize, subscription: usize) -> SubscriptionType {
    match subscription {
        0 => SubscriptionType::Exclusive,
        _ if sim.policies.borrow()[topic].shares_keys => SubscriptionType::KeyShared,
        _ => SubscriptionType::Shared,
    }
}

struct Reader<'a> {
    list: &'a LedgerList,
    cache: &'a BTreeMap<Position, Bytes>,
    read: &'a BTreeMap<Position, Bytes>,
}

impl Reader<'_> {
    fn entry(&self, position: Position) -> Option<Entry> {
        let payload = self.cache.get(&position).or_else(|| self.read.get(&position))?;
        let sent = Sent::from_bytes(payload);
        let sticky_key_hash = sticky_key_hash(&sent.key().to_le_bytes());
        let meta = EntryMeta { num_messages: sent.messages, sticky_key_hash, ..EntryMeta::default() };
        Some(Entry { position, meta, data: payload.clone() })
    }
}

impl EntryReader for Reader<'_> {
    fn read_ready(&mut self, from: Position, max_entries: usize, _: usize, out: &mut Vec<Entry>) -> Ready {
        let Some(first) = self.list.ceiling(from) else { return Ready::CaughtUp };
        let mut next = Some(first);
        while let Some(position) = next.filter(|_| out.len() < max_entries) {
            let Some(entry) = self.entry(position) else { break };
            out.push(entry);
            next = self.list.next_after(position);
        }
        if out.is_empty() { Ready::NeedRead(first) } else { Ready::Entries }
    }

    fn get(&mut self, at: Position) -> Option<Entry> {
        self.entry(at)
    }

    fn has(&self, at: Position) -> bool {
        self.cache.contains_key(&at) || self.read.contains_key(&at)
    }

    fn ledgers(&self) -> &LedgerList {
        self.list
    }
}

fn topic_of(bundle: &mut Bundle, topic: usize) -> &mut Topic {
    bundle.topics.get_mut(&topic).expect("all topics of a bundle are loaded")
}

impl Broker {
    /// A consumer joins once it is sure that this broker knows of all acknowledgements. When its session has run out, it asks
    /// storage, which lets it write to the log only as long as nobody else has the bundle.
    pub fn admit_surely(&self, bundle: &mut Bundle, topic: usize, subscription: usize, connection: u64) {
        let known = self.sim.oracle.borrow().durable_acks(topic, subscription);
        let admission = Admission { topic, subscription, connection, known };
        if self.has_surely(bundle.range, bundle.tenure.version) || self.sim.plant == Plant::LapsedOwnersAdmit {
            return self.admit(bundle, admission);
        }
        self.sim.count("consumers that waited until storage had confirmed their owner");
        bundle.log.append(Record::Dropped { cursor_id: NO_CURSOR }, [Durable::Confirmed(admission)]);
    }

    pub fn admit(&self, bundle: &mut Bundle, admission: Admission) {
        let Admission { topic, subscription, connection, known } = admission;
        let client = self.connections.borrow().get(&connection).map(|connection| connection.client);
        let Some(client) = client else { return };
        let cursor = topic_of(bundle, topic).subscriptions[subscription].core.cursor();
        self.sim.oracle.borrow().admitted(topic, subscription, &known, cursor);
        if self.join(bundle, topic, subscription, connection) {
            return self.say(client, connection, ToClient::Connected);
        }
        self.connections.borrow_mut().remove(&connection);
        self.say(client, connection, ToClient::NotReady);
    }

    /// A consumer joins a subscription; false if somebody else has it.
    fn join(&self, bundle: &mut Bundle, topic: usize, subscription: usize, connection: u64) -> bool {
        let of = OwnedSub { topic, sub: subscription, ownership: bundle.ownership() };
        let topic = topic_of(bundle, topic);
        let spec = ConsumerSpec {
            key: connection,
            consumer_id: connection,
            name: format!("c{connection}"),
            sub_type: type_of(&self.sim, topic.number, subscription),
            ..ConsumerSpec::default()
        };
        topic.dispatch_due = true;
        let has_joined = topic.subscriptions[subscription].core.add_consumer(spec, self.now_ms()).is_ok();
        if has_joined {
            self.sim.oracle.borrow_mut().deliveries.joined(connection, of);
        }
        has_joined
    }

    pub fn leave(&self, bundle: &mut Bundle, topic: usize, subscription: Option<usize>, connection: u64) {
        let topic = topic_of(bundle, topic);
        topic.dispatch_due = true;
        if let Some(subscription) = subscription {
            let (list, now) = (topic.ledger.list(), self.now_ms());
            topic.subscriptions[subscription].core.remove_consumer(connection, list, now);
            self.sim.oracle.borrow_mut().deliveries.left(connection);
        }
    }

    /// The subscription that a connection consumes from.
    fn subscription_of(&self, connection: u64) -> Option<usize> {
        self.connections.borrow().get(&connection)?.subscription
    }

    pub fn flow(&self, bundle: &mut Bundle, topic: usize, connection: u64, permits: u32) {
        let Some(subscription) = self.subscription_of(connection) else { return };
        let topic = topic_of(bundle, topic);
        topic.dispatch_due = true;
        topic.subscriptions[subscription].core.flow(connection, permits);
        self.sim.oracle.borrow_mut().deliveries.granted(connection, permits);
    }

    pub fn acknowledge(
        &self,
        bundle: &mut Bundle,
        at: usize,
        connection: u64,
        acked: &[Position],
        cumulative: bool,
        request: Option<u64>,
    ) {
        let Some(subscription) = self.subscription_of(connection) else { return };
        let (now, ownership) = (self.now_ms(), bundle.ownership());
        let topic = bundle.topics.get_mut(&at).expect("all topics of a bundle are loaded");
        topic.dispatch_due = true;
        let list = topic.ledger.list();
        let sub = &mut topic.subscriptions[subscription];
        let newly = newly_acked(sub.core.cursor(), list, acked, cumulative);
        let individual = |position: &Position| IndividualAck { position: *position, ack_set: vec![], batch_size: None };
        let ack = match acked.last() {
            Some(last) if cumulative => AckRequest::Cumulative { position: *last, ack_set: vec![] },
            _ => AckRequest::Individual(acked.iter().map(individual).collect()),
        };
        if sub.core.ack(connection, ack, list, now).is_err() {
            return;
        }
        let asked = request.map(|request| Durable::Asked { connection, request });
        self.sim.count_many("entries acknowledged", newly.len() as u64);
        match sub.core.take_delta() {
            Some(delta) => {
                let token = self.sim.oracle.borrow_mut().ack_applied(at, subscription, ownership, newly);
                let then = [Durable::Acknowledged(token)].into_iter().chain(asked);
                bundle.log.append(Record::Delta { cursor_id: sub.cursor_id, delta }, then);
            }
            None => bundle.log.after_queued(asked),
        }
    }

    pub fn redeliver(&self, bundle: &mut Bundle, topic: usize, connection: u64, wanted: &[Position]) {
        let Some(subscription) = self.subscription_of(connection) else { return };
        let topic = topic_of(bundle, topic);
        topic.dispatch_due = true;
        let (list, now) = (topic.ledger.list(), self.now_ms());
        topic.subscriptions[subscription].core.redeliver(connection, None, Some(wanted), list, now);
        self.sim.oracle.borrow_mut().deliveries.gave_back(connection, wanted);
    }

    pub fn seek(&self, bundle: &mut Bundle, at: usize, connection: u64, target: Position, request: u64) {
        let Some(subscription) = self.subscription_of(connection) else { return };
        let ownership = bundle.ownership();
        let topic = bundle.topics.get_mut(&at).expect("all topics of a bundle are loaded");
        topic.dispatch_due = true;
        let list = topic.ledger.list();
        let sub = &mut topic.subscriptions[subscription];
        sub.core.reset(target, list);
        let before: Vec<Position> = positions(list).take_while(|position| *position < target).collect();
        // What the owner has trimmed already, though the record may still name it, nobody gets back.
        let from = list.ceiling(target).unwrap_or(Position::LATEST);
        let token = self.sim.oracle.borrow_mut().seek_applied(at, subscription, ownership, from, before);
        let mut stored: Cursor = sub.core.cursor().clone();
        let mut delta = sub.core.take_delta();
        if self.sim.plant == Plant::SeekStoresReadPosition {
            stored.ack_cumulative(list, target, AckKind::Entry);
            delta = stored.take_delta();
        }
        self.sim.count("cursor resets");
        let then = [Durable::Acknowledged(token), Durable::Asked { connection, request }];
        match delta {
            Some(delta) => bundle.log.append(Record::Delta { cursor_id: sub.cursor_id, delta }, then),
            None => bundle.log.after_queued(then),
        }
    }

    /// Hands out what consumers may get, and reads what is missing.
    pub fn dispatch(self: &Rc<Self>, part: Part, topic: &mut Topic) {
        let now = self.now_ms();
        let mut wanted = Vec::new();
        for (number, sub) in topic.subscriptions.iter_mut().enumerate() {
            let shares_keys = type_of(&self.sim, topic.number, number) == SubscriptionType::KeyShared;
            loop {
                let mut out = Vec::new();
                let mut reader = Reader { list: topic.ledger.list(), cache: &topic.cache, read: &topic.read };
                let wait = sub.core.dispatch(now, &mut reader, 1 << 20, &mut out);
                let mut messages: BTreeMap<u64, Vec<Message>> = BTreeMap::new();
                for delivery in out {
                    self.given(topic.number, shares_keys, &delivery);
                    let message = Message { position: delivery.entry.position, payload: delivery.entry.data };
                    messages.entry(delivery.consumer).or_default().push(message);
                }
                for (connection, messages) in messages {
                    let client = self.connections.borrow().get(&connection).map(|connection| connection.client);
                    if let Some(client) = client {
                        self.say(client, connection, ToClient::Messages(messages));
                    }
                }
                match wait {
                    DispatchWait::MoreWork => (),
                    DispatchWait::NoPermits => {
                        self.check_nobody_has_permits(topic.number, number);
                        break;
                    }
                    DispatchWait::NeedRead { from, max_entries } => {
                        let list = topic.ledger.list();
                        let mut next = list.ceiling(from);
                        while let Some(position) = next.filter(|_| wanted.len() < READ.min(max_entries)) {
                            wanted.push(position);
                            next = list.next_after(position);
                        }
                        break;
                    }
                    DispatchWait::NeedEntries(missing) => {
                        wanted.extend(missing.into_iter().take(READ));
                        break;
                    }
                    _ => break,
                }
            }
        }
        if !wanted.is_empty() && !std::mem::replace(&mut topic.is_reading, true) {
            let broker = self.clone();
            self.tasks.spawn(async move { broker.read_for_consumers(part, wanted).await });
        }
    }

    fn given(&self, topic: usize, shares_keys: bool, delivery: &Delivery) {
        let Entry { position, data, .. } = &delivery.entry;
        self.sim.count_many("entries of a key in order", u64::from(shares_keys));
        let sent = Sent::from_bytes(data);
        self.sim.oracle.borrow_mut().given(topic, shares_keys, delivery.consumer, *position, &sent);
    }

    fn check_nobody_has_permits(&self, topic: usize, subscription: usize) {
        let (connections, oracle) = (self.connections.borrow(), self.sim.oracle.borrow());
        let of_it = |to: &Connection| (to.topic, to.subscription) == (topic, Some(subscription));
        let consumers = connections.iter().filter(|(_, connection)| of_it(connection));
        consumers.for_each(|(connection, _)| oracle.deliveries.check_nobody_has_permits(*connection));
    }

    async fn read_for_consumers(self: Rc<Self>, part: Part, wanted: Vec<Position>) {
        let mut read = Vec::new();
        for position in wanted {
            match self.read_entry(position.ledger_id, position.entry_id as u64).await {
                Ok(payload) => read.push((position, payload)),
                Err(_) => {
                    self.sim.count("reads for consumers that failed");
                    self.sleep(300 * MS).await;
                    break;
                }
            }
        }
        self.sim.count_many("entries read for consumers", read.len() as u64);
        let mut bundles = self.bundles.borrow_mut();
        let Some(bundle) = bundles.get_mut(&part.bundle).filter(|bundle| bundle.ownership() == part.ownership) else {
            return;
        };
        let topic = topic_of(bundle, part.topic.expect("only topics have consumers"));
        topic.is_reading = false;
        topic.dispatch_due = true;
        topic.read = read.into_iter().collect();
        self.touch(part.bundle);
    }
}

/// Existing entries that an ack adds to what the cursor has.
pub fn newly_acked(cursor: &Cursor, list: &LedgerList, acked: &[Position], cumulative: bool) -> Vec<Position> {
    if !cumulative {
        let is_new = |position: &&Position| list.contains(**position) && !cursor.is_acked(**position);
        return acked.iter().filter(is_new).copied().collect();
    }
    let Some(last) = acked.last() else { return Vec::new() };
    let mut newly = Vec::new();
    let mut next = cursor.next_unacked(list, Position::EARLIEST);
    while let Some(position) = next.filter(|position| position <= last) {
        newly.push(position);
        next = list.next_after(position).and_then(|after| cursor.next_unacked(list, after));
    }
    newly
}
