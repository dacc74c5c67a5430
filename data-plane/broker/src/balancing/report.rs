//! What this broker tells the leader about itself and its bundles.

use geminga_balance::{BrokerReport, BundleReport};
use geminga_model::NamespaceName;
use geminga_observe::MachineCpu;
use rustc_hash::FxHashMap;

use crate::broker::Broker;
use crate::topic::TopicFigures;

/// Bundles that a namespace may have by splits (Pulsar's `loadBalancerNamespaceMaximumBundles`).
const NAMESPACE_BUNDLES_MAX: usize = 128;

#[derive(Default)]
pub(super) struct Reporter {
    cpu: MachineCpu,
    sequence: u64,
}

/// What the topics of a bundle have together.
#[derive(Default)]
struct Sum {
    messages_in: f64,
    messages_out: f64,
    bytes_in: f64,
    bytes_out: f64,
    topics: u32,
    producers: u32,
    consumers: u32,
}

impl Sum {
    fn add(&mut self, figures: &TopicFigures) {
        self.messages_in += figures.rate_in;
        self.messages_out += figures.rate_out;
        self.bytes_in += figures.throughput_in;
        self.bytes_out += figures.throughput_out;
        self.topics += 1;
        self.producers += figures.producers as u32;
        self.consumers += figures.consumers as u32;
    }
}

impl Reporter {
    /// None when the broker is alone.
    pub fn report(&mut self, broker: &Broker) -> Option<BrokerReport> {
        let (me, incarnation, accepts) = broker.ownership.standing()?;
        let mut sums: FxHashMap<String, Sum> = FxHashMap::default();
        for topic in broker.loaded_topics() {
            sums.entry(topic.bundle().name.to_string()).or_default().add(&topic.figures());
        }
        let all = broker.ownership.bundles();
        let mut of_namespace: FxHashMap<NamespaceName, usize> = FxHashMap::default();
        for bundle in &all {
            *of_namespace.entry(bundle.bundle.namespace.clone()).or_default() += 1;
        }
        let now_ms = broker.shared.metadata.store().now_ms();
        let bundles = all.into_iter().filter(|bundle| bundle.owner == me).map(|state| {
            let name = state.bundle.to_string();
            let sum = sums.remove(&name).unwrap_or_default();
            BundleReport {
                bundle: name.into(),
                epoch: state.epoch,
                messages_in: sum.messages_in,
                messages_out: sum.messages_out,
                bytes_in: sum.bytes_in,
                bytes_out: sum.bytes_out,
                topics: sum.topics,
                producers: sum.producers,
                consumers: sum.consumers,
                can_split: of_namespace[&state.bundle.namespace] < NAMESPACE_BUNDLES_MAX,
                since_move_ms: state.balanced.levelled_ms.map(|at| now_ms.saturating_sub(at)),
                since_fill_ms: state.balanced.filled_ms.map(|at| now_ms.saturating_sub(at)),
            }
        });
        let bundles = bundles.collect();
        self.sequence += 1;
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let cpu = self.cpu.busy().unwrap_or(0.0);
        Some(BrokerReport { broker: me.into(), incarnation, sequence: self.sequence, cores, cpu, accepts, bundles })
    }
}
