//! Seeds of a whole cluster. A failure names its seed; `CLUSTER_SEED=n` runs that one alone and writes what happened to
//! `cluster-model-n.trace` or `cluster-engine-n.trace` in the temporary folder, `CLUSTER_HOURS=n` and `CLUSTER_ENGINE_HOURS=n` set how
//! many hours the large runs simulate, beginning with `CLUSTER_FIRST_SEED`; `CLUSTER_PLANT=name` plants only the bugs whose names have
//! that in them.

use std::sync::atomic::{AtomicU64, Ordering};

use geminga_ensemble::Bug;
use geminga_simulation::cluster_plant::Plant;
use geminga_simulation::cluster_sim::{SECOND, Seen};
use geminga_simulation::cluster_simulation::{Options, Report, run};
use geminga_simulation::ensemble_simulation::Storage;

/// What a run is for: each has to happen, at least once in ten simulated hours.
const EXPECTED: [&str; 74] = [
    "acks and resets with a receipt",
    "bundles given away",
    "bundles lost while they were opened",
    "bundles placed",
    "bundles split",
    "bundles taken over",
    "calls that found another node",
    "conflicts of ledgers' metadata",
    "connections given up by clients",
    "consumers that waited until storage had confirmed their owner",
    "cursor logs whose record was settled",
    "cursor resets",
    "damaged entries noticed by a reader",
    "deduplication switched off",
    "deduplication switched on",
    "deletions of topics of unknown outcome",
    "duplicates that were known",
    "entries acknowledged",
    "entries copied by repairs",
    "entries expired",
    "entries of a key in order",
    "entries of cursor logs replayed",
    "entries read at the end",
    "entries read for consumers",
    "entries replayed for deduplication",
    "entries written again by a recovery",
    "fault: another disk lost",
    "fault: bit flipped",
    "fault: broker crashed",
    "fault: broker paused",
    "fault: clock changed",
    "fault: directory given up",
    "fault: directory missing",
    "fault: disk full",
    "fault: disk lost",
    "fault: disk slow",
    "fault: empty node at an old address",
    "fault: file cut off",
    "fault: index damaged",
    "fault: links clogged",
    "fault: messages lost and repeated",
    "fault: metadata away",
    "fault: metadata slow",
    "fault: network parted",
    "fault: network slow",
    "fault: node crashed",
    "fault: node paused",
    "fault: syncs fail",
    "ledgers closed by a reader",
    "ledgers closed under a writer that does not leave a lost node",
    "ledgers deleted",
    "losses of storage nodes settled",
    "lost nodes replaced by repairs",
    "messages checked by consumers",
    "messages confirmed",
    "messages refused",
    "owners that learned of their end from fencing",
    "owners that learned of their end from metadata",
    "owners that were asked for a split",
    "policies changed",
    "reads that went to another node",
    "recoveries given up",
    "replicas of deleted ledgers swept",
    "requests carried out by metadata that went away",
    "sessions that had run out and go on",
    "splits begun",
    "splits that were interrupted",
    "storage nodes replaced under a writer",
    "takeovers that failed",
    "times that everything came to rest",
    "topics created again",
    "topics deleted",
    "writers fenced",
    "writers without nodes",
];
/// What nodes on the storage engine are for.
const EXPECTED_OF_THE_ENGINE: [&str; 14] = [
    "commits that failed",
    "damaged entries found by storage nodes",
    "entries copied by repairs",
    "entries that nodes have from others",
    "fault: bit flipped",
    "fault: block misdirected",
    "fault: block unreadable",
    "fault: disk full",
    "fault: disk lost",
    "fault: syncs fail",
    "holes that were settled",
    "replicas of deleted ledgers swept",
    "starts of the engine",
    "starts of the engine that find holes",
];
/// Simulated, of one seed.
const MINUTES: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A violation is a panic that is caught and told.
fn be_quiet() {
    if std::env::var_os("CLUSTER_LOUD").is_none() {
        std::panic::set_hook(Box::new(|_| ()));
    }
}

fn options(storage: Storage, plant: Plant) -> Options {
    Options { plant, storage, minutes: MINUTES, is_traced: false }
}

struct Total {
    seen: Seen,
    seconds: u64,
    violation: Option<(u64, String)>,
}

/// Runs seeds until so many are done or one fails.
fn run_seeds(first: u64, count: u64, storage: Storage, plant: Plant) -> Total {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let next = AtomicU64::new(first);
    let end = AtomicU64::new(first + count);
    let work = || {
        let mut total = Total { seen: Seen::new(), seconds: 0, violation: None };
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return total;
            }
            let Report { seen, simulated, violation, .. } = run(seed, options(storage, plant));
            total.seconds += simulated / SECOND;
            seen.into_iter().for_each(|(what, times)| *total.seen.entry(what).or_default() += times);
            if let Some(violation) = violation {
                end.fetch_min(seed, Ordering::Relaxed);
                total.violation = Some((seed, violation));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let parts = threads.into_iter().map(|part| part.join().expect("violations are caught"));
        parts.reduce(join).expect("there is a thread")
    })
}

fn join(mut one: Total, other: Total) -> Total {
    one.seconds += other.seconds;
    other.seen.into_iter().for_each(|(what, times)| *one.seen.entry(what).or_default() += times);
    one.violation = match (one.violation, other.violation) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    one
}

fn hours_keep_every_promise(storage: Storage, hours: u64, expected: &[&str]) {
    if let Some(seed) = number("CLUSTER_SEED") {
        be_quiet();
        let is_traced = number("CLUSTER_SILENT").is_none();
        let report = run(seed, Options { is_traced, ..options(storage, Plant::None) });
        let name = format!("cluster-{storage:?}-{seed}.trace").to_lowercase();
        let place = std::env::temp_dir().join(name);
        std::fs::write(&place, report.trace).expect("the temporary folder can be written");
        println!("{:#?}\ntrace: {}", report.seen, place.display());
        let _ = std::panic::take_hook();
        assert_eq!(report.violation, None, "CLUSTER_SEED={seed}");
        return;
    }
    be_quiet();
    let (first, count) = (number("CLUSTER_FIRST_SEED").unwrap_or(0), hours * 60 / MINUTES);
    let total = run_seeds(first, count, storage, Plant::None);
    println!("{storage:?}: seeds {first} to {}, {} simulated hours", first + count - 1, total.seconds / 3600);
    total.seen.iter().for_each(|(what, times)| println!("{times:>10} {what}"));
    let _ = std::panic::take_hook();
    assert_eq!(total.violation, None, "run it alone with CLUSTER_SEED");
    let times = |what: &str| total.seen.get(what).copied().unwrap_or(0);
    let rare: Vec<&&str> = expected.iter().filter(|what| times(what) < hours.div_ceil(10)).collect();
    assert!(rare.is_empty(), "hardly ever seen: {rare:?}");
}

#[test]
fn many_hours_keep_every_promise() {
    hours_keep_every_promise(Storage::Model, number("CLUSTER_HOURS").unwrap_or(100), &EXPECTED);
}

#[test]
fn some_hours_on_the_storage_engine_keep_every_promise() {
    let hours = number("CLUSTER_ENGINE_HOURS").unwrap_or(5);
    hours_keep_every_promise(Storage::Engine, hours, &EXPECTED_OF_THE_ENGINE);
}

#[test]
fn a_seed_takes_the_same_course_twice() {
    for (storage, seed) in
        [Storage::Model, Storage::Engine].into_iter().flat_map(|storage| (0..4).map(move |seed| (storage, seed)))
    {
        let traced = Options { minutes: 2, is_traced: true, ..options(storage, Plant::None) };
        let (one, other) = (run(seed, traced), run(seed, traced));
        assert!(one.trace.len() > 100_000, "seed {seed} does something");
        assert!(one.trace == other.trace, "{storage:?}: seed {seed} took another course");
        assert_eq!((one.seen, one.simulated), (other.seen, other.simulated));
    }
}

/// The seed beside a plant is one that finds it, and is tried before the search, which takes a third of the hours of an ordinary run:
/// another one counts just as well, once the simulation has changed. With `CLUSTER_PLANT` the test searches, and says how fast.
#[test]
fn planted_bugs_are_found() {
    let plants = [
        (Plant::AckBeforeSync, 0),
        (Plant::IgnoreSyncError, 1),
        (Plant::DamagedIsAbsent, 69),
        (Plant::LostDirectoryIsEmpty, 28),
        (Plant::UnsureDeletionsServeOn, 282),
        (Plant::NoDigestCheck, 3),
        (Plant::TrustLease, 0),
        (Plant::SeekStoresReadPosition, 1),
        (Plant::AckBeforeDurable, 0),
        (Plant::TrimByMemory, 0),
        (Plant::NoReplay, 8),
        (Plant::UnknownIsDuplicate, 11),
        (Plant::LaterMessagesPass, 11),
        (Plant::Unguarded, 142),
        (Plant::LedgerIdsGoBack, 8),
        (Plant::PartsBeforeLogs, 0),
        (Plant::LapsedOwnersAdmit, 0),
        (Plant::OpenLedgersAreNotRead, 0),
        (Plant::DeletedIsForgotten, 18),
        (Plant::EmptyNodeIsTrusted, 59),
        (Plant::Topic(geminga_topic::Bug::AckedTakesPermits), 0),
        (Plant::Topic(geminga_topic::Bug::RedeliveryGivesPermits), 0),
        (Plant::Topic(geminga_topic::Bug::KeysDoNotDrain), 0),
        (Plant::Client(Bug::ConfirmBeforeMetadata), 15),
        (Plant::Client(Bug::RecoverFromTheStart), 3),
        (Plant::Client(Bug::KeepAcksOfReplaced), 0),
        (Plant::Client(Bug::OneDenialIsEnough), 2),
    ];
    are_found(Storage::Model, number("CLUSTER_PLANTED_SEEDS").unwrap_or(200), &plants);
}

#[test]
fn planted_bugs_are_found_on_the_storage_engine() {
    let plants = [(Plant::AckBeforeSync, 0), (Plant::IgnoreSyncError, 4)];
    are_found(Storage::Engine, number("CLUSTER_PLANTED_SEEDS").unwrap_or(20), &plants);
}

fn are_found(storage: Storage, seeds: u64, plants: &[(Plant, u64)]) {
    be_quiet();
    let wanted = std::env::var("CLUSTER_PLANT").ok();
    let is_found = |first, count, plant| {
        let total = run_seeds(first, count, storage, plant);
        println!("{storage:?}, {plant:?}: {:.1} simulated hours: {:?}", total.seconds as f64 / 3600.0, total.violation);
        total.violation.is_some()
    };
    let mut missed = Vec::new();
    for &(plant, seed) in plants {
        let is_wanted = wanted.as_ref().is_none_or(|wanted| format!("{plant:?}").contains(wanted));
        if is_wanted && !(wanted.is_none() && is_found(seed, 1, plant)) && !is_found(0, seeds, plant) {
            missed.push(plant);
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
