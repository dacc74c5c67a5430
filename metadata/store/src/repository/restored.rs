//! Whether metadata were restored from an older dump.
//!
//! Every storage node counts up `witnesses/NODE`, and keeps the count on its disks. Nobody else writes that record, so a smaller count
//! than the disk's can only come from a dump, whatever else was written since. The node then puts `restored/NODE`, and as long as there is
//! such a record brokers do nothing and nodes delete nothing: `geminga doctor` settles it.

use serde::{Deserialize, Serialize};

use super::{Metadata, Versioned};
use crate::{Expect, MetadataError, Op, Watch, codec};

const WITNESSES: &str = "witnesses/";
const RESTORED: &str = "restored/";

/// What a storage node says of the metadata that it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessRecord {
    pub count: u64,
    /// When it was counted up, by the store's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// What a storage node has on its disks of the newest metadata that it has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Witness {
    pub count: u64,
    /// Of the commit that counted it up.
    pub version: u64,
    /// Every ledger id that was given then is below, and the same of cursor ids.
    pub ledger_ids_end: u64,
    pub cursor_ids_end: u64,
}

/// Metadata are older than what this node remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRecord {
    /// When that was noticed, by the store's clock, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    pub remembered: Witness,
}

impl Metadata {
    pub async fn get_witness(&self, node: &str) -> Result<Option<Versioned<WitnessRecord>>, MetadataError> {
        self.read(&format!("{WITNESSES}{node}")).await
    }

    /// Writes the record if its version is `version` (none: it must not exist yet), and answers the new version. Watches are
    /// not told.
    pub async fn put_witness(
        &self,
        node: &str,
        record: &WitnessRecord,
        version: Option<u64>,
    ) -> Result<u64, MetadataError> {
        let expect = version.map_or(Expect::Absent, Expect::Version);
        let put = Op::put_quietly(format!("{WITNESSES}{node}"), codec::encode(record)?, expect);
        Ok(self.store.commit(vec![put]).await?[0])
    }

    /// Of every node that has ever witnessed these metadata.
    pub async fn list_witnesses(&self) -> Result<Vec<(String, WitnessRecord)>, MetadataError> {
        let witnesses = self.list(WITNESSES).await?;
        Ok(witnesses.into_iter().map(|(node, record)| (node, record.value)).collect())
    }

    /// Says for everybody that these metadata are older than what a node remembers, unless that is said already, or was settled since
    /// the witness was read, which had this version (none: there was none).
    pub async fn note_restored(
        &self,
        node: &str,
        record: &RestoredRecord,
        witness: Option<u64>,
    ) -> Result<(), MetadataError> {
        let ops = vec![
            Op::check(format!("{WITNESSES}{node}"), witness.map_or(Expect::Absent, Expect::Version)),
            Op::put(format!("{RESTORED}{node}"), codec::encode(record)?, Expect::Absent),
        ];
        match self.store.commit(ops).await {
            Err(error) if !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Tells of nodes that come to remember newer metadata than these, and of those that take them for current again.
    pub async fn watch_restored(&self) -> Result<Watch, MetadataError> {
        self.store.watch(RESTORED).await
    }

    /// The nodes that remember newer metadata than these; none while all is well.
    pub async fn restored(&self) -> Result<Vec<(String, Versioned<RestoredRecord>)>, MetadataError> {
        self.list(RESTORED).await
    }

    /// Whether some node remembers newer metadata than these.
    pub async fn is_restored(&self) -> Result<bool, MetadataError> {
        Ok(!self.store.scan(RESTORED, None, 1).await?.is_empty())
    }

    /// The node takes the metadata for current again: what was lost is put back, or given up. Versions go on above those that it has
    /// seen, so that nobody who remembers one of them takes a new record for an old one.
    ///
    /// # Errors
    /// [`MetadataError::Conflict`] if what the node says is not of this version.
    pub async fn settle_restored(&self, node: &str, noted: &Versioned<RestoredRecord>) -> Result<(), MetadataError> {
        let Witness { count, version, .. } = noted.value.remembered;
        let witness = WitnessRecord { count, at_ms: self.store.now_ms() };
        let ops = vec![
            Op::RaiseVersion { above: version },
            Op::delete(format!("{RESTORED}{node}"), Expect::Version(noted.version)),
            Op::put(format!("{WITNESSES}{node}"), codec::encode(&witness)?, Expect::Any),
        ];
        self.store.commit(ops).await.map(drop)
    }
}
