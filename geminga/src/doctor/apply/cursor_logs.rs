//! Where bundles' cursor logs are.

use anyhow::{Context, ensure};
use geminga_doctor::{LedgerMetadata, Owner};
use geminga_ledger::cursor_log::LogLedger;
use geminga_metadata::Versioned;

use super::{Applying, Outcome, moved_past};
use crate::doctor::storage::Storage;

impl<S: Storage> Applying<'_, S> {
    pub(super) async fn restore_cursor_log(
        &mut self,
        bundle: &str,
        ledgers: &[u64],
        seen: Option<u64>,
    ) -> anyhow::Result<Outcome> {
        let owner = Owner::CursorLog(bundle.to_owned());
        let newest = *ledgers.last().context("a cursor log without ledgers is nothing to restore")?;
        let found = self.metadata.get_cursor_log::<Vec<LogLedger>>(bundle).await?;
        let version = found.as_ref().map(|found| found.version);
        let listed = found.map_or_else(Vec::new, |found| found.value);
        if listed.iter().any(|ledger| ledger.ledger_id == newest) {
            return Ok(Outcome::Already);
        }
        if !self.is_as_seen(&owner, seen, version) {
            return Ok(moved_past());
        }
        let mut ends = Vec::new();
        for ledger in ledgers {
            let known = self.metadata.get_ledger::<LedgerMetadata>(*ledger).await?;
            ensure!(known.is_some(), "there is no record of ledger {ledger}");
            let closed = self.storage.close(*ledger).await.with_context(|| format!("ledger {ledger}"))?;
            // What the list says of an older one holds: behind it there may be what was never acknowledged.
            let known = listed.iter().find(|it| it.ledger_id == *ledger).and_then(|it| it.entries);
            ends.push((*ledger, known.unwrap_or(closed.entries)));
        }
        // Before it is anybody's: a log that cannot be read is not to replace one that can.
        let cursors = self.storage.cursors(&ends).await.context("it cannot be read")?;
        let last_cursor = cursors.last_key_value().map_or(0, |(cursor, _)| *cursor);
        self.metadata.raise_cursor_ids(last_cursor + 1).await?;
        let list = ends.into_iter().map(|(ledger_id, entries)| LogLedger { ledger_id, entries: Some(entries) });
        let list: Vec<LogLedger> = list.collect();
        let dropped: Vec<u64> =
            listed.iter().map(|ledger| ledger.ledger_id).filter(|ledger| !ledgers.contains(ledger)).collect();
        let version = self.metadata.put_cursor_log(bundle, &list, version, &dropped, None).await?;
        self.has_moved(owner, seen, version);
        Ok(Outcome::Done)
    }

    pub(super) async fn forget_of_cursor_log(
        &mut self,
        bundle: &str,
        ledger: u64,
        seen: u64,
    ) -> anyhow::Result<Outcome> {
        let owner = Owner::CursorLog(bundle.to_owned());
        let found = self.metadata.get_cursor_log::<Vec<LogLedger>>(bundle).await?;
        let Some(Versioned { value: mut list, version }) = found else { return Ok(Outcome::Already) };
        let before = list.len();
        list.retain(|it| it.ledger_id != ledger);
        if list.len() == before {
            return Ok(Outcome::Already);
        }
        if !self.is_as_seen(&owner, Some(seen), Some(version)) {
            return Ok(moved_past());
        }
        let version = self.metadata.put_cursor_log(bundle, &list, Some(version), &[ledger], None).await?;
        self.has_moved(owner, Some(seen), version);
        Ok(Outcome::Done)
    }
}
