//! Whose bundles are whose, as one broker knows it: pure, told by its driver (`data-plane/broker/src/ownership`) what metadata say and
//! when.
//!
//! [`Sessions`] say which brokers are alive, a [`Directory`] who owns what and what follows from a change of it, [`SplitAt`] where a
//! bundle is cut. None of it keeps anybody from doing harm: that do the fencing of ledgers, and commits that are guarded by a
//! bundle's record.

mod directory;
mod sessions;
mod split;

pub use directory::{BrokerState, BundleState, Change, Directory, Known, Located, choose};
pub use sessions::{SessionState, Sessions};
pub use split::{SplitAt, with_parts};
