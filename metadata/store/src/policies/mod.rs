//! Policies of namespaces and topics, with the JSON names of Pulsar's admin REST (`Policies`, `TopicPolicies`).
//!
//! Values that Pulsar has as enums are text here, and each object keeps the fields it does not know in `extra`, so
//! that a policy written by another version or tool survives a round trip. An absent field means that the level
//! above (namespace, then broker configuration) decides.

mod namespace;
mod parts;
mod topic;

pub use namespace::Policies;
pub use parts::*;
pub use topic::TopicPolicies;
