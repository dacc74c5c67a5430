//! Which bundles a simulated broker owns: leases in metadata say who should try; fencing and compare-and-set decide.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use geminga_metadata::{Lease, LeaseOutcome, Metadata, MetadataError};

use crate::cluster_broker::Broker;
use crate::cluster_cursors::BundleLog;
use crate::cluster_messages::ToClient;
use crate::cluster_sim::{MS, SECOND};
use crate::cluster_topic::Topic;

const LEASE: Duration = Duration::from_secs(5);

/// A bundle in one ownership; another one has another epoch.
pub struct Bundle {
    pub number: usize,
    pub lease: Lease,
    pub log: BundleLog,
    pub topics: BTreeMap<usize, Topic>,
    /// It takes nothing more in.
    pub is_closing: bool,
    pub is_renewing: bool,
}

impl Bundle {
    pub fn epoch(&self) -> u64 {
        self.lease.epoch
    }

    fn is_deposed(&self) -> bool {
        self.log.log.is_fenced() || self.topics.values().any(|topic| topic.ledger.is_fenced())
    }

    fn is_settled(&self) -> bool {
        let idle = |topic: &Topic| topic.ledger.pending_bytes() == 0;
        self.log.is_settled() && self.topics.values().all(idle)
    }
}

/// In the same commit as what depends on it: the lease has this epoch still, whether or not its time is over.
///
/// # Errors
/// [`MetadataError::LeaseLost`].
pub async fn still_owned(metadata: &Metadata, lease: Option<Lease>) -> Result<(), MetadataError> {
    match lease {
        Some(lease) => metadata.store().renew_lease(&lease, LEASE).await.map(drop),
        None => Ok(()),
    }
}

fn lease_name(bundle: usize) -> String {
    format!("bundle-{bundle}")
}

impl Broker {
    pub fn owner_name(&self) -> String {
        format!("broker-{}", self.id)
    }

    /// A client wants something of a bundle that is not owned here.
    pub fn take_over_soon(self: &Rc<Self>, bundle: usize) {
        if self.bundles.borrow().contains_key(&bundle) || !self.moving.borrow_mut().insert(bundle) {
            return;
        }
        let broker = self.clone();
        self.tasks.spawn(async move {
            broker.take_over(bundle).await;
            broker.moving.borrow_mut().remove(&bundle);
        });
    }

    async fn take_over(self: &Rc<Self>, bundle: usize) {
        let owner = self.owner_name();
        let acquired = self.ask("acquire lease", move |metadata| async move {
            metadata.store().acquire_lease(&lease_name(bundle), &owner, LEASE).await
        });
        let lease = match acquired.await {
            Ok(LeaseOutcome::Acquired(lease)) => lease,
            Ok(LeaseOutcome::Held(held)) => {
                let owner = held.owner.strip_prefix("broker-").and_then(|number| number.parse().ok());
                self.owners.borrow_mut().extend(owner.map(|owner| (bundle, owner)));
                // What is known is old before long.
                self.sleep(500 * MS).await;
                self.owners.borrow_mut().remove(&bundle);
                return;
            }
            Err(_) => return self.sleep(200 * MS).await,
        };
        self.owners.borrow_mut().remove(&bundle);
        match self.load(bundle, lease.clone()).await {
            Ok(loaded) => {
                self.sim.count("bundles taken over");
                self.sim.note(format_args!("broker {} owns bundle {bundle} in epoch {}", self.id, lease.epoch));
                self.bundles.borrow_mut().insert(bundle, loaded);
                self.touch(bundle);
            }
            Err(failure) => {
                self.sim.count("takeovers that failed");
                self.sim.note(format_args!("broker {} could not load bundle {bundle}: {failure}", self.id));
                self.release(lease).await;
                self.sleep(300 * MS).await;
            }
        }
    }

    async fn release(self: &Rc<Self>, lease: Lease) {
        let _ = self
            .ask("release lease", move |metadata| async move { metadata.store().release_lease(&lease).await })
            .await;
    }

    /// As long as metadata cannot be reached it goes on: who owns the bundle then decides fencing.
    pub fn renew_leases(self: &Rc<Self>) {
        for bundle in self.bundles.borrow_mut().values_mut() {
            if std::mem::replace(&mut bundle.is_renewing, true) {
                continue;
            }
            let (broker, number, lease) = (self.clone(), bundle.number, bundle.lease.clone());
            self.tasks.spawn(async move { broker.renew(number, lease).await });
        }
    }

    async fn renew(self: &Rc<Self>, bundle: usize, lease: Lease) {
        let epoch = lease.epoch;
        let renewed = self
            .ask("renew lease", move |metadata| async move { metadata.store().renew_lease(&lease, LEASE).await })
            .await;
        let is_lost = matches!(renewed, Err(MetadataError::LeaseLost { .. }));
        let mut bundles = self.bundles.borrow_mut();
        let Some(owned) = bundles.get_mut(&bundle).filter(|owned| owned.epoch() == epoch) else { return };
        owned.is_renewing = false;
        drop(bundles);
        if is_lost {
            self.sim.count("owners that learned of their end from a lease");
            self.drop_bundle(bundle, None);
        }
    }

    /// Does what the state machines of a bundle want. One that is deposed is dropped at once.
    pub fn pump(self: &Rc<Self>, bundle: usize) {
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
    pub fn drop_bundle(self: &Rc<Self>, bundle: usize, to: Option<usize>) {
        let Some(dropped) = self.bundles.borrow_mut().remove(&bundle) else { return };
        self.sim.note(format_args!("broker {} drops bundle {bundle}", self.id));
        let connections = self.connections.borrow();
        let of_bundle = connections.iter().filter(|(_, connection)| connection.topic % self.bundle_count == bundle);
        let of_bundle: Vec<u64> = of_bundle.map(|(id, _)| *id).collect();
        drop(connections);
        for connection in of_bundle {
            self.close(connection, to.map_or(ToClient::Closed, ToClient::Owner));
        }
        let broker = self.clone();
        self.tasks.spawn(async move { broker.release(dropped.lease).await });
    }

    /// Gives a bundle to another broker: what is in flight comes to its end first.
    pub fn transfer(self: &Rc<Self>, bundle: usize, to: usize) {
        let epoch = match self.bundles.borrow_mut().get_mut(&bundle) {
            Some(owned) => {
                owned.is_closing = true;
                owned.epoch()
            }
            None => return,
        };
        let broker = self.clone();
        self.tasks.spawn(async move {
            let patience = broker.sim.now() + 5 * SECOND;
            loop {
                let settled = match broker.bundles.borrow().get(&bundle).filter(|owned| owned.epoch() == epoch) {
                    Some(owned) => owned.is_settled(),
                    None => return,
                };
                if settled || broker.sim.now() > patience {
                    break;
                }
                broker.sleep(10 * MS).await;
            }
            broker.sim.count("bundles given away");
            broker.drop_bundle(bundle, Some(to));
        });
        self.drive();
    }
}
