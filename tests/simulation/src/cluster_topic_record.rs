//! A topic's record in metadata, as a simulated broker reads and writes it.

use std::rc::Rc;

use geminga_ledger::ledger_list::LedgerSpan;
use geminga_ledger::managed_ledger::ManagedLedgerRecord;
use geminga_metadata::{LedgerInfo, Metadata, MetadataError, TopicRecord, Versioned};

use crate::cluster_broker::Broker;
use crate::cluster_ledgers::Part;
use crate::cluster_topic::{Topic, topic_name};

/// The managed ledger's part of a topic's record.
pub fn managed_record(record: &TopicRecord) -> ManagedLedgerRecord {
    let span = |info: &LedgerInfo| LedgerSpan {
        ledger_id: info.ledger_id,
        entries: info.entries,
        size: info.size,
        timestamp_ms: info.timestamp,
        first_index: info.first_index,
    };
    ManagedLedgerRecord {
        spans: record.ledgers.iter().map(span).collect(),
        last_open: record.last_open,
        next_index: record.next_index,
        terminated: record.terminated,
        last_ledger: record.greatest_ledger(),
    }
}

fn with_managed(record: &TopicRecord, managed: ManagedLedgerRecord) -> TopicRecord {
    let info = |span: &LedgerSpan| LedgerInfo {
        ledger_id: span.ledger_id,
        entries: span.entries,
        size: span.size,
        timestamp: span.timestamp_ms,
        first_index: span.first_index,
    };
    let mut changed = TopicRecord {
        ledgers: managed.spans.iter().map(info).collect(),
        last_open: managed.last_open,
        next_index: managed.next_index,
        terminated: managed.terminated,
        ..record.clone()
    };
    changed.set_greatest_ledger(managed.last_ledger);
    changed
}

impl Broker {
    pub async fn create_topic_ledger(self: Rc<Self>, part: Part, metadata: Metadata, after: u64) {
        let ask = move |metadata: Metadata| async move { metadata.next_ledger_id(after).await };
        let id = self.ask(&metadata, "ledger id", ask).await;
        self.with_topic(part, |broker, topic| match id {
            Ok(id) => broker.save_record(part, topic, Some(id)),
            Err(error) => topic.ledger.ledger_create_failed(&error.to_string()),
        });
    }

    /// `None`: it is not this owner's any more.
    pub fn with_topic<T>(self: &Rc<Self>, part: Part, change: impl FnOnce(&Rc<Self>, &mut Topic) -> T) -> Option<T> {
        let mut bundles = self.bundles.borrow_mut();
        let bundle = bundles.get_mut(&part.bundle).filter(|bundle| bundle.ownership() == part.ownership)?;
        let changed = change(self, bundle.topics.get_mut(&part.topic?)?);
        self.touch(part.bundle);
        Some(changed)
    }

    /// Saves what the managed ledger says, with a new ledger if one is `created`.
    pub fn save_record(self: &Rc<Self>, part: Part, topic: &Topic, created: Option<u64>) {
        let managed = match created {
            Some(id) => topic.ledger.record_with(id, self.now_ms()),
            None => topic.ledger.record(),
        };
        let record = with_managed(&topic.record, managed);
        let (broker, number) = (self.clone(), topic.number);
        let (metadata, before, version) = (topic.metadata.clone(), topic.record.clone(), topic.version);
        self.tasks.spawn(async move {
            let saved = broker.put_topic(&metadata, number, &before, record.clone(), version).await;
            broker.with_topic(part, |broker, topic| broker.record_saved(topic, record, saved, created));
        });
    }

    /// Writes a topic's record if it has that version still; the new version.
    async fn put_topic(
        self: &Rc<Self>,
        metadata: &Metadata,
        topic: usize,
        before: &TopicRecord,
        record: TopicRecord,
        version: u64,
    ) -> Result<u64, MetadataError> {
        let kept = |id| record.ledgers.iter().any(|ledger| ledger.ledger_id == id);
        let dropped: Vec<u64> = before.ledgers.iter().map(|ledger| ledger.ledger_id).filter(|id| !kept(*id)).collect();
        let sim = self.sim.clone();
        let is_first = self.unsettled.borrow_mut().insert(topic);
        let saved = self
            .ask(metadata, "put topic", move |metadata| async move {
                let saved = metadata.replace_topic(&topic_name(topic), &record, version, &dropped, None).await;
                if saved.is_ok() {
                    sim.oracle.borrow_mut().ledgers_dropped(topic, &dropped);
                }
                saved
            })
            .await;
        // One before it, of which nobody knows, is refused or has come to pass if this one found the record's version, or not.
        let settles = match &saved {
            Ok(_) => true,
            Err(MetadataError::OutcomeUnknown(_)) => false,
            Err(error) => is_first || error.is_conflict(),
        };
        if settles {
            self.unsettled.borrow_mut().remove(&topic);
        }
        saved
    }

    /// The record of a topic that is about to be loaded, when nothing that an earlier instance began here can change it any more.
    pub async fn settle_record(
        self: &Rc<Self>,
        metadata: &Metadata,
        topic: usize,
        record: Versioned<TopicRecord>,
    ) -> Result<Versioned<TopicRecord>, MetadataError> {
        if !self.unsettled.borrow().contains(&topic) {
            return Ok(record);
        }
        self.sim.count("topics whose record was settled");
        let version = self.put_topic(metadata, topic, &record.value, record.value.clone(), record.version).await?;
        Ok(Versioned { version, ..record })
    }

    fn record_saved(
        &self,
        topic: &mut Topic,
        record: TopicRecord,
        saved: Result<u64, MetadataError>,
        created: Option<u64>,
    ) {
        match (saved, created) {
            (Ok(version), created) => {
                (topic.record, topic.version) = (record, version);
                match created {
                    Some(id) => topic.ledger.ledger_created(self.now_ms(), id),
                    None => topic.ledger.record_saved(),
                }
            }
            (Err(error), _) if error.is_deposed() => topic.ledger.fence(),
            (Err(error), Some(_)) => topic.ledger.ledger_create_failed(&error.to_string()),
            (Err(_), None) => topic.ledger.record_save_failed(),
        }
    }
}
