//! Whether metadata and storage fit together, and what would repair them: pure.
//!
//! Somebody reads metadata and asks every node what it has ([`Cluster`]); [`examine`] says what does not fit, and [`propose`] what
//! to do, as a [`Plan`] that somebody carries out. Nothing here changes anything, and no step that is proposed deletes anything from storage.
//!
//! A cluster that is at work is not read at one moment. In one look a ledger may seem lost that was only just made or deleted, so
//! that a finding counts when two looks, some time apart, have it ([`confirmed`]). Within a look the order of reading is: nodes,
//! lists of ledgers, records, notes of deletions, sequence.
//!
//! What could not be read is not missing: an unread node, or one that does not know all it has, makes no ledger lost.

mod cluster;
mod examine;
mod expected;
mod plan;
mod propose;

pub use geminga_ensemble::LedgerMetadata;

pub use cluster::{Cluster, Contents, CursorLog, Held, Label, Node, Owner, Record, Remembered, Topic};
pub use examine::{Finding, confirmed, examine};
pub use plan::{PLAN_VERSION, Plan, PlanError, Step};
pub use propose::propose;
