//! Byte budgets: what the broker may hold in memory, and who waits when it holds that much.

use std::sync::Arc;

use geminga_flow::Budget;
use geminga_topic::{DelayedBudget, UnackedBudget};

/// The broker's memory, divided by purpose from one limit.
#[derive(Debug)]
pub struct Memory {
    /// Large frames of which a part has come.
    pub receiving: Arc<Budget>,
    /// Bodies over HTTP: of requests until they are answered, of answers until they are taken.
    pub requests: Arc<Budget>,
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
    /// What consumers hold of Shared and Key_Shared subscriptions, and what waits for them.
    pub unacked: Arc<UnackedBudget>,
}

impl Memory {
    /// Divides `limit` bytes; what is left over covers metadata, cursors, indexes and the allocator's slack.
    pub fn divide(limit: u64) -> Self {
        Self {
            receiving: Budget::new(limit / 8),
            requests: Budget::new(limit / 32),
            publishing: Budget::new(limit / 8),
            tail_cache: Budget::new(limit / 4),
            read_ahead: Budget::new(limit / 8),
            outbound: Budget::new(limit / 8),
            kept: Budget::new(limit / 16),
            delayed: DelayedBudget::new((limit / 32) as usize),
            unacked: UnackedBudget::new((limit / 16) as usize),
        }
    }

    /// Each purpose with the bytes that it takes and those that it may.
    pub(crate) fn budgets(&self) -> [(&'static str, u64, u64); 9] {
        // All fields, lest a new one be forgotten.
        let Self { receiving, requests, publishing, tail_cache, read_ahead, outbound, kept, delayed, unacked } = self;
        let of = |purpose, budget: &Budget| (purpose, budget.used(), budget.limit());
        [
            of("receiving", receiving),
            of("requests", requests),
            of("publishing", publishing),
            of("tail_cache", tail_cache),
            of("read_ahead", read_ahead),
            of("outbound", outbound),
            of("kept", kept),
            ("delayed", delayed.used() as u64, delayed.limit() as u64),
            ("unacked", unacked.used() as u64, unacked.limit() as u64),
        ]
    }
}
