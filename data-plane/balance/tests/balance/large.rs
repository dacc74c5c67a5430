//! A hundred brokers and fifty thousand bundles.

use geminga_balance::{BalanceConfig, SplitLimits};
use rand::{Rng, seq::SliceRandom};

use crate::{
    cluster::{Cluster, Faults},
    load::{BundleLoad, DAY_MS, Span, zipf},
    measures::Moves,
    traffic::Traffic,
};

const BROKERS: usize = 100;
const BUNDLES: usize = 50_000;
/// Half of all cores.
const LOAD: f64 = 200.0;
const BOUND: f64 = 0.15;
const REPORT_EVERY_MS: u64 = BalanceConfig::INTERVAL_MS;
const MINUTES_A_DAY: u64 = DAY_MS / 60_000;

fn seed() -> u64 {
    std::env::var("BALANCE_SEED").map_or(1, |seed| seed.parse().expect("BALANCE_SEED is a number"))
}

/// Bundles are split for their share alone: the other limits would cut the large ones into pieces that are easy to place.
fn config() -> BalanceConfig {
    let split = SplitLimits { messages: f64::INFINITY, bytes: f64::INFINITY, ..SplitLimits::default() };
    BalanceConfig { split, ..BalanceConfig::default() }
}

/// Loads by Zipf's law, of which the largest, nine brokers' worth, come in pieces of up to a tenth of a broker. Placed as they come:
/// each on the better of two.
fn settled_cluster(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, BROKERS, config(), REPORT_EVERY_MS);
    cluster.measured_over = Span::TenSeconds;
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

/// Days with waves, drift and bursts, in which brokers are killed, leave and come back, leaders are lost, and reports and
/// decisions too. The imbalance is that of the load without noise, every minute, over the brokers that serve.
#[test]
fn days_of_a_large_cluster() {
    let days = std::env::var("BALANCE_DAYS").map_or(1, |days| days.parse().expect("BALANCE_DAYS is a number"));
    let mut cluster = settled_cluster(seed());
    cluster.faults =
        Faults { report_lost: 0.02, report_late: 0.02, decision_lost: 0.03, answer_lost: 0.1, decision_late: 0.01 };
    let mut traffic = Traffic::new(cluster.now_ms, LOAD / BROKERS as f64);
    // From the first placement to balance.
    for _ in 0..10 {
        traffic.minute(&mut cluster, BOUND);
    }
    (traffic.imbalance, traffic.most, traffic.above_ms, traffic.longest_above_ms) = Default::default();
    for _ in 0..days * MINUTES_A_DAY {
        traffic.faults(&mut cluster);
        traffic.minute(&mut cluster, BOUND);
    }
    traffic.print();
    println!("{:?}", cluster.measures);
    let measures = &cluster.measures;
    let moves = measures.balancing() as f64 / (BUNDLES as u64 * days) as f64;
    println!("{moves:.4} moves of a bundle a day on average, for levelling and filling");
    let Moves { levelled, filled, balancing, forced } = measures.most;
    println!(
        "the most of any one bundle within 24 hours: levelled {levelled}, filled with {filled}, both {balancing}, forced {forced}"
    );

    // What a started broker was filled with may be levelled afterwards.
    assert!(levelled == 1 && filled == 1 && balancing <= 2 && forced > 0, "{:?}", measures.most);
    assert_eq!(measures.moved_again, 0, "a bundle was levelled twice in a day, or a broker filled with what had moved");
    assert!(moves < 0.15, "{moves} moves of a bundle a day");
    let most = traffic.imbalance.quantile(1.0);
    assert!(most < BOUND, "the busiest broker was {most} above the mean");
    // Nobody can know beforehand that a bundle's load multiplies: such a jump is a tenth of a broker, and more, until brokers report.
    assert!(traffic.longest_above_ms < 60_000, "{} ms", traffic.longest_above_ms);
    assert!(traffic.above_ms <= 60_000 * days, "{} ms", traffic.above_ms);
    assert!(traffic.kills > 0 && traffic.drains > 0 && traffic.leaders > 0 && measures.stale_reports > 0);
    assert!(traffic.filled_after_ms.iter().all(|ms| *ms < 120_000), "{:?}", traffic.filled_after_ms);
}

#[test]
fn starts_are_quick_at_the_usual_pace_of_reports() {
    let mut cluster = settled_cluster(seed());
    let minute_ms = 60_000;
    cluster.run_for(10 * minute_ms);
    // One that was killed, four at once, and one that is new.
    for brokers in [vec![17], vec![3, 4, 5, 6]] {
        for broker in &brokers {
            cluster.kill(*broker);
            cluster.start_after(*broker, minute_ms);
        }
        cluster.run_for(minute_ms + 110_000);
        assert_filled(&cluster, &brokers);
        cluster.run_for(5 * minute_ms);
    }
    let added = cluster.add_broker(8.0);
    cluster.run_for(115_000);
    assert_filled(&cluster, &[added]);
    println!("six brokers started: {:?}", cluster.measures);
    assert!(cluster.imbalance() < BOUND, "{}", cluster.imbalance());
    assert_eq!(cluster.measures.moved_again, 0);
    assert!(cluster.measures.balancing() < 1_500, "{:?}", cluster.measures);
}

fn assert_filled(cluster: &Cluster, brokers: &[usize]) {
    let (utilizations, mean) = cluster.utilizations();
    for broker in brokers {
        let share = utilizations[*broker] / mean;
        assert!(share > 1.0 - BOUND, "broker {broker} has {share:.3} of its share\n{}", cluster.balancer.explain());
    }
}

#[test]
fn noise_alone_moves_nothing() {
    let mut cluster = Cluster::new(seed(), BROKERS, config(), REPORT_EVERY_MS);
    cluster.measured_over = Span::TenSeconds;
    for number in 0..BUNDLES {
        // The same on each broker, from almost nothing to a fiftieth of its share.
        let load = LOAD / BUNDLES as f64 * [0.1, 0.2, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 2.0][number / BROKERS % 10];
        cluster.add_bundle(BundleLoad::steady(load), 1, Some(number % BROKERS));
    }
    cluster.run_for(DAY_MS / 4);
    assert_eq!(cluster.measures.decisions, 0, "{}", cluster.balancer.explain());
}
