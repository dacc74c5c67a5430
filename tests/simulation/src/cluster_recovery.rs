//! Recovery and reading of ledgers by a simulated broker.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use geminga_ensemble::{
    AddFailure, LedgerMetadata, LedgerRecovery, LedgerState, NodeId, ReadAnswer, RecoveryAction, distribution,
};
use geminga_metadata::Versioned;
use geminga_wire_bookkeeper::EntryHead;

use crate::cluster_broker::{Broker, Waiting};
use crate::cluster_ledgers::{closed_empty, digest_of, node_name, node_number};
use crate::cluster_messages::{Answer, Call};
use crate::cluster_plant::Plant;
use crate::cluster_sim::{MS, Micros};
use crate::cluster_tasks::{Resolver, promise};

/// How long a node may take to answer a reader before the next one is asked.
const READ_PATIENCE: Micros = 500 * MS;

/// Why a ledger cannot be recovered or read now.
pub type Failure = String;

pub struct Recovery {
    ledger: u64,
    machine: LedgerRecovery,
    /// As they were read first, to be written again.
    bodies: BTreeMap<u64, Bytes>,
    done: Option<Resolver<Result<LedgerMetadata, Failure>>>,
}

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Fence,
    Read(u64),
    Add(u64),
}

/// Entries of a closed ledger.
pub fn entries_of(metadata: &LedgerMetadata) -> u64 {
    match metadata.state {
        LedgerState::Closed { entries, .. } => entries,
        LedgerState::Open | LedgerState::InRecovery => 0,
    }
}

impl Broker {
    /// Fences the ledger, finds its end and closes it.
    pub async fn recover(self: &Rc<Self>, ledger: u64) -> Result<LedgerMetadata, Failure> {
        self.close_own(ledger).await;
        let known = match self.get_ledger(ledger).await.map_err(|error| error.to_string())? {
            Some(known) => known,
            None => {
                let value = closed_empty(self.quorum);
                let created = self.put_ledger(&self.metadata, ledger, value.clone(), None).await;
                // If somebody was faster, it is tried again.
                Versioned { value, version: created.map_err(|error| error.to_string())? }
            }
        };
        self.recover_known(ledger, known).await
    }

    /// The same of a ledger that exists, as it was read.
    pub async fn recover_known(
        self: &Rc<Self>,
        ledger: u64,
        known: Versioned<LedgerMetadata>,
    ) -> Result<LedgerMetadata, Failure> {
        let (resolver, done) = promise();
        let machine = LedgerRecovery::new(known.value, known.version);
        {
            let mut ledgers = self.ledgers.borrow_mut();
            let number = ledgers.next_recovery;
            ledgers.next_recovery += 1;
            let mut recovery = Recovery { ledger, machine, bodies: BTreeMap::new(), done: Some(resolver) };
            self.follow_recovery(number, &mut recovery);
            ledgers.recoveries.insert(number, recovery);
        }
        let recovered = done.await?;
        self.ledgers.borrow_mut().closed.insert(ledger, recovered.clone());
        Ok(recovered)
    }

    fn follow_recovery(self: &Rc<Self>, number: u64, recovery: &mut Recovery) {
        let ledger = recovery.ledger;
        let fences = self.sim.plant != Plant::TrustLease;
        loop {
            let actions = recovery.machine.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    RecoveryAction::Fence { node } => {
                        if !self.call(&node, Call::Last { ledger, fences }, waiting(number, Step::Fence)) {
                            recovery.machine.fenced(&node, None);
                        }
                    }
                    RecoveryAction::Read { entry, node } => {
                        let fences = fences && self.sim.plant != Plant::ReadsDoNotFence;
                        let call = Call::Read { ledger, entry, fences };
                        if !self.call(&node, call, waiting(number, Step::Read(entry))) {
                            recovery.machine.read(entry, &node, ReadAnswer::Unknown);
                        }
                    }
                    RecoveryAction::Add { entry, node, .. } => {
                        let body = recovery.bodies[&entry].clone();
                        self.sim.count("entries written again by a recovery");
                        let call = Call::Add { ledger, entry, body, recovery: true };
                        if !self.call(&node, call, waiting(number, Step::Add(entry))) {
                            recovery.machine.added(entry, &node, Err(AddFailure::Failed));
                        }
                    }
                    RecoveryAction::Choose { ensemble, failed, avoid } => {
                        let chosen = self.choose(failed.len(), &ensemble, &avoid);
                        recovery.machine.chosen(chosen);
                    }
                    RecoveryAction::WriteMetadata { metadata, expected_version } => {
                        let broker = self.clone();
                        self.tasks.spawn(async move {
                            let outcome = broker.write_ledger(ledger, metadata, expected_version).await;
                            broker.tell_recovery(number, |recovery| match outcome {
                                Some(outcome) => recovery.machine.metadata_written(outcome),
                                None => recovery.end(Err("the ledger is gone".into())),
                            });
                        });
                    }
                    RecoveryAction::Done(result) => {
                        self.sim.count(if result.is_ok() { "recoveries done" } else { "recoveries given up" });
                        let result = result.map(|recovered| recovered.metadata);
                        recovery.end(result.map_err(|error| error.to_string()));
                    }
                }
            }
        }
    }

    fn tell_recovery(self: &Rc<Self>, number: u64, event: impl FnOnce(&mut Recovery)) {
        let mut ledgers = self.ledgers.borrow_mut();
        let Some(recovery) = ledgers.recoveries.get_mut(&number) else { return };
        event(recovery);
        self.follow_recovery(number, recovery);
        if recovery.done.is_none() {
            ledgers.recoveries.remove(&number);
        }
    }

    /// A node has answered, or does not.
    pub fn recovery_heard(self: &Rc<Self>, number: u64, step: Step, node: usize, answer: Answer) {
        if matches!(answer, Answer::Failed) {
            self.suspect(node);
        }
        let checks = self.sim.plant != Plant::NoDigestCheck;
        let name = node_name(node);
        self.tell_recovery(number, |recovery| {
            let digest = digest_of(recovery.ledger);
            match step {
                Step::Fence => {
                    let confirmed = match answer {
                        Answer::Absent => Some(0),
                        Answer::Here(body) => EntryHead::decode(&body)
                            .and_then(|head| Some((head, digest.open(head.entry, body).ok()?)))
                            .map(|(head, _)| (head.last_add_confirmed + 1) as u64),
                        _ => None,
                    };
                    recovery.machine.fenced(&name, confirmed);
                }
                Step::Read(entry) => {
                    let answer = match answer {
                        Answer::Absent => ReadAnswer::Absent,
                        Answer::Here(body) => match digest.open(entry as i64, body.clone()) {
                            Ok((head, _)) => {
                                recovery.bodies.entry(entry).or_insert(body);
                                ReadAnswer::Here { length: head.length as u64 }
                            }
                            Err(_) if !checks => {
                                let length = EntryHead::decode(&body).map_or(0, |head| head.length as u64);
                                recovery.bodies.entry(entry).or_insert(body);
                                ReadAnswer::Here { length }
                            }
                            // What is damaged says nothing.
                            Err(_) => ReadAnswer::Unknown,
                        },
                        _ => ReadAnswer::Unknown,
                    };
                    recovery.machine.read(entry, &name, answer);
                }
                Step::Add(entry) => {
                    let result = if answer == Answer::Added { Ok(()) } else { Err(AddFailure::Failed) };
                    recovery.machine.added(entry, &name, result);
                }
            }
        });
    }

    /// The payload of an entry, from the first node that has it undamaged.
    pub async fn read_entry(self: &Rc<Self>, ledger: u64, entry: u64) -> Result<Bytes, Failure> {
        let metadata = self.whereabouts(ledger, entry).await?;
        let answer = self.read_from(&metadata, ledger, entry).await;
        if answer.is_ok() {
            return answer;
        }
        // A repair may have moved the entry since the metadata were read.
        let found = self.get_ledger(ledger).await.map_err(|error| error.to_string())?;
        let now = found.ok_or_else(|| format!("ledger {ledger} is gone"))?.value;
        if let LedgerState::Closed { .. } = now.state {
            self.ledgers.borrow_mut().closed.insert(ledger, now.clone());
        }
        if now.fragment_of(entry).ensemble == metadata.fragment_of(entry).ensemble {
            return answer;
        }
        self.sim.count("entries read where a repair had moved them");
        self.read_from(&now, ledger, entry).await
    }

    async fn read_from(self: &Rc<Self>, metadata: &LedgerMetadata, ledger: u64, entry: u64) -> Result<Bytes, Failure> {
        let fragment = metadata.fragment_of(entry);
        let mut nodes: Vec<&NodeId> =
            distribution::write_order(metadata.quorum, entry).map(|slot| &fragment.ensemble[slot]).collect();
        nodes.sort_by_key(|node| self.is_suspect(node));
        for node in nodes {
            let (resolver, answered) = promise();
            let call = Call::Read { ledger, entry, fences: false };
            if !self.call_for(READ_PATIENCE, node, call, Waiting::Task(resolver)) {
                continue;
            }
            let body = match answered.await {
                Answer::Here(body) => body,
                answer => {
                    self.sim.count("reads that went to another node");
                    if answer == Answer::Failed {
                        self.suspect(node_number(node).expect("it was called"));
                    }
                    continue;
                }
            };
            match digest_of(ledger).open(entry as i64, body.clone()) {
                Ok((_, payload)) => {
                    self.sim.oracle.borrow_mut().entry_read(ledger, entry, &payload);
                    return Ok(payload);
                }
                Err(_) if self.sim.plant == Plant::NoDigestCheck => {
                    let payload = body.slice(36.min(body.len())..);
                    self.sim.oracle.borrow_mut().entry_read(ledger, entry, &payload);
                    return Ok(payload);
                }
                Err(_) => self.sim.count("damaged entries noticed by a reader"),
            }
        }
        // It is in the ledger: that nobody has it now is never "it is not there".
        Err(format!("entry {entry} of ledger {ledger} cannot be read now"))
    }

    async fn whereabouts(self: &Rc<Self>, ledger: u64, entry: u64) -> Result<LedgerMetadata, Failure> {
        if let Some(metadata) = self.known_whereabouts(ledger, entry) {
            return Ok(metadata);
        }
        let found = self.get_ledger(ledger).await.map_err(|error| error.to_string())?;
        let mut metadata = found.ok_or_else(|| format!("ledger {ledger} is gone"))?.value;
        if !matches!(metadata.state, LedgerState::Closed { .. }) && self.sim.plant != Plant::OpenLedgersAreNotRead {
            // Its owner has closed it in its own record, and came no further.
            self.sim.count("ledgers closed by a reader");
            metadata = self.recover(ledger).await?;
        }
        if entry >= entries_of(&metadata) {
            return Err(format!("ledger {ledger} is open, or ends before entry {entry}"));
        }
        self.ledgers.borrow_mut().closed.insert(ledger, metadata.clone());
        Ok(metadata)
    }

    fn known_whereabouts(&self, ledger: u64, entry: u64) -> Option<LedgerMetadata> {
        let ledgers = self.ledgers.borrow();
        if let Some(writer) = ledgers.open.get(&ledger).and_then(|open| open.writer.as_ref())
            && writer.last_add_confirmed() >= Some(entry)
        {
            return Some(writer.metadata().clone());
        }
        ledgers.closed.get(&ledger).filter(|metadata| entry < entries_of(metadata)).cloned()
    }
}

impl Recovery {
    fn end(&mut self, result: Result<LedgerMetadata, Failure>) {
        if let Some(done) = self.done.take() {
            done.resolve(result);
        }
    }
}

fn waiting(recovery: u64, step: Step) -> Waiting {
    Waiting::Recovery { recovery, step }
}
