//! For a storage node that has lost an entry: the copies that other nodes of its ledger have.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ensemble::{NodeId, Share, distribution};
use geminga_flow::Budget;
use geminga_metadata::{Metadata, MetadataError};
use geminga_wire_bookkeeper::{Digest, DigestKind};
use tokio::sync::oneshot;

use crate::catalog::Catalog;
use crate::client::PASSWORD;
use crate::nodes::{NodeDirectory, Nodes, ZonePolicy};
use crate::tls::NodeTls;

/// Requests that may wait to be sent, in bytes; they are small.
const OUTBOUND_BYTES: u64 = 1 << 20;

/// What there is of an entry apart from one node.
#[derive(Debug)]
pub enum Copy {
    /// Head, digest and payload as they are stored; the digest is verified.
    Entry(Bytes),
    /// There is no such ledger any more.
    NoLedger,
    /// The node does not have to have the entry.
    NotItsEntry,
    /// None of the others can give it now.
    Unavailable(String),
}

#[derive(Clone)]
pub struct ReplicaReader {
    catalog: Catalog,
    nodes: Arc<Nodes>,
}

impl ReplicaReader {
    /// `call_timeout`: how long a node may take for one read; `tls`: as in [`ReplicationOptions`](crate::ReplicationOptions).
    pub fn new(
        metadata: Metadata,
        directory: Arc<dyn NodeDirectory>,
        call_timeout: Duration,
        tls: Option<NodeTls>,
    ) -> Self {
        let nodes = Nodes::new(directory, Budget::new(OUTBOUND_BYTES), call_timeout, ZonePolicy::default(), tls);
        Self { catalog: Catalog::new(metadata), nodes: Arc::new(nodes) }
    }

    /// The entry as another node than `node` has it, if `node` is one of those that should.
    ///
    /// # Errors
    /// Metadata could not be read.
    pub async fn copy_for(&self, node: &NodeId, ledger: u64, entry: u64) -> Result<Copy, MetadataError> {
        let Some(known) = self.catalog.get(ledger).await? else { return Ok(Copy::NoLedger) };
        let (quorum, ensemble) = (known.metadata.quorum, &known.metadata.fragment_of(entry).ensemble);
        let holders: Vec<&NodeId> = distribution::write_order(quorum, entry).map(|slot| &ensemble[slot]).collect();
        if !holders.contains(&node) {
            return Ok(Copy::NotItsEntry);
        }
        let mut reasons = Vec::new();
        for other in holders.into_iter().filter(|other| *other != node) {
            match self.read(other, ledger, entry).await {
                Ok(body) => return Ok(Copy::Entry(body)),
                Err(reason) => reasons.push(format!("{other}: {reason}")),
            }
        }
        Ok(Copy::Unavailable(reasons.join("; ")))
    }

    /// What `node` has to have of ledgers from the id `from` on, of at most `limit` of them, and where to go on.
    ///
    /// # Errors
    /// Metadata could not be read.
    pub async fn shares_of(
        &self,
        node: &str,
        from: u64,
        limit: usize,
    ) -> Result<(Vec<(u64, Share)>, Option<u64>), MetadataError> {
        let ids = self.catalog.list(from, limit).await?;
        let mut shares = Vec::new();
        for ledger in &ids {
            let share = self.catalog.get(*ledger).await?.and_then(|known| known.metadata.share_of(node));
            shares.extend(share.map(|share| (*ledger, share)));
        }
        Ok((shares, ids.last().map(|last| last + 1)))
    }

    async fn read(&self, node: &NodeId, ledger: u64, entry: u64) -> Result<Bytes, String> {
        let connection = self.nodes.connect(node).await.ok_or("unreachable")?;
        let (sender, receiver) = oneshot::channel();
        connection.read(ledger, entry as i64, None, Box::new(move |result| drop(sender.send(result))));
        let body = match receiver.await {
            Ok(Ok(body)) => body,
            Ok(Err(failure)) => return Err(format!("{failure:?}")),
            Err(_) => return Err("the connection broke".to_owned()),
        };
        // A copy of damage would be damage that nobody finds any more.
        let digest = Digest::new(ledger as i64, DigestKind::Crc32c, PASSWORD);
        digest.open(entry as i64, body.clone()).map_err(|error| error.to_string())?;
        Ok(body)
    }
}
