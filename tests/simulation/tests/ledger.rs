//! Seeds of the managed-ledger simulation. A failure names its seed; `LEDGER_SEED=n cargo test -p geminga-simulation --test
//! ledger one_seed` runs that one alone, `LEDGER_SEEDS=n` sets how many the large run takes.

use geminga_simulation::ledger_owner::Plant;
use geminga_simulation::ledger_simulation::{Seen, Storage, run};

fn seeds(default: u64) -> u64 {
    std::env::var("LEDGER_SEEDS").map_or(default, |text| text.parse().expect("LEDGER_SEEDS is a number"))
}

/// The first seed that finds something.
fn first_failure(seeds: u64, storage: Storage, plant: Plant) -> Option<(u64, String)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    std::thread::scope(|scope| {
        let part = |thread| {
            move || {
                (thread..seeds)
                    .step_by(threads as usize)
                    .find_map(|seed| Some((seed, run(seed, storage, plant).err()?)))
            }
        };
        let parts: Vec<_> = (0..threads).map(|thread| scope.spawn(part(thread))).collect();
        parts.into_iter().filter_map(|part| part.join().expect("the simulation panicked, see above")).min()
    })
}

fn check_seeds(storage: Storage) {
    if let Some((seed, wrong)) = first_failure(seeds(10_000), storage, Plant::None) {
        panic!("LEDGER_SEED={seed} on {storage:?}: {wrong}");
    }
}

#[test]
fn many_seeds_keep_every_promise() {
    check_seeds(Storage::Model);
}

#[test]
fn many_seeds_keep_every_promise_on_the_storage_engine() {
    check_seeds(Storage::Engine);
}

#[test]
fn one_seed() {
    let seed = std::env::var("LEDGER_SEED").map_or(1, |text| text.parse().expect("LEDGER_SEED is a number"));
    for storage in [Storage::Model, Storage::Engine] {
        if let Err(wrong) = run(seed, storage, Plant::None) {
            panic!("LEDGER_SEED={seed} on {storage:?}: {wrong}");
        }
    }
}

#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in 0..50 {
        for storage in [Storage::Model, Storage::Engine] {
            assert_eq!(run(seed, storage, Plant::None), run(seed, storage, Plant::None), "seed {seed} on {storage:?}");
        }
    }
}

fn total(runs: &[Seen], what: fn(&Seen) -> u64) -> u64 {
    runs.iter().map(what).sum()
}

/// A simulation that does not reach the interesting states proves nothing.
#[test]
fn seeds_reach_what_they_are_for() {
    for storage in [Storage::Model, Storage::Engine] {
        let run = |seed| run(seed, storage, Plant::None).expect("a seed fails, see the other test");
        let runs: Vec<Seen> = (0..200).map(run).collect();
        let engine = u64::from(storage == Storage::Engine);
        let counts = [
            ("confirmed entries", total(&runs, |seen| seen.confirmed), 5_000),
            ("entries confirmed by a deposed owner", total(&runs, |seen| seen.confirmed_by_deposed), 20),
            ("failed writes", total(&runs, |seen| seen.failed_writes), 500),
            ("loads", total(&runs, |seen| seen.loads), 500),
            ("lost records", total(&runs, |seen| seen.lost_records), 100),
            ("duplicates", total(&runs, |seen| seen.duplicates), 500),
            ("refused messages", total(&runs, |seen| seen.refused), 200),
            ("entries replayed for deduplication", total(&runs, |seen| seen.replayed), 500),
            ("trimmed entries", total(&runs, |seen| seen.trimmed), 500),
            ("deleted ledgers", total(&runs, |seen| seen.deleted_ledgers), 200),
            ("deleted log ledgers", total(&runs, |seen| seen.deleted_log_ledgers), 200),
            ("crashes in a write", total(&runs, |seen| seen.torn), 50 * engine),
            ("turned bits that were found", total(&runs, |seen| seen.noticed_damage), engine),
        ];
        println!("{storage:?}: {counts:?}");
        for (what, count, least) in counts {
            assert!(count >= least, "{storage:?}, {what}: {count}");
        }
    }
}

#[test]
fn planted_bugs_are_found() {
    let everywhere = [
        Plant::SeekStoresReadPosition,
        Plant::AckBeforeDurable,
        Plant::TrimByMemory,
        Plant::DeleteBeforeSave,
        Plant::NoFence,
        Plant::IgnoreWriteError,
        Plant::NoReplay,
        Plant::TrimAheadOfSnapshot,
        Plant::UnknownIsDuplicate,
        Plant::LaterMessagesPass,
    ];
    let plants = everywhere.iter().flat_map(|plant| [(Storage::Model, *plant), (Storage::Engine, *plant)]);
    let of_engine = [Plant::AckBeforeSync, Plant::IgnoreSyncError].map(|plant| (Storage::Engine, plant));
    for (storage, plant) in plants.chain(of_engine) {
        let found = first_failure(1000, storage, plant);
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{plant:?} is not found on {storage:?}"));
        println!("{plant:?} on {storage:?}: seed {seed}: {wrong}");
    }
}
