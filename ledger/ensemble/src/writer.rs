//! The writer of one ledger.
//!
//! Entries go to the nodes of their write set at once, and are confirmed in order as soon as an ack quorum has each. A node
//! that fails is replaced: from the first entry that is not confirmed on the ledger has another ensemble, and nothing is
//! confirmed until the metadata say so durably, because whoever recovers the ledger looks where the metadata say. What
//! comes behind goes to the new node as well.

use std::collections::{BTreeSet, VecDeque};

use crate::distribution::{Slots, write_set, write_sets};
use crate::metadata::{LedgerMetadata, LedgerState, NodeId};
use crate::planted::{Bug, is_planted};

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriterAction {
    /// Send the entry to the node; tell [`LedgerWriter::added`].
    Send { entry: u64, node: NodeId, last_add_confirmed: Option<u64> },
    /// All entries up to this one are safe; they need not be kept for sending any more.
    Confirm { up_to: u64 },
    /// Find other nodes for `failed`, none of them in `ensemble` or `avoid`; tell [`LedgerWriter::chosen`].
    Choose { ensemble: Vec<NodeId>, failed: Vec<NodeId>, avoid: BTreeSet<NodeId> },
    /// Write the ledger's metadata if they have this version still; tell [`LedgerWriter::metadata_written`].
    WriteMetadata { metadata: LedgerMetadata, expected_version: u64 },
    /// It is closed with these entries.
    Closed { entries: u64 },
    /// Nothing more will be confirmed: every entry behind the last confirmed one has failed.
    Fail(WriterError),
}

/// Why a node did not take an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddFailure {
    /// Somebody recovers the ledger.
    Fenced,
    /// Whatever else, silence included: the node is replaced.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    #[error("the ledger is fenced: somebody else recovers it")]
    Fenced,
    #[error("too few nodes are left for an ack quorum")]
    NotEnoughNodes,
    #[error("the ledger's metadata were changed by somebody else")]
    MetadataChanged,
    #[error("the ledger is closed")]
    Closed,
}

/// How writing metadata ended. What is not known has to be found out by reading them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataOutcome {
    /// They have this version now.
    Written { version: u64 },
    /// They are others by now, or it is unknown whether they were written: these are what they are.
    Found { metadata: LedgerMetadata, version: u64 },
}

#[derive(Debug)]
struct Pending {
    /// Places of the ensemble that have it.
    acked: Slots,
    /// Payload in the ledger up to and with it.
    length: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    None,
    /// Other nodes are looked for.
    Choosing {
        failed: Slots,
    },
    /// New metadata are being written.
    Writing {
        metadata: LedgerMetadata,
        replaced: Slots,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Open,
    /// To be closed once everything is confirmed.
    Closing,
    /// Closing metadata are being written.
    WritingClose {
        metadata: LedgerMetadata,
    },
    Ended,
}

#[derive(Debug)]
pub struct LedgerWriter {
    /// As they are used.
    metadata: LedgerMetadata,
    /// As they are known to be durable, with their version.
    durable: LedgerMetadata,
    version: u64,
    phase: Phase,
    next_entry: u64,
    /// Entries below are confirmed.
    confirmed: u64,
    confirmed_length: u64,
    length: u64,
    /// From `confirmed` on.
    pending: VecDeque<Pending>,
    change: Change,
    /// Places whose node has failed and is not replaced yet: nothing is sent there.
    failed: Slots,
    /// Places for which nobody could be found. Without them it goes on as long as ack quorums are left.
    vacant: Slots,
    /// Nodes that failed this ledger once; late answers of theirs mean nothing, so they do not come back.
    avoid: BTreeSet<NodeId>,
    actions: Vec<WriterAction>,
}

impl LedgerWriter {
    /// The writer of a new ledger whose metadata were created with this version.
    pub fn new(metadata: LedgerMetadata, version: u64) -> Self {
        Self::resume(metadata, version, 0, 0)
    }

    /// Goes on behind `entries` entries with a payload of `length` bytes.
    pub(crate) fn resume(metadata: LedgerMetadata, version: u64, entries: u64, length: u64) -> Self {
        Self {
            durable: metadata.clone(),
            metadata,
            version,
            phase: Phase::Open,
            next_entry: entries,
            confirmed: entries,
            confirmed_length: length,
            length,
            pending: VecDeque::new(),
            change: Change::None,
            failed: Slots::NONE,
            vacant: Slots::NONE,
            avoid: BTreeSet::new(),
            actions: Vec::new(),
        }
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Vec<WriterAction> {
        std::mem::take(&mut self.actions)
    }

    pub fn metadata(&self) -> &LedgerMetadata {
        &self.metadata
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// The last entry that is confirmed.
    pub fn last_add_confirmed(&self) -> Option<u64> {
        self.confirmed.checked_sub(1)
    }

    /// Payload of the ledger in bytes, with everything that was appended.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether it has ended, and if so nothing more will come of it.
    pub fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Takes an entry with so many bytes of payload, and answers its number. The driver keeps its bytes until it is
    /// confirmed or the writer has failed.
    ///
    /// # Errors
    /// [`WriterError::Closed`] once it has ended or is to be closed.
    pub fn append(&mut self, payload_bytes: u64) -> Result<u64, WriterError> {
        if self.phase != Phase::Open {
            return Err(WriterError::Closed);
        }
        let entry = self.next_entry;
        self.next_entry += 1;
        self.length += payload_bytes;
        self.pending.push_back(Pending { acked: Slots::NONE, length: self.length });
        let slots = write_set(self.metadata.quorum, entry).without(self.failed);
        self.send(entry, slots);
        Ok(entry)
    }

    fn send(&mut self, entry: u64, slots: Slots) {
        let last_add_confirmed = self.last_add_confirmed();
        let ensemble = &self.metadata.last_fragment().ensemble;
        let sends =
            slots.iter().map(|slot| WriterAction::Send { entry, node: ensemble[slot].clone(), last_add_confirmed });
        self.actions.extend(sends);
    }

    /// A node has answered, or will not any more.
    pub fn added(&mut self, entry: u64, node: &NodeId, result: Result<(), AddFailure>) {
        if self.phase == Phase::Ended {
            return;
        }
        if result == Err(AddFailure::Fenced) {
            return self.fail(WriterError::Fenced);
        }
        let Some(slot) = self.metadata.last_fragment().ensemble.iter().position(|member| member == node) else {
            return;
        };
        if self.failed.contains(slot) {
            return;
        }
        match result {
            Ok(()) => {
                if let Some(at) = entry.checked_sub(self.confirmed)
                    && let Some(pending) = self.pending.get_mut(at as usize)
                {
                    pending.acked.insert(slot);
                    self.confirm();
                }
            }
            Err(_) => self.node_failed(slot),
        }
    }

    /// The node is known to be gone, whatever it was asked.
    pub fn node_lost(&mut self, node: &NodeId) {
        let slot = self.metadata.last_fragment().ensemble.iter().position(|member| member == node);
        if let Some(slot) = slot.filter(|slot| !self.failed.contains(*slot))
            && self.phase != Phase::Ended
        {
            self.node_failed(slot);
        }
    }

    fn node_failed(&mut self, slot: usize) {
        self.failed.insert(slot);
        self.avoid.insert(self.metadata.last_fragment().ensemble[slot].clone());
        self.look_for_nodes();
    }

    fn look_for_nodes(&mut self) {
        let wanted = self.failed.without(self.vacant);
        if self.change != Change::None || wanted.is_empty() || matches!(self.phase, Phase::WritingClose { .. }) {
            return;
        }
        let ensemble = self.metadata.last_fragment().ensemble.clone();
        let failed = wanted.iter().map(|slot| ensemble[slot].clone()).collect();
        self.change = Change::Choosing { failed: wanted };
        self.actions.push(WriterAction::Choose { ensemble, failed, avoid: self.avoid.clone() });
    }

    /// Nodes for places that failed, in the order of [`WriterAction::Choose`]; `None` where nobody was found.
    pub fn chosen(&mut self, nodes: Vec<Option<NodeId>>) {
        let Change::Choosing { failed } = self.change.clone() else { return };
        self.change = Change::None;
        if matches!(self.phase, Phase::WritingClose { .. } | Phase::Ended) {
            return;
        }
        let mut ensemble = self.metadata.last_fragment().ensemble.clone();
        let mut replaced = Slots::NONE;
        for (slot, node) in failed.iter().zip(nodes) {
            match node.filter(|node| !ensemble.contains(node) && !self.avoid.contains(node)) {
                Some(node) => {
                    ensemble[slot] = node;
                    replaced.insert(slot);
                }
                None => self.vacant.insert(slot),
            }
        }
        let quorum = self.metadata.quorum;
        if write_sets(quorum).any(|set| set.without(self.vacant).count() < quorum.ack) {
            return self.fail(WriterError::NotEnoughNodes);
        }
        if replaced.is_empty() {
            self.look_for_nodes();
            return self.confirm();
        }
        let mut metadata = self.metadata.clone();
        metadata.set_ensemble_from(self.confirmed, ensemble);
        if self.is_recovery() && !is_planted(Bug::EarlyFragments) {
            // Nobody but the ledger's writer may say in metadata where its entries are before all of them are there: another
            // recovery has to ask the nodes that the writer wrote to.
            return self.ensemble_changed(metadata, replaced);
        }
        self.actions.push(WriterAction::WriteMetadata { metadata: metadata.clone(), expected_version: self.version });
        self.change = Change::Writing { metadata, replaced };
    }

    /// The driver knows that it cannot go on.
    pub fn give_up(&mut self, error: WriterError) {
        if self.phase != Phase::Ended {
            self.fail(error);
        }
    }

    /// There are other nodes than before: places that nobody could be found for are looked after again.
    pub fn nodes_changed(&mut self) {
        self.vacant = Slots::NONE;
        if self.phase != Phase::Ended {
            self.look_for_nodes();
        }
    }

    pub fn metadata_written(&mut self, outcome: MetadataOutcome) {
        if let Phase::WritingClose { metadata } = &self.phase {
            let metadata = metadata.clone();
            return self.close_written(metadata, outcome);
        }
        let Change::Writing { metadata, replaced } = std::mem::replace(&mut self.change, Change::None) else { return };
        if self.phase == Phase::Ended {
            return;
        }
        match outcome {
            MetadataOutcome::Written { version } => {
                (self.durable, self.version) = (metadata.clone(), version);
                self.ensemble_changed(metadata, replaced);
            }
            MetadataOutcome::Found { metadata: found, version } if found == metadata => {
                (self.durable, self.version) = (metadata.clone(), version);
                self.ensemble_changed(metadata, replaced);
            }
            MetadataOutcome::Found { metadata: found, version } => {
                if found.state != self.durable.state {
                    return self.fail(WriterError::Fenced);
                }
                let Some(merged) = self.merge(&found, &metadata) else {
                    return self.fail(WriterError::MetadataChanged);
                };
                (self.durable, self.version) = (found, version);
                self.actions.push(WriterAction::WriteMetadata { metadata: merged.clone(), expected_version: version });
                self.change = Change::Writing { metadata: merged, replaced };
            }
        }
    }

    /// Somebody moved entries of earlier fragments meanwhile: theirs are kept, and ours from the last one on. `None` if more was
    /// changed than that.
    fn merge(&self, found: &LedgerMetadata, ours: &LedgerMetadata) -> Option<LedgerMetadata> {
        let last = self.durable.fragments.len() - 1;
        let firsts = |metadata: &LedgerMetadata| -> Vec<u64> {
            metadata.fragments.iter().map(|fragment| fragment.first_entry).collect()
        };
        if found.quorum != ours.quorum
            || firsts(found) != firsts(&self.durable)
            || found.last_fragment() != self.durable.last_fragment()
        {
            return None;
        }
        let mut merged = found.clone();
        merged.state = ours.state;
        merged.fragments.truncate(last);
        merged.fragments.extend_from_slice(&ours.fragments[last..]);
        Some(merged)
    }

    fn is_recovery(&self) -> bool {
        self.durable.state == LedgerState::InRecovery
    }

    /// The new nodes count from now on.
    fn ensemble_changed(&mut self, metadata: LedgerMetadata, replaced: Slots) {
        self.metadata = metadata;
        self.failed = self.failed.without(replaced);
        for at in 0..self.pending.len() {
            let entry = self.confirmed + at as u64;
            let missing = write_set(self.metadata.quorum, entry).and(replaced);
            if !is_planted(Bug::KeepAcksOfReplaced) {
                self.pending[at].acked = self.pending[at].acked.without(replaced);
            }
            self.send(entry, missing);
        }
        self.look_for_nodes();
        self.confirm();
    }

    /// Confirms what can be, in order. Not while the ensemble changes: where the entries are has to be durable first.
    fn confirm(&mut self) {
        if matches!(self.change, Change::Writing { .. }) && !is_planted(Bug::ConfirmBeforeMetadata) {
            return;
        }
        let before = self.confirmed;
        let quorum = self.metadata.quorum;
        while let Some(pending) = self.pending.front() {
            if pending.acked.and(write_set(quorum, self.confirmed)).count() < quorum.ack {
                break;
            }
            self.confirmed += 1;
            self.confirmed_length = pending.length;
            self.pending.pop_front();
        }
        if self.confirmed > before {
            self.actions.push(WriterAction::Confirm { up_to: self.confirmed - 1 });
        }
        if self.phase == Phase::Closing && self.pending.is_empty() {
            self.write_close();
        }
    }

    /// Closes the ledger once everything that was appended is confirmed.
    pub fn close(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Closing;
            self.confirm();
        }
    }

    fn write_close(&mut self) {
        let mut metadata = self.metadata.clone();
        metadata.state = LedgerState::Closed { entries: self.confirmed, length: self.confirmed_length };
        self.actions.push(WriterAction::WriteMetadata { metadata: metadata.clone(), expected_version: self.version });
        self.phase = Phase::WritingClose { metadata };
    }

    fn close_written(&mut self, closing: LedgerMetadata, outcome: MetadataOutcome) {
        let (found, version) = match outcome {
            MetadataOutcome::Written { version } => (closing.clone(), version),
            MetadataOutcome::Found { metadata, version } => (metadata, version),
        };
        if found.state == closing.state {
            // Also if it was somebody else: a ledger is closed once, and this is with the same entries.
            (self.metadata, self.durable, self.version) = (found.clone(), found, version);
            self.phase = Phase::Ended;
            self.actions.push(WriterAction::Closed { entries: self.confirmed });
        } else if found.state != self.durable.state {
            self.fail(WriterError::Fenced);
        } else if let Some(merged) = self.merge(&found, &closing) {
            (self.durable, self.version) = (found, version);
            self.actions.push(WriterAction::WriteMetadata { metadata: merged.clone(), expected_version: version });
            self.phase = Phase::WritingClose { metadata: merged };
        } else {
            self.fail(WriterError::MetadataChanged);
        }
    }

    fn fail(&mut self, error: WriterError) {
        self.phase = Phase::Ended;
        self.change = Change::None;
        self.pending.clear();
        self.actions.push(WriterAction::Fail(error));
    }
}
