//! A simulated broker among others: the driver of [`Directory`], as `data-plane/broker/src/ownership/member.rs` is one with tokio.
//! Watches of metadata are modelled by reading them again and again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use geminga_metadata::{
    Balanced, BrokerRecord, BundleRecord, BundleRequest, Lease, LeaseOutcome, Metadata, MetadataError, Versioned,
    Wanted,
};
use geminga_model::BundleRange;
use geminga_ownership::{Change, Directory, Known, SplitAt, choose};

use crate::cluster_broker::Broker;
use crate::cluster_bundles::{bundle_name, check_bundles, namespace};
use crate::cluster_plant::Plant;
use crate::cluster_sim::{MS, Micros, SECOND};

/// How long a session lasts without a renewal.
const SESSION: Micros = 5 * SECOND;
/// Between two readings of what a watch would tell, at most. Mostly it is much less.
const NEWS: Micros = 4 * SECOND;
/// Pause before what cannot be decided yet is looked at again.
const PAUSE: Micros = 50 * MS;

const TTL: Duration = Duration::from_micros(SESSION);

/// What a broker knows of itself and of others.
#[derive(Default)]
pub struct Membership {
    pub session: RefCell<Option<Lease>>,
    /// None: it has not joined.
    pub directory: RefCell<Option<Directory>>,
    /// When the last renewal of the session that came through was begun.
    renewed_at: Cell<Micros>,
}

pub fn broker_name(broker: usize) -> String {
    format!("broker-{broker}")
}

fn broker_number(name: &str) -> Option<usize> {
    name.strip_prefix("broker-").and_then(|number| number.parse().ok())
}

impl Broker {
    /// What a process does as long as it lives.
    pub fn take_part(self: &Rc<Self>) {
        self.tasks.spawn(self.clone().keep_session());
        self.tasks.spawn(self.clone().follow_sessions());
        self.tasks.spawn(self.clone().follow_bundles());
        self.tasks.spawn(self.clone().keep_repairing());
    }

    async fn keep_session(self: Rc<Self>) {
        loop {
            let session = self.member.session.borrow().clone();
            let kept = match session {
                Some(lease) => self.renew(lease).await,
                None => self.begin_session().await,
            };
            if matches!(kept, Err(MetadataError::LeaseLost { .. })) {
                // As from a process that is started again, and was given up as dead too early.
                self.sim.count("sessions taken by another process");
                self.change(Directory::end_session);
                self.member.session.take();
            }
            self.sleep(SESSION / 4).await;
        }
    }

    async fn begin_session(self: &Rc<Self>) -> Result<(), MetadataError> {
        let (name, began) = (broker_name(self.id), self.sim.now());
        let ask = |metadata: Metadata| async move {
            let begun = metadata.acquire_broker(&name, &name, TTL).await?;
            metadata.put_broker(&name, &BrokerRecord::default()).await?;
            Ok(begun)
        };
        let LeaseOutcome::Acquired(lease) = self.ask(&self.metadata, "begin session", ask).await? else {
            return Ok(());
        };
        let directory = Directory::new(&broker_name(self.id), lease.epoch, SESSION / MS);
        *self.member.directory.borrow_mut() = Some(directory);
        self.look().await?;
        self.read_all().await?;
        self.member.renewed_at.set(began);
        *self.member.session.borrow_mut() = Some(lease);
        Ok(())
    }

    async fn renew(self: &Rc<Self>, lease: Lease) -> Result<(), MetadataError> {
        let began = self.sim.now();
        let ask = |metadata: Metadata| async move { metadata.store().renew_lease(&lease, TTL).await };
        let renewed = self.ask(&self.metadata, "renew session", ask).await?;
        *self.member.session.borrow_mut() = Some(renewed);
        if self.lasts() || self.sim.plant == Plant::LapsedSessionsGoOn {
            self.member.renewed_at.set(began);
            return Ok(());
        }
        // It had run out: what others have taken meanwhile has to be known first.
        self.sim.count("sessions that had run out");
        self.read_all().await?;
        self.sim.count("sessions that had run out and go on");
        self.member.renewed_at.set(began);
        Ok(())
    }

    /// The session lasts still, by a clock that began before that of metadata.
    fn lasts(&self) -> bool {
        self.sim.now() - self.member.renewed_at.get() < SESSION
    }

    /// The session lasts, and nobody else is known to have the bundle.
    pub fn has_surely(&self, bundle: BundleRange, version: u64) -> bool {
        let directory = self.member.directory.borrow();
        self.lasts() && directory.as_ref().is_some_and(|directory| directory.has(&bundle_name(bundle), version))
    }

    pub fn known_owner(&self, bundle: BundleRange) -> Option<Known> {
        let directory = self.member.directory.borrow();
        Some(directory.as_ref()?.owner(self.sim.now() / MS, &bundle_name(bundle)))
    }

    /// Changes the directory, and does what follows. None: there is none.
    fn change<T>(self: &Rc<Self>, change: impl FnOnce(&mut Directory, &mut Vec<Change>) -> T) -> Option<T> {
        let mut changes = Vec::new();
        let result = change(self.member.directory.borrow_mut().as_mut()?, &mut changes);
        changes.into_iter().for_each(|change| self.follow(change));
        Some(result)
    }

    fn follow(self: &Rc<Self>, change: Change) {
        match change {
            Change::Gained(bundle) => self.open_soon(bundle.range),
            Change::Lost(bundle) => {
                let is_open = self.bundles.borrow().get(&bundle.range).is_some_and(|owned| !owned.is_closing);
                if is_open {
                    self.sim.count("owners that learned of their end from metadata");
                    let to = self.owner_elsewhere(bundle.range);
                    self.drop_bundle(bundle.range, to);
                }
            }
            Change::Asked(bundle, Wanted::Split) => {
                self.sim.count("owners that were asked for a split");
                self.split(bundle.range, &SplitAt::Topics);
            }
            Change::Asked(bundle, Wanted::Handover { to, .. }) => {
                self.sim.count("owners that were asked to hand a bundle over");
                self.transfer(bundle.range, to.as_deref().and_then(broker_number));
            }
        }
    }

    /// Another broker that has the bundle and is alive, as far as is known.
    pub fn owner_elsewhere(&self, bundle: BundleRange) -> Option<usize> {
        match self.known_owner(bundle)? {
            Known::Of(located) => broker_number(&located.broker),
            _ => None,
        }
    }

    async fn follow_sessions(self: Rc<Self>) {
        loop {
            self.sleep(SESSION / 12).await;
            // What is known goes on to be used.
            drop(self.look().await);
        }
    }

    async fn follow_bundles(self: Rc<Self>) {
        loop {
            let share = self.sim.random(0..100).pow(3);
            self.sleep(50 * MS + NEWS * share / 1_000_000).await;
            drop(self.learn_bundles().await);
            drop(self.read_all().await);
        }
    }

    /// Reads which brokers are alive.
    async fn look(self: &Rc<Self>) -> Result<(), MetadataError> {
        let ask =
            |metadata: Metadata| async move { Ok((metadata.list_brokers().await?, metadata.broker_sessions().await?)) };
        let (brokers, sessions) = self.ask(&self.metadata, "list sessions", ask).await?;
        let (now_ms, renewed_ms) = (self.sim.now() / MS, self.member.renewed_at.get() / MS);
        self.change(|directory, _| {
            directory.set_brokers(brokers);
            directory.look(now_ms, sessions, renewed_ms);
        });
        Ok(())
    }

    /// Reads who owns what.
    pub async fn read_all(self: &Rc<Self>) -> Result<(), MetadataError> {
        let known = self.change(|directory, _| directory.known_bundles()).unwrap_or_default();
        let ask = |metadata: Metadata| async move { metadata.list_bundles().await };
        let records = self.ask(&self.metadata, "list bundles", ask).await?;
        self.change(|directory, changes| {
            records.iter().for_each(|(bundle, record)| directory.learn(bundle, record.clone(), changes));
        });
        for bundle in known.into_iter().filter(|known| records.iter().all(|(bundle, _)| bundle != known)) {
            self.read_again(bundle.range).await?;
        }
        let ask = |metadata: Metadata| async move { metadata.list_bundle_requests().await };
        let requests = self.ask(&self.metadata, "list requests", ask).await?;
        self.change(|directory, changes| {
            requests.into_iter().for_each(|(bundle, request)| directory.asked(&bundle, request, changes));
        });
        Ok(())
    }

    /// Reads one bundle's record.
    pub async fn read_again(self: &Rc<Self>, bundle: BundleRange) -> Result<(), MetadataError> {
        let name = bundle_name(bundle);
        let version = self.change(|directory, _| directory.version(&name)).flatten();
        let ask = move |metadata: Metadata| async move { metadata.get_bundle(&bundle_name(bundle)).await };
        let record = self.ask(&self.metadata, "get bundle", ask).await?;
        self.change(|directory, changes| match record {
            Some(record) => directory.learn(&name, record, changes),
            None => directory.forget(&name, version, changes),
        });
        Ok(())
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

    /// Until somebody has the bundle: by which version of its record this broker does. None: another one has it.
    pub async fn find(self: &Rc<Self>, bundle: BundleRange) -> Result<Option<u64>, MetadataError> {
        let give_up_at = self.sim.now() + 2 * SESSION;
        while self.sim.now() < give_up_at {
            match self.known_owner(bundle) {
                Some(Known::Mine(version)) => return Ok(Some(version)),
                Some(Known::GivenUp(record)) => self.keep(bundle, record).await?,
                Some(Known::Of(_)) => return Ok(None),
                Some(Known::Free) => self.place(bundle).await?,
                Some(Known::Unsure) | None => self.sleep(PAUSE).await,
            }
        }
        Ok(None)
    }

    /// Whether this broker has given the bundle up is not known: it has not, once its record has another version.
    async fn keep(
        self: &Rc<Self>,
        bundle: BundleRange,
        given_up: Versioned<BundleRecord>,
    ) -> Result<(), MetadataError> {
        self.sim.count("bundles that may have been given up");
        let record = BundleRecord { epoch: given_up.value.epoch + 1, ..given_up.value };
        let value = record.clone();
        let ask = move |metadata: Metadata| async move {
            metadata.put_bundle(&bundle_name(bundle), &value, Some(given_up.version)).await
        };
        let put = self.ask(&self.metadata, "keep bundle", ask).await;
        self.record_put(bundle, record, put).await
    }

    async fn record_put(
        self: &Rc<Self>,
        bundle: BundleRange,
        record: BundleRecord,
        put: Result<u64, MetadataError>,
    ) -> Result<(), MetadataError> {
        match put {
            Ok(version) => {
                let (name, record) = (bundle_name(bundle), Versioned { value: record, version });
                self.change(|directory, changes| directory.learn(&name, record, changes));
                Ok(())
            }
            Err(error) if error.is_conflict() => self.read_again(bundle).await,
            Err(error) => Err(error),
        }
    }

    /// Gives a bundle that nobody owns to a broker that is alive.
    async fn place(self: &Rc<Self>, bundle: BundleRange) -> Result<(), MetadataError> {
        let policies = self.learn_bundles().await?;
        if !policies.value.contains(&bundle) {
            return Err(MetadataError::NotFound { what: "bundle", name: bundle.to_string() });
        }
        self.look().await?;
        self.read_again(bundle).await?;
        if self.known_owner(bundle) != Some(Known::Free) {
            return Ok(());
        }
        let (name, now_ms) = (bundle_name(bundle), self.sim.now() / MS);
        let found = self.change(|directory, _| {
            let target = choose(&name, &directory.alive(now_ms), None);
            (directory.record(&name).cloned(), directory.over_session(&name), target)
        });
        let Some((before, over, Some((owner, incarnation)))) = found else {
            return Err(MetadataError::Unavailable("no broker takes it".into()));
        };
        let epoch = before.as_ref().map_or(1, |before| before.value.epoch + 1);
        let record = BundleRecord { owner: Some(owner), incarnation, epoch, balanced: Balanced::default() };
        let (plant, value) = (self.sim.plant, record.clone());
        let ask = move |metadata: Metadata| async move {
            let name = bundle_name(bundle);
            let version = match before {
                Some(before) => metadata.take_bundle(&name, &value, before.version, over.as_ref()).await?,
                None if plant == Plant::SplitBundlesAreTaken => metadata.put_bundle(&name, &value, None).await?,
                None => metadata.create_bundle(&name, &value, policies.version).await?,
            };
            check_bundles(&metadata);
            Ok(version)
        };
        let put = self.ask(&self.metadata, "place bundle", ask).await;
        if put.is_ok() {
            self.sim.count("bundles placed");
        }
        self.record_put(bundle, record, put).await
    }

    /// Makes another broker a bundle's owner, one that is named or any; by which number it goes.
    pub async fn pass(
        self: &Rc<Self>,
        bundle: BundleRange,
        version: u64,
        to: Option<usize>,
    ) -> Result<Option<usize>, MetadataError> {
        let (name, now_ms, me) = (bundle_name(bundle), self.sim.now() / MS, broker_name(self.id));
        let found = self.change(|directory, _| {
            let before = directory.record(&name).filter(|record| record.version == version)?.value.clone();
            let alive = directory.alive(now_ms);
            let named = alive.iter().find(|broker| to.map(broker_name).as_ref() == Some(&broker.id));
            let named = named.map(|broker| (broker.id.clone(), broker.incarnation));
            Some((before.epoch + 1, named.or_else(|| choose(&name, &alive, Some(&me)))))
        });
        let Some(Some((epoch, target))) = found else { return Ok(None) };
        let (owner, incarnation) = target.unzip();
        let record =
            BundleRecord { owner, incarnation: incarnation.unwrap_or(0), epoch, balanced: Balanced::default() };
        let value = record.clone();
        let ask =
            move |metadata: Metadata| async move { metadata.pass_bundle(&bundle_name(bundle), &value, version).await };
        let put = self.ask(&self.metadata, "pass bundle", ask).await;
        if matches!(put, Err(MetadataError::OutcomeUnknown(_))) {
            self.change(|directory, _| directory.may_be_given_up(&name, version));
        }
        self.record_put(bundle, record, put).await?;
        Ok(self.owner_elsewhere(bundle))
    }

    /// Asks something of the owner of a bundle, whoever it is.
    pub fn ask_owner(self: &Rc<Self>, bundle: BundleRange, wanted: Wanted) {
        let broker = self.clone();
        self.tasks.spawn(async move {
            let name = bundle_name(bundle);
            let epoch =
                broker.change(|directory, _| directory.record(&name).map(|record| record.value.epoch)).flatten();
            let Some(epoch) = epoch else { return };
            let request = BundleRequest { epoch, wanted };
            let ask = move |metadata: Metadata| async move { metadata.put_bundle_request(&name, &request).await };
            drop(broker.ask(&broker.metadata, "put request", ask).await);
        });
        self.drive();
    }
}
