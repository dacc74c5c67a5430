//! What consumers and the broker tell a subscription, and what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_model::Position;

use crate::delayed::DelayedBudget;
use crate::unacked::UnackedBudget;

/// Unique among the consumers of a broker process.
pub type ConsumerKey = u64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub enum SubscriptionType {
    #[default]
    Exclusive,
    Shared,
    Failover,
    #[serde(rename = "Key_Shared")]
    KeyShared,
}

impl SubscriptionType {
    /// As Pulsar spells it.
    pub fn name(self) -> &'static str {
        match self {
            SubscriptionType::Exclusive => "Exclusive",
            SubscriptionType::Shared => "Shared",
            SubscriptionType::Failover => "Failover",
            SubscriptionType::KeyShared => "Key_Shared",
        }
    }

    /// Consumers acknowledge entry by entry; what each holds is tracked.
    pub fn is_individual(self) -> bool {
        matches!(self, SubscriptionType::Shared | SubscriptionType::KeyShared)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySharedMode {
    AutoSplit,
    /// Slots `start..=end` (of 65,536) that the consumer wants.
    Sticky(Vec<(u32, u32)>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySharedSpec {
    pub mode: KeySharedMode,
    /// Keys may overtake themselves when they move to another consumer; nothing ever waits for an acknowledgement.
    pub allow_out_of_order: bool,
}

/// A consumer as it subscribes.
#[derive(Clone, Debug, Default)]
pub struct ConsumerSpec {
    pub key: ConsumerKey,
    pub consumer_id: u64,
    pub name: String,
    /// Lower goes first.
    pub priority: i32,
    pub sub_type: SubscriptionType,
    /// For Key_Shared; for Exclusive, sticky ranges restrict what is delivered.
    pub key_shared: Option<KeySharedSpec>,
    pub epoch: Option<u64>,
    pub address: String,
    pub client_version: String,
    pub properties: BTreeMap<String, String>,
    pub read_compacted: bool,
    /// Milliseconds since the epoch.
    pub connected_at: u64,
}

#[derive(Clone, Debug)]
pub struct SubscriptionOptions {
    pub durable: bool,
    /// Messages; 0 means no limit. The same holds for the next.
    pub max_unacked_per_consumer: u32,
    pub max_unacked_per_subscription: u32,
    /// 0 means no limit.
    pub max_consumers: u32,
    /// `Some` for a partition of a partitioned topic: Failover spreads the partitions over the consumers by it.
    pub partition_index: Option<u32>,
    /// Full name; Failover picks the active consumer of a topic without partitions by its hash.
    pub topic: Arc<str>,
    /// How long a new active Failover consumer waits for the previous one's acknowledgements, in milliseconds.
    pub failover_delay_ms: u64,
    /// Messages to one consumer before it is the next one's turn (Shared).
    pub round_robin_batch: u32,
    /// Whether messages that ask for it are held back until their time has come.
    pub delayed_delivery: bool,
    /// Bound on the indexes of messages whose time has not come, shared with other subscriptions.
    pub delayed_budget: Arc<DelayedBudget>,
    /// Bound on what consumers hold and on what waits for them, shared with other subscriptions.
    pub unacked_budget: Arc<UnackedBudget>,
    /// Bound on the positions of entries that were read but wait for the consumers of their keys.
    pub look_ahead_bytes: usize,
}

impl Default for SubscriptionOptions {
    fn default() -> Self {
        SubscriptionOptions {
            durable: true,
            max_unacked_per_consumer: 50_000,
            max_unacked_per_subscription: 200_000,
            max_consumers: 0,
            partition_index: None,
            topic: Arc::from(""),
            failover_delay_ms: 1000,
            round_robin_batch: 20,
            delayed_delivery: true,
            delayed_budget: DelayedBudget::new(16 << 20),
            unacked_budget: UnackedBudget::new(32 << 20),
            look_ahead_bytes: 16 << 20,
        }
    }
}

/// What sets a consumer apart from those of the subscription that it wants to join, in Pulsar's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("type of '{}' is different than the connecting consumer's type '{}'", .active.name(), .joining.name())]
    Type { active: SubscriptionType, joining: SubscriptionType },
    #[error("key_shared mode of '{active}' is different than the connecting consumer's key_shared mode '{joining}'")]
    KeySharedMode { active: &'static str, joining: &'static str },
    #[error("allows out of order delivery while the connecting consumer does not allow it")]
    OutOfOrder,
    #[error("does not allow out of order delivery while the connecting consumer allows it")]
    Ordered,
}

/// Why a consumer may not join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// Pulsar's `ConsumerBusy`.
    #[error("Exclusive consumer is already connected")]
    ExclusiveTaken,
    /// Pulsar's `ConsumerBusy`.
    #[error("Subscription is of different type. Active subscription {0}.")]
    TypeMismatch(Mismatch),
    /// Pulsar's `ConsumerBusy`.
    #[error("Subscription reached max consumers limit")]
    MaxConsumers,
    /// Pulsar's `ConsumerAssignError`.
    #[error("Range conflict with consumer {0}")]
    RangeConflict(String),
    /// Pulsar's `ConsumerAssignError`.
    #[error("{0}")]
    InvalidRanges(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndividualAck {
    pub position: Position,
    /// Of a batch: bits of the messages that are **not** acknowledged. Empty for the whole entry.
    pub ack_set: Vec<i64>,
    pub batch_size: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckRequest {
    Individual(Vec<IndividualAck>),
    /// Everything before `position`; of it, the messages whose bits are not set (all of it if `ack_set` is empty).
    Cumulative {
        position: Position,
        ack_set: Vec<i64>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    #[error("cumulative acknowledgement is not allowed on a {} subscription", .0.name())]
    CumulativeOnShared(SubscriptionType),
}

/// What an acknowledgement changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckSummary {
    /// Messages newly acknowledged, as far as the subscription knows their number.
    pub messages: u64,
    /// Entries that will not be delivered again.
    pub entries: u64,
    /// Acknowledgements that changed nothing.
    pub ignored: u64,
}

/// What a consumer is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Only Failover subscriptions tell this.
    ActiveConsumerChanged { consumer: ConsumerKey, is_active: bool },
    /// The topic is terminated and everything is acknowledged.
    EndOfTopic { consumer: ConsumerKey },
}
