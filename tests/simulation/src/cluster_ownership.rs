//! Which bundles a simulated broker owns. Sessions say who should try; the bundle's record decides, by whose version every commit
//! of its owner is guarded, and fencing.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use geminga_metadata::{BundleRecord, Lease, LeaseOutcome, Metadata, MetadataError, Versioned};
use geminga_model::BundleRange;

use crate::cluster_broker::Broker;
use crate::cluster_bundles::{bundle_name, check_bundles, namespace};
use crate::cluster_cursors::BundleLog;
use crate::cluster_ledgers::Part;
use crate::cluster_messages::ToClient;
use crate::cluster_plant::Plant;
use crate::cluster_sim::{MS, SECOND};
use crate::cluster_topic::Topic;

const SESSION: Duration = Duration::from_secs(5);

/// By what a broker owns a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Of the bundle's record.
    version: u64,
    epoch: u64,
    /// How often this broker has opened bundles before.
    opened: u64,
}

impl Tenure {
    /// Grows with every owner, and with every time that one begins anew.
    pub fn ownership(&self) -> u64 {
        self.version << 20 | self.opened
    }

    pub fn metadata(&self, bundle: BundleRange, metadata: &Metadata) -> Metadata {
        metadata.guarded_by_bundle(&bundle_name(bundle), self.version)
    }
}

/// A bundle in one ownership.
pub struct Bundle {
    pub range: BundleRange,
    pub tenure: Tenure,
    pub log: BundleLog,
    pub topics: BTreeMap<usize, Topic>,
    /// It takes nothing more in.
    pub is_closing: bool,
    /// Its log has ended, on this broker's own behalf.
    pub is_sealed: bool,
    pub is_being_checked: bool,
}

impl Bundle {
    pub fn ownership(&self) -> u64 {
        self.tenure.ownership()
    }

    fn is_deposed(&self) -> bool {
        !self.is_sealed && self.log.log.is_fenced() || self.topics.values().any(|topic| topic.ledger.is_fenced())
    }

    fn is_settled(&self) -> bool {
        let idle = |topic: &Topic| topic.ledger.pending_bytes() == 0;
        self.log.is_settled() && self.topics.values().all(idle)
    }
}

pub fn broker_name(broker: usize) -> String {
    format!("broker-{broker}")
}

impl Broker {
    /// Begins the session that a process has, and keeps it.
    pub async fn keep_session(self: Rc<Self>) {
        loop {
            let session = self.session.borrow().clone();
            let kept = match session {
                Some(lease) => self.renew(lease).await,
                None => self.begin_session().await,
            };
            if matches!(kept, Err(MetadataError::LeaseLost { .. })) {
                self.session.take();
                self.lose_all();
            }
            self.sleep(SECOND).await;
        }
    }

    async fn begin_session(self: &Rc<Self>) -> Result<(), MetadataError> {
        let name = broker_name(self.id);
        let ask = |metadata: Metadata| async move { metadata.acquire_broker(&name, &name, SESSION).await };
        if let LeaseOutcome::Acquired(lease) = self.ask(&self.metadata, "begin session", ask).await? {
            *self.session.borrow_mut() = Some(lease);
        }
        Ok(())
    }

    async fn renew(self: &Rc<Self>, lease: Lease) -> Result<(), MetadataError> {
        let ask = |metadata: Metadata| async move { metadata.store().renew_lease(&lease, SESSION).await };
        self.ask(&self.metadata, "renew session", ask).await.map(drop)
    }

    fn lose_all(self: &Rc<Self>) {
        let all: Vec<BundleRange> = self.bundles.borrow().keys().copied().collect();
        all.into_iter().for_each(|bundle| self.drop_bundle(bundle, None));
    }

    /// A client wants something of a bundle that is not served here.
    pub fn take_over_soon(self: &Rc<Self>, bundle: BundleRange) {
        if self.bundles.borrow().contains_key(&bundle) || !self.moving.borrow_mut().insert(bundle) {
            return;
        }
        let broker = self.clone();
        self.tasks.spawn(async move {
            if broker.take_over(bundle).await.is_err() {
                broker.sleep(200 * MS).await;
            }
            broker.moving.borrow_mut().remove(&bundle);
        });
    }

    /// Which bundles there are.
    pub async fn learn_bundles(self: &Rc<Self>) -> Result<Versioned<Vec<BundleRange>>, MetadataError> {
        let ask = |metadata: Metadata| async move { metadata.get_namespace(&namespace()).await };
        let found = self.ask(&self.metadata, "get namespace", ask).await?;
        let Versioned { value, version } = found.expect("the namespace is never deleted");
        let value = value.bundle_ranges();
        (*self.ranges.borrow_mut()).clone_from(&value);
        Ok(Versioned { value, version })
    }

    async fn take_over(self: &Rc<Self>, bundle: BundleRange) -> Result<(), MetadataError> {
        let session = self.session.borrow().clone();
        let Some(session) = session else {
            self.sleep(100 * MS).await;
            return Ok(());
        };
        let policies = self.learn_bundles().await?;
        if !policies.value.contains(&bundle) {
            return Ok(());
        }
        let Some((version, epoch)) = self.take(bundle, policies.version, &session).await? else { return Ok(()) };
        let opened = self.opened.get() + 1;
        self.opened.set(opened);
        let tenure = Tenure { version, epoch, opened };
        match self.load(bundle, tenure).await {
            Ok(loaded) => {
                self.sim.count("bundles taken over");
                self.sim.note(format_args!("broker {} owns bundle {bundle} by {tenure:?}", self.id));
                self.bundles.borrow_mut().insert(bundle, loaded);
                self.touch(bundle);
            }
            Err(failure) => {
                self.sim.count("takeovers that failed");
                self.sim.note(format_args!("broker {} could not load bundle {bundle}: {failure}", self.id));
                self.sleep(300 * MS).await;
            }
        }
        Ok(())
    }

    /// Makes this broker a bundle's owner, if nobody is who is alive; by which version of its record, in which epoch.
    async fn take(
        self: &Rc<Self>,
        bundle: BundleRange,
        policies_version: u64,
        session: &Lease,
    ) -> Result<Option<(u64, u64)>, MetadataError> {
        let ask = move |metadata: Metadata| async move { metadata.get_bundle(&bundle_name(bundle)).await };
        let found: Option<Versioned<BundleRecord>> = self.ask(&self.metadata, "get bundle", ask).await?;
        let before = found.as_ref().map(|found| found.version);
        if let Some(Versioned { value: record, version }) = &found
            && let Some(owner) = &record.owner
        {
            if *owner == broker_name(self.id) && record.incarnation == session.epoch {
                return Ok(Some((*version, record.epoch)));
            }
            if self.is_alive(owner, record.incarnation).await? {
                let number = owner.strip_prefix("broker-").and_then(|number| number.parse().ok());
                self.owners.borrow_mut().extend(number.map(|number| (bundle, number)));
                // What is known is old before long.
                self.sleep(500 * MS).await;
                self.owners.borrow_mut().remove(&bundle);
                return Ok(None);
            }
        }
        let epoch = found.map_or(1, |found| found.value.epoch + 1);
        let record =
            BundleRecord { owner: Some(broker_name(self.id)), incarnation: session.epoch, epoch, balanced_at_ms: None };
        let plant = self.sim.plant;
        let ask = move |metadata: Metadata| async move {
            let name = bundle_name(bundle);
            let version = match before {
                None if plant != Plant::SplitBundlesAreTaken => {
                    metadata.create_bundle(&name, &record, policies_version).await?
                }
                _ => metadata.put_bundle(&name, &record, before).await?,
            };
            check_bundles(&metadata);
            Ok(version)
        };
        let version = self.ask(&self.metadata, "take bundle", ask).await?;
        self.owners.borrow_mut().remove(&bundle);
        Ok(Some((version, epoch)))
    }

    /// Whether that session of a broker has not expired, by the store's clock.
    async fn is_alive(self: &Rc<Self>, broker: &str, incarnation: u64) -> Result<bool, MetadataError> {
        let name = format!("broker/{broker}");
        let ask = |metadata: Metadata| async move { metadata.store().lease(&name).await };
        let lease = self.ask(&self.metadata, "get session", ask).await?;
        Ok(lease.is_some_and(|lease| lease.epoch == incarnation))
    }

    /// Looks whether bundles are still this broker's. As long as metadata cannot be reached it goes on: fencing decides then.
    pub fn check_ownership(self: &Rc<Self>) {
        for bundle in self.bundles.borrow_mut().values_mut() {
            if std::mem::replace(&mut bundle.is_being_checked, true) {
                continue;
            }
            let (broker, number, tenure) = (self.clone(), bundle.range, bundle.tenure);
            self.tasks.spawn(async move { broker.check(number, tenure).await });
        }
    }

    async fn check(self: &Rc<Self>, bundle: BundleRange, tenure: Tenure) {
        let ask = move |metadata: Metadata| async move { metadata.get_bundle(&bundle_name(bundle)).await };
        let found = self.ask(&self.metadata, "check bundle", ask).await;
        let is_lost = found.is_ok_and(|found| found.is_none_or(|found| found.version != tenure.version));
        let mut bundles = self.bundles.borrow_mut();
        let Some(owned) = bundles.get_mut(&bundle).filter(|owned| owned.tenure == tenure) else { return };
        owned.is_being_checked = false;
        drop(bundles);
        if is_lost {
            self.sim.count("owners that learned of their end from metadata");
            self.drop_bundle(bundle, None);
        }
    }

    /// The bundle with a topic, if this broker has it.
    pub fn bundle_with(&self, topic: usize) -> Option<BundleRange> {
        let bundles = self.bundles.borrow();
        bundles.values().find(|owned| owned.topics.contains_key(&topic)).map(|owned| owned.range)
    }

    /// Does what the state machines of a bundle want. One that is deposed is dropped at once.
    pub fn pump(self: &Rc<Self>, bundle: BundleRange) {
        for ((part, ownership), log) in self.new_logs.borrow_mut().iter_mut().filter(|((part, _), _)| *part == bundle) {
            self.follow_log(Part { bundle: *part, ownership: *ownership, topic: None }, log);
        }
        let mut bundles = self.bundles.borrow_mut();
        let Some(owned) = bundles.get_mut(&bundle) else { return };
        self.pump_topics(owned);
        self.pump_log(owned);
        let is_deposed = owned.is_deposed();
        drop(bundles);
        if is_deposed {
            self.sim.count("owners that learned of their end from fencing");
            self.drop_bundle(bundle, None);
        }
    }

    /// Forgets a bundle and sends its clients away.
    pub fn drop_bundle(self: &Rc<Self>, bundle: BundleRange, to: Option<usize>) {
        if self.bundles.borrow_mut().remove(&bundle).is_none() {
            return;
        }
        self.sim.note(format_args!("broker {} drops bundle {bundle}", self.id));
        let connections = self.connections.borrow();
        let of_bundle = connections.iter().filter(|(_, connection)| connection.bundle == bundle);
        let of_bundle: Vec<u64> = of_bundle.map(|(id, _)| *id).collect();
        drop(connections);
        for connection in of_bundle {
            self.close(connection, to.map_or(ToClient::Closed, ToClient::Owner));
        }
    }

    /// Gives a bundle to another broker: what is in flight comes to its end first.
    pub fn transfer(self: &Rc<Self>, bundle: BundleRange, to: usize) {
        let Some(tenure) = self.begin_closing(bundle) else { return };
        let broker = self.clone();
        self.tasks.spawn(async move { broker.give_up(bundle, tenure, to).await });
        self.drive();
    }

    /// A bundle takes nothing more in. None: it is not this broker's, or on its way already.
    pub fn begin_closing(&self, bundle: BundleRange) -> Option<Tenure> {
        let mut bundles = self.bundles.borrow_mut();
        let owned = bundles.get_mut(&bundle).filter(|owned| !owned.is_closing)?;
        owned.is_closing = true;
        Some(owned.tenure)
    }

    /// Until what is in flight has come to its end, as far as it does.
    pub async fn settle(self: &Rc<Self>, bundle: BundleRange, tenure: Tenure) {
        let patience = self.sim.now() + 5 * SECOND;
        loop {
            let settled = match self.bundles.borrow().get(&bundle).filter(|owned| owned.tenure == tenure) {
                Some(owned) => owned.is_settled(),
                None => return,
            };
            if settled || self.sim.now() > patience {
                break;
            }
            self.sleep(10 * MS).await;
        }
    }

    async fn give_up(self: Rc<Self>, bundle: BundleRange, tenure: Tenure, to: usize) {
        self.settle(bundle, tenure).await;
        if self.bundles.borrow().get(&bundle).is_none_or(|owned| owned.tenure != tenure) {
            return;
        }
        self.sim.count("bundles given away");
        let record = BundleRecord { owner: None, incarnation: 0, epoch: tenure.epoch + 1, balanced_at_ms: None };
        let ask = move |metadata: Metadata| async move {
            metadata.pass_bundle(&bundle_name(bundle), &record, tenure.version).await
        };
        // If nobody knows what became of it, whoever is asked next looks.
        let _ = self.ask(&self.metadata, "pass bundle", ask).await;
        if self.bundles.borrow().get(&bundle).is_some_and(|owned| owned.tenure == tenure) {
            self.drop_bundle(bundle, Some(to));
        }
    }
}
