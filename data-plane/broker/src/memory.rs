//! Byte budgets: what the broker may hold in memory, and who waits when it holds that much.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use geminga_topic::DelayedBudget;
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

/// The broker's memory, divided by purpose from one limit.
#[derive(Debug)]
pub struct Memory {
    /// Large frames of which a part has come.
    pub receiving: Arc<Budget>,
    /// Messages received and not yet durable.
    pub publishing: Arc<Budget>,
    /// Recent entries kept for consumers that keep up.
    pub tail_cache: Arc<Budget>,
    /// Entries read back from storage and not yet handed to a connection.
    pub read_ahead: Arc<Budget>,
    /// Bytes queued towards clients.
    pub outbound: Arc<Budget>,
    /// Indexes of messages whose time has not come. What is beyond is read from storage again when it is due.
    pub delayed: Arc<DelayedBudget>,
}

impl Memory {
    /// Divides `limit` bytes; what is left over covers metadata, cursors, indexes and the allocator's slack.
    pub fn divide(limit: u64) -> Self {
        Self {
            receiving: Budget::new(limit / 8),
            publishing: Budget::new(limit / 8),
            tail_cache: Budget::new(limit / 4),
            read_ahead: Budget::new(limit / 8),
            outbound: Budget::new(limit / 8),
            delayed: DelayedBudget::new((limit / 32) as usize),
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
