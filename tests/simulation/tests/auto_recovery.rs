//! Seeds of a ledger that is repaired. A failure names its seed; `AUTO_RECOVERY_SEED=n` runs that one alone and prints what
//! happened, `AUTO_RECOVERY_SEEDS=n` sets how many the large runs take.

use std::panic::{AssertUnwindSafe, catch_unwind};

use geminga_ensemble::Bug;
use geminga_simulation::auto_recovery_simulation::{Planted, Seen, run};
use geminga_simulation::ensemble_simulation::Storage;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn seen(seed: u64, storage: Storage, planted: Option<Planted>) -> Option<Seen> {
    catch_unwind(AssertUnwindSafe(|| run(seed, storage, planted).1)).ok()
}

/// What all of them have seen together.
fn many_seeds(storage: Storage, count: u64) -> Seen {
    if let Some(seed) = number("AUTO_RECOVERY_SEED") {
        println!("{}", run(seed, storage, None).0);
    }
    let seeds = number("AUTO_RECOVERY_SEEDS").unwrap_or(count);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let part = |thread| {
        let mut all = Seen::default();
        for seed in (thread..seeds).step_by(threads as usize) {
            all.add(seen(seed, storage, None).unwrap_or_else(|| panic!("AUTO_RECOVERY_SEED={seed} fails")));
        }
        all
    };
    let part = &part;
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || part(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a seed fails")).collect()
    });
    let mut all = Seen::default();
    parts.into_iter().for_each(|part| all.add(part));
    println!("{storage:?}: {all:?}");
    all
}

#[test]
fn many_seeds_on_models_of_nodes() {
    let seen = many_seeds(Storage::Model, 10_000);
    assert!(number("AUTO_RECOVERY_SEED").is_some() || seen.least() > 100, "hardly ever seen: {seen:?}");
}

#[test]
fn many_seeds_on_the_storage_engine() {
    many_seeds(Storage::Engine, 300);
}

#[test]
fn a_seed_takes_the_same_course_twice() {
    for storage in [Storage::Model, Storage::Engine] {
        for seed in 0..10 {
            assert!(run(seed, storage, None).0 == run(seed, storage, None).0, "seed {seed} took another course");
        }
    }
}

/// Each within the seeds of an ordinary run; the test says how fast.
#[test]
fn planted_bugs_are_found() {
    let bugs = [
        Planted::Client(Bug::NameBeforeCopied),
        Planted::Client(Bug::CopyHalfTheStripes),
        Planted::Client(Bug::OverwriteConflicts),
        Planted::Client(Bug::TrustLists),
        Planted::Client(Bug::RepairWritersEnd),
        Planted::CopiesAreNotChecked,
    ];
    std::panic::set_hook(Box::new(|_| ()));
    let found: Vec<(Planted, Option<u64>)> = bugs
        .into_iter()
        .map(|bug| (bug, (0..10_000).find(|&seed| seen(seed, Storage::Model, Some(bug)).is_none())))
        .collect();
    let _ = std::panic::take_hook();
    for (bug, seed) in &found {
        println!("{bug:?}: found by seed {seed:?}");
    }
    let missed: Vec<&Planted> = found.iter().filter(|(_, seed)| seed.is_none()).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
