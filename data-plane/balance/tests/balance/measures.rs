//! What is counted while a cluster runs.

use geminga_balance::Reason;

use crate::load::DAY_MS;

#[derive(Debug)]
pub struct Measures {
    /// How long a bundle has to rest after a move.
    pub rest_ms: u64,
    pub decisions: u64,
    pub refused: u64,
    pub stale_reports: u64,
    pub levelled: u64,
    pub filled: u64,
    pub drained: u64,
    pub splits: u64,
    /// Moves of a bundle that has not rested since its last one.
    pub moved_again: u64,
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            rest_ms: DAY_MS,
            decisions: 0,
            refused: 0,
            stale_reports: 0,
            levelled: 0,
            filled: 0,
            drained: 0,
            splits: 0,
            moved_again: 0,
        }
    }
}

impl Measures {
    pub fn note_move(&mut self, reason: Reason) {
        match reason {
            Reason::Level => self.levelled += 1,
            Reason::Fill => self.filled += 1,
            Reason::Drain => self.drained += 1,
        }
    }

    pub fn note_rest(&mut self, rested_ms: Option<u64>) {
        self.moved_again += u64::from(rested_ms.is_some_and(|rested| rested < self.rest_ms));
    }

    pub fn balancing(&self) -> u64 {
        self.levelled + self.filled
    }
}

/// How long the imbalance was above a bound.
#[derive(Default, Debug)]
pub struct Imbalance {
    samples: Vec<f64>,
    above: u64,
    above_in_a_row: u64,
    pub longest_above: u64,
}

impl Imbalance {
    pub fn note(&mut self, value: f64, bound: f64) {
        self.samples.push(value);
        self.above_in_a_row = if value > bound { self.above_in_a_row + 1 } else { 0 };
        self.above += u64::from(value > bound);
        self.longest_above = self.longest_above.max(self.above_in_a_row);
    }

    /// Whether it was at the last time.
    pub fn is_above(&self) -> bool {
        self.above_in_a_row > 0
    }

    pub fn part_above(&self) -> f64 {
        self.above as f64 / self.samples.len() as f64
    }

    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * part) as usize]
    }
}
