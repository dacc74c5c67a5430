//! What would repair a cluster, as a file that a person can read and edit, and that is carried out later.

use geminga_ensemble::NodeId;
use serde::{Deserialize, Serialize};

use crate::cluster::Owner;
use crate::examine::Finding;

/// Of the file. A plan is made anew rather than kept, so that no other version is read.
pub const PLAN_VERSION: u32 = 2;

/// Steps, in the order in which they are to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub version: u32,
    pub steps: Vec<Step>,
}

/// A repair. `seen` is the version of the record that it changes, as it was when the plan was made (none: there was no record): when
/// it has another one by then, the step is not taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step", deny_unknown_fields)]
pub enum Step {
    /// Give no ledger id below this one.
    RaiseLedgerIds { to: u64 },
    /// Give no cursor id below this one.
    RaiseCursorIds { to: u64 },
    /// Forget that the ledger is to be deleted.
    DropDeletion { ledger: u64 },
    /// Write a record anew: the ledger is on these nodes, each of which may have any of its entries. It is closed then, at the last
    /// entry that any of them has; `ack` is the ack quorum of the closed ledger.
    RestoreRecord { ledger: u64, nodes: Vec<NodeId>, ack: u32, last_entry: Option<u64> },
    /// The same for a ledger that has a record which names too few nodes.
    WidenRecord { ledger: u64, nodes: Vec<NodeId>, ack: u32, seen: u64 },
    /// Take a ledger that is nowhere out of a list. What was in it is lost with that: it is done only if `confirmed` is set to true.
    ForgetLedger { owner: Owner, ledger: u64, seen: u64, confirmed: bool },
    /// Put ledgers into a topic's list, at their places, which are in the order of their ids. Where there is no such topic it is made.
    ExtendTopic { topic: String, ledgers: Vec<u64>, seen: Option<u64> },
    /// Make a partitioned topic of partitions that are there. Storage knows only of those that have messages.
    CreatePartitioned { topic: String, partitions: u32 },
    /// Make these the ledgers of a bundle's cursor log.
    RestoreCursorLog { bundle: String, ledgers: Vec<u64>, seen: Option<u64> },
    /// Copy what the node lacks from the others; auto-recovery does that.
    Replicate { ledger: u64, node: NodeId },
    /// Nothing can be proposed: somebody has to look.
    Look { finding: Finding },
    /// Last of all, and only if no step before failed: the node takes the metadata for current, and brokers may begin.
    Settle { node: NodeId, seen: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("it is no plan: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it has version {0}, and this program carries out version {PLAN_VERSION}: make a new one")]
    Version(u64),
}

impl Plan {
    pub fn new(steps: Vec<Step>) -> Self {
        Self { version: PLAN_VERSION, steps }
    }

    /// Reads what [`Plan::write`] wrote, or what a person made of it.
    ///
    /// # Errors
    /// It is of another version, or a step is not understood: then nothing of it is to be carried out.
    pub fn read(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            version: u32,
            steps: Vec<Step>,
        }
        let Versioned { version } = serde_json::from_str(text)?;
        if version != u64::from(PLAN_VERSION) {
            return Err(PlanError::Version(version));
        }
        let Whole { version, steps } = serde_json::from_str(text)?;
        Ok(Self { version, steps })
    }

    /// # Errors
    /// Never, as far as is known.
    pub fn write(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}
