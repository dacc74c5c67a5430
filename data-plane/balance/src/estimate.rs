//! One number out of noisy measurements.

use crate::config::Smoothing;

/// How far estimates follow a value that comes `elapsed_ms` after the one before.
#[derive(Clone, Copy)]
pub(crate) struct Gains {
    slow: f64,
    fast: f64,
}

impl Gains {
    pub fn after(elapsed_ms: u64, smoothing: &Smoothing) -> Self {
        let gain = |constant_ms: u64| 1.0 - (-(elapsed_ms as f64) / constant_ms.max(1) as f64).exp();
        Self { slow: gain(smoothing.slow_ms), fast: gain(smoothing.fast_ms) }
    }
}

/// A slow moving average, which decisions are made on, and a quick one beside it. Noise does not take the two apart for long; a
/// jump does, and then the slow one follows at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    slow: f64,
    fast: f64,
    values: u32,
    apart_since_ms: Option<u64>,
}

impl Estimate {
    pub fn value(&self) -> f64 {
        self.slow
    }

    pub fn is_known(&self) -> bool {
        self.values > 0
    }

    pub fn observe(&mut self, now_ms: u64, value: f64, gains: Gains, smoothing: &Smoothing) {
        self.values = self.values.saturating_add(1);
        // The first values count alike.
        let first = 1.0 / f64::from(self.values);
        self.slow += (value - self.slow) * gains.slow.max(first);
        self.fast += (value - self.fast) * gains.fast.max(first);
        if self.slow.max(self.fast) <= smoothing.jump_ratio * self.slow.min(self.fast) {
            self.apart_since_ms = None;
            return;
        }
        let since = *self.apart_since_ms.get_or_insert(now_ms);
        let has_leapt = self.fast > smoothing.leap_ratio * self.slow;
        if has_leapt || now_ms.saturating_sub(since) >= smoothing.jump_after_ms {
            self.slow = self.fast;
            // It weighs no more than the values that went into the quick one, so that those to come count.
            self.values = (1.0 / gains.fast.max(first)).ceil() as u32;
            self.apart_since_ms = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP_MS: u64 = 10_000;

    fn observed(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
        let smoothing = Smoothing::default();
        let gains = Gains::after(STEP_MS, &smoothing);
        let mut estimate = Estimate::default();
        let each = values.into_iter().enumerate().map(|(step, value)| {
            estimate.observe(step as u64 * STEP_MS, value, gains, &smoothing);
            estimate.value()
        });
        each.collect()
    }

    #[test]
    fn noise_of_half_the_value_leaves_a_twentieth() {
        let noise =
            (0..2_000_u32).map(|step| 100.0 + f64::from(step.wrapping_mul(2_654_435_761) >> 16) / 655.36 - 50.0);
        assert!(observed(noise).iter().skip(100).all(|value| (value - 100.0).abs() < 5.0));
    }

    #[test]
    fn a_jump_is_followed_in_two_minutes_both_ways() {
        let values = observed((0..180).map(|step| if (60..120).contains(&step) { 300.0 } else { 100.0 }));
        assert!(values[59] < 101.0 && values[60 + 12] > 250.0, "{} {}", values[59], values[72]);
        assert!(values[120 + 15] < 125.0, "{}", values[135]);
    }

    #[test]
    fn a_leap_is_followed_in_half_a_minute() {
        let values = observed((0..80).map(|step| if step < 60 { 100.0 } else { 600.0 }));
        assert!(values[60 + 2] > 250.0, "{}", values[62]);
    }

    #[test]
    fn one_outlier_changes_little() {
        let values = observed((0..120).map(|step| if step == 100 { 1_000.0 } else { 100.0 }));
        assert!(values.iter().skip(60).all(|value| *value < 116.0));
    }
}
