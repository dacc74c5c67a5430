//! Seeds of a ledger on an ensemble. A failure names its seed; `ENSEMBLE_SEED=n` runs that one alone and prints what happened,
//! `ENSEMBLE_SEEDS=n` sets how many the large runs take.

use std::panic::{AssertUnwindSafe, catch_unwind};

use geminga_ensemble::Bug;
use geminga_simulation::ensemble_node::NodeBug;
use geminga_simulation::ensemble_simulation::{Planted, Seen, Storage, run};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn seen(seed: u64, storage: Storage, planted: Option<Planted>) -> Option<Seen> {
    catch_unwind(AssertUnwindSafe(|| run(seed, storage, planted).1)).ok()
}

/// What all of them have seen together.
fn many_seeds(storage: Storage, count: u64) -> Seen {
    if let Some(seed) = number("ENSEMBLE_SEED") {
        println!("{}", run(seed, storage, None).0);
    }
    let seeds = number("ENSEMBLE_SEEDS").unwrap_or(count);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let parts: Vec<Result<Seen, u64>> = std::thread::scope(|scope| {
        let part = |thread| {
            move || {
                let mut all = Seen::default();
                for seed in (thread..seeds).step_by(threads as usize) {
                    all.add(&seen(seed, storage, None).ok_or(seed)?);
                }
                Ok(all)
            }
        };
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        parts.into_iter().map(|part| part.join().expect("panics are caught")).collect()
    });
    let mut all = Seen::default();
    for part in parts {
        all.add(&part.unwrap_or_else(|seed| panic!("ENSEMBLE_SEED={seed} fails")));
    }
    println!("{storage:?}: {all:?}");
    all
}

#[test]
fn many_seeds_on_models_of_nodes() {
    let seen = many_seeds(Storage::Model, 50_000);
    let Seen {
        confirmed,
        ensembles_changed,
        changes_conflicted,
        writers_fenced,
        writers_closed,
        recoveries_done,
        recoveries_given_up,
        entries_recovered,
        ends_found_behind_the_confirmed,
        disks_lost,
    } = seen;
    let counts = [
        confirmed,
        ensembles_changed,
        changes_conflicted,
        writers_fenced,
        writers_closed,
        recoveries_done,
        recoveries_given_up,
        entries_recovered,
        ends_found_behind_the_confirmed,
        disks_lost,
    ];
    assert!(number("ENSEMBLE_SEED").is_some() || counts.iter().all(|count| *count > 100), "hardly ever seen: {seen:?}");
}

#[test]
fn many_seeds_on_the_storage_engine() {
    many_seeds(Storage::Engine, 1_000);
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
        Planted::Client(Bug::ConfirmBeforeMetadata),
        Planted::Client(Bug::RecoverFromTheStart),
        Planted::Client(Bug::KeepAcksOfReplaced),
        Planted::Client(Bug::EarlyFragments),
        Planted::Client(Bug::OneDenialIsEnough),
        Planted::ReadsDoNotFence,
        Planted::Node(NodeBug::DenyWhatWasLost),
        Planted::Node(NodeBug::AddPassesFence),
        Planted::Node(NodeBug::AckBeforeSync),
    ];
    std::panic::set_hook(Box::new(|_| ()));
    let found: Vec<(Planted, Option<u64>)> = bugs
        .into_iter()
        .map(|bug| (bug, (0..50_000).find(|&seed| seen(seed, Storage::Model, Some(bug)).is_none())))
        .collect();
    let _ = std::panic::take_hook();
    for (bug, seed) in &found {
        println!("{bug:?}: found by seed {seed:?}");
    }
    let missed: Vec<&Planted> = found.iter().filter(|(_, seed)| seed.is_none()).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
