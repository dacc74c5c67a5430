//! Auto-recovery in a simulated cluster: which ledgers need a repair, and the driver of [`LedgerRepair`], as `storage-node/repair` and
//! `ledger/replicated` have them. Brokers' processes do here what storage nodes' do there; who does it makes no difference, as nothing
//! depends on there being only one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use geminga_ensemble::placement::Place;
use geminga_ensemble::repair::{
    CopyFailure, LedgerRepair, Listing, NodeTable, NodeView, RepairAction, RepairReport, Standing, survey,
};
use geminga_ensemble::{LedgerMetadata, NodeId};
use geminga_metadata::{MetadataError, Versioned};

use crate::cluster_broker::{Broker, Waiting};
use crate::cluster_ledgers::{digest_of, node_name};
use crate::cluster_messages::{Answer, Call};
use crate::cluster_plant::Plant;
use crate::cluster_sim::{Micros, SECOND};
use crate::cluster_tasks::promise;

/// Between two looks at all ledgers, at most.
const AUDIT: Micros = 30 * SECOND;
/// How long a writer has to leave a node that is lost, before its ledger is closed under it.
const GRACE: Micros = 15 * SECOND;

#[derive(Debug)]
struct Listed(BTreeSet<u64>);

impl Listing for Listed {
    fn contains(&self, entry: u64) -> bool {
        self.0.contains(&entry)
    }
}

impl Broker {
    /// Looks at all ledgers again and again, and repairs them.
    pub async fn keep_repairing(self: Rc<Self>) {
        let mut awaited = BTreeMap::new();
        loop {
            self.sleep(SECOND + self.sim.random(0..AUDIT)).await;
            // What fails is tried again with the next look.
            drop(self.audit(&mut awaited).await);
        }
    }

    /// `awaited`: since when the writers of ledgers are to leave a node.
    async fn audit(self: &Rc<Self>, awaited: &mut BTreeMap<u64, Micros>) -> Result<(), MetadataError> {
        let nodes = self.table();
        let ask = |metadata: geminga_metadata::Metadata| async move { metadata.list_ledgers(0, usize::MAX).await };
        let ledgers = self.ask(&self.metadata, "list ledgers", ask).await?;
        // One more than those that metadata show to be in need: a node may lack what it should have.
        let compared = ledgers.get(self.sim.random(0..ledgers.len().max(1) as u64) as usize).copied();
        awaited.retain(|ledger, _| ledgers.contains(ledger));
        for ledger in ledgers {
            let Some(known) = self.get_ledger(ledger).await? else { continue };
            let is_in_the_way = || self.sim.nodes.borrow().iter().any(|node| node.store.wants_closed(ledger));
            if is_in_the_way() {
                // It has no writer that writes, or that one would have left the node which may have lost what it had of it.
                self.sim.count("ledgers closed under a writer that does not leave a node with a loss");
                drop(self.recover_known(ledger, known).await);
                continue;
            }
            if survey::writers_end(&known.value, &nodes).is_empty() {
                awaited.remove(&ledger);
            } else if self.sim.now() - *awaited.entry(ledger).or_insert(self.sim.now()) > GRACE {
                self.sim.count("ledgers closed under a writer that does not leave a lost node");
                drop(self.recover_known(ledger, known).await);
                continue;
            }
            if compared == Some(ledger) || !survey::flaws(&known.value, &nodes).is_empty() {
                self.repair(ledger, known, nodes.clone()).await;
            }
        }
        Ok(())
    }

    /// The nodes as they seem to be. Now and then one that is only away is given up.
    fn table(&self) -> NodeTable {
        let view =
            |standing| NodeView { place: Place { region: "r".into(), zone: "z".into() }, standing, free_bytes: None };
        let nodes = self.sim.nodes.borrow();
        let standings = nodes.iter().enumerate().map(|(node, state)| match () {
            () if state.is_lost => (node, Standing::Lost),
            () if state.is_up && !self.is_suspect(&node_name(node)) => (node, Standing::Writable),
            () if self.sim.random(0..20) == 0 => (node, Standing::Lost),
            () => (node, Standing::Away),
        });
        standings.map(|(node, standing)| (node_name(node), view(standing))).collect()
    }

    async fn repair(self: &Rc<Self>, ledger: u64, known: Versioned<LedgerMetadata>, nodes: NodeTable) {
        let mut repair = LedgerRepair::new(known.value, known.version, nodes, self.sim.random(0..u64::MAX));
        let mut copies: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut actions = VecDeque::from(repair.take_actions());
        while let Some(action) = actions.pop_front() {
            match action {
                RepairAction::List { node } => {
                    let listing = match self.ask_node(&node, Call::List { ledger }).await {
                        Answer::Listed(entries) => Some(Box::new(Listed(entries)) as Box<dyn Listing>),
                        _ => None,
                    };
                    repair.listed(&node, listing);
                }
                RepairAction::Read { entry, node } => {
                    let answer = self.ask_node(&node, Call::Read { ledger, entry, fences: false }).await;
                    let good = match answer {
                        Answer::Here(body) => self.is_good(ledger, entry, &body).then_some(body),
                        _ => None,
                    };
                    repair.read(entry, &node, good.as_ref().map(|body| body.len() as u64));
                    good.into_iter().for_each(|body| drop(copies.insert(entry, body)));
                }
                RepairAction::Add { entry, nodes } => {
                    let body = copies.remove(&entry).expect("it was read for this");
                    for node in nodes {
                        let call = Call::Add { ledger, entry, body: body.clone(), recovery: true };
                        let added = match self.ask_node(&node, call).await {
                            Answer::Added => Ok(()),
                            Answer::Fenced => Err(CopyFailure::Refused),
                            _ => Err(CopyFailure::Unreachable),
                        };
                        repair.added(entry, &node, added);
                    }
                }
                RepairAction::WriteMetadata { metadata, expected_version } => {
                    let outcome = self.write_ledger(ledger, metadata, expected_version).await;
                    repair.metadata_written(outcome);
                }
                RepairAction::Done(report) => return self.repaired(&report),
            }
            actions.extend(repair.take_actions());
        }
    }

    fn is_good(&self, ledger: u64, entry: u64, body: &Bytes) -> bool {
        self.sim.plant == Plant::NoDigestCheck || digest_of(ledger).open(entry as i64, body.clone()).is_ok()
    }

    fn repaired(&self, report: &RepairReport) {
        self.sim.count_many("entries copied by repairs", report.copied);
        self.sim.count_many("lost nodes replaced by repairs", report.replaced);
        self.sim.count_many("repairs that could not do all", u64::from(!report.blockers.is_empty()));
    }

    async fn ask_node(&self, node: &NodeId, call: Call) -> Answer {
        let (resolver, answered) = promise();
        match self.call(node, call, Waiting::Task(resolver)) {
            true => answered.await,
            false => Answer::Failed,
        }
    }
}
