//! What carrying out a plan needs of ledgers: to close them, and to read them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use geminga_doctor::LedgerMetadata;
use geminga_ensemble::LedgerState;
use geminga_ledger::cursor_log::{CursorLog, CursorLogConfig};
use geminga_ledger_client::LedgerClient;
use geminga_metadata::Metadata;
use geminga_replicated_ledgers::{Membership, NodeTls, ReplicatedLedgers, ReplicationOptions};

/// A storage node that takes longer for a call is given up.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const OUTBOUND_BYTES: u64 = 64 << 20;
/// Bytes of a cursor log read at once.
const REPLAY_BYTES: usize = 4 << 20;

/// Of a closed ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    pub entries: u64,
    /// Bytes of their payload.
    pub length: u64,
}

/// What an entry of a topic says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryFacts {
    /// Of its last message.
    pub index: Option<u64>,
    pub messages: u64,
    /// When the broker got it, in milliseconds since the Unix epoch; 0 if it does not say.
    pub time_ms: u64,
}

pub trait Storage {
    /// Fences the ledger, finds its end and closes it. It has to have a record.
    async fn close(&self, ledger: u64) -> anyhow::Result<Closed>;

    async fn entry(&self, ledger: u64, entry: u64) -> anyhow::Result<EntryFacts>;

    /// The cursors in a cursor log of these closed ledgers, each with its number of entries; and of each cursor the greatest ledger that
    /// anything is acknowledged in.
    async fn cursors(&self, ledgers: &[(u64, u64)]) -> anyhow::Result<BTreeMap<u64, u64>>;
}

/// On storage nodes.
pub struct Nodes {
    metadata: Metadata,
    ledgers: ReplicatedLedgers,
}

impl Nodes {
    /// # Errors
    /// Metadata could not be read.
    pub async fn open(metadata: &Metadata, tls: Option<NodeTls>) -> anyhow::Result<Self> {
        let membership =
            Membership::open(metadata.clone()).await.context("cannot read which storage nodes there are")?;
        let options = ReplicationOptions::of_existing(CALL_TIMEOUT, OUTBOUND_BYTES, tls);
        let ledgers = ReplicatedLedgers::new(metadata.clone(), Arc::new(membership), options);
        Ok(Self { metadata: metadata.clone(), ledgers })
    }
}

impl Storage for Nodes {
    async fn close(&self, ledger: u64) -> anyhow::Result<Closed> {
        self.ledgers.recover_announced(ledger).await?;
        let record = self.metadata.get_ledger::<LedgerMetadata>(ledger).await?;
        match record.map(|record| record.value.state) {
            Some(LedgerState::Closed { entries, length }) => Ok(Closed { entries, length }),
            _ => anyhow::bail!("ledger {ledger} was closed, and is not any more"),
        }
    }

    async fn entry(&self, ledger: u64, entry: u64) -> anyhow::Result<EntryFacts> {
        let read = self.ledgers.read(ledger, entry, entry, 1).await?;
        let found = read.first().with_context(|| format!("entry {ledger}:{entry} is not there"))?;
        let view =
            geminga_wire_pulsar::parse_payload(&found.data).with_context(|| format!("entry {ledger}:{entry}"))?;
        let broker = view.broker_entry.unwrap_or_default();
        let messages = u64::from(view.meta.num_messages);
        Ok(EntryFacts { index: broker.index, messages, time_ms: broker.timestamp.unwrap_or(0) })
    }

    async fn cursors(&self, ledgers: &[(u64, u64)]) -> anyhow::Result<BTreeMap<u64, u64>> {
        let mut log = CursorLog::new(CursorLogConfig::default());
        for &(ledger, entries) in ledgers {
            log.replay_ledger(ledger);
            let mut next = 0;
            while next < entries {
                let read = self.ledgers.read(ledger, next, entries - 1, REPLAY_BYTES).await?;
                anyhow::ensure!(!read.is_empty(), "entry {ledger}:{next} is not there");
                for entry in read {
                    log.replay_entry(&entry.data).with_context(|| format!("entry {ledger}:{}", entry.entry_id))?;
                    next = entry.entry_id + 1;
                }
            }
        }
        let last_ledger = |id: u64| Some((id, log.state(id)?.last_ledger()));
        Ok(log.cursor_ids().filter_map(last_ledger).collect())
    }
}
