//! One consumer as a pure state machine: permits and acknowledgements, and what an entry says about its latency.

use geminga_wire_pulsar::proto::command_ack::AckType;
use geminga_wire_pulsar::{PayloadView, SingleMessages, proto};

use crate::args::AckMode;
use crate::template::INTERVAL_PROPERTY;

/// Acknowledgements in one command.
const MAX_ACKS: usize = 1000;
/// Messages that these may be for: brokers hold a Shared consumer back at 50,000 without acknowledgement.
const MAX_ACKED_MESSAGES: u32 = 10_000;

/// Event times from here on are our producer's nanoseconds; as milliseconds they would lie in the year 5138.
const NANOSECONDS_FROM: u64 = 100_000_000_000_000;

pub(crate) struct Consumer {
    queue: u32,
    used: u32,
    mode: AckMode,
    pending: Vec<proto::MessageIdData>,
    pending_messages: u32,
}

impl Consumer {
    pub(crate) fn new(queue: u32, mode: AckMode) -> Self {
        Self { queue, used: 0, mode, pending: Vec::new(), pending_messages: 0 }
    }

    /// `count` messages came: the permits to give, once half of the queue is used.
    pub(crate) fn received(&mut self, count: u32) -> Option<u32> {
        self.used = self.used.saturating_add(count);
        (self.used >= (self.queue / 2).max(1)).then(|| std::mem::take(&mut self.used))
    }

    /// An entry of so many messages is to be acknowledged; true if that should happen now.
    pub(crate) fn note(&mut self, id: &proto::MessageIdData, count: u32) -> bool {
        let id = proto::MessageIdData {
            ledger_id: id.ledger_id,
            entry_id: id.entry_id,
            partition: id.partition,
            ..Default::default()
        };
        match self.mode {
            AckMode::None => return false,
            AckMode::Individual => self.pending.push(id),
            AckMode::Cumulative => {
                self.pending.clear();
                self.pending.push(id);
            }
        }
        self.pending_messages = self.pending_messages.saturating_add(count);
        self.pending.len() >= MAX_ACKS || self.pending_messages >= MAX_ACKED_MESSAGES
    }

    /// All that is to be acknowledged, as one command.
    pub(crate) fn take_ack(&mut self, consumer_id: u64) -> Option<proto::CommandAck> {
        if self.pending.is_empty() {
            return None;
        }
        self.pending_messages = 0;
        let kind = if self.mode == AckMode::Cumulative { AckType::Cumulative } else { AckType::Individual };
        Some(proto::CommandAck {
            consumer_id,
            ack_type: kind.into(),
            message_id: std::mem::take(&mut self.pending),
            ..Default::default()
        })
    }
}

/// The messages of a delivery: a batch that was acknowledged in part comes with what is left of it.
pub(crate) fn message_count(view: &PayloadView<'_>, ack_set: &[i64]) -> u32 {
    if ack_set.is_empty() {
        return view.meta.num_messages;
    }
    let left: u32 = ack_set.iter().map(|word| word.count_ones()).sum();
    left.min(view.meta.num_messages)
}

/// Application bytes of an entry; the whole payload if it is opaque. `None` if its batch is malformed.
pub(crate) fn payload_bytes(view: &PayloadView<'_>) -> Option<u64> {
    let payload = view.payload();
    if !view.meta.batched || view.meta.compression != 0 || view.meta.encrypted {
        return Some(payload.len() as u64);
    }
    SingleMessages::new(payload, view.meta.num_messages)
        .try_fold(0, |sum, message| message.ok().map(|message| sum + message.payload.len() as u64))
}

/// When the entry's messages were published: the first one's nanoseconds since 1970, and the nanoseconds between two.
pub(crate) fn published(view: &PayloadView<'_>) -> (u64, u64) {
    let Some(first) = view.meta.event_time.filter(|time| *time >= NANOSECONDS_FROM) else {
        return (view.meta.publish_time.saturating_mul(1_000_000), 0);
    };
    let interval = (view.meta.batched && view.meta.has_properties).then(|| interval_of(view)).flatten();
    (first, interval.unwrap_or(0))
}

fn interval_of(view: &PayloadView<'_>) -> Option<u64> {
    let metadata = view.full_metadata().ok()?;
    metadata.properties.iter().find(|property| property.key == INTERVAL_PROPERTY)?.value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_wire_pulsar::{frame_payload, parse_payload};

    #[test]
    fn permits_return_in_halves() {
        let mut consumer = Consumer::new(10, AckMode::Individual);
        assert_eq!((consumer.received(4), consumer.received(3), consumer.received(4)), (None, Some(7), None));
        assert_eq!(Consumer::new(1, AckMode::None).received(1), Some(1));
    }

    #[test]
    fn acknowledgements_gather() {
        let id = |entry_id| proto::MessageIdData { ledger_id: 1, entry_id, ..Default::default() };
        let entries = |ack: proto::CommandAck| ack.message_id.iter().map(|id| id.entry_id).collect::<Vec<_>>();
        for (mode, expected) in
            [(AckMode::Individual, Some(vec![5, 6])), (AckMode::Cumulative, Some(vec![6])), (AckMode::None, None)]
        {
            let mut consumer = Consumer::new(10, mode);
            assert!(!consumer.note(&id(5), 1) && !consumer.note(&id(6), 2));
            assert_eq!(consumer.take_ack(0).map(entries), expected);
            assert_eq!(consumer.take_ack(0), None);
        }
    }

    #[test]
    fn acknowledgements_go_before_a_broker_waits_for_them() {
        let mut consumer = Consumer::new(10, AckMode::Individual);
        let id = proto::MessageIdData::default();
        assert!(!consumer.note(&id, 9_999) && consumer.note(&id, 1));
        assert!(consumer.take_ack(0).is_some() && !consumer.note(&id, 9_999));
    }

    #[test]
    fn publication_is_read_from_our_time_or_else_the_clients() {
        let mut metadata = proto::MessageMetadata { publish_time: 1_700_000_000_000, ..Default::default() };
        let times =
            |metadata: &proto::MessageMetadata| published(&parse_payload(&frame_payload(metadata, b"")).unwrap());
        assert_eq!(times(&metadata), (1_700_000_000_000_000_000, 0));
        metadata.event_time = Some(1_700_000_000_123);
        assert_eq!(times(&metadata), (1_700_000_000_000_000_000, 0), "an application's event time is not ours");
        metadata.event_time = Some(1_700_000_000_000_000_007);
        metadata.num_messages_in_batch = Some(3);
        metadata.properties = vec![proto::KeyValue { key: INTERVAL_PROPERTY.into(), value: "50".into() }];
        assert_eq!(times(&metadata), (1_700_000_000_000_000_007, 50));
    }
}
