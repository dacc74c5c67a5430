//! The storage nodes that metadata name, and which of them are alive.
//!
//! A cluster at rest asks metadata next to nothing: nodes that come, change and go are heard of by watches, and a node that dies by
//! looking at leases when one of them would have run out. Renewals are told to nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_ensemble::placement::Place;
use geminga_metadata::{Metadata, MetadataError, StorageNodeStatus, StorageNodeWatch};
use parking_lot::RwLock;
use tokio::time::{Instant, sleep, sleep_until};

use crate::nodes::{self, NodeDirectory, NodeInfo};

/// Metadata are looked at no more often than this, whatever happens; and so often when they cannot be read, or when nobody tells
/// of changes.
const PAUSE: Duration = Duration::from_secs(1);
/// All of them, without a reason.
const WITHOUT_NEWS: Duration = Duration::from_secs(30);
/// A lease that ran out is looked at again for so long: a renewal that was under way is told to nobody, as it was begun in time.
/// One that begins later is.
const RENEWED_LATE: Duration = Duration::from_secs(30);
/// After the end of a lease: clocks are not read to the millisecond.
const AFTER_EXPIRY: Duration = Duration::from_millis(50);

/// A [`NodeDirectory`] that follows the registrations in metadata.
#[derive(Clone)]
pub struct Membership {
    metadata: Metadata,
    nodes: Arc<RwLock<Vec<NodeInfo>>>,
}

impl NodeDirectory for Membership {
    fn nodes(&self) -> Vec<NodeInfo> {
        self.nodes.read().clone()
    }

    fn is_at(&self, node: &str, address: &str) -> bool {
        nodes::is_at(&self.nodes.read(), node, address)
    }
}

impl Membership {
    /// # Errors
    /// Metadata could not be read.
    pub async fn open(metadata: Metadata) -> Result<Self, MetadataError> {
        let membership = Self { metadata, nodes: Arc::default() };
        membership.learn(membership.metadata.storage_node_statuses().await?);
        Ok(membership)
    }

    /// Whether anything has changed.
    fn learn(&self, statuses: Vec<StorageNodeStatus>) -> bool {
        let found = directory_of(statuses);
        let mut nodes = self.nodes.write();
        let has_changed = *nodes != found;
        *nodes = found;
        has_changed
    }

    /// Follows the registrations until the process ends; `changed` is called when there are others.
    pub async fn follow(self, changed: impl Fn()) {
        let mut watch = self.watch().await;
        // From here on nothing is missed; what changed before is read.
        let mut follower = Follower::new(self, Instant::now());
        let mut is_open = true;
        loop {
            tokio::select! {
                heard = watch.changed(), if is_open => {
                    is_open = heard;
                    follower.schedule.heard(Instant::now());
                }
                () = sleep_until(follower.schedule.due) => {
                    if follower.look(Instant::now).await {
                        changed();
                    }
                }
            }
        }
    }

    async fn watch(&self) -> StorageNodeWatch {
        loop {
            match self.metadata.watch_storage_nodes().await {
                Ok(watch) => return watch,
                Err(error) => tracing::warn!(%error, "could not ask to be told of storage nodes"),
            }
            sleep(PAUSE).await;
        }
    }
}

/// What is known of the registrations, and when they are looked at next.
struct Follower {
    membership: Membership,
    statuses: Vec<StorageNodeStatus>,
    schedule: Schedule,
}

impl Follower {
    fn new(membership: Membership, now: Instant) -> Self {
        let without_news = if membership.metadata.store().hears_other_processes() { WITHOUT_NEWS } else { PAUSE };
        Self { membership, statuses: Vec::new(), schedule: Schedule::new(now, without_news) }
    }

    /// Looks at what is due. Whether the nodes are others than before.
    async fn look(&mut self, now: impl Fn() -> Instant) -> bool {
        let reads_all = self.schedule.reads_all(now());
        match self.read(reads_all).await {
            Ok(until_expiry) => self.schedule.looked(now(), reads_all, until_expiry),
            // What is known goes on to be used.
            Err(error) => {
                self.schedule.failed(now());
                tracing::warn!(%error, "could not read which storage nodes there are");
                return false;
            }
        }
        let has_changed = self.membership.learn(self.statuses.clone());
        if has_changed {
            tracing::info!(nodes = ?self.membership.nodes(), "storage nodes");
        }
        has_changed
    }

    /// Reads all, or leases alone. In what time one of these runs out, or may still be found renewed.
    async fn read(&mut self, all: bool) -> Result<Option<Duration>, MetadataError> {
        let metadata = &self.membership.metadata;
        match all {
            true => self.statuses = metadata.storage_node_statuses().await?,
            false => metadata.read_node_leases(&mut self.statuses).await?,
        }
        let now_ms = metadata.store().now_ms();
        let late_ms = RENEWED_LATE.as_millis() as u64;
        let open = self.statuses.iter().map(|status| status.lease_ends_ms).filter(|ends_ms| ends_ms + late_ms > now_ms);
        Ok(open.map(|ends_ms| Duration::from_millis(ends_ms.saturating_sub(now_ms))).min())
    }
}

/// When to look at metadata next, and at how much of them.
#[derive(Debug)]
struct Schedule {
    due: Instant,
    looked_at: Instant,
    /// All is read by then.
    all_due: Instant,
    without_news: Duration,
}

impl Schedule {
    /// At once, and then every so often even if nothing is heard.
    fn new(now: Instant, without_news: Duration) -> Self {
        Self { due: now, looked_at: now, all_due: now, without_news }
    }

    /// Something has changed, perhaps while it was looked at.
    fn heard(&mut self, now: Instant) {
        self.all_due = now;
        self.due = self.due.min(now.max(self.looked_at + PAUSE));
    }

    /// Whether more than leases is to be read.
    fn reads_all(&self, now: Instant) -> bool {
        now >= self.all_due
    }

    /// `until_expiry`: when the first of the leases runs out, unless it is renewed; or when one that did may be.
    fn looked(&mut self, now: Instant, read_all: bool, until_expiry: Option<Duration>) {
        self.looked_at = now;
        if read_all {
            self.all_due = now + self.without_news;
        }
        let expiry = until_expiry.map(|until| now + (until + AFTER_EXPIRY).max(PAUSE));
        self.due = expiry.map_or(self.all_due, |expiry| expiry.min(self.all_due));
    }

    fn failed(&mut self, now: Instant) {
        self.looked_at = now;
        self.due = now + PAUSE;
    }
}

/// Nodes that are not alive still have entries, so they are known, and not chosen.
///
/// Where several nodes were registered with one address, the last one is there: a disk was replaced by another. The others
/// are left out, because the new disk's "no such entry" would be taken for theirs.
fn directory_of(statuses: Vec<StorageNodeStatus>) -> Vec<NodeInfo> {
    let mut latest: HashMap<String, u64> = HashMap::new();
    for status in &statuses {
        let version = latest.entry(status.record.address.clone()).or_default();
        *version = status.version.max(*version);
    }
    let is_there = |status: &StorageNodeStatus| latest[&status.record.address] == status.version;
    let info = |status: StorageNodeStatus| NodeInfo {
        is_alive: status.is_alive,
        is_draining: status.decommissioned_ms.is_some(),
        is_writable: status.is_alive && !status.record.read_only && status.decommissioned_ms.is_none(),
        id: status.id,
        address: status.record.address,
        place: Place { region: status.record.region, zone: status.record.zone },
    };
    statuses.into_iter().filter(is_there).map(info).collect()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use geminga_metadata::{Lease, LeaseOutcome, ManualClock, MemoryStore, StorageNodeRecord};
    use tokio::task::yield_now;

    use super::*;

    fn status(id: &str, address: &str, version: u64) -> StorageNodeStatus {
        let record = StorageNodeRecord {
            address: address.to_owned(),
            zone: "a".to_owned(),
            region: "b".to_owned(),
            read_only: false,
            control: None,
        };
        StorageNodeStatus {
            id: id.to_owned(),
            record,
            version,
            is_alive: true,
            lease_ends_ms: 0,
            decommissioned_ms: None,
        }
    }

    #[test]
    fn a_disk_that_was_replaced_is_not_looked_for_where_the_new_one_is() {
        let draining = StorageNodeStatus { decommissioned_ms: Some(1), ..status("draining", "y:1", 3) };
        let found = directory_of(vec![status("old", "x:1", 4), status("new", "x:1", 9), draining]);
        let found: Vec<(&str, bool)> = found.iter().map(|info| (info.id.as_str(), info.is_writable)).collect();
        assert_eq!(found, [("new", true), ("draining", false)]);
    }

    #[test]
    fn metadata_are_looked_at_when_there_is_a_reason() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut schedule = Schedule::new(at(0), WITHOUT_NEWS);
        assert!(schedule.due == at(0) && schedule.reads_all(at(0)));
        schedule.looked(at(10), true, Some(Duration::from_secs(8)));
        assert_eq!(schedule.due, at(8060), "somebody's lease may have run out");
        assert!(!schedule.reads_all(at(8060)));
        schedule.looked(at(8060), false, None);
        assert_eq!(schedule.due, at(30_010), "nobody is alive");
        schedule.heard(at(8100));
        assert_eq!(schedule.due, at(9060), "not at once: more may be heard");
        schedule.heard(at(8900));
        assert!(schedule.due == at(9060) && schedule.reads_all(at(9060)));
        schedule.failed(at(9100));
        assert!(schedule.due == at(10_100) && schedule.reads_all(at(10_100)), "what was not read is still to be read");
        schedule.looked(at(10_100), true, Some(Duration::ZERO));
        assert_eq!(schedule.due, at(11_100));
        schedule.heard(at(20_000));
        assert_eq!(schedule.due, at(11_100), "it is not put off");
    }

    const TTL: Duration = Duration::from_secs(10);

    /// Metadata that are followed, with a clock that goes when it is told to.
    struct World {
        began: Instant,
        passed: Duration,
        clock: ManualClock,
        metadata: Metadata,
        watch: StorageNodeWatch,
        follower: Follower,
    }

    impl World {
        async fn new() -> Self {
            let clock = ManualClock::starting_at_ms(1);
            let metadata = Metadata::new(Arc::new(MemoryStore::with_clock(clock.clone())));
            let membership = Membership::open(metadata.clone()).await.unwrap();
            let (began, watch) = (Instant::now(), membership.watch().await);
            Self { began, passed: Duration::ZERO, clock, metadata, watch, follower: Follower::new(membership, began) }
        }

        async fn join(&self, id: &str) -> Lease {
            self.metadata.put_storage_node(id, &status(id, id, 1).record).await.unwrap();
            match self.metadata.acquire_storage_node(id, id, TTL).await.unwrap() {
                LeaseOutcome::Acquired(lease) => lease,
                held => panic!("{held:?}"),
            }
        }

        /// What [`Membership::follow`] does meanwhile.
        async fn pass(&mut self, time: Duration) {
            let until = self.passed + time;
            while self.passed < until {
                self.clock.advance_ms(10);
                self.passed += Duration::from_millis(10);
                let now = self.began + self.passed;
                // What tokio allows a task to receive without a pause would soon be used up.
                yield_now().await;
                let mut context = Context::from_waker(Waker::noop());
                while pin!(self.watch.changed()).poll(&mut context) == Poll::Ready(true) {
                    self.follower.schedule.heard(now);
                }
                if self.follower.schedule.due <= now {
                    self.follower.look(|| now).await;
                }
            }
        }

        fn alive(&self) -> Vec<String> {
            self.follower.membership.nodes().into_iter().filter(|node| node.is_alive).map(|node| node.id).collect()
        }
    }

    #[tokio::test]
    async fn nodes_that_come_go_and_die_are_noticed_within_a_second() {
        let mut world = World::new().await;
        let second = Duration::from_millis(1100);
        let mut one = world.join("one").await;
        world.join("two").await;
        world.pass(second).await;
        assert_eq!(world.alive(), ["one", "two"]);
        for _ in 0..3 {
            world.pass(Duration::from_millis(2500)).await;
            one = world.metadata.renew_storage_node(&one, TTL).await.unwrap();
            assert_eq!(world.alive(), ["one", "two"]);
        }
        world.pass(Duration::from_millis(1500)).await;
        assert_eq!(world.alive(), ["one"], "the other one has not renewed");
        world.pass(TTL).await;
        assert!(world.alive().is_empty());
        // Metadata were away for some seconds, or for minutes.
        for away in [Duration::ZERO, Duration::from_secs(300)] {
            world.pass(away).await;
            one = world.metadata.renew_storage_node(&one, TTL).await.unwrap();
            world.pass(second).await;
            assert_eq!(world.alive(), ["one"], "it was only late, away for {away:?}");
            world.pass(TTL).await;
        }
        one = world.metadata.renew_storage_node(&one, TTL).await.unwrap();
        world.metadata.store().release_lease(&one).await.unwrap();
        world.pass(second).await;
        assert!(world.alive().is_empty());
        world.join("two").await;
        world.metadata.decommission_storage_node("two").await.unwrap();
        world.pass(second).await;
        assert!(
            world.follower.membership.nodes().iter().any(|node| node.id == "two" && node.is_draining && node.is_alive)
        );
    }
}
