//! Topics as pure state machines: no I/O, no clock, no runtime. Time comes in as milliseconds since the epoch.
//!
//! - [`Subscription`]: a cursor with the consumers that share it and the dispatcher that chooses who gets what.
//! - [`producers`]: who may write to a topic.
//! - [`dedup`]: which messages were stored before.
//! - [`rate_limit`]: how much may pass in a time.
//! - [`tail_cache`]: the latest entries, for consumers that keep up.
//! - [`read_cache`]: entries read back from storage, for consumers that do not.
//!
//! The broker feeds events in (flow, acknowledgement, consumer gone) and calls [`Subscription::dispatch`], which takes entries
//! from an [`EntryReader`] and says why it stopped. Everything that waits can say for what: [`Subscription::explain`].

pub mod dedup;
mod delayed;
mod dispatch;
mod entry;
pub mod hash;
mod planted;
pub mod producers;
pub mod rate_limit;
pub mod read_cache;
mod subscription;
pub mod tail_cache;
mod unacked;

pub use delayed::DelayedBudget;
pub use dispatch::explain::{ConsumerExplanation, Explanation, HashBlock, RangeExplanation};
pub use entry::{BlockReason, Delivery, DispatchWait, Entry, EntryFlags, EntryMeta, EntryReader, Ready};
pub use planted::{Bug, plant};
pub use subscription::{
    AckError, AckRequest, AckSummary, ConsumerKey, ConsumerSpec, ConsumerStats, DrainingHashStats, Event,
    IndividualAck, KeySharedMode, KeySharedSpec, Mismatch, SubscribeError, Subscription, SubscriptionOptions,
    SubscriptionStats, SubscriptionType,
};
pub use unacked::UnackedBudget;
