//! How a simulated broker takes a bundle over that metadata say to be its own: it fences and replays the log of acknowledgements,
//! then recovers the last ledger of each topic.
//!
//! Since the bundle's record has a new version, whoever owned it before can write no record of the bundle any more, and so name
//! nothing new; what it may still write to is fenced here.

use std::collections::BTreeMap;
use std::rc::Rc;

use geminga_ledger::cursor::Cursor;
use geminga_ledger::cursor_log::{CursorLog, LogLedger};
use geminga_ledger::managed_ledger::ManagedLedger;
use geminga_metadata::{Metadata, TopicRecord, Versioned};
use geminga_model::BundleRange;
use geminga_topic::{Subscription, SubscriptionOptions};

use crate::cluster_broker::Broker;
use crate::cluster_bundles::{log_name, topics_in};
use crate::cluster_cursors::{BundleLog, LOG, replay};
use crate::cluster_deduplication::{DEDUP_CURSOR, Stored};
use crate::cluster_ownership::{Bundle, Tenure};
use crate::cluster_plant::Plant;
use crate::cluster_recovery::{Failure, entries_of};
use crate::cluster_subscriptions::Sub;
use crate::cluster_topic::{LEDGER, Topic, topic_name};
use crate::cluster_topic_record::managed_record;
use crate::ledger_oracle::Entry;

impl Broker {
    pub async fn load(self: &Rc<Self>, bundle: BundleRange, tenure: Tenure) -> Result<Bundle, Failure> {
        let metadata = match self.sim.plant {
            Plant::Unguarded => self.metadata.clone(),
            _ => tenure.metadata(bundle, &self.metadata),
        };
        let log = self.load_log(bundle, &metadata).await?;
        self.check_tenure(bundle, tenure).await?;
        let mut topics = BTreeMap::new();
        for number in topics_in(bundle, self.topics()) {
            topics.insert(number, self.load_topic(number, &tenure, &metadata, &log.log).await?);
        }
        Ok(Bundle { range: bundle, tenure, log, topics, is_closing: false, is_sealed: false })
    }

    pub async fn load_log(self: &Rc<Self>, bundle: BundleRange, metadata: &Metadata) -> Result<BundleLog, Failure> {
        // Before it is read: what ends meanwhile is not in what was read.
        let is_unsettled = self.unsettled_logs.borrow().contains(&bundle);
        let name = log_name(bundle);
        let found: Option<Versioned<Vec<LogLedger>>> = self
            .ask(metadata, "get cursor log", move |metadata| async move { metadata.get_cursor_log(&name).await })
            .await
            .map_err(|error| error.to_string())?;
        let mut version = found.as_ref().map(|found| found.version);
        let list = found.map_or_else(Vec::new, |found| found.value);
        if is_unsettled && self.sim.plant != Plant::LateLogRecords {
            version = Some(self.settle_log(bundle, metadata, list.clone(), version).await?);
        }
        let log = self.replay_log(&list).await?;
        Ok(BundleLog::new(log, metadata.clone(), version))
    }

    /// Gives the record of a log that an earlier instance may still write another version.
    async fn settle_log(
        self: &Rc<Self>,
        bundle: BundleRange,
        metadata: &Metadata,
        list: Vec<LogLedger>,
        version: Option<u64>,
    ) -> Result<u64, Failure> {
        let name = log_name(bundle);
        let put =
            move |metadata: Metadata| async move { metadata.put_cursor_log(&name, &list, version, &[], None).await };
        let settled = self.ask(metadata, "settle cursor log", put).await.map_err(|error| error.to_string())?;
        self.unsettled_logs.borrow_mut().remove(&bundle);
        self.sim.count("cursor logs whose record was settled");
        Ok(settled)
    }

    async fn replay_log(self: &Rc<Self>, list: &[LogLedger]) -> Result<CursorLog, Failure> {
        let mut log = CursorLog::new(LOG).named("a/b/0x00000000_0xffffffff");
        for ledger in list {
            let count = match ledger.entries {
                Some(count) => count,
                None => entries_of(&self.recover(ledger.ledger_id).await?),
            };
            let mut entries = Vec::new();
            for entry in 0..count {
                entries.push(self.read_entry(ledger.ledger_id, entry).await?);
            }
            self.sim.count_many("entries of cursor logs replayed", count);
            replay(&mut log, ledger.ledger_id, &entries)?;
        }
        Ok(log)
    }

    async fn load_topic(
        self: &Rc<Self>,
        number: usize,
        tenure: &Tenure,
        metadata: &Metadata,
        log: &CursorLog,
    ) -> Result<Topic, Failure> {
        let found: Option<Versioned<TopicRecord>> = self
            .ask(metadata, "get topic", move |metadata| async move { metadata.get_topic(&topic_name(number)).await })
            .await
            .map_err(|error| error.to_string())?;
        let record = match found {
            Some(record) => record,
            None => self.create_topic(metadata, number).await.map_err(|error| error.to_string())?,
        };
        let record = self.settle_record(metadata, number, record).await.map_err(|error| error.to_string())?;
        let ledger = self.recover_last_ledger(&record.value).await?;
        let mut topic = Topic::new(number, metadata.clone(), ledger, record);
        self.load_subscriptions(&mut topic, log).await?;
        self.check_loaded(&topic, tenure.ownership());
        self.load_deduplication(&mut topic, log).await?;
        Ok(topic)
    }

    async fn recover_last_ledger(self: &Rc<Self>, record: &TopicRecord) -> Result<ManagedLedger<Entry>, Failure> {
        let mut ledger = ManagedLedger::new(managed_record(record), LEDGER);
        let Some(id) = ledger.needs_recovery() else { return Ok(ledger) };
        let metadata = self.recover(id).await?;
        let entries = entries_of(&metadata);
        let next_index = match entries.checked_sub(1) {
            Some(last) => {
                let last = Entry::from_bytes(&self.read_entry(id, last).await?);
                Some(last.index + u64::from(last.messages))
            }
            None => None,
        };
        ledger.recovered(self.now_ms(), id, entries as i64 - 1, entries * 100, next_index);
        Ok(ledger)
    }

    async fn load_subscriptions(self: &Rc<Self>, topic: &mut Topic, log: &CursorLog) -> Result<(), Failure> {
        let number = topic.number;
        let records = self
            .ask(&self.metadata, "list subscriptions", move |metadata| async move {
                metadata.list_subscriptions(&topic_name(number)).await
            })
            .await
            .map_err(|error| error.to_string())?;
        for (name, record) in records {
            if name == DEDUP_CURSOR {
                topic.dedup_stored = Some(Stored::of(&record.value));
                continue;
            }
            let (cursor_id, initial) = (record.value.cursor_id, record.value.initial);
            let cursor = match log.state(cursor_id) {
                Some(state) => Cursor::from_snapshot(state.clone()),
                None => Cursor::new(initial),
            };
            let core = Subscription::new(name, cursor, SubscriptionOptions::default());
            topic.subscriptions.push(Sub { cursor_id, initial, core });
        }
        Ok(())
    }

    fn check_loaded(&self, topic: &Topic, ownership: u64) {
        let cursors: Vec<&Cursor> = topic.subscriptions.iter().map(|sub| sub.core.cursor()).collect();
        let mut oracle = self.sim.oracle.borrow_mut();
        oracle.loaded(topic.number, ownership, topic.ledger.list(), &cursors);
    }
}
