//! Producers come and go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use geminga_model::TopicName;
use geminga_topic::producers::{AccessMode, Action, Admission, ProducerError, ProducerSpec};
use tokio::sync::oneshot;

use super::liveness::Refusal;
use super::{Flushes, ProducerHandle, Topic, TopicState, next_key};
use crate::error::{BrokerError, Result};
use crate::peer::Peer;
use crate::shared::now_ms;

/// A client's wish to produce.
#[derive(Clone)]
pub struct ProducerRequest {
    pub producer_id: u64,
    /// Unique within the topic.
    pub name: Arc<str>,
    pub user_provided_name: bool,
    /// Grows with each reconnection of the same producer.
    pub epoch: u64,
    pub access_mode: AccessMode,
    /// The topic epoch that the producer had before it reconnected.
    pub topic_epoch: Option<u64>,
    pub schema_version: Option<Vec<u8>>,
    pub metadata: BTreeMap<String, String>,
    pub client_version: String,
    /// The client numbers its producers on partitions as parts of one.
    pub supports_partial: bool,
    pub encrypted: bool,
}

/// A producer that was let in.
pub struct ProducerGrant {
    pub handle: Arc<ProducerHandle>,
    /// Highest sequence id stored for this name, -1 when there is none or deduplication is off.
    pub last_sequence_id: i64,
    pub topic_epoch: Option<u64>,
}

impl ProducerHandle {
    /// Version of the schema the producer works with, as clients see it (8 bytes, big endian).
    pub fn schema_version(&self) -> Option<&[u8]> {
        self.schema_version.as_deref()
    }

    /// Answers a message that is not stored; the client is to connect again and repeat what it has no receipt for.
    pub(super) fn refuse(&self, sequence_id: u64, error: &BrokerError) {
        self.failed.store(true, Ordering::Relaxed);
        self.peer.send_failed(self.producer_id, sequence_id, error);
    }

    /// Its client sends again what it has no receipt for, beginning with the first.
    pub fn connected_again(&self) {
        self.failed.store(false, Ordering::Relaxed);
    }

    /// Waits until every message taken from the producer has been answered.
    pub async fn drain(&self) {
        loop {
            let drained = self.drained.notified();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            drained.await;
        }
    }
}

/// A producer that has asked to join and is not in yet.
pub(super) struct Joining {
    handle: Arc<ProducerHandle>,
    /// Told when its turn has come, or never will.
    turn: oneshot::Sender<Result<Option<u64>>>,
}

/// What came of an attempt to let a producer in.
struct Joined {
    key: u64,
    admission: Admission,
    came: oneshot::Receiver<Result<Option<u64>>>,
}

/// Takes a producer out again if the wait for its turn is given up.
struct LeaveOnDrop<'a> {
    topic: &'a Topic,
    key: Option<u64>,
}

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.topic.remove_producer_key(key);
        }
    }
}

impl Topic {
    /// Lets a producer in. One that has to wait for its turn gets `waiting` called, and its answer later; dropping the
    /// future gives the turn up.
    pub async fn add_producer(
        &self,
        request: ProducerRequest,
        peer: Arc<dyn Peer>,
        waiting: impl FnOnce() + Send,
    ) -> Result<ProducerGrant> {
        let Joined { key, admission, came } = match self.join(&request, &peer) {
            Ok(joined) => joined,
            Err(refusal) => {
                refusal.unless_gone().await?;
                self.join(&request, &peer).map_err(|refusal| refusal.error)?
            }
        };
        let mut leave = LeaveOnDrop { topic: self, key: Some(key) };
        if admission == Admission::Queued {
            waiting();
        }
        let topic_epoch = came.await.unwrap_or_else(|_| {
            Err(BrokerError::ServiceNotReady(format!("topic {} was closed meanwhile", self.name)))
        })?;
        let state = self.state.lock();
        let Some(handle) = state.producer_handles.get(&key).cloned() else {
            // A topic that closes has sent it away to find the topic again.
            state.check_serving(&self.name)?;
            return Err(BrokerError::ProducerFenced("Fenced out".into()));
        };
        let last_sequence_id = state.dedup.as_ref().map_or(-1, |dedup| dedup.last_sequence_id(&handle.name));
        drop(state);
        leave.key = None;
        Ok(ProducerGrant { handle, last_sequence_id, topic_epoch })
    }

    /// One attempt to let a producer in.
    fn join(&self, request: &ProducerRequest, peer: &Arc<dyn Peer>) -> std::result::Result<Joined, Refusal> {
        let key = next_key();
        let spec = ProducerSpec {
            key,
            name: request.name.clone(),
            connection: peer.connection_id(),
            producer_id: request.producer_id,
            epoch: request.epoch,
            access_mode: request.access_mode,
            topic_epoch: request.topic_epoch,
        };
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        self.check_producer(&state, request)?;
        let admission = state.producers.add(spec).map_err(|error| self.producer_refusal(&state, error, peer))?;
        let (turn, came) = oneshot::channel();
        let handle = Arc::new(self.producer_handle(key, request.clone(), peer.clone()));
        state.joining.insert(key, Joining { handle, turn });
        match admission {
            Admission::Ready { topic_epoch } => self.let_in(&mut state, key, topic_epoch),
            Admission::StoreEpoch { epoch } => self.store_epoch(key, epoch),
            Admission::Queued => {}
        }
        self.carry_out_producers(&mut state, &mut flushes);
        drop(state);
        flushes.run();
        Ok(Joined { key, admission, came })
    }

    /// Names the connections that are in the way.
    fn producer_refusal(&self, state: &TopicState, error: ProducerError, asking: &Arc<dyn Peer>) -> Refusal {
        let holder = match &error {
            ProducerError::NameTaken { by, .. } => Some(*by),
            ProducerError::Busy(_) | ProducerError::ExclusiveTaken(_) | ProducerError::SharedPresent => None,
            _ => return producer_error(error, &self.name).into(),
        };
        let joining = state.joining.values().map(|joining| &joining.handle);
        let present = state.producer_handles.values().chain(joining);
        let holders = present.filter(|handle| holder.is_none_or(|key| handle.key == key)).map(|handle| &handle.peer);
        Refusal::because_of(producer_error(error, &self.name), asking, holders)
    }

    fn producer_handle(&self, key: u64, request: ProducerRequest, peer: Arc<dyn Peer>) -> ProducerHandle {
        ProducerHandle {
            key,
            producer_id: request.producer_id,
            name: request.name,
            topic: self.arc(),
            peer,
            schema_version: request.schema_version,
            metadata: request.metadata,
            client_version: request.client_version,
            supports_partial: request.supports_partial,
            connected_at: now_ms(),
            access_mode: request.access_mode,
            in_flight: Default::default(),
            failed: Default::default(),
            drained: Default::default(),
            messages: Default::default(),
            bytes: Default::default(),
            chunks: Default::default(),
        }
    }

    pub fn has_producer(&self, producer: &ProducerHandle) -> bool {
        self.state.lock().producer_handles.contains_key(&producer.key)
    }

    /// Takes a producer off, whether or not it still is on.
    pub fn remove_producer(&self, producer: &ProducerHandle) {
        self.remove_producer_key(producer.key);
    }

    fn remove_producer_key(&self, key: u64) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        self.take_producer(&mut state, key, &mut flushes);
        drop(state);
        flushes.run();
    }

    fn take_producer(&self, state: &mut TopicState, key: u64, flushes: &mut Flushes) {
        if let Some(handle) = state.producer_handles.remove(&key)
            && let Some(dedup) = &mut state.dedup
        {
            dedup.producer_removed(&handle.name, now_ms());
        }
        state.joining.remove(&key);
        state.producers.remove(key);
        state.last_active_at = now_ms();
        self.carry_out_producers(state, flushes);
    }

    /// Sends the producers away to connect again, which a terminated topic refuses. They have to hear of that before their
    /// messages fail: the Go client forgets a producer whose message fails so, and what waits in it.
    pub(super) fn close_producers(&self, state: &mut TopicState, flushes: &mut Flushes) {
        while let Some(producer) = state.producer_handles.values().next().cloned() {
            producer.peer.close_producer(producer.producer_id, None);
            flushes.add(&producer.peer);
            self.take_producer(state, producer.key, flushes);
        }
    }

    fn let_in(&self, state: &mut TopicState, key: u64, topic_epoch: Option<u64>) {
        if let Some(Joining { handle, turn }) = state.joining.remove(&key) {
            if let Some(dedup) = &mut state.dedup {
                dedup.producer_added(&handle.name, now_ms());
            }
            state.producer_handles.insert(key, handle);
            // Who gave up has a guard that takes the producer out again.
            let _ = turn.send(Ok(topic_epoch));
        }
    }

    fn carry_out_producers(&self, state: &mut TopicState, flushes: &mut Flushes) {
        while let Some(action) = state.producers.poll_action() {
            match action {
                Action::Close { key, replaced } => {
                    let Some(producer) = state.producer_handles.remove(&key) else { continue };
                    if let Some(dedup) = &mut state.dedup {
                        dedup.producer_removed(&producer.name, now_ms());
                    }
                    if !replaced {
                        producer.peer.close_producer(producer.producer_id, None);
                        flushes.add(&producer.peer);
                    }
                }
                Action::Fail { key } => refuse(state, key, ProducerError::FencedOut),
                Action::StoreEpoch { key, epoch } => self.store_epoch(key, epoch),
            }
        }
    }

    /// Stores a new topic epoch; its exclusive producer is let in when that is done.
    fn store_epoch(&self, key: u64, epoch: u64) {
        let topic = self.arc();
        tokio::spawn(async move {
            let stored = topic.change_record(|record| record.epoch = Some(epoch)).await;
            if let Err(error) = &stored {
                tracing::error!(topic = %topic.name, epoch, %error, "could not store the topic epoch");
            }
            let mut flushes = Flushes::default();
            let mut state = topic.state.lock();
            match state.producers.epoch_stored(key, stored.is_ok()) {
                Some(Ok(Admission::Ready { topic_epoch })) => topic.let_in(&mut state, key, topic_epoch),
                Some(Err(error)) => refuse(&mut state, key, error),
                Some(Ok(_)) | None => {}
            }
            topic.carry_out_producers(&mut state, &mut flushes);
            drop(state);
            flushes.run();
        });
    }

    fn check_producer(&self, state: &TopicState, request: &ProducerRequest) -> Result<()> {
        state.check_serving(&self.name)?;
        if state.ledger.terminated().is_some() {
            return Err(BrokerError::TopicTerminated(self.name.to_string()));
        }
        if state.policies.encryption_required() && !request.encrypted {
            return Err(BrokerError::PreconditionFailed(format!("Encryption is required in {}", self.name)));
        }
        if let Some(error) = self.backlog_refusal(state) {
            return Err(error);
        }
        Ok(())
    }
}

fn refuse(state: &mut TopicState, key: u64, error: ProducerError) {
    if let Some(joining) = state.joining.remove(&key) {
        let _ = joining.turn.send(Err(producer_error(error, &joining.handle.topic.name)));
    }
}

fn producer_error(error: ProducerError, topic: &TopicName) -> BrokerError {
    if error.is_fenced() {
        return BrokerError::ProducerFenced(error.to_string());
    }
    match error {
        ProducerError::NotStored => BrokerError::Metadata(error.to_string()),
        // As Pulsar words them.
        ProducerError::NameTaken { .. } => BrokerError::ProducerBusy(format!("{error} '{topic}'")),
        ProducerError::MaxProducers => {
            BrokerError::ProducerBusy(format!("Topic '{topic}' reached max producers limit"))
        }
        _ => BrokerError::ProducerBusy(error.to_string()),
    }
}
