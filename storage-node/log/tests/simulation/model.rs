//! What may be true of a log, given what was asked of it and what it answered.

use std::collections::BTreeMap;

use geminga_log::disk::sim::SimDisk;
use geminga_log::engine::Engine;
use geminga_log::{AppendError, FenceError, ReadError};

#[derive(Debug, Default, Clone)]
pub struct LedgerModel {
    /// Entries below were handed to the log.
    pub submitted: u64,
    /// Entries below were acknowledged, or seen after a recovery.
    pub durable: u64,
    /// A call failed; the writer asks for no more.
    pub given_up: bool,
    pub fence_asked: bool,
    /// The answer to a fence.
    pub fenced: Option<Option<u64>>,
    pub deletion_asked: bool,
    pub deleted: bool,
    /// Damage leaves open what there is of it; another start may tell.
    pub is_unknown: bool,
}

impl LedgerModel {
    pub fn takes_entries(&self) -> bool {
        !self.given_up && !self.fence_asked && !self.deletion_asked
    }
}

#[derive(Default)]
pub struct Model {
    pub ledgers: BTreeMap<u64, LedgerModel>,
    /// What may have made entries unreadable, and left other answers open.
    pub damages: usize,
    /// How many stretches of entries of a ledger it may have made so.
    pub unreadable_max: usize,
    /// Reads fail by chance just now.
    pub reads_fail: bool,
}

/// Every byte of an entry follows from its name.
pub fn content(ledger: u64, entry: u64) -> Vec<u8> {
    let mut state = (ledger << 32 ^ entry).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let length = match next() % 16 {
        0 => 0,
        1 => next() % 9000,
        _ => next() % 400,
    };
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while bytes.len() < length as usize {
        bytes.extend(next().to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}

impl Model {
    pub fn appended(&mut self, ledger: u64, first: u64, count: u64, result: &Result<(), AppendError>) {
        let damages = self.damages;
        let known = self.ledgers.get_mut(&ledger).expect("asked for");
        match result {
            Ok(()) => {
                if known.deleted {
                    return;
                }
                // With damage, an empty ledger's fence may be among what was lost.
                assert!(
                    known.fenced.is_none() || damages > 0 && known.fenced == Some(None),
                    "ledger {ledger}: acknowledged after a fence"
                );
                assert_eq!(known.durable, first, "ledger {ledger}: acknowledged with a gap before it");
                known.durable = first + count;
            }
            Err(_) => known.given_up = true,
        }
    }

    pub fn fenced(&mut self, ledger: u64, result: &Result<Option<u64>, FenceError>) {
        let damages = self.damages;
        let known = self.ledgers.get_mut(&ledger).expect("asked for");
        match result {
            // Deleted in the same commit, perhaps.
            Ok(_) if known.deletion_asked => (),
            Ok(last) => {
                let stored = last.map_or(0, |last| last + 1);
                assert_eq!(stored, known.durable, "ledger {ledger}: fenced at {last:?}");
                assert!(known.fenced.is_none_or(|before| before == *last), "ledger {ledger}: two answers to a fence");
                known.fenced = Some(*last);
            }
            Err(FenceError::Unknown(error)) => assert!(damages > 0, "ledger {ledger}: {error}"),
            Err(FenceError::NotDurable(_)) => (),
        }
    }

    /// Compares all of it; `recovered` says that the log was just opened, so that what is there now is durable.
    pub fn check(&mut self, engine: &Engine<SimDisk>, recovered: bool) {
        let mut unreadable = 0;
        let damages = self.damages;
        let existing = engine.ledgers();
        for (&ledger, known) in &mut self.ledgers {
            let exists = existing.binary_search(&ledger).is_ok();
            if known.deleted {
                // One that never was may have come into being since, by a late fence or append.
                let was_there = known.durable > 0 || known.fenced.is_some();
                assert!(!exists || !was_there || damages > 0, "ledger {ledger} came back");
                continue;
            }
            if recovered && known.deletion_asked {
                known.deleted = !exists;
                known.given_up = true;
                // Damage may hide that it was deleted.
                known.deletion_asked = known.deleted || damages > 0;
                if known.deleted {
                    continue;
                }
            }
            let visible = match engine.last_entry(ledger) {
                Ok(last) => Some(last.map_or(0, |last| last + 1)),
                Err(ReadError::NoSuchLedger { .. }) => Some(0),
                Err(error) => {
                    assert!(damages > 0 && matches!(error, ReadError::Corrupt { .. }), "ledger {ledger}: {error}");
                    None
                }
            };
            if let Some(visible) = visible {
                assert!(visible >= known.durable, "ledger {ledger}: {visible} entries left of {}", known.durable);
                assert!(visible <= known.submitted, "ledger {ledger}: {visible} entries, {} written", known.submitted);
                assert!(recovered || visible == known.durable, "ledger {ledger}: visible before it was acknowledged");
                if let Some(last) = known.fenced {
                    assert_eq!(visible, last.map_or(0, |last| last + 1), "ledger {ledger}: changed behind its fence");
                }
                known.durable = visible;
            }
            let mut goes_on = false;
            for entry in 0..known.durable {
                match engine.read(ledger, entry) {
                    Ok(bytes) => {
                        assert_eq!(bytes, content(ledger, entry), "entry {ledger}:{entry} is another");
                        goes_on = false;
                    }
                    Err(error @ ReadError::Corrupt { .. }) => {
                        assert!(damages > 0, "{error}");
                        // An empty one suffers with any other of its record.
                        if !content(ledger, entry).is_empty() {
                            unreadable += usize::from(!std::mem::replace(&mut goes_on, true));
                        }
                    }
                    Err(error) => panic!("{error} after it was acknowledged"),
                }
            }
            match engine.read(ledger, known.durable) {
                Err(ReadError::NoSuchEntry { .. } | ReadError::NoSuchLedger { .. }) => (),
                Err(ReadError::Corrupt { .. }) if damages > 0 => (),
                Ok(bytes) if visible.is_none() => assert_eq!(bytes, content(ledger, known.durable)),
                other => panic!("ledger {ledger}, behind its end at {}: {other:?}", known.durable),
            }
            if recovered {
                // The old writer is gone; who comes next either goes on from what is there or fences.
                known.is_unknown = visible.is_none();
                known.given_up |= known.is_unknown;
            }
        }
        let max = self.unreadable_max;
        assert!(unreadable <= max, "{unreadable} stretches are unreadable, at most {max} may be");
    }

    pub fn check_range(&self, engine: &Engine<SimDisk>, ledger: u64, first: u64, last: u64, max_bytes: usize) {
        let known = &self.ledgers[&ledger];
        match engine.read_range(ledger, first, last, max_bytes) {
            Ok(entries) => {
                assert!(!entries.is_empty() || first > last);
                let before: usize = entries.iter().rev().skip(1).map(|(_, bytes)| bytes.len()).sum();
                assert!(entries.len() <= 1 || before < max_bytes, "more than asked for");
                for ((entry, bytes), expected) in entries.iter().zip(first..) {
                    assert_eq!((*entry, &bytes[..]), (expected, &content(ledger, expected)[..]));
                    assert!(expected <= last);
                }
            }
            Err(ReadError::Corrupt { .. }) => assert!(self.damages > 0 || self.reads_fail),
            Err(error) => assert!(known.deleted || first >= known.durable, "{ledger}:{first}: {error}"),
        }
    }
}
