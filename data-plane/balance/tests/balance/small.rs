//! Clusters of a few brokers, where one bundle more or less matters.

use geminga_balance::{BalanceConfig, Hearing, MoveLimits, Obstacle, Pause, Verdict};

use crate::{
    cluster::{Cluster, Faults},
    load::BundleLoad,
    oracle::Oracle,
};

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// Brokers of four cores. Each list is of the loads on one broker, in busy cores; the bundles have as many topics.
fn cluster(topics: u32, loads: &[&[f64]]) -> Cluster {
    let mut cluster = Cluster::new(3, loads.len(), BalanceConfig::default(), 10_000);
    cluster.oracle = Some(Oracle::default());
    for (broker, loads) in loads.iter().enumerate() {
        for load in *loads {
            cluster.add_bundle(BundleLoad::steady(*load), topics, Some(broker));
        }
    }
    cluster
}

fn verdict(cluster: &Cluster, broker: usize) -> Verdict {
    let explanation = cluster.balancer.explain();
    let found = explanation.brokers.into_iter().find(|it| it.broker == cluster.brokers[broker].id);
    found.expect("a broker that was heard").verdict
}

#[test]
fn two_brokers_get_even_and_stay_so() {
    let mut cluster = cluster(1, &[&[0.2; 8], &[]]);
    cluster.run_for(5 * MINUTE_MS);
    assert_eq!(cluster.brokers[0].owned.len(), 4, "{}", cluster.balancer.explain());
    cluster.run_for(24 * HOUR_MS);
    assert_eq!(cluster.measures.balancing(), 4);
}

#[test]
fn a_bundle_that_cannot_be_placed_better_stays() {
    // Three equal bundles on two brokers.
    let mut odd = cluster(1, &[&[0.5, 0.5], &[0.5]]);
    odd.run_for(24 * HOUR_MS);
    assert_eq!(odd.measures.decisions, 0);
    assert!(
        matches!(verdict(&odd, 0), Verdict::CannotShed(Obstacle::NothingFits { .. })),
        "{}",
        odd.balancer.explain()
    );
    assert!(odd.balancer.explain().to_string().contains("no bundle has a load near"));

    // One that is more than a broker's share, with and without small ones beside it.
    let mut giant = cluster(1, &[&[2.0], &[0.1, 0.1, 0.1]]);
    giant.run_for(24 * HOUR_MS);
    assert_eq!(giant.measures.decisions, 0);
    let mut giant = cluster(1, &[&[2.0, 0.1, 0.3, 0.2], &[0.4], &[0.4]]);
    giant.run_for(24 * HOUR_MS);
    assert_eq!(giant.brokers[0].owned, [0], "{}", giant.balancer.explain());
    assert_eq!(giant.measures.decisions, 3);
}

#[test]
fn bundles_whose_load_changes_places_do_not_follow_it_all_day() {
    // Two bundles take turns every hour at having eight times the load of the others.
    let mut cluster = cluster(1, &[&[0.2; 4], &[0.2; 4]]);
    for hour in 0..24 {
        let (busy, idle) = if hour % 2 == 0 { (0, 4) } else { (4, 0) };
        cluster.bundles[busy].load.base = 1.6;
        cluster.bundles[idle].load.base = 0.2;
        cluster.run_for(HOUR_MS);
    }
    assert_eq!(cluster.measures.moved_again, 0);
    // Each of the eight once at the most, though one of the two brokers is far too busy all day; or once more for the one that has too little.
    assert!(cluster.measures.levelled <= 8 && cluster.measures.filled <= 8, "{:?}", cluster.measures);
}

/// Or its broker would be given its share once more.
#[test]
fn a_report_that_was_on_its_way_takes_nothing_away_that_has_come_since() {
    let loads = [0.02; 100];
    let mut cluster = cluster(1, &[&loads, &loads]);
    cluster.run_for(2 * MINUTE_MS);
    let started = cluster.add_broker(4.0);
    cluster.run_for(10_000);
    cluster.report_after(started, 20_000);
    cluster.brokers[started].is_mute = true;
    cluster.run_for(15_000);
    let filled = cluster.brokers[started].owned.len();
    assert!((50..=67).contains(&filled), "{filled}");
    cluster.run_for(10_000);
    let explanation = cluster.balancer.explain();
    assert_eq!(explanation.brokers[started].bundles, filled, "{explanation}");
}

/// Or it would be given its share once more when nobody has told for a minute that it came.
#[test]
fn what_a_broker_was_given_that_is_not_heard_counts() {
    let hearing = Hearing { silent_after_ms: 150_000, ..Hearing::default() };
    let mut cluster = Cluster::new(3, 2, BalanceConfig { hearing, ..BalanceConfig::default() }, 60_000);
    for number in 0..200 {
        cluster.add_bundle(BundleLoad::steady(0.02), 1, Some(number % 2));
    }
    cluster.run_for(5 * MINUTE_MS);
    cluster.faults.answer_lost = 0.5;
    let started = cluster.add_broker(4.0);
    cluster.run_for(15_000);
    cluster.brokers[started].is_mute = true;
    cluster.run_for(90_000);
    let filled = cluster.brokers[started].owned.len();
    assert!((50..=67).contains(&filled), "{filled}");
}

/// Bundles grow that a broker was filled with.
#[test]
fn a_broker_that_was_filled_and_is_far_too_busy_gives_some_back() {
    let mut cluster = cluster(1, &[&[0.05; 30], &[], &[0.05; 30]]);
    cluster.run_for(5 * MINUTE_MS);
    let filled = cluster.brokers[1].owned.clone();
    assert!(filled.len() >= 16, "{}", cluster.balancer.explain());
    for bundle in &filled {
        cluster.bundles[*bundle].load.base *= 1.5;
    }
    cluster.run_for(10 * MINUTE_MS);
    assert_eq!(cluster.brokers[1].owned, filled, "they have not had their short rest");
    cluster.run_for(90 * MINUTE_MS);
    assert!(cluster.imbalance() < 0.12, "{}", cluster.balancer.explain());
    assert!(cluster.measures.levelled_after_fill > 0 && cluster.measures.moved_again == 0, "{:?}", cluster.measures);
}

#[test]
fn a_broker_that_is_suddenly_far_too_busy_gives_within_a_minute() {
    let mut cluster = cluster(1, &[&[0.1; 20], &[0.1; 20]]);
    cluster.run_for(10 * MINUTE_MS);
    assert_eq!(cluster.measures.decisions, 0);
    cluster.bundles[0].load.base = 0.9;
    assert!(cluster.imbalance() > 0.15);
    cluster.run_for(MINUTE_MS);
    assert!(cluster.imbalance() < 0.15, "{}", cluster.balancer.explain());
    cluster.run_for(MINUTE_MS);
    assert!(cluster.imbalance() < 0.1, "{}", cluster.balancer.explain());
    assert!(cluster.measures.decisions <= 6 && cluster.bundles[0].owner == Some(0), "{:?}", cluster.measures);
}

#[test]
fn levelling_keeps_to_its_moves_per_hour() {
    let moves = MoveLimits { per_broker_hour: 1.0, ..MoveLimits::default() };
    let mut cluster = Cluster::new(3, 2, BalanceConfig { moves, ..BalanceConfig::default() }, 10_000);
    cluster.oracle = Some(Oracle::default());
    for number in 0..200 {
        // Not so few on the second that it would be filled.
        cluster.add_bundle(BundleLoad::steady(0.01), 1, Some(usize::from(number >= 118)));
    }
    cluster.run_for(30 * MINUTE_MS);
    // What can be saved up for three hours.
    assert_eq!((cluster.measures.levelled, cluster.measures.filled), (6, 0), "{}", cluster.balancer.explain());
    assert_eq!(verdict(&cluster, 0), Verdict::CannotShed(Obstacle::BudgetSpent));
    cluster.run_for(60 * MINUTE_MS);
    assert_eq!(cluster.measures.levelled, 8, "{}", cluster.balancer.explain());
}

#[test]
fn an_idle_cluster_is_left_alone() {
    let mut cluster = cluster(10, &[&[0.004; 4], &[], &[]]);
    cluster.run_for(6 * HOUR_MS);
    assert_eq!(cluster.measures.decisions, 0, "{}", cluster.balancer.explain());
}

#[test]
fn a_broker_that_leaves_is_emptied_whatever_has_moved_before() {
    let mut cluster = cluster(1, &[&[0.1; 16], &[], &[0.1; 16]]);
    cluster.run_for(3 * MINUTE_MS);
    let filled = cluster.brokers[1].owned.len();
    assert!(filled >= 8, "{}", cluster.balancer.explain());
    cluster.brokers[1].accepts = false;
    cluster.run_for(MINUTE_MS);
    assert_eq!(cluster.brokers[1].owned.len(), 0, "{}", cluster.balancer.explain());
    assert_eq!((cluster.measures.drained, cluster.measures.moved_again), (filled as u64, 0));
}

#[test]
fn nobody_left_to_take_is_said() {
    let mut cluster = cluster(1, &[&[0.1; 4], &[0.1; 4]]);
    cluster.brokers.iter_mut().for_each(|it| it.accepts = false);
    cluster.run_for(10 * MINUTE_MS);
    assert_eq!(cluster.measures.decisions, 0);
    assert_eq!(verdict(&cluster, 1), Verdict::CannotDrain { waiting: 4, obstacle: Obstacle::NobodyTakes });
}

#[test]
fn a_broker_that_keeps_starting_is_filled_later_and_later() {
    let mut cluster = cluster(1, &[&[0.1; 12], &[0.1; 12], &[0.1; 12]]);
    cluster.run_for(5 * MINUTE_MS);
    let mut owned = Vec::new();
    for _ in 0..4 {
        cluster.kill(2);
        cluster.start_after(2, 40_000);
        cluster.run_for(3 * MINUTE_MS);
        owned.push(cluster.brokers[2].owned.len());
    }
    // The first report of all counts as a start. Levelling may still give it something.
    assert!(owned[0] >= 6 && owned[1..].iter().all(|owned| *owned <= 4), "{owned:?} {}", cluster.balancer.explain());
    assert!(matches!(verdict(&cluster, 2), Verdict::CannotFill(Obstacle::KeepsStarting { .. })));
    cluster.run_for(HOUR_MS);
    assert!(cluster.brokers[2].owned.len() >= 8, "{}", cluster.balancer.explain());
}

#[test]
fn hot_bundles_are_split_until_they_are_not_and_single_topics_never() {
    let mut cluster = cluster(1, &[&[0.1; 16], &[0.1; 16]]);
    let hot = cluster.add_bundle(BundleLoad::steady(1.6), 64, Some(0));
    let single = cluster.add_bundle(BundleLoad::steady(1.6), 1, Some(1));
    cluster.run_for(2 * HOUR_MS);
    assert!(cluster.bundles[hot].is_split && !cluster.bundles[single].is_split);
    let largest = cluster.bundles.iter().enumerate().filter(|(number, it)| !it.is_split && *number != single);
    let largest = largest.map(|(_, it)| it.load.base).fold(0.0, f64::max);
    assert!(largest < 0.4, "{largest} {}", cluster.balancer.explain());
    let splits = cluster.measures.splits;
    cluster.run_for(12 * HOUR_MS);
    assert!(cluster.measures.splits <= splits + 6 && cluster.imbalance() < 0.1, "{:?}", cluster.measures);
}

#[test]
fn a_machine_that_is_busy_with_something_else_gets_less() {
    let mut cluster = cluster(1, &[&[0.05; 40], &[0.05; 40], &[0.05; 40]]);
    cluster.brokers[0].foreign = 1.2;
    cluster.run_for(3 * HOUR_MS);
    let owned: Vec<usize> = cluster.brokers.iter().map(|it| it.owned.len()).collect();
    assert!((18..32).contains(&owned[0]), "{owned:?} {}", cluster.balancer.explain());
    assert!(cluster.imbalance() < 0.15, "{}", cluster.imbalance());
    let moves = cluster.measures.balancing();
    cluster.run_for(12 * HOUR_MS);
    assert!(cluster.measures.balancing() <= moves + 2, "{:?}", cluster.measures);
}

#[test]
fn what_fails_is_tried_less_and_less() {
    let mut cluster = cluster(1, &[&[0.2; 8], &[]]);
    cluster.faults = Faults { decision_lost: 1.0, ..Faults::default() };
    cluster.run_for(10 * MINUTE_MS);
    let soon = cluster.measures.decisions;
    cluster.run_for(12 * HOUR_MS);
    assert!((3..40).contains(&soon), "{soon}");
    assert!(cluster.measures.decisions < 200, "{:?}", cluster.measures);
    assert_eq!(cluster.measures.balancing(), 0);
}

#[test]
fn a_leader_that_hears_too_few_decides_nothing() {
    let mut cluster = cluster(1, &[&[0.2; 8], &[0.2; 8], &[0.2; 8], &[]]);
    cluster.run_for(30_000);
    cluster.faults.report_lost = 1.0;
    cluster.run_for(10 * MINUTE_MS);
    assert_eq!(cluster.measures.decisions, 0);
    assert_eq!(cluster.balancer.explain().pause, Some(Pause::FewHeard { heard: 0, known: 4 }));
    cluster.faults.report_lost = 0.0;
    cluster.run_for(10 * MINUTE_MS);
    assert!(cluster.brokers[3].owned.len() >= 4, "{}", cluster.balancer.explain());
}

#[test]
fn the_leader_places_ownerless_bundles_with_its_earlier_choices_in_mind() {
    let mut cluster = cluster(1, &[&[0.1; 10], &[0.1; 10], &[0.1; 10], &[0.1; 10]]);
    cluster.run_for(5 * MINUTE_MS);
    let now_ms = cluster.now_ms;
    cluster.kill(0);
    cluster.balancer.forget(now_ms, &cluster.brokers[0].id);
    let mut counts = [0; 4];
    for bundle in 0..10 {
        let chosen = cluster.balancer.choose(now_ms, &cluster.bundles[bundle].id).expect("three are left");
        counts[cluster.brokers.iter().position(|it| it.id == chosen).expect("of the cluster")] += 1;
    }
    assert!(counts[0] == 0 && counts.iter().skip(1).all(|count| (2..=5).contains(count)), "{counts:?}");
}
