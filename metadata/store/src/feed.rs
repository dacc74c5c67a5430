//! Change notifications within one process.

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Changes that a slow watcher may be behind before it has to read everything again.
const BACKLOG_CHANGES: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The record was put or deleted, perhaps several times.
    Changed(String),
    /// Changes were missed: read everything under the prefix again.
    Resync,
}

/// The changes under a prefix, in the order of their commits. A watcher that falls too far behind gets
/// [`WatchEvent::Resync`] instead of what it missed; nothing is missed in silence.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    changes: broadcast::Receiver<Arc<str>>,
}

impl Watch {
    /// Waits for the next change; none when the store is closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            match self.changes.recv().await {
                Ok(key) if key.starts_with(&self.prefix) => return Some(WatchEvent::Changed(key.to_string())),
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => return Some(WatchEvent::Resync),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// Tells watchers about committed changes. A backend owns one and publishes after each commit.
#[derive(Debug, Clone)]
pub struct ChangeFeed {
    changes: broadcast::Sender<Arc<str>>,
}

impl Default for ChangeFeed {
    fn default() -> Self {
        ChangeFeed { changes: broadcast::Sender::new(BACKLOG_CHANGES) }
    }
}

impl ChangeFeed {
    pub fn has_watchers(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    pub fn publish<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        if self.has_watchers() {
            for key in keys {
                // Fails only when the last watcher has just gone.
                let _ = self.changes.send(key.into());
            }
        }
    }

    pub fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), changes: self.changes.subscribe() }
    }
}
