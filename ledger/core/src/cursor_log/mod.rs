//! One durable log for the acknowledgements of all subscriptions of a bundle.
//!
//! Each change of a cursor is appended as a small delta to one ledger that all cursors of the bundle share; what arrives
//! while a write is under way goes into one entry. The machine keeps the state of every cursor that ever acknowledged
//! something (as it will be after the last appended record), gives it to topics that load, and writes snapshots of it when the
//! ledgers that hold it are to go. A cursor that never acknowledged anything is not known here and costs nothing.
//!
//! Life of the driver: `new`; for each ledger of the record, oldest first, [`replay_ledger`](CursorLog::replay_ledger) and
//! [`replay_entry`](CursorLog::replay_entry) up to its recorded (or, of the last one, recovered) length; then `append`,
//! events, and [`poll_action`](CursorLog::poll_action) until it returns `None`.
//!
//! Promises:
//! - [`durable_up_to`](CursorLog::durable_up_to) names a sequence number only when a replay of the ledgers of the *saved* record
//!   gives all records up to it.
//! - A new ledger takes records only once the saved record names it, with the exact length of the one before.
//! - After a failed write the ledger is closed where its confirmed entries end, and the cursors with records that were not durable
//!   are written to a new one as complete snapshots; nothing later becomes durable before all of these are. (Cursors whose
//!   records are all durable keep them where they are: the old ledger stays until they have moved.)
//! - Ledgers are deleted oldest first, after the saved record no longer names them, and only when every cursor has a complete
//!   durable snapshot in a later one; so a deleted subscription cannot come back from an older delta.

mod generations;
mod label;
mod pending;
mod record;

pub use generations::LogLedger;
pub use label::Label;
pub use record::Record;

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_model::Position;

use crate::FormatError;
use crate::confirmations::Confirmations;
use crate::cursor::CursorSnapshot;
use crate::managed_ledger::WriteError;
use generations::Generations;
use pending::{Key, Pending};
use record::{EntryReader, EntryWriter, ReadyEntry};

/// Sizes, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct CursorLogConfig {
    /// Of one entry; longer records are split. At least 128.
    pub max_entry_bytes: usize,
    /// Of the entries handed out as one write (which holds at least one).
    pub max_write_bytes: u64,
    /// A new ledger is begun when deltas take this much of the current one, or as much as snapshots do.
    pub rotate_bytes: u64,
    /// How much is written as snapshots, out of old ledgers, before deltas that arrived meanwhile.
    pub snapshot_step_bytes: usize,
    /// Writes under way at a time; what arrives meanwhile shares the next one.
    pub max_writes: usize,
    /// Old ledgers that may stay, if they are not larger than `rotate_bytes` together.
    pub max_old_ledgers: usize,
}

impl Default for CursorLogConfig {
    fn default() -> CursorLogConfig {
        CursorLogConfig {
            max_entry_bytes: 1 << 20,
            max_write_bytes: 4 << 20,
            rotate_bytes: 64 << 20,
            snapshot_step_bytes: 256 << 10,
            max_writes: 4,
            max_old_ledgers: 4,
        }
    }
}

/// What the driver is to do; see the module's head.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Allocate a ledger; then `ledger_created` or `ledger_create_failed`.
    CreateLedger,
    /// Write to it, then call `written`.
    Write { ledger_id: u64, first_entry: i64, entries: Vec<Bytes> },
    /// Save `list` by compare-and-set as the bundle's list of log ledgers, then call `record_saved` or `record_save_failed`. Ledgers that
    /// it no longer names are `dropped`, to be noted with it: a crash may come before they are deleted.
    SaveRecord { list: Vec<LogLedger>, dropped: Vec<u64> },
    /// The `dropped` of the record that was saved. Best effort.
    DeleteLedgers(Vec<u64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    None,
    Creating,
    Created(u64),
}

#[derive(Debug)]
struct Write {
    /// The entry after its last one.
    end: u64,
    bytes: u64,
    completes: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct CursorLog {
    config: CursorLogConfig,
    /// What ledgers say that they belong to.
    name: Option<Box<str>>,
    store: Generations,
    pending: Pending,
    reader: EntryReader,
    writer: EntryWriter,
    ready: VecDeque<ReadyEntry>,
    queued_bytes: u64,
    in_flight: VecDeque<Write>,
    in_flight_bytes: u64,
    confirmations: Confirmations,
    next_entry: u64,
    /// The newest ledger takes writes.
    live: bool,
    next: Next,
    save: Save,
    /// Out of the list; deleted when a record without them is saved.
    removed: Vec<u64>,
    sequence: u64,
    /// Sequence numbers below this become durable only together, after a failed write.
    barrier: u64,
    /// Something failed: nothing new is begun before the next `tick`.
    paused: bool,
    fenced: bool,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Save {
    Clean,
    Dirty,
    /// The first `removed` ledgers are not in the record under way; `activates`: the newest ledger is.
    Saving {
        removed: usize,
        activates: bool,
        again: bool,
    },
}

impl CursorLog {
    pub fn new(config: CursorLogConfig) -> CursorLog {
        assert!(config.max_entry_bytes >= 128, "an entry of the cursor log holds at least 128 bytes");
        CursorLog {
            config,
            name: None,
            store: Generations::default(),
            pending: Pending::default(),
            reader: EntryReader::default(),
            writer: EntryWriter::default(),
            ready: VecDeque::new(),
            queued_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            confirmations: Confirmations::default(),
            next_entry: 0,
            live: false,
            next: Next::None,
            save: Save::Clean,
            removed: Vec::new(),
            sequence: 0,
            barrier: 0,
            paused: false,
            fenced: false,
            actions: VecDeque::new(),
        }
    }

    /// Every ledger begins with an entry that says that it is one of this log, see [`Label`].
    pub fn named(mut self, name: &str) -> CursorLog {
        self.name = Some(name.into());
        self
    }

    /// The entries of this ledger come next.
    pub fn replay_ledger(&mut self, ledger_id: u64) {
        // A record of which only some parts were written before the ledger was given up does not count.
        self.reader = EntryReader::default();
        self.store.begin(Some(ledger_id));
        self.store.close_newest();
    }

    /// The next entry of the ledger that was named last. After an error the bundle must not be served: its
    /// acknowledgements are not known.
    pub fn replay_entry(&mut self, entry: &[u8]) -> Result<(), FormatError> {
        self.store.newest_mut().entries += 1;
        self.store.newest_mut().bytes += entry.len() as u64;
        let store = &mut self.store;
        self.reader.read(entry, &mut |record| {
            // Whoever does not know labels carries one on as if it were state.
            if !label::is_label(&record) {
                store.apply(&record, 0);
            }
        })
    }

    /// Queues a record; returns its sequence number, by which [`durable_up_to`](Self::durable_up_to) tells when it is durable.
    pub fn append(&mut self, record: Record) -> u64 {
        self.add(&record, matches!(record, Record::Snapshot { .. }))
    }

    /// Queues what is known of a key, to have it in the newest ledger.
    fn append_current(&mut self, key: Key) {
        let record = self.store.current(key);
        self.add(&record, true);
    }

    fn add(&mut self, record: &Record, is_copy: bool) -> u64 {
        self.store.open_newest();
        self.sequence += 1;
        let key = Key::of(record);
        let before = key.cursor().and_then(|id| self.store.cursor(id)).map(CursorSnapshot::mark_delete);
        self.store.apply(record, self.sequence);
        let after = key.cursor().and_then(|id| self.store.cursor(id)).map(CursorSnapshot::mark_delete);
        self.pending.add(self.sequence, key, before, after);
        self.encode(record, is_copy);
        self.sequence
    }

    /// Copies count as snapshots do: a ledger that were full of nothing else would begin another, which they are copied to.
    fn encode(&mut self, record: &Record, is_copy: bool) {
        let (ready, max) = (&mut self.ready, self.config.max_entry_bytes);
        let bytes = self.writer.add(record, self.sequence, max, &mut |entry| ready.push_back(entry)) as u64;
        self.queued_bytes += bytes;
        let newest = self.store.newest_mut();
        match is_copy {
            true => newest.snapshot_bytes += bytes,
            false => newest.delta_bytes += bytes,
        }
    }

    /// All records up to this sequence number are durable.
    pub fn durable_up_to(&self) -> u64 {
        self.pending.durable()
    }

    /// The acknowledgements of a cursor after all appended records; `None` if there are none here.
    pub fn state(&self, cursor_id: u64) -> Option<&CursorSnapshot> {
        self.store.cursor(cursor_id)
    }

    /// The latest blob with this key.
    pub fn blob(&self, key: u64) -> Option<&Bytes> {
        self.store.blob(key)
    }

    /// All cursors that are known here, in no order.
    pub fn cursor_ids(&self) -> impl Iterator<Item = u64> {
        self.store.cursor_ids()
    }

    /// The lowest mark-delete position that may be found after a crash at this moment: the only one that trimming may use.
    /// `initial` is what the subscription's metadata says, which counts as long as nothing of the cursor is durable here.
    /// Once the log is fenced, nothing is to be trimmed: a reset of the cursor would not be in it.
    pub fn durable_mark_delete(&self, cursor_id: u64, initial: Position) -> Position {
        if self.fenced {
            return Position::EARLIEST;
        }
        match self.pending.mark(cursor_id, initial) {
            Some(mark) => mark,
            None => self.store.cursor(cursor_id).map_or(initial, CursorSnapshot::mark_delete),
        }
    }

    /// Bytes of records that are not durable yet; the driver bounds them.
    pub fn pending_bytes(&self) -> u64 {
        self.queued_bytes + self.in_flight_bytes
    }

    /// Bytes held for cursors and blobs, about. Takes time in proportion to their number.
    pub fn memory_bytes(&self) -> usize {
        self.store.memory_bytes()
    }

    /// Another owner took the bundle: nothing becomes durable any more.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// What metadata has to say now.
    pub fn record(&self) -> Vec<LogLedger> {
        self.store.record()
    }

    /// The driver learned, from a compare-and-set that found another's record, that it no longer owns the log.
    pub fn fence(&mut self) {
        self.fenced = true;
    }

    pub fn ledger_created(&mut self, ledger_id: u64) {
        if self.next == Next::Creating {
            self.next = Next::Created(ledger_id);
        }
    }

    /// Tried again after the next `tick`.
    pub fn ledger_create_failed(&mut self) {
        if self.next == Next::Creating {
            self.next = Next::None;
            self.paused = true;
        }
    }

    pub fn record_saved(&mut self) {
        let Save::Saving { removed, activates, again } = self.save else { return };
        self.save = if again { Save::Dirty } else { Save::Clean };
        self.live |= activates;
        let ids: Vec<u64> = self.removed.drain(..removed).collect();
        if !ids.is_empty() {
            self.actions.push_back(Action::DeleteLedgers(ids));
        }
    }

    /// It may have been saved or not; tried again after the next `tick`.
    pub fn record_save_failed(&mut self) {
        if let Save::Saving { .. } = self.save {
            self.save = Save::Dirty;
            self.paused = true;
        }
    }

    /// The driver's answer to [`Action::Write`]; completions may join or split writes and come in any order. Returns whether
    /// [`durable_up_to`](Self::durable_up_to) rose.
    pub fn written(&mut self, ledger_id: u64, first_entry: i64, count: u64, result: Result<(), WriteError>) -> bool {
        let first = first_entry.max(0) as u64;
        if self.fenced || !self.live || self.store.newest_mut().ledger_id != Some(ledger_id) || first >= self.next_entry
        {
            return false;
        }
        match result {
            Ok(()) => self.confirm(first, count),
            Err(error) => {
                self.fenced |= error == WriteError::Fenced;
                self.restart();
                false
            }
        }
    }

    fn confirm(&mut self, first: u64, count: u64) -> bool {
        self.confirmations.completed(first, count, self.next_entry);
        let to = self.confirmations.to();
        let newest = self.store.newest_mut();
        let mut completes = 0;
        while let Some(write) = self.in_flight.pop_front_if(|write| write.end <= to) {
            self.in_flight_bytes -= write.bytes;
            newest.entries = write.end;
            newest.bytes += write.bytes;
            completes = write.completes;
        }
        completes >= self.barrier && self.pending.durable_to(completes)
    }

    /// A write failed: the current ledger ends here, and what is not durable is written anew to another one.
    fn restart(&mut self) {
        self.live = false;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.ready.clear();
        self.writer.clear();
        self.queued_bytes = 0;
        if self.fenced {
            return;
        }
        if let Some(unused) = self.store.abandon_newest() {
            self.removed.push(unused);
            self.mark_dirty();
            self.paused = true;
        }
        for key in self.pending.take() {
            self.append_current(key);
        }
        self.barrier = self.sequence;
    }

    /// Whether something failed that a [`tick`](Self::tick) tries again, also when all that was appended is durable.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Time passes: what failed is tried again.
    pub fn tick(&mut self) {
        self.paused = false;
    }

    fn mark_dirty(&mut self) {
        match &mut self.save {
            Save::Saving { again, .. } => *again = true,
            save => *save = Save::Dirty,
        }
    }

    /// The next thing to do; see the module's head.
    pub fn poll_action(&mut self) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if self.fenced {
            return None;
        }
        self.switch_ledger();
        self.move_old_cursors();
        self.free_old_ledgers();
        self.start_save().or_else(|| self.start_create()).or_else(|| self.start_write())
    }

    fn has_queued(&self) -> bool {
        !self.ready.is_empty() || self.writer.len() > 0
    }

    /// Whether what is queued may go to another ledger than what was written last.
    fn is_between_records(&self) -> bool {
        !self.ready.front().map_or(self.writer.continues(), |entry| entry.continues)
    }

    /// The new ledger is there: it becomes the newest, once nothing is under way to the old one.
    fn switch_ledger(&mut self) {
        let Next::Created(id) = self.next else { return };
        if !self.in_flight.is_empty() || !self.is_between_records() || matches!(self.save, Save::Saving { .. }) {
            return;
        }
        self.next = Next::None;
        self.live = false;
        self.store.switch_to(id);
        self.confirmations = Confirmations::default();
        self.next_entry = 0;
        self.save = Save::Dirty;
    }

    /// Writes snapshots of cursors whose state is still in the oldest ledger, a step at a time.
    fn move_old_cursors(&mut self) {
        let room = |log: &CursorLog| (log.queued_bytes as usize) < log.config.snapshot_step_bytes;
        if !self.live
            || self.next != Next::None
            || !self.store.is_oldest_due(self.config.rotate_bytes, self.config.max_old_ledgers)
        {
            return;
        }
        while room(self) {
            let Some(key) = self.store.next_of_oldest() else { return };
            self.append_current(key);
        }
    }

    fn free_old_ledgers(&mut self) {
        while let Some(id) = self.store.pop_free_oldest(self.pending.durable()) {
            self.removed.push(id);
            self.mark_dirty();
        }
    }

    fn start_save(&mut self) -> Option<Action> {
        if self.save != Save::Dirty || self.paused {
            return None;
        }
        let activates = !self.live && self.store.newest_has_ledger();
        self.save = Save::Saving { removed: self.removed.len(), activates, again: false };
        Some(Action::SaveRecord { list: self.store.record(), dropped: self.removed.clone() })
    }

    fn start_create(&mut self) -> Option<Action> {
        if self.next != Next::None || self.paused {
            return None;
        }
        let needed = match self.live {
            true => self.store.is_newest_full(self.config.rotate_bytes),
            false => self.has_queued() && !self.store.newest_has_ledger(),
        };
        if !needed {
            return None;
        }
        self.next = Next::Creating;
        Some(Action::CreateLedger)
    }

    fn start_write(&mut self) -> Option<Action> {
        if !self.live || self.in_flight.len() >= self.config.max_writes {
            return None;
        }
        // Before a change of ledgers only what belongs to a record that was begun.
        let last_record = matches!(self.next, Next::Created(_));
        let ready = &mut self.ready;
        self.writer.seal(&mut |entry| ready.push_back(entry));
        let first = self.next_entry;
        let (mut entries, mut bytes, mut completes) = (Vec::new(), 0u64, 0);
        while let Some(entry) =
            ready.pop_front_if(|entry| bytes < self.config.max_write_bytes && (entry.continues || !last_record))
        {
            bytes += entry.bytes.len() as u64;
            completes = entry.completes;
            entries.push(entry.bytes);
        }
        if entries.is_empty() {
            return None;
        }
        if first == 0
            && let Some(name) = &self.name
        {
            let ledgers = self.store.record().iter().map(|ledger| ledger.ledger_id).collect();
            let label = Label { name: name.to_string(), ledgers }.entry();
            bytes += label.len() as u64;
            entries.insert(0, label);
        }
        self.queued_bytes = if ready.is_empty() { 0 } else { self.queued_bytes.saturating_sub(bytes) };
        self.next_entry += entries.len() as u64;
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(Write { end: self.next_entry, bytes, completes });
        let ledger_id = self.store.newest_mut().ledger_id.expect("a live log has a ledger");
        Some(Action::Write { ledger_id, first_entry: first as i64, entries })
    }
}
