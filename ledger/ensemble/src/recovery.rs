//! Recovery of a ledger whose writer may be gone, or may not know that it is deposed.
//!
//! 1. The metadata say `InRecovery`: from now on the writer cannot change them, so it can use no node that is not in them.
//! 2. The nodes of the last fragment are fenced, until no ack quorum is left among the others. Their answers say how far the
//!    ledger was confirmed.
//! 3. The entries behind that are read, each with a fence again (a node that did not hear of the first must not let the
//!    writer go on). One that any node has is written again, to an ack quorum; one that so many nodes deny that no ack quorum
//!    can have had it is the end. "I don't know" is neither.
//! 4. The ledger is closed there. Who finds it closed takes over what was found.
//!
//! Any number of recoveries may run at once: the metadata decide between them.

use std::collections::BTreeMap;

use crate::distribution::{Slots, an_ack_quorum_is_left, proves_absence, write_set};
use crate::metadata::{LedgerMetadata, LedgerState, NodeId, Quorum};
use crate::planted::{Bug, is_planted};
use crate::writer::{AddFailure, LedgerWriter, MetadataOutcome, WriterAction, WriterError};

/// Entries that are read at the same time.
const READ_AHEAD: u64 = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryAction {
    /// Fence the ledger on the node and ask how far it is confirmed; tell [`LedgerRecovery::fenced`].
    Fence { node: NodeId },
    /// Read the entry from the node, fencing again; tell [`LedgerRecovery::read`]. Its bytes are kept until written.
    Read { entry: u64, node: NodeId },
    /// Write an entry that was read before, as a recovery; tell [`LedgerRecovery::added`].
    Add { entry: u64, node: NodeId, last_add_confirmed: Option<u64> },
    /// As [`WriterAction::Choose`]; tell [`LedgerRecovery::chosen`].
    Choose { ensemble: Vec<NodeId>, failed: Vec<NodeId>, avoid: std::collections::BTreeSet<NodeId> },
    /// As [`WriterAction::WriteMetadata`]; tell [`LedgerRecovery::metadata_written`].
    WriteMetadata { metadata: LedgerMetadata, expected_version: u64 },
    /// The end, one way or the other.
    Done(Result<Recovered, RecoveryError>),
}

/// A ledger that is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    pub metadata: LedgerMetadata,
    pub version: u64,
}

/// It can be tried again later, by anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error("too few nodes answer to fence the ledger")]
    CannotFence,
    #[error("too few nodes answer to tell whether entry {0} was acknowledged")]
    CannotTell(u64),
    #[error("an entry could not be written again: {0}")]
    CannotWrite(WriterError),
}

/// A node's answer about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAnswer {
    /// It has it; its head says how much payload the ledger has up to it.
    Here { length: u64 },
    /// It certainly has not.
    Absent,
    /// It does not answer, or does not know.
    Unknown,
}

#[derive(Debug, Default)]
struct Reading {
    absent: Slots,
    unknown: Slots,
    /// Payload up to and with it, if anybody has it.
    found: Option<u64>,
}

#[derive(Debug)]
enum Phase {
    /// The metadata are about to say `InRecovery`.
    Marking {
        metadata: LedgerMetadata,
    },
    Fencing {
        fenced: Slots,
        failed: Slots,
        confirmed: u64,
    },
    /// The payload up to the last confirmed entry is looked up in it.
    Measuring {
        entry: u64,
        reading: Reading,
    },
    /// Entries from the writer's end on are read, and those that are there given to the writer in order.
    Rereading {
        writer: Box<LedgerWriter>,
        readings: BTreeMap<u64, Reading>,
        next_read: u64,
        end: Option<u64>,
    },
    Ended,
}

#[derive(Debug)]
pub struct LedgerRecovery {
    metadata: LedgerMetadata,
    version: u64,
    phase: Phase,
    actions: Vec<RecoveryAction>,
}

impl LedgerRecovery {
    /// Begins with the metadata as they were just read.
    pub fn new(metadata: LedgerMetadata, version: u64) -> Self {
        let mut recovery = Self { metadata, version, phase: Phase::Ended, actions: Vec::new() };
        recovery.mark();
        recovery
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Vec<RecoveryAction> {
        std::mem::take(&mut self.actions)
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    fn quorum(&self) -> Quorum {
        self.metadata.quorum
    }

    fn slot(&self, node: &NodeId) -> Option<usize> {
        self.metadata.last_fragment().ensemble.iter().position(|member| member == node)
    }

    fn mark(&mut self) {
        match self.metadata.state {
            LedgerState::Closed { .. } => self.done(Ok(())),
            LedgerState::InRecovery => self.fence(),
            LedgerState::Open => {
                let mut metadata = self.metadata.clone();
                metadata.state = LedgerState::InRecovery;
                self.actions
                    .push(RecoveryAction::WriteMetadata { metadata: metadata.clone(), expected_version: self.version });
                self.phase = Phase::Marking { metadata };
            }
        }
    }

    fn done(&mut self, result: Result<(), RecoveryError>) {
        self.phase = Phase::Ended;
        let recovered = Recovered { metadata: self.metadata.clone(), version: self.version };
        self.actions.push(RecoveryAction::Done(result.map(|()| recovered)));
    }

    fn fence(&mut self) {
        let nodes = self.metadata.last_fragment().ensemble.clone();
        self.actions.extend(nodes.into_iter().map(|node| RecoveryAction::Fence { node }));
        // A finished fragment is never looked into again: what lies before the last one is confirmed.
        let is_naive = is_planted(Bug::RecoverFromTheStart);
        let confirmed = if is_naive { 0 } else { self.metadata.last_fragment().first_entry };
        self.phase = Phase::Fencing { fenced: Slots::NONE, failed: Slots::NONE, confirmed };
    }

    pub fn metadata_written(&mut self, outcome: MetadataOutcome) {
        match &mut self.phase {
            Phase::Marking { metadata } => match outcome {
                MetadataOutcome::Written { version } => {
                    (self.metadata, self.version) = (metadata.clone(), version);
                    self.fence();
                }
                MetadataOutcome::Found { metadata, version } => {
                    (self.metadata, self.version) = (metadata, version);
                    self.mark();
                }
            },
            Phase::Rereading { writer, .. } => {
                // Somebody else's recovery was faster: what it decided holds.
                if let MetadataOutcome::Found { metadata, version } = &outcome
                    && let LedgerState::Closed { .. } = metadata.state
                {
                    (self.metadata, self.version) = (metadata.clone(), *version);
                    return self.done(Ok(()));
                }
                writer.metadata_written(outcome);
                self.follow_writer();
            }
            Phase::Fencing { .. } | Phase::Measuring { .. } | Phase::Ended => (),
        }
    }

    /// A node has fenced the ledger and says how many entries were confirmed as far as it knows; or it has not answered.
    pub fn fenced(&mut self, node: &NodeId, answer: Option<u64>) {
        let Some(slot) = self.slot(node) else { return };
        let quorum = self.quorum();
        let Phase::Fencing { fenced, failed, confirmed } = &mut self.phase else { return };
        match answer {
            Some(entries) => {
                fenced.insert(slot);
                *confirmed = entries.max(*confirmed);
            }
            None => failed.insert(slot),
        }
        if !an_ack_quorum_is_left(quorum, *fenced) {
            let confirmed = *confirmed;
            return self.measure(confirmed);
        }
        let answered = fenced.count() + failed.count();
        if answered >= quorum.ensemble {
            self.done(Err(RecoveryError::CannotFence));
        }
    }

    /// Finds how much payload the confirmed entries have.
    fn measure(&mut self, confirmed: u64) {
        match confirmed.checked_sub(1) {
            None => self.reread(0, 0),
            Some(last) => {
                let fragment = self.metadata.fragment_of(last);
                let order = crate::distribution::write_order(self.quorum(), last);
                let nodes: Vec<NodeId> = order.map(|slot| fragment.ensemble[slot].clone()).collect();
                self.actions.extend(nodes.into_iter().map(|node| RecoveryAction::Read { entry: last, node }));
                self.phase = Phase::Measuring { entry: last, reading: Reading::default() };
            }
        }
    }

    fn reread(&mut self, entries: u64, length: u64) {
        let writer = LedgerWriter::resume(self.metadata.clone(), self.version, entries, length);
        self.phase =
            Phase::Rereading { writer: Box::new(writer), readings: BTreeMap::new(), next_read: entries, end: None };
        self.read_on();
    }

    /// Keeps a window of entries being read.
    fn read_on(&mut self) {
        let quorum = self.quorum();
        let Phase::Rereading { readings, next_read, end: None, .. } = &mut self.phase else { return };
        let first = readings.keys().next().copied().unwrap_or(*next_read);
        while *next_read < first + READ_AHEAD {
            let entry = *next_read;
            // Where the ledger's writer put it; a node that this recovery took in cannot have it of itself.
            let ensemble = &self.metadata.last_fragment().ensemble;
            for slot in write_set(quorum, entry).iter() {
                self.actions.push(RecoveryAction::Read { entry, node: ensemble[slot].clone() });
            }
            readings.insert(entry, Reading::default());
            *next_read += 1;
        }
    }

    /// A node's answer about an entry.
    pub fn read(&mut self, entry: u64, node: &NodeId, answer: ReadAnswer) {
        let quorum = self.quorum();
        match &mut self.phase {
            Phase::Measuring { entry: wanted, reading } if *wanted == entry => {
                let fragment = self.metadata.fragment_of(entry);
                let Some(slot) = fragment.ensemble.iter().position(|member| member == node) else { return };
                match answer {
                    ReadAnswer::Here { length } => self.reread(entry + 1, length),
                    // It is confirmed: whoever does not have it has lost it.
                    ReadAnswer::Absent | ReadAnswer::Unknown => {
                        reading.unknown.insert(slot);
                        if reading.unknown.count() >= quorum.write {
                            self.done(Err(RecoveryError::CannotTell(entry)));
                        }
                    }
                }
            }
            Phase::Rereading { readings, .. } => {
                let slot = self.metadata.last_fragment().ensemble.iter().position(|member| member == node);
                let (Some(reading), Some(slot)) = (readings.get_mut(&entry), slot) else { return };
                match answer {
                    ReadAnswer::Here { length } => reading.found = Some(length),
                    ReadAnswer::Absent => reading.absent.insert(slot),
                    ReadAnswer::Unknown => reading.unknown.insert(slot),
                }
                self.take_in_order();
            }
            _ => (),
        }
    }

    fn take_in_order(&mut self) {
        let quorum = self.quorum();
        let Phase::Rereading { writer, readings, end, .. } = &mut self.phase else { return };
        while end.is_none()
            && let Some((&entry, reading)) = readings.first_key_value()
        {
            if let Some(length) = reading.found {
                let payload = length.saturating_sub(writer.length());
                let appended = writer.append(payload).expect("the writer of a recovery is open");
                debug_assert_eq!(appended, entry, "entries are written again in order");
                readings.remove(&entry);
            } else if proves_absence(quorum, entry, reading.absent)
                || is_planted(Bug::OneDenialIsEnough) && !reading.absent.is_empty()
            {
                *end = Some(entry);
                readings.clear();
                writer.close();
            } else if reading.absent.count() + reading.unknown.count() >= quorum.write {
                return self.done(Err(RecoveryError::CannotTell(entry)));
            } else {
                break;
            }
        }
        self.follow_writer();
        self.read_on();
    }

    pub fn added(&mut self, entry: u64, node: &NodeId, result: Result<(), AddFailure>) {
        if let Phase::Rereading { writer, .. } = &mut self.phase {
            // Recoveries are not fenced out; one that hears so has met a node of another mind.
            writer.added(entry, node, result.map_err(|_| AddFailure::Failed));
            self.follow_writer();
        }
    }

    pub fn chosen(&mut self, nodes: Vec<Option<NodeId>>) {
        if let Phase::Rereading { writer, .. } = &mut self.phase {
            writer.chosen(nodes);
            self.follow_writer();
        }
    }

    fn follow_writer(&mut self) {
        let Phase::Rereading { writer, .. } = &mut self.phase else { return };
        for action in writer.take_actions() {
            match action {
                WriterAction::Send { entry, node, last_add_confirmed } => {
                    self.actions.push(RecoveryAction::Add { entry, node, last_add_confirmed });
                }
                WriterAction::Choose { ensemble, failed, avoid } => {
                    self.actions.push(RecoveryAction::Choose { ensemble, failed, avoid });
                }
                WriterAction::WriteMetadata { metadata, expected_version } => {
                    self.actions.push(RecoveryAction::WriteMetadata { metadata, expected_version });
                }
                WriterAction::Confirm { .. } => (),
                WriterAction::Closed { .. } => {
                    (self.metadata, self.version) = (writer.metadata().clone(), writer.version());
                    return self.done(Ok(()));
                }
                WriterAction::Fail(error) => return self.done(Err(RecoveryError::CannotWrite(error))),
            }
        }
    }
}
