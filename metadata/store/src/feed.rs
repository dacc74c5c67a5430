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

/// What goes to every watcher, whatever its prefix.
#[derive(Debug, Clone)]
enum Change {
    Key(Arc<str>),
    Missed,
}

/// The changes under a prefix, in the order of their commits. A watcher that falls too far behind gets
/// [`WatchEvent::Resync`] instead of what it missed; nothing is missed in silence.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    changes: broadcast::Receiver<Change>,
}

impl Watch {
    /// Waits for the next change; none when the store is closed. Safe to cancel.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        loop {
            match self.changes.recv().await {
                Ok(Change::Key(key)) if key.starts_with(&self.prefix) => {
                    return Some(WatchEvent::Changed(key.to_string()));
                }
                Ok(Change::Key(_)) => continue,
                Ok(Change::Missed) | Err(RecvError::Lagged(_)) => return Some(WatchEvent::Resync),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// Tells watchers about committed changes. A backend owns one and publishes after each commit.
#[derive(Debug, Clone)]
pub struct ChangeFeed {
    changes: broadcast::Sender<Change>,
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
                let _ = self.changes.send(Change::Key(key.into()));
            }
        }
    }

    /// Tells every watcher that changes were missed which nobody can name any more.
    pub fn resync(&self) {
        let _ = self.changes.send(Change::Missed);
    }

    pub fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), changes: self.changes.subscribe() }
    }
}
