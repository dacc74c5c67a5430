//! What a topic knows of an entry, how a dispatcher gets at entries, and what it hands out.

use bytes::Bytes;
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;

use crate::subscription::ConsumerKey;

/// What dispatching needs of an entry's metadata; the rest stays in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Messages in the entry; 1 unless it is a batch.
    pub num_messages: u32,
    /// [`crate::hash::sticky_key_hash`] of the ordering key, else the partition key, else (as Pulsar does, to spread
    /// messages without a key) of `"<producer name>-<sequence id>"`.
    pub sticky_key_hash: u32,
    /// Milliseconds since the epoch, by the producer's clock.
    pub publish_time: u64,
    /// Milliseconds since the epoch before which Shared and Key_Shared subscriptions do not deliver; 0 if there is none.
    pub deliver_at: u64,
    /// Hash of the uuid of a chunked message; 0 for others.
    pub chunk_uuid_hash: u64,
    pub chunk_id: u32,
    pub num_chunks: u32,
    /// Milliseconds since the epoch when the broker took the entry in; 0 if unknown.
    pub broker_timestamp: u64,
    /// Index of the entry's last message in the topic, when the broker numbers messages.
    pub index: Option<u64>,
    pub flags: EntryFlags,
}

impl Default for EntryMeta {
    fn default() -> Self {
        EntryMeta {
            num_messages: 1,
            sticky_key_hash: 0,
            publish_time: 0,
            deliver_at: 0,
            chunk_uuid_hash: 0,
            chunk_id: 0,
            num_chunks: 0,
            broker_timestamp: 0,
            index: None,
            flags: EntryFlags::default(),
        }
    }
}

impl EntryMeta {
    /// The entry is a batch, possibly of one message.
    pub fn is_batch(&self) -> bool {
        self.flags.batch || self.num_messages > 1
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFlags {
    /// The message has a partition or ordering key.
    pub has_key: bool,
    /// A marker that brokers write for themselves: acknowledged on sight, never delivered.
    pub is_marker: bool,
    /// `num_messages_in_batch` is set.
    pub batch: bool,
    /// Somebody has a key to it.
    pub encrypted: bool,
}

/// One stored entry. Cloning it copies no payload.
#[derive(Clone, Debug)]
pub struct Entry {
    pub position: Position,
    pub meta: EntryMeta,
    pub data: Bytes,
}

/// Held per entry beside its payload.
const ENTRY_OVERHEAD: usize = size_of::<Entry>() + 48;

impl Entry {
    /// Bytes that a cache counts for it.
    pub fn cost(&self) -> usize {
        self.data.len() + ENTRY_OVERHEAD
    }
}

/// Outcome of [`EntryReader::read_ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// At least one entry was appended to `out`.
    Entries,
    /// The entry at this position is neither cached nor read ahead.
    NeedRead(Position),
    /// There is no confirmed entry at or after the position.
    CaughtUp,
}

/// Entries that are in memory. Implemented by the broker over the tail cache and its read-ahead buffers; never blocks.
pub trait EntryReader {
    /// Appends consecutive entries from `from` (inclusive; if it does not exist, from the first entry after it) to `out`: at
    /// most `max_entries`, and no further one once `max_bytes` are reached. The reader may forget what it returns.
    fn read_ready(&mut self, from: Position, max_entries: usize, max_bytes: usize, out: &mut Vec<Entry>) -> Ready;

    /// One entry that is to be delivered again; `None` if it must be read first. The reader may forget what it returns.
    fn get(&mut self, at: Position) -> Option<Entry>;

    /// Whether [`EntryReader::get`] would have it now.
    fn has(&self, at: Position) -> bool;

    /// Whether what [`DispatchWait::NeedEntries`] asked for could not be read: others are not kept waiting for it.
    fn single_reads_fail(&self) -> bool {
        false
    }

    /// An entry that was asked for, and perhaps read since, is not to be delivered any more.
    fn forget(&mut self, _at: Position) {}

    fn ledgers(&self) -> &LedgerList;
}

/// One entry on its way to one consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub consumer: ConsumerKey,
    pub entry: Entry,
    pub redelivery_count: u32,
    /// Of a batch that is acknowledged in part: what is not (bit set). `CommandMessage.ack_set`.
    pub ack_set: Option<Box<[i64]>>,
    pub consumer_epoch: Option<u64>,
}

/// Why a dispatcher stopped, and what the broker has to do so that it can go on. In any case it is to be called again after
/// a flow, an acknowledgement, a redelivery, a new entry, or a consumer that came, went or became writable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DispatchWait {
    /// Entries from here on are to be read, about so many.
    NeedRead {
        from: Position,
        max_entries: usize,
    },
    /// Single entries are to be read (redeliveries and entries that were skipped over), in this order.
    NeedEntries(Vec<Position>),
    /// Everything confirmed was handed out or is held by a consumer.
    CaughtUp,
    NoPermits,
    NoConsumers,
    Blocked(BlockReason),
    /// Nothing to do before this time (milliseconds since the epoch).
    Timer(u64),
    /// The byte budget of the call is used up: call again.
    MoreWork,
}

/// What keeps a subscription with permits from delivering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockReason {
    /// No consumer with permits has a connection that takes more.
    NotWritable,
    /// All consumers with permits are at their limit of unacknowledged messages.
    ConsumersUnacked,
    /// The subscription is at its limit of unacknowledged messages.
    SubscriptionUnacked,
    /// Consumers hold so many entries, here or of other subscriptions, that memory for them is used up.
    Memory,
    /// So many entries wait for the consumers of their keys that no more are read ahead.
    LookAheadFull,
}
