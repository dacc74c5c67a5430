//! Ledgers on ensembles of storage nodes, over BookKeeper's wire protocol.
//!
//! [`ReplicatedLedgers`] is a [`LedgerClient`](geminga_ledger_client::LedgerClient). What is to be done is decided by the state
//! machines of `geminga-ensemble`; this crate carries it out: node.rs is one connection to a node, nodes.rs knows and chooses
//! nodes, catalog.rs keeps the ledgers' metadata, writing.rs, recovering.rs, repairing.rs and reading.rs drive one ledger each;
//! replicas.rs is for storage nodes that have lost entries; tls.rs begins TLS with a node.
//!
//! A ledger comes into being in metadata with its first append, and is closed when it is recovered: by its writer once all of
//! it is confirmed, or by anybody else through fencing. A recovery of a ledger that is not in metadata puts it there as a
//! closed one without entries, so that whoever meant to create it finds that it is too late; not one that this process has created
//! or deleted, of which the record went with it.
//! A ledger that was announced is in metadata from the commit on that names it in a list: that it is not there is an error then.

mod catalog;
mod client;
mod membership;
mod node;
mod nodes;
mod reading;
mod recovering;
mod repairing;
mod replicas;
mod tls;
mod writing;

pub use geminga_ensemble::{Quorum, Share};

/// Where the payload begins in an entry as nodes keep it.
pub fn payload_at() -> usize {
    use geminga_wire_bookkeeper::{Digest, DigestKind, ENTRY_HEAD_BYTES};
    ENTRY_HEAD_BYTES + Digest::new(0, DigestKind::Crc32c, client::PASSWORD).bytes()
}

pub use client::{ReplicatedLedgers, ReplicationOptions};
pub use membership::Membership;
pub use nodes::{NodeDirectory, NodeInfo, ZonePolicy};
pub use repairing::CopyMeter;
pub use replicas::{Copy, ReplicaReader};
pub use tls::NodeTls;
