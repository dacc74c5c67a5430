//! gRPC between storage nodes and whoever looks after them. Only what `proto/StorageNode.proto` generates.

/// Generated from `proto/StorageNode.proto`; a test compares.
#[allow(clippy::all, clippy::pedantic, rustdoc::all, missing_docs)]
#[rustfmt::skip]
mod proto;

pub use proto::*;
