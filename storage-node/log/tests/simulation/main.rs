//! Seeds of the log engine on a simulated disk. A failure names its seed; `GEMINGA_SEED=n` runs that one alone and prints
//! what happened, `GEMINGA_SEEDS=n` sets how many the large run takes.

mod machine;
mod model;
mod replicas;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use geminga_log::{Bug, plant};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn many_seeds(run: fn(u64) -> world::Outcome) {
    if let Some(seed) = number("GEMINGA_SEED") {
        println!("{}", run(seed).trace);
        return;
    }
    let seeds = number("GEMINGA_SEEDS").unwrap_or(10_000);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let part = |thread| {
            move || {
                (thread..seeds)
                    .step_by(threads as usize)
                    .find(|&seed| catch_unwind(AssertUnwindSafe(|| run(seed))).is_err())
            }
        };
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        parts.into_iter().filter_map(|part| part.join().expect("panics are caught")).collect()
    });
    assert!(failed.is_empty(), "GEMINGA_SEED={} fails; all: {failed:?}", failed[0]);
}

#[test]
fn many_seeds_keep_every_promise_of_whole_ledgers() {
    many_seeds(world::run);
}

#[test]
fn many_seeds_keep_every_promise_of_replicas() {
    many_seeds(replicas::run);
}

/// Each within the seeds of an ordinary run; the test says how fast.
#[test]
fn planted_bugs_are_found() {
    let bugs = [
        Bug::TornHeaderIsGarbage,
        Bug::RenameWithoutSync,
        Bug::ChecksumWithoutPlace,
        Bug::IndexUnchecked,
        Bug::ShortFileIsWhole,
        Bug::AddPassesFence,
        Bug::LacGoesBack,
        Bug::StateUnchecked,
    ];
    let fails = |seed| {
        let lives: [fn(u64) -> world::Outcome; 2] = [world::run, replicas::run];
        lives.into_iter().any(|run| catch_unwind(AssertUnwindSafe(|| run(seed))).is_err())
    };
    std::panic::set_hook(Box::new(|_| ()));
    let found = bugs.map(|bug| {
        plant(Some(bug));
        let seed = (0..10_000).find(|&seed| fails(seed));
        println!("{bug:?}: found by seed {seed:?}");
        (bug, seed)
    });
    plant(None);
    let _ = std::panic::take_hook();
    assert!(found.iter().all(|(_, seed)| seed.is_some()), "not all are found: {found:?}");
}

#[test]
fn a_seed_gives_the_same_bytes_twice() {
    for run in [world::run, replicas::run] {
        for seed in 0..20 {
            let (first, second) = (run(seed), run(seed));
            assert!(first.trace == second.trace, "seed {seed} took another course");
            assert!(first.files == second.files, "seed {seed} left other files");
        }
    }
}
