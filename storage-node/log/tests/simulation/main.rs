//! Seeds of the log engine on a simulated disk. A failure names its seed; `GEMINGA_SEED=n` runs that one alone and prints
//! what happened, `GEMINGA_SEEDS=n` sets how many the large run takes.

mod model;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn many_seeds_keep_every_promise() {
    if let Some(seed) = number("GEMINGA_SEED") {
        println!("{}", world::run(seed).trace);
        return;
    }
    let seeds = number("GEMINGA_SEEDS").unwrap_or(10_000);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let part = |thread| {
            move || {
                (thread..seeds)
                    .step_by(threads as usize)
                    .find(|&seed| catch_unwind(AssertUnwindSafe(|| world::run(seed))).is_err())
            }
        };
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        parts.into_iter().filter_map(|part| part.join().expect("panics are caught")).collect()
    });
    assert!(failed.is_empty(), "GEMINGA_SEED={} fails; all: {failed:?}", failed[0]);
}

#[test]
fn a_seed_gives_the_same_bytes_twice() {
    for seed in 0..20 {
        let (first, second) = (world::run(seed), world::run(seed));
        assert!(first.trace == second.trace, "seed {seed} took another course");
        assert!(first.files == second.files, "seed {seed} left other files");
    }
}
