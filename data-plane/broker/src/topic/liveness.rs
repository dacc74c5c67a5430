//! Whoever holds what somebody else wants may be gone without a word: its connection is asked before the other one is
//! turned away, as Pulsar does (`connectionLivenessCheckTimeoutMillis`).

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::error::BrokerError;
use crate::peer::Peer;

/// Why somebody may not join.
pub(super) struct Refusal {
    pub error: BrokerError,
    /// Other connections, on whose account it is.
    pub holders: Vec<Arc<dyn Peer>>,
}

impl From<BrokerError> for Refusal {
    fn from(error: BrokerError) -> Self {
        Self { error, holders: Vec::new() }
    }
}

impl Refusal {
    /// Refuses the client on `asking` because of those that are there already.
    pub fn because_of<'a>(
        error: BrokerError,
        asking: &Arc<dyn Peer>,
        present: impl Iterator<Item = &'a Arc<dyn Peer>>,
    ) -> Self {
        let mut holders: Vec<Arc<dyn Peer>> =
            present.filter(|peer| peer.connection_id() != asking.connection_id()).cloned().collect();
        holders.sort_unstable_by_key(|peer| peer.connection_id());
        holders.dedup_by_key(|peer| peer.connection_id());
        Self { error, holders }
    }

    /// Asks the holders whether they are alive; the error if they all are, otherwise it is worth another attempt.
    pub async fn unless_gone(self) -> Result<(), BrokerError> {
        let mut checks = JoinSet::new();
        for peer in self.holders {
            checks.spawn(async move { peer.check_alive().await });
        }
        let mut gone = false;
        while let Some(alive) = checks.join_next().await {
            gone |= !alive.unwrap_or(true);
        }
        if gone { Ok(()) } else { Err(self.error) }
    }
}
