//! Which records are not durable yet, and what that means for trimming.

use std::collections::VecDeque;

use geminga_model::Position;
use rustc_hash::{FxHashMap, FxHashSet};

use super::record::Record;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Cursor(u64),
    Blob(u64),
}

impl Key {
    pub fn of(record: &Record) -> Key {
        match *record {
            Record::Delta { cursor_id, .. } | Record::Snapshot { cursor_id, .. } | Record::Dropped { cursor_id } => {
                Key::Cursor(cursor_id)
            }
            Record::Blob { key, .. } | Record::BlobDropped { key } => Key::Blob(key),
        }
    }

    pub fn cursor(self) -> Option<u64> {
        match self {
            Key::Cursor(id) => Some(id),
            Key::Blob(_) => None,
        }
    }
}

/// Mark-delete positions of a cursor with records under way. Two steps are enough to follow a cursor that always has some:
/// while the first is on its way, all others gather in the second.
#[derive(Debug)]
struct Marks {
    durable: Option<Position>,
    /// Of records whose write failed: a crash may still find them, until `first` is durable.
    failed: Option<Position>,
    first: Option<(u64, Position)>,
    /// The last record, and the lowest mark of the records that were gathered.
    later: Option<(u64, Position)>,
}

impl Marks {
    fn lowest_not_durable(&self) -> Option<Position> {
        let under_way = self.first.iter().chain(&self.later).map(|&(_, mark)| mark);
        self.failed.into_iter().chain(under_way).min()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    queue: VecDeque<(u64, Key)>,
    marks: FxHashMap<u64, Marks>,
    durable: u64,
}

impl Pending {
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Record `sequence` moves the mark-delete position from `before` to `after` (`None`: there is no such cursor).
    pub fn add(&mut self, sequence: u64, key: Key, before: Option<Position>, after: Option<Position>) {
        self.queue.push_back((sequence, key));
        let Some(id) = key.cursor() else { return };
        let Some(after) = after else {
            self.marks.remove(&id);
            return;
        };
        let marks = self.marks.entry(id).or_insert(Marks { durable: before, failed: None, first: None, later: None });
        match (&marks.first, &mut marks.later) {
            (None, _) => marks.first = Some((sequence, after)),
            (Some(_), None) => marks.later = Some((sequence, after)),
            (Some(_), Some((last, lowest))) => (*last, *lowest) = (sequence, (*lowest).min(after)),
        }
    }

    /// All records up to `sequence` are durable; whether that is news.
    pub fn durable_to(&mut self, sequence: u64) -> bool {
        if sequence <= self.durable {
            return false;
        }
        self.durable = sequence;
        while let Some((_, key)) = self.queue.pop_front_if(|(queued, _)| *queued <= sequence) {
            let Some(id) = key.cursor() else { continue };
            let Some(marks) = self.marks.get_mut(&id) else { continue };
            while let Some((_, mark)) = marks.first.take_if(|(first, _)| *first <= sequence) {
                (marks.durable, marks.failed) = (Some(mark), None);
                marks.first = marks.later.take();
            }
            if marks.first.is_none() {
                self.marks.remove(&id);
            }
        }
        true
    }

    /// `None`: all records of the cursor are durable. Otherwise the lowest mark that may be found after a crash; `initial`
    /// stands for what is durable as long as nothing is.
    pub fn mark(&self, id: u64, initial: Position) -> Option<Position> {
        let marks = self.marks.get(&id)?;
        let lowest = marks.lowest_not_durable().unwrap_or(Position::LATEST);
        Some(lowest.min(marks.durable.unwrap_or(initial)))
    }

    /// Forgets what is under way (but not what is durable); returns what it was about, each once.
    pub fn take(&mut self) -> Vec<Key> {
        for marks in self.marks.values_mut() {
            marks.failed = marks.lowest_not_durable();
            (marks.first, marks.later) = (None, None);
        }
        let mut seen = FxHashSet::default();
        self.queue.drain(..).map(|(_, key)| key).filter(|&key| seen.insert(key)).collect()
    }
}
