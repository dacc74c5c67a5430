//! What exists: segments, and which ledgers they hold. Everything in here is durable.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::SharedSegment;
use super::batch::LedgerRun;
use crate::deleted::IdRanges;
use crate::error::AppendError;
use crate::format::{ManifestLine, SegmentKind};
use crate::index::footer::{Directory, Hole, Row};
use crate::index::{Control, OpenIndex};
use crate::replica::{ExplicitLac, FENCE_WITHOUT_END, MasterKey, later};

pub(super) enum IndexState {
    /// The segment has no seal yet.
    Open(OpenIndex),
    Sealed {
        directory_at: u64,
        directory_bytes: u32,
        directory_crc: u32,
    },
}

pub(super) struct SegmentEntry<F> {
    pub segment: SharedSegment<F>,
    /// Where its durable records end.
    pub data_end: u64,
    pub index: IndexState,
    /// Bytes of entry records of ledgers that exist.
    pub live_bytes: u64,
    pub manifest_at: u64,
    pub holes: Vec<Hole>,
    /// Takes commits; otherwise it is sealed or to be sealed.
    pub active: bool,
}

/// A ledger has rows in this segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    pub segment: u32,
    /// Where its runs are, once the segment is sealed.
    pub section_at: u32,
    pub section_bytes: u32,
    /// Entries; `first > last` if there is only a fence.
    pub first: u64,
    pub last: u64,
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub placements: Vec<Placement>,
    pub fence: Option<u64>,
    /// Of a replica.
    pub key: Option<MasterKey>,
    pub explicit_lac: Option<Box<ExplicitLac>>,
}

impl Ledger {
    /// A fence knows it, whatever can still be found: entries behind it were never acknowledged.
    pub fn last(&self) -> Option<u64> {
        match self.end() {
            Some(end) => end.checked_sub(1),
            None => self.placements.iter().filter(|place| place.first <= place.last).map(|place| place.last).max(),
        }
    }

    /// Where a fence says that the ledger ends.
    fn end(&self) -> Option<u64> {
        self.fence.filter(|end| *end != FENCE_WITHOUT_END)
    }

    fn is_replica(&self) -> bool {
        self.key.is_some() || self.fence == Some(FENCE_WITHOUT_END)
    }

    fn take(&mut self, fence: Option<u64>, key: Option<MasterKey>, explicit_lac: Option<ExplicitLac>) {
        if let Some(end) = fence {
            self.fence = Some(self.fence.map_or(end, |known| known.min(end)));
        }
        self.key = self.key.or(key);
        if explicit_lac.is_some() {
            self.explicit_lac = later(self.explicit_lac.as_deref().copied(), explicit_lac).map(Box::new);
        }
    }

    fn place(&mut self, segment: u32) -> &mut Placement {
        let at = self.placements.iter().rposition(|place| place.segment == segment).unwrap_or_else(|| {
            self.placements.push(Placement { segment, section_at: 0, section_bytes: 0, first: 1, last: 0, bytes: 0 });
            self.placements.len() - 1
        });
        &mut self.placements[at]
    }
}

/// What segments still hold of a deleted ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Grave {
    /// Segments with entries or a fence of it: these make a tombstone necessary.
    pub remains: u32,
    /// Segments with a tombstone of it.
    pub stones: u32,
}

/// Ids of all ledgers that were ever deleted here, and more that can never come into being.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    pub ids: IdRanges,
    /// The file does not have all of them.
    pub unsaved: bool,
    /// The file could not be read: which others there were is not known.
    pub lost: bool,
}

impl Deletions {
    pub fn note(&mut self, first: u64, last: u64) {
        self.unsaved |= self.ids.insert(first, last);
    }
}

pub(super) struct Catalog<F> {
    pub ledgers: FxHashMap<u64, Ledger>,
    pub segments: BTreeMap<u32, SegmentEntry<F>>,
    pub graves: FxHashMap<u64, Grave>,
    pub deleted: Deletions,
    /// Segments that the manifest names and the disk does not have.
    pub lost: Vec<u32>,
    /// There is damage that may hide entries of which the index knows nothing. Only recovery finds such.
    pub damaged: bool,
    /// Segments from this one on were begun since the log was opened.
    pub opened_at: u32,
    pub only_replicas: bool,
}

impl<F> Catalog<F> {
    pub fn new() -> Self {
        Self {
            ledgers: FxHashMap::default(),
            segments: BTreeMap::new(),
            graves: FxHashMap::default(),
            deleted: Deletions::default(),
            lost: Vec::new(),
            damaged: false,
            opened_at: 0,
            only_replicas: false,
        }
    }

    pub fn is_deleted(&self, ledger: u64) -> bool {
        self.deleted.ids.contains(ledger)
    }

    /// Whether a whole ledger takes entries.
    pub fn check_whole(&self, ledger: u64) -> Result<(), AppendError> {
        let ended = match self.ledgers.get(&ledger) {
            // What is unreadable may be its fence.
            Some(known) => known.fence.is_some() || self.last_is_uncertain(ledger),
            None => self.is_deleted(ledger),
        };
        if ended { Err(AppendError::Fenced) } else { Ok(()) }
    }

    /// Whether a replica takes entries, of a recovery or of its writer.
    pub fn check_replica(&self, ledger: u64, recovery: bool) -> Result<(), AppendError> {
        match self.ledgers.get(&ledger) {
            None if self.is_deleted(ledger) => Err(AppendError::Fenced),
            None => Ok(()),
            Some(_) if recovery => Ok(()),
            Some(known) if known.fence.is_some() => Err(AppendError::Fenced),
            // What is unreadable may be its fence.
            Some(known) if self.damaged && known.placements.iter().any(|place| place.segment < self.opened_at) => {
                Err(AppendError::Unknown)
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether this is the replica's key; `coming` is one that is not durable yet.
    pub fn check_key(&self, coming: Option<&MasterKey>, ledger: u64, key: MasterKey) -> Result<(), AppendError> {
        let known = self.ledgers.get(&ledger).and_then(|known| known.key).or(coming.copied());
        if known.is_none_or(|known| known == key) { Ok(()) } else { Err(AppendError::WrongKey) }
    }

    pub fn add_run(&mut self, segment: u32, added: &LedgerRun) {
        let entry = self.segments.get_mut(&segment).expect("commits go to segments of the catalog");
        let IndexState::Open(index) = &mut entry.index else { panic!("a sealed segment takes no commits") };
        let is_new = index.get(added.ledger).is_none();
        index.add_run(added.ledger, added.run, added.bytes);
        if self.deleted.ids.contains(added.ledger) {
            self.graves.entry(added.ledger).or_default().remains += u32::from(is_new);
            return;
        }
        entry.live_bytes += added.bytes;
        let place = self.ledgers.entry(added.ledger).or_default().place(segment);
        let (first, last) = (added.run.first, added.run.end() - 1);
        (place.first, place.last) =
            if place.first > place.last { (first, last) } else { (place.first.min(first), place.last.max(last)) };
        place.bytes += added.bytes;
    }

    pub fn add_control(&mut self, segment: u32, control: Control) {
        let entry = self.segments.get_mut(&segment).expect("commits go to segments of the catalog");
        let IndexState::Open(index) = &mut entry.index else { panic!("a sealed segment takes no commits") };
        let ledger = control.ledger();
        if let Control::Tombstone { .. } = control {
            let is_second = std::mem::replace(&mut index.ledger_mut(ledger).deleted, true);
            self.graves.entry(ledger).or_default().stones += u32::from(!is_second);
            return self.bury(ledger);
        }
        let is_new = index.get(ledger).is_none();
        index.add_control(control);
        if self.deleted.ids.contains(ledger) {
            self.graves.entry(ledger).or_default().remains += u32::from(is_new);
            return;
        }
        let known = self.ledgers.entry(ledger).or_default();
        known.place(segment);
        match control {
            Control::Fence { end, .. } => known.take(Some(end), None, None),
            Control::Key { key, .. } => known.take(None, Some(key), None),
            Control::ExplicitLac { lac, .. } => known.take(None, None, Some(lac)),
            Control::Tombstone { .. } => unreachable!("seen above"),
        }
    }

    fn bury(&mut self, ledger: u64) {
        self.deleted.note(ledger, ledger);
        let Some(known) = self.ledgers.remove(&ledger) else { return };
        for place in &known.placements {
            if let Some(entry) = self.segments.get_mut(&place.segment) {
                entry.live_bytes -= place.bytes;
            }
        }
        self.graves.entry(ledger).or_default().remains += known.placements.len() as u32;
    }

    /// Takes in the rows of a segment that recovery found or compaction wrote. Which ledgers are deleted is known by then.
    pub fn add_rows(&mut self, segment: u32, rows: &[Row]) {
        let entry = self.segments.get_mut(&segment).expect("the caller added it");
        for row in rows {
            if self.deleted.ids.contains(row.ledger) {
                let grave = self.graves.entry(row.ledger).or_default();
                grave.remains += u32::from(row.holds_something());
                grave.stones += u32::from(row.deleted);
                continue;
            }
            entry.live_bytes += row.bytes;
            let known = self.ledgers.entry(row.ledger).or_default();
            known.take(row.fence, row.key, row.explicit_lac);
            known.placements.push(Placement {
                segment,
                section_at: row.section_at,
                section_bytes: row.section_bytes,
                first: row.first,
                last: row.last,
                bytes: row.bytes,
            });
        }
    }

    /// From now on the runs of this segment are read from its footer.
    pub fn seal(&mut self, segment: u32, directory: &Directory, state: IndexState) {
        for row in &directory.rows {
            if let Some(ledger) = self.ledgers.get_mut(&row.ledger)
                && let Some(place) = ledger.placements.iter_mut().find(|place| place.segment == segment)
            {
                (place.section_at, place.section_bytes) = (row.section_at, row.section_bytes);
            }
        }
        self.segments.get_mut(&segment).expect("only segments of the catalog are sealed").index = state;
    }

    /// The other segments that make up the log, as of now.
    pub fn manifest(&self, writing: u32, drop: &[u32]) -> Vec<ManifestLine> {
        let lines =
            self.segments.values().filter(|entry| entry.segment.id != writing && !drop.contains(&entry.segment.id));
        let mut lines: Vec<ManifestLine> = lines
            .map(|entry| ManifestLine { segment: entry.segment.id, kind: entry.segment.kind, data_end: entry.data_end })
            .collect();
        // What is lost stays on the list, so that the loss is not forgotten.
        lines.extend(self.lost.iter().map(|&segment| ManifestLine { segment, kind: SegmentKind::Log, data_end: 0 }));
        lines
    }

    /// Whether damage leaves open which entry is the last of the ledger. A whole ledger's entries come in order, so only
    /// what lies behind its last known one can hide another; compacted segments have lost that order.
    pub fn last_is_uncertain(&self, ledger: u64) -> bool {
        if !self.damaged {
            return false;
        }
        let Some(known) = self.ledgers.get(&ledger) else { return true };
        if self.only_replicas || known.is_replica() {
            return true;
        }
        if known.fence.is_some() {
            return false;
        }
        let last_place =
            known.placements.iter().filter(|place| place.first <= place.last).max_by_key(|place| place.last);
        let known_to = match last_place.and_then(|place| self.segments.get(&place.segment)) {
            Some(entry) if entry.segment.kind == SegmentKind::Log => entry.segment.id,
            _ => 0,
        };
        let hides = |entry: &SegmentEntry<F>| {
            !entry.holes.is_empty() && (entry.segment.id >= known_to || entry.segment.kind == SegmentKind::Compacted)
        };
        self.lost.iter().any(|&lost| lost >= known_to) || self.segments.values().any(hides)
    }
}
