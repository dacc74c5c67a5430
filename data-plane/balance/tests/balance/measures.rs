//! What is counted while a cluster runs.

use geminga_balance::Reason;

use crate::load::DAY_MS;

#[derive(Debug)]
pub struct Measures {
    /// How long a bundle has to rest after a move, and at least until it is levelled that a broker was filled with.
    pub rest_ms: u64,
    pub short_rest_ms: u64,
    pub decisions: u64,
    pub refused: u64,
    pub stale_reports: u64,
    pub levelled: u64,
    pub filled: u64,
    pub drained: u64,
    pub splits: u64,
    /// Moves for levelling of a bundle that a broker was filled with less than a rest before.
    pub levelled_after_fill: u64,
    /// Moves of a bundle that has not had its rest.
    pub moved_again: u64,
    /// The most moves of any one bundle in the course of a rest.
    pub most: Moves,
}

/// Moves by why they were.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Moves {
    pub levelled: usize,
    pub filled: usize,
    /// For levelling and filling together.
    pub balancing: usize,
    /// As the owner left or died.
    pub forced: usize,
}

/// When a bundle was moved, and why; without a reason, as its owner died.
pub type History = Vec<(u64, Option<Reason>)>;

impl Default for Measures {
    fn default() -> Self {
        Self {
            rest_ms: DAY_MS,
            short_rest_ms: DAY_MS / 96,
            decisions: 0,
            refused: 0,
            stale_reports: 0,
            levelled: 0,
            filled: 0,
            drained: 0,
            splits: 0,
            levelled_after_fill: 0,
            moved_again: 0,
            most: Moves::default(),
        }
    }
}

impl Measures {
    /// A move of a bundle, and how long ago it was last levelled and filled with.
    pub fn note_move(&mut self, reason: Reason, [levelled, filled]: [Option<u64>; 2]) {
        let is_within = |since: Option<u64>, rest_ms| since.is_some_and(|since| since < rest_ms);
        let is_levelled = is_within(levelled, self.rest_ms);
        match reason {
            Reason::Level => {
                self.levelled += 1;
                self.levelled_after_fill += u64::from(is_within(filled, self.rest_ms));
                self.moved_again += u64::from(is_levelled || is_within(filled, self.short_rest_ms));
            }
            Reason::Fill => {
                self.filled += 1;
                self.moved_again += u64::from(is_levelled || is_within(filled, self.rest_ms));
            }
            Reason::Drain => self.drained += 1,
        }
    }

    /// A move of a bundle that has had those of `history`, to which this one is added.
    pub fn note_history(&mut self, now_ms: u64, why: Option<Reason>, history: &mut History) {
        history.retain(|(moved_ms, _)| now_ms - moved_ms < self.rest_ms);
        history.push((now_ms, why));
        let count = |of: fn(Option<Reason>) -> bool| history.iter().filter(|(_, why)| of(*why)).count();
        let most = &mut self.most;
        most.levelled = most.levelled.max(count(|why| why == Some(Reason::Level)));
        most.filled = most.filled.max(count(|why| why == Some(Reason::Fill)));
        most.balancing = most.balancing.max(count(|why| matches!(why, Some(Reason::Level | Reason::Fill))));
        most.forced = most.forced.max(count(|why| why.is_none_or(Reason::is_forced)));
    }

    pub fn balancing(&self) -> u64 {
        self.levelled + self.filled
    }
}

/// How long the imbalance was above a bound.
#[derive(Default, Debug)]
pub struct Imbalance {
    samples: Vec<f64>,
    pub above: u64,
    above_in_a_row: u64,
    pub longest_above: u64,
}

impl Imbalance {
    pub fn note(&mut self, value: f64, bound: f64) {
        self.samples.push(value);
        self.above_in_a_row = if value >= bound { self.above_in_a_row + 1 } else { 0 };
        self.above += u64::from(value >= bound);
        self.longest_above = self.longest_above.max(self.above_in_a_row);
    }

    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * part) as usize]
    }
}
