//! How one ledger is written to, recovered on and read from an ensemble of storage nodes: pure state machines.
//!
//! There is no clock, socket, thread or runtime here, and no payload is looked into. Events come in as method calls, what is
//! to be done goes out as actions; a driver carries them out and tells the results, in whatever order they come. What is
//! promised holds for every order, for lost and late answers, and for nodes that stop for good:
//!
//! * an entry is confirmed only after an ack quorum of nodes, as the ledger's durable metadata name them, have it synced;
//! * entries are confirmed in order;
//! * once a recovery has closed the ledger at an entry, no entry behind it was or will be confirmed, and every entry that was
//!   confirmed is at or before it;
//! * metadata of a closed ledger do not change but for where its entries are;
//! * a repair names a node in the metadata only once the node has every entry that it should have.
//!
//! Start at [`LedgerMetadata`] and [`distribution`], then [`LedgerWriter`], [`LedgerRecovery`], [`repair`].

pub mod distribution;
mod metadata;
pub mod placement;
mod planted;
mod recovery;
pub mod repair;
mod share;
mod writer;

pub use metadata::{Fragment, InvalidMetadata, LedgerMetadata, LedgerState, NodeId, Quorum};
pub use planted::{Bug, plant};
pub use recovery::{LedgerRecovery, ReadAnswer, Recovered, RecoveryAction, RecoveryError};
pub use share::Share;
pub use writer::{AddFailure, LedgerWriter, MetadataOutcome, WriterAction, WriterError};
