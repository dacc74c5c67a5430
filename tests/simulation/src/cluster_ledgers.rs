//! Ledgers that a simulated broker writes: the pure writers with the network below, as `ledger/replicated` has them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use geminga_ensemble::{
    AddFailure, LedgerMetadata, LedgerState, LedgerWriter, NodeId, Quorum, WriterAction, WriterError,
};
use geminga_ledger::managed_ledger::WriteError;
use geminga_metadata::Metadata;
use geminga_model::BundleRange;
use geminga_wire_bookkeeper::{Digest, DigestKind, ENTRY_NONE};

use crate::cluster_broker::{Broker, Waiting};
use crate::cluster_messages::{Answer, Call};
use crate::cluster_plant::Plant;
use crate::cluster_recovery::Recovery;
use crate::cluster_sim::SECOND;
use crate::cluster_tasks::Resolver;
use crate::ensemble_simulation::Storage;

/// What of a broker has a ledger: the log of a bundle, or a topic of it; in one ownership of the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub bundle: BundleRange,
    pub ownership: u64,
    pub topic: Option<usize>,
}

/// The end of an append.
#[derive(Debug)]
pub struct WriteDone {
    pub part: Part,
    pub ledger: u64,
    pub first: u64,
    pub count: u64,
    pub result: Result<(), WriteError>,
}

/// An append that has not ended.
struct Append {
    part: Part,
    first: u64,
    payloads: Vec<Bytes>,
}

struct Pending {
    part: Part,
    first: u64,
    count: u64,
}

#[derive(Default)]
pub struct OpenLedger {
    /// None until the ledger is in metadata.
    pub writer: Option<LedgerWriter>,
    early: Vec<Append>,
    bodies: VecDeque<Bytes>,
    first_body: u64,
    pending: VecDeque<Pending>,
    confirmed: u64,
    closing: Vec<Resolver<()>>,
}

#[derive(Default)]
pub struct Ledgers {
    pub open: BTreeMap<u64, OpenLedger>,
    pub recoveries: BTreeMap<u64, Recovery>,
    pub closed: BTreeMap<u64, LedgerMetadata>,
    pub next_recovery: u64,
}

pub fn node_name(node: usize) -> NodeId {
    format!("node-{node}")
}

pub fn node_number(node: &NodeId) -> Option<usize> {
    node.strip_prefix("node-").and_then(|number| number.parse().ok())
}

pub fn digest_of(ledger: u64) -> Digest {
    Digest::new(ledger as i64, DigestKind::Crc32c, b"")
}

/// Of a ledger that nobody may create any more.
pub fn closed_empty(quorum: Quorum) -> LedgerMetadata {
    let nobody = (0..quorum.ensemble).map(|n| format!("none-{n}")).collect();
    let mut metadata = LedgerMetadata::new(quorum, nobody, BTreeMap::new());
    metadata.state = LedgerState::Closed { entries: 0, length: 0 };
    metadata
}

impl Broker {
    /// `metadata` are those of the bundle's owner: a ledger comes into being only while the bundle is still its own. (A deposed
    /// owner could otherwise create it after it was recovered as one that never was, and deleted.)
    pub fn append(self: &Rc<Self>, part: Part, metadata: &Metadata, ledger: u64, first: u64, payloads: Vec<Bytes>) {
        let append = Append { part, first, payloads };
        let mut ledgers = self.ledgers.borrow_mut();
        match ledgers.open.get_mut(&ledger) {
            Some(OpenLedger { writer: None, early, .. }) => early.push(append),
            Some(open) => {
                self.take_in(ledger, open, append);
                self.follow_writer(ledger, open);
            }
            // Whoever goes on with a ledger that failed, or is closed, hears that it takes no more.
            None if first > 0 => self.append_failed(ledger, append, WriteError::Fenced),
            None => {
                ledgers.open.insert(ledger, OpenLedger { early: vec![append], ..OpenLedger::default() });
                let metadata = match self.sim.plant {
                    Plant::UnguardedCreation => self.metadata.clone(),
                    _ => metadata.clone(),
                };
                let broker = self.clone();
                self.tasks.spawn(async move { broker.create_ledger(ledger, metadata).await });
            }
        }
        self.forget_ended(&mut ledgers, ledger);
    }

    fn append_failed(&self, ledger: u64, append: Append, error: WriteError) {
        let count = append.payloads.len() as u64;
        let done = WriteDone { part: append.part, ledger, first: append.first, count, result: Err(error) };
        self.done.borrow_mut().push_back(done);
    }

    async fn create_ledger(self: Rc<Self>, ledger: u64, guarded: Metadata) {
        let created = self.put_new_ledger(ledger, &guarded).await;
        let mut ledgers = self.ledgers.borrow_mut();
        let Some(open) = ledgers.open.get_mut(&ledger) else { return };
        let early = std::mem::take(&mut open.early);
        match created {
            Ok((metadata, version)) => {
                open.writer = Some(LedgerWriter::new(metadata, version));
                early.into_iter().for_each(|append| self.take_in(ledger, open, append));
                self.follow_writer(ledger, open);
            }
            Err(error) => {
                ledgers.open.remove(&ledger);
                early.into_iter().for_each(|append| self.append_failed(ledger, append, error.clone()));
            }
        }
        self.forget_ended(&mut ledgers, ledger);
    }

    async fn put_new_ledger(
        self: &Rc<Self>,
        ledger: u64,
        guarded: &Metadata,
    ) -> Result<(LedgerMetadata, u64), WriteError> {
        let quorum = self.quorum;
        let ensemble: Vec<NodeId> =
            self.choose(quorum.ensemble as usize, &[], &BTreeSet::new()).into_iter().flatten().collect();
        if ensemble.len() < quorum.ensemble as usize {
            return Err(WriteError::Failed("too few storage nodes".into()));
        }
        let metadata = LedgerMetadata::new(quorum, ensemble, BTreeMap::new());
        match self.put_ledger(guarded, ledger, metadata.clone(), None).await {
            Ok(version) => Ok((metadata, version)),
            // Somebody has recovered it before it was there.
            Err(error) if error.is_deposed() => Err(WriteError::Fenced),
            Err(error) => Err(WriteError::Failed(error.to_string())),
        }
    }

    fn take_in(&self, ledger: u64, open: &mut OpenLedger, append: Append) {
        let Some(writer) = &mut open.writer else { unreachable!("it was created") };
        if writer.has_ended() {
            return self.append_failed(ledger, append, WriteError::Fenced);
        }
        let digest = digest_of(ledger);
        let count = append.payloads.len() as u64;
        for (nth, payload) in (append.first..).zip(&append.payloads) {
            let confirmed = writer.last_add_confirmed().map_or(ENTRY_NONE, |last| last as i64);
            let Ok(entry) = writer.append(payload.len() as u64) else {
                return self.append_failed(ledger, append, WriteError::Fenced);
            };
            assert_eq!(entry, nth, "a ledger is numbered otherwise than by its owner");
            let head = digest.entry_head(entry as i64, confirmed, writer.length() as i64, &[payload]);
            let mut body = BytesMut::with_capacity(head.len() + payload.len());
            body.extend_from_slice(&head);
            body.extend_from_slice(payload);
            open.bodies.push_back(body.freeze());
            self.sim.oracle.borrow_mut().entry_written(ledger, entry, payload);
        }
        open.pending.push_back(Pending { part: append.part, first: append.first, count });
    }

    /// Does what the writer wants.
    fn follow_writer(self: &Rc<Self>, ledger: u64, open: &mut OpenLedger) {
        let Some(writer) = &mut open.writer else { return };
        loop {
            let actions = writer.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    WriterAction::Send { entry, node, .. } => {
                        let body = open.bodies[(entry - open.first_body) as usize].clone();
                        let call = Call::Add { ledger, entry, body, recovery: false };
                        if !self.call(&node, call, Waiting::Add { ledger, entry }) {
                            writer.added(entry, &node, Err(AddFailure::Failed));
                        }
                    }
                    WriterAction::Confirm { up_to } => {
                        self.sim.oracle.borrow_mut().ledger_confirmed(&self.sim, ledger, open.confirmed, up_to);
                        open.confirmed = up_to + 1;
                        open.bodies.drain(..(up_to + 1 - open.first_body) as usize);
                        open.first_body = up_to + 1;
                        while let Some(pending) =
                            open.pending.pop_front_if(|pending| pending.first + pending.count <= up_to + 1)
                        {
                            let Pending { part, first, count } = pending;
                            let done = WriteDone { part, ledger, first, count, result: Ok(()) };
                            self.done.borrow_mut().push_back(done);
                        }
                    }
                    WriterAction::Closed { .. } => open.closing.drain(..).for_each(|closing| closing.resolve(())),
                    WriterAction::Fail(error) => {
                        let fenced = matches!(error, WriterError::Fenced | WriterError::MetadataChanged);
                        self.sim.count(if fenced { "writers fenced" } else { "writers without nodes" });
                        // Models of nodes do not fill the gaps between deleted ledgers.
                        let may_be_refused = error == WriterError::Fenced && open.confirmed == 0;
                        let fills_gaps = self.sim.storage == Storage::Engine;
                        if may_be_refused && fills_gaps && self.sim.plant != Plant::RefusedIdsAreUsed {
                            self.metadata.skip_ledger_ids();
                        }
                        let error = if fenced { WriteError::Fenced } else { WriteError::Failed(error.to_string()) };
                        for Pending { part, first, count } in open.pending.drain(..) {
                            let done = WriteDone { part, ledger, first, count, result: Err(error.clone()) };
                            self.done.borrow_mut().push_back(done);
                        }
                        open.closing.drain(..).for_each(|closing| closing.resolve(()));
                    }
                    WriterAction::Choose { ensemble, failed, avoid } => {
                        self.sim.count("storage nodes replaced under a writer");
                        writer.chosen(self.choose(failed.len(), &ensemble, &avoid));
                    }
                    WriterAction::WriteMetadata { metadata, expected_version } => {
                        let broker = self.clone();
                        self.tasks.spawn(async move {
                            let outcome = broker.write_ledger(ledger, metadata, expected_version).await;
                            broker.tell_writer(ledger, |writer| match outcome {
                                Some(outcome) => writer.metadata_written(outcome),
                                None => writer.give_up(WriterError::MetadataChanged),
                            });
                        });
                    }
                }
            }
        }
    }

    fn tell_writer(self: &Rc<Self>, ledger: u64, event: impl FnOnce(&mut LedgerWriter)) {
        let mut ledgers = self.ledgers.borrow_mut();
        let Some(open) = ledgers.open.get_mut(&ledger) else { return };
        let Some(writer) = &mut open.writer else { return };
        event(writer);
        self.follow_writer(ledger, open);
        self.forget_ended(&mut ledgers, ledger);
    }

    fn forget_ended(&self, ledgers: &mut Ledgers, ledger: u64) {
        let ended = |open: &OpenLedger| open.writer.as_ref().is_some_and(LedgerWriter::has_ended);
        if ledgers.open.get(&ledger).is_some_and(ended) {
            ledgers.open.remove(&ledger);
        }
    }

    /// A node has answered, or does not.
    pub fn added(self: &Rc<Self>, ledger: u64, entry: u64, node: usize, answer: &Answer) {
        let result = match answer {
            Answer::Added => Ok(()),
            Answer::Fenced => Err(AddFailure::Fenced),
            _ => {
                if *answer == Answer::Unknown {
                    self.metadata.skip_ledger_ids_with(ledger);
                }
                self.suspect(node);
                Err(AddFailure::Failed)
            }
        };
        self.tell_writer(ledger, |writer| writer.added(entry, &node_name(node), result));
    }

    /// Places for which no node was found are looked after again.
    pub fn nodes_changed(self: &Rc<Self>) {
        let open: Vec<u64> = self.ledgers.borrow().open.keys().copied().collect();
        open.into_iter().for_each(|ledger| self.tell_writer(ledger, LedgerWriter::nodes_changed));
    }

    /// Closes a ledger that this broker writes; returns when it is closed, or cannot be by its writer.
    pub async fn close_own(self: &Rc<Self>, ledger: u64) {
        let (resolver, closed) = crate::cluster_tasks::promise();
        {
            let mut ledgers = self.ledgers.borrow_mut();
            let Some(open) = ledgers.open.get_mut(&ledger).filter(|open| open.writer.is_some()) else { return };
            open.closing.push(resolver);
        }
        self.tell_writer(ledger, LedgerWriter::close);
        closed.await;
    }

    /// Nodes that are not known to be in trouble, if there are; none twice.
    pub fn choose(&self, count: usize, ensemble: &[NodeId], avoid: &BTreeSet<NodeId>) -> Vec<Option<NodeId>> {
        let now = self.sim.now();
        let suspects = self.suspects.borrow();
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (node, state) in self.sim.nodes.borrow().iter().enumerate() {
            let name = node_name(node);
            if state.is_lost || ensemble.contains(&name) || avoid.contains(&name) {
                continue;
            }
            let suspected = suspects.get(&node).is_some_and(|until| *until > now);
            if suspected { bad.push(name) } else { good.push(name) }
        }
        (0..count)
            .map(|_| {
                let from = if good.is_empty() { &mut bad } else { &mut good };
                let at = (!from.is_empty()).then(|| self.sim.random(0..from.len() as u64) as usize)?;
                Some(from.swap_remove(at))
            })
            .collect()
    }

    pub fn is_suspect(&self, node: &NodeId) -> bool {
        let suspects = self.suspects.borrow();
        node_number(node).and_then(|node| suspects.get(&node)).is_some_and(|until| *until > self.sim.now())
    }

    /// A node that has not answered is avoided for a while, as far as there are others.
    pub fn suspect(&self, node: usize) {
        self.suspects.borrow_mut().insert(node, self.sim.now() + 10 * SECOND);
    }
}
