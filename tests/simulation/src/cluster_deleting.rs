//! Topics of a simulated cluster that are deleted, and come into being again when they are asked for. Their owner may never learn what
//! became of the deletion. As `broker.rs` and `topic/closing.rs` of `data-plane/broker`.

use std::rc::Rc;

use geminga_ledger::cursor_log::Record;
use geminga_metadata::{Metadata, MetadataError, TopicRecord, Versioned};
use geminga_model::BundleRange;

use crate::cluster_broker::Broker;
use crate::cluster_deduplication::create_subscriptions;
use crate::cluster_ledgers::Part;
use crate::cluster_ownership::Tenure;
use crate::cluster_plant::Plant;
use crate::cluster_topic::topic_name;

impl Broker {
    /// Begins to delete a topic of a bundle, if that is this broker's. Its clients come back to another one of that name.
    pub fn delete_topic(self: &Rc<Self>, bundle: BundleRange, topic: usize) {
        let Some(tenure) = self.begin_closing(bundle) else { return };
        let broker = self.clone();
        self.tasks.spawn(async move { broker.carry_out_deletion(bundle, tenure, topic).await });
    }

    async fn carry_out_deletion(self: Rc<Self>, bundle: BundleRange, tenure: Tenure, topic: usize) {
        let part = Part { bundle, ownership: tenure.ownership(), topic: Some(topic) };
        match self.delete_record_of(part).await {
            Ok(record) => {
                self.sim.count("topics deleted");
                let keys = self.with_topic(part, |_, topic| {
                    let cursors: Vec<u64> = topic.subscriptions.iter().map(|sub| sub.cursor_id).collect();
                    (cursors, topic.dedup_stored.map(|stored| stored.key))
                });
                let (cursors, blob) = keys.unwrap_or_default();
                let cursors = cursors.into_iter().map(|cursor_id| Record::Dropped { cursor_id });
                let dropped: Vec<Record> = cursors.chain(blob.map(|key| Record::BlobDropped { key })).collect();
                self.with_log(part, |log| dropped.into_iter().for_each(|record| log.append(record, [])));
                self.delete_ledgers(record.ledgers.iter().map(|ledger| ledger.ledger_id).collect());
            }
            // It may be gone, or is: what is published to it now could be deleted with it.
            Err(error) if error.is_deposed() || matches!(error, MetadataError::OutcomeUnknown(_)) => {
                self.sim.count("deletions of topics of unknown outcome");
                if self.sim.plant == Plant::UnsureDeletionsServeOn {
                    return self.serve_again(bundle, tenure);
                }
            }
            Err(_) => return self.serve_again(bundle, tenure),
        }
        if self.bundles.borrow().get(&bundle).is_some_and(|owned| owned.tenure == tenure) {
            self.drop_bundle(bundle, None);
        }
    }

    fn serve_again(&self, bundle: BundleRange, tenure: Tenure) {
        if let Some(owned) = self.bundles.borrow_mut().get_mut(&bundle).filter(|owned| owned.tenure == tenure) {
            owned.is_closing = false;
        }
    }

    async fn delete_record_of(self: &Rc<Self>, part: Part) -> Result<TopicRecord, MetadataError> {
        let number = part.topic.expect("it is a topic");
        let sim = self.sim.clone();
        self.commit_beside(part, "delete topic", move |metadata| async move {
            let deleted = metadata.delete_topic(&topic_name(number)).await;
            if let Ok(record) = &deleted {
                sim.oracle.borrow_mut().topic_deleted(number, record);
            }
            deleted
        })
        .await
    }

    /// A topic that was deleted comes into being again, with its subscriptions.
    pub async fn create_topic(
        self: &Rc<Self>,
        metadata: &Metadata,
        topic: usize,
    ) -> Result<Versioned<TopicRecord>, MetadataError> {
        let (sim, deduplicates) = (self.sim.clone(), self.policies(topic).deduplicates);
        self.ask(metadata, "create topic", move |metadata| async move {
            let incarnation = metadata.next_cursor_id().await?;
            let record = TopicRecord { created_at: incarnation, ..TopicRecord::default() };
            let created = metadata.create_topic(&topic_name(topic), record).await?;
            sim.oracle.borrow_mut().topic_created(topic, incarnation);
            sim.count("topics created again");
            create_subscriptions(&metadata, topic, deduplicates).await?;
            Ok(created)
        })
        .await
    }
}
