//! A bound in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A bound in bytes shared by many holders.
///
/// A reservation may overshoot the limit by the one request that crosses it; nobody gets a further one until enough has
/// been given back.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    freed: Notify,
}

impl Budget {
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), freed: Notify::new() })
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn exhausted(&self) -> bool {
        self.used() >= self.limit
    }

    /// Takes `bytes` whether or not they fit; the caller looks at [`Budget::exhausted`] and pushes back by itself.
    pub fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what [`Budget::take`] or a successful [`Budget::try_take`] took.
    pub fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "gave back {bytes} of {before} bytes");
        if before >= self.limit && before - bytes < self.limit {
            self.freed.notify_waiters();
        }
    }

    /// Takes `bytes` if the budget is not exhausted yet.
    pub fn try_take(&self, bytes: u64) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < self.limit).then_some(used + bytes))
            .is_ok()
    }

    /// Waits until the budget is not exhausted.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if !self.exhausted() {
                return;
            }
            freed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_until_bytes_come_back() {
        let budget = Budget::new(100);
        assert!(budget.try_take(99));
        assert!(budget.try_take(50), "the request that crosses the limit is served");
        assert!(!budget.try_take(1));
        budget.give_back(50);
        assert!(budget.try_take(1));
    }
}
