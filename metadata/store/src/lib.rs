//! Metadata: a narrow store of versioned records, and the typed repositories of Geminga on top of it.
//!
//! Start at [`MetadataStore`] for what a backend promises, and at [`Metadata`] for what the rest of Geminga uses.
//! [`MemoryStore`] is the deterministic backend of tests and simulations, [`DisturbedStore`] that with a test in between; [`conformance`] is the suite that every
//! backend passes. Metadata is touched when a topic loads, a ledger rolls over or an owner changes, never per message.

mod codec;
pub mod conformance;
mod disturbed;
mod error;
mod feed;
mod guarded;
mod lease;
mod memory;
pub mod policies;
mod repository;
mod store;

pub use disturbed::{Disturbance, DisturbedStore};
pub use error::MetadataError;
pub use feed::{ChangeFeed, Watch, WatchEvent};
pub use lease::{Lease, LeaseOutcome};
pub use memory::{ManualClock, MemoryStore};
pub use policies::{Policies, TopicPolicies};
pub use repository::brokers::{BrokerRecord, BrokerSession, OverSession};
pub use repository::bundles::{Balanced, BundleRecord, BundleRequest, BundleSplit, MovedFor, Wanted};
pub use repository::changes::MetadataChange;
pub use repository::clusters::ClusterData;
pub use repository::partitioned::PartitionedTopicRecord;
pub use repository::repairs::{AuditRecord, RepairClaim, RepairRecord, RepairWorkerRecord};
pub use repository::restored::{RestoredRecord, Witness, WitnessRecord};
pub use repository::schemas::{SchemaRecord, SchemaVersion};
pub use repository::storage_nodes::{StorageNodeRecord, StorageNodeStatus, StorageNodeWatch};
pub use repository::subscriptions::SubscriptionRecord;
pub use repository::tenants::TenantInfo;
pub use repository::topics::{LedgerInfo, TopicRecord};
pub use repository::{Metadata, Page, Versioned};
pub use store::{Expect, KEY_LENGTH_MAX, MetadataStore, Op, Record, prefix_end};
