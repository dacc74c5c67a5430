use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Buckets end at 2^0, 2^1, … microseconds; the last but one at 2^25 (33 s), the last is without end.
const BUCKETS: usize = 27;

/// How long something took, in buckets that double from 1 µs to 33 s. Shown in seconds.
///
/// Recording is two relaxed additions without a lock; a batch of equal durations costs as much as one. Clones share
/// the counts.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn record(&self, duration: Duration) {
        self.record_many(duration, 1);
    }

    /// Records that each of `count` things took this long.
    pub fn record_many(&self, duration: Duration, count: u64) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts.buckets[bucket(us)].fetch_add(count, Ordering::Relaxed);
        self.counts.sum_us.fetch_add(us.saturating_mul(count), Ordering::Relaxed);
    }

    /// The sum in seconds, and for each bucket its upper bound in seconds and its own count, not cumulative.
    pub fn snapshot(&self) -> (f64, Vec<(f64, u64)>) {
        let buckets = self.counts.buckets.iter().enumerate().map(|(index, count)| {
            let bound = if index == BUCKETS - 1 { f64::INFINITY } else { (1_u64 << index) as f64 / 1e6 };
            (bound, count.load(Ordering::Relaxed))
        });
        (self.counts.sum_us.load(Ordering::Relaxed) as f64 / 1e6, buckets.collect())
    }
}

/// The first bucket whose bound is not below `us`.
fn bucket(us: u64) -> usize {
    let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let (sum, buckets) = self.snapshot();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        for (us, expected) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 25, 25), (1 << 26, 26)] {
            assert_eq!(bucket(us), expected, "{us} µs");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(3));
        histogram.clone().record_many(Duration::from_millis(1), 10);
        let (sum, buckets) = histogram.snapshot();
        assert!((sum - 0.010003).abs() < 1e-9);
        assert_eq!((buckets[2], buckets[10]), ((4e-6, 1), (1024e-6, 10)));
    }
}
