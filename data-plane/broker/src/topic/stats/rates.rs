//! Rates from totals.

use std::hash::Hash;
use std::sync::Arc;

use geminga_topic::ConsumerKey;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// Two samples are at least so far apart: a shorter time says nothing about a rate.
const WINDOW_MS_MIN: u64 = 1000;

/// Messages and bytes in, the same out, and entries written to storage and read back.
pub type OfTopic = [u64; 6];
/// Messages, bytes and chunks.
pub type Published = [u64; 3];
/// Messages, bytes, redeliveries, acknowledgements, messages dropped, and chunks.
pub type Consumed = [u64; 6];

/// Everybody's totals at one time.
#[derive(Default)]
pub struct Sample {
    pub producers: Vec<(u64, Published)>,
    pub consumers: Vec<(ConsumerKey, Consumed)>,
    pub subscriptions: Vec<(Arc<str>, Consumed)>,
}

/// A topic's rates. Empty while there is no traffic.
#[derive(Default)]
pub struct Rates(Mutex<Option<Box<Known>>>);

struct Known {
    at_ms: u64,
    topic: Rate<6>,
    producers: FxHashMap<u64, Rate<3>>,
    consumers: FxHashMap<ConsumerKey, Rate<6>>,
    subscriptions: FxHashMap<Arc<str>, Rate<6>>,
}

#[derive(Clone, Copy)]
struct Rate<const N: usize> {
    totals: [u64; N],
    per_second: [f64; N],
}

impl<const N: usize> Rate<N> {
    const ZERO: Self = Self { totals: [0; N], per_second: [0.0; N] };

    fn update(&mut self, totals: [u64; N], seconds: f64) {
        self.per_second = std::array::from_fn(|i| totals[i].saturating_sub(self.totals[i]) as f64 / seconds);
        self.totals = totals;
    }

    fn is_zero(&self) -> bool {
        self.per_second.iter().all(|rate| *rate == 0.0)
    }
}

impl Rates {
    /// Takes a sample if the last is old enough and something has changed since; `totals` gives the topic's own.
    pub fn sample(&self, now_ms: u64, totals: OfTopic, everybody: impl FnOnce() -> Sample) {
        let mut known = self.0.lock();
        let Some(current) = known.as_deref_mut() else {
            if totals != OfTopic::default() {
                let mut first = Box::new(Known {
                    at_ms: now_ms,
                    topic: Rate { totals, ..Rate::ZERO },
                    producers: FxHashMap::default(),
                    consumers: FxHashMap::default(),
                    subscriptions: FxHashMap::default(),
                });
                first.start(everybody());
                *known = Some(first);
            }
            return;
        };
        let elapsed = now_ms.saturating_sub(current.at_ms);
        if elapsed < WINDOW_MS_MIN {
            return;
        }
        let idle = current.topic.totals == totals && current.topic.is_zero();
        current.at_ms = now_ms;
        if idle {
            return;
        }
        let seconds = elapsed as f64 / 1000.0;
        current.topic.update(totals, seconds);
        let Sample { producers, consumers, subscriptions } = everybody();
        advance(&mut current.producers, producers, seconds);
        advance(&mut current.consumers, consumers, seconds);
        advance(&mut current.subscriptions, subscriptions, seconds);
    }

    pub fn topic(&self) -> [f64; 6] {
        self.0.lock().as_ref().map_or([0.0; 6], |known| known.topic.per_second)
    }

    pub fn producer(&self, key: u64) -> [f64; 3] {
        let known = self.0.lock();
        known.as_ref().and_then(|known| known.producers.get(&key)).map_or([0.0; 3], |rate| rate.per_second)
    }

    pub fn consumer(&self, key: ConsumerKey) -> [f64; 6] {
        let known = self.0.lock();
        known.as_ref().and_then(|known| known.consumers.get(&key)).map_or([0.0; 6], |rate| rate.per_second)
    }

    pub fn subscription(&self, name: &str) -> [f64; 6] {
        let known = self.0.lock();
        known.as_ref().and_then(|known| known.subscriptions.get(name)).map_or([0.0; 6], |rate| rate.per_second)
    }
}

impl Known {
    /// Rates count from here.
    fn start(&mut self, sample: Sample) {
        self.producers = begin(sample.producers);
        self.consumers = begin(sample.consumers);
        self.subscriptions = begin(sample.subscriptions);
    }
}

fn begin<K: Eq + Hash, const N: usize>(totals: Vec<(K, [u64; N])>) -> FxHashMap<K, Rate<N>> {
    totals.into_iter().map(|(key, totals)| (key, Rate { totals, ..Rate::ZERO })).collect()
}

/// Who is new counts from zero; who is gone is forgotten.
fn advance<K: Eq + Hash, const N: usize>(known: &mut FxHashMap<K, Rate<N>>, totals: Vec<(K, [u64; N])>, seconds: f64) {
    let mut next = FxHashMap::with_capacity_and_hasher(totals.len(), Default::default());
    for (key, totals) in totals {
        let mut rate = known.remove(&key).unwrap_or(Rate::ZERO);
        rate.update(totals, seconds);
        next.insert(key, rate);
    }
    *known = next;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let rates = Rates::default();
        let everybody = |messages| move || Sample { producers: vec![(7, [messages, 10, 0])], ..Sample::default() };
        rates.sample(1_000, [0; 6], || panic!("an idle topic is not looked at"));
        rates.sample(10_000, [100, 1000, 0, 0, 10, 0], everybody(100));
        assert_eq!(rates.topic(), [0.0; 6]);
        rates.sample(10_500, [200, 2000, 0, 0, 20, 0], || panic!("too early"));
        rates.sample(12_000, [300, 3000, 40, 0, 30, 8], everybody(300));
        assert_eq!(rates.topic(), [100.0, 1000.0, 20.0, 0.0, 10.0, 4.0]);
        assert_eq!(rates.producer(7), [100.0, 0.0, 0.0]);
        rates.sample(14_000, [300, 3000, 40, 0, 30, 8], Sample::default);
        assert_eq!((rates.topic(), rates.producer(7)), ([0.0; 6], [0.0; 3]));
        rates.sample(16_000, [300, 3000, 40, 0, 30, 8], || panic!("nothing has changed"));
        rates.sample(18_000, [302, 3000, 40, 0, 30, 8], Sample::default);
        assert_eq!(rates.topic()[0], 1.0);
    }
}
