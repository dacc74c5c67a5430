//! What bundles really have to carry, before anybody measures it.

use rand::{Rng, rngs::SmallRng};

pub const DAY_MS: u64 = 86_400_000;

/// Bundles' waves have one of so many phases, evenly over the day.
const PHASES: usize = 48;

#[derive(Clone, Debug)]
pub struct BundleLoad {
    /// Busy cores, on a day's average.
    pub base: f64,
    amplitude: f64,
    phase: usize,
    burst: f64,
    burst_until_ms: u64,
}

impl BundleLoad {
    pub fn steady(base: f64) -> Self {
        Self { base, amplitude: 0.0, phase: 0, burst: 1.0, burst_until_ms: 0 }
    }

    /// Most have their peak in the same third of the day, some at any time.
    pub fn with_wave(base: f64, rng: &mut SmallRng) -> Self {
        let phase = if rng.random_bool(0.7) { rng.random_range(0..PHASES / 3) } else { rng.random_range(0..PHASES) };
        Self { amplitude: rng.random_range(0.1..0.6), phase, ..Self::steady(base) }
    }

    pub fn burst(&mut self, factor: f64, until_ms: u64) {
        (self.burst, self.burst_until_ms) = (factor, until_ms);
    }

    /// A part of it, as a split makes it.
    pub fn piece(&self, part: f64) -> Self {
        Self { base: self.base * part, ..self.clone() }
    }

    pub fn at(&self, now_ms: u64, waves: &Waves) -> f64 {
        let burst = if now_ms < self.burst_until_ms { self.burst } else { 1.0 };
        self.base * burst * (1.0 + self.amplitude * waves.0[self.phase])
    }
}

/// The daily wave of each phase at one moment.
pub struct Waves([f64; PHASES]);

impl Waves {
    pub fn at(now_ms: u64) -> Self {
        let day = (now_ms % DAY_MS) as f64 / DAY_MS as f64;
        let wave = |phase| (std::f64::consts::TAU * (day + phase as f64 / PHASES as f64)).sin();
        Self(std::array::from_fn(wave))
    }
}

/// Loads by Zipf's law: the n-th has a n-th of the first. They add up to `total`.
pub fn zipf(count: usize, total: f64) -> impl Iterator<Item = f64> {
    let sum: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
    (1..=count).map(move |rank| total / sum / rank as f64)
}

/// Over how much time something is measured.
#[derive(Clone, Copy)]
pub enum Span {
    TenSeconds,
    Minute,
}

/// What a measurement is wrong by: a factor with the mean 1, now and then an outlier. Its standard deviation is 0.29 or so over a
/// minute, and 0.71 over ten seconds, as the average of six such would be wrong by 0.29.
pub fn noise(rng: &mut SmallRng, over: Span) -> f64 {
    let outlier = rng.random_range(0_u32..200);
    let [one, other] = [(); 2].map(|()| rng.random::<f64>());
    match (outlier, over) {
        (0, _) => 0.0,
        (1, _) => 3.0,
        (_, Span::TenSeconds) => -((1.0 - one) * (1.0 - other)).ln() / 2.0,
        (_, Span::Minute) => 0.3 + 0.7 * (one + other),
    }
}
