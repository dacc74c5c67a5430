//! Seeds of the managed-ledger simulation. A failure names its seed; `LEDGER_SEED=n cargo test -p geminga-simulation --test
//! ledger one_seed` runs that one alone, `LEDGER_SEEDS=n` sets how many the large run takes.

use geminga_simulation::ledger_owner::Plant;
use geminga_simulation::ledger_simulation::{Seen, run};

fn seeds(default: u64) -> u64 {
    std::env::var("LEDGER_SEEDS").map_or(default, |text| text.parse().expect("LEDGER_SEEDS is a number"))
}

/// The first seed that finds something.
fn first_failure(seeds: u64, plant: Plant) -> Option<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    std::thread::scope(|scope| {
        let part = |thread| {
            move || (thread..seeds).step_by(threads as usize).find_map(|seed| Some((seed, run(seed, plant).err()?)))
        };
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        parts.into_iter().filter_map(|part| part.join().expect("the simulation panicked, see above")).min()
    })
}

#[test]
fn many_seeds_keep_every_promise() {
    if let Some((seed, wrong)) = first_failure(seeds(10_000), Plant::None) {
        panic!("LEDGER_SEED={seed}: {wrong}");
    }
}

#[test]
fn one_seed() {
    let seed = std::env::var("LEDGER_SEED").map_or(1, |text| text.parse().expect("LEDGER_SEED is a number"));
    if let Err(wrong) = run(seed, Plant::None) {
        panic!("LEDGER_SEED={seed}: {wrong}");
    }
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in 0..50 {
        assert_eq!(run(seed, Plant::None), run(seed, Plant::None), "seed {seed}");
    }
}

/// A simulation that does not reach the interesting states proves nothing.
#[test]
fn seeds_reach_what_they_are_for() {
    let runs: Vec<Seen> =
        (0..200).map(|seed| run(seed, Plant::None).expect("a seed fails, see the other test")).collect();
    let total = |what: fn(&Seen) -> u64| runs.iter().map(what).sum::<u64>();
    let counts = [
        ("confirmed entries", total(|seen| seen.confirmed), 10_000),
        ("entries confirmed by a deposed owner", total(|seen| seen.confirmed_by_deposed), 20),
        ("failed writes", total(|seen| seen.failed_writes), 500),
        ("loads", total(|seen| seen.loads), 500),
        ("lost records", total(|seen| seen.lost_records), 100),
        ("trimmed entries", total(|seen| seen.trimmed), 500),
        ("deleted ledgers", total(|seen| seen.deleted_ledgers), 200),
        ("deleted log ledgers", total(|seen| seen.deleted_log_ledgers), 200),
    ];
    println!("{counts:?}");
    for (what, count, least) in counts {
        assert!(count >= least, "{what}: {count}");
    }
}

#[test]
fn planted_bugs_are_found() {
    let plants = [
        Plant::SeekStoresReadPosition,
        Plant::AckBeforeDurable,
        Plant::TrimByMemory,
        Plant::DeleteBeforeSave,
        Plant::NoFence,
        Plant::IgnoreWriteError,
    ];
    for plant in plants {
        let found = first_failure(1000, plant);
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{plant:?} is not found"));
        println!("{plant:?}: seed {seed}: {wrong}");
    }
}
