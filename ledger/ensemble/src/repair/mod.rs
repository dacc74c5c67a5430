//! Repair of ledgers whose entries are on fewer nodes, or in fewer zones, than they should be: pure.
//!
//! An *auditor* looks at ledgers' metadata and at the nodes that there are ([`survey`]) and says which ledgers need a repair. A
//! *worker* carries out one [`LedgerRepair`]: it asks the members which entries they have, copies what is missing from those
//! that have it, and only then names another node in the metadata, if these are still the ones that it looked at. So metadata
//! never name a node that lacks what it should have, however many workers are at it and wherever one of them stops.
//!
//! A node that comes back while copies are made in its place keeps the place: what it has is listed, and only that copied which it
//! lacks ([`LedgerRepair::nodes_changed`]).
//!
//! Only stretches of a ledger that nobody writes any more are touched: finished fragments, and the last one of a closed ledger.
//!
//! **The last fragment of an open ledger** is its writer's. One that writes notices by itself that a node is gone, with the
//! next entry at the latest, and goes on with another. One that is idle notices nothing of itself: our client tells it, when a
//! node has not said that it lives for a while and cannot be connected to, or is to be emptied, provided that there is another
//! node. If a writer is still there after a grace period ([`survey::writers_end`]), as its process is gone or sees less than the
//! auditor, a worker recovers the ledger, which fences and closes it, as BookKeeper does, and repairs it like any other. An idle
//! writer hears of that with its next entry: it is refused as fenced, was never acknowledged, and the topic goes on in a new
//! ledger. So an idle writer never loses anything, costs its topic one reload at most, and never keeps a ledger from being
//! repaired.

mod absences;
mod copying;
mod ledger;
mod nodes;
pub mod survey;

pub use absences::Absences;
pub use ledger::{Blocker, CopyFailure, LedgerRepair, Listing, RepairAction, RepairReport};
pub use nodes::{NodeTable, NodeView, Standing};
