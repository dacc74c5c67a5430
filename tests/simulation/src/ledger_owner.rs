//! A broker as the managed-ledger simulation has it: drives the state machines of a few topics and of the cursor log that
//! they share, and carries their actions out on storage and metadata.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use bytes::Bytes;
use geminga_ledger::cursor::Cursor;
use geminga_ledger::cursor_log::{self, CursorLog, CursorLogConfig, Record};
use geminga_ledger::managed_ledger::{Action, ManagedLedger, ManagedLedgerConfig, Retention};
use geminga_model::Position;
use geminga_topic::dedup::{Deduplication, Verdict, snapshot_holds_up_trimming};

use crate::ledger_oracle::{Check, Entry, positions};
use crate::ledger_producers::{Answer, name, replay};
use crate::ledger_store::{Ledgers, Metadata, Part, PutDone, PutResult, WriteDone};

/// A bug to be planted, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    None,
    /// pulsar#18236: a seek stores its target as the mark-delete position.
    SeekStoresReadPosition,
    /// An ack is confirmed when it is queued.
    AckBeforeDurable,
    /// Trimming goes by the mark-delete positions in memory.
    TrimByMemory,
    /// Ledgers are deleted when the list changes, not when that is saved.
    DeleteBeforeSave,
    /// The new owner does not fence the last ledger.
    NoFence,
    /// After a failed write the ledger is used on as if nothing had happened.
    IgnoreWriteError,
    /// Storage answers before it has written. Of the engine only.
    AckBeforeSync,
    /// Storage takes a failed write or sync for a good one. Of the engine only.
    IgnoreSyncError,
    /// Deduplication does not hear of what was stored after its snapshot.
    NoReplay,
    /// Trimming does not mind from where deduplication would replay.
    TrimAheadOfSnapshot,
    /// A message whose first sending is not durable yet gets a receipt.
    UnknownIsDuplicate,
    /// After a message has failed, those sent behind it on the same connection are taken.
    LaterMessagesPass,
}

/// Small enough that every limit is met within a few hundred steps.
const LEDGER: ManagedLedgerConfig =
    ManagedLedgerConfig { max_ledger_bytes: 1500, max_ledger_entries: 20, max_ledger_age_ms: 5000 };
const LOG: CursorLogConfig = CursorLogConfig {
    max_entry_bytes: 128,
    max_write_bytes: 100,
    rotate_bytes: 700,
    snapshot_step_bytes: 200,
    max_writes: 2,
    max_old_ledgers: 2,
};
/// Keys of deduplication's snapshots in the cursor log; above those of subscriptions.
const SNAPSHOT_KEYS: u64 = 1 << 32;
/// Confirmed entries between snapshots of deduplication.
const SNAPSHOT_ENTRIES: u64 = 15;

pub struct Topic {
    pub ledger: ManagedLedger<Entry>,
    pub cursors: BTreeMap<u64, Cursor>,
    pub in_flight: BTreeMap<Position, Entry>,
    version: u64,
    last_appended: u64,
    /// Entries from an id that failed to the last one appended before that was reported: none may be confirmed any more.
    void: Vec<RangeInclusive<u64>>,
    pub dedup: Deduplication,
    snapshots: Snapshots,
    /// Connections of producers on which a message failed: nothing more is taken from them.
    broken: BTreeSet<u64>,
}

/// Where deduplication would replay from after a crash.
struct Snapshots {
    /// Key in the cursor log.
    key: u64,
    entries_since: u64,
    durable: Position,
    /// Sequence number in the cursor log, position.
    under_way: VecDeque<(u64, Position)>,
}

impl Topic {
    pub fn append(&mut self, now_ms: u64, entries: Vec<Entry>) {
        self.last_appended = entries.last().map_or(self.last_appended, |last| last.id);
        self.ledger.append(now_ms, entries);
    }

    /// These entries will not become durable; together with everything behind the first.
    fn failed(&mut self, entries: &[Entry]) {
        self.void.extend(entries.first().map(|first| first.id..=self.last_appended));
        for origin in entries.iter().filter_map(|entry| entry.origin) {
            self.dedup.failed(&name(origin.producer));
            self.broken.insert(origin.connection);
        }
    }

    pub fn is_broken(&self, connection: u64) -> bool {
        self.broken.contains(&connection)
    }

    fn is_new(&mut self, entry: &Entry, plant: Plant) -> Answer {
        let Some(origin) = entry.origin else { return Answer::Taken };
        if self.is_broken(origin.connection) && plant != Plant::LaterMessagesPass {
            return Answer::Refused;
        }
        match self.dedup.check(&name(origin.producer), origin.sequence, entry.highest_sequence(), false) {
            Verdict::New => Answer::Taken,
            Verdict::Duplicate => Answer::Receipt,
            Verdict::Unknown if plant == Plant::UnknownIsDuplicate => Answer::Receipt,
            Verdict::Unknown => {
                self.broken.insert(origin.connection);
                Answer::Refused
            }
        }
    }

    fn check_confirmed(&self, entry: &Entry) -> Check {
        match self.void.iter().find(|void| void.contains(&entry.id)) {
            Some(void) => Err(format!("entry {} is confirmed after {} before it failed", entry.id, void.start())),
            None => Ok(()),
        }
    }
}

pub struct Owner {
    pub id: u32,
    pub topics: Vec<Topic>,
    pub log: CursorLog,
    /// The sequence number of the last record.
    pub sequence: u64,
    log_version: u64,
    /// Lost its place: does nothing more.
    pub deposed: bool,
    /// Ledgers of topics, of the log.
    pub deleted: [u64; 2],
    /// Entries that deduplication read while loading.
    pub replayed: u64,
    plant: Plant,
}

/// What storage and metadata an owner works on.
pub struct Backend {
    pub ledgers: Box<dyn Ledgers>,
    pub metadata: Metadata,
    pub now_ms: u64,
}

/// What a completion means for the producers.
#[derive(Debug, Default)]
pub struct Confirmed {
    pub topic: usize,
    pub entries: Vec<(Position, Entry)>,
}

impl Owner {
    /// Takes over all topics and the cursor log: claims their records, fences what was being written, replays.
    pub fn load(id: u32, backend: &mut Backend, plant: Plant) -> Result<Owner, String> {
        let mut owner = Owner {
            id,
            topics: Vec::new(),
            log: CursorLog::new(LOG).named("a/b/0x00000000_0xffffffff"),
            sequence: 0,
            log_version: 0,
            deposed: false,
            deleted: [0; 2],
            replayed: 0,
            plant,
        };
        owner.load_log(backend)?;
        for topic in 0..backend.metadata.topics.len() {
            let loaded = owner.load_topic(topic, backend)?;
            owner.topics.push(loaded);
        }
        // Subscriptions that were deleted while their records were under way.
        let orphans = owner.log.cursor_ids().filter(|id| !backend.metadata.subscriptions.contains_key(id));
        let mut orphans: Vec<u64> = orphans.collect();
        orphans.sort_unstable();
        for cursor_id in orphans {
            owner.append(Record::Dropped { cursor_id });
        }
        Ok(owner)
    }

    fn load_log(&mut self, backend: &mut Backend) -> Check {
        let record = &mut backend.metadata.log;
        (record.version, record.owner) = (record.version + 1, self.id);
        self.log_version = record.version;
        for ledger in &record.value {
            let entries = match ledger.entries {
                Some(entries) => entries,
                None if self.plant == Plant::NoFence => count(&*backend.ledgers, ledger.ledger_id)?,
                None => backend.ledgers.recover(ledger.ledger_id)?,
            };
            self.log.replay_ledger(ledger.ledger_id);
            let id = ledger.ledger_id;
            let stored = backend.ledgers.read_first(id, entries)?;
            if (stored.len() as u64) < entries {
                return Err(format!("cursor log entry {id}:{} is lost", stored.len()));
            }
            for (entry, bytes) in stored.iter().enumerate() {
                self.log.replay_entry(bytes).map_err(|error| format!("cursor log entry {id}:{entry}: {error}"))?;
            }
        }
        Ok(())
    }

    fn load_topic(&mut self, topic: usize, backend: &mut Backend) -> Result<Topic, String> {
        let record = &mut backend.metadata.topics[topic];
        (record.version, record.owner) = (record.version + 1, self.id);
        let version = record.version;
        let mut ledger = ManagedLedger::new(record.value.clone(), LEDGER);
        if let Some(id) = ledger.needs_recovery() {
            let entries = match self.plant {
                Plant::NoFence => count(&*backend.ledgers, id)?,
                _ => backend.ledgers.recover(id)?,
            };
            let last = match entries.checked_sub(1) {
                Some(last) => backend.ledgers.read(id, last)?.map(|bytes| Entry::from_bytes(&bytes)),
                None => None,
            };
            let next_index = last.map(|last| last.index + u64::from(last.messages));
            ledger.recovered(backend.now_ms, id, entries as i64 - 1, entries * 100, next_index);
        }
        let mut cursors = BTreeMap::new();
        for (&id, &(_, initial)) in backend.metadata.subscriptions.iter().filter(|(_, sub)| sub.0 == topic) {
            let cursor = match self.log.state(id) {
                Some(state) => Cursor::from_snapshot(state.clone()),
                None => Cursor::new(initial),
            };
            cursors.insert(id, cursor);
        }
        let key = SNAPSHOT_KEYS + topic as u64;
        let (mut dedup, durable) = match self.log.blob(key) {
            Some(bytes) => {
                Deduplication::decode(bytes, backend.now_ms).map_err(|error| format!("snapshot: {error}"))?
            }
            None => (Deduplication::new(), Position::EARLIEST),
        };
        let mut entries_since = 0;
        for pos in positions(ledger.list()).filter(|pos| *pos > durable && self.plant != Plant::NoReplay) {
            let bytes = backend.ledgers.read(pos.ledger_id, pos.entry_id as u64)?;
            let bytes = bytes.ok_or_else(|| format!("{pos} is lost, which deduplication has to know"))?;
            replay(&mut dedup, &Entry::from_bytes(&bytes), pos, backend.now_ms);
            entries_since += 1;
        }
        self.replayed += entries_since;
        Ok(Topic {
            ledger,
            cursors,
            in_flight: BTreeMap::new(),
            version,
            last_appended: 0,
            void: Vec::new(),
            dedup,
            snapshots: Snapshots { key, entries_since, durable, under_way: VecDeque::new() },
            broken: BTreeSet::new(),
        })
    }

    /// A producer sends one message, which is to be appended if it is taken.
    pub fn check(&mut self, at: usize, entry: &Entry) -> Answer {
        self.topics[at].is_new(entry, self.plant)
    }

    fn snapshot(&mut self, at: usize) {
        let topic = &mut self.topics[at];
        let position = topic.ledger.last_confirmed();
        topic.snapshots.entries_since = 0;
        let record = Record::Blob { key: topic.snapshots.key, bytes: topic.dedup.encode(position).into() };
        self.append(record);
        self.topics[at].snapshots.under_way.push_back((self.sequence, position));
    }

    /// The last entry that deduplication would not replay after a crash.
    fn snapshot_durable(&mut self, at: usize) -> Position {
        let snapshots = &mut self.topics[at].snapshots;
        let durable_up_to = self.log.durable_up_to();
        while let Some((_, position)) = snapshots.under_way.pop_front_if(|(sequence, _)| *sequence <= durable_up_to) {
            snapshots.durable = position;
        }
        snapshots.durable
    }

    /// Whether deduplication needs nothing of what is in the list; if it does, a snapshot is on its way.
    pub fn may_truncate(&mut self, at: usize) -> bool {
        let last = self.topics[at].ledger.last_confirmed();
        let may = self.snapshot_durable(at) >= last;
        if !may {
            self.snapshot(at);
        }
        may
    }

    pub fn append(&mut self, record: Record) {
        self.sequence = self.log.append(record);
    }

    /// Carries out what the state machines ask for.
    pub fn run(&mut self, backend: &mut Backend) -> Check {
        for topic in 0..self.topics.len() {
            while let Some(action) = self.topics[topic].ledger.poll_action() {
                self.run_topic_action(topic, action, backend)?;
            }
        }
        while let Some(action) = self.log.poll_action() {
            self.run_log_action(action, backend)?;
        }
        Ok(())
    }

    fn run_topic_action(&mut self, at: usize, action: Action<Entry>, backend: &mut Backend) -> Check {
        let topic = &mut self.topics[at];
        match action {
            Action::CreateLedger => {
                let id = backend.metadata.allocate_ledger();
                let record = topic.ledger.record_with(id, backend.now_ms);
                backend.metadata.put_topic(self.id, at, topic.version, record, Some(id));
            }
            Action::SaveRecord => {
                backend.metadata.put_topic(self.id, at, topic.version, topic.ledger.record(), None);
            }
            Action::Write { ledger_id, first_entry, first_index, entries } => {
                let mut index = first_index;
                let mut bytes: Vec<Bytes> = Vec::with_capacity(entries.len());
                for (entry_id, mut entry) in (first_entry..).zip(entries) {
                    entry.index = index;
                    index += u64::from(entry.messages);
                    bytes.push(entry.to_bytes());
                    topic.in_flight.insert(Position { ledger_id, entry_id }, entry);
                }
                backend.ledgers.submit(self.id, Part::Topic(at), ledger_id, first_entry, bytes);
            }
            Action::Fail { entries, .. } => topic.failed(&entries),
            Action::Seal { ledger_id, last_entry } => {
                let record = topic.ledger.record();
                let span = record.spans.iter().find(|span| span.ledger_id == ledger_id);
                if span.is_some_and(|span| span.last_position().entry_id != last_entry) {
                    return Err(format!("ledger {ledger_id} is sealed at {last_entry}, the record says otherwise"));
                }
            }
            Action::DeleteLedgers(ids) => return delete(ids, &mut self.deleted[0], backend),
        }
        Ok(())
    }

    fn run_log_action(&mut self, action: cursor_log::Action, backend: &mut Backend) -> Check {
        match action {
            cursor_log::Action::CreateLedger if backend.ledgers.is_full() => self.log.ledger_create_failed(),
            cursor_log::Action::CreateLedger => self.log.ledger_created(backend.metadata.allocate_ledger()),
            cursor_log::Action::SaveRecord { list, .. } => backend.metadata.put_log(self.id, self.log_version, list),
            cursor_log::Action::Write { ledger_id, first_entry, entries } => {
                if entries.iter().any(|entry| entry.len() > LOG.max_entry_bytes) {
                    return Err("entry of the cursor log is too large".into());
                }
                backend.ledgers.submit(self.id, Part::Log, ledger_id, first_entry, entries);
            }
            cursor_log::Action::DeleteLedgers(ids) => return delete(ids, &mut self.deleted[1], backend),
        }
        Ok(())
    }

    /// A write ended.
    pub fn written(&mut self, done: WriteDone) -> Result<Confirmed, String> {
        let result = if self.plant == Plant::IgnoreWriteError { Ok(()) } else { done.result };
        let Part::Topic(at) = done.part else {
            self.log.written(done.ledger, done.first as i64, done.count, result);
            return Ok(Confirmed::default());
        };
        let topic = &mut self.topics[at];
        let written = topic.ledger.written(done.ledger, done.first as i64, done.count, result);
        if let Some(from) = written.failed_from {
            let void: Vec<Position> = topic
                .in_flight
                .range(from..)
                .map(|(pos, _)| *pos)
                .take_while(|pos| pos.ledger_id == from.ledger_id)
                .collect();
            let failed: Vec<Entry> = void.iter().filter_map(|pos| topic.in_flight.remove(pos)).collect();
            topic.failed(&failed);
        }
        let mut entries = Vec::new();
        while let Some(first) = topic.in_flight.first_entry().filter(|first| Some(*first.key()) <= written.lac) {
            entries.push(first.remove_entry());
        }
        entries.iter().try_for_each(|(_, entry)| topic.check_confirmed(entry))?;
        debug_assert_eq!(entries.len() as u64, written.confirmed);
        for (position, entry) in &entries {
            if let Some(origin) = entry.origin {
                topic.dedup.persisted(&name(origin.producer), entry.highest_sequence(), *position);
            }
        }
        topic.snapshots.entries_since += written.confirmed;
        if topic.snapshots.entries_since >= SNAPSHOT_ENTRIES {
            self.snapshot(at);
        }
        Ok(Confirmed { topic: at, entries })
    }

    /// A compare-and-set ended.
    pub fn put_done(&mut self, done: PutDone, backend: &Backend) {
        match done.part {
            Part::Log => {
                let ours = self.settle(done.result, backend.metadata.log.owner);
                self.log_version = backend.metadata.log.version;
                match ours {
                    Some(true) => self.log.record_saved(),
                    Some(false) => self.log.record_save_failed(),
                    None => self.log.fence(),
                }
            }
            Part::Topic(at) => {
                let record = &backend.metadata.topics[at];
                let ours = self.settle(done.result, record.owner);
                let topic = &mut self.topics[at];
                topic.version = record.version;
                match (ours, done.created) {
                    (Some(true), Some(id)) => topic.ledger.ledger_created(backend.now_ms, id),
                    (Some(true), None) => topic.ledger.record_saved(),
                    (Some(false), Some(_)) => topic.ledger.ledger_create_failed("unknown"),
                    (Some(false), None) => topic.ledger.record_save_failed(),
                    (None, _) => topic.ledger.fence(),
                }
            }
        }
    }

    /// Whether the record was saved; `None` if it is another's now.
    fn settle(&mut self, result: PutResult, owner: u32) -> Option<bool> {
        self.deposed |= owner != self.id;
        match result {
            _ if owner != self.id => None,
            PutResult::Saved => Some(true),
            PutResult::Conflict | PutResult::Unknown => Some(false),
        }
    }

    /// Trims one topic. Returns the ids that a planted bug deletes too early.
    pub fn trim(&mut self, at: usize, backend: &Backend, retention: Retention) -> Vec<u64> {
        let snapshot = self.snapshot_durable(at);
        let topic = &mut self.topics[at];
        let marks = backend.metadata.subscriptions.iter().filter(|(_, sub)| sub.0 == at).map(|(id, sub)| {
            match topic.cursors.get(id) {
                Some(cursor) if self.plant == Plant::TrimByMemory => cursor.mark_delete(),
                _ => self.log.durable_mark_delete(*id, sub.1),
            }
        });
        let slowest = marks.min();
        let held_up = snapshot_holds_up_trimming(topic.ledger.list(), slowest, snapshot);
        let slowest = match self.plant {
            Plant::TrimAheadOfSnapshot => slowest,
            _ => Some(slowest.map_or(snapshot, |slowest| slowest.min(snapshot))),
        };
        let before: Vec<u64> = topic.ledger.list().spans().map(|span| span.ledger_id).collect();
        let count = topic.ledger.trim(backend.now_ms, slowest, retention);
        for cursor in topic.cursors.values_mut() {
            cursor.on_trimmed(topic.ledger.list());
        }
        if held_up && topic.snapshots.entries_since > 0 {
            self.snapshot(at);
        }
        if self.plant == Plant::DeleteBeforeSave { before[..count].to_vec() } else { Vec::new() }
    }

    /// Whether nothing is under way or waiting.
    pub fn is_settled(&self) -> bool {
        let idle = |topic: &Topic| topic.ledger.pending_bytes() == 0 && topic.ledger.waiting_for().is_none();
        self.log.durable_up_to() >= self.sequence && self.topics.iter().all(idle)
    }
}

fn count(ledgers: &dyn Ledgers, ledger: u64) -> Result<u64, String> {
    Ok(ledgers.read_first(ledger, u64::MAX)?.len() as u64)
}

fn delete(ids: Vec<u64>, count: &mut u64, backend: &mut Backend) -> Check {
    for id in ids {
        *count += 1;
        if backend.metadata.names(id) {
            return Err(format!("ledger {id} is deleted, and a saved record names it"));
        }
        backend.ledgers.delete(id);
    }
    Ok(())
}
