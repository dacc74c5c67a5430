//! What holds for every decision, whatever happens: see the oracle.

use geminga_balance::{BalanceConfig, MoveLimits};
use proptest::{collection::vec, prelude::*};
use rand::Rng;

use crate::{
    cluster::{Cluster, Faults},
    load::BundleLoad,
    oracle::Oracle,
};

const MINUTE_MS: u64 = 60_000;

#[derive(Clone, Debug)]
struct Course {
    seed: u64,
    brokers: usize,
    /// Busy cores.
    bundles: Vec<f64>,
    faults: Faults,
    in_flight: usize,
    per_broker_hour: f64,
    rest_ms: u64,
}

fn courses() -> impl Strategy<Value = Course> {
    let loads = vec(prop_oneof![3 => 0.0..0.1, 1 => 0.1..3.0], 0..60);
    let faults = [0.0..0.2, 0.0..0.2, 0.0..0.3, 0.0..0.5, 0.0..0.1];
    (any::<u64>(), 1..7_usize, loads, faults, 1..12_usize, 0.0..30.0, 1..180_u64).prop_map(
        |(seed, brokers, bundles, faults, in_flight, per_broker_hour, rest)| {
            let [report_lost, report_late, decision_lost, answer_lost, decision_late] = faults;
            let faults = Faults { report_lost, report_late, decision_lost, answer_lost, decision_late };
            Course { seed, brokers, bundles, faults, in_flight, per_broker_hour, rest_ms: rest * MINUTE_MS }
        },
    )
}

fn config(course: &Course) -> BalanceConfig {
    let moves = MoveLimits {
        in_flight: course.in_flight,
        in_flight_per_broker: course.in_flight.div_ceil(2),
        per_broker_hour: course.per_broker_hour,
        rest_ms: course.rest_ms,
        short_rest_ms: course.rest_ms / 3,
        ..MoveLimits::default()
    };
    BalanceConfig { moves, ..BalanceConfig::default() }
}

/// Three hours in which brokers and leaders come and go. Returns how many decisions there were.
fn run(course: &Course) -> usize {
    let mut cluster = Cluster::new(course.seed, course.brokers, config(course), 10_000);
    cluster.oracle = Some(Oracle::default());
    cluster.measures.rest_ms = course.rest_ms;
    cluster.measures.short_rest_ms = course.rest_ms / 3;
    cluster.faults = course.faults;
    for load in &course.bundles {
        let topics = cluster.rng.random_range(1..5);
        cluster.add_bundle(BundleLoad::steady(*load), topics, None);
    }
    let mut checked = 0;
    for _ in 0..36 {
        cluster.run_for(5 * MINUTE_MS);
        let broker = cluster.rng.random_range(0..cluster.brokers.len());
        match cluster.rng.random_range(0..8) {
            0 if cluster.brokers[broker].is_up => {
                cluster.kill(broker);
                let down_ms = cluster.rng.random_range(1_000..600_000);
                cluster.start_after(broker, down_ms);
            }
            1 => cluster.brokers[broker].accepts ^= true,
            2 => {
                checked += cluster.oracle.as_ref().map_or(0, |it| it.checked);
                cluster.lose_leader();
            }
            3 if cluster.brokers.len() < 8 => {
                cluster.add_broker(8.0);
            }
            4 if !cluster.bundles.is_empty() => {
                let bundle = cluster.rng.random_range(0..cluster.bundles.len());
                cluster.bundles[bundle].load.base = cluster.rng.random_range(0.0..2.0);
            }
            _ => {}
        }
    }
    let most = cluster.measures.most;
    assert!(most.levelled <= 1 && most.filled <= 1 && most.balancing <= 2, "{most:?} within a rest");
    assert_eq!(cluster.measures.moved_again, 0, "moved again without rest");
    checked + cluster.oracle.map_or(0, |it| it.checked)
}

/// As many as the environment says, as proptest itself would read it, or what takes seconds.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(100, |it| it.parse().expect("a number of cases"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn no_decision_breaks_a_rule(course in courses()) {
        run(&course);
    }
}

#[test]
fn a_seed_gives_the_same_course_twice() {
    let course = Course {
        seed: 7,
        brokers: 4,
        bundles: (1..40).map(|number| 2.0 / f64::from(number)).collect(),
        faults: Faults {
            report_lost: 0.1,
            report_late: 0.1,
            decision_lost: 0.1,
            answer_lost: 0.1,
            decision_late: 0.05,
        },
        in_flight: 8,
        per_broker_hour: 20.0,
        rest_ms: 30 * MINUTE_MS,
    };
    let first = run(&course);
    assert!(first > 20, "only {first} decisions");
    assert_eq!(run(&course), first);
}
