//! Topics that nobody uses leave memory until somebody asks for them, or until time has something to do in them. What metrics say
//! of them stays.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use geminga_model::{NamespaceName, TopicName};
use parking_lot::Mutex;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::broker::Broker;
use crate::policies::EffectivePolicies;
use crate::shared::now_ms;
use crate::topic::{Topic, TopicFigures};

/// Topics that are put to rest, or woken, at a time.
const AT_ONCE: usize = 64;

/// The topics of a bundle that rest.
#[derive(Default)]
pub(crate) struct Resting {
    /// By a hash of the name: there may be millions. Two names with one hash would share what metrics say of them.
    topics: FxHashMap<u64, Rest>,
    sum: Sum,
    /// Those that time has something to do in, by when, in ms since the epoch.
    wakes: BTreeSet<(u64, TopicName)>,
}

/// What brings a topic back that rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Only somebody who asks for it.
    Asked,
    /// Something may be trimmed then, in ms since the epoch.
    At(u64),
    /// A policy that limits its retention.
    LimitedRetention,
}

/// What metrics say of a topic that rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rest {
    retains_all: bool,
    subscriptions: u32,
    backlog: u64,
    storage_bytes: u64,
    backlog_bytes: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    subscriptions: u64,
    backlog: u64,
    storage_bytes: u64,
    backlog_bytes: u64,
}

fn hash(name: &TopicName) -> u64 {
    FxBuildHasher.hash_one(name.as_str())
}

impl Resting {
    fn add(&mut self, name: &TopicName, figures: &TopicFigures, wake: Wake) {
        self.remove(name);
        let rest = Rest {
            retains_all: wake == Wake::LimitedRetention,
            subscriptions: figures.subscriptions as u32,
            backlog: figures.backlog,
            storage_bytes: figures.storage_bytes,
            backlog_bytes: figures.backlog_bytes,
        };
        self.topics.insert(hash(name), rest);
        self.sum.subscriptions += u64::from(rest.subscriptions);
        self.sum.backlog += rest.backlog;
        self.sum.storage_bytes += rest.storage_bytes;
        self.sum.backlog_bytes += rest.backlog_bytes;
        if let Wake::At(at) = wake {
            self.wakes.insert((at, name.clone()));
        }
    }

    /// It is in memory again, or gone.
    pub fn remove(&mut self, name: &TopicName) {
        let Some(rest) = self.topics.remove(&hash(name)) else { return };
        self.sum.subscriptions -= u64::from(rest.subscriptions);
        self.sum.backlog -= rest.backlog;
        self.sum.storage_bytes -= rest.storage_bytes;
        self.sum.backlog_bytes -= rest.backlog_bytes;
    }

    fn contains(&self, name: &TopicName) -> bool {
        self.topics.contains_key(&hash(name))
    }

    /// Whether it rests and should not under these policies.
    pub fn is_disturbed_by(&self, name: &TopicName, policies: &EffectivePolicies) -> bool {
        let Some(rest) = self.topics.get(&hash(name)) else { return false };
        policies.subscription_expiration_ms().is_some()
            || policies.has_upkeep() && rest.backlog > 0
            || policies.retention().time_ms >= 0 && rest.retains_all
    }

    /// Topics that rest and whose time has come, so many at most.
    fn due(&mut self, now_ms: u64, limit: usize) -> Vec<TopicName> {
        let mut due = Vec::new();
        while due.len() < limit
            && let Some((at, _)) = self.wakes.first()
            && *at <= now_ms
        {
            let (_, name) = self.wakes.pop_first().expect("it was just looked at");
            if self.contains(&name) {
                due.push(name);
            }
        }
        due
    }

    /// How many there are, and the sum of what metrics say of them.
    pub fn figures(&self) -> (u64, TopicFigures) {
        let Sum { subscriptions, backlog, storage_bytes, backlog_bytes } = self.sum;
        let figures = TopicFigures { subscriptions, backlog, storage_bytes, backlog_bytes, ..TopicFigures::default() };
        (self.topics.len() as u64, figures)
    }
}

/// What topics have counted that have left memory, by namespace: a counter never falls.
#[derive(Default)]
pub(crate) struct Departed(Mutex<BTreeMap<NamespaceName, TopicFigures>>);

impl Departed {
    pub fn add(&self, topic: &Topic) {
        let figures = topic.figures().counters();
        self.0.lock().entry(topic.name().namespace().clone()).or_default().add(&figures);
    }

    pub fn forget(&self, namespace: &NamespaceName) {
        self.0.lock().remove(namespace);
    }

    pub fn each(&self, mut see: impl FnMut(&NamespaceName, &TopicFigures)) {
        for (namespace, figures) in &*self.0.lock() {
            see(namespace, figures);
        }
    }
}

impl Broker {
    /// Puts topics to rest that nobody uses, and wakes those in which time has something to do. Takes no longer than about `limit`: the next
    /// round goes on.
    pub(crate) async fn rest_and_wake(&self, topics: Vec<Arc<Topic>>, limit: Duration) {
        let until = Instant::now() + limit;
        let now = now_ms();
        for bundle in self.bundles.all() {
            let due = bundle.resting.lock().due(now, AT_ONCE);
            let wake = async |name: TopicName| {
                if let Err(error) = self.load_if_there(&name).await {
                    tracing::warn!(topic = %name, %error, "could not wake a topic");
                }
            };
            run_bounded(due.into_iter(), wake, until).await;
        }
        let Some(after_ms) = self.shared.config.unload_idle_topics_after() else { return };
        let idle = topics.into_iter().filter_map(|topic| topic.close_if_idle(after_ms).map(|wake| (topic, wake)));
        run_bounded(idle, async |(topic, wake)| self.rest(&topic, wake).await, until).await;
    }

    /// Closes a topic, and its ledger, so that nobody has to recover it.
    async fn rest(&self, topic: &Arc<Topic>, wake: Wake) {
        topic.close().await;
        let bundle = topic.bundle();
        if let Err(error) = bundle.cursors.flushed().await {
            tracing::warn!(topic = %topic.name(), %error, "acknowledgements without a receipt may be lost");
        }
        if let Some(ledger) = topic.newest_ledger()
            && let Err(error) = self.shared.ledgers.finish(vec![ledger]).await
        {
            tracing::warn!(topic = %topic.name(), %error, "could not close a ledger; it is left to recovery");
        }
        bundle.resting.lock().add(topic.name(), &topic.figures(), wake);
        topic.tell_closed(None);
        self.forget(topic);
    }
}

/// Runs `work` for each item, [`AT_ONCE`] at a time, and begins none after `until`.
async fn run_bounded<T, F: Future<Output = ()>>(
    mut items: impl Iterator<Item = T>,
    work: impl Fn(T) -> F,
    until: Instant,
) {
    // The clock is looked at first: what is taken from the iterator has begun.
    let items = std::iter::from_fn(|| if Instant::now() < until { items.next() } else { None });
    stream::iter(items).for_each_concurrent(AT_ONCE, work).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u32) -> TopicName {
        format!("persistent://public/default/t-{n}").parse().unwrap()
    }

    fn figures(backlog: u64) -> TopicFigures {
        TopicFigures {
            subscriptions: 2,
            backlog,
            storage_bytes: 10 * backlog,
            backlog_bytes: backlog,
            ..Default::default()
        }
    }

    #[test]
    fn sums_are_those_of_the_topics_that_rest() {
        let mut resting = Resting::default();
        for n in 0..10 {
            resting.add(&name(n), &figures(u64::from(n)), Wake::Asked);
        }
        resting.add(&name(3), &figures(100), Wake::LimitedRetention);
        resting.remove(&name(9));
        resting.remove(&name(9));
        let (count, sum) = resting.figures();
        let backlog = (0..9).sum::<u64>() - 3 + 100;
        assert_eq!((count, sum.subscriptions, sum.backlog, sum.storage_bytes), (9, 18, backlog, 10 * backlog));
        (0..9).for_each(|n| resting.remove(&name(n)));
        assert_eq!(resting.figures().1.backlog, 0);
    }

    #[test]
    fn topics_are_due_in_the_order_of_their_times_if_they_still_rest() {
        let mut resting = Resting::default();
        for (n, at) in [(1, 30), (2, 10), (3, 20), (4, 99)] {
            resting.add(&name(n), &figures(1), Wake::At(at));
        }
        resting.remove(&name(3));
        assert_eq!(resting.due(5, 10), []);
        assert_eq!(resting.due(50, 1), [name(2)]);
        assert_eq!(resting.due(50, 10), [name(1)]);
    }
}
