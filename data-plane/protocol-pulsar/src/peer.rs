//! The connection as its topics see it.

use geminga_broker::{Alive, BrokerError, Peer, Receipt};
use geminga_topic::Delivery;
use geminga_wire_pulsar::{Command, MessageHeader, proto};

use crate::connection::{Connection, ConsumerSlot, ProducerSlot};
use crate::error::server_error;

/// How the versions of clients begin that do not know REACHED_END_OF_TOPIC: Go's, today and before 0.9, and C++'s, with those on top of it.
const UNAWARE_OF_THE_END: [&str; 3] = ["Pulsar-Go-", "Pulsar Go ", "Pulsar-CPP-"];

impl Peer for Connection {
    fn connection_id(&self) -> u64 {
        self.id
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn published(&self, bytes: u64) {
        self.publishing.take(bytes);
    }

    fn settled(&self, bytes: u64) {
        self.publishing.give_back(bytes);
    }

    fn receipts(&self, receipts: &[Receipt]) {
        self.outbox.push(|frames| {
            frames.head(|out| {
                for receipt in receipts {
                    // Pulsar answers a duplicate with the position -1:-1.
                    let (ledger, entry) =
                        receipt.position.map_or((u64::MAX, u64::MAX), |p| (p.ledger_id, p.entry_id as u64));
                    geminga_wire_pulsar::encode_send_receipt(
                        receipt.producer_id,
                        receipt.sequence_id,
                        receipt.highest_sequence_id,
                        ledger,
                        entry,
                        out,
                    );
                }
            });
        });
    }

    fn send_failed(&self, producer_id: u64, sequence_id: u64, error: &BrokerError) {
        self.queue(&Command::from(proto::CommandSendError {
            producer_id,
            sequence_id,
            error: server_error(error) as i32,
            message: error.to_string(),
        }));
    }

    fn deliver(&self, consumer_id: u64, partition: i32, deliveries: &mut dyn Iterator<Item = Delivery>) {
        let with_entry_metadata = self.client.get().is_some_and(|client| client.broker_entry_metadata);
        self.outbox.push(|frames| {
            for delivery in deliveries {
                let meta = &delivery.entry.meta;
                let data = &delivery.entry.data;
                let mut prefix = bytes::BytesMut::new();
                if with_entry_metadata && (meta.index.is_some() || meta.broker_timestamp > 0) {
                    geminga_wire_pulsar::encode_broker_entry_metadata(meta.broker_timestamp, meta.index, &mut prefix);
                }
                frames.head(|out| {
                    let header = MessageHeader {
                        consumer_id,
                        ledger_id: delivery.entry.position.ledger_id,
                        entry_id: delivery.entry.position.entry_id as u64,
                        partition,
                        batch_index: None,
                        redelivery_count: delivery.redelivery_count,
                        ack_set: delivery.ack_set.as_deref().unwrap_or_default(),
                        consumer_epoch: delivery.consumer_epoch,
                    };
                    geminga_wire_pulsar::encode_message_header(&header, prefix.len() + data.len(), out);
                    out.extend_from_slice(&prefix);
                });
                frames.payload(data);
            }
        });
    }

    fn flush(&self) {
        self.outbox.flush();
    }

    fn writable(&self) -> bool {
        self.outbox.writable()
    }

    fn hold_back(&self, pause: std::time::Duration) {
        let until = tokio::time::Instant::now() + pause;
        let mut held = self.held_until.lock();
        *held = (*held).max(Some(until));
    }

    fn check_alive(&self) -> Alive<'_> {
        Box::pin(self.answers())
    }

    fn active_consumer_changed(&self, consumer_id: u64, active: bool) {
        self.queue(&Command::from(proto::CommandActiveConsumerChange { consumer_id, is_active: Some(active) }));
    }

    fn end_of_topic(&self, consumer_id: u64) {
        // They would close the connection again and again, and so disturb whoever else is on it.
        if self
            .client
            .get()
            .is_some_and(|client| UNAWARE_OF_THE_END.iter().any(|name| client.version.starts_with(name)))
        {
            return;
        }
        self.queue(&Command::from(proto::CommandReachedEndOfTopic { consumer_id }));
    }

    fn left_out(&self, producer_id: u64, sequence_id: u64) {
        self.left_out.expect(producer_id);
        self.left_out.note(producer_id, sequence_id);
    }

    fn close_producer(&self, producer_id: u64, moved_to: Option<&str>) {
        self.left_out.expect(producer_id);
        let mut producers = self.producers.lock();
        if matches!(producers.get(&producer_id), Some(ProducerSlot::Ready(..))) {
            producers.remove(&producer_id);
        }
        drop(producers);
        self.queue(&Command::from(proto::CommandCloseProducer {
            producer_id,
            request_id: u64::MAX,
            assigned_broker_service_url: moved_to.map(str::to_owned),
            ..Default::default()
        }));
    }

    fn close_consumer(&self, consumer_id: u64, moved_to: Option<&str>) {
        let mut consumers = self.consumers.lock();
        if matches!(consumers.get(&consumer_id), Some(ConsumerSlot::Ready(..))) {
            consumers.remove(&consumer_id);
        }
        drop(consumers);
        self.queue(&Command::from(proto::CommandCloseConsumer {
            consumer_id,
            request_id: u64::MAX,
            assigned_broker_service_url: moved_to.map(str::to_owned),
            ..Default::default()
        }));
    }

    fn acknowledged(&self, consumer_id: u64, request_id: u64, result: Result<(), BrokerError>) {
        let (error, message) = match &result {
            Ok(()) => (None, None),
            Err(error) => (Some(server_error(error) as i32), Some(error.to_string())),
        };
        self.queue(&Command::from(proto::CommandAckResponse {
            consumer_id,
            request_id: Some(request_id),
            error,
            message,
            ..Default::default()
        }));
    }
}

impl Connection {
    /// Queues a command; the caller flushes.
    pub(crate) fn queue(&self, command: &Command) {
        self.outbox.push(|frames| frames.head(|out| geminga_wire_pulsar::encode_simple(command, out)));
    }
}
