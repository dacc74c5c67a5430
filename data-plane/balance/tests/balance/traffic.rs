//! What happens to a large cluster in the course of days.

use rand::Rng;

use crate::{
    cluster::{Cluster, TICK_MS},
    load::{BundleLoad, DAY_MS, Waves},
    measures::Imbalance,
};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// A broker that has started and has not got its share yet.
struct Starting {
    broker: usize,
    since_ms: u64,
}

/// Changes of load, and brokers that come and go.
pub struct Traffic {
    /// At the end of each minute, when what jumped at its beginning had time.
    pub imbalance: Imbalance,
    /// The most in each minute.
    pub most: Imbalance,
    /// How long it was at the bound or above in all.
    pub above_ms: u64,
    above_in_a_row_ms: u64,
    pub longest_above_ms: u64,
    /// From a broker's start until it had 85 % of its share, in milliseconds.
    pub filled_after_ms: Vec<u64>,
    pub kills: u64,
    pub drains: u64,
    pub leaders: u64,
    starting: Vec<Starting>,
    draining: Vec<usize>,
    down: Vec<(usize, u64)>,
    /// Busy cores of a broker on average.
    share: f64,
    next_fault_ms: u64,
    next_leader_ms: u64,
}

impl Traffic {
    pub fn new(now_ms: u64, share: f64) -> Self {
        Self {
            imbalance: Imbalance::default(),
            most: Imbalance::default(),
            above_ms: 0,
            above_in_a_row_ms: 0,
            longest_above_ms: 0,
            filled_after_ms: Vec::new(),
            kills: 0,
            drains: 0,
            leaders: 0,
            starting: Vec::new(),
            draining: Vec::new(),
            down: Vec::new(),
            share,
            next_fault_ms: now_ms + HOUR_MS,
            next_leader_ms: now_ms + 5 * HOUR_MS,
        }
    }

    /// A minute in which nothing happens but what the balancer does and load that changes, at its beginning. The imbalance is looked at
    /// then and every five seconds.
    pub fn minute(&mut self, cluster: &mut Cluster, bound: f64) {
        self.change_loads(cluster);
        let end_ms = cluster.now_ms + MINUTE_MS;
        let mut most: f64 = 0.0;
        while cluster.now_ms < end_ms {
            let imbalance = cluster.imbalance_of(cluster.carried());
            most = most.max(imbalance);
            if imbalance >= bound {
                println!("{} ms: imbalance {imbalance:.3}", cluster.now_ms);
                print_busiest(cluster);
                self.above_ms += TICK_MS;
                self.above_in_a_row_ms += TICK_MS;
                self.longest_above_ms = self.longest_above_ms.max(self.above_in_a_row_ms);
            } else {
                self.above_in_a_row_ms = 0;
            }
            cluster.tick();
            self.watch(cluster);
        }
        self.imbalance.note(cluster.imbalance(), bound);
        self.most.note(most, bound);
    }

    /// Every two hours or so a broker is killed, or leaves in order, and comes back; now and then the leader is lost.
    pub fn faults(&mut self, cluster: &mut Cluster) {
        if cluster.now_ms >= self.next_leader_ms {
            self.next_leader_ms = cluster.now_ms + cluster.rng.random_range(4..10) * HOUR_MS;
            self.leaders += 1;
            cluster.lose_leader();
        }
        if cluster.now_ms < self.next_fault_ms {
            return;
        }
        self.next_fault_ms = cluster.now_ms + cluster.rng.random_range(HOUR_MS..3 * HOUR_MS);
        let up: Vec<usize> = (0..cluster.brokers.len())
            .filter(|it| cluster.brokers[*it].is_up && cluster.brokers[*it].accepts)
            .collect();
        let broker = up[cluster.rng.random_range(0..up.len())];
        if cluster.rng.random_bool(0.5) {
            self.kills += 1;
            cluster.kill(broker);
            let down_ms = cluster.rng.random_range(20_000..600_000);
            self.start_after(cluster, broker, down_ms);
        } else {
            self.drains += 1;
            cluster.brokers[broker].accepts = false;
            self.draining.push(broker);
        }
    }

    pub fn start_after(&mut self, cluster: &mut Cluster, broker: usize, ms: u64) {
        cluster.start_after(broker, ms);
        self.down.push((broker, cluster.now_ms + ms));
    }

    /// Two in a hundred bundles have another load from some day on; some have bursts.
    fn change_loads(&mut self, cluster: &mut Cluster) {
        let waves = Waves::at(cluster.now_ms);
        let share = self.share;
        let count = cluster.bundles.len();
        for _ in 0..count * MINUTE_MS as usize / DAY_MS as usize / 50 + 1 {
            let number = cluster.rng.random_range(0..count);
            let base = cluster.bundles[number].load.base * cluster.rng.random_range(0.3..2.2);
            if cluster.bundles[number].topics > 1 || base < 0.05 * share {
                let load = BundleLoad::with_wave(base, &mut cluster.rng);
                cluster.change_load(number, |it| *it = load);
            }
        }
        for _ in 0..5 {
            let number = cluster.rng.random_range(0..count);
            let factor = cluster.rng.random_range(2.0..20.0);
            let until_ms = cluster.now_ms + cluster.rng.random_range(1..30) * MINUTE_MS;
            if cluster.bundles[number].load.at(cluster.now_ms, &waves) * factor < 0.1 * share {
                cluster.change_load(number, |it| it.burst(factor, until_ms));
            }
        }
    }

    fn watch(&mut self, cluster: &mut Cluster) {
        let now_ms = cluster.now_ms;
        let emptied: Vec<usize> = self.draining.extract_if(.., |it| cluster.brokers[*it].owned.is_empty()).collect();
        for broker in emptied {
            cluster.kill(broker);
            self.start_after(cluster, broker, 30_000);
        }
        let started = self.down.extract_if(.., |(_, at_ms)| *at_ms <= now_ms);
        self.starting.extend(started.map(|(broker, since_ms)| Starting { broker, since_ms }));
        if self.starting.is_empty() {
            return;
        }
        let (utilizations, mean) = cluster.carried();
        let filled = self.starting.extract_if(.., |it| utilizations[it.broker] >= 0.85 * mean);
        self.filled_after_ms.extend(filled.map(|it| now_ms - it.since_ms));
    }

    pub fn print(&self) {
        for (of, imbalance) in [("at the end of each", &self.imbalance), ("the most in each", &self.most)] {
            let [middle, high, most] = [0.5, 0.99, 1.0].map(|part| imbalance.quantile(part) * 100.0);
            let (above, longest) = (imbalance.above, imbalance.longest_above);
            println!("imbalance, {of} minute: median {middle:.1} %, p99 {high:.1} %, most {most:.1} %");
            println!("    {above} minutes at the bound or above, {longest} at the longest");
        }
        println!("at the bound or above for {} ms, {} at the longest", self.above_ms, self.longest_above_ms);
        println!("{} brokers killed, {} drained, {} leaders lost", self.kills, self.drains, self.leaders);
        println!("brokers filled after {:?} ms", self.filled_after_ms);
    }
}

/// What the balancer says of the broker that it finds the busiest.
fn print_busiest(cluster: &Cluster) {
    let mut brokers = cluster.balancer.explain().brokers;
    brokers.sort_by(|one, other| (other.load / other.cores).total_cmp(&(one.load / one.cores)));
    if let Some(it) = brokers.first() {
        println!("    {} with {} bundles: {}", it.broker, it.bundles, it.verdict);
    }
}
