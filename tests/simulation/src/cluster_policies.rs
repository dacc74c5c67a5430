//! Policies of a simulated cluster's topics, which change while clients write and read: how long messages are kept, when they expire, and
//! whether they are deduplicated. Every broker sees a change at its next tick.

use std::rc::Rc;

use geminga_ledger::cursor_log::Record;
use geminga_ledger::managed_ledger::Retention;
use rand::Rng;
use rand::rngs::SmallRng;

use crate::cluster_broker::Broker;
use crate::cluster_cursors::{BundleLog, Durable};
use crate::cluster_subscriptions::newly_acked;
use crate::cluster_topic::Topic;

#[derive(Clone, Copy, Debug)]
pub struct TopicPolicies {
    pub retention: Retention,
    /// Messages expire after so many milliseconds.
    pub ttl_ms: Option<u64>,
    pub deduplicates: bool,
    /// Its second subscription is Key_Shared, and not Shared.
    pub shares_keys: bool,
}

impl TopicPolicies {
    /// As a topic has them at first.
    pub fn first(rng: &mut SmallRng) -> TopicPolicies {
        TopicPolicies {
            retention: Retention::NONE,
            ttl_ms: None,
            deduplicates: rng.random_bool(0.7),
            shares_keys: rng.random(),
        }
    }

    /// What becomes of them; that deduplication is switched on and off only if it `may` be.
    pub fn changed(self, rng: &mut SmallRng, may_deduplicate: bool) -> TopicPolicies {
        let retention = match rng.random_range(0..8) {
            0 => Retention::INFINITE,
            1..4 => Retention { time_ms: rng.random_range(1..60_000), size_bytes: rng.random_range(0..20_000) },
            _ => Retention::NONE,
        };
        let ttl_ms = rng.random_bool(0.3).then(|| rng.random_range(1000..60_000));
        let deduplicates = if may_deduplicate { rng.random() } else { self.deduplicates };
        TopicPolicies { retention, ttl_ms, deduplicates, ..self }
    }
}

impl Broker {
    pub fn policies(&self, topic: usize) -> TopicPolicies {
        self.sim.policies.borrow()[topic]
    }

    /// Acknowledges what is in ledgers that were closed for longer ago than messages live.
    pub fn expire(self: &Rc<Self>, topic: &mut Topic, log: &mut BundleLog, ownership: u64) {
        let Some(ttl_ms) = self.policies(topic.number).ttl_ms else { return };
        let list = topic.ledger.list();
        let now = self.now_ms();
        let is_old = |timestamp_ms: u64| timestamp_ms > 0 && now.saturating_sub(timestamp_ms) > ttl_ms;
        let old = list.spans().take_while(|span| is_old(span.timestamp_ms)).filter(|span| span.entries > 0).last();
        let Some(last) = old.map(|span| span.last_position()) else { return };
        for (number, sub) in topic.subscriptions.iter_mut().enumerate() {
            let expired = newly_acked(sub.core.cursor(), list, &[last], true);
            if expired.is_empty() {
                continue;
            }
            self.sim.count_many("entries expired", expired.len() as u64);
            sub.core.skip(expired.len() as u64, list);
            if let Some(delta) = sub.core.take_delta() {
                let token = self.sim.oracle.borrow_mut().ack_applied(topic.number, number, ownership, expired);
                log.append(Record::Delta { cursor_id: sub.cursor_id, delta }, [Durable::Acknowledged(token)]);
            }
        }
        topic.dispatch_due = true;
    }
}
