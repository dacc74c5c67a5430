//! How a simulated broker cuts a bundle that it owns, as `data-plane/broker/src/splitting.rs` does: it lets what is in flight come to
//! its end, seals the log of acknowledgements, writes a log for each part, and puts the parts in the bundle's place in one commit.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use geminga_ledger::cursor::CursorSnapshot;
use geminga_ledger::cursor_log::{LogLedger, Record};
use geminga_metadata::{Balanced, BundleRecord, BundleSplit, Metadata};
use geminga_model::{BundleName, BundleRange};
use geminga_ownership::{SplitAt, with_parts};

use crate::cluster_broker::Broker;
use crate::cluster_bundles::{bundle_name, check_bundles, hash_of, log_name, namespace, topics_in};
use crate::cluster_deduplication::blobs_of;
use crate::cluster_membership::broker_name;
use crate::cluster_ownership::{Bundle, Tenure};
use crate::cluster_plant::Plant;
use crate::cluster_recovery::Failure;
use crate::cluster_sim::MS;
use crate::cluster_topic::topic_name;

/// What a bundle's log had in the end.
struct Sealed {
    bundle: BundleRange,
    tenure: Tenure,
    /// Of the bundle's owner.
    metadata: Metadata,
    cursors: BTreeMap<u64, CursorSnapshot>,
    blobs: BTreeMap<u64, Bytes>,
    ledgers: Vec<u64>,
    log_version: Option<u64>,
}

impl Sealed {
    /// Consumers are still there, and what they acknowledge from now on would be in none of the parts.
    fn seal(owned: &mut Bundle, metadata: Metadata) -> Sealed {
        owned.is_sealed = true;
        let log = &mut owned.log.log;
        log.fence();
        let subscriptions = owned.topics.values().flat_map(|topic| &topic.subscriptions);
        Sealed {
            bundle: owned.range,
            tenure: owned.tenure,
            metadata,
            cursors: subscriptions.filter_map(|sub| Some((sub.cursor_id, log.state(sub.cursor_id)?.clone()))).collect(),
            blobs: blobs_of(owned.topics.values(), log),
            ledgers: log.record().iter().map(|ledger| ledger.ledger_id).collect(),
            log_version: owned.log.version,
        }
    }
}

impl Broker {
    /// Begins to cut a bundle, if it is this broker's and can be cut like that.
    pub fn split(self: &Rc<Self>, bundle: BundleRange, at: &SplitAt) {
        let parts = at.cut(bundle, topics_in(bundle, self.topics()).map(hash_of).collect());
        if parts.len() < 2 {
            return;
        }
        let Some(tenure) = self.begin_closing(bundle) else { return };
        self.sim.count("splits begun");
        let broker = self.clone();
        self.tasks.spawn(async move { broker.settle_and_split(bundle, tenure, parts).await });
    }

    async fn settle_and_split(self: Rc<Self>, bundle: BundleRange, tenure: Tenure, parts: Vec<BundleRange>) {
        self.settle(bundle, tenure).await;
        let metadata = match self.sim.plant {
            Plant::DeposedSplits => self.metadata.clone(),
            _ => tenure.metadata(bundle, &self.metadata),
        };
        let sealed = match self.bundles.borrow_mut().get_mut(&bundle).filter(|owned| owned.tenure == tenure) {
            Some(owned) => Sealed::seal(owned, metadata),
            None => return self.sim.count("splits whose owner was deposed before they were begun"),
        };
        match self.put_parts(&sealed, &parts).await {
            Ok(()) => {
                self.sim.count("bundles split");
                self.sim.note(format_args!("broker {} has split {bundle} into {parts:?}", self.id));
                self.sim.oracle.borrow_mut().are_done_with(&sealed.ledgers);
                self.delete_ledgers(sealed.ledgers);
            }
            Err(failure) => {
                self.sim.count("splits that were interrupted");
                self.sim.note(format_args!("broker {} could not split {bundle}: {failure}", self.id));
            }
        }
        if self.bundles.borrow().get(&bundle).is_some_and(|owned| owned.tenure == tenure) {
            self.drop_bundle(bundle, None);
        }
        // A watch would tell it: the parts are its own.
        drop(self.learn_bundles().await);
        drop(self.read_all().await);
    }

    async fn put_parts(self: &Rc<Self>, sealed: &Sealed, parts: &[BundleRange]) -> Result<(), Failure> {
        if self.sim.plant == Plant::PartsBeforeLogs {
            self.commit_split(sealed, parts).await?;
        }
        for &part in parts {
            let kept = self.kept_for(sealed, part).await?;
            let metadata = match self.sim.plant {
                Plant::PartsBeforeLogs => &self.metadata,
                _ => &sealed.metadata,
            };
            self.write_part(part, sealed.tenure.ownership(), metadata, kept).await?;
        }
        match self.sim.plant {
            Plant::PartsBeforeLogs => Ok(()),
            _ => self.commit_split(sealed, parts).await,
        }
    }

    /// What a sealed log has of the topics of one part.
    async fn kept_for(self: &Rc<Self>, sealed: &Sealed, part: BundleRange) -> Result<Vec<Record>, Failure> {
        let mut kept = Vec::new();
        for topic in topics_in(part, self.topics()) {
            let ask = move |metadata: Metadata| async move { metadata.list_subscriptions(&topic_name(topic)).await };
            let subscriptions = self.ask(&self.metadata, "list subscriptions", ask).await;
            for (_, record) in subscriptions.map_err(|error| error.to_string())? {
                let cursor_id = record.value.cursor_id;
                let snapshot = sealed.cursors.get(&cursor_id).cloned();
                kept.extend(snapshot.map(|snapshot| Record::Snapshot { cursor_id, snapshot }));
                let blob = sealed.blobs.get(&cursor_id).cloned();
                kept.extend(blob.map(|bytes| Record::Blob { key: cursor_id, bytes }));
            }
        }
        Ok(kept)
    }

    /// Makes what is kept durable in the log of a part. What an attempt that failed has left behind is overwritten.
    async fn write_part(
        self: &Rc<Self>,
        part: BundleRange,
        ownership: u64,
        metadata: &Metadata,
        kept: Vec<Record>,
    ) -> Result<(), Failure> {
        let mut log = self.load_log(part, metadata).await?;
        kept.into_iter().for_each(|record| log.append(record, []));
        let key = (part, ownership);
        self.new_logs.borrow_mut().insert(key, log);
        self.touch(part);
        loop {
            let (is_fenced, is_settled) = {
                let logs = self.new_logs.borrow();
                (logs[&key].log.is_fenced(), logs[&key].is_settled())
            };
            if is_fenced || is_settled {
                self.new_logs.borrow_mut().remove(&key);
                return if is_settled { Ok(()) } else { Err(format!("the log of {part} is somebody else's")) };
            }
            self.sleep(10 * MS).await;
        }
    }

    async fn commit_split(self: &Rc<Self>, sealed: &Sealed, parts: &[BundleRange]) -> Result<(), Failure> {
        let incarnation =
            self.member.session.borrow().as_ref().map(|session| session.epoch).ok_or("there is no session")?;
        let owner =
            BundleRecord { owner: Some(broker_name(self.id)), incarnation, epoch: 1, balanced: Balanced::default() };
        let parts: Rc<Vec<BundleName>> = Rc::new(parts.iter().map(|part| bundle_name(*part)).collect());
        loop {
            let ask = |metadata: Metadata| async move { metadata.get_namespace(&namespace()).await };
            let found = self.ask(&sealed.metadata, "get namespace", ask).await.map_err(|error| error.to_string())?;
            let policies_version = found.as_ref().map_or(0, |found| found.version);
            let policies = found.and_then(|found| with_parts(found.value, sealed.bundle, &parts));
            let policies = policies.ok_or_else(|| format!("{} is no more", sealed.bundle))?;
            let (bundle, parts, owner) = (sealed.bundle, parts.clone(), owner.clone());
            let (ledgers, plant, mut log_version) = (sealed.ledgers.clone(), self.sim.plant, sealed.log_version);
            let ask = move |metadata: Metadata| async move {
                if plant == Plant::LateSplits {
                    let log = metadata.get_cursor_log::<Vec<LogLedger>>(&log_name(bundle)).await?;
                    log_version = log.map(|log| log.version);
                }
                let (policies, parts, owner) = (&policies, &parts[..], Some(&owner));
                let split = BundleSplit { policies, policies_version, parts, log_version, owner };
                metadata.split_bundle(&bundle_name(bundle), split, &ledgers).await?;
                check_bundles(&metadata);
                Ok(())
            };
            match self.ask(&sealed.metadata, "split bundle", ask).await {
                // Another bundle was split meanwhile.
                Err(error) if error.is_conflict() => self.sim.count("splits that crossed another one"),
                result => return result.map_err(|error| error.to_string()),
            }
        }
    }
}
