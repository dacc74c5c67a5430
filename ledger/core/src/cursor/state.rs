//! The acknowledgements of one subscription as values: the whole state and a change to it, and their encodings.

use std::collections::BTreeMap;

use geminga_model::Position;
use roaring::RoaringBitmap;

use super::ack_set::AckSet;
use crate::wire::{FormatError, Reader, put_position, put_u64};

/// Version of both encodings; a reader knows this one.
const VERSION: u8 = 1;
const RESET: u8 = 1;
const RUNS: u8 = 0;
const ROARING: u8 = 1;

/// Acknowledged entries by ledger.
pub(crate) type Acked = BTreeMap<u64, RoaringBitmap>;
/// Batches that are acknowledged in part.
pub(crate) type Batches = BTreeMap<Position, AckSet>;

/// The complete acknowledgement state of a subscription. 24 bytes as long as nothing is acknowledged out of order.
#[derive(Clone, Debug)]
pub struct CursorSnapshot {
    mark_delete: Position,
    above: Option<Box<Above>>,
}

/// What is acknowledged above the mark-delete position.
#[derive(Clone, Debug, Default)]
pub(crate) struct Above {
    pub acked: Acked,
    /// Total of `acked`.
    pub entries: u64,
    pub batches: Batches,
}

/// All that changed in a cursor between two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct CursorDelta {
    /// Everything above the mark-delete position was forgotten first (a seek), and the mark may go back.
    pub(crate) reset: bool,
    pub(crate) mark_delete: Position,
    pub(crate) acked: Acked,
    pub(crate) batches: Batches,
}

impl CursorDelta {
    pub fn mark_delete(&self) -> Position {
        self.mark_delete
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[VERSION, if self.reset { RESET } else { 0 }]);
        encode_parts(out, self.mark_delete, &self.acked, &self.batches);
    }

    pub fn decode(bytes: &[u8]) -> Result<CursorDelta, FormatError> {
        let mut reader = Reader(bytes);
        let flags = decode_head(&mut reader)?;
        let (mark_delete, acked, batches) = decode_parts(&mut reader)?;
        Ok(CursorDelta { reset: flags & RESET != 0, mark_delete, acked, batches })
    }
}

impl CursorSnapshot {
    /// Everything up to and including `mark_delete` is acknowledged, and nothing above.
    pub fn new(mark_delete: Position) -> CursorSnapshot {
        CursorSnapshot { mark_delete, above: None }
    }

    pub fn mark_delete(&self) -> Position {
        self.mark_delete
    }

    /// The greatest ledger that anything is acknowledged in.
    pub fn last_ledger(&self) -> u64 {
        let above = self.above();
        let acked = above.and_then(|above| above.acked.last_key_value()).map_or(0, |(ledger, _)| *ledger);
        let batches = above.and_then(|above| above.batches.last_key_value()).map_or(0, |(pos, _)| pos.ledger_id);
        self.mark_delete.ledger_id.max(acked).max(batches)
    }

    pub(crate) fn above(&self) -> Option<&Above> {
        self.above.as_deref()
    }

    pub(crate) fn above_mut(&mut self) -> &mut Above {
        self.above.get_or_insert_default()
    }

    pub fn is_acked(&self, pos: Position) -> bool {
        pos <= self.mark_delete
            || self.above().is_some_and(|above| match (above.acked.get(&pos.ledger_id), u32::try_from(pos.entry_id)) {
                (Some(bitmap), Ok(entry)) => bitmap.contains(entry),
                _ => false,
            })
    }

    /// Moves the mark-delete position, in either direction, and forgets what it covers now.
    pub(crate) fn set_mark(&mut self, mark: Position) {
        self.mark_delete = mark;
        if let Some(above) = &mut self.above {
            above.drop_through(mark);
            if above.acked.is_empty() && above.batches.is_empty() {
                self.above = None;
            }
        }
    }

    pub(crate) fn clear(&mut self, mark: Position) {
        *self = CursorSnapshot::new(mark);
    }

    /// Brings a copy of the state before the change to the state after it. A change that does not fit, as it was made to an older
    /// state, takes back nothing that was acknowledged: the mark-delete position does not go back but by a seek.
    pub fn apply(&mut self, delta: &CursorDelta) {
        if delta.reset {
            self.clear(delta.mark_delete);
        }
        if !delta.acked.is_empty() || !delta.batches.is_empty() {
            let above = self.above_mut();
            for (&ledger, change) in &delta.acked {
                above.insert_all(ledger, change);
            }
            above.batches.extend(delta.batches.iter().map(|(&pos, set)| (pos, set.clone())));
        }
        self.set_mark(delta.mark_delete.max(self.mark_delete));
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[VERSION, 0]);
        match self.above() {
            Some(above) => encode_parts(out, self.mark_delete, &above.acked, &above.batches),
            None => encode_parts(out, self.mark_delete, &Acked::new(), &Batches::new()),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<CursorSnapshot, FormatError> {
        let mut reader = Reader(bytes);
        decode_head(&mut reader)?;
        let (mark_delete, acked, batches) = decode_parts(&mut reader)?;
        let mut snapshot = CursorSnapshot::new(mark_delete);
        if !acked.is_empty() || !batches.is_empty() {
            let entries = acked.values().map(RoaringBitmap::len).sum();
            snapshot.above = Some(Box::new(Above { acked, entries, batches }));
            snapshot.set_mark(mark_delete);
        }
        Ok(snapshot)
    }

    /// Heap and inline bytes, about.
    pub fn memory_bytes(&self) -> usize {
        size_of::<CursorSnapshot>() + self.above().map_or(0, Above::memory_bytes)
    }
}

/// Same acknowledgements (however the bitmaps hold them).
impl PartialEq for CursorSnapshot {
    fn eq(&self, other: &CursorSnapshot) -> bool {
        let none = Above::default();
        let (a, b) = (self.above().unwrap_or(&none), other.above().unwrap_or(&none));
        self.mark_delete == other.mark_delete
            && a.entries == b.entries
            && a.batches == b.batches
            && a.acked.len() == b.acked.len()
            && a.acked.iter().zip(&b.acked).all(|(x, y)| x.0 == y.0 && runs(x.1).eq(runs(y.1)))
    }
}

impl Above {
    /// Marks one entry; `false` if it was marked. A batch state it had is over.
    pub fn insert(&mut self, ledger: u64, entry: u32) -> bool {
        let new = self.acked.entry(ledger).or_default().insert(entry);
        self.entries += u64::from(new);
        if !self.batches.is_empty() {
            self.batches.remove(&Position { ledger_id: ledger, entry_id: i64::from(entry) });
        }
        new
    }

    fn insert_all(&mut self, ledger: u64, change: &RoaringBitmap) {
        let bitmap = self.acked.entry(ledger).or_default();
        let before = bitmap.len();
        *bitmap |= change;
        self.entries += bitmap.len() - before;
        if !self.batches.is_empty() {
            let acked = |pos: &Position| pos.ledger_id == ledger && entry_bit(*pos).is_some_and(|e| change.contains(e));
            self.batches.retain(|pos, _| !acked(pos));
        }
    }

    fn drop_through(&mut self, mark: Position) {
        while let Some(first) = self.acked.first_entry() {
            if *first.key() >= mark.ledger_id {
                break;
            }
            self.entries -= first.remove().len();
        }
        if let (Some(bitmap), true) = (self.acked.get_mut(&mark.ledger_id), mark.entry_id >= 0) {
            let last = u32::try_from(mark.entry_id).unwrap_or(u32::MAX);
            self.entries -= bitmap.remove_range(..=last);
            if bitmap.is_empty() {
                self.acked.remove(&mark.ledger_id);
            }
        }
        while self.batches.first_key_value().is_some_and(|(pos, _)| *pos <= mark) {
            self.batches.pop_first();
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Above>() + acked_bytes(&self.acked) + batch_bytes(&self.batches)
    }
}

pub(crate) fn acked_bytes(acked: &Acked) -> usize {
    acked.values().map(|bitmap| size_of::<RoaringBitmap>() + 32 + bitmap.serialized_size()).sum()
}

pub(crate) fn batch_bytes(batches: &Batches) -> usize {
    batches.values().map(|set| size_of::<(Position, AckSet)>() + 16 + set.memory_bytes()).sum()
}

/// The bit of an entry, if it can have one: a ledger holds fewer than 2^32 entries.
pub(crate) fn entry_bit(pos: Position) -> Option<u32> {
    u32::try_from(pos.entry_id).ok()
}

/// The last entry of the run of acknowledged entries that starts at `entry`; `None` if that one is not acknowledged.
pub(crate) fn run_end(bitmap: &RoaringBitmap, entry: u32) -> Option<u32> {
    let mut iter = bitmap.iter();
    iter.advance_to(entry);
    let run = iter.next_range()?;
    (*run.start() == entry).then_some(*run.end())
}

fn runs(bitmap: &RoaringBitmap) -> impl Iterator<Item = std::ops::RangeInclusive<u32>> {
    let mut iter = bitmap.iter();
    std::iter::from_fn(move || iter.next_range())
}

fn encode_parts(out: &mut Vec<u8>, mark_delete: Position, acked: &Acked, batches: &Batches) {
    put_position(out, mark_delete);
    put_u64(out, acked.len() as u64);
    for (&ledger, bitmap) in acked {
        put_u64(out, ledger);
        encode_bitmap(out, bitmap);
    }
    put_u64(out, batches.len() as u64);
    for (&pos, set) in batches {
        put_position(out, pos);
        set.encode(out);
    }
}

/// The smaller of: runs (gap to the previous run's end, length - 1, each a varint), or Roaring's portable format.
fn encode_bitmap(out: &mut Vec<u8>, bitmap: &RoaringBitmap) {
    let limit = bitmap.serialized_size();
    let mut runs = Vec::new();
    let mut count = 0;
    let (mut iter, mut next) = (bitmap.iter(), 0u64);
    while let Some(run) = iter.next_range() {
        put_u64(&mut runs, u64::from(*run.start()) - next);
        put_u64(&mut runs, u64::from(run.end() - run.start()));
        next = u64::from(*run.end()) + 1;
        count += 1;
        if runs.len() > limit {
            out.push(ROARING);
            put_u64(out, limit as u64);
            bitmap.serialize_into(&mut *out).expect("writing to memory does not fail");
            return;
        }
    }
    out.push(RUNS);
    put_u64(out, count);
    out.extend_from_slice(&runs);
}

fn decode_head(reader: &mut Reader<'_>) -> Result<u8, FormatError> {
    match reader.u8()? {
        VERSION => {}
        other => return Err(FormatError::Version(other)),
    }
    let flags = reader.u8()?;
    if flags & !RESET != 0 { Err(FormatError::Invalid("cursor flags")) } else { Ok(flags) }
}

fn decode_parts(reader: &mut Reader<'_>) -> Result<(Position, Acked, Batches), FormatError> {
    let mark_delete = reader.position()?;
    let mut acked = Acked::new();
    for _ in 0..reader.u64()? {
        let ledger = reader.u64()?;
        let bitmap = decode_bitmap(reader)?;
        if !bitmap.is_empty() {
            acked.insert(ledger, bitmap);
        }
    }
    let mut batches = Batches::new();
    for _ in 0..reader.u64()? {
        batches.insert(reader.position()?, AckSet::decode(reader)?);
    }
    if !reader.is_empty() {
        return Err(FormatError::Invalid("cursor record: bytes behind its end"));
    }
    Ok((mark_delete, acked, batches))
}

fn decode_bitmap(reader: &mut Reader<'_>) -> Result<RoaringBitmap, FormatError> {
    let invalid = FormatError::Invalid("acknowledged entries");
    match reader.u8()? {
        RUNS => {
            let mut bitmap = RoaringBitmap::new();
            let mut next = 0u64;
            for _ in 0..reader.u64()? {
                let start = next.checked_add(reader.u64()?).ok_or(invalid)?;
                let end = start.checked_add(reader.u64()?).ok_or(invalid)?;
                let (start, end) =
                    (u32::try_from(start).map_err(|_| invalid)?, u32::try_from(end).map_err(|_| invalid)?);
                bitmap.insert_range(start..=end);
                next = u64::from(end) + 1;
            }
            Ok(bitmap)
        }
        ROARING => {
            let len = reader.u64()?;
            RoaringBitmap::deserialize_from(reader.bytes(len)?).map_err(|_| invalid)
        }
        _ => Err(invalid),
    }
}
