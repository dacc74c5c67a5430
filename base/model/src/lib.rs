//! Names and small values that every plane of Geminga shares: positions, topic and namespace names, error kinds.
//!
//! Nothing here does I/O or knows a clock. A type lives here only when several crates need it; what one crate
//! needs is defined there.

mod bundle;
mod error_kind;
mod name;
mod position;
mod topic_name;

pub use bundle::{BundleName, BundleRange, topic_hash};
pub use error_kind::ErrorKind;
pub use name::{InvalidName, NamespaceName, check_entity_name};
pub use position::{InvalidPosition, Position};
pub use topic_name::{DEFAULT_NAMESPACE, PARTITION_SUFFIX, PUBLIC_TENANT, TopicDomain, TopicName};
