//! What every topic of a broker uses.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use geminga_ledger_client::LedgerClient;
use geminga_metadata::Metadata;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::completions::Completions;
use crate::config::BrokerConfig;
use crate::cursors::PendingAcks;
use crate::dynamic::DynamicSettings;
use crate::memory::Memory;
use crate::resting::Departed;
use crate::topic::Topic;
use crate::unsettled::Unsettled;

pub(crate) struct Shared {
    pub config: BrokerConfig,
    pub dynamic: DynamicSettings,
    pub metadata: Metadata,
    pub ledgers: Arc<dyn LedgerClient>,
    pub pending_acks: Arc<PendingAcks>,
    pub memory: Arc<Memory>,
    pub completions: Completions,
    pub ack_flusher: Arc<AckFlusher>,
    pub stages: crate::metrics::Stages,
    pub departed: Departed,
    pub unsettled: Unsettled,
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Writes acknowledgements that nobody waits for, many at a time.
#[derive(Default)]
pub(crate) struct AckFlusher {
    dirty: Mutex<Vec<(Weak<Topic>, Arc<str>)>>,
    wake: Notify,
}

impl AckFlusher {
    pub fn start(interval: Duration) -> Arc<Self> {
        let flusher = Arc::new(Self::default());
        let running = flusher.clone();
        tokio::spawn(async move {
            loop {
                running.wake.notified().await;
                tokio::time::sleep(interval).await;
                running.flush();
            }
        });
        flusher
    }

    pub fn add(&self, topic: Weak<Topic>, subscription: Arc<str>) {
        let mut dirty = self.dirty.lock();
        let first = dirty.is_empty();
        dirty.push((topic, subscription));
        drop(dirty);
        if first {
            self.wake.notify_one();
        }
    }

    pub fn flush(&self) {
        let dirty = std::mem::take(&mut *self.dirty.lock());
        for (topic, subscription) in dirty {
            if let Some(topic) = topic.upgrade() {
                topic.flush_acks(&subscription);
            }
        }
    }
}
