//! What the layers above see.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use geminga_ensemble::repair::{Listing, NodeTable, RepairReport};
use geminga_ensemble::{LedgerMetadata, LedgerState, NodeId, Quorum};
use geminga_flow::Budget;
use geminga_ledger_client::{AppendClass, AppendDone, EntryParts, LedgerClient, LedgerError, Pending, StoredEntry};
use geminga_metadata::{Metadata, MetadataError, Op};
use geminga_wire_bookkeeper::{MasterKey, master_key};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::catalog::{Catalog, Known};
use crate::nodes::{NodeDirectory, Nodes, ZonePolicy};
use crate::recovering::Unknown;
use crate::repairing::{self, CopyMeter};
use crate::tls::NodeTls;
use crate::writing::OpenLedger;
use crate::{reading, recovering};

/// The password of every ledger. Nodes are protected by who may connect; a key proves only that a peer means our ledgers.
pub const PASSWORD: &[u8] = b"";
/// Metadata of closed ledgers that are remembered: they never change but for where entries are.
const CLOSED_MAX: usize = 10_000;
/// Ledgers of which it is remembered that they existed: whoever gives one up fences it soon, or not at all.
const EXISTED_MAX: usize = 100_000;
const FREE_SPACE_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct ReplicationOptions {
    pub quorum: Quorum,
    pub zones: ZonePolicy,
    /// How long a storage node may take for one call before it is given up.
    pub call_timeout: Duration,
    /// Bytes that may wait to be sent to nodes.
    pub outbound_bytes: u64,
    /// None: storage nodes are spoken to in the clear.
    pub tls: Option<NodeTls>,
}

impl ReplicationOptions {
    /// For whoever writes no ledgers of its own: those that are there are read, closed and repaired with the quorums that they have.
    pub fn of_existing(call_timeout: Duration, outbound_bytes: u64, tls: Option<NodeTls>) -> Self {
        let quorum = Quorum { ensemble: 1, write: 1, ack: 1 };
        Self { quorum, zones: ZonePolicy::default(), call_timeout, outbound_bytes, tls }
    }
}

/// See the crate's head. Clones share everything.
#[derive(Clone)]
pub struct ReplicatedLedgers {
    shared: Arc<Shared>,
}

pub struct Shared {
    pub options: ReplicationOptions,
    pub catalog: Catalog,
    pub nodes: Nodes,
    pub master_key: MasterKey,
    pub runtime: tokio::runtime::Handle,
    pub closed: Mutex<HashMap<u64, LedgerMetadata>>,
    open: Mutex<HashMap<u64, Writing>>,
    /// The metadata of who owns a ledger that is about to be created.
    owners: Mutex<HashMap<u64, Metadata>>,
    /// Ledgers that were created or deleted here: that there is no record of one never means that it was not begun.
    existed: Mutex<HashSet<u64>>,
}

/// Appends that wait for a ledger to come into being.
struct Early {
    first_entry: u64,
    entries: Vec<EntryParts>,
    class: AppendClass,
    done: AppendDone,
}

enum Writing {
    /// What came early, and waits; and the writer from its creation on, while it is given what came before that.
    Creating(Vec<Early>, Option<Arc<OpenLedger>>),
    Open(Arc<OpenLedger>),
    /// Deleted while it was being created: its record goes again when that has come to its end.
    Deleted,
}

impl Shared {
    pub fn open(&self, ledger: u64) -> Option<Arc<OpenLedger>> {
        match self.open.lock().get(&ledger) {
            Some(Writing::Open(open) | Writing::Creating(_, Some(open))) => Some(open.clone()),
            Some(Writing::Creating(_, None) | Writing::Deleted) | None => None,
        }
    }

    /// Whether it is being created here, and has no writer yet.
    pub fn is_coming(&self, ledger: u64) -> bool {
        matches!(self.open.lock().get(&ledger), Some(Writing::Creating(_, None)))
    }

    fn all_open(&self) -> Vec<Arc<OpenLedger>> {
        let open = self.open.lock();
        let writing = open.values().filter_map(|writing| match writing {
            Writing::Open(open) | Writing::Creating(_, Some(open)) => Some(open.clone()),
            Writing::Creating(_, None) | Writing::Deleted => None,
        });
        writing.collect()
    }

    /// A writer that has what came early is forgotten. Until then it stays, and refuses that in its order.
    pub fn forget_open(&self, ledger: u64) {
        let mut open = self.open.lock();
        if let Some(Writing::Open(_)) = open.get(&ledger) {
            open.remove(&ledger);
        }
    }

    /// Nothing more is written to a ledger that is being deleted, and what waits fails.
    fn give_up(&self, ledger: u64) {
        let (early, writer) = {
            let mut open = self.open.lock();
            match open.remove(&ledger) {
                Some(Writing::Open(writer)) => (Vec::new(), Some(writer)),
                Some(Writing::Creating(early, writer)) => {
                    open.insert(ledger, Writing::Deleted);
                    (early, writer)
                }
                Some(Writing::Deleted) => {
                    open.insert(ledger, Writing::Deleted);
                    return;
                }
                None => {
                    self.owners.lock().remove(&ledger);
                    return;
                }
            }
        };
        if let Some(writer) = writer {
            writer.give_up();
        }
        early.into_iter().for_each(|early| (early.done)(Err(LedgerError::Fenced(ledger))));
    }

    /// Whether there was such a ledger, as far as that is remembered.
    pub fn existed(&self, ledger: u64) -> bool {
        self.existed.lock().contains(&ledger)
    }

    fn remember_existed(&self, ledger: u64) {
        let mut existed = self.existed.lock();
        if existed.len() >= EXISTED_MAX {
            existed.clear();
        }
        existed.insert(ledger);
    }

    pub fn remember_closed(&self, ledger: u64, metadata: &LedgerMetadata) {
        let mut closed = self.closed.lock();
        if closed.len() >= CLOSED_MAX {
            closed.clear();
        }
        closed.insert(ledger, metadata.clone());
    }

    async fn create(self: &Arc<Self>, ledger: u64) -> Result<Arc<OpenLedger>, LedgerError> {
        let quorum = self.options.quorum;
        let chosen = self.nodes.choose(quorum).await;
        let ensemble: Vec<String> = chosen.into_iter().flatten().collect();
        if ensemble.len() < quorum.ensemble as usize {
            return Err(LedgerError::Io(format!(
                "{} storage nodes of {} are there for ledger {ledger}, in as many zones as have to be",
                ensemble.len(),
                quorum.ensemble
            )));
        }
        let metadata = LedgerMetadata::new(quorum, ensemble, BTreeMap::new());
        let owner = self.owners.lock().remove(&ledger);
        let catalog = owner.map_or_else(|| self.catalog.clone(), Catalog::new);
        let Known { metadata: found, version } =
            catalog.create(ledger, &metadata).await.map_err(|error| match error.is_deposed() {
                true => LedgerError::Fenced(ledger),
                false => metadata_error(error),
            })?;
        if found != metadata {
            // Somebody recovered it before it was there.
            return Err(LedgerError::Fenced(ledger));
        }
        self.remember_existed(ledger);
        Ok(OpenLedger::new(ledger, Known { metadata: found, version }, self.clone()))
    }

    async fn bring_into_being(self: Arc<Self>, ledger: u64) {
        let created = self.create(ledger).await;
        if let Err(error) = &created {
            tracing::warn!(ledger, %error, "could not create a ledger");
        }
        loop {
            // Those that came first go first; whoever comes meanwhile waits behind them.
            let early = {
                let mut open = self.open.lock();
                let Some(Writing::Creating(early, writer)) = open.get_mut(&ledger) else { break };
                // From now on reads find it, and do not take the ledger for one that somebody has left.
                *writer = created.as_ref().ok().cloned();
                if early.is_empty() {
                    match &created {
                        Ok(writer) => drop(open.insert(ledger, Writing::Open(writer.clone()))),
                        Err(_) => drop(open.remove(&ledger)),
                    }
                    drop(open);
                    // One that has ended before was not forgotten.
                    if created.is_ok_and(|writer| writer.has_ended()) {
                        self.forget_open(ledger);
                    }
                    return;
                }
                std::mem::take(early)
            };
            for Early { first_entry, entries, class, done } in early {
                match &created {
                    Ok(open) => open.append(first_entry, entries, class, done),
                    Err(error) => done(Err(error.clone())),
                }
            }
        }
        // It was deleted meanwhile, perhaps before there was a record of it.
        self.catalog.delete_at_last(ledger).await;
        self.open.lock().remove(&ledger);
    }
}

pub fn metadata_error(error: MetadataError) -> LedgerError {
    LedgerError::Io(format!("metadata: {error}"))
}

impl ReplicatedLedgers {
    /// To be called in a tokio runtime, which does the work.
    pub fn new(metadata: Metadata, directory: Arc<dyn NodeDirectory>, options: ReplicationOptions) -> Self {
        let outbound = Budget::new(options.outbound_bytes);
        Self {
            shared: Arc::new(Shared {
                catalog: Catalog::new(metadata),
                nodes: Nodes::new(directory, outbound, options.call_timeout, options.zones, options.tls.clone()),
                master_key: master_key(PASSWORD),
                runtime: tokio::runtime::Handle::current(),
                closed: Mutex::default(),
                open: Mutex::default(),
                owners: Mutex::default(),
                existed: Mutex::default(),
                options,
            }),
        }
    }

    /// Repairs what can be repaired of a ledger, with the nodes as they stand by what was sent last. `explain` hears now and then
    /// what it waits for.
    ///
    /// # Errors
    /// The ledger's metadata could not be read.
    pub async fn repair(
        &self,
        ledger: u64,
        nodes: watch::Receiver<NodeTable>,
        meter: &Arc<CopyMeter>,
        explain: impl Fn(String) + Send + Sync,
    ) -> Result<RepairReport, LedgerError> {
        repairing::repair(&self.shared, ledger, nodes, meter, explain).await
    }

    /// Fences and closes a ledger as [`LedgerClient::recover`] does, if there is such a ledger.
    ///
    /// # Errors
    /// [`LedgerError::NoSuchLedger`] if there is none; another error if it cannot be recovered now.
    pub async fn recover_existing(&self, ledger: u64) -> Result<(), LedgerError> {
        recovering::recover_existing(&self.shared, ledger).await.map(drop)
    }

    fn recover_with(&self, ledger_id: u64, unknown: Unknown) -> Pending<Option<u64>> {
        let shared = self.shared.clone();
        Box::pin(async move {
            // Whoever has written it all, and knows that, need only write down where it ends.
            if let Some(open) = shared.open(ledger_id) {
                let _ = open.close().await;
            }
            let metadata = recovering::recover(&shared, ledger_id, unknown).await?;
            shared.forget_open(ledger_id);
            shared.remember_closed(ledger_id, &metadata);
            Ok(recovering::last_entry(&metadata))
        })
    }

    /// Which entries of a ledger a storage node has; `None` if it does not say.
    pub async fn list_entries(&self, ledger: u64, node: &NodeId) -> Option<Box<dyn Listing>> {
        repairing::list_entries(&self.shared, ledger, node).await
    }

    /// Bytes that are free on a storage node's disk; `None` if it does not say.
    pub async fn free_space(&self, node: &NodeId) -> Option<u64> {
        repairing::free_space(&self.shared, node).await
    }

    /// Asks nodes for their free space, which new ledgers are placed by, from time to time until the process ends.
    pub async fn follow_free_space(self) {
        loop {
            let mut free_bytes = HashMap::new();
            for node in self.shared.nodes.writable() {
                if let Some(free) = self.free_space(&node).await {
                    free_bytes.insert(node, free);
                }
            }
            self.shared.nodes.learn_free_bytes(free_bytes);
            tokio::time::sleep(FREE_SPACE_EVERY).await;
        }
    }

    /// There are other nodes than before: writers look whether they should go on with others, in a while.
    pub fn nodes_changed(&self) {
        let shared = self.shared.clone();
        self.shared.runtime.spawn(async move {
            shared.nodes.leave_moved();
            let gone = shared.nodes.gone().await;
            shared.all_open().iter().for_each(|open| open.nodes_changed(&gone));
        });
    }
}

impl LedgerClient for ReplicatedLedgers {
    fn owned_by(&self, ledger_id: u64, metadata: &Metadata) {
        self.shared.owners.lock().insert(ledger_id, metadata.clone());
    }

    fn append(&self, ledger_id: u64, first_entry: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone) {
        let ledger = {
            let mut open = self.shared.open.lock();
            match open.get_mut(&ledger_id) {
                Some(Writing::Open(ledger)) => ledger.clone(),
                Some(Writing::Creating(early, _)) => {
                    early.push(Early { first_entry, entries, class, done });
                    return;
                }
                // Whoever goes on with a ledger that failed, or is closed, hears that it takes no more.
                Some(Writing::Deleted) => {
                    drop(open);
                    return done(Err(LedgerError::Fenced(ledger_id)));
                }
                None if first_entry > 0 => {
                    drop(open);
                    return done(Err(LedgerError::Fenced(ledger_id)));
                }
                None => {
                    let early = vec![Early { first_entry, entries, class, done }];
                    open.insert(ledger_id, Writing::Creating(early, None));
                    self.shared.runtime.spawn(self.shared.clone().bring_into_being(ledger_id));
                    return;
                }
            }
        };
        ledger.append(first_entry, entries, class, done);
    }

    fn read(&self, ledger_id: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>> {
        let shared = self.shared.clone();
        Box::pin(async move { reading::read(&shared, ledger_id, first, last, max_bytes).await })
    }

    fn recover(&self, ledger_id: u64) -> Pending<Option<u64>> {
        self.recover_with(ledger_id, Unknown::NeverBegun)
    }

    fn announcement(&self, ledger_id: u64) -> Option<Op> {
        let metadata = LedgerMetadata::announced(self.shared.options.quorum);
        Some(Metadata::announcement(ledger_id, &metadata).expect("metadata of a ledger are JSON"))
    }

    fn recover_announced(&self, ledger_id: u64) -> Pending<Option<u64>> {
        self.recover_with(ledger_id, Unknown::Error)
    }

    fn finish(&self, ledger_ids: Vec<u64>) -> Pending<()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let open: Vec<_> = ledger_ids.into_iter().filter_map(|ledger| shared.open(ledger)).collect();
            let closing: Vec<_> = open.iter().map(OpenLedger::close).collect();
            let all = async {
                for closed in closing {
                    if let Ok(Err(error)) = closed.await {
                        tracing::debug!(%error, "a ledger is left to recovery");
                    }
                }
            };
            if tokio::time::timeout(shared.options.call_timeout, all).await.is_err() {
                tracing::warn!("ledgers could not be closed in time; they are left to recovery");
            }
            open.iter().for_each(|open| shared.forget_open(open.id));
            Ok(())
        })
    }

    fn delete(&self, ledger_ids: Vec<u64>) -> Pending<()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            for ledger in ledger_ids {
                shared.give_up(ledger);
                shared.remember_existed(ledger);
                // Storage nodes find by themselves that nobody knows it any more.
                shared.catalog.delete(ledger).await.map_err(metadata_error)?;
                shared.closed.lock().remove(&ledger);
            }
            Ok(())
        })
    }

    fn size(&self, ledger_id: u64) -> u64 {
        if let Some(open) = self.shared.open(ledger_id) {
            return open.length();
        }
        match self.shared.closed.lock().get(&ledger_id).map(|metadata| metadata.state) {
            Some(LedgerState::Closed { length, .. }) => length,
            _ => 0,
        }
    }
}
