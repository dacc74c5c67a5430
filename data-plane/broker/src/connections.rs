//! How many connections of clients there are and were.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Connections {
    created: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
}

/// Totals since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub created: u64,
    pub accepted: u64,
    pub refused: u64,
    pub closed: u64,
}

impl Connections {
    pub fn created(&self) {
        self.created.fetch_add(1, Ordering::Relaxed);
    }

    /// Its client has said hello, and was answered.
    pub fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended; `accepted` says whether its client had said hello.
    pub fn closed(&self, accepted: bool) {
        if !accepted {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // What ended first: more have come than have ended.
        let (closed, refused) = (read(&self.closed), read(&self.refused));
        Counts { created: read(&self.created), accepted: read(&self.accepted), refused, closed }
    }
}
