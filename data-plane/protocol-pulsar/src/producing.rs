//! PRODUCER, SEND, CLOSE_PRODUCER.

use std::sync::Arc;

use bytes::Bytes;
use geminga_broker::{BrokerError, Peer, ProducerGrant, ProducerHandle, ProducerRequest, Publish, Topic};
use geminga_flow::Reservation;
use geminga_model::TopicName;
use geminga_topic::producers::AccessMode;
use geminga_wire_pulsar::{Command, proto};
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::{Connection, Gathered, ProducerSlot};
use crate::error::{ConnectionError, error_command, server_error};
use crate::keeping::producer_words;
use crate::left_out::Place;

impl Connection {
    /// Checks one message and adds it to the run of its producer.
    ///
    /// # Errors
    /// The connection is to end.
    pub(crate) fn gather(
        &self,
        send: &proto::CommandSend,
        payload: Bytes,
        gathered: &mut Gathered,
    ) -> Result<(), ConnectionError> {
        let same = gathered.producer.as_ref().is_some_and(|producer| producer.producer_id == send.producer_id);
        if !same || gathered.is_full() {
            gathered.hand_over();
        }
        if !same {
            gathered.producer = match self.producer(send.producer_id) {
                Some(producer) if self.is_in_order(&producer, send)? => Some(producer),
                _ => None,
            };
        }
        if gathered.producer.is_none() {
            // Pulsar ignores messages of a producer that it has closed: the client learns of that by CLOSE_PRODUCER.
            tracing::debug!(address = %self.address, producer_id = send.producer_id, "message of an unknown producer");
            self.left_out.note(send.producer_id, send.sequence_id);
            return Ok(());
        }
        match self.check(send, payload) {
            Ok(publish) => gathered.batch.push(publish),
            Err(error) => {
                gathered.hand_over();
                if let (BrokerError::Checksum, Some(producer)) = (&error, &gathered.producer) {
                    producer.topic.damaged(producer);
                }
                self.send_error(send.producer_id, highest_sequence_id(send), &error);
            }
        }
        Ok(())
    }

    /// Whether no message that was left out has to come before. If one has, the producer is closed once more; the next time, so is
    /// the connection.
    fn is_in_order(&self, producer: &Arc<ProducerHandle>, send: &proto::CommandSend) -> Result<bool, ConnectionError> {
        let (producer_id, sequence_id) = (send.producer_id, send.sequence_id);
        match self.left_out.place(producer_id, sequence_id) {
            Place::InOrder => return Ok(true),
            Place::TooEarly => {}
            Place::Hopeless => return Err(ConnectionError::Passing { producer_id, sequence_id }),
        }
        tracing::info!(address = %self.address, producer_id, sequence_id, topic = %producer.topic.name(),
            "a message passes others that the client has to send again: its producer is closed once more");
        producer.topic.remove_producer(producer);
        self.close_producer(producer_id, None);
        self.flush();
        Ok(false)
    }

    fn check(&self, send: &proto::CommandSend, payload: Bytes) -> Result<Publish, BrokerError> {
        if send.txnid_most_bits.is_some() && send.txnid_least_bits.is_some() {
            return Err(BrokerError::Unsupported("publishing in a transaction".into()));
        }
        let view = geminga_wire_pulsar::parse_payload(&payload)
            .map_err(|error| BrokerError::NotAllowed(format!("message metadata: {error}")))?;
        if !view.verify_checksum() {
            return Err(BrokerError::Checksum);
        }
        let mut meta = geminga_broker::entry_meta(&view);
        if let Some(messages) = send.num_messages
            && messages > 0
        {
            meta.num_messages = messages as u32;
        }
        let limit = self.broker.config().max_message_bytes;
        if payload.len() > limit + 10 * 1024 {
            return Err(BrokerError::NotAllowed(format!(
                "message of {} bytes is over the limit of {limit}",
                payload.len()
            )));
        }
        Ok(Publish {
            sequence_id: send.sequence_id,
            highest_sequence_id: highest_sequence_id(send),
            inner_chunk: meta.num_chunks > 1 && meta.chunk_id + 1 < meta.num_chunks,
            meta,
            payload,
        })
    }

    pub(crate) fn send_error(&self, producer_id: u64, sequence_id: u64, error: &BrokerError) {
        self.send(&Command::from(proto::CommandSendError {
            producer_id,
            sequence_id,
            error: server_error(error) as i32,
            message: error.to_string(),
        }));
    }

    pub(crate) fn create_producer(self: &Arc<Self>, command: proto::CommandProducer) {
        let (producer_id, request_id) = (command.producer_id, command.request_id);
        if let Some(producer) = self.producer(producer_id) {
            // The Java client does so on the same connection after a message has failed.
            producer.connected_again();
            if self.confirm_producer(&producer, &self.producer_success(request_id, &producer, -1, None)) {
                return;
            }
        }
        let room = match self.keep_words(producer_words(&command)) {
            Ok(room) => room,
            Err(error) => return self.send(&error_command(request_id, &error)),
        };
        let cancel = Arc::new(tokio::sync::Notify::new());
        {
            let mut producers = self.producers.lock();
            match producers.get(&producer_id) {
                None => {}
                Some(ProducerSlot::Ready(..) | ProducerSlot::Creating { .. }) => {
                    drop(producers);
                    let error =
                        BrokerError::ServiceNotReady(format!("producer {producer_id} is already being created"));
                    return self.send(&error_command(request_id, &error));
                }
            }
            producers.insert(producer_id, ProducerSlot::Creating { request_id, cancel: cancel.clone() });
        }
        let (connection, permit) = (self.clone(), self.permit());
        tokio::spawn(async move {
            tokio::select! {
                () = connection.producer_task(command, room, permit) => {}
                () = cancel.notified() => {}
            }
        });
    }

    /// Gives `permit` back also when the producer has to wait for its turn, for another one to be closed.
    async fn producer_task(
        self: Arc<Self>,
        command: proto::CommandProducer,
        room: Reservation,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let (producer_id, request_id) = (command.producer_id, command.request_id);
        let granted = match self.open_producer_topic(&command).await {
            Ok((topic, request)) => {
                let waiting = {
                    let connection = self.clone();
                    let name = request.name.clone();
                    move || {
                        connection.producer_waits(request_id, &name);
                        drop(permit);
                    }
                };
                topic.add_producer(request, self.clone(), waiting).await
            }
            Err(error) => Err(error),
        };
        let answer = match granted {
            Ok(ProducerGrant { handle, last_sequence_id, topic_epoch }) => {
                {
                    let mut producers = self.producers.lock();
                    let wanted = !self.closing.load(std::sync::atomic::Ordering::Relaxed)
                        && producers.get(&producer_id).is_some_and(|slot| slot.is_created_by(request_id));
                    if !wanted {
                        drop(producers);
                        handle.topic.remove_producer(&handle);
                        return;
                    }
                    producers.insert(producer_id, ProducerSlot::Ready(handle.clone(), room));
                }
                let success = self.producer_success(request_id, &handle, last_sequence_id, topic_epoch);
                if self.confirm_producer(&handle, &success) {
                    return;
                }
                let error = BrokerError::ServiceNotReady(format!("producer {producer_id} was sent away meanwhile"));
                error_command(request_id, &error)
            }
            Err(error) => {
                {
                    let mut producers = self.producers.lock();
                    if producers.get(&producer_id).is_some_and(|slot| slot.is_created_by(request_id)) {
                        producers.remove(&producer_id);
                    }
                }
                tracing::debug!(address = %self.address, topic = %command.topic, %error, "producer refused");
                error_command(request_id, &error)
            }
        };
        self.send(&answer);
    }

    /// Answers a PRODUCER, if the topic has the producer; otherwise its id is free again. It may have been sent away before it
    /// had its slot; whoever sends it away from now on says so after the answer.
    fn confirm_producer(&self, producer: &Arc<ProducerHandle>, success: &Command) -> bool {
        let is_on = producer.topic.has_producer(producer);
        let mut producers = self.producers.lock();
        if !producers.get(&producer.producer_id).is_some_and(|slot| slot.is_of(producer)) {
            return false;
        }
        if is_on {
            self.queue(success);
        } else {
            producers.remove(&producer.producer_id);
        }
        drop(producers);
        self.outbox.flush();
        is_on
    }

    async fn open_producer_topic(
        &self,
        command: &proto::CommandProducer,
    ) -> Result<(Arc<Topic>, ProducerRequest), BrokerError> {
        let name = TopicName::parse(&command.topic).map_err(|error| BrokerError::InvalidName(error.to_string()))?;
        let topic = self.broker.topic(&name, true).await?;
        let schema_version = match &command.schema {
            Some(schema) => Some(self.broker.add_schema(&name, schema).await?),
            None => {
                self.broker.check_no_schema(&name).await?;
                None
            }
        };
        if let Some(subscription) = command.initial_subscription_name.as_deref().filter(|name| !name.is_empty()) {
            if !topic.has_subscription(subscription) && !self.broker.may_create_subscription(&topic)? {
                return Err(BrokerError::NotAllowed(
                    "Could not create the initial subscription due to the auto subscription creation is not allowed."
                        .into(),
                ));
            }
            topic
                .create_subscription(
                    &Arc::from(subscription),
                    geminga_broker::InitialPosition::Earliest,
                    Default::default(),
                    false,
                )
                .await?;
        }
        let given = command.producer_name.as_deref().unwrap_or_default();
        let name: Arc<str> = if given.is_empty() { self.broker.next_producer_name().into() } else { Arc::from(given) };
        let request = ProducerRequest {
            producer_id: command.producer_id,
            name,
            user_provided_name: !given.is_empty() && command.user_provided_producer_name.unwrap_or(true),
            epoch: command.epoch.unwrap_or(0),
            access_mode: match command.producer_access_mode() {
                proto::ProducerAccessMode::Shared => AccessMode::Shared,
                proto::ProducerAccessMode::Exclusive => AccessMode::Exclusive,
                proto::ProducerAccessMode::WaitForExclusive => AccessMode::WaitForExclusive,
                proto::ProducerAccessMode::ExclusiveWithFencing => AccessMode::ExclusiveWithFencing,
            },
            topic_epoch: command.topic_epoch,
            schema_version,
            metadata: command.metadata.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
            client_version: self.client.get().map(|client| client.version.clone()).unwrap_or_default(),
            supports_partial: self.client.get().is_some_and(|client| client.partial_producer),
            encrypted: command.encrypted.unwrap_or(false),
        };
        Ok((topic, request))
    }

    /// Tells the client that its producer waits for its turn.
    fn producer_waits(&self, request_id: u64, name: &str) {
        self.send(&Command::from(proto::CommandProducerSuccess {
            request_id,
            producer_name: name.to_owned(),
            producer_ready: Some(false),
            ..Default::default()
        }));
    }

    fn producer_success(
        &self,
        request_id: u64,
        producer: &ProducerHandle,
        last_sequence_id: i64,
        topic_epoch: Option<u64>,
    ) -> Command {
        Command::from(proto::CommandProducerSuccess {
            request_id,
            producer_name: producer.name.to_string(),
            last_sequence_id: Some(last_sequence_id),
            // The Java client insists on the field: no version is an empty one.
            schema_version: Some(Bytes::copy_from_slice(producer.schema_version().unwrap_or_default())),
            topic_epoch,
            producer_ready: Some(true),
        })
    }

    pub(crate) fn close_producer_command(self: &Arc<Self>, close: &proto::CommandCloseProducer) {
        let request_id = close.request_id;
        let slot = self.producers.lock().remove(&close.producer_id);
        if let Some(ProducerSlot::Creating { cancel, .. }) = &slot {
            cancel.notify_one();
        }
        let success = Command::from(proto::CommandSuccess { request_id, schema: None });
        let Some(ProducerSlot::Ready(producer, _)) = slot else {
            return self.send(&success);
        };
        self.spawn(|connection| async move {
            // Its messages are answered before the close is.
            producer.drain().await;
            producer.topic.remove_producer(&producer);
            connection.send(&success);
        });
    }
}

/// By which a client knows a batch in an answer: that of its last message.
fn highest_sequence_id(send: &proto::CommandSend) -> u64 {
    send.highest_sequence_id.unwrap_or(send.sequence_id).max(send.sequence_id)
}
