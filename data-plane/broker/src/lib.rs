//! The broker: loads topics and drives them, for whatever protocol stands before it.
//!
//! Start at [`Broker`] (broker.rs), then [`Topic`] (topic/mod.rs), which tells the way of a message. [`Peer`] is what a
//! protocol implements. cursors.rs drives the log of acknowledgements, completions.rs brings finished writes back.

mod balancing;
mod broker;
mod bundle;
mod completions;
mod config;
mod connections;
mod cursors;
mod dynamic;
mod dynamic_names;
mod entry_meta;
mod error;
mod following;
mod health;
mod loaded;
mod memory;
pub mod metrics;
mod migration;
mod namespaces;
mod ownership;
mod partitions;
mod peer;
mod policies;
mod resting;
mod schema;
mod shared;
mod slots;
mod splitting;
mod topic;
mod unsettled;
mod upkeep;

pub use balancing::BalanceSettings;
pub use broker::Broker;
pub use config::BrokerConfig;
pub use connections::Connections;
pub use dynamic::dynamic_settings;
pub use entry_meta::{entry_meta, read_entry};
pub use error::{BrokerError, Result};
pub use geminga_flow::Budget;
pub use memory::Memory;
pub use namespaces::DEFAULT_BUNDLES;
pub use ownership::{BrokerState, BundleState, Located, MemberOptions, Owner, Ownership};
pub use partitions::PARTITIONS_AT_ONCE;
pub use peer::{Alive, Peer, Receipt};
pub use policies::{EffectivePolicies, QuotaAction};
pub use schema::{is_valid_schema, schema_type_name, schema_type_number, schema_version_bytes, schema_version_of};
pub use splitting::SplitAt;
pub use topic::*;
