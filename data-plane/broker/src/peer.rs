//! What a topic needs of the connection behind a producer or consumer: the one interface that protocols implement.

use std::future::Future;
use std::pin::Pin;

use geminga_model::Position;
use geminga_topic::Delivery;

use crate::error::BrokerError;

/// The acknowledgement of one published message or batch.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    pub producer_id: u64,
    pub sequence_id: u64,
    pub highest_sequence_id: u64,
    /// `None` when deduplication dropped the message as already stored.
    pub position: Option<Position>,
}

/// Answer of [`Peer::check_alive`].
pub type Alive<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// A connection as its topics see it. All calls but one return at once: they queue, [`Peer::flush`] sends.
pub trait Peer: Send + Sync + 'static {
    /// Unique among the connections of this process.
    fn connection_id(&self) -> u64;
    /// `host:port` of the other side.
    fn address(&self) -> &str;

    /// So many bytes of this connection are on their way to storage; [`Peer::settled`] says when they are no more.
    fn published(&self, _bytes: u64) {}
    fn settled(&self, _bytes: u64) {}

    /// Reads nothing from the connection for so long: its producers are above their topic's rate.
    fn hold_back(&self, _pause: std::time::Duration) {}

    /// A producer's messages from this one on were not taken, and the client is not told but by [`Peer::close_producer`]: it has to send
    /// them again before any other.
    fn left_out(&self, _producer_id: u64, _sequence_id: u64) {}

    /// Receipts in the order of the sends.
    fn receipts(&self, receipts: &[Receipt]);
    fn send_failed(&self, producer_id: u64, sequence_id: u64, error: &BrokerError);
    /// Queues messages for one consumer and takes them out of `deliveries`. `partition` is the topic's number within its
    /// partitioned topic, -1 when it is none.
    fn deliver(&self, consumer_id: u64, partition: i32, deliveries: &mut dyn Iterator<Item = Delivery>);
    /// Starts sending what has been queued. Called without any lock held.
    fn flush(&self);
    /// Whether the connection takes more messages; when it turns true again the protocol calls
    /// [`crate::Topic::consumer_writable`].
    fn writable(&self) -> bool;
    /// Whether the other side still answers; waits for that up to the configured time. A connection that does not is given
    /// up: when this has answered false, its producers and consumers are off their topics. Called without any lock held.
    fn check_alive(&self) -> Alive<'_>;
    fn active_consumer_changed(&self, consumer_id: u64, active: bool);
    fn end_of_topic(&self, consumer_id: u64);
    /// The topic goes away (deleted, unloaded): the client should look it up again, or go on at the broker that has it now, at
    /// a `pulsar://` URL.
    fn close_producer(&self, producer_id: u64, moved_to: Option<&str>);
    fn close_consumer(&self, consumer_id: u64, moved_to: Option<&str>);
    /// An acknowledgement that asked for a receipt is durable (or failed).
    fn acknowledged(&self, consumer_id: u64, request_id: u64, result: Result<(), BrokerError>);
}
