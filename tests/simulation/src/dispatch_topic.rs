//! A topic for the dispatch simulation: entries in memory, of which a reader finds some at once and others only after they were asked for.

use std::collections::BTreeSet;

use bytes::Bytes;
use geminga_ledger::{LedgerList, LedgerSpan};
use geminga_model::Position;
use geminga_topic::{DispatchWait, Entry, EntryMeta, EntryReader, Ready};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub struct SimTopic {
    ledgers: Vec<(u64, Vec<Entry>)>,
    list: LedgerList,
    payload: Bytes,
    /// How often an entry is not at hand, in percent.
    cold: u32,
    rng: SmallRng,
    fetched: BTreeSet<Position>,
    fetched_from: Option<Position>,
}

impl SimTopic {
    pub fn new(seed: u64, cold: u32, payload: usize) -> Self {
        SimTopic {
            ledgers: vec![(7, Vec::new())],
            list: LedgerList::new([span(7, 0)]),
            payload: Bytes::from(vec![0; payload]),
            cold,
            rng: SmallRng::seed_from_u64(seed),
            fetched: BTreeSet::new(),
            fetched_from: None,
        }
    }

    pub fn append(&mut self, metas: impl IntoIterator<Item = EntryMeta>) {
        let (ledger_id, entries) = self.ledgers.last_mut().expect("there is always a ledger");
        for meta in metas {
            let position = Position { ledger_id: *ledger_id, entry_id: entries.len() as i64 };
            entries.push(Entry { position, meta, data: self.payload.clone() });
        }
        self.relist();
    }

    pub fn roll_over(&mut self) {
        let next = self.ledgers.last().map_or(1, |(id, _)| id + 3);
        self.ledgers.push((next, Vec::new()));
        self.relist();
    }

    /// Removes the first ledger, whether or not it was acknowledged.
    pub fn trim(&mut self) {
        if self.ledgers.len() > 1 {
            self.ledgers.remove(0);
            self.relist();
        }
    }

    fn relist(&mut self) {
        self.list = LedgerList::new(self.ledgers.iter().map(|(id, entries)| span(*id, entries.len() as u64)));
    }

    pub fn list(&self) -> &LedgerList {
        &self.list
    }

    pub fn entry(&self, at: Position) -> Option<&Entry> {
        let (_, entries) = self.ledgers.iter().find(|(id, _)| *id == at.ledger_id)?;
        entries.get(usize::try_from(at.entry_id).ok()?)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.ledgers.iter().flat_map(|(_, entries)| entries)
    }

    /// Entries after `after`.
    pub fn entries_after(&self, after: Position) -> impl Iterator<Item = &Entry> {
        let first = self.ledgers.partition_point(|(id, _)| *id < after.ledger_id);
        let skip = match self.ledgers.get(first) {
            Some((id, _)) if *id == after.ledger_id => (after.entry_id + 1) as usize,
            _ => 0,
        };
        self.ledgers[first..].iter().flat_map(|(_, entries)| entries).skip(skip)
    }

    /// Does the read that a dispatcher asked for. False if it asked for none.
    pub fn serve(&mut self, wait: &DispatchWait) -> bool {
        match wait {
            DispatchWait::NeedRead { from, max_entries } => {
                assert!(*max_entries > 0);
                self.fetched_from = Some(*from);
            }
            DispatchWait::NeedEntries(positions) => {
                assert!(!positions.is_empty());
                self.fetched.extend(positions);
            }
            DispatchWait::MoreWork => {}
            _ => return false,
        }
        true
    }
}

fn span(ledger_id: u64, entries: u64) -> LedgerSpan {
    LedgerSpan { ledger_id, entries, size: entries * 100, timestamp_ms: 0, first_index: 0 }
}

impl EntryReader for SimTopic {
    fn read_ready(&mut self, from: Position, max_entries: usize, max_bytes: usize, out: &mut Vec<Entry>) -> Ready {
        assert!(max_entries > 0 && out.is_empty());
        let Some(from) = self.list.ceiling(from) else { return Ready::CaughtUp };
        if self.fetched_from.take_if(|fetched| *fetched == from).is_none() && self.rng.random_range(0..100) < self.cold
        {
            return Ready::NeedRead(from);
        }
        let most = match self.cold {
            0 => max_entries,
            _ => max_entries.min(self.rng.random_range(1..50)),
        };
        let first = self.ledgers.iter().position(|(id, _)| *id == from.ledger_id).expect("the list said so");
        let mut bytes = 0;
        let rest = self.ledgers[first].1[from.entry_id as usize..].iter();
        for entry in rest.chain(self.ledgers[first + 1..].iter().flat_map(|(_, entries)| entries)) {
            if out.len() >= most || (bytes >= max_bytes && !out.is_empty()) {
                break;
            }
            bytes += entry.data.len();
            out.push(entry.clone());
        }
        Ready::Entries
    }

    fn get(&mut self, at: Position) -> Option<Entry> {
        let known = self.fetched.remove(&at) || self.rng.random_range(0..100) >= self.cold;
        if known { self.entry(at).cloned() } else { None }
    }

    /// It may be wrong about those that were not fetched: they are asked for when their turn has come.
    fn has(&self, at: Position) -> bool {
        self.fetched.contains(&at) || at.entry_id * 37 % 100 >= i64::from(self.cold)
    }

    fn ledgers(&self) -> &LedgerList {
        &self.list
    }
}
