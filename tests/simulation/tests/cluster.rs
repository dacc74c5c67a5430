//! Seeds of a whole cluster. A failure names its seed; `CLUSTER_SEED=n` runs that one alone and writes what happened to
//! `cluster-n.trace` in the temporary folder, `CLUSTER_HOURS=n` sets how many hours the large run simulates, beginning with
//! `CLUSTER_FIRST_SEED`.

use std::sync::atomic::{AtomicU64, Ordering};

use geminga_simulation::cluster_plant::Plant;
use geminga_simulation::cluster_sim::{SECOND, Seen};
use geminga_simulation::cluster_simulation::{Options, Report, run};

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

fn options(plant: Plant) -> Options {
    Options { plant, minutes: MINUTES, is_traced: false }
}

struct Total {
    seen: Seen,
    seconds: u64,
    violation: Option<(u64, String)>,
}

/// Runs seeds until so many are done or one fails.
fn run_seeds(first: u64, count: u64, plant: Plant) -> Total {
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
            let Report { seen, simulated, violation, .. } = run(seed, options(plant));
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

#[test]
fn many_hours_keep_every_promise() {
    if let Some(seed) = number("CLUSTER_SEED") {
        be_quiet();
        let report = run(seed, Options { is_traced: true, ..options(Plant::None) });
        let place = std::env::temp_dir().join(format!("cluster-{seed}.trace"));
        std::fs::write(&place, report.trace).expect("the temporary folder can be written");
        println!("{:#?}\ntrace: {}", report.seen, place.display());
        let _ = std::panic::take_hook();
        assert_eq!(report.violation, None, "CLUSTER_SEED={seed}");
        return;
    }
    be_quiet();
    let hours = number("CLUSTER_HOURS").unwrap_or(100);
    let (first, count) = (number("CLUSTER_FIRST_SEED").unwrap_or(0), hours * 60 / MINUTES);
    let total = run_seeds(first, count, Plant::None);
    println!("seeds {first} to {}, {} simulated hours", first + count - 1, total.seconds / 3600);
    total.seen.iter().for_each(|(what, times)| println!("{times:>10} {what}"));
    let _ = std::panic::take_hook();
    assert_eq!(total.violation, None, "run it alone with CLUSTER_SEED");
}
