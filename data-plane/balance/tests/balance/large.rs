//! A hundred brokers and fifty thousand bundles.

use std::time::Instant;

use geminga_balance::{BalanceConfig, Hearing, SplitLimits};
use rand::{Rng, seq::SliceRandom};

use crate::{
    cluster::{Cluster, Faults},
    load::{BundleLoad, DAY_MS, zipf},
    traffic::Traffic,
};

const BROKERS: usize = 100;
const BUNDLES: usize = 50_000;
/// Half of all cores.
const LOAD: f64 = 200.0;
const BOUND: f64 = 0.15;
const MINUTES_A_DAY: u64 = DAY_MS / 60_000;

fn seed() -> u64 {
    std::env::var("BALANCE_SEED").map_or(1, |seed| seed.parse().expect("BALANCE_SEED is a number"))
}

/// Bundles are split for their share alone: the other limits would cut the large ones into pieces that are easy to place.
fn config() -> BalanceConfig {
    let split = SplitLimits { messages: f64::INFINITY, bytes: f64::INFINITY, ..SplitLimits::default() };
    let hearing = Hearing { silent_after_ms: 150_000, ..Hearing::default() };
    BalanceConfig { split, hearing, ..BalanceConfig::default() }
}

/// Loads by Zipf's law, of which the largest, nine brokers' worth, come in pieces of up to a tenth of a broker. Placed as they come:
/// each on the better of two.
fn settled_cluster(seed: u64, report_every_ms: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, BROKERS, config(), report_every_ms);
    let mut loads = Vec::new();
    for base in zipf(BUNDLES, LOAD) {
        let load = BundleLoad::with_wave(base, &mut cluster.rng);
        let pieces = (base / (0.08 * LOAD / BROKERS as f64)).ceil();
        loads.extend((0..pieces as u32).map(|_| load.piece(1.0 / pieces)));
    }
    loads.shuffle(&mut cluster.rng);
    let mut placed = [0.0; BROKERS];
    for load in loads {
        let [one, other] = [(); 2].map(|()| cluster.rng.random_range(0..BROKERS));
        let broker = if placed[one] <= placed[other] { one } else { other };
        placed[broker] += load.base;
        let topics = (load.base / 0.1).ceil() as u32;
        cluster.add_bundle(load, topics, Some(broker));
    }
    cluster
}

#[test]
fn days_of_a_large_cluster() {
    let begun = Instant::now();
    let mut cluster = settled_cluster(seed(), 60_000);
    cluster.faults =
        Faults { report_lost: 0.02, report_late: 0.02, decision_lost: 0.03, answer_lost: 0.1, decision_late: 0.01 };
    let mut traffic = Traffic::new(cluster.now_ms, LOAD / BROKERS as f64);
    let days = std::env::var("BALANCE_DAYS").map_or(2, |days| days.parse().expect("BALANCE_DAYS is a number"));
    for minute in 0..days * MINUTES_A_DAY {
        traffic.faults(&mut cluster);
        traffic.minute(&mut cluster, BOUND);
        if std::env::var("BALANCE_VERBOSE").is_ok() && minute % 60 == 0 {
            println!("{minute}: {:.3} {:?}", cluster.imbalance(), cluster.measures);
            let e = cluster.balancer.explain();
            println!("mean {} left {}", e.mean, e.moves_left);
            let mut b = e.brokers.clone();
            b.sort_by(|a, b| (b.load / b.cores).total_cmp(&(a.load / a.cores)));
            for it in b.iter().take(4).chain(b.iter().rev().take(2)) {
                println!(
                    "   {} {:.3} {:.3} {} {}",
                    it.broker,
                    it.load / it.cores / e.mean,
                    it.load_to_be / it.cores / e.mean,
                    it.bundles,
                    it.verdict
                );
            }
        }
    }
    let measures = &cluster.measures;
    let (imbalance, filled) = (&traffic.imbalance, &traffic.filled_after_ms);
    let most = cluster.bundles.iter().map(|it| it.moves).max().unwrap_or_default();
    println!("{measures:?}");
    println!(
        "imbalance p50 {:.3} p99 {:.3} max {:.3}; {:.5} of the time above, {} min in a row",
        imbalance.quantile(0.5),
        imbalance.quantile(0.99),
        imbalance.quantile(1.0),
        imbalance.part_above(),
        imbalance.longest_above
    );
    println!(
        "{} kills, {} drains, {} leaders; filled after {:?}; {} waiting; most moves {most}; {:?}",
        traffic.kills,
        traffic.drains,
        traffic.leaders,
        filled,
        traffic.waiting(),
        begun.elapsed()
    );
}
