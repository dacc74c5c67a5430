//! What must be true in a simulated cluster, in the simplest terms. A broken promise panics.
//!
//! It sees everything at once, which nobody in the cluster does: what was written, what was confirmed to whom, what metadata
//! say, and what is on the disks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use geminga_ensemble::{LedgerMetadata, LedgerState, distribution};
use geminga_ledger::cursor::Cursor;
use geminga_ledger::cursor_log::LogLedger;
use geminga_ledger::ledger_list::LedgerList;
use geminga_metadata::{Metadata, TopicRecord};
use geminga_model::Position;

use crate::cluster_ledgers::node_number;
pub use crate::cluster_oracle_acks::AckToken;
use crate::cluster_oracle_acks::SubTruth;
use crate::cluster_oracle_deliveries::{Deliveries, OwnedSub};
use crate::cluster_sim::Sim;
use crate::cluster_tasks::at_once;
use crate::cluster_topic::topic_name;
use crate::ledger_oracle::{Entry, Origin, positions};

/// A ledger, with whatever was ever given to it.
#[derive(Default)]
struct LedgerTruth {
    written: Vec<Bytes>,
    confirmed: u64,
    closed: Option<LedgerState>,
    is_deleted: bool,
    /// Of a topic that was deleted, or the log of a bundle that was split: what its writer still gets confirmed is nobody's.
    is_done_with: bool,
    /// Somebody has created it after that.
    is_undead: bool,
    /// As they were last written.
    metadata: Option<LedgerMetadata>,
}

/// Of an entry that exists.
pub struct Existing {
    producer: u64,
    highest_sequence: u64,
    pub key: u64,
}

#[derive(Default)]
pub struct TopicTruth {
    /// What its producers have receipts for, or an owner found when it took over, and was not trimmed.
    pub entries: BTreeMap<Position, Existing>,
    /// By producer and sequence id, with the place, and the key of the deduplication that has looked at it.
    stored: BTreeMap<(u64, u64), (Position, Option<u64>)>,
    /// What was stored in topics of that name that were deleted.
    was_stored: BTreeSet<(u64, u64)>,
    /// Which of the topics of that name there is now, if there is one, by what its record says.
    incarnation: Option<u64>,
    /// Messages that were taken in for one that was deleted already, by connection and sequence id.
    late: BTreeSet<(u64, u64)>,
    /// One of that name was deleted.
    was_deleted: bool,
    /// Its messages are deduplicated all the time.
    deduplicates: bool,
    /// Ledgers that its record no longer names.
    gone: BTreeSet<u64>,
    /// Of each producer the highest sequence id in these.
    gone_up_to: BTreeMap<u64, u64>,
    /// Of the last ownership that was complete.
    pub ownership: u64,
    pub subscriptions: Vec<SubTruth>,
}

#[derive(Default)]
pub struct Oracle {
    ledgers: BTreeMap<u64, LedgerTruth>,
    pub topics: Vec<TopicTruth>,
    pub deliveries: Deliveries,
    /// Counts applied acknowledgements and resets.
    order: u64,
}

impl Oracle {
    /// `deduplicated`: of each topic whether its messages are deduplicated all the time.
    pub fn begin(&mut self, deduplicated: &[bool], subscriptions: usize) {
        let subs = || (0..subscriptions).map(|_| SubTruth::default()).collect();
        let topic = |&deduplicates| TopicTruth {
            subscriptions: subs(),
            deduplicates,
            incarnation: Some(0),
            ..TopicTruth::default()
        };
        self.topics = deduplicated.iter().map(topic).collect();
    }

    /// Its writer has numbered an entry.
    pub fn entry_written(&mut self, ledger: u64, entry: u64, payload: &Bytes) {
        let truth = self.ledgers.entry(ledger).or_default();
        assert_eq!(truth.written.len() as u64, entry, "ledger {ledger} has two writers");
        // Whoever has created it before does not know yet, and will be told that it is fenced.
        assert!(!truth.is_undead, "ledger {ledger} is deleted, and somebody begins to write to it");
        truth.written.push(payload.clone());
    }

    /// Somebody was given this as the entry.
    pub fn entry_read(&self, ledger: u64, entry: u64, payload: &Bytes) {
        let written = self.ledgers.get(&ledger).and_then(|truth| truth.written.get(entry as usize));
        assert_eq!(written, Some(payload), "entry {entry} of ledger {ledger} was read as another than it was written");
    }

    /// A writer has confirmed entries from `from` on.
    pub fn ledger_confirmed(&mut self, sim: &Sim, ledger: u64, from: u64, up_to: u64) {
        let truth = self.ledgers.get_mut(&ledger).expect("it was written");
        assert_eq!(from, truth.confirmed, "the last add confirmed of ledger {ledger} went back");
        truth.confirmed = up_to + 1;
        if let Some(LedgerState::Closed { entries, .. }) = truth.closed {
            assert!(up_to < entries, "entry {up_to} of ledger {ledger} is confirmed, which was closed with {entries}");
        }
        if truth.is_deleted {
            // It was there, and the next owner has found it, until everybody had acknowledged it.
            let is_over = truth.closed.is_some() || truth.is_done_with;
            return assert!(is_over, "ledger {ledger} is deleted and was never closed");
        }
        for entry in from..=up_to {
            let (holders, needed) = truth.holders(sim, ledger, entry);
            assert!(holders >= needed, "entry {entry} of ledger {ledger} is confirmed and on {holders} nodes only");
        }
    }

    /// The metadata service has taken these.
    pub fn metadata_written(&mut self, sim: &Sim, ledger: u64, metadata: &LedgerMetadata) {
        assert_eq!(metadata.check(), Ok(()), "ledger {ledger}");
        let truth = self.ledgers.entry(ledger).or_default();
        if truth.is_deleted {
            // Whoever recovers a ledger that is gone leaves a record that says it is empty, and a creation that was given up may
            // come late. Nothing of it may ever be confirmed.
            truth.closed.get_or_insert(LedgerState::Closed { entries: 0, length: 0 });
            truth.is_undead |= metadata.state == LedgerState::Open;
            return;
        }
        if let Some(closed) = truth.closed {
            assert_eq!(closed, metadata.state, "ledger {ledger} is closed, and changes");
        }
        if let LedgerState::Closed { entries, .. } = metadata.state {
            let confirmed = truth.confirmed;
            assert!(
                entries >= confirmed,
                "ledger {ledger} is closed with {entries} entries, {confirmed} are confirmed"
            );
            assert!(entries <= truth.written.len() as u64, "ledger {ledger} is closed with more than was written");
            truth.closed = Some(metadata.state);
        }
        truth.metadata = Some(metadata.clone());
        truth.check_disks(sim, ledger);
    }

    /// A topic was deleted that had these, or a bundle was split whose log had them.
    pub fn are_done_with(&mut self, ledgers: &[u64]) {
        ledgers.iter().for_each(|ledger| self.ledgers.entry(*ledger).or_default().is_done_with = true);
    }

    /// Somebody deletes a ledger: no record may name it.
    pub fn ledger_deleted(&mut self, ledger: u64, metadata: &Metadata) {
        for topic in 0..self.topics.len() {
            let record = at_once(metadata.get_topic(&topic_name(topic))).expect("it is in memory");
            let named = record.iter().flat_map(|record| &record.value.ledgers).any(|named| named.ledger_id == ledger);
            assert!(!named, "ledger {ledger} is deleted, and the record of topic {topic} names it");
        }
        for log in at_once(metadata.list_cursor_logs()).expect("they are in memory") {
            let list = at_once(metadata.get_cursor_log::<Vec<LogLedger>>(&log)).expect("it is in memory");
            let named = list.expect("it exists").value.iter().any(|named| named.ledger_id == ledger);
            assert!(!named, "ledger {ledger} is deleted, and the log of bundle {log} names it");
        }
        // What was confirmed once stays so: a deposed writer must not go on.
        let truth = self.ledgers.entry(ledger).or_default();
        (truth.metadata, truth.is_deleted) = (None, true);
    }

    /// Every confirmed entry of a ledger that exists is on some disk, undamaged.
    pub fn check_disks(&self, sim: &Sim) {
        for (ledger, truth) in self.ledgers.iter().filter(|(_, truth)| truth.metadata.is_some()) {
            truth.check_disks(sim, *ledger);
        }
    }

    /// Whether, if this node's disk was lost, nothing would be lost: no metadata name a node that is lost already, and of all that it has
    /// that may be confirmed there is a good copy elsewhere.
    pub fn would_keep_all_without(&self, sim: &Sim, node: usize) -> bool {
        self.ledgers.iter().filter(|(_, truth)| truth.metadata.is_some()).all(|(ledger, truth)| {
            let named =
                truth.metadata.iter().flat_map(|metadata| &metadata.fragments).flat_map(|fragment| &fragment.ensemble);
            let names_lost = named.filter_map(node_number).any(|named| sim.nodes.borrow()[named].is_lost);
            let is_kept = |entry: u64| {
                let good = |at: &usize| truth.is_good(sim, *at, *ledger, entry);
                let elsewhere = truth.places(entry).filter(|at| *at != node).any(|at| good(&at));
                elsewhere || entry >= truth.confirmed && !good(&node)
            };
            !names_lost && (0..truth.written.len() as u64).all(is_kept)
        })
    }

    /// A producer of the topic gets a receipt from this owner. `seen_by`: the key of the deduplication that has looked at it.
    pub fn confirmed(&mut self, topic: usize, ownership: u64, position: Position, entry: &Entry, seen_by: Option<u64>) {
        let topic = &mut self.topics[topic];
        let origin = entry.origin.expect("every message has a producer");
        assert!(
            !topic.late.contains(&(origin.connection, origin.sequence)),
            "{origin:?} is confirmed, and the topic was deleted before it was taken in"
        );
        if topic.gone.contains(&position.ledger_id) {
            // Of a topic that was deleted when it had been taken in: its producer knows it as stored.
            topic.was_stored.insert((origin.producer, origin.sequence));
            return;
        }
        if ownership < topic.ownership {
            let found = topic.entries.contains_key(&position);
            assert!(found, "{position} is confirmed by a deposed owner, and the next one has not found it");
        }
        topic.exists(position, entry, seen_by);
    }

    /// The message is taken for a duplicate.
    pub fn is_stored(&self, topic: usize, origin: Origin) {
        let message = (origin.producer, origin.sequence);
        let topic = &self.topics[topic];
        let stored = topic.stored.contains_key(&message) || topic.was_stored.contains(&message);
        assert!(stored, "it is taken for a duplicate and is not stored: {origin:?}");
    }

    /// An owner takes a message in, for the topic of this incarnation.
    pub fn taken_in(&mut self, topic: usize, incarnation: u64, origin: Origin) {
        let topic = &mut self.topics[topic];
        if topic.incarnation != Some(incarnation) {
            topic.late.insert((origin.connection, origin.sequence));
        }
    }

    /// What was in it is gone, with its subscriptions.
    pub fn topic_deleted(&mut self, topic: usize, record: &TopicRecord) {
        let ledgers: Vec<u64> = record.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
        self.are_done_with(&ledgers);
        let topic = &mut self.topics[topic];
        topic.gone.extend(ledgers);
        topic.was_stored.extend(std::mem::take(&mut topic.stored).into_keys());
        topic.entries.clear();
        topic.gone_up_to.clear();
        topic.subscriptions.iter_mut().for_each(|sub| *sub = SubTruth::default());
        (topic.incarnation, topic.was_deleted) = (None, true);
    }

    pub fn topic_created(&mut self, topic: usize, incarnation: u64) {
        self.topics[topic].incarnation = Some(incarnation);
    }

    pub fn incarnation(&self, topic: usize) -> Option<u64> {
        self.topics[topic].incarnation
    }

    /// The topic's record no longer names these ledgers: every subscription has acknowledged what was in them, durably.
    pub fn ledgers_dropped(&mut self, topic: usize, dropped: &[u64]) {
        let topic = &mut self.topics[topic];
        for &ledger_id in dropped {
            topic.gone.insert(ledger_id);
            let range = Position { ledger_id, entry_id: -1 }..Position { ledger_id: ledger_id + 1, entry_id: -1 };
            let lost: Vec<Position> = topic.entries.range(range).map(|(position, _)| *position).collect();
            for position in lost {
                if let Some(Existing { producer, highest_sequence, .. }) = topic.entries.remove(&position) {
                    let highest = topic.gone_up_to.entry(producer).or_default();
                    *highest = highest_sequence.max(*highest);
                }
                for (number, sub) in topic.subscriptions.iter_mut().enumerate() {
                    assert!(sub.forget(position), "{position} is trimmed, and subscription {number} may need it");
                }
            }
        }
    }

    /// A new owner has taken the topic over and knows this.
    pub fn loaded(&mut self, topic: usize, ownership: u64, list: &LedgerList, cursors: &[&Cursor]) {
        for (sub, cursor) in cursors.iter().enumerate() {
            let acked = positions(list).filter(|position| cursor.is_acked(*position));
            self.deliveries.begin(OwnedSub { topic, sub, ownership }, acked);
        }
        let order = self.order;
        let truth = &mut self.topics[topic];
        if ownership < truth.ownership {
            return;
        }
        truth.ownership = ownership;
        let (deduplicates, was_deleted) = (truth.deduplicates, truth.was_deleted);
        let missing = truth.entries.keys().find(|position| !list.contains(**position));
        assert_eq!(missing, None, "it was acknowledged, and is not in the list of topic {topic}");
        let mut last = truth.gone_up_to.clone();
        for position in positions(list) {
            let written = self.ledgers.get(&position.ledger_id);
            let payload = written.and_then(|ledger| ledger.written.get(position.entry_id as usize));
            let entry = Entry::from_bytes(payload.unwrap_or_else(|| panic!("{position} was never written")));
            let origin = entry.origin.expect("every message has a producer");
            if let Some(last) = last.get(&origin.producer) {
                let in_order = if deduplicates { origin.sequence > *last } else { origin.sequence <= *last + 1 };
                // Its producers may send again by mistake what is gone with the topic.
                let may_have_gaps = was_deleted && !deduplicates;
                assert!(
                    in_order || may_have_gaps,
                    "{position} is out of its producer's order: {origin:?} after {last}"
                );
            }
            let highest = last.entry(origin.producer).or_default();
            *highest = entry.highest_sequence().max(*highest);
            truth.exists(position, &entry, None);
        }
        for (sub, cursor) in truth.subscriptions.iter_mut().zip(cursors) {
            sub.loaded(list, cursor, ownership, order);
        }
    }

    /// A consumer is given an entry.
    pub fn delivered(&self, topic: usize, position: Position, payload: &Bytes) {
        self.entry_read(position.ledger_id, position.entry_id as u64, payload);
        let topic = &self.topics[topic];
        let exists = topic.entries.contains_key(&position) || topic.gone.contains(&position.ledger_id);
        // Recovered by an owner that is deposed, though it does not know yet: the ledger has it for good.
        let is_recovered = || self.ledgers[&position.ledger_id].has_for_good(position.entry_id as u64);
        assert!(exists || is_recovered(), "{position} is delivered, and was not confirmed");
    }

    /// A broker hands an entry out.
    pub fn given(&mut self, topic: usize, shares_keys: bool, connection: u64, position: Position, entry: &Entry) {
        if shares_keys {
            self.deliveries.check_key(connection, position, entry.key(), &self.topics[topic].entries);
        }
        self.deliveries.given(connection, position, entry);
    }

    /// A cursor has taken acknowledgements in, in memory.
    pub fn ack_applied(&mut self, topic: usize, sub: usize, ownership: u64, positions: Vec<Position>) -> AckToken {
        self.order += 1;
        self.topics[topic].subscriptions[sub].applied(&positions, self.order);
        self.deliveries.acked(OwnedSub { topic, sub, ownership }, &positions);
        AckToken { topic, sub, ownership, order: self.order, target: None, positions }
    }

    /// A cursor was reset, in memory: what is `before` the target is acknowledged, and nothing else.
    pub fn seek_applied(
        &mut self,
        topic: usize,
        sub: usize,
        ownership: u64,
        target: Position,
        before: Vec<Position>,
    ) -> AckToken {
        self.order += 1;
        let topic_ownership = self.topics[topic].ownership;
        let truth = &mut self.topics[topic].subscriptions[sub];
        truth.applied(&before, self.order);
        if ownership >= topic_ownership {
            truth.reset(target, self.order);
        }
        AckToken { topic, sub, ownership, order: self.order, target: Some(target), positions: before }
    }

    /// What is acknowledged at present, as somebody has a receipt for or an owner has found.
    pub fn durable_acks(&self, topic: usize, sub: usize) -> BTreeSet<Position> {
        self.topics[topic].subscriptions[sub].durable_acks().clone()
    }

    /// A consumer has joined, that came when `known` was acknowledged.
    pub fn admitted(&self, topic: usize, sub: usize, known: &BTreeSet<Position>, cursor: &Cursor) {
        let truth = self.topics[topic].subscriptions[sub].durable_acks();
        let lost = known.iter().find(|position| truth.contains(position) && !cursor.is_acked(**position));
        assert_eq!(lost, None, "its ack was durable when a consumer came, whose owner does not know of it");
    }

    /// It is durable, as its owner believes.
    pub fn ack_durable(&mut self, token: AckToken) {
        let topic = &mut self.topics[token.topic];
        let exists = |position: &Position| topic.entries.contains_key(position);
        let positions: Vec<Position> = token.positions.iter().copied().filter(exists).collect();
        let is_deposed = token.ownership < topic.ownership;
        topic.subscriptions[token.sub].durable(&token, &positions, is_deposed);
    }
}

impl TopicTruth {
    fn exists(&mut self, position: Position, entry: &Entry, seen_by: Option<u64>) {
        let origin = entry.origin.expect("every message has a producer");
        let existing =
            Existing { producer: origin.producer, highest_sequence: entry.highest_sequence(), key: entry.key() };
        self.entries.insert(position, existing);
        let stored = self.stored.entry((origin.producer, origin.sequence)).or_insert((position, seen_by));
        let (first, first_seen_by) = *stored;
        let may_come_again = !self.deduplicates && (seen_by.is_none() || seen_by != first_seen_by);
        assert!(may_come_again || first == position, "{position} is a duplicate of {first}: {origin:?}");
        if first != position || seen_by.is_some() {
            *stored = (position, seen_by);
        }
    }
}

impl LedgerTruth {
    fn has_for_good(&self, entry: u64) -> bool {
        matches!(self.closed, Some(LedgerState::Closed { entries, .. }) if entry < entries)
    }

    /// The nodes that the metadata name for an entry.
    fn places(&self, entry: u64) -> impl Iterator<Item = usize> {
        let metadata = self.metadata.as_ref().expect("the ledger exists");
        let ensemble = &metadata.fragment_of(entry).ensemble;
        distribution::write_order(metadata.quorum, entry).filter_map(|slot| node_number(&ensemble[slot]))
    }

    /// What is confirmed is where the metadata say.
    fn check_disks(&self, sim: &Sim, ledger: u64) {
        for entry in 0..self.confirmed {
            let good = self.places(entry).any(|node| self.is_good(sim, node, ledger, entry));
            assert!(good, "entry {entry} of ledger {ledger} is confirmed, and nobody has it any more");
        }
    }

    fn is_good(&self, sim: &Sim, node: usize, ledger: u64, entry: u64) -> bool {
        let payload = &self.written[entry as usize];
        sim.nodes.borrow()[node].holds(ledger, entry, |body| body.ends_with(payload))
    }

    /// On how many nodes an entry is, counting those that may lose it, and how many are needed.
    fn holders(&self, sim: &Sim, ledger: u64, entry: u64) -> (u32, u32) {
        let metadata = self.metadata.as_ref().expect("the ledger exists");
        let holds = |node: &usize| sim.nodes.borrow()[*node].is_victim || self.is_good(sim, *node, ledger, entry);
        (self.places(entry).filter(holds).count() as u32, metadata.quorum.ack)
    }
}
