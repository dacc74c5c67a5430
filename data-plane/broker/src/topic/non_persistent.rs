//! Non-persistent topics: a message goes to whoever is connected and can take it, is answered at once, and is forgotten.
//!
//! Such a topic has a record in metadata like any other, so that it can be listed, partitioned and deleted, but no ledger
//! and no cursor: its subscriptions live as long as it is loaded. Nothing is queued except on connections, within their
//! bounds. Pulsar calls every such message 0:0; here each has a position of its own, as acknowledgement tracking and
//! duplicate detection in clients expect: the time when the topic was loaded stands for a ledger.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use geminga_topic::Entry;

use super::{Flushes, ProducerHandle, Publish, Topic, TopicState};
use crate::error::{BrokerError, Result};
use crate::peer::Receipt;
use crate::shared::now_ms;

impl Topic {
    /// Takes a run of messages, answers them, and offers each to every subscription.
    pub(super) fn pass_on(
        &self,
        state: &mut TopicState,
        producer: &ProducerHandle,
        batch: &mut Vec<Publish>,
        flushes: &mut Flushes,
    ) {
        let (mut bytes, mut messages) = (0u64, 0u64);
        let mut receipts = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        for publish in batch.drain(..) {
            let position = state.next_unstored;
            state.next_unstored = position.next();
            bytes += publish.payload.len() as u64;
            messages += u64::from(publish.meta.num_messages);
            receipts.push(Receipt {
                producer_id: producer.producer_id,
                sequence_id: publish.sequence_id,
                highest_sequence_id: publish.highest_sequence_id,
                position: Some(position),
            });
            entries.push(Entry { position, meta: publish.meta, data: publish.payload });
        }
        producer.messages.fetch_add(messages, Ordering::Relaxed);
        producer.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counters.messages_in.fetch_add(messages, Ordering::Relaxed);
        self.counters.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        producer.peer.receipts(&receipts);
        flushes.add(&producer.peer);
        let names: Vec<Arc<str>> = state.subscriptions.keys().cloned().collect();
        for name in names {
            self.offer(state, &name, &entries, flushes);
        }
    }

    fn offer(&self, state: &mut TopicState, name: &Arc<str>, entries: &[Entry], flushes: &mut Flushes) {
        let Some(sub) = state.subscriptions.get_mut(name) else { return };
        let now = now_ms();
        let mut deliveries = Vec::new();
        for entry in entries {
            if !sub.core.offer(now, entry, &mut deliveries) {
                sub.dropped += u64::from(entry.meta.num_messages);
            }
        }
        if !deliveries.is_empty() {
            self.deliver(state, name, &mut deliveries, flushes);
        }
    }

    /// Refuses what only stored messages allow, in Pulsar's words.
    pub(super) fn needs_storage(&self, what: &str) -> Result<()> {
        if self.name.is_persistent() {
            return Ok(());
        }
        Err(BrokerError::NotAllowed(format!("{what} on a non-persistent topic is not allowed")))
    }
}
