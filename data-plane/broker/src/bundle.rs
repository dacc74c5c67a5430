//! A bundle that this broker owns: what its topics share, and how it comes and goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use geminga_metadata::{Metadata, MovedFor, Wanted};
use geminga_model::{BundleName, BundleRange, NamespaceName, TopicName, topic_hash};
use parking_lot::Mutex;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::cursors::Cursors;
use crate::error::{BrokerError, Result};
use crate::loaded::Loaded;
use crate::ownership::{Change, Located, Owner, Ownership, Target, Tenure, not_served_here};
use crate::policies::EffectivePolicies;
use crate::resting::Resting;
use crate::splitting::SplitAt;
use crate::topic::Topic;

pub(crate) struct Bundle {
    pub name: BundleName,
    pub tenure: Tenure,
    ownership: Arc<Ownership>,
    /// Written only while the bundle is this broker's.
    pub metadata: Metadata,
    /// The acknowledgements of all subscriptions of the bundle's topics.
    pub cursors: Arc<Cursors>,
    /// It is being given up, or has another owner: no topic of it is served any more.
    is_over: AtomicBool,
    /// Held for reading while a topic of it is loaded.
    loading: RwLock<()>,
    /// Its topics that are in memory.
    loaded: Mutex<Loaded<Topic>>,
    /// Its topics that are not in memory, as nobody uses them.
    pub resting: Mutex<Resting>,
}

impl Bundle {
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// What this broker knows of acknowledgements is all that there is. When its session has run out, it asks storage, which lets
    /// it write to the cursor log only as long as nobody else has the bundle.
    ///
    /// # Errors
    /// Somebody else has it, or that cannot be found out.
    pub async fn confirm(&self) -> Result<()> {
        match self.ownership.has_surely(&self.name, self.tenure) {
            true => Ok(()),
            false => self.cursors.confirm().await,
        }
    }

    /// Loads a topic of the bundle, unless the bundle goes.
    pub async fn load(&self, load: impl Future<Output = Result<Arc<Topic>>>) -> Result<Arc<Topic>> {
        let _loading = self.loading.read().await;
        if self.is_over() {
            return Err(not_served_here(&self.name));
        }
        let topic = load.await?;
        self.loaded.lock().add(&topic);
        Ok(topic)
    }

    /// The topic is not in memory any more.
    pub fn forget(&self, topic: &Arc<Topic>) {
        self.loaded.lock().remove(topic);
    }
}

/// The bundle that a topic is in.
pub(crate) fn bundle_of(name: &TopicName, policies: &EffectivePolicies) -> BundleName {
    BundleName {
        namespace: name.namespace().clone(),
        range: policies.namespace.bundle_range(topic_hash(name.as_str())),
    }
}

impl Broker {
    /// The bundle, which must be this broker's.
    pub(crate) async fn bundle(&self, name: &BundleName) -> Result<Arc<Bundle>> {
        let tenure = self.tenure(name).await?;
        loop {
            let bundle = self.bundles.get_or_load(name, || self.open_bundle(name, tenure)).await?;
            if bundle.tenure != tenure {
                // It was this broker's, and somebody else's since.
                self.drop_bundle(&bundle, None);
                continue;
            }
            if bundle.is_over() {
                return Err(not_served_here(name));
            }
            if !self.ownership.holds(name, tenure) {
                // It was lost while it was opened, when nobody could drop it yet.
                self.drop_bundle(&bundle, None);
                return Err(not_served_here(name));
            }
            return Ok(bundle);
        }
    }

    async fn tenure(&self, name: &BundleName) -> Result<Tenure> {
        if let Owner::Me(tenure) = self.ownership.find(name).await? {
            return Ok(tenure);
        }
        // Whoever sent the client here may know more than this broker has heard yet.
        match self.ownership.find_anew(name).await? {
            Owner::Me(tenure) => Ok(tenure),
            Owner::Other(_) => Err(not_served_here(name)),
        }
    }

    async fn open_bundle(&self, name: &BundleName, tenure: Tenure) -> Result<Arc<Bundle>> {
        let metadata = match tenure.version {
            Some(version) => self.shared.metadata.guarded_by_bundle(name, version),
            None => self.shared.metadata.clone(),
        };
        self.settle_log(name, &metadata).await?;
        let pending = self.shared.pending_acks.clone();
        let cursors = Cursors::open(name.to_string(), metadata.clone(), self.shared.ledgers.clone(), pending).await?;
        // Who has lost it may have read a log that was split meanwhile, or ledgers of it that were deleted: none is no empty one.
        if !self.ownership.holds_now(name, tenure).await? {
            return Err(not_served_here(name));
        }
        Ok(Arc::new(Bundle {
            name: name.clone(),
            tenure,
            ownership: self.ownership.clone(),
            metadata,
            cursors,
            is_over: AtomicBool::new(false),
            loading: RwLock::default(),
            loaded: Mutex::default(),
            resting: Mutex::default(),
        }))
    }

    /// Hands a bundle over to another broker, or unloads it where there is no other: its topics finish what is in flight, and
    /// their clients are told where it goes.
    pub(crate) async fn give_up_bundle(&self, bundle: &Arc<Bundle>, to: Target<'_>) -> Result<()> {
        let Some(topics) = self.close_bundle(bundle).await else { return Ok(()) };
        self.finish_ledgers(bundle, &topics).await;
        let passed = self.ownership.give_up(&bundle.name, bundle.tenure, to).await;
        self.dismiss(bundle, topics, passed.as_ref().ok().and_then(Option::as_ref));
        passed.map(drop)
    }

    /// Lets the topics of a bundle finish what is in flight. None: somebody else does that, or has.
    pub(crate) async fn close_bundle(&self, bundle: &Arc<Bundle>) -> Option<Vec<Arc<Topic>>> {
        if bundle.is_over.swap(true, Ordering::AcqRel) {
            return None;
        }
        drop(bundle.loading.write().await);
        let topics = bundle.loaded.lock().all();
        let mut closing: JoinSet<()> = topics.iter().cloned().map(|topic| async move { topic.close().await }).collect();
        while closing.join_next().await.is_some() {}
        bundle.cursors.settled().await;
        Some(topics)
    }

    /// The ledgers that a bundle's topics and its cursor log wrote are written no more.
    fn finish_ledgers(&self, bundle: &Bundle, topics: &[Arc<Topic>]) -> impl Future<Output = ()> + use<> {
        let mut ledgers = bundle.cursors.ledger_ids();
        ledgers.extend(topics.iter().filter_map(|topic| topic.newest_ledger()));
        let finished = self.shared.ledgers.finish(ledgers);
        async move {
            if let Err(error) = finished.await {
                tracing::warn!(%error, "could not close ledgers; they are left to recovery");
            }
        }
    }

    /// A bundle has another owner: its topics are dropped at once.
    fn drop_bundle(&self, bundle: &Arc<Bundle>, to: Option<&Located>) {
        bundle.is_over.store(true, Ordering::Release);
        let topics = bundle.loaded.lock().all();
        tokio::spawn(self.finish_ledgers(bundle, &topics));
        self.dismiss(bundle, topics, to);
    }

    /// A bundle that is still this broker's may have lost its cursor log, as when the answer to a commit did not arrive: it is
    /// opened again when it is asked for.
    pub(crate) fn reopen_fenced_bundles(&self) {
        for bundle in self.bundles.all() {
            if bundle.cursors.is_fenced() && !bundle.is_over() {
                tracing::warn!(bundle = %bundle.name, "acknowledgements cannot be written any more; loading the bundle again");
                self.drop_bundle(&bundle, None);
            }
        }
    }

    /// Forgets a bundle and sends the clients of its topics away.
    pub(crate) fn dismiss(&self, bundle: &Arc<Bundle>, topics: Vec<Arc<Topic>>, to: Option<&Located>) {
        // What waits still would be confirmed and not be known to whoever opens the bundle next, here too.
        bundle.cursors.seal();
        if bundle.cursors.is_in_doubt() {
            self.shared.unsettled.add_log(bundle);
        }
        self.bundles.forget(&bundle.name, bundle);
        for topic in topics {
            self.forget(&topic);
            topic.tell_closed(to.map(|to| to.record.pulsar_url.as_str()));
        }
    }

    /// Unloads a bundle, wherever it is: to the broker that is named or to whichever suits.
    pub async fn unload_bundle(&self, name: &BundleName, to: Option<&str>) -> Result<()> {
        if let Some(to) = to
            && self.ownership.is_shared()
            && self.ownership.broker(to).is_none()
        {
            return Err(BrokerError::PreconditionFailed(format!("broker {to} is not in the list of active brokers")));
        }
        match self.bundles.get(name) {
            Some(bundle) => self.give_up_bundle(&bundle, Target { broker: to, ..Target::default() }).await,
            None => {
                let to = to.map(str::to_owned);
                self.ownership.ask(name, Wanted::Handover { to, reason: MovedFor::default() }).await
            }
        }
    }

    /// Follows what becomes of this broker's bundles.
    pub(crate) fn follow_ownership(self: &Arc<Self>) {
        let Some(mut changes) = self.ownership.changes() else { return };
        let weak = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                let Some(broker) = weak.upgrade() else { return };
                broker.follow(change);
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }

    fn follow(self: Arc<Self>, change: Change) {
        match change {
            Change::Gained(name) => drop(tokio::spawn(async move {
                // So that the first client finds its acknowledgements replayed.
                if let Err(error) = self.bundle(&name).await {
                    tracing::warn!(bundle = %name, %error, "could not open a bundle; its first client will");
                }
            })),
            Change::Lost(name) => {
                let Some(bundle) = self.bundles.get(&name) else { return };
                if !bundle.is_over() {
                    tracing::warn!(bundle = %name, "bundle has another owner");
                    let to = self.ownership.owner_known(&name);
                    self.drop_bundle(&bundle, to.as_ref());
                }
            }
            Change::Asked(name, wanted) => drop(tokio::spawn(async move {
                if let Err(error) = self.carry_out(&name, &wanted).await {
                    tracing::warn!(bundle = %name, ?wanted, %error, "could not do what is asked of a bundle's owner");
                }
            })),
        }
    }

    async fn carry_out(self: &Arc<Self>, name: &BundleName, wanted: &Wanted) -> Result<()> {
        let Wanted::Handover { to, reason } = wanted else {
            return self.split_bundle(name, &SplitAt::Topics).await.map(drop);
        };
        let target = Target { broker: to.as_deref(), reason: *reason };
        match self.bundles.get(name) {
            Some(bundle) => self.give_up_bundle(&bundle, target).await,
            // It is this broker's, which has not opened it.
            None => match self.ownership.find(name).await? {
                Owner::Me(tenure) => self.ownership.give_up(name, tenure, target).await.map(drop),
                Owner::Other(_) => Ok(()),
            },
        }
    }

    /// The bundles of a namespace go: nobody has them any more, wherever they were.
    pub(crate) async fn give_up_namespace(&self, namespace: &NamespaceName, ranges: &[BundleRange]) -> Result<()> {
        for range in ranges {
            self.unload_bundle(&BundleName { namespace: namespace.clone(), range: *range }, None).await?;
        }
        Ok(())
    }

    /// Hands every bundle over.
    pub(crate) async fn give_up_all(self: &Arc<Self>) {
        let mut leaving = JoinSet::new();
        for bundle in self.bundles.all() {
            let broker = self.clone();
            leaving.spawn(async move {
                if let Err(error) = broker.give_up_bundle(&bundle, Target::default()).await {
                    tracing::warn!(bundle = %bundle.name, %error, "could not hand a bundle over");
                }
            });
        }
        while leaving.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use geminga_ledger_client::MemoryLedgers;
    use geminga_metadata::{ClusterData, MemoryStore, Policies, TenantInfo};

    use super::*;
    use crate::config::BrokerConfig;

    const BUNDLES: usize = 50;
    const TOPICS: usize = 1000;

    async fn broker_with_topics() -> Arc<Broker> {
        let metadata = Metadata::new(Arc::new(MemoryStore::default()));
        metadata.create_cluster("standalone", &ClusterData::default()).await.unwrap();
        let tenant = TenantInfo { allowed_clusters: ["standalone".to_owned()].into(), ..Default::default() };
        metadata.create_tenant("public", &tenant).await.unwrap();
        let policies = Policies::new_namespace("standalone", BUNDLES as u32);
        metadata.create_namespace(&"public/default".parse().unwrap(), &policies).await.unwrap();
        let ledgers = Arc::new(MemoryLedgers::default());
        let broker = Broker::start(BrokerConfig::default(), metadata, ledgers).await.unwrap();
        broker.stop_housekeeping().await;
        for number in 0..TOPICS {
            broker.topic(&format!("persistent://public/default/t-{number}").parse().unwrap(), true).await.unwrap();
        }
        broker
    }

    /// How many topics are looked at when all bundles go, in one way or the other.
    async fn looked_at(leave: impl AsyncFn(&Arc<Broker>)) -> usize {
        let broker = broker_with_topics().await;
        let bundles = broker.bundles.all();
        assert_eq!((bundles.len(), broker.loaded_topics().len()), (BUNDLES, TOPICS));
        let of_bundles: usize = bundles.iter().map(|bundle| bundle.loaded.lock().all().len()).sum();
        assert_eq!(of_bundles, TOPICS, "each is in one bundle");
        let before = broker.topics_copied();
        leave(&broker).await;
        let copied = broker.topics_copied() - before;
        assert!(broker.bundles.all().is_empty() && broker.loaded_topics().is_empty());
        assert!(
            bundles.iter().all(|bundle| bundle.loaded.lock().all().is_empty()),
            "what is forgotten is held no more"
        );
        copied
    }

    #[tokio::test]
    async fn bundles_that_go_look_at_no_topics_but_their_own() {
        assert_eq!(looked_at(async |broker| broker.give_up_all().await).await, 0);
        let lose = async |broker: &Arc<Broker>| {
            broker.bundles.all().iter().for_each(|bundle| broker.drop_bundle(bundle, None));
        };
        assert_eq!(looked_at(lose).await, 0);
    }
}
