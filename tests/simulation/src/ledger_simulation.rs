//! The managed ledger, its cursors and their log under crashes, take-overs, failing writes, a full disk and lost metadata
//! answers, in random order from a seed.
//!
//! Checked at every step that can break it:
//! - an acknowledged publish is in the list, readable, in order and with a continuous index until every subscription, in
//!   every state that a crash may bring back, has acknowledged it;
//! - after a crash each subscription is found in the state after one of its records, none older than the last confirmed one;
//! - no ledger is deleted that a saved record names;
//! - a message that its producer sends again is stored once, in the producer's order, and none gets a receipt that is not stored;
//! - when faults stop, everything that waits ends, and the topic takes messages again.
//!
//! Storage is either the contract of ledgers as a model, or the storage engine on a simulated disk.

use geminga_ledger::cursor::{AckKind, Cursor};
use geminga_ledger::cursor_log::Record;
use geminga_ledger::managed_ledger::{ManagedLedgerRecord, PAUSE_MAX_MS, Retention};
use geminga_model::Position;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::ledger_engine::EngineLedgers;
use crate::ledger_oracle::{Acks, BATCH, Check, Entry, SubOracle, TopicOracle, positions};
use crate::ledger_owner::{Backend, Confirmed, Owner, Plant};
use crate::ledger_producers::{Answer, Producer};
use crate::ledger_store::{Ledgers, Metadata, ModelLedgers, Versioned};
use std::collections::BTreeMap;

/// An owner that was replaced and does not know it yet.
struct Zombie {
    owner: Owner,
    /// Per subscription the first of its records that the new owner did not find: may never become durable.
    lost: Vec<(u64, u64)>,
}

struct World {
    rng: SmallRng,
    backend: Backend,
    owner: Owner,
    zombies: Vec<Zombie>,
    topics: Vec<TopicOracle>,
    subscriptions: BTreeMap<u64, SubOracle>,
    producers: Vec<Producer>,
    next_connection: u64,
    next_owner: u32,
    next_subscription: u64,
    next_entry: u64,
    faults: bool,
    /// Which faults are on at all, drawn per seed.
    write_failures: bool,
    put_failures: bool,
    plant: Plant,
    trace: u64,
    seen: Seen,
}

/// How often a run met what is worth meeting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Of everything that happened.
    pub digest: u64,
    pub confirmed: u64,
    pub confirmed_by_deposed: u64,
    pub failed_writes: u64,
    pub loads: u64,
    /// Records of acknowledgements that were not confirmed and not found after a crash.
    pub lost_records: u64,
    /// Messages that were known to be stored, and those of which that was open.
    pub duplicates: u64,
    pub refused: u64,
    /// Entries that deduplication read while loading.
    pub replayed: u64,
    pub trimmed: u64,
    pub deleted_ledgers: u64,
    pub deleted_log_ledgers: u64,
    /// Crashes in the middle of what the disk did.
    pub torn: u64,
    /// Turned bits that storage found, which ended the run.
    pub noticed_damage: u64,
}

/// What stores the ledgers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Model,
    Engine,
}

/// Runs one seed. `Err` says what was violated.
pub fn run(seed: u64, storage: Storage, plant: Plant) -> Result<Seen, String> {
    let mut world = World::new(seed, storage, plant)?;
    let steps = world.rng.random_range(100..700);
    let mut result = Ok(());
    for _ in 0..steps {
        result = world.step();
        if result.is_err() {
            break;
        }
    }
    match result.and_then(|()| world.finish()) {
        // There is one copy: what is damaged is lost, and it was told so.
        Err(_) if world.backend.ledgers.noticed_damage() => world.seen.noticed_damage += 1,
        result => result?,
    }
    world.record(7, world.backend.ledgers.digest());
    Ok(Seen { digest: world.trace, ..world.seen })
}

impl World {
    fn new(seed: u64, storage: Storage, plant: Plant) -> Result<World, String> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ledgers: Box<dyn Ledgers> = match storage {
            Storage::Model => Box::new(ModelLedgers::default()),
            Storage::Engine => Box::new(EngineLedgers::new(&mut rng, plant)),
        };
        let topics = rng.random_range(1..=2);
        let mut metadata = Metadata::default();
        metadata.topics.extend((0..topics).map(|_| Versioned::<ManagedLedgerRecord>::default()));
        let mut backend = Backend { ledgers, metadata, now_ms: 1000 };
        let mut world = World {
            owner: Owner::load(1, &mut backend, plant)?,
            backend,
            zombies: Vec::new(),
            topics: (0..topics).map(|_| TopicOracle::default()).collect(),
            subscriptions: BTreeMap::new(),
            producers: Vec::new(),
            next_connection: 1,
            next_owner: 2,
            next_subscription: 1,
            next_entry: 1,
            faults: true,
            write_failures: rng.random_bool(0.6),
            put_failures: rng.random_bool(0.6),
            plant,
            trace: seed,
            seen: Seen::default(),
            rng,
        };
        for _ in 0..world.rng.random_range(1..4) {
            world.subscribe();
        }
        for number in 0..world.rng.random_range(0..=3) {
            let topic = world.any_topic();
            world.producers.push(Producer::new(number, topic));
        }
        Ok(world)
    }

    fn record(&mut self, what: u64, detail: u64) {
        self.trace = (self.trace ^ what ^ detail.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    }

    fn step(&mut self) -> Check {
        let choice = self.rng.random_range(0..1000);
        self.record(1, choice);
        match choice {
            0..100 => self.publish(),
            100..200 => self.produce()?,
            200..420 => self.acknowledge(),
            420..430 => self.seek(),
            430..436 => self.skip(),
            436..660 => self.backend.ledgers.store_next(&mut self.rng, self.faults && self.write_failures),
            660..820 => self.deliver()?,
            820..920 => self.finish_put(),
            920..950 => self.time_passes(),
            950..970 => self.trim()?,
            970..974 => self.truncate(),
            974..980 => self.subscribe(),
            980..984 => self.unsubscribe(),
            984..988 => self.backend.ledgers.fill(&mut self.rng),
            988..993 => self.crash()?,
            993..995 => self.crash_soon()?,
            995..999 => self.take_over()?,
            _ => self.terminate(),
        }
        if self.backend.ledgers.needs_restart() {
            self.seen.torn += 1;
            self.crash()?;
        }
        self.run_owners()?;
        self.confirm_acks();
        if choice % 16 == 0 {
            self.check()?;
        }
        Ok(())
    }

    fn run_owners(&mut self) -> Check {
        self.owner.run(&mut self.backend)?;
        self.zombies.iter_mut().try_for_each(|zombie| zombie.owner.run(&mut self.backend))
    }

    fn any_topic(&mut self) -> usize {
        self.rng.random_range(0..self.topics.len())
    }

    fn publish(&mut self) {
        let at = self.any_topic();
        let count = self.rng.random_range(1..4);
        let mut entries = Vec::new();
        for _ in 0..count {
            let messages = self.rng.random_range(1..=BATCH);
            entries.push(Entry { id: self.next_entry, messages, index: 0, origin: None });
            self.next_entry += 1;
        }
        let now = self.backend.now_ms;
        if !self.zombies.is_empty() && self.rng.random_bool(0.3) {
            let zombie = self.rng.random_range(0..self.zombies.len());
            self.zombies[zombie].owner.topics[at].append(now, entries);
        } else {
            self.owner.topics[at].append(now, entries);
        }
    }

    /// A producer with deduplication writes something, or nothing, and sends what it has to.
    fn produce(&mut self) -> Check {
        if self.producers.is_empty() {
            return Ok(());
        }
        let number = self.rng.random_range(0..self.producers.len());
        match self.rng.random_range(0..20) {
            0 => self.connect(number),
            1..4 => {}
            _ => self.producers[number].write(&mut self.rng),
        }
        self.send(number)
    }

    /// To the present owner.
    fn connect(&mut self, number: usize) {
        let connection = self.next_connection;
        self.next_connection += 1;
        self.producers[number].connected(self.owner.id, connection);
    }

    /// Sends what was not sent on this connection; on a new one, if the old one has ended. An error is heard of some time after it
    /// was sent.
    fn send(&mut self, number: usize) -> Check {
        let at = self.producers[number].topic;
        let (id, connection) = (self.producers[number].owner, self.producers[number].connection);
        let broken = |owner: &Owner| owner.topics[at].is_broken(connection);
        let ended = match self.owner_mut(id) {
            Some(owner) if broken(owner) => self.rng.random_bool(0.7),
            Some(_) => false,
            None => true,
        };
        if ended {
            self.connect(number);
        }
        let mut entries = Vec::new();
        while let Some(entry) = self.producers[number].unsent(self.next_entry) {
            let owner = self.owner_mut(self.producers[number].owner).expect("it is connected");
            let answer = owner.check(at, &entry);
            self.producers[number].answered(answer);
            self.record(8, entry.id << 2 | answer as u64);
            match answer {
                Answer::Taken => {
                    self.next_entry += 1;
                    entries.push(entry);
                }
                Answer::Refused => self.seen.refused += 1,
                Answer::Receipt => {
                    self.seen.duplicates += 1;
                    let stored = entry.origin.is_some_and(|origin| self.topics[at].has_stored(origin));
                    if !stored {
                        return Err(format!("it is taken for a duplicate and is not stored: {entry:?}"));
                    }
                }
            }
        }
        if !entries.is_empty() {
            let now = self.backend.now_ms;
            let owner = self.owner_mut(self.producers[number].owner).expect("it is connected");
            owner.topics[at].append(now, entries);
        }
        self.run_owners()
    }

    fn owner_mut(&mut self, id: u32) -> Option<&mut Owner> {
        match self.owner.id == id {
            true => Some(&mut self.owner),
            false => self.zombies.iter_mut().map(|zombie| &mut zombie.owner).find(|owner| owner.id == id),
        }
    }

    /// Producers hear of what is durable.
    fn send_receipts(&mut self, confirmed: &Confirmed) {
        for origin in confirmed.entries.iter().filter_map(|(_, entry)| entry.origin) {
            self.producers[origin.producer as usize].receipt(origin);
        }
    }

    /// Some subscription and its topic.
    fn any_subscription(&mut self) -> Option<(u64, usize)> {
        let at = self.rng.random_range(0..self.subscriptions.len().max(1));
        self.subscriptions.iter().nth(at).map(|(id, sub)| (*id, sub.topic))
    }

    /// A position, mostly of an unacknowledged entry.
    fn any_position(&mut self, topic: usize) -> Position {
        let list = self.owner.topics[topic].ledger.list();
        let total = list.total_entries();
        if total == 0 || self.rng.random_bool(0.05) {
            return Position { ledger_id: self.rng.random_range(0..30), entry_id: self.rng.random_range(-1..25) };
        }
        let nth = if self.rng.random_bool(0.5) {
            self.rng.random_range(0..total)
        } else {
            self.rng.random_range(0..total.min(12))
        };
        list.nth_after(Position::EARLIEST, nth + 1).expect("it has that many")
    }

    fn acknowledge(&mut self) {
        let Some((id, at)) = self.any_subscription() else { return };
        for _ in 0..self.rng.random_range(1..6) {
            let pos = self.any_position(at);
            let kind = self.rng.random_range(0..10);
            let set: u64 = self.rng.random_range(0..1 << BATCH);
            self.record(2, pos.ledger_id << 32 ^ pos.entry_id as u64 ^ kind << 60);
            let topic = &mut self.owner.topics[at];
            let (list, cursor) = (topic.ledger.list(), topic.cursors.get_mut(&id).expect("every subscription has one"));
            let acks = self.subscriptions.get_mut(&id).expect("it was just chosen");
            let mut next = acks.now().clone();
            match kind {
                0..5 => {
                    if list.contains(pos) {
                        next.ack(pos);
                    }
                    cursor.ack(list, pos, AckKind::Entry);
                }
                5..9 => {
                    if list.contains(pos) {
                        next.ack_batch(pos, set);
                    }
                    cursor.ack(list, pos, AckKind::Batch { ack_set: &[set], batch_size: BATCH });
                }
                _ => {
                    if list.contains(pos) {
                        next.ack_through(list, pos);
                        cursor.ack_cumulative(list, pos, AckKind::Entry);
                    }
                }
            }
            let delta = cursor.take_delta().map(|delta| Record::Delta { cursor_id: id, delta });
            self.append(id, next, delta);
        }
    }

    /// A change of a subscription: the oracle's state after it, and the record of it, if there was anything to record.
    fn append(&mut self, id: u64, acks: Acks, record: Option<Record>) {
        let Some(record) = record else { return };
        self.owner.append(record);
        let sub = self.subscriptions.get_mut(&id).expect("it exists");
        sub.states.push_back((self.owner.sequence, acks));
        if self.plant == Plant::AckBeforeDurable {
            sub.durable_to(u64::MAX);
        }
    }

    fn seek(&mut self) {
        let Some((id, at)) = self.any_subscription() else { return };
        let pos = match self.rng.random_range(0..8) {
            0 => Position::EARLIEST,
            1 => Position::LATEST,
            _ => self.any_position(at),
        };
        let topic = &mut self.owner.topics[at];
        let (list, cursor) = (topic.ledger.list(), topic.cursors.get_mut(&id).expect("every subscription has one"));
        let acks = Acks { entries: positions(list).filter(|p| *p < pos).collect(), ..Acks::default() };
        cursor.reset(list, pos);
        let mut stored = cursor.clone();
        if self.plant == Plant::SeekStoresReadPosition {
            stored.ack_cumulative(list, pos, AckKind::Entry);
        }
        cursor.take_delta();
        let delta = stored.take_delta().map(|delta| Record::Delta { cursor_id: id, delta });
        self.append(id, acks, delta);
    }

    fn skip(&mut self) {
        let Some((id, at)) = self.any_subscription() else { return };
        let count = self.rng.random_range(0..5);
        let topic = &mut self.owner.topics[at];
        let (list, cursor) = (topic.ledger.list(), topic.cursors.get_mut(&id).expect("every subscription has one"));
        let mut acks = self.subscriptions[&id].now().clone();
        acks.unacked(list).into_iter().take(count).for_each(|pos| acks.ack(pos));
        cursor.skip(list, count as u64);
        let delta = cursor.take_delta().map(|delta| Record::Delta { cursor_id: id, delta });
        self.append(id, acks, delta);
    }

    fn deliver(&mut self) -> Check {
        let Some(done) = self.backend.ledgers.next_done(&mut self.rng) else { return Ok(()) };
        self.record(3, done.ledger << 20 ^ done.first << 1 ^ u64::from(done.result.is_ok()));
        if done.owner == self.owner.id {
            self.seen.failed_writes += u64::from(done.result.is_err());
            let confirmed = self.owner.written(done)?;
            self.seen.confirmed += confirmed.entries.len() as u64;
            self.send_receipts(&confirmed);
            let topic = &mut self.topics[confirmed.topic];
            return confirmed.entries.into_iter().try_for_each(|(pos, entry)| topic.confirm(pos, entry));
        }
        let Some(zombie) = self.zombies.iter_mut().find(|zombie| zombie.owner.id == done.owner) else { return Ok(()) };
        let confirmed = zombie.owner.written(done)?;
        self.seen.confirmed_by_deposed += confirmed.entries.len() as u64;
        let durable = zombie.owner.log.durable_up_to();
        if let Some((id, lost)) = zombie.lost.iter().find(|(_, lost)| durable >= *lost) {
            return Err(format!("record {lost} of subscription {id} is durable at a deposed owner, and was not found"));
        }
        self.confirmed_by_zombie(confirmed)
    }

    fn confirmed_by_zombie(&mut self, confirmed: Confirmed) -> Check {
        self.send_receipts(&confirmed);
        let topic = &self.topics[confirmed.topic];
        for (pos, entry) in confirmed.entries {
            if topic.confirmed.get(&pos) != Some(&entry) {
                return Err(format!("{pos} was acknowledged by a deposed owner, and was not found by the new one"));
            }
        }
        Ok(())
    }

    fn finish_put(&mut self) {
        let Some(done) = self.backend.metadata.finish_one(&mut self.rng, self.faults && self.put_failures) else {
            return;
        };
        self.record(4, u64::from(done.owner));
        if done.owner == self.owner.id {
            self.owner.put_done(done, &self.backend);
        } else if let Some(at) = self.zombies.iter().position(|zombie| zombie.owner.id == done.owner) {
            self.zombies[at].owner.put_done(done, &self.backend);
            if self.zombies[at].owner.deposed {
                self.zombies.remove(at);
            }
        }
    }

    fn time_passes(&mut self) {
        self.backend.now_ms += self.rng.random_range(1..2000);
        if self.backend.ledgers.is_full() && self.rng.random_bool(0.4) {
            self.backend.ledgers.make_room();
        }
        let zombies = self.zombies.iter_mut().map(|zombie| &mut zombie.owner);
        for owner in zombies.chain([&mut self.owner]) {
            owner.topics.iter_mut().for_each(|topic| topic.ledger.tick(self.backend.now_ms));
            owner.log.tick();
        }
    }

    /// Acks that have become durable are confirmed to their consumers.
    fn confirm_acks(&mut self) {
        let durable = self.owner.log.durable_up_to();
        self.subscriptions.values_mut().for_each(|sub| sub.durable_to(durable));
    }

    fn trim(&mut self) -> Check {
        let at = self.any_topic();
        let retention = match self.rng.random_range(0..4) {
            0 => Retention { time_ms: 3000, size_bytes: -1 },
            1 => Retention { time_ms: -1, size_bytes: 2000 },
            _ => Retention::NONE,
        };
        let before: Vec<Position> = positions(self.owner.topics[at].ledger.list()).collect();
        let too_early = self.owner.trim(at, &self.backend, retention);
        too_early.into_iter().for_each(|id| self.backend.ledgers.delete(id));
        let list = self.owner.topics[at].ledger.list();
        let gone: Vec<Position> = before.into_iter().filter(|pos| !list.contains(*pos)).collect();
        self.seen.trimmed += gone.len() as u64;
        for pos in gone {
            self.record(5, pos.entry_id as u64);
            let topic = &mut self.topics[at];
            topic.trimmed_to = topic.trimmed_to.max(Some(pos));
            let needs = self.subscriptions.iter().find(|(_, sub)| sub.topic == at && !sub.never_needs(pos));
            if let Some((id, _)) = needs {
                return Err(format!("{pos} is trimmed, and subscription {id} may still need it"));
            }
        }
        Ok(())
    }

    /// As Pulsar does it: all cursors go to the end first.
    fn truncate(&mut self) {
        let at = self.any_topic();
        if !self.owner.topics[at].in_flight.is_empty() || !self.owner.may_truncate(at) {
            return;
        }
        let last = self.owner.topics[at].ledger.last_confirmed();
        let ids: Vec<u64> = self.subscriptions.iter().filter(|(_, sub)| sub.topic == at).map(|(id, _)| *id).collect();
        for id in ids {
            let topic = &mut self.owner.topics[at];
            let (list, cursor) = (topic.ledger.list(), topic.cursors.get_mut(&id).expect("every subscription has one"));
            let mut acks = self.subscriptions[&id].now().clone();
            acks.ack_through(list, last);
            cursor.ack_cumulative(list, last, AckKind::Entry);
            let delta = cursor.take_delta().map(|delta| Record::Delta { cursor_id: id, delta });
            self.append(id, acks, delta);
        }
        self.topics[at].trimmed_to = self.topics[at].trimmed_to.max(Some(last));
        self.owner.topics[at].ledger.truncate();
    }

    fn subscribe(&mut self) {
        let (id, at) = (self.next_subscription, self.any_topic());
        self.next_subscription += 1;
        let list = self.owner.topics[at].ledger.list();
        let initial = if self.rng.random_bool(0.5) { Position::EARLIEST } else { list.last_position() };
        self.subscriptions.insert(id, SubOracle::new(at, Acks::up_to(list, initial)));
        self.backend.metadata.subscriptions.insert(id, (at, initial));
        self.owner.topics[at].cursors.insert(id, Cursor::new(initial));
    }

    fn unsubscribe(&mut self) {
        let Some((id, at)) = self.any_subscription() else { return };
        self.backend.metadata.subscriptions.remove(&id);
        self.subscriptions.remove(&id);
        self.owner.topics[at].cursors.remove(&id);
        self.owner.append(Record::Dropped { cursor_id: id });
    }

    fn terminate(&mut self) {
        let at = self.any_topic();
        self.owner.topics[at].ledger.terminate();
    }

    fn crash(&mut self) -> Check {
        self.restart()?;
        self.load()?;
        self.zombies.clear();
        Ok(())
    }

    /// In the middle of a write, if the disk can do that.
    fn crash_soon(&mut self) -> Check {
        self.backend.ledgers.crash_soon(&mut self.rng);
        Ok(())
    }

    fn restart(&mut self) -> Check {
        self.backend.ledgers.restart(&mut self.rng)?;
        self.backend.metadata.crash(&mut self.rng);
        Ok(())
    }

    /// Another owner takes over while this one lives on.
    fn take_over(&mut self) -> Check {
        let lost = self.load()?;
        // None is left if the machine crashed meanwhile.
        if let Some(old) = self.zombies.last_mut() {
            old.lost = lost;
        }
        Ok(())
    }

    fn load(&mut self) -> Result<Vec<(u64, u64)>, String> {
        let id = self.next_owner;
        self.next_owner += 1;
        let mut crashed = false;
        let new = loop {
            match Owner::load(id, &mut self.backend, self.plant) {
                Err(_) if self.backend.ledgers.needs_restart() => {
                    crashed = true;
                    self.seen.torn += 1;
                    self.restart()?;
                }
                loaded => break loaded?,
            }
        };
        let old = std::mem::replace(&mut self.owner, new);
        self.seen.deleted_ledgers += old.deleted[0];
        self.seen.deleted_log_ledgers += old.deleted[1];
        if crashed {
            self.zombies.clear();
        } else {
            self.zombies.push(Zombie { owner: old, lost: Vec::new() });
        }
        let mut lost = Vec::new();
        for (at, topic) in self.owner.topics.iter().enumerate() {
            self.topics[at].check(topic.ledger.list(), &*self.backend.ledgers, true)?;
            if self.topics[at].terminated.is_some() && topic.ledger.terminated() != self.topics[at].terminated {
                return Err(format!("topic {at} is no longer terminated"));
            }
            for (&id, cursor) in &topic.cursors {
                let sub = self.subscriptions.get_mut(&id).ok_or(format!("subscription {id} came back"))?;
                let found = sub.found(id, cursor, topic.ledger.list(), self.topics[at].trimmed_to)?;
                lost.extend(found.map(|sequence| (id, sequence)));
            }
            self.topics[at].loaded(topic.ledger.list());
        }
        self.record(6, lost.len() as u64);
        self.seen.loads += 1;
        self.seen.replayed += self.owner.replayed;
        self.seen.lost_records += lost.len() as u64;
        Ok(lost)
    }

    fn check(&mut self) -> Check {
        for (at, topic) in self.owner.topics.iter().enumerate() {
            self.topics[at].check(topic.ledger.list(), &*self.backend.ledgers, false)?;
            self.topics[at].terminated = self.topics[at].terminated.or(topic.ledger.terminated());
            for (id, cursor) in &topic.cursors {
                let list = topic.ledger.list();
                let acks = self.subscriptions[id].now();
                acks.check(cursor, list).map_err(|wrong| format!("subscription {id}: {wrong}"))?;
                if let Some(state) = self.owner.log.state(*id) {
                    let logged = Cursor::from_snapshot(state.clone());
                    acks.check(&logged, list).map_err(|wrong| format!("subscription {id} in the log: {wrong}"))?;
                }
            }
        }
        Ok(())
    }

    /// Faults stop: everything ends, and works again. And a last crash.
    fn finish(&mut self) -> Check {
        self.faults = false;
        self.backend.ledgers.end_faults();
        self.settle()?;
        let before = self.topics.iter().map(|topic| topic.confirmed.len()).sum::<usize>();
        let open = self.owner.topics.iter().filter(|topic| topic.ledger.terminated().is_none()).count();
        // However often storage has refused a topic's ledgers, it is tried again after so long.
        self.backend.now_ms += PAUSE_MAX_MS;
        for at in 0..self.topics.len() {
            let entry = Entry { id: self.next_entry, messages: 1, index: 0, origin: None };
            self.next_entry += 1;
            self.owner.topics[at].append(self.backend.now_ms, vec![entry]);
        }
        self.settle()?;
        let after = self.topics.iter().map(|topic| topic.confirmed.len()).sum::<usize>();
        if after != before + open {
            return Err(format!("{} of {open} topics take messages again", after - before));
        }
        self.check()?;
        self.crash()?;
        self.check()
    }

    fn settle(&mut self) -> Check {
        for _ in 0..10_000 {
            if self.backend.ledgers.needs_restart() {
                self.crash()?;
            }
            self.run_owners()?;
            self.confirm_acks();
            let mut waiting = false;
            for number in 0..self.producers.len() {
                if self.owner.topics[self.producers[number].topic].ledger.terminated().is_none() {
                    self.send(number)?;
                    waiting |= !self.producers[number].is_idle();
                }
            }
            let busy = waiting
                || self.backend.ledgers.has_queued()
                || self.backend.ledgers.has_done()
                || self.backend.metadata.has_puts();
            if !busy && self.owner.is_settled() {
                return Ok(());
            }
            self.backend.ledgers.store_next(&mut self.rng, false);
            self.deliver()?;
            self.finish_put();
            self.time_passes();
        }
        Err(format!(
            "waits for ever: {:?}, {:?}, cursor log at {} of {}",
            self.producers,
            self.owner.topics.iter().map(|topic| topic.ledger.waiting_for()).collect::<Vec<_>>(),
            self.owner.log.durable_up_to(),
            self.owner.sequence,
        ))
    }
}
