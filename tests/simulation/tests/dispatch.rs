//! Seeds of the dispatch simulation. A failure names its seed: `DISPATCH_SEED=n DISPATCH_TYPE=Key_Shared cargo test -p
//! geminga-simulation --test dispatch one_seed` runs that one alone, `DISPATCH_SEEDS=n` sets how many the large run takes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use geminga_simulation::dispatch_simulation::run;
use geminga_topic::SubscriptionType::{self, Exclusive, Failover, KeyShared, Shared};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn many_seeds(sub_type: SubscriptionType) {
    for seed in 0..number("DISPATCH_SEEDS", 700) {
        if catch_unwind(AssertUnwindSafe(|| run(seed, sub_type))).is_err() {
            panic!("DISPATCH_SEED={seed} DISPATCH_TYPE={} fails, see above", sub_type.name());
        }
    }
}

#[test]
fn exclusive() {
    many_seeds(Exclusive);
}

#[test]
fn failover() {
    many_seeds(Failover);
}

#[test]
fn shared() {
    many_seeds(Shared);
}

#[test]
fn key_shared() {
    many_seeds(KeyShared);
}

#[test]
fn one_seed() {
    let name = std::env::var("DISPATCH_TYPE").unwrap_or_else(|_| "Key_Shared".into());
    let types = [Exclusive, Failover, Shared, KeyShared];
    let sub_type = types.into_iter().find(|t| t.name() == name).expect("a subscription type as Pulsar spells it");
    run(number("DISPATCH_SEED", 1), sub_type);
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for sub_type in [Exclusive, Failover, Shared, KeyShared] {
        for seed in 0..30 {
            assert_eq!(run(seed, sub_type), run(seed, sub_type), "{} seed {seed}", sub_type.name());
        }
    }
}
