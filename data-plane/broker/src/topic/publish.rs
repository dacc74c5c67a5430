//! Taking messages in: checks, deduplication, numbering, and the hand-over to storage.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use geminga_ledger::managed_ledger::Action;
use geminga_ledger_client::AppendClass;
use geminga_model::Position;
use geminga_topic::dedup::Verdict;
use geminga_topic::{Entry, EntryMeta};

use super::{Flushes, Life, Origin, PendingEntry, ProducerHandle, Topic, TopicState};
use crate::completions::{Completion, Written};
use crate::error::BrokerError;
use crate::peer::Receipt;
use crate::shared::now_ms;

/// One message or batch as a producer sent it, already checked against its checksum.
pub struct Publish {
    pub sequence_id: u64,
    /// Equal to `sequence_id` unless a batch says more. Clients know a refused batch by it.
    pub highest_sequence_id: u64,
    /// What the broker needs of the message's metadata.
    pub meta: EntryMeta,
    /// Checksum, metadata and payload exactly as received.
    pub payload: Bytes,
    /// Not the last chunk of a chunked message: its sequence id repeats.
    pub inner_chunk: bool,
}

/// Room for the broker entry metadata before each entry: magic, size, timestamp and index.
const PREFIX_BYTES: usize = 32;

impl Topic {
    /// Takes a run of messages of one producer. Each is answered to the producer's peer later, in order: a receipt once
    /// it is durable, or an error.
    ///
    /// The bytes are counted in `memory.publishing` until then; the caller stops reading from the socket while that
    /// budget is exhausted.
    pub fn publish(&self, producer: &Arc<ProducerHandle>, batch: &mut Vec<Publish>) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        if matches!(state.life, Life::Closing | Life::Closed) {
            // Its client is told that the producer is closed, and sends again what has no receipt. Of an answer to a message
            // clients break the connection, and wait before they make another.
            if let Some(first) = batch.first() {
                producer.peer.left_out(producer.producer_id, first.sequence_id);
            }
            batch.clear();
            return;
        }
        if let Some(error) = self.refusal(&state, producer) {
            for publish in batch.drain(..) {
                producer.refuse(publish.highest_sequence_id, &error);
            }
            drop(state);
            producer.peer.flush();
            return;
        }

        self.throttle(&mut state, producer, batch, &mut flushes);
        if self.name.is_persistent() {
            self.store(&mut state, producer, batch, &mut flushes);
        } else {
            self.pass_on(&mut state, producer, batch, &mut flushes);
        }
        drop(state);
        flushes.run();
    }

    /// A message did not arrive as it was sent. Its client repeats it, perhaps on the same connection: with deduplication, none
    /// may pass it before that.
    pub fn damaged(&self, producer: &ProducerHandle) {
        if self.state.lock().dedup.is_some() {
            producer.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Hands a run of messages to the managed ledger, without those that deduplication knows.
    fn store(
        &self,
        state: &mut TopicState,
        producer: &Arc<ProducerHandle>,
        batch: &mut Vec<Publish>,
        flushes: &mut Flushes,
    ) {
        let mut bytes = 0u64;
        let mut messages = 0u64;
        let mut chunks = 0u64;
        let mut entries = Vec::with_capacity(batch.len());
        for publish in batch.drain(..) {
            if !self.admit(state, producer, &publish, flushes) {
                continue;
            }
            messages += u64::from(publish.meta.num_messages);
            chunks += u64::from(publish.meta.num_chunks > 1);
            bytes += publish.payload.len() as u64;
            entries.push(PendingEntry {
                payload: publish.payload,
                meta: publish.meta,
                origin: Origin {
                    producer: producer.clone(),
                    sequence_id: publish.sequence_id,
                    highest_sequence_id: publish.highest_sequence_id,
                    inner_chunk: publish.inner_chunk,
                    seen_by: state.dedup.as_ref().and(state.dedup_stored.cursor_id),
                },
            });
        }
        if !entries.is_empty() {
            producer.in_flight.fetch_add(entries.len(), Ordering::Relaxed);
            producer.messages.fetch_add(messages, Ordering::Relaxed);
            producer.bytes.fetch_add(bytes, Ordering::Relaxed);
            if chunks > 0 {
                producer.chunks.fetch_add(chunks, Ordering::Relaxed);
                self.counters.chunked.store(true, Ordering::Relaxed);
            }
            self.shared.memory.publishing.take(bytes);
            producer.peer.published(bytes);
            state.ledger.append(now_ms(), entries);
            self.carry_out(state, flushes);
        }
    }

    /// Whether the message is to be stored; otherwise it has been answered.
    fn admit(
        &self,
        state: &mut TopicState,
        producer: &ProducerHandle,
        publish: &Publish,
        flushes: &mut Flushes,
    ) -> bool {
        if producer.failed.load(Ordering::Relaxed) {
            let error = "an earlier message of this producer failed: it has to connect again";
            producer.refuse(publish.highest_sequence_id, &BrokerError::ServiceNotReady(error.into()));
            flushes.add(&producer.peer);
            return false;
        }
        let Some(dedup) = &mut state.dedup else { return true };
        match dedup.check(&producer.name, publish.sequence_id, publish.highest_sequence_id, publish.inner_chunk) {
            Verdict::New => true,
            Verdict::Duplicate => {
                // It came in, as Pulsar counts.
                let (messages, bytes) = (u64::from(publish.meta.num_messages), publish.payload.len() as u64);
                producer.messages.fetch_add(messages, Ordering::Relaxed);
                producer.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.counters.messages_in.fetch_add(messages, Ordering::Relaxed);
                self.counters.bytes_in.fetch_add(bytes, Ordering::Relaxed);
                producer.peer.receipts(&[Receipt {
                    producer_id: producer.producer_id,
                    sequence_id: publish.sequence_id,
                    highest_sequence_id: publish.highest_sequence_id,
                    position: None,
                }]);
                flushes.add(&producer.peer);
                false
            }
            Verdict::Unknown => {
                let error = BrokerError::ServiceNotReady(
                    "the first sending of this message is not durable yet: it is not known whether it is a duplicate"
                        .into(),
                );
                producer.refuse(publish.highest_sequence_id, &error);
                flushes.add(&producer.peer);
                false
            }
        }
    }

    fn refusal(&self, state: &TopicState, producer: &ProducerHandle) -> Option<BrokerError> {
        if let Err(error) = state.check_serving(&self.name) {
            return Some(error);
        }
        if state.ledger.terminated().is_some() {
            return Some(BrokerError::TopicTerminated(self.name.to_string()));
        }
        if !state.producer_handles.contains_key(&producer.key) {
            return Some(BrokerError::ProducerFenced(format!(
                "producer {} is not connected to topic {} any more",
                producer.name, self.name
            )));
        }
        None
    }

    /// Does what the managed ledger asks for. Writes are handed to storage under the topic's lock, so that they reach
    /// it in the order of their positions.
    pub(super) fn carry_out(&self, state: &mut TopicState, flushes: &mut Flushes) {
        while let Some(action) = state.ledger.poll_action() {
            match action {
                Action::Write { ledger_id, first_entry, first_index, entries } => {
                    self.write(state, ledger_id, first_entry as u64, first_index, entries);
                }
                Action::Fail { entries, reason } => {
                    let error = self.write_refused(&reason);
                    self.fail(state, entries.into_iter().map(Written::from), &error, flushes);
                }
                Action::CreateLedger => self.create_ledger(),
                Action::SaveRecord => self.save_record(),
                Action::Seal { ledger_id, .. } => self.seal(ledger_id),
                Action::DeleteLedgers(ledgers) => self.delete_ledgers(ledgers),
            }
        }
        if state.ledger.is_fenced() && state.life == Life::Serving {
            self.leave(state);
        }
    }

    fn write(
        &self,
        state: &mut TopicState,
        ledger_id: u64,
        first_entry: u64,
        first_index: u64,
        entries: Vec<PendingEntry>,
    ) {
        let caching = !state.consumers.is_empty();
        let numbered = self.shared.config.broker_entry_metadata;
        let now = now_ms();
        let mut next_index = first_index;
        let mut prefixes = BytesMut::with_capacity(if numbered { entries.len() * PREFIX_BYTES } else { 0 });
        let mut parts = Vec::with_capacity(entries.len());
        let mut written = Vec::with_capacity(entries.len());
        for (mut entry, entry_id) in entries.into_iter().zip(first_entry..) {
            next_index += u64::from(entry.meta.num_messages);
            if numbered {
                entry.meta.broker_timestamp = now;
                entry.meta.index = Some(next_index - 1);
            }
            match (entry_id, numbered) {
                // The first one says whose the ledger is.
                (0, _) => geminga_wire_pulsar::encode_labelled_broker_entry_metadata(
                    now,
                    entry.meta.index,
                    self.name.as_str(),
                    &mut prefixes,
                ),
                (_, true) => geminga_wire_pulsar::encode_broker_entry_metadata(now, entry.meta.index, &mut prefixes),
                (_, false) => {}
            }
            if caching {
                let position = Position { ledger_id, entry_id: entry_id as i64 };
                self.cache(state, Entry { position, meta: entry.meta, data: entry.payload.clone() });
            }
            parts.push([prefixes.split().freeze(), entry.payload]);
            let bytes = parts.last().map_or(0, |[_, payload]| payload.len() as u64);
            written.push(Written { bytes, meta: entry.meta, origin: entry.origin });
        }
        let topic = self.arc();
        let completions = self.shared.completions.clone();
        let started = Instant::now();
        completions.begin(&topic);
        self.shared.ledgers.append(
            ledger_id,
            first_entry,
            parts,
            AppendClass::Message,
            Box::new(move |result| {
                let finished = Instant::now();
                completions.push(Completion { topic, ledger_id, first_entry, written, result, started, finished });
            }),
        );
    }

    /// Keeps an entry for the consumers that are connected; makes room in this topic's cache when the budget is used up.
    fn cache(&self, state: &mut TopicState, entry: Entry) {
        let budget = &self.shared.memory.tail_cache;
        let bytes = entry.data.len() as u64;
        if budget.exhausted() {
            let freed = state.cache.evict_bytes(bytes as usize) as u64;
            budget.give_back(freed);
            if freed < bytes {
                // A gap would break the cache's run of entries: start over behind this one.
                budget.give_back(state.cache.clear() as u64);
                return;
            }
        }
        let before = state.cache.bytes() as u64;
        state.cache.insert(entry);
        let after = state.cache.bytes() as u64;
        if after >= before { budget.take(after - before) } else { budget.give_back(before - after) }
    }
}

impl From<PendingEntry> for Written {
    fn from(entry: PendingEntry) -> Self {
        Written { bytes: entry.payload.len() as u64, meta: entry.meta, origin: entry.origin }
    }
}
