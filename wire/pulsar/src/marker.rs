//! Values of [`crate::EntryMeta::marker_type`], as Pulsar's `MarkerType` numbers them.

pub const REPLICATED_SUBSCRIPTION_SNAPSHOT_REQUEST: i32 = 10;
pub const REPLICATED_SUBSCRIPTION_SNAPSHOT_RESPONSE: i32 = 11;
pub const REPLICATED_SUBSCRIPTION_SNAPSHOT: i32 = 12;
pub const REPLICATED_SUBSCRIPTION_UPDATE: i32 = 13;
pub const TXN_COMMITTING: i32 = 20;
pub const TXN_COMMIT: i32 = 21;
pub const TXN_ABORT: i32 = 22;
