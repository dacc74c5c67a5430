//! Room for frames of which a part has come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::Budget;

/// The room that a large frame takes in memory until it is complete.
pub struct UnfinishedFrame {
    budget: Arc<Budget>,
    bytes: u64,
    since: Instant,
}

impl UnfinishedFrame {
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0, since: Instant::now() }
    }

    /// What it takes now, 0 between large frames.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there was room for a frame of that size, which is taken then.
    pub fn claim(&mut self, bytes: u64) -> bool {
        let claimed = self.budget.try_take(bytes);
        if claimed {
            self.bytes = bytes;
            self.since = Instant::now();
        }
        claimed
    }

    /// Waits until [`UnfinishedFrame::claim`] may succeed.
    pub async fn room(&self) {
        self.budget.room().await;
    }

    /// Whether others wait for the room that this one has had for longer than `patience`.
    pub fn is_in_the_way(&self, patience: Duration) -> bool {
        self.since.elapsed() > patience && self.budget.exhausted()
    }

    /// The frame is complete.
    pub fn release(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for UnfinishedFrame {
    fn drop(&mut self) {
        self.release();
    }
}
