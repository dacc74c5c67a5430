//! What the managed-ledger simulation knows to be true, in the simplest terms: sets of positions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use geminga_ledger::cursor::Cursor;
use geminga_ledger::ledger_list::LedgerList;
use geminga_ledger::managed_ledger::EntryBytes;
use geminga_model::Position;

use crate::ledger_store::Ledgers;

/// Something that must never happen, happened.
pub type Check = Result<(), String>;

/// Messages of a batch; an ack set fits one word.
pub const BATCH: u32 = 6;
/// Keys that producers use.
const KEYS: u64 = 8;

/// A published entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Rises in the order of publishing.
    pub id: u64,
    pub messages: u32,
    /// Given when it is written.
    pub index: u64,
    /// Of those that are deduplicated.
    pub origin: Option<Origin>,
}

/// Who sent an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub producer: u64,
    /// Of its first message.
    pub sequence: u64,
    pub connection: u64,
}

impl EntryBytes for Entry {
    fn size(&self) -> usize {
        100 + self.id as usize % 50
    }

    fn num_messages(&self) -> u32 {
        self.messages
    }
}

impl Entry {
    pub fn to_bytes(&self) -> Bytes {
        let origin = self.origin.map(|origin| [origin.producer, origin.sequence, origin.connection]);
        let numbers = [self.id, u64::from(self.messages), self.index];
        numbers.iter().chain(origin.iter().flatten()).flat_map(|n| n.to_le_bytes()).collect()
    }

    pub fn from_bytes(bytes: &[u8]) -> Entry {
        let number = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        let origin = || Origin { producer: number(3), sequence: number(4), connection: number(5) };
        let origin = (bytes.len() > 24).then(origin);
        Entry { id: number(0), messages: number(1) as u32, index: number(2), origin }
    }

    /// The same whenever its producer sends it.
    pub fn key(&self) -> u64 {
        self.origin.map_or(0, |origin| (origin.producer + origin.sequence) % KEYS)
    }

    pub fn highest_sequence(&self) -> u64 {
        self.origin.map_or(0, |origin| origin.sequence + u64::from(self.messages) - 1)
    }
}

/// What was published to a topic.
#[derive(Debug, Default)]
pub struct TopicOracle {
    /// Acknowledged to its producer, or found after a crash.
    pub confirmed: BTreeMap<Position, Entry>,
    /// Where each deduplicated message is, by producer and sequence id.
    stored: BTreeMap<(u64, u64), Position>,
    /// Entries up to here may be gone.
    pub trimmed_to: Option<Position>,
    pub terminated: Option<Position>,
}

impl TopicOracle {
    pub fn confirm(&mut self, pos: Position, entry: Entry) -> Check {
        if let Some(origin) = entry.origin {
            let first = *self.stored.entry((origin.producer, origin.sequence)).or_insert(pos);
            if first != pos {
                return Err(format!("{pos} is a duplicate of {first}: {entry:?}"));
            }
        }
        self.confirmed.insert(pos, entry);
        Ok(())
    }

    /// Whether a message was ever confirmed, or found after a crash.
    pub fn has_stored(&self, origin: Origin) -> bool {
        self.stored.contains_key(&(origin.producer, origin.sequence))
    }

    /// Every acknowledged entry that was not trimmed is in the list and can be read, in order, with continuous indexes.
    /// Entries that are in the list only are added: after a crash they may be there.
    pub fn check(&mut self, list: &LedgerList, ledgers: &dyn Ledgers, loading: bool) -> Check {
        let kept = |pos: &Position| self.trimmed_to.is_none_or(|trimmed| *pos > trimmed);
        if let Some((missing, _)) = self.confirmed.iter().find(|(pos, _)| kept(pos) && !list.contains(**pos)) {
            return Err(format!("{missing} was acknowledged and is not in the list"));
        }
        let (mut last_id, mut next_index) = (None, None);
        let mut last_sequences = BTreeMap::new();
        for span in list.spans() {
            if next_index.is_some_and(|next| next != span.first_index) {
                return Err(format!("index of ledger {} is {}, not {next_index:?}", span.ledger_id, span.first_index));
            }
            next_index = Some(span.first_index);
            let stored = ledgers.read_first(span.ledger_id, span.entries)?;
            for entry_id in 0..span.entries {
                let pos = Position { ledger_id: span.ledger_id, entry_id: entry_id as i64 };
                let Some(bytes) = stored.get(entry_id as usize) else {
                    return Err(format!("{pos} is in the list and cannot be read"));
                };
                let entry = Entry::from_bytes(bytes);
                if last_id.is_some_and(|last| last >= entry.id) {
                    return Err(format!("{pos} is out of order"));
                }
                if next_index != Some(entry.index) {
                    return Err(format!("{pos} has index {}, not {next_index:?}", entry.index));
                }
                if let Some(origin) = entry.origin
                    && last_sequences.insert(origin.producer, origin.sequence).is_some_and(|l| l >= origin.sequence)
                {
                    return Err(format!("{pos} is out of its producer's order: {entry:?}"));
                }
                last_id = Some(entry.id);
                next_index = Some(entry.index + u64::from(entry.messages));
                self.check_entry(pos, entry, loading)?;
            }
        }
        Ok(())
    }

    /// After loading: trimmed is what is in front of the list; the rest has come back.
    pub fn loaded(&mut self, list: &LedgerList) {
        if list.total_entries() > 0 {
            self.trimmed_to = self.confirmed.range(..list.first_position()).next_back().map(|(pos, _)| *pos);
        }
    }

    fn check_entry(&mut self, pos: Position, entry: Entry, loading: bool) -> Check {
        match self.confirmed.get(&pos) {
            Some(known) if *known == entry => Ok(()),
            Some(known) => Err(format!("{pos} holds {entry:?}, not {known:?}")),
            None if loading => self.confirm(pos, entry),
            None => Err(format!("{pos} is in the list and was not confirmed")),
        }
    }
}

/// The acknowledgements of a subscription, one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acks {
    pub entries: BTreeSet<Position>,
    /// Messages left (bits) of batches that are acknowledged in part.
    pub partial: BTreeMap<Position, u64>,
}

impl Acks {
    /// All that exists up to `mark`.
    pub fn up_to(list: &LedgerList, mark: Position) -> Acks {
        Acks { entries: positions(list).filter(|pos| *pos <= mark).collect(), ..Acks::default() }
    }

    pub fn ack(&mut self, pos: Position) {
        self.entries.insert(pos);
        self.partial.remove(&pos);
    }

    pub fn ack_batch(&mut self, pos: Position, ack_set: u64) {
        if self.entries.contains(&pos) {
            return;
        }
        let all = (1 << BATCH) - 1;
        let left = self.partial.get(&pos).copied().unwrap_or(all) & ack_set;
        match left {
            0 => self.ack(pos),
            left if left != all => drop(self.partial.insert(pos, left)),
            _ => {}
        }
    }

    pub fn ack_through(&mut self, list: &LedgerList, pos: Position) {
        positions(list).filter(|p| *p <= pos).for_each(|p| self.ack(p));
    }

    pub fn unacked(&self, list: &LedgerList) -> Vec<Position> {
        positions(list).filter(|pos| !self.entries.contains(pos)).collect()
    }

    /// Takes the cursor's word for entries up to `trimmed`: they were gone, and came back because the record without them
    /// was not saved.
    fn accept(&mut self, cursor: &Cursor, list: &LedgerList, trimmed: Position) {
        for pos in positions(list).take_while(|pos| *pos <= trimmed) {
            self.partial.remove(&pos);
            match cursor.is_acked(pos) {
                true => self.entries.insert(pos),
                false => self.entries.remove(&pos),
            };
            if let Some(left) = cursor.remaining_set(pos) {
                self.partial.insert(pos, left[0] as u64);
            }
        }
    }

    /// Whether the cursor says the same of every entry in the list.
    pub fn check(&self, cursor: &Cursor, list: &LedgerList) -> Check {
        let mut left = 0;
        for pos in positions(list) {
            let acked = self.entries.contains(&pos);
            left += u64::from(!acked);
            if cursor.is_acked(pos) != acked {
                return Err(format!("{pos} is {}acknowledged", if acked { "" } else { "not " }));
            }
            let set = self.partial.get(&pos).map(|left| vec![*left as i64]);
            if cursor.remaining_set(pos) != set {
                return Err(format!("{pos} has left {:?}, not {set:?}", cursor.remaining_set(pos)));
            }
        }
        if cursor.unacked_entries(list) != left {
            return Err(format!("backlog is {}, not {left}", cursor.unacked_entries(list)));
        }
        Ok(())
    }
}

pub fn positions(list: &LedgerList) -> impl Iterator<Item = Position> {
    list.spans()
        .flat_map(|span| (0..span.entries as i64).map(|entry_id| Position { ledger_id: span.ledger_id, entry_id }))
}

/// The states that a subscription may be found in after a crash: the durable one, and those after each record under way.
#[derive(Debug)]
pub struct SubOracle {
    pub topic: usize,
    pub states: VecDeque<(u64, Acks)>,
}

impl SubOracle {
    pub fn new(topic: usize, acks: Acks) -> SubOracle {
        SubOracle { topic, states: VecDeque::from([(0, acks)]) }
    }

    pub fn now(&self) -> &Acks {
        &self.states.back().expect("there is always one").1
    }

    pub fn durable_to(&mut self, sequence: u64) {
        while self.states.get(1).is_some_and(|(next, _)| *next <= sequence) {
            self.states.pop_front();
        }
    }

    /// Whether no state that may be found after a crash needs the entry.
    pub fn never_needs(&self, pos: Position) -> bool {
        self.states.iter().all(|(_, acks)| acks.entries.contains(&pos))
    }

    /// A crash happened, and this was found. Returns the sequence number of the next record, which is lost.
    pub fn found(
        &mut self,
        id: u64,
        cursor: &Cursor,
        list: &LedgerList,
        trimmed: Option<Position>,
    ) -> Result<Option<u64>, String> {
        let mut reason = String::new();
        for at in (0..self.states.len()).rev() {
            if let Some(trimmed) = trimmed {
                self.states[at].1.accept(cursor, list, trimmed);
            }
            match self.states[at].1.check(cursor, list) {
                Ok(()) => {
                    let lost = self.states.get(at + 1).map(|(sequence, _)| *sequence);
                    let acks = std::mem::take(&mut self.states[at].1);
                    self.states = VecDeque::from([(0, acks)]);
                    return Ok(lost);
                }
                Err(wrong) => reason = wrong,
            }
        }
        Err(format!(
            "subscription {id} was found in none of {} possible states; of the durable one, {reason}",
            self.states.len()
        ))
    }
}
