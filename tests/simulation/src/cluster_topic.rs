//! A topic in a simulated broker: messages in, receipts out, its record in metadata, and trimming.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use geminga_ledger::cursor::Cursor;
use geminga_ledger::managed_ledger::{Action, ManagedLedger, ManagedLedgerConfig};
use geminga_metadata::{Metadata, TopicRecord, Versioned};
use geminga_model::{Position, TopicName};
use geminga_topic::dedup::{Verdict, snapshot_holds_up_trimming};

use crate::cluster_broker::Broker;
use crate::cluster_cursors::BundleLog;
use crate::cluster_deduplication::{Dedup, Stored};
use crate::cluster_ledgers::{Part, WriteDone};
use crate::cluster_messages::{ToBroker, ToClient};
use crate::cluster_ownership::Bundle;
use crate::cluster_plant::Plant;
use crate::cluster_subscriptions::Sub;
use crate::ledger_oracle::Entry;
use crate::ledger_producers::name;

/// Small enough that a topic goes through its ledgers within minutes.
pub const LEDGER: ManagedLedgerConfig =
    ManagedLedgerConfig { max_ledger_bytes: 8000, max_ledger_entries: 60, max_ledger_age_ms: 60_000 };
/// Entries that consumers find without a read.
const CACHED: usize = 40;

pub struct Topic {
    pub number: usize,
    /// Of the bundle's owner.
    pub metadata: Metadata,
    pub ledger: ManagedLedger<Entry>,
    /// As metadata have it, as far as this broker knows.
    pub record: TopicRecord,
    pub version: u64,
    in_flight: BTreeMap<Position, Entry>,
    /// The payload of entries that were written lately.
    pub cache: BTreeMap<Position, Bytes>,
    /// And of those that were read last.
    pub read: BTreeMap<Position, Bytes>,
    pub is_reading: bool,
    pub subscriptions: Vec<Sub>,
    pub dedup: Option<Dedup>,
    pub dedup_stored: Option<Stored>,
    /// It is being switched on or off.
    pub is_switching: bool,
    /// Of messages that deduplication has looked at, by connection and sequence id: its key then.
    pub seen_by: BTreeMap<(u64, u64), u64>,
    /// Connections on which a message has failed: nothing more is taken from them.
    broken: BTreeSet<u64>,
    pub dispatch_due: bool,
}

pub fn topic_name(topic: usize) -> TopicName {
    TopicName::parse(&format!("persistent://public/default/t{topic}")).expect("it is a name")
}

impl Topic {
    pub fn new(
        number: usize,
        metadata: Metadata,
        ledger: ManagedLedger<Entry>,
        record: Versioned<TopicRecord>,
    ) -> Topic {
        Topic {
            number,
            metadata,
            ledger,
            record: record.value,
            version: record.version,
            in_flight: BTreeMap::new(),
            cache: BTreeMap::new(),
            read: BTreeMap::new(),
            is_reading: false,
            subscriptions: Vec::new(),
            dedup: None,
            dedup_stored: None,
            is_switching: false,
            seen_by: BTreeMap::new(),
            broken: BTreeSet::new(),
            dispatch_due: true,
        }
    }

    fn keep(&mut self, position: Position, payload: Bytes) {
        self.cache.insert(position, payload);
        while self.cache.len() > CACHED {
            self.cache.pop_first();
        }
    }

    /// Takes the entries of one write that failed, and of those behind it.
    fn take_failed(&mut self, from: Position) -> Vec<Entry> {
        let range = from..=Position { ledger_id: from.ledger_id, entry_id: i64::MAX };
        let void: Vec<Position> = self.in_flight.range(range).map(|(position, _)| *position).collect();
        void.iter().for_each(|position| drop(self.cache.remove(position)));
        void.iter().filter_map(|position| self.in_flight.remove(position)).collect()
    }
}

impl Broker {
    pub fn hear_about(self: &Rc<Self>, bundle: &mut Bundle, topic: usize, connection: u64, message: ToBroker) {
        match message {
            ToBroker::Publish(entries) => self.publish(bundle, topic, connection, entries),
            ToBroker::Flow(permits) => self.flow(bundle, topic, connection, permits),
            ToBroker::Ack { positions, cumulative, request } => {
                self.acknowledge(bundle, topic, connection, &positions, cumulative, request);
            }
            ToBroker::Redeliver(positions) => self.redeliver(bundle, topic, connection, &positions),
            ToBroker::Seek { position, request } => self.seek(bundle, topic, connection, position, request),
            ToBroker::Ping => self.answer_ping(connection),
            ToBroker::Connect { .. } => (),
        }
    }

    fn publish(&self, bundle: &mut Bundle, at: usize, connection: u64, entries: Vec<Entry>) {
        let (now, plant) = (self.now_ms(), self.sim.plant);
        let topic = bundle.topics.get_mut(&at).expect("all topics of a bundle are loaded");
        let (mut taken, mut receipts, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries {
            let origin = entry.origin.expect("every message has a producer");
            let is_broken = bundle.is_closing || topic.broken.contains(&connection);
            let verdict = match &mut topic.dedup {
                _ if is_broken && plant != Plant::LaterMessagesPass => Verdict::Unknown,
                None => Verdict::New,
                Some(dedup) => {
                    dedup.state.check(&name(origin.producer), origin.sequence, entry.highest_sequence(), false)
                }
            };
            match verdict {
                Verdict::New => {
                    self.sim.oracle.borrow_mut().taken_in(at, topic.record.created_at, origin);
                    if let (Some(_), Some(stored)) = (&topic.dedup, topic.dedup_stored) {
                        topic.seen_by.insert((connection, origin.sequence), stored.key);
                    }
                    taken.push(entry);
                }
                Verdict::Unknown if plant != Plant::UnknownIsDuplicate || is_broken => {
                    topic.broken.insert(connection);
                    refused.push(origin.sequence);
                }
                Verdict::Duplicate | Verdict::Unknown => {
                    self.sim.count("duplicates that were known");
                    self.sim.oracle.borrow().is_stored(at, origin);
                    receipts.push(origin.sequence);
                }
            }
        }
        topic.ledger.append(now, taken);
        self.say_all(connection, receipts, refused);
    }

    fn say_all(&self, connection: u64, receipts: Vec<u64>, refused: Vec<u64>) {
        let client = self.connections.borrow().get(&connection).map(|connection| connection.client);
        let Some(client) = client else { return };
        if !receipts.is_empty() {
            self.say(client, connection, ToClient::Receipts(receipts));
        }
        for sequence in refused {
            self.sim.count("messages refused");
            self.say(client, connection, ToClient::Refused(sequence));
        }
    }

    /// These will not become durable.
    fn failed(&self, topic: &mut Topic, entries: &[Entry]) {
        for entry in entries {
            let origin = entry.origin.expect("every message has a producer");
            topic.forget(entry);
            topic.broken.insert(origin.connection);
            self.say_all(origin.connection, Vec::new(), vec![origin.sequence]);
        }
    }

    pub fn topic_written(&self, bundle: &mut Bundle, at: usize, done: WriteDone) {
        let ownership = bundle.ownership();
        let topic = bundle.topics.get_mut(&at).expect("all topics of a bundle are loaded");
        let written = topic.ledger.written(done.ledger, done.first as i64, done.count, done.result);
        if let Some(from) = written.failed_from {
            let failed = topic.take_failed(from);
            self.failed(topic, &failed);
        }
        let mut receipts: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        while let Some(first) = topic.in_flight.first_entry().filter(|first| Some(*first.key()) <= written.lac) {
            let (position, entry) = first.remove_entry();
            let origin = entry.origin.expect("every message has a producer");
            let seen_by = topic.persisted(&entry, position, self.now_ms());
            self.sim.oracle.borrow_mut().confirmed(at, ownership, position, &entry, seen_by);
            receipts.entry(origin.connection).or_default().push(origin.sequence);
        }
        self.sim.count_many("messages confirmed", written.confirmed);
        topic.dispatch_due |= written.confirmed > 0;
        for (connection, sequences) in receipts {
            self.say_all(connection, sequences, Vec::new());
        }
        topic.count_persisted(written.confirmed, &mut bundle.log);
    }

    pub fn pump_topics(self: &Rc<Self>, bundle: &mut Bundle) {
        let (range, ownership) = (bundle.range, bundle.ownership());
        for topic in bundle.topics.values_mut() {
            let part = Part { bundle: range, ownership, topic: Some(topic.number) };
            while let Some(action) = topic.ledger.poll_action() {
                self.carry_out(part, topic, action);
            }
            if std::mem::take(&mut topic.dispatch_due) {
                self.dispatch(part, topic);
            }
        }
    }

    fn carry_out(self: &Rc<Self>, part: Part, topic: &mut Topic, action: Action<Entry>) {
        match action {
            Action::Write { ledger_id, first_entry, first_index, entries } => {
                let mut index = first_index;
                let mut payloads = Vec::with_capacity(entries.len());
                for (entry_id, mut entry) in (first_entry..).zip(entries) {
                    let position = Position { ledger_id, entry_id };
                    entry.index = index;
                    index += u64::from(entry.messages);
                    let payload = entry.to_bytes();
                    topic.keep(position, payload.clone());
                    payloads.push(payload);
                    topic.in_flight.insert(position, entry);
                }
                self.append(part, &topic.metadata, ledger_id, first_entry as u64, payloads);
            }
            Action::Fail { entries, .. } => self.failed(topic, &entries),
            Action::CreateLedger => {
                let (broker, metadata) = (self.clone(), topic.metadata.clone());
                let after = match self.sim.plant {
                    Plant::LedgerIdsGoBack => topic.ledger.list().last_span().map_or(0, |span| span.ledger_id),
                    _ => topic.ledger.last_ledger_id(),
                };
                self.tasks.spawn(async move { broker.create_topic_ledger(part, metadata, after).await });
            }
            Action::SaveRecord => self.save_record(part, topic, None),
            Action::Seal { ledger_id, .. } => {
                let broker = self.clone();
                // Its end is in the record already.
                self.tasks.spawn(async move { drop(broker.recover(ledger_id).await) });
            }
            Action::DeleteLedgers(ledgers) => self.delete_ledgers(ledgers),
        }
    }

    /// Time passes: what failed is tried again, old ledgers are closed, and sometimes acknowledged ones freed.
    pub fn time_passes(self: &Rc<Self>, trims: bool) {
        for bundle in self.bundles.borrow_mut().values_mut() {
            bundle.log.log.tick();
            let (range, ownership) = (bundle.range, bundle.ownership());
            for topic in bundle.topics.values_mut() {
                topic.ledger.tick(self.now_ms());
                topic.dispatch_due = true;
                if !bundle.is_closing {
                    self.follow_deduplication(Part { bundle: range, ownership, topic: Some(topic.number) }, topic);
                }
                if trims {
                    self.expire(topic, &mut bundle.log, ownership);
                    self.trim(topic, &mut bundle.log);
                }
            }
            self.touch(bundle.range);
        }
        for ((part, _), log) in self.new_logs.borrow_mut().iter_mut() {
            log.log.tick();
            self.touch(*part);
        }
    }

    fn trim(&self, topic: &mut Topic, log: &mut BundleLog) {
        let mark = |sub: &Sub| match self.sim.plant {
            Plant::TrimByMemory => Cursor::mark_delete(sub.core.cursor()),
            _ => log.log.durable_mark_delete(sub.cursor_id, sub.initial),
        };
        let mut slowest = topic.subscriptions.iter().map(mark).min();
        let mut held_up = false;
        if let Some(dedup) = &topic.dedup {
            held_up =
                snapshot_holds_up_trimming(topic.ledger.list(), slowest, dedup.durable) && dedup.entries_since > 0;
            slowest = Some(slowest.map_or(dedup.durable, |slowest| slowest.min(dedup.durable)));
        }
        if held_up {
            topic.snapshot(log);
        }
        let trimmed = topic.ledger.trim(self.now_ms(), slowest, self.policies(topic.number).retention);
        if trimmed > 0 {
            self.sim.count_many("ledgers trimmed", trimmed as u64);
            let list = topic.ledger.list();
            topic.subscriptions.iter_mut().for_each(|sub| sub.core.on_trimmed(list));
        }
    }
}
