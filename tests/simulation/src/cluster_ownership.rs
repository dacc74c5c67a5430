//! The bundles that a simulated broker has: how they come and go. Whose they are says `cluster_membership.rs`; a bundle's record
//! decides, by whose version every commit of its owner is guarded, and fencing.

use std::collections::BTreeMap;
use std::rc::Rc;

use geminga_metadata::{Metadata, MetadataError};
use geminga_model::BundleRange;
use geminga_ownership::Known;

use crate::cluster_broker::Broker;
use crate::cluster_bundles::bundle_name;
use crate::cluster_cursors::BundleLog;
use crate::cluster_ledgers::Part;
use crate::cluster_messages::ToClient;
use crate::cluster_plant::Plant;
use crate::cluster_recovery::Failure;
use crate::cluster_sim::{MS, SECOND};
use crate::cluster_topic::Topic;

/// By what a broker owns a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Of the bundle's record.
    pub version: u64,
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

impl Broker {
    /// A client wants something of a bundle that is not served here, or somebody has given it to this broker.
    pub fn open_soon(self: &Rc<Self>, bundle: BundleRange) {
        if !self.moving.borrow_mut().insert(bundle) {
            return;
        }
        let broker = self.clone();
        self.tasks.spawn(async move {
            if broker.open(bundle).await.is_err() {
                broker.sleep(200 * MS).await;
            }
            broker.moving.borrow_mut().remove(&bundle);
        });
    }

    async fn open(self: &Rc<Self>, bundle: BundleRange) -> Result<(), MetadataError> {
        let mut found = self.find(bundle).await?;
        if found.is_none() {
            // Whoever sent the client here may know more than this broker has heard yet.
            self.read_again(bundle).await?;
            found = self.find(bundle).await?;
        }
        let Some(version) = found.filter(|version| !self.serves(bundle, *version)) else { return Ok(()) };
        // It was this broker's, and somebody else's since.
        self.drop_bundle(bundle, None);
        let opened = self.opened.get() + 1;
        self.opened.set(opened);
        let tenure = Tenure { version, opened };
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

    /// It may have been split, or taken, while its log was read: then that was not what there is.
    pub async fn check_tenure(self: &Rc<Self>, bundle: BundleRange, tenure: Tenure) -> Result<(), Failure> {
        let policies = self.learn_bundles().await.map_err(|error| error.to_string())?;
        if !policies.value.contains(&bundle) {
            return Err("it was split".into());
        }
        if self.sim.plant == Plant::OpensWhatItLost {
            return Ok(());
        }
        self.read_again(bundle).await.map_err(|error| error.to_string())?;
        match self.known_owner(bundle) {
            Some(Known::Mine(version)) if version == tenure.version => Ok(()),
            _ => {
                self.sim.count("bundles lost while they were opened");
                Err("it is this broker's no more".into())
            }
        }
    }

    fn serves(&self, bundle: BundleRange, version: u64) -> bool {
        self.bundles.borrow().get(&bundle).is_some_and(|owned| owned.tenure.version == version)
    }

    /// Whether clients are served what they want of a bundle. One that has become somebody else's meanwhile is dropped.
    pub fn is_serving(self: &Rc<Self>, bundle: BundleRange) -> bool {
        let version = match self.known_owner(bundle) {
            Some(Known::Mine(version)) => Some(version),
            _ => None,
        };
        match self.bundles.borrow().get(&bundle) {
            None => return false,
            Some(owned) if owned.is_closing => return false,
            Some(owned) if Some(owned.tenure.version) == version => return true,
            Some(_) => {}
        }
        self.drop_bundle(bundle, None);
        false
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
    pub fn transfer(self: &Rc<Self>, bundle: BundleRange, to: Option<usize>) {
        let Some(tenure) = self.begin_closing(bundle) else { return };
        let broker = self.clone();
        self.tasks.spawn(async move { broker.give_up(bundle, tenure, to).await });
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

    async fn give_up(self: Rc<Self>, bundle: BundleRange, tenure: Tenure, to: Option<usize>) {
        self.settle(bundle, tenure).await;
        if self.bundles.borrow().get(&bundle).is_none_or(|owned| owned.tenure != tenure) {
            return;
        }
        self.sim.count("bundles given away");
        let passed = self.pass(bundle, tenure.version, to).await;
        if self.bundles.borrow().get(&bundle).is_some_and(|owned| owned.tenure == tenure) {
            self.drop_bundle(bundle, passed.ok().flatten());
        }
    }
}
