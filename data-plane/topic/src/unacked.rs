//! Memory for what is delivered and not acknowledged, and for what was read and waits for its consumer.
//!
//! All subscriptions share one bound. One may take more while it has at most twice what is left altogether: those that have
//! the most stop first, and there is always room for others. A few entries each may hold whatever the others have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Entries that consumers of a subscription may hold when memory is used up. The budget is looked at once in so many changes.
pub(crate) const ALWAYS: usize = 64;

/// Bytes that many subscriptions may take together.
#[derive(Debug)]
pub struct UnackedBudget {
    limit: usize,
    used: AtomicUsize,
}

impl UnackedBudget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(UnackedBudget { limit, used: AtomicUsize::new(0) })
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one subscription has taken.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<UnackedBudget>,
    bytes: usize,
}

impl Charge {
    pub fn new(budget: Arc<UnackedBudget>) -> Self {
        Charge { budget, bytes: 0 }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn budget(&self) -> &UnackedBudget {
        &self.budget
    }

    /// The subscription has so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            self.budget.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Whether it may have so many more.
    pub fn has_room(&self, more: usize) -> bool {
        let left = self.budget.limit.saturating_sub(self.budget.used() + more);
        self.bytes + more <= 2 * left
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes of a hash table with room for so many items of `T`: a power of two of slots, an eighth of them empty, and a byte of
/// each beside it.
pub(crate) fn table_bytes<T>(capacity: usize) -> usize {
    let slots = match capacity {
        0 => 0,
        1..8 => (capacity + 1).next_power_of_two(),
        _ => (capacity * 8 / 7).next_power_of_two(),
    };
    slots * (size_of::<T>() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_have_the_most_stop_first_and_leave_room() {
        let budget = UnackedBudget::new(1000);
        let mut charges: Vec<Charge> = (0..5).map(|_| Charge::new(budget.clone())).collect();
        let mut grow = |until: usize| {
            for charge in &mut charges[..until] {
                while charge.has_room(1) {
                    charge.set(charge.bytes() + 1);
                }
            }
            charges.iter().map(Charge::bytes).collect::<Vec<_>>()
        };
        assert_eq!(grow(1), [666, 0, 0, 0, 0]);
        assert_eq!(grow(5), [666, 222, 74, 25, 8], "whoever comes has most of what is left");
        assert_eq!(budget.used(), 995);
        charges[0].set(0);
        assert!(charges[1..].iter().all(|charge| charge.has_room(300)), "what comes back is there for all");
        drop(charges);
        assert_eq!(budget.used(), 0);
    }
}
