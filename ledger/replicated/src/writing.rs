//! A ledger that this process writes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use geminga_ensemble::{AddFailure, LedgerMetadata, LedgerWriter, NodeId, WriterAction, WriterError};
use geminga_ledger_client::{AppendClass, AppendDone, EntryParts, LedgerError};
use geminga_wire_bookkeeper::{Code, Digest, DigestKind, ENTRY_NONE, MasterKey};
use parking_lot::Mutex;

use crate::catalog::Known;
use crate::client::{PASSWORD, Shared};
use crate::node::{Failure, NodeConnection};

/// An append that was not answered yet.
struct Call {
    last_entry: u64,
    done: AppendDone,
}

/// Head with digest, and the payload.
type Packet = [Bytes; 3];

struct State {
    writer: LedgerWriter,
    /// Entries from `first_packet` on that may have to be sent (again).
    packets: VecDeque<Packet>,
    first_packet: u64,
    calls: VecDeque<Call>,
    /// Answers that are due, in the order of the calls; one thread at a time gives them.
    due: VecDeque<(AppendDone, Result<(), LedgerError>)>,
    is_telling: bool,
    urgent: bool,
    failed: Option<LedgerError>,
    /// Told when the ledger is closed, or can't be by this writer.
    closing: Vec<tokio::sync::oneshot::Sender<Result<(), LedgerError>>>,
}

pub struct OpenLedger {
    pub id: u64,
    pub master_key: MasterKey,
    digest: Digest,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

/// What is done without the lock.
#[derive(Default)]
struct Effects {
    flush: Vec<Arc<NodeConnection>>,
    later: Vec<WriterAction>,
}

impl OpenLedger {
    pub fn new(id: u64, known: Known, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            id,
            master_key: shared.master_key,
            digest: Digest::new(id as i64, DigestKind::Crc32c, PASSWORD),
            shared,
            state: Mutex::new(State {
                writer: LedgerWriter::new(known.metadata, known.version),
                packets: VecDeque::new(),
                first_packet: 0,
                calls: VecDeque::new(),
                due: VecDeque::new(),
                is_telling: false,
                urgent: false,
                failed: None,
                closing: Vec::new(),
            }),
        })
    }

    /// Where its entries are, up to the last that is confirmed.
    pub fn metadata(&self) -> (LedgerMetadata, Option<u64>) {
        let state = self.state.lock();
        (state.writer.metadata().clone(), state.writer.last_add_confirmed())
    }

    /// Payload, with what is not confirmed.
    pub fn length(&self) -> u64 {
        self.state.lock().writer.length()
    }

    pub fn append(self: &Arc<Self>, first_entry: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone) {
        let mut effects = Effects::default();
        {
            let mut state = self.state.lock();
            state.urgent = class == AppendClass::Reserved;
            match self.take_in(&mut state, first_entry, entries) {
                Ok(last_entry) => state.calls.push_back(Call { last_entry, done }),
                Err(error) => state.due.push_back((done, Err(error))),
            }
            self.follow(&mut state, &mut effects);
        }
        self.carry_out(effects);
    }

    /// Gives the entries to the writer; the last one's number.
    fn take_in(&self, state: &mut State, first_entry: u64, entries: Vec<EntryParts>) -> Result<u64, LedgerError> {
        if let Some(failed) = &state.failed {
            return Err(failed.clone());
        }
        let mut last_entry = first_entry;
        for [head, body] in entries {
            let bytes = (head.len() + body.len()) as u64;
            let last_add_confirmed = state.writer.last_add_confirmed().map_or(ENTRY_NONE, |last| last as i64);
            let entry = state.writer.append(bytes).map_err(|error| error_of(self.id, &error))?;
            let length = state.writer.length() as i64;
            let front = self.digest.entry_head(entry as i64, last_add_confirmed, length, &[&head, &body]);
            state.packets.push_back([front, head, body]);
            last_entry = entry;
        }
        debug_assert!(last_entry >= first_entry, "its writer numbers entries as the ledger does");
        Ok(last_entry)
    }

    /// A node has answered.
    pub fn added(self: &Arc<Self>, node: &String, answers: &[(u64, Result<(), Failure>)]) {
        let mut effects = Effects::default();
        {
            let mut state = self.state.lock();
            for (entry, result) in answers {
                let result = result.map_err(|failure| match failure {
                    Failure::Code(Code::Fenced) => AddFailure::Fenced,
                    failure => {
                        if failure == Failure::Code(Code::UnknownLedgerState) {
                            self.shared.catalog.skip_ids_with(self.id);
                        }
                        tracing::info!(ledger = self.id, entry, node, ?failure, "a storage node did not add an entry");
                        AddFailure::Failed
                    }
                });
                state.writer.added(*entry, node, result);
            }
            self.follow(&mut state, &mut effects);
        }
        self.carry_out(effects);
    }

    /// Closes the ledger once all of it is confirmed.
    pub fn close(self: &Arc<Self>) -> tokio::sync::oneshot::Receiver<Result<(), LedgerError>> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let mut effects = Effects::default();
        {
            let mut state = self.state.lock();
            match state.failed.clone() {
                Some(failed) => drop(sender.send(Err(failed))),
                None => {
                    state.closing.push(sender);
                    state.writer.close();
                    self.follow(&mut state, &mut effects);
                }
            }
        }
        self.carry_out(effects);
        receiver
    }

    /// Other nodes may be there now, some are to be emptied, and these are gone, which a writer that is idle does not notice.
    pub fn nodes_changed(self: &Arc<Self>, gone: &BTreeSet<NodeId>) {
        self.tell(|writer| {
            for node in self.shared.nodes.to_leave(&writer.metadata().last_fragment().ensemble, gone) {
                writer.node_lost(&node);
            }
            writer.nodes_changed();
        });
    }

    /// The ledger is deleted: nothing more comes of it.
    pub fn give_up(self: &Arc<Self>) {
        self.tell(|writer| writer.give_up(WriterError::Closed));
    }

    /// Whether it takes no more entries.
    pub fn has_ended(&self) -> bool {
        self.state.lock().failed.is_some()
    }

    fn tell(self: &Arc<Self>, event: impl FnOnce(&mut LedgerWriter)) {
        let mut effects = Effects::default();
        {
            let mut state = self.state.lock();
            event(&mut state.writer);
            self.follow(&mut state, &mut effects);
        }
        self.carry_out(effects);
    }

    /// Does what the writer wants, as far as that is possible at once.
    fn follow(self: &Arc<Self>, state: &mut State, effects: &mut Effects) {
        loop {
            let actions = state.writer.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    WriterAction::Send { entry, node, .. } => {
                        let packet = state.packets[(entry - state.first_packet) as usize].clone();
                        let sent = self
                            .shared
                            .nodes
                            .connected(&node)
                            .filter(|connection| connection.append(self, entry, state.urgent, &packet));
                        match sent {
                            Some(connection) => {
                                if !effects.flush.iter().any(|known| Arc::ptr_eq(known, &connection)) {
                                    effects.flush.push(connection);
                                }
                            }
                            None => state.writer.added(entry, &node, Err(AddFailure::Failed)),
                        }
                    }
                    WriterAction::Confirm { up_to } => {
                        let count = (up_to + 1 - state.first_packet) as usize;
                        state.packets.drain(..count);
                        state.first_packet = up_to + 1;
                        while state.calls.front().is_some_and(|call| call.last_entry <= up_to) {
                            let call = state.calls.pop_front().expect("just seen");
                            state.due.push_back((call.done, Ok(())));
                        }
                    }
                    WriterAction::Closed { .. } => {
                        state.failed = Some(LedgerError::Fenced(self.id));
                        state.closing.drain(..).for_each(|closing| drop(closing.send(Ok(()))));
                        self.shared.forget_open(self.id);
                    }
                    WriterAction::Fail(error) => {
                        if error != WriterError::Closed {
                            tracing::warn!(ledger = self.id, %error, "a ledger takes no more entries");
                        }
                        if error == WriterError::Fenced && state.first_packet == 0 {
                            self.shared.catalog.skip_ids();
                        }
                        let error = error_of(self.id, &error);
                        state.failed = Some(error.clone());
                        state.packets.clear();
                        while let Some(call) = state.calls.pop_front() {
                            state.due.push_back((call.done, Err(error.clone())));
                        }
                        state.closing.drain(..).for_each(|closing| drop(closing.send(Err(error.clone()))));
                        self.shared.forget_open(self.id);
                    }
                    WriterAction::Choose { .. } | WriterAction::WriteMetadata { .. } => effects.later.push(action),
                }
            }
        }
    }

    fn carry_out(self: &Arc<Self>, effects: Effects) {
        effects.flush.iter().for_each(|connection| connection.flush());
        for action in effects.later {
            let ledger = self.clone();
            self.shared.runtime.spawn(async move { ledger.do_later(action).await });
        }
        self.tell_due();
    }

    /// Gives the answers that are due, without the lock, and in their order: if another thread gives some it gives these too.
    fn tell_due(&self) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.is_telling, true) {
            return;
        }
        while let Some((done, result)) = state.due.pop_front() {
            drop(state);
            done(result);
            state = self.state.lock();
        }
        state.is_telling = false;
    }

    async fn do_later(self: Arc<Self>, action: WriterAction) {
        match action {
            WriterAction::Choose { ensemble, failed, avoid } => {
                tracing::info!(ledger = self.id, ?failed, "storage nodes are replaced");
                let quorum = self.metadata().0.quorum;
                let chosen = self.shared.nodes.replace(quorum, &ensemble, &failed, &avoid).await;
                self.tell(|writer| writer.chosen(chosen));
            }
            WriterAction::WriteMetadata { metadata, expected_version } => {
                match self.shared.catalog.write(self.id, &metadata, expected_version).await {
                    Some(outcome) => self.tell(|writer| writer.metadata_written(outcome)),
                    None => self.tell(|writer| writer.give_up(WriterError::MetadataChanged)),
                }
            }
            _ => unreachable!("done at once"),
        }
    }
}

fn error_of(ledger: u64, error: &WriterError) -> LedgerError {
    match error {
        WriterError::Fenced | WriterError::Closed | WriterError::MetadataChanged => LedgerError::Fenced(ledger),
        WriterError::NotEnoughNodes => LedgerError::Io(format!("ledger {ledger}: {error}")),
    }
}
