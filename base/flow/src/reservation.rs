//! A part of a budget.

use std::sync::Arc;

use crate::budget::Budget;

/// Bytes of a budget, which are given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    /// `None` when the budget is used up; of nothing there is always enough.
    pub fn new(budget: &Arc<Budget>, bytes: u64) -> Option<Self> {
        let mut reservation = Self { budget: budget.clone(), bytes: 0 };
        reservation.resize(bytes).then_some(reservation)
    }

    /// False, and nothing changed, when it would grow and the budget is used up.
    pub fn resize(&mut self, bytes: u64) -> bool {
        if bytes > self.bytes && !self.budget.try_take(bytes - self.bytes) {
            return false;
        }
        self.budget.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_what_it_has_for_as_long_as_it_is_there() {
        let budget = Budget::new(100);
        let mut some = Reservation::new(&budget, 60).unwrap();
        let more = Reservation::new(&budget, 40).unwrap();
        assert!(Reservation::new(&budget, 1).is_none());
        assert!(Reservation::new(&budget, 0).is_some());
        assert!(!some.resize(61));
        assert!(some.resize(10));
        assert_eq!(budget.used(), 50);
        drop(more);
        assert!(some.resize(70));
        assert_eq!(budget.used(), 70);
        drop(some);
        assert_eq!(budget.used(), 0);
    }
}
