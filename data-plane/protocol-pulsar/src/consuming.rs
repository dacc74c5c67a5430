//! SUBSCRIBE, FLOW, ACK, REDELIVER_UNACKNOWLEDGED_MESSAGES, SEEK and the rest that consumers send.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use geminga_broker::{BrokerError, ConsumerHandle, InitialPosition, SubscribeRequest};
use geminga_flow::Reservation;
use geminga_model::{Position, TopicName};
use geminga_topic::{AckRequest, ConsumerSpec, IndividualAck, KeySharedMode, KeySharedSpec, SubscriptionType};
use geminga_wire_pulsar::proto::ServerError;
use geminga_wire_pulsar::{Command, proto};

use crate::connection::{Connection, ConsumerSlot};
use crate::error::{error_command, server_error};
use crate::keeping::consumer_words;

/// Names of cursors that Pulsar has for itself.
const DEDUPLICATION_CURSOR: &str = "pulsar.dedup";
const REPLICATOR_PREFIX: &str = "pulsar.repl";

/// A position as the wire has it; what Pulsar calls earliest and latest are -1:-1 and the largest numbers.
pub(crate) fn position(id: &proto::MessageIdData) -> Position {
    if id.ledger_id as i64 == -1 && id.entry_id as i64 == -1 {
        return Position::EARLIEST;
    }
    if id.ledger_id == i64::MAX as u64 && id.entry_id == i64::MAX as u64 {
        return Position::LATEST;
    }
    Position { ledger_id: id.ledger_id, entry_id: id.entry_id as i64 }
}

impl Connection {
    pub(crate) fn subscribe(self: &Arc<Self>, command: proto::CommandSubscribe) {
        let (consumer_id, request_id) = (command.consumer_id, command.request_id);
        if let Some(consumer) = self.consumer(consumer_id)
            && self.confirm_consumer(&consumer, request_id)
        {
            return;
        }
        let room = match self.keep_words(consumer_words(&command)) {
            Ok(room) => room,
            Err(error) => return self.send(&error_command(request_id, &error)),
        };
        {
            let mut consumers = self.consumers.lock();
            match consumers.get(&consumer_id) {
                None => {}
                Some(ConsumerSlot::Ready(..) | ConsumerSlot::Creating { .. }) => {
                    drop(consumers);
                    let error =
                        BrokerError::ServiceNotReady(format!("consumer {consumer_id} is already being created"));
                    return self.send(&error_command(request_id, &error));
                }
            }
            consumers.insert(consumer_id, ConsumerSlot::Creating { request_id });
        }
        self.spawn(|connection| async move { connection.subscribe_task(command, room).await });
    }

    async fn subscribe_task(self: Arc<Self>, command: proto::CommandSubscribe, room: Reservation) {
        let (consumer_id, request_id) = (command.consumer_id, command.request_id);
        match self.open_subscription(&command).await {
            Ok(consumer) => {
                {
                    let mut consumers = self.consumers.lock();
                    let wanted = !self.closing.load(Ordering::Relaxed)
                        && consumers.get(&consumer_id).is_some_and(|slot| slot.is_created_by(request_id));
                    if !wanted {
                        drop(consumers);
                        consumer.topic.remove_consumer(&consumer);
                        return;
                    }
                    consumers.insert(consumer_id, ConsumerSlot::Ready(consumer.clone(), room));
                }
                if self.confirm_consumer(&consumer, request_id) {
                    return consumer.topic.consumer_ready(&consumer);
                }
                let error = BrokerError::ServiceNotReady(format!("consumer {consumer_id} was sent away meanwhile"));
                self.send(&error_command(request_id, &error));
            }
            Err(error) => {
                {
                    let mut consumers = self.consumers.lock();
                    if consumers.get(&consumer_id).is_some_and(|slot| slot.is_created_by(request_id)) {
                        consumers.remove(&consumer_id);
                    }
                }
                tracing::debug!(address = %self.address, topic = %command.topic, %error, "consumer refused");
                self.send(&error_command(request_id, &error));
            }
        }
    }

    /// Answers a SUBSCRIBE, if the topic has the consumer; otherwise its id is free again. It may have been sent away before it
    /// had its slot; whoever sends it away from now on says so after the answer.
    fn confirm_consumer(&self, consumer: &Arc<ConsumerHandle>, request_id: u64) -> bool {
        let is_on = consumer.topic.has_consumer(consumer);
        let mut consumers = self.consumers.lock();
        if !consumers.get(&consumer.consumer_id).is_some_and(|slot| slot.is_of(consumer)) {
            return false;
        }
        if is_on {
            self.queue(&Command::from(proto::CommandSuccess { request_id, schema: None }));
        } else {
            consumers.remove(&consumer.consumer_id);
        }
        drop(consumers);
        self.outbox.flush();
        is_on
    }

    async fn open_subscription(
        self: &Arc<Self>,
        command: &proto::CommandSubscribe,
    ) -> Result<Arc<ConsumerHandle>, BrokerError> {
        let name = TopicName::parse(&command.topic).map_err(|error| BrokerError::InvalidName(error.to_string()))?;
        check_subscription(command, &name)?;
        let topic = self.broker.topic(&name, command.force_topic_creation.unwrap_or(true)).await?;
        if let Some(schema) = &command.schema {
            self.broker.check_consumer_schema(&name, schema, topic.has_schema_users()).await?;
        }
        let durable = command.durable.unwrap_or(true);
        let start = command.start_message_id.as_ref().filter(|_| !durable);
        let request = SubscribeRequest {
            subscription: Arc::from(command.subscription.as_str()),
            consumer: self.consumer_spec(command)?,
            durable,
            initial: initial_position(command.initial_position(), start),
            rollback_ms: command.start_message_rollback_duration_sec.unwrap_or(0).saturating_mul(1000),
            properties: pairs(&command.subscription_properties),
            may_create: self.broker.may_create_subscription(&topic)?,
            replicated: command.replicate_subscription_state.unwrap_or(false),
        };
        topic.subscribe(request, self.clone()).await
    }

    fn consumer_spec(&self, command: &proto::CommandSubscribe) -> Result<ConsumerSpec, BrokerError> {
        let sub_type = match command.sub_type() {
            proto::command_subscribe::SubType::Exclusive => SubscriptionType::Exclusive,
            proto::command_subscribe::SubType::Shared => SubscriptionType::Shared,
            proto::command_subscribe::SubType::Failover => SubscriptionType::Failover,
            proto::command_subscribe::SubType::KeyShared => SubscriptionType::KeyShared,
        };
        let key_shared = command.key_shared_meta.as_ref().map(|meta| KeySharedSpec {
            mode: match meta.key_shared_mode() {
                proto::KeySharedMode::AutoSplit => KeySharedMode::AutoSplit,
                proto::KeySharedMode::Sticky => KeySharedMode::Sticky(
                    meta.hash_ranges.iter().map(|range| (range.start as u32, range.end as u32)).collect(),
                ),
            },
            allow_out_of_order: meta.allow_out_of_order_delivery.unwrap_or(false),
        });
        let given = command.consumer_name.as_deref().unwrap_or_default();
        Ok(ConsumerSpec {
            consumer_id: command.consumer_id,
            name: if given.is_empty() { self.broker.next_consumer_name() } else { given.to_owned() },
            priority: command.priority_level.unwrap_or(0),
            sub_type,
            key_shared,
            epoch: command.consumer_epoch,
            address: self.address.clone(),
            client_version: self.client.get().map(|client| client.version.clone()).unwrap_or_default(),
            properties: pairs(&command.metadata),
            read_compacted: command.read_compacted.unwrap_or(false),
            ..Default::default()
        })
    }

    pub(crate) fn succeed(&self, request_id: u64) {
        self.send(&Command::from(proto::CommandSuccess { request_id, schema: None }));
    }

    pub(crate) fn flow(&self, flow: &proto::CommandFlow) {
        if let Some(consumer) = self.consumer(flow.consumer_id) {
            consumer.topic.flow(&consumer, flow.message_permits);
        }
    }

    pub(crate) fn ack(&self, ack: proto::CommandAck) {
        let Some(consumer) = self.consumer(ack.consumer_id) else {
            return self.refuse_ack(&ack, &BrokerError::NotAllowed(format!("no consumer {}", ack.consumer_id)));
        };
        if ack.txnid_most_bits.is_some() && ack.txnid_least_bits.is_some() {
            return self.refuse_ack(&ack, &BrokerError::Unsupported("acknowledging in a transaction".into()));
        }
        let request = match ack.ack_type() {
            proto::command_ack::AckType::Individual => AckRequest::Individual(
                ack.message_id
                    .iter()
                    .map(|id| IndividualAck {
                        position: position(id),
                        ack_set: id.ack_set.clone(),
                        batch_size: id.batch_size.filter(|size| *size > 0).map(|size| size as u32),
                    })
                    .collect(),
            ),
            proto::command_ack::AckType::Cumulative => {
                let [id] = ack.message_id.as_slice() else {
                    let error = BrokerError::NotAllowed("a cumulative acknowledgement names one message".into());
                    return self.refuse_ack(&ack, &error);
                };
                AckRequest::Cumulative { position: position(id), ack_set: id.ack_set.clone() }
            }
        };
        consumer.topic.acknowledge(&consumer, request, ack.request_id);
    }

    /// Who asked for no receipt expects no answer: clients have no way to tell what it would be about.
    fn refuse_ack(&self, ack: &proto::CommandAck, error: &BrokerError) {
        tracing::debug!(address = %self.address, consumer_id = ack.consumer_id, %error, "acknowledgement refused");
        let Some(request_id) = ack.request_id else { return };
        self.send(&Command::from(proto::CommandAckResponse {
            consumer_id: ack.consumer_id,
            request_id: Some(request_id),
            error: Some(server_error(error) as i32),
            message: Some(error.to_string()),
            ..Default::default()
        }));
    }

    pub(crate) fn redeliver(&self, command: proto::CommandRedeliverUnacknowledgedMessages) {
        let Some(consumer) = self.consumer(command.consumer_id) else { return };
        let positions: Vec<Position> = command.message_ids.iter().map(position).collect();
        let positions = (!positions.is_empty()).then_some(positions.as_slice());
        consumer.topic.redeliver(&consumer, command.consumer_epoch, positions);
    }

    pub(crate) fn close_consumer_command(&self, close: &proto::CommandCloseConsumer) {
        // One that is being created finds its slot gone and leaves again.
        let slot = self.consumers.lock().remove(&close.consumer_id);
        if let Some(ConsumerSlot::Ready(consumer, _)) = slot {
            consumer.topic.remove_consumer(&consumer);
        }
        self.succeed(close.request_id);
    }

    pub(crate) fn unsubscribe(self: &Arc<Self>, command: &proto::CommandUnsubscribe) {
        let (consumer_id, request_id, force) =
            (command.consumer_id, command.request_id, command.force.unwrap_or(false));
        self.with_consumer(consumer_id, request_id, move |connection, consumer| async move {
            consumer.topic.delete_subscription(&consumer.subscription, Some(consumer.key), force).await?;
            consumer.topic.remove_consumer(&consumer);
            let mut consumers = connection.consumers.lock();
            if consumers.get(&consumer_id).is_some_and(|slot| slot.is_of(&consumer)) {
                consumers.remove(&consumer_id);
            }
            drop(consumers);
            Ok(Command::from(proto::CommandSuccess { request_id, schema: None }))
        });
    }

    pub(crate) fn seek(self: &Arc<Self>, command: proto::CommandSeek) {
        let request_id = command.request_id;
        self.with_consumer(command.consumer_id, request_id, move |_, consumer| async move {
            match (&command.message_id, command.message_publish_time) {
                (Some(id), _) => {
                    consumer.topic.seek(&consumer.subscription, position(id), &id.ack_set).await?;
                }
                (None, Some(time)) => {
                    // A time before 1970, as Java's long has it, is before the first message.
                    let time = u64::try_from(time as i64).unwrap_or(0);
                    consumer.topic.reset_to_time(&consumer.subscription, time).await?;
                }
                (None, None) => {
                    let reason = "Message id and message publish time were not present";
                    return Err(BrokerError::PreconditionFailed(reason.into()));
                }
            }
            Ok(Command::from(proto::CommandSuccess { request_id, schema: None }))
        });
    }

    pub(crate) fn last_message_id(self: &Arc<Self>, command: &proto::CommandGetLastMessageId) {
        let request_id = command.request_id;
        self.with_consumer(command.consumer_id, request_id, move |_, consumer| async move {
            if !consumer.topic.name().is_persistent() {
                let message = "GetLastMessageId on a non-persistent topic is not allowed".into();
                let error = proto::ServerError::UnknownError as i32;
                return Ok(Command::from(proto::CommandError { request_id, error, message }));
            }
            let last = consumer.topic.last_message(&consumer).await?;
            let partition = consumer.topic.name().partition_index().map_or(-1, |index| index as i32);
            let batch_index = match &last.meta {
                Some(meta) if meta.is_batch() => meta.num_messages as i32 - 1,
                _ => -1,
            };
            let mut id = wire_position(last.position, partition);
            id.batch_index = Some(batch_index);
            Ok(Command::from(proto::CommandGetLastMessageIdResponse {
                last_message_id: id,
                request_id,
                consumer_mark_delete_position: Some(wire_position(last.mark_delete, partition)),
            }))
        });
    }

    pub(crate) fn consumer_stats(self: &Arc<Self>, command: &proto::CommandConsumerStats) {
        let request_id = command.request_id;
        let stats = match self.consumer(command.consumer_id) {
            Some(consumer) => {
                consumer.topic.consumer_stats(&consumer).map_err(|error| (server_error(&error), error.to_string()))
            }
            None => Err((ServerError::ConsumerNotFound, format!("Consumer {} not found", command.consumer_id))),
        };
        let response = match stats {
            Ok(stats) => proto::CommandConsumerStatsResponse {
                request_id,
                msg_rate_out: Some(stats.msg_rate_out),
                msg_throughput_out: Some(stats.msg_throughput_out),
                msg_rate_redeliver: Some(stats.msg_rate_redeliver),
                consumer_name: Some(stats.name),
                available_permits: Some(stats.available_permits.max(0) as u64),
                unacked_messages: Some(stats.unacked_messages),
                blocked_consumer_on_unacked_msgs: Some(stats.blocked_on_unacked),
                address: Some(self.address.clone()),
                connected_since: Some(stats.connected_since),
                r#type: Some(stats.subscription_type.to_owned()),
                msg_backlog: Some(stats.backlog),
                ..Default::default()
            },
            Err((code, message)) => proto::CommandConsumerStatsResponse {
                request_id,
                error_code: Some(code as i32),
                error_message: Some(message),
                ..Default::default()
            },
        };
        self.send(&Command::from(response));
    }

    /// Runs a request of a consumer as a task and answers it.
    fn with_consumer<F>(
        self: &Arc<Self>,
        consumer_id: u64,
        request_id: u64,
        work: impl FnOnce(Arc<Self>, Arc<ConsumerHandle>) -> F,
    ) where
        F: Future<Output = Result<Command, BrokerError>> + Send + 'static,
    {
        let Some(consumer) = self.consumer(consumer_id) else {
            let error = BrokerError::PreconditionFailed(format!("no consumer {consumer_id} on this connection"));
            return self.send(&error_command(request_id, &error));
        };
        let work = work(self.clone(), consumer);
        self.spawn(|connection| async move {
            let answer = work.await.unwrap_or_else(|error| error_command(request_id, &error));
            connection.send(&answer);
        });
    }
}

/// Refuses what Pulsar refuses before it looks at the topic, with its codes.
fn check_subscription(command: &proto::CommandSubscribe, name: &TopicName) -> Result<(), BrokerError> {
    let subscription = command.subscription.as_str();
    if subscription.is_empty() {
        return Err(BrokerError::ProducerBusy("Empty subscription name".into()));
    }
    if subscription == DEDUPLICATION_CURSOR || subscription.starts_with(REPLICATOR_PREFIX) {
        return Err(BrokerError::ProducerBusy("Subscription with reserved subscription name attempted".into()));
    }
    let one_active = matches!(
        command.sub_type(),
        proto::command_subscribe::SubType::Exclusive | proto::command_subscribe::SubType::Failover
    );
    match command.read_compacted.unwrap_or(false) {
        true if !name.is_persistent() => {
            Err(BrokerError::NotAllowed("readCompacted only valid on persistent topics".into()))
        }
        true if !one_active => {
            Err(BrokerError::NotAllowed("readCompacted only allowed on failover or exclusive subscriptions".into()))
        }
        _ => Ok(()),
    }
}

fn initial_position(
    asked: proto::command_subscribe::InitialPosition,
    start: Option<&proto::MessageIdData>,
) -> InitialPosition {
    let asked = match asked {
        proto::command_subscribe::InitialPosition::Latest => InitialPosition::Latest,
        proto::command_subscribe::InitialPosition::Earliest => InitialPosition::Earliest,
    };
    let Some(start) = start else { return asked };
    match position(start) {
        Position::EARLIEST => InitialPosition::Earliest,
        Position::LATEST => InitialPosition::Latest,
        // The client drops what it does not want of the start entry, so that entry is read too.
        position => InitialPosition::After(Position { entry_id: position.entry_id - 1, ..position }),
    }
}

pub(crate) fn wire_position(position: Position, partition: i32) -> proto::MessageIdData {
    let nowhere = position.entry_id < 0 && position.ledger_id == 0;
    proto::MessageIdData {
        ledger_id: if nowhere { u64::MAX } else { position.ledger_id },
        entry_id: position.entry_id as u64,
        partition: Some(partition),
        ..Default::default()
    }
}

fn pairs(pairs: &[proto::KeyValue]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect()
}
