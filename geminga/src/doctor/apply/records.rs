//! Records of ledgers.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use geminga_doctor::LedgerMetadata;
use geminga_ensemble::{LedgerState, NodeId, Quorum};
use geminga_metadata::Versioned;

use super::{Applying, Outcome, moved_past};
use crate::doctor::storage::Storage;

/// A property of a record that was written anew: the ack quorum that it gets when it is closed.
const ACK: &str = "restored-ack-quorum";

/// Which of these nodes has which entry nobody knows. With all of them in one fragment, each of which alone may have an entry, a recovery
/// asks every one, keeps what any of them has, and believes in an end only where all deny.
fn wide(nodes: &[NodeId], ack: u32) -> anyhow::Result<LedgerMetadata> {
    let count = nodes.len() as u32;
    let properties = BTreeMap::from([(ACK.to_owned(), ack.to_string())]);
    let metadata = LedgerMetadata::new(Quorum { ensemble: count, write: count, ack: 1 }, nodes.to_vec(), properties);
    metadata.check()?;
    ensure!(1 <= ack && ack <= count, "an ack quorum of {ack} is not possible on {count} nodes");
    Ok(metadata)
}

impl<S: Storage> Applying<'_, S> {
    pub(super) async fn restore_record(&self, ledger: u64, nodes: &[NodeId], ack: u32) -> anyhow::Result<Outcome> {
        let known = self.metadata.get_ledger::<LedgerMetadata>(ledger).await?;
        match known {
            // Nothing was ever written to it, as far as metadata know: nodes know better.
            Some(Versioned { value, version }) if value.is_announced() => {
                self.metadata.put_ledger(ledger, &wide(nodes, ack)?, Some(version)).await?;
            }
            Some(Versioned { value, .. }) if !value.properties.contains_key(ACK) => return Ok(Outcome::Already),
            Some(_) => {}
            None => drop(self.metadata.put_ledger(ledger, &wide(nodes, ack)?, None).await?),
        }
        self.finish_record(ledger).await
    }

    pub(super) async fn widen_record(
        &self,
        ledger: u64,
        nodes: &[NodeId],
        ack: u32,
        seen: u64,
    ) -> anyhow::Result<Outcome> {
        let known = self.metadata.get_ledger::<LedgerMetadata>(ledger).await?;
        let Versioned { value, version } = known.context("there is no record of it any more")?;
        if value.properties.contains_key(ACK) {
            return self.finish_record(ledger).await;
        }
        if let LedgerState::Closed { .. } = value.state {
            return Ok(Outcome::Already);
        }
        if version != seen {
            return Ok(moved_past());
        }
        self.metadata.put_ledger(ledger, &wide(nodes, ack)?, Some(version)).await?;
        self.finish_record(ledger).await
    }

    /// Closes a ledger whose record was written anew, and gives it its ack quorum.
    async fn finish_record(&self, ledger: u64) -> anyhow::Result<Outcome> {
        self.storage.close(ledger).await.context("its record is written; it could not be closed")?;
        let known = self.metadata.get_ledger::<LedgerMetadata>(ledger).await?;
        let Versioned { mut value, version } = known.context("there is no record of it any more")?;
        if let Some(ack) = value.properties.remove(ACK) {
            let ack: u32 = ack.parse().context("its record is damaged")?;
            value.quorum.ack = ack.clamp(1, value.quorum.write);
            self.metadata.put_ledger(ledger, &value, Some(version)).await?;
        }
        Ok(Outcome::Done)
    }
}
