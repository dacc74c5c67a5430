//! Byte budgets: what the broker may hold in memory, and who waits when it holds that much.

use std::sync::Arc;

use geminga_flow::Budget;
use geminga_topic::DelayedBudget;

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
    /// What clients have the broker keep while they are connected: properties, lists of topics that they watch.
    pub kept: Arc<Budget>,
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
            kept: Budget::new(limit / 16),
            delayed: DelayedBudget::new((limit / 32) as usize),
        }
    }
}
