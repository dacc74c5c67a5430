//! Where entries are: runs per ledger, in memory for a segment that is not sealed, in the segment's footer afterwards.
//!
//! A run is a stretch of a segment of at most [`RUN_BYTES_MAX`] (or one entry) that holds consecutive entries of a ledger,
//! perhaps between records of others. One entry is found by reading its run and walking the record headers, so an
//! index grows with the bytes of the log and the number of ledgers that share them, not with the number of entries.

pub mod cache;
pub mod footer;

use rustc_hash::FxHashMap;

use crate::format::record_bytes;
use crate::replica::{ExplicitLac, MasterKey, later};

/// What has to be read, at most, to find a small entry.
pub const RUN_BYTES_MAX: u32 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub count: u32,
    /// Of the first record, in the segment.
    pub offset: u32,
    /// From there to the end of the last record.
    pub span: u32,
}

impl Run {
    #[cfg(test)]
    pub fn one(entry: u64, offset: u32, record_bytes: u32) -> Self {
        Self { first: entry, count: 1, offset, span: record_bytes }
    }

    /// The first entry that is not in the run. Saturates, as does everything that computes with entry ids from disk.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    pub fn span_end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.span)
    }

    /// Takes in `next` if it continues this run within the bound.
    pub fn absorb(&mut self, next: &Run) -> bool {
        let span = next.span_end().saturating_sub(u64::from(self.offset));
        if next.first != self.end() || next.offset < self.offset || span > u64::from(RUN_BYTES_MAX) {
            return false;
        }
        self.count += next.count;
        self.span = span as u32;
        true
    }
}

/// The runs of one ledger in one segment, by first entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Runs(Vec<Run>);

impl Runs {
    pub fn from_sorted(runs: Vec<Run>) -> Self {
        debug_assert!(runs.is_sorted_by_key(|run| run.first));
        Self(runs)
    }

    /// Whether the run is a new one, rather than the continuation of the last.
    pub fn add(&mut self, run: Run) -> bool {
        if let Some(last) = self.0.last_mut() {
            if last.absorb(&run) {
                return false;
            }
            if run.first < last.first {
                let at = self.0.partition_point(|known| known.first <= run.first);
                self.0.insert(at, run);
                return true;
            }
        }
        self.0.push(run);
        true
    }

    pub fn as_slice(&self) -> &[Run] {
        &self.0
    }

    /// The runs from one that holds `entry` on. Runs overlap only if an entry was appended twice, which is with
    /// the same content: it does not matter which of them is read.
    pub fn from(&self, entry: u64) -> Option<&[Run]> {
        let after = self.0.partition_point(|run| run.first <= entry);
        let at = self.0[..after].iter().rposition(|run| entry < run.end())?;
        Some(&self.0[at..])
    }

    /// Every run that holds `entry`, the latest first.
    pub fn holding(&self, entry: u64) -> impl Iterator<Item = &Run> {
        let after = self.0.partition_point(|run| run.first <= entry);
        self.0[..after].iter().rev().filter(move |run| entry < run.end())
    }

    pub fn first(&self) -> Option<u64> {
        self.0.first().map(|run| run.first)
    }

    pub fn last(&self) -> Option<u64> {
        self.0.iter().map(|run| run.end() - 1).max()
    }
}

/// What a record says about a ledger, other than an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// `end` is the first entry that does not belong to the ledger.
    Fence {
        ledger: u64,
        end: u64,
    },
    Tombstone {
        ledger: u64,
    },
    Key {
        ledger: u64,
        key: MasterKey,
    },
    ExplicitLac {
        ledger: u64,
        lac: ExplicitLac,
    },
}

impl Control {
    pub fn ledger(&self) -> u64 {
        match *self {
            Self::Fence { ledger, .. }
            | Self::Tombstone { ledger }
            | Self::Key { ledger, .. }
            | Self::ExplicitLac { ledger, .. } => ledger,
        }
    }

    /// What follows the header of its record.
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Fence { .. } | Self::Tombstone { .. } => &[],
            Self::Key { key, .. } => key,
            Self::ExplicitLac { lac, .. } => lac.body(),
        }
    }

    pub fn record_bytes(&self) -> u64 {
        record_bytes(self.body().len())
    }
}

/// What a segment holds of one ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentLedger {
    pub runs: Runs,
    /// Bytes of its entry records.
    pub bytes: u64,
    /// From a fence record: the first entry that does not belong to the ledger.
    pub fence: Option<u64>,
    /// There is a tombstone.
    pub deleted: bool,
    /// Of a replica.
    pub key: Option<MasterKey>,
    pub explicit_lac: Option<ExplicitLac>,
}

/// The index of a segment that is not sealed.
#[derive(Debug, Default)]
pub struct OpenIndex {
    ledgers: FxHashMap<u64, SegmentLedger>,
    runs: usize,
}

impl OpenIndex {
    pub fn add_run(&mut self, ledger: u64, run: Run, bytes: u64) -> &SegmentLedger {
        let known = self.ledgers.entry(ledger).or_default();
        self.runs += usize::from(known.runs.add(run));
        known.bytes += bytes;
        known
    }

    pub fn ledger_mut(&mut self, ledger: u64) -> &mut SegmentLedger {
        self.ledgers.entry(ledger).or_default()
    }

    /// Notes a fence (the earliest counts), a tombstone, a key or an explicit last add confirmed (the greatest counts).
    pub fn add_control(&mut self, control: Control) {
        let row = self.ledger_mut(control.ledger());
        match control {
            Control::Fence { end, .. } => row.fence = Some(row.fence.map_or(end, |known| known.min(end))),
            Control::Tombstone { .. } => row.deleted = true,
            Control::Key { key, .. } => row.key = Some(key),
            Control::ExplicitLac { lac, .. } => row.explicit_lac = later(row.explicit_lac, Some(lac)),
        }
    }

    pub fn get(&self, ledger: u64) -> Option<&SegmentLedger> {
        self.ledgers.get(&ledger)
    }

    pub fn ledgers(&self) -> &FxHashMap<u64, SegmentLedger> {
        &self.ledgers
    }

    /// About; allocators and hash tables round up.
    pub fn memory_bytes(&self) -> usize {
        self.runs * 2 * size_of::<Run>() + self.ledgers.len() * 2 * size_of::<SegmentLedger>()
    }

    /// No footer of this index is longer.
    pub fn footer_bytes_max(&self) -> u64 {
        footer::bytes_max(self.ledgers.len(), self.runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_within_the_bound_and_find_out_of_order_entries() {
        let mut runs = Runs::default();
        assert!(runs.add(Run::one(5, 8192, 1000)));
        assert!(!runs.add(Run::one(6, 10_000, 1000)), "records of others may lie between");
        assert!(runs.add(Run::one(7, 8192 + RUN_BYTES_MAX, 1000)), "too far away");
        assert!(runs.add(Run::one(1, 200_000, 1000)));
        assert!(runs.add(Run::one(6, 300_000, 1000)), "appended again");
        assert_eq!((runs.first(), runs.last()), (Some(1), Some(7)));
        for entry in [1, 5, 6, 7] {
            let run = runs.from(entry).expect("is there")[0];
            assert!((run.first..run.end()).contains(&entry));
        }
        for entry in [0, 2, 4, 8] {
            assert_eq!(runs.from(entry), None);
        }
    }
}
