//! Topics and their lists of ledgers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use geminga_doctor::{LedgerMetadata, Owner};
use geminga_metadata::{MetadataError, PartitionedTopicRecord, SubscriptionRecord, TopicRecord};
use geminga_model::{Position, TopicName};

use super::{Applying, Outcome, moved_past};
use crate::doctor::lists::{Measured, extended, without};
use crate::doctor::storage::Storage;

/// The subscription that keeps what was put back until an operator deletes it.
const KEEPER: &str = "geminga-restored";

impl<S: Storage> Applying<'_, S> {
    pub(super) async fn extend_topic(
        &mut self,
        topic: &str,
        ledgers: &[u64],
        seen: Option<u64>,
    ) -> anyhow::Result<Outcome> {
        let (name, owner) = (TopicName::parse(topic)?, Owner::Topic(topic.to_owned()));
        let found = self.metadata.get_topic(&name).await?;
        let version = found.as_ref().map(|found| found.version);
        let record = found.map_or_else(TopicRecord::default, |found| found.value);
        let is_listed = |id: &u64| record.ledgers.iter().any(|ledger| ledger.ledger_id == *id);
        if ledgers.iter().all(is_listed) {
            return Ok(Outcome::Already);
        }
        if !self.is_as_seen(&owner, seen, version) {
            return Ok(moved_past());
        }
        if let Some(open) = record.ledgers.last().filter(|_| record.last_open) {
            let is_nowhere = self.unconfirmed.contains(&(owner.clone(), open.ledger_id));
            ensure!(!is_nowhere, "its ledger {} is nowhere, and to forget it is not confirmed", open.ledger_id);
        }
        for ledger in ledgers {
            let known = self.metadata.get_ledger::<LedgerMetadata>(*ledger).await?;
            ensure!(known.is_some(), "there is no record of ledger {ledger}");
        }
        let measured = self.measure(&record, ledgers).await?;
        let (record, version) = match version {
            Some(version) => (record, version),
            None => {
                let created = TopicRecord { created_at: self.metadata.store().now_ms(), ..record };
                let created = self.metadata.create_topic(&name, created).await?;
                (created.value, created.version)
            }
        };
        self.keep_for_subscribers(&name, ledgers).await?;
        let record = extended(&record, &measured);
        let version = self.metadata.replace_topic(&name, &record, version, &[], None).await?;
        self.has_moved(owner, seen, version);
        Ok(Outcome::Done)
    }

    /// Subscriptions that are younger than the dump are lost, and with them what kept their messages: until somebody has seen to that,
    /// one of ours does.
    async fn keep_for_subscribers(&self, topic: &TopicName, ledgers: &[u64]) -> anyhow::Result<()> {
        let first = ledgers.iter().copied().min().context("no ledgers are to be put into the list")?;
        let record = SubscriptionRecord {
            cursor_id: self.metadata.fresh_cursor_id().await?,
            initial: Position { ledger_id: first, entry_id: -1 },
            properties: BTreeMap::new(),
            created_at: self.metadata.store().now_ms(),
            replicated: false,
        };
        match self.metadata.create_subscription(topic, KEEPER, record).await {
            // It keeps what an earlier restore brought back, and all that came since.
            Ok(_) | Err(MetadataError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Closes ledgers that a list is to get, and its open one, and finds out what they have.
    async fn measure(&self, record: &TopicRecord, ledgers: &[u64]) -> anyhow::Result<Vec<Measured>> {
        let open = record.ledgers.last().filter(|_| record.last_open).map(|last| last.ledger_id);
        let listed: BTreeSet<u64> = record.ledgers.iter().map(|ledger| ledger.ledger_id).collect();
        let wanted: BTreeSet<u64> = ledgers.iter().copied().filter(|id| !listed.contains(id)).chain(open).collect();
        let mut measured = Vec::new();
        // From the last to the first, as each ends where the next one begins.
        let mut next_first = None;
        let all: BTreeSet<u64> = listed.union(&wanted).copied().collect();
        for ledger in all.iter().rev() {
            if wanted.contains(ledger) {
                let found = self.measure_one(*ledger, next_first).await.with_context(|| format!("ledger {ledger}"))?;
                next_first = found.indexes.map(|(first, _)| first).or(next_first);
                measured.push(found);
            } else if let Some(known) = record.ledgers.iter().find(|it| it.ledger_id == *ledger && it.entries > 0) {
                next_first = Some(known.first_index);
            }
        }
        Ok(measured)
    }

    /// Entries whose messages have the indexes of the next ledger's were never acknowledged: after a failed write they were given again.
    async fn measure_one(&self, ledger: u64, next_first: Option<u64>) -> anyhow::Result<Measured> {
        let closed = self.storage.close(ledger).await?;
        let mut measured = Measured { ledger, entries: closed.entries, ..Measured::default() };
        let mut last = None;
        while let Some(entry) = measured.entries.checked_sub(1) {
            let facts = self.storage.entry(ledger, entry).await?;
            match (facts.index, next_first) {
                (Some(index), Some(next)) if index >= next => measured.entries -= 1,
                _ => {
                    last = Some(facts);
                    break;
                }
            }
        }
        if let Some(last) = last {
            let first = self.storage.entry(ledger, 0).await?;
            measured.time_ms = last.time_ms;
            measured.indexes = first
                .index
                .zip(last.index)
                .map(|(first_index, last_index)| ((first_index + 1).saturating_sub(first.messages), last_index + 1));
            let share = u128::from(closed.length) * u128::from(measured.entries) / u128::from(closed.entries.max(1));
            measured.size = share as u64;
        }
        Ok(measured)
    }

    pub(super) async fn forget_of_topic(&mut self, topic: &str, ledger: u64, seen: u64) -> anyhow::Result<Outcome> {
        let (name, owner) = (TopicName::parse(topic)?, Owner::Topic(topic.to_owned()));
        let Some(found) = self.metadata.get_topic(&name).await? else { return Ok(Outcome::Already) };
        let Some(record) = without(&found.value, ledger) else { return Ok(Outcome::Already) };
        if !self.is_as_seen(&owner, Some(seen), Some(found.version)) {
            return Ok(moved_past());
        }
        let version = self.metadata.replace_topic(&name, &record, found.version, &[ledger], None).await?;
        self.has_moved(owner, Some(seen), version);
        Ok(Outcome::Done)
    }

    pub(super) async fn create_partitioned(&self, topic: &str, partitions: u32) -> anyhow::Result<Outcome> {
        ensure!(partitions > 0, "a partitioned topic has at least one partition");
        let record = PartitionedTopicRecord { partitions, ..PartitionedTopicRecord::default() };
        match self.metadata.create_partitioned_topic(&TopicName::parse(topic)?, &record).await {
            Err(MetadataError::AlreadyExists { .. }) => Ok(Outcome::Already),
            created => Ok(created.map(|()| Outcome::Done)?),
        }
    }
}
