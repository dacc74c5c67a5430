//! Counts of a topic's entries by size and by the time until they were durable, and of what it reads back from storage, in
//! Pulsar's buckets.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Names and upper bounds, in microseconds; what is above the last goes to one more.
pub(crate) const LATENCIES: [(&str, u64); 9] = [
    ("le_0_5", 500),
    ("le_1", 1_000),
    ("le_5", 5_000),
    ("le_10", 10_000),
    ("le_20", 20_000),
    ("le_50", 50_000),
    ("le_100", 100_000),
    ("le_200", 200_000),
    ("le_1000", 1_000_000),
];

/// Names and upper bounds, in bytes.
pub(crate) const SIZES: [(&str, u64); 8] = [
    ("le_128", 128),
    ("le_512", 512),
    ("le_1_kb", 1 << 10),
    ("le_2_kb", 2 << 10),
    ("le_4_kb", 4 << 10),
    ("le_16_kb", 16 << 10),
    ("le_100_kb", 100 << 10),
    ("le_1_mb", 1 << 20),
];

/// Entries by bucket, and the sum of what was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Distribution<const N: usize> {
    pub buckets: [u64; N],
    pub sum: u64,
}

impl<const N: usize> Default for Distribution<N> {
    fn default() -> Self {
        Self { buckets: [0; N], sum: 0 }
    }
}

impl<const N: usize> Distribution<N> {
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, other)| *sum += other);
        self.sum += other.sum;
    }
}

#[derive(Debug)]
struct Counters<const N: usize> {
    buckets: [AtomicU64; N],
    sum: AtomicU64,
}

impl<const N: usize> Counters<N> {
    fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; N], sum: AtomicU64::new(0) }
    }

    fn record(&self, bounds: &[(&str, u64)], value: u64, entries: u64) {
        let bucket = bounds.iter().position(|(_, bound)| value <= *bound).unwrap_or(bounds.len());
        self.buckets[bucket].fetch_add(entries, Ordering::Relaxed);
        self.sum.fetch_add(value.saturating_mul(entries), Ordering::Relaxed);
    }

    fn read(&self) -> Distribution<N> {
        Distribution {
            buckets: std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed)),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

pub(crate) type Latencies = Distribution<{ LATENCIES.len() + 1 }>;
pub(crate) type Sizes = Distribution<{ SIZES.len() + 1 }>;

/// Takes room once something is written.
#[derive(Debug, Default)]
pub(super) struct Writes(OnceLock<Box<Both>>);

type Both = (Counters<{ LATENCIES.len() + 1 }>, Counters<{ SIZES.len() + 1 }>);

impl Writes {
    fn counters(&self) -> &Both {
        self.0.get_or_init(|| Box::new((Counters::new(), Counters::new())))
    }

    /// So many entries became durable after `latency`.
    pub fn durable(&self, latency: Duration, entries: u64) {
        self.counters().0.record(&LATENCIES, latency.as_micros() as u64, entries);
    }

    pub fn entry(&self, bytes: u64) {
        self.counters().1.record(&SIZES, bytes, 1);
    }

    /// Entries that became durable.
    pub fn entries(&self) -> u64 {
        self.read().1.count()
    }

    pub fn durable_entries(&self) -> u64 {
        self.0.get().map_or(0, |counters| counters.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum())
    }

    pub fn read(&self) -> (Latencies, Sizes) {
        self.0.get().map_or_else(Default::default, |counters| (counters.0.read(), counters.1.read()))
    }
}

/// Reads from storage by the time that they took, and the entries that they brought. Takes room once something is read.
#[derive(Debug, Default)]
pub(super) struct Reads(OnceLock<Box<(Counters<{ LATENCIES.len() + 1 }>, AtomicU64)>>);

impl Reads {
    /// A read has brought so many entries.
    pub fn done(&self, latency: Duration, entries: usize) {
        let (latencies, read) = &**self.0.get_or_init(|| Box::new((Counters::new(), AtomicU64::new(0))));
        latencies.record(&LATENCIES, latency.as_micros() as u64, 1);
        read.fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// The reads by their time, and how many entries they brought.
    pub fn read(&self) -> (Latencies, u64) {
        self.0.get().map_or_else(Default::default, |counters| (counters.0.read(), counters.1.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_fall_into_the_bucket_that_bounds_them() {
        let writes = Writes::default();
        assert_eq!(writes.read().1.count(), 0);
        for bytes in [1, 128, 129, 1 << 20, (1 << 20) + 1] {
            writes.entry(bytes);
        }
        writes.durable(Duration::from_micros(500), 3);
        writes.durable(Duration::from_secs(2), 1);
        let (latencies, sizes) = writes.read();
        assert_eq!(sizes.buckets, [2, 1, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(latencies.buckets, [3, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((latencies.count(), latencies.sum), (4, 2_001_500));
        let reads = Reads::default();
        assert_eq!((reads.read().0.count(), reads.read().1), (0, 0));
        reads.done(Duration::from_millis(3), 7);
        assert_eq!((reads.read().0.buckets[2], reads.read().1), (1, 7));
    }
}
