//! What clients have the broker keep for as long as they are connected: bounded for each, and together.

use geminga_broker::BrokerError;
use geminga_flow::Reservation;
use geminga_wire_pulsar::proto;

use crate::connection::Connection;

/// The most that a producer or consumer may say of itself, or of its subscription.
const WORDS_MAX: usize = 32 << 10;
/// What is not counted of that: little beside the rest that is kept of each.
const WORDS_FREE: usize = 1 << 10;
/// What the watching of a list of topics takes beside the list.
const WATCH_BYTES: usize = 2 << 10;
/// What a name takes in a list beside its text.
const NAME_BYTES: usize = 32;

impl Connection {
    /// Room for what a client says of a producer or consumer, in `bytes`.
    pub(crate) fn keep_words(&self, bytes: usize) -> Result<Reservation, BrokerError> {
        let bytes = bytes + self.client.get().map_or(0, |client| client.version.len());
        if bytes > WORDS_MAX {
            let error = format!("names and properties of {bytes} bytes are over the limit of {WORDS_MAX}");
            return Err(BrokerError::NotAllowed(error));
        }
        Reservation::new(&self.broker.memory().kept, bytes.saturating_sub(WORDS_FREE) as u64)
            .ok_or_else(|| BrokerError::ServiceNotReady("the properties of others take all the memory for them".into()))
    }

    /// Room for the watching of a list of topics, without the list.
    pub(crate) fn keep_watch(&self, command: &proto::CommandWatchTopicList) -> Result<Reservation, BrokerError> {
        Reservation::new(&self.broker.memory().kept, watch_bytes(command, &[])).ok_or_else(no_room_for_list)
    }
}

pub(crate) fn producer_words(command: &proto::CommandProducer) -> usize {
    text(&command.producer_name) + pairs(&command.metadata)
}

pub(crate) fn consumer_words(command: &proto::CommandSubscribe) -> usize {
    let ranges = command.key_shared_meta.as_ref().map_or(0, |meta| size_of_val(meta.hash_ranges.as_slice()));
    let of_consumer = text(&command.consumer_name) + pairs(&command.metadata) + ranges;
    of_consumer + command.subscription.len() + pairs(&command.subscription_properties)
}

pub(crate) fn watch_bytes(command: &proto::CommandWatchTopicList, topics: &[String]) -> u64 {
    let names: usize = topics.iter().map(|topic| topic.len() + NAME_BYTES).sum();
    let words = command.namespace.len() + command.topics_pattern.len() + text(&command.topics_hash);
    (WATCH_BYTES + words + names) as u64
}

/// Of it clients do not try again, but ask for the list from time to time.
pub(crate) fn no_room_for_list() -> BrokerError {
    BrokerError::NotAllowed("other lists that are watched take all the memory for them".into())
}

fn text(text: &Option<String>) -> usize {
    text.as_ref().map_or(0, String::len)
}

fn pairs(pairs: &[proto::KeyValue]) -> usize {
    pairs.iter().map(|pair| pair.key.len() + pair.value.len() + 2 * NAME_BYTES).sum()
}
