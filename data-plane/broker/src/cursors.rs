//! Drives the log of acknowledgements: its writes, its ledgers, its record in metadata, and who waits for what.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::cursor::{CursorDelta, CursorSnapshot};
use geminga_ledger::cursor_log::{Action, CursorLog, CursorLogConfig, LogLedger, Record};
use geminga_ledger::managed_ledger::WriteError;
use geminga_ledger_client::{AppendClass, LedgerClient, LedgerError};
use geminga_metadata::{Metadata, MetadataError};
use geminga_model::Position;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::error::{BrokerError, Result};

/// Called when an acknowledgement is durable, or will not be.
pub type CursorDone = Box<dyn FnOnce(std::result::Result<(), BrokerError>) + Send>;

/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// How long finding out may take whether the log is this broker's still.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);
/// An id that no cursor has: its record says nothing.
const NO_CURSOR: u64 = u64::MAX;
/// Bytes read at once in replay.
const REPLAY_BYTES: usize = 4 << 20;

/// How much waits to become durable in all cursor logs of a broker, and how much may.
#[derive(Debug)]
pub(crate) struct PendingAcks {
    bytes: AtomicU64,
    max_bytes: u64,
}

impl PendingAcks {
    pub fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicU64::new(0), max_bytes })
    }

    fn change(&self, from: u64, to: u64) {
        match to.checked_sub(from) {
            Some(more) => self.bytes.fetch_add(more, Ordering::Relaxed),
            None => self.bytes.fetch_sub(from - to, Ordering::Relaxed),
        };
    }
}

/// What a cursor log has under one id: the acknowledgements of a subscription, or what deduplication knew.
pub(crate) struct Kept {
    cursor_id: u64,
    snapshot: Option<CursorSnapshot>,
    blob: Option<Bytes>,
}

/// The cursor log of one bundle.
pub(crate) struct Cursors {
    name: String,
    metadata: Metadata,
    ledgers: Arc<dyn LedgerClient>,
    me: Weak<Cursors>,
    pending: Arc<PendingAcks>,
    state: Mutex<State>,
    /// Something became durable.
    progress: Notify,
}

/// A ledger in the record of a cursor log.
#[derive(Serialize, Deserialize)]
struct Listed {
    #[serde(flatten)]
    ledger: LogLedger,
    /// There is a record of it from the commit on that put it into the list.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    announced: bool,
}

struct State {
    log: CursorLog,
    /// Ledgers that were announced.
    announced: BTreeSet<u64>,
    /// Sequence numbers and who waits for them, in order.
    waiting: VecDeque<(u64, CursorDone)>,
    last_sequence: u64,
    record_version: Option<u64>,
    /// A commit of the record was begun, and whether it came to pass, or still will, is not known.
    in_doubt: bool,
    retry_set: bool,
    /// What [`PendingAcks`] has of this log.
    counted_bytes: u64,
}

impl Cursors {
    /// Replays the log of a bundle, which has this name. Whoever wrote to it before is fenced.
    pub async fn open(
        name: String,
        metadata: Metadata,
        ledgers: Arc<dyn LedgerClient>,
        pending: Arc<PendingAcks>,
    ) -> Result<Arc<Self>> {
        let mut log = CursorLog::new(CursorLogConfig::default()).named(&name);
        let record = metadata.get_cursor_log::<Vec<Listed>>(&name).await?;
        let record_version = record.as_ref().map(|record| record.version);
        let list = record.map_or_else(Vec::new, |record| record.value);
        for Listed { ledger, announced } in &list {
            let last = match (ledger.entries, announced) {
                (Some(entries), _) => Ok(entries.checked_sub(1)),
                (None, true) => ledgers.recover_announced(ledger.ledger_id).await,
                (None, false) => ledgers.recover(ledger.ledger_id).await,
            };
            let last = last.inspect_err(|error| {
                if let LedgerError::NoRecord(_) = error {
                    tracing::error!(bundle = name, %error, "no topic of the bundle is served: its acknowledgements are not known");
                }
            })?;
            let entries = last.map_or(0, |last| last + 1);
            replay(&mut log, &*ledgers, ledger.ledger_id, entries).await?;
        }
        let announced = list.iter().filter(|listed| listed.announced).map(|listed| listed.ledger.ledger_id).collect();
        let state = State {
            log,
            announced,
            waiting: VecDeque::new(),
            last_sequence: 0,
            record_version,
            in_doubt: false,
            retry_set: false,
            counted_bytes: 0,
        };
        Ok(Arc::new_cyclic(|me| Self {
            name,
            pending,
            metadata,
            ledgers,
            me: me.clone(),
            state: Mutex::new(state),
            progress: Notify::new(),
        }))
    }

    /// Appends a change; `done` is called when it is durable.
    pub fn append(&self, cursor_id: u64, delta: CursorDelta, done: Option<CursorDone>) {
        self.add(Record::Delta { cursor_id, delta }, done);
    }

    /// All that the log has under one id.
    pub fn kept(&self, cursor_id: u64) -> Option<Kept> {
        let state = self.state.lock();
        let (snapshot, blob) = (state.log.state(cursor_id).cloned(), state.log.blob(cursor_id).cloned());
        (snapshot.is_some() || blob.is_some()).then_some(Kept { cursor_id, snapshot, blob })
    }

    /// Takes over what another log had, durably.
    pub async fn adopt(&self, kept: Vec<Kept>) -> Result<()> {
        for Kept { cursor_id, snapshot, blob } in kept {
            if let Some(snapshot) = snapshot {
                self.add(Record::Snapshot { cursor_id, snapshot }, None);
            }
            if let Some(bytes) = blob {
                self.add(Record::Blob { key: cursor_id, bytes }, None);
            }
        }
        self.flushed().await
    }

    /// Waits until everything appended until now is durable.
    pub async fn flushed(&self) -> Result<()> {
        let (flushed, waits) = tokio::sync::oneshot::channel();
        // Whoever waits may be gone.
        self.after_queued(Box::new(move |result| drop(flushed.send(result))));
        waits.await.unwrap_or_else(|_| Err(BrokerError::ServiceNotReady("storage is closed".into())))
    }

    /// The ledgers of the log.
    pub fn ledger_ids(&self) -> Vec<u64> {
        self.state.lock().log.record().iter().map(|ledger| ledger.ledger_id).collect()
    }

    /// Of the log's record, as it was last read or written here.
    pub fn record_version(&self) -> Option<u64> {
        self.state.lock().record_version
    }

    /// Calls `done` when everything appended until now is durable.
    pub fn after_queued(&self, done: CursorDone) {
        let mut state = self.state.lock();
        // What came after the fence was refused, and is in no sequence number.
        if state.log.is_fenced() || state.log.durable_up_to() >= state.last_sequence {
            let result = if state.log.is_fenced() { Err(fenced()) } else { Ok(()) };
            drop(state);
            return done(result);
        }
        let sequence = state.last_sequence;
        state.waiting.push_back((sequence, done));
    }

    /// Forgets a cursor whose subscription is gone.
    pub fn drop_cursor(&self, cursor_id: u64) {
        self.add(Record::Dropped { cursor_id }, None);
    }

    /// Forgets a cursor that had bytes under its id.
    pub fn drop_blob(&self, cursor_id: u64) {
        self.drop_cursor(cursor_id);
        self.add(Record::BlobDropped { key: cursor_id }, None);
    }

    /// Keeps bytes under a cursor's id; the latest win. `done` is called when they are durable.
    pub fn put_blob(&self, key: u64, bytes: Bytes, done: CursorDone) {
        self.add(Record::Blob { key, bytes }, Some(done));
    }

    pub fn blob(&self, key: u64) -> Option<Bytes> {
        self.state.lock().log.blob(key).cloned()
    }

    /// A cursor's state, if it ever acknowledged anything.
    pub fn state(&self, cursor_id: u64) -> Option<CursorSnapshot> {
        self.state.lock().log.state(cursor_id).cloned()
    }

    /// What trimming may use; `initial` is the position in the subscription's metadata.
    pub fn durable_mark_delete(&self, cursor_id: u64, initial: Position) -> Position {
        self.state.lock().log.durable_mark_delete(cursor_id, initial)
    }

    /// Whether so much waits to become durable in all bundles that acknowledgements whose receipt was asked for are refused, and others
    /// stay in their cursors until the log has caught up.
    pub fn is_overloaded(&self) -> bool {
        self.pending.bytes.load(Ordering::Relaxed) > self.pending.max_bytes
    }

    /// Waits until something that begins now is durable: nobody else has written the log until now.
    pub async fn confirm(&self) -> Result<()> {
        let (confirmed, waits) = tokio::sync::oneshot::channel();
        let done: CursorDone = Box::new(move |result| drop(confirmed.send(result)));
        self.add(Record::Dropped { cursor_id: NO_CURSOR }, Some(done));
        match tokio::time::timeout(CONFIRM_LIMIT, waits).await {
            Ok(Ok(result)) => result,
            _ => {
                Err(BrokerError::ServiceNotReady("it cannot be found out whether another broker has taken over".into()))
            }
        }
    }

    /// Ends the log: what it has from now on is all that it will ever have.
    pub fn seal(&self) {
        let mut state = self.state.lock();
        state.log.fence();
        self.answer(state);
    }

    /// Whether its record may still change after it was sealed, by a commit that was begun before.
    pub fn is_in_doubt(&self) -> bool {
        self.state.lock().in_doubt
    }

    /// Gives the record of a log another version: commits that were begun before have come to pass by then, or never do.
    pub async fn settle(name: &str, metadata: &Metadata) -> Result<()> {
        loop {
            let record = metadata.get_cursor_log::<Vec<Listed>>(name).await?;
            let version = record.as_ref().map(|record| record.version);
            let list = record.map_or_else(Vec::new, |record| record.value);
            match metadata.put_cursor_log(name, &list, version, &[], None).await {
                Err(error) if error.is_conflict() => {}
                settled => return Ok(settled.map(drop)?),
            }
        }
    }

    /// Somebody else writes the log: nothing becomes durable here any more.
    pub fn is_fenced(&self) -> bool {
        self.state.lock().log.is_fenced()
    }

    /// Waits until all that was appended is durable, or nothing can be.
    pub async fn settled(&self) {
        let wait = async {
            loop {
                let progress = self.progress.notified();
                {
                    let state = self.state.lock();
                    if state.log.durable_up_to() >= state.last_sequence || state.log.is_fenced() {
                        return;
                    }
                }
                progress.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), wait).await.is_err() {
            tracing::warn!("acknowledgements could not be made durable in time");
        }
    }

    fn add(&self, record: Record, done: Option<CursorDone>) {
        let mut state = self.state.lock();
        if state.log.is_fenced() {
            drop(state);
            if let Some(done) = done {
                done(Err(fenced()));
            }
            return;
        }
        let sequence = state.log.append(record);
        state.last_sequence = sequence;
        if let Some(done) = done {
            state.waiting.push_back((sequence, done));
        }
        self.pump(&mut state);
    }

    /// Starts whatever the machine asks for.
    fn pump(&self, state: &mut State) {
        while let Some(action) = state.log.poll_action() {
            match action {
                Action::Write { ledger_id, first_entry, entries } => self.write(ledger_id, first_entry, entries),
                Action::CreateLedger => self.create_ledger(),
                Action::SaveRecord { list, dropped } => {
                    state.in_doubt = true;
                    self.save_record(list, dropped, state.record_version);
                }
                Action::DeleteLedgers(ids) => self.delete_ledgers(ids),
            }
        }
        let bytes = state.log.pending_bytes();
        self.pending.change(std::mem::replace(&mut state.counted_bytes, bytes), bytes);
    }

    fn write(&self, ledger_id: u64, first_entry: i64, entries: Vec<Bytes>) {
        let cursors = self.me.clone();
        let count = entries.len() as u64;
        let parts = entries.into_iter().map(|entry| [entry, Bytes::new()]).collect();
        let runtime = tokio::runtime::Handle::current();
        self.ledgers.append(
            ledger_id,
            first_entry as u64,
            parts,
            AppendClass::Reserved,
            Box::new(move |result| {
                // Off the storage's thread: waiting acknowledgements are answered here.
                runtime.spawn(async move {
                    if let Some(cursors) = cursors.upgrade() {
                        cursors.written(ledger_id, first_entry, count, result);
                    }
                });
            }),
        );
    }

    fn written(&self, ledger_id: u64, first_entry: i64, count: u64, result: std::result::Result<(), LedgerError>) {
        if let Err(error) = &result {
            tracing::error!(ledger_id, first_entry, count, %error, "acknowledgements could not be written; trying again");
        }
        let result = result.map_err(|error| match error {
            LedgerError::DiskFull => WriteError::Full,
            LedgerError::Fenced(_) => WriteError::Fenced,
            other => WriteError::Failed(other.to_string()),
        });
        let mut state = self.state.lock();
        state.log.written(ledger_id, first_entry, count, result);
        self.pump(&mut state);
        self.retry_later(&mut state);
        self.answer(state);
    }

    /// Answers those whose acknowledgements are durable, or never will be.
    fn answer(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let durable = state.log.durable_up_to();
        let mut ready = Vec::new();
        while state.waiting.front().is_some_and(|(sequence, _)| *sequence <= durable) {
            ready.extend(state.waiting.pop_front());
        }
        let lost = if state.log.is_fenced() { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
        drop(state);
        for (_, done) in ready {
            done(Ok(()));
        }
        for (_, done) in lost {
            done(Err(fenced()));
        }
        self.progress.notify_waiters();
    }

    fn create_ledger(&self) {
        let Some(cursors) = self.me.upgrade() else { return };
        tokio::spawn(async move {
            // Ids ascend, so that the last ledger of a log can be told from storage alone.
            let newest = cursors.ledger_ids().into_iter().max().unwrap_or(0);
            let created = cursors.metadata.next_ledger_id(newest).await;
            let mut state = cursors.state.lock();
            match created {
                Ok(id) => {
                    cursors.ledgers.owned_by(id, &cursors.metadata);
                    state.log.ledger_created(id);
                }
                Err(error) => {
                    tracing::error!(%error, "could not create a ledger for acknowledgements");
                    state.log.ledger_create_failed();
                }
            }
            cursors.pump(&mut state);
            cursors.retry_later(&mut state);
        });
    }

    fn save_record(&self, list: Vec<LogLedger>, dropped: Vec<u64>, version: Option<u64>) {
        let Some(cursors) = self.me.upgrade() else { return };
        tokio::spawn(async move {
            let saved = cursors.store_record(&list, &dropped, version).await;
            let mut state = cursors.state.lock();
            match saved {
                Ok((version, announced)) => {
                    (state.record_version, state.in_doubt) = (Some(version), false);
                    state.announced = announced;
                    state.log.record_saved();
                }
                Err(error) if error.is_deposed() => {
                    tracing::error!(%error, "another broker has taken over the cursor log");
                    state.log.fence();
                }
                Err(error) => {
                    tracing::error!(%error, "could not save the record of the cursor log");
                    state.log.record_save_failed();
                }
            }
            cursors.pump(&mut state);
            cursors.retry_later(&mut state);
            cursors.answer(state);
        });
    }

    /// Answers the version, and which of the ledgers were announced.
    async fn store_record(
        &self,
        list: &[LogLedger],
        dropped: &[u64],
        version: Option<u64>,
    ) -> std::result::Result<(u64, BTreeSet<u64>), MetadataError> {
        let mut announced = self.state.lock().announced.clone();
        // The one that is open is new unless an earlier record has it.
        let newest = list.last().filter(|last| last.entries.is_none() && !announced.contains(&last.ledger_id));
        let announcement = newest.and_then(|newest| self.ledgers.announcement(newest.ledger_id));
        announced.extend(announcement.as_ref().and(newest).map(|newest| newest.ledger_id));
        announced.retain(|id| list.iter().any(|ledger| ledger.ledger_id == *id));
        let is_announced = |ledger: &LogLedger| announced.contains(&ledger.ledger_id);
        let listed: Vec<Listed> =
            list.iter().map(|ledger| Listed { ledger: *ledger, announced: is_announced(ledger) }).collect();
        let version = self.metadata.put_cursor_log(&self.name, &listed, version, dropped, announcement).await?;
        Ok((version, announced))
    }

    fn delete_ledgers(&self, ids: Vec<u64>) {
        let (deleted, metadata) = (self.ledgers.delete(ids.clone()), self.metadata.clone());
        tokio::spawn(async move {
            if let Err(error) = deleted.await {
                tracing::warn!(?ids, %error, "could not delete old ledgers of the cursor log; the sweep will");
                return;
            }
            if let Err(error) = metadata.forget_garbage(&ids).await {
                tracing::debug!(?ids, %error, "deleted ledgers of the cursor log stay noted as garbage");
            }
        });
    }

    /// While something waits, or has failed, it is tried again from time to time: what comes next could not be written otherwise.
    fn retry_later(&self, state: &mut State) {
        let is_done = state.log.durable_up_to() >= state.last_sequence && !state.log.is_paused();
        if state.retry_set || is_done || state.log.is_fenced() {
            return;
        }
        state.retry_set = true;
        let cursors = self.me.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETRY).await;
            let Some(cursors) = cursors.upgrade() else { return };
            let mut state = cursors.state.lock();
            state.retry_set = false;
            state.log.tick();
            cursors.pump(&mut state);
            cursors.retry_later(&mut state);
        });
    }
}

impl Drop for Cursors {
    fn drop(&mut self) {
        self.pending.change(self.state.get_mut().counted_bytes, 0);
    }
}

async fn replay(log: &mut CursorLog, ledgers: &dyn LedgerClient, ledger_id: u64, entries: u64) -> Result<()> {
    log.replay_ledger(ledger_id);
    let mut next = 0;
    while next < entries {
        let read = ledgers.read(ledger_id, next, entries - 1, REPLAY_BYTES).await?;
        if read.is_empty() {
            return Err(LedgerError::NoSuchEntry { ledger_id, entry_id: next }.into());
        }
        for entry in read {
            log.replay_entry(&entry.data).map_err(|error| {
                BrokerError::Metadata(format!("cursor log entry {ledger_id}:{}: {error}", entry.entry_id))
            })?;
            next = entry.entry_id + 1;
        }
    }
    Ok(())
}

fn fenced() -> BrokerError {
    BrokerError::ServiceNotReady("another broker has taken over the acknowledgements".into())
}

#[cfg(test)]
mod tests;
