//! Deduplication of a simulated broker's topics, across owners and while policies switch it on and off: a record in metadata says that it
//! is on and where its snapshots are. As `topic/deduplication.rs` of `data-plane/broker`.

use std::collections::BTreeMap;
use std::rc::Rc;

use geminga_ledger::cursor_log::{CursorLog, Record};
use geminga_metadata::{Metadata, MetadataError, SubscriptionRecord};
use geminga_model::Position;
use geminga_topic::dedup::Deduplication;

use crate::cluster_broker::Broker;
use crate::cluster_cursors::{BundleLog, Durable};
use crate::cluster_ledgers::Part;
use crate::cluster_plant::Plant;
use crate::cluster_recovery::Failure;
use crate::cluster_simulation::SUBSCRIPTIONS;
use crate::cluster_topic::{Topic, topic_name};
use crate::ledger_oracle::{Entry, positions};
use crate::ledger_producers::{self, name};

/// Its record is among those of subscriptions.
pub const DEDUP_CURSOR: &str = "pulsar.dedup";
/// Confirmed entries between snapshots.
const SNAPSHOT_ENTRIES: u64 = 30;

/// What deduplication knows, and from where it would replay after a crash.
pub struct Dedup {
    pub state: Deduplication,
    pub entries_since: u64,
    pub durable: Position,
}

/// Where that is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of its snapshots in the log, another one each time that it is switched on.
    pub key: u64,
    /// Entries behind it count while there is no snapshot.
    pub initial: Position,
    /// Metadata are to forget it, and may have done so.
    pub forgetting: bool,
}

impl Stored {
    pub fn of(record: &SubscriptionRecord) -> Stored {
        Stored { key: record.cursor_id, initial: record.initial, forgetting: false }
    }
}

impl Topic {
    pub fn snapshot(&mut self, log: &mut BundleLog) {
        let position = self.ledger.last_confirmed();
        let (Some(dedup), Some(stored)) = (&mut self.dedup, self.dedup_stored) else { return };
        dedup.entries_since = 0;
        let record = Record::Blob { key: stored.key, bytes: dedup.state.encode(position).into() };
        log.append(record, [Durable::Snapshot { topic: self.number, key: stored.key, position }]);
    }

    /// A message is durable. One that was on its way when deduplication was switched on was seen by nobody, or by another one.
    pub fn persisted(&mut self, entry: &Entry, position: Position, now_ms: u64) -> Option<u64> {
        let origin = entry.origin.expect("every message has a producer");
        let seen_by = self.seen_by.remove(&(origin.connection, origin.sequence));
        match &mut self.dedup {
            Some(dedup) if seen_by == self.dedup_stored.map(|stored| stored.key) => {
                dedup.state.persisted(&name(origin.producer), entry.highest_sequence(), position);
            }
            Some(dedup) => ledger_producers::replay(&mut dedup.state, entry, position, now_ms),
            None => (),
        }
        seen_by
    }

    /// A message will not become durable.
    pub fn forget(&mut self, entry: &Entry) {
        let origin = entry.origin.expect("every message has a producer");
        let seen_by = self.seen_by.remove(&(origin.connection, origin.sequence));
        if let Some(dedup) = &mut self.dedup
            && seen_by == self.dedup_stored.map(|stored| stored.key)
        {
            dedup.state.failed(&name(origin.producer));
        }
    }

    pub fn count_persisted(&mut self, entries: u64, log: &mut BundleLog) {
        let Some(dedup) = &mut self.dedup else { return };
        dedup.entries_since += entries;
        if dedup.entries_since >= SNAPSHOT_ENTRIES {
            self.snapshot(log);
        }
    }
}

/// Snapshots, by their keys.
pub fn blobs_of<'t>(topics: impl Iterator<Item = &'t Topic>, log: &CursorLog) -> BTreeMap<u64, bytes::Bytes> {
    let keys = topics.filter_map(|topic| topic.dedup_stored).map(|stored| stored.key);
    keys.filter_map(|key| Some((key, log.blob(key)?.clone()))).collect()
}

fn subscription_record(cursor_id: u64, initial: Position) -> SubscriptionRecord {
    SubscriptionRecord { cursor_id, initial, properties: BTreeMap::new(), created_at: 0, replicated: false }
}

/// Of a topic that is new.
pub async fn create_subscriptions(metadata: &Metadata, topic: usize, deduplicates: bool) -> Result<(), MetadataError> {
    let subscriptions = (0..SUBSCRIPTIONS).map(|subscription| format!("s{subscription}"));
    for subscription in subscriptions.chain(deduplicates.then(|| DEDUP_CURSOR.to_owned())) {
        let record = subscription_record(metadata.next_cursor_id().await?, Position::EARLIEST);
        metadata.create_subscription(&topic_name(topic), &subscription, record).await?;
    }
    Ok(())
}

impl Broker {
    /// Switches it on or off, if policies say so and that is not under way.
    pub fn follow_deduplication(self: &Rc<Self>, part: Part, topic: &mut Topic) {
        let wants = self.policies(topic.number).deduplicates;
        let is_forgetting = topic.dedup_stored.is_some_and(|stored| stored.forgetting);
        let is_as_wanted = match wants {
            true => topic.dedup.is_some() && !is_forgetting,
            false => topic.dedup_stored.is_none(),
        };
        if is_as_wanted || std::mem::replace(&mut topic.is_switching, true) {
            return;
        }
        let broker = self.clone();
        self.tasks.spawn(async move {
            // What fails is tried again.
            if let Err(failure) = broker.switch_deduplication(part).await {
                broker.sim.note(format_args!("deduplication of {part:?} is not as policies say: {failure}"));
            }
            broker.with_topic(part, |_, topic| topic.is_switching = false);
        });
    }

    async fn switch_deduplication(self: &Rc<Self>, part: Part) -> Result<(), Failure> {
        let gone = || "the topic is not this owner's any more".to_owned();
        let number = part.topic.expect("only topics are deduplicated");
        let stored = self.with_topic(part, |_, topic| topic.dedup_stored).ok_or_else(gone)?;
        if let Some(stored) = stored
            && (stored.forgetting || !self.policies(number).deduplicates)
        {
            self.forget_deduplication(part, stored).await?;
        }
        if !self.policies(number).deduplicates || self.with_topic(part, |_, topic| topic.dedup.is_some()) == Some(true)
        {
            return Ok(());
        }
        let stored = match self.with_topic(part, |_, topic| topic.dedup_stored).ok_or_else(gone)? {
            Some(stored) => stored,
            None => self.store_deduplication(part).await?,
        };
        let mut dedup = Dedup { state: Deduplication::new(), entries_since: 0, durable: stored.initial };
        let mut at = stored.initial;
        loop {
            let since = |topic: &mut Topic| positions(topic.ledger.list()).filter(|position| *position > at).collect();
            let since: Vec<Position> = self.with_topic(part, |_, topic| since(topic)).ok_or_else(gone)?;
            let Some(last) = since.last().copied() else { break };
            self.replay_into(&mut dedup, since).await?;
            at = last;
        }
        self.with_topic(part, |broker, topic| {
            if topic.dedup_stored == Some(stored) && topic.dedup.is_none() {
                broker.sim.count("deduplication switched on");
                topic.dedup = Some(dedup);
            }
        });
        Ok(())
    }

    /// From then on messages pass unseen, and what was stored would call those repeated that a producer numbers anew: it is on until
    /// metadata have forgotten it.
    async fn forget_deduplication(self: &Rc<Self>, part: Part, stored: Stored) -> Result<(), Failure> {
        self.with_topic(part, |_, topic| topic.dedup_stored = Some(Stored { forgetting: true, ..stored }));
        match self.delete_record(part).await {
            Ok(()) => (),
            // An earlier attempt came through, and nobody learned of it.
            Err(error) if error.is_not_found() => (),
            Err(error) => return Err(error.to_string()),
        }
        self.with_log(part, |log| log.append(Record::BlobDropped { key: stored.key }, []));
        self.with_topic(part, |broker, topic| {
            broker.sim.count("deduplication switched off");
            (topic.dedup, topic.dedup_stored) = (None, None);
        });
        Ok(())
    }

    async fn store_deduplication(self: &Rc<Self>, part: Part) -> Result<Stored, Failure> {
        let gone = || "the topic is not this owner's any more".to_owned();
        let metadata = self.with_topic(part, |_, topic| topic.metadata.clone()).ok_or_else(gone)?;
        let ask = |metadata: Metadata| async move { metadata.next_cursor_id().await };
        let key = self.ask(&metadata, "cursor id", ask).await.map_err(|error| error.to_string())?;
        let initial = self.with_topic(part, |_, topic| topic.ledger.last_confirmed()).ok_or_else(gone)?;
        match self.create_record(part, key, initial).await {
            // An earlier attempt came through, and nobody learned of it: messages have passed unseen since.
            Err(MetadataError::AlreadyExists { .. }) => {
                self.delete_record(part).await.map_err(|error| error.to_string())?;
                self.create_record(part, key, initial).await.map_err(|error| error.to_string())?;
            }
            created => created.map_err(|error| error.to_string())?,
        }
        let stored = Stored { key, initial, forgetting: false };
        let bytes = Deduplication::new().encode(initial).into();
        self.with_log(part, |log| log.append(Record::Blob { key, bytes }, []));
        self.with_topic(part, |_, topic| topic.dedup_stored = Some(stored)).ok_or_else(gone)?;
        Ok(stored)
    }

    async fn create_record(self: &Rc<Self>, part: Part, key: u64, initial: Position) -> Result<(), MetadataError> {
        let record = subscription_record(key, initial);
        let number = part.topic.expect("only topics are deduplicated");
        let create = move |metadata: Metadata| async move {
            metadata.create_subscription(&topic_name(number), DEDUP_CURSOR, record).await.map(drop)
        };
        self.commit_beside(part, "create deduplication", create).await
    }

    async fn delete_record(self: &Rc<Self>, part: Part) -> Result<(), MetadataError> {
        let number = part.topic.expect("only topics are deduplicated");
        let delete = move |metadata: Metadata| async move {
            metadata.delete_subscription(&topic_name(number), DEDUP_CURSOR).await
        };
        self.commit_beside(part, "delete deduplication", delete).await
    }

    /// A commit that is conditional on the topic's record, which it does not change.
    pub async fn commit_beside<T: 'static, F>(
        self: &Rc<Self>,
        part: Part,
        what: &'static str,
        commit: impl FnOnce(Metadata) -> F + 'static,
    ) -> Result<T, MetadataError>
    where
        F: Future<Output = Result<T, MetadataError>>,
    {
        let number = part.topic.expect("only topics are deduplicated");
        let guarded = |topic: &mut Topic| topic.metadata.guarded_by_topic(&topic_name(number), topic.version);
        let Some(guarded) = self.with_topic(part, |_, topic| guarded(topic)) else {
            return Err(MetadataError::OwnershipLost { name: topic_name(number).to_string() });
        };
        // Until the record is written anew it may come late.
        self.unsettled.borrow_mut().insert(number);
        self.ask(&guarded, what, commit).await
    }

    /// As a new owner finds it.
    pub async fn load_deduplication(self: &Rc<Self>, topic: &mut Topic, log: &CursorLog) -> Result<(), Failure> {
        let Some(stored) = topic.dedup_stored else { return Ok(()) };
        let (state, durable) = match log.blob(stored.key) {
            Some(bytes) => Deduplication::decode(bytes, self.now_ms()).map_err(|error| error.to_string())?,
            None => (Deduplication::new(), stored.initial),
        };
        let since = positions(topic.ledger.list()).filter(|position| *position > durable).collect();
        let mut dedup = Dedup { state, entries_since: 0, durable };
        self.replay_into(&mut dedup, since).await?;
        topic.dedup = Some(dedup);
        Ok(())
    }

    async fn replay_into(self: &Rc<Self>, dedup: &mut Dedup, since: Vec<Position>) -> Result<(), Failure> {
        dedup.entries_since += since.len() as u64;
        for position in since.into_iter().filter(|_| self.sim.plant != Plant::NoReplay) {
            let payload = self.read_entry(position.ledger_id, position.entry_id as u64).await?;
            ledger_producers::replay(&mut dedup.state, &Entry::from_bytes(&payload), position, self.now_ms());
            self.sim.count("entries replayed for deduplication");
        }
        Ok(())
    }
}
