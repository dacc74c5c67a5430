//! Key_Shared: which consumer gets which slots of the hash range.
//!
//! Auto-split as Pulsar's `ConsistentHashingStickyKeyConsumerSelector`: 100 points per consumer, the point of a consumer
//! being the slot of `"<name>\0<index among consumers of that name>\0<point>"`; a slot belongs to the first point at or
//! after it, around the ring; of consumers that collide on a point, the one that came first has it. Sticky as
//! `HashRangeExclusiveStickyKeyConsumerSelector`: each consumer names its ranges, which may not overlap.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashMap;

use crate::hash::{HASH_RANGE_SIZE, auto_split_slot, sticky_key_hash, sticky_slot};
use crate::subscription::SubscribeError;
use crate::subscription::consumers::Slot;

const RING_POINTS: u32 = 100;

/// Consecutive hash slots of one consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub start: u16,
    pub end: u16,
    pub slot: Slot,
}

#[derive(Debug)]
pub(crate) enum Selector {
    AutoSplit(Ring),
    Sticky(Vec<Assignment>),
}

#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// Consumers at each point; the first one has it.
    points: BTreeMap<u16, Vec<Slot>>,
    names: FxHashMap<String, BTreeSet<u32>>,
    indexes: FxHashMap<Slot, u32>,
    /// Joined from the points.
    assignments: Vec<Assignment>,
}

impl Selector {
    pub fn auto_split() -> Self {
        Selector::AutoSplit(Ring::default())
    }

    pub fn sticky() -> Self {
        Selector::Sticky(Vec::new())
    }

    pub fn is_sticky(&self) -> bool {
        matches!(self, Selector::Sticky(_))
    }

    pub fn assignments(&self) -> &[Assignment] {
        match self {
            Selector::AutoSplit(ring) => &ring.assignments,
            Selector::Sticky(assignments) => assignments,
        }
    }

    /// The hash slot of a key.
    pub fn hash_slot(&self, hash: u32) -> u16 {
        match self {
            Selector::AutoSplit(_) => auto_split_slot(hash),
            Selector::Sticky(_) => sticky_slot(hash),
        }
    }

    pub fn select(&self, hash: u16) -> Option<Slot> {
        let assignments = self.assignments();
        let at = assignments.partition_point(|assignment| assignment.end < hash);
        assignments.get(at).filter(|assignment| assignment.start <= hash).map(|assignment| assignment.slot)
    }

    pub fn add(&mut self, slot: Slot, name: &str, ranges: &[(u32, u32)]) {
        match self {
            Selector::AutoSplit(ring) => ring.add(slot, name),
            Selector::Sticky(assignments) => {
                assignments.extend(ranges.iter().map(|&(start, end)| Assignment {
                    start: start as u16,
                    end: end as u16,
                    slot,
                }));
                assignments.sort_unstable_by_key(|assignment| assignment.start);
            }
        }
    }

    pub fn remove(&mut self, slot: Slot, name: &str) {
        match self {
            Selector::AutoSplit(ring) => ring.remove(slot, name),
            Selector::Sticky(assignments) => assignments.retain(|assignment| assignment.slot != slot),
        }
    }

    /// Checks the ranges of a consumer that wants to join; `name_of` is for the error.
    pub fn check_ranges<'a>(
        &self,
        ranges: &[(u32, u32)],
        name_of: impl Fn(Slot) -> &'a str,
    ) -> Result<(), SubscribeError> {
        if ranges.is_empty() {
            return Err(SubscribeError::InvalidRanges("Ranges for KeyShared policy must not be empty."));
        }
        for &(start, end) in ranges {
            if start > end {
                return Err(SubscribeError::InvalidRanges("Fixed hash range start > end"));
            }
            if end >= HASH_RANGE_SIZE {
                return Err(SubscribeError::InvalidRanges("Fixed hash range beyond 65535"));
            }
        }
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[1].0 <= pair[0].1) {
            return Err(SubscribeError::InvalidRanges("Fixed hash ranges overlap"));
        }
        let assignments = self.assignments();
        for (start, end) in sorted {
            let at = assignments.partition_point(|a| u32::from(a.end) < start);
            if let Some(taken) = assignments.get(at).filter(|a| u32::from(a.start) <= end) {
                return Err(SubscribeError::RangeConflict(name_of(taken.slot).to_owned()));
            }
        }
        Ok(())
    }
}

fn point_slot(name: &str, index: u32, point: u32) -> u16 {
    auto_split_slot(sticky_key_hash(format!("{name}\0{index}\0{point}").as_bytes()))
}

impl Ring {
    fn add(&mut self, slot: Slot, name: &str) {
        let used = self.names.entry(name.to_owned()).or_default();
        let index = (0..).find(|index| !used.contains(index)).unwrap_or_default();
        used.insert(index);
        self.indexes.insert(slot, index);
        for point in 0..RING_POINTS {
            self.points.entry(point_slot(name, index, point)).or_default().push(slot);
        }
        self.join();
    }

    fn remove(&mut self, slot: Slot, name: &str) {
        let Some(index) = self.indexes.remove(&slot) else { return };
        if let Some(used) = self.names.get_mut(name) {
            used.remove(&index);
            if used.is_empty() {
                self.names.remove(name);
            }
        }
        for point in 0..RING_POINTS {
            let at = point_slot(name, index, point);
            if let Some(holders) = self.points.get_mut(&at) {
                holders.retain(|&holder| holder != slot);
                if holders.is_empty() {
                    self.points.remove(&at);
                }
            }
        }
        self.join();
    }

    /// Slots 1 to 65535: everything up to a point is the point's, what is behind the last one belongs to the first.
    fn join(&mut self) {
        self.assignments.clear();
        let last = (HASH_RANGE_SIZE - 1) as u16;
        let wrap = self.points.first_key_value().map(|(_, holders)| (last, holders[0]));
        let mut start = 1;
        for (end, slot) in self.points.iter().map(|(&at, holders)| (at, holders[0])).chain(wrap) {
            match self.assignments.last_mut() {
                Some(previous) if previous.slot == slot => previous.end = end,
                _ if start <= end => self.assignments.push(Assignment { start, end, slot }),
                _ => {}
            }
            start = end.saturating_add(1);
            if end == last {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_covers_everything_and_moves_little() {
        let mut selector = Selector::auto_split();
        assert_eq!(selector.select(7), None);
        for slot in 0..10 {
            selector.add(slot, "same", &[]);
        }
        let before: Vec<Slot> = (1..=65_535).map(|hash| selector.select(hash).unwrap()).collect();
        let mut share = [0; 10];
        before.iter().for_each(|&slot| share[slot as usize] += 1);
        assert!(share.iter().all(|&n| (4000..10_000).contains(&n)), "{share:?}");
        selector.remove(4, "same");
        for (hash, &slot) in (1..=65_535).zip(&before) {
            let now = selector.select(hash).unwrap();
            assert!(now == slot || slot == 4, "hash {hash} moved from {slot} to {now}");
        }
        selector.add(4, "same", &[]);
        let again: Vec<Slot> = (1..=65_535).map(|hash| selector.select(hash).unwrap()).collect();
        assert!(before.iter().zip(&again).filter(|(a, b)| a != b).count() < 100, "collisions only");
    }

    #[test]
    fn sticky_ranges() {
        let mut selector = Selector::sticky();
        selector.add(0, "a", &[(0, 9), (20, 29)]);
        selector.add(1, "b", &[(10, 19)]);
        let selected: Vec<_> = [0, 9, 10, 19, 20, 29, 30].iter().map(|&hash| selector.select(hash)).collect();
        assert_eq!(selected, [Some(0), Some(0), Some(1), Some(1), Some(0), Some(0), None]);
        let names = ["a", "b"];
        let check = |ranges: &[(u32, u32)]| selector.check_ranges(ranges, |slot| names[slot as usize]);
        assert_eq!(check(&[(29, 40)]), Err(SubscribeError::RangeConflict("a".into())));
        assert_eq!(check(&[(30, 65_535)]), Ok(()));
        for bad in [&[][..], &[(50, 40)], &[(50, 65_536)], &[(40, 50), (50, 60)]] {
            assert!(matches!(check(bad), Err(SubscribeError::InvalidRanges(_))), "{bad:?}");
        }
        assert_eq!(check(&[(60, 70), (30, 40)]), Ok(()));
        assert_eq!(check(&[(60, 70), (12, 12)]), Err(SubscribeError::RangeConflict("b".into())));
        assert!(matches!(check(&[(60, 70), (30, 40), (35, 36)]), Err(SubscribeError::InvalidRanges(_))));
    }

    #[test]
    fn many_ranges_are_checked_at_once() {
        let ranges: Vec<(u32, u32)> = (0..HASH_RANGE_SIZE).rev().map(|at| (at, at)).collect();
        let since = std::time::Instant::now();
        let mut selector = Selector::sticky();
        assert_eq!(selector.check_ranges(&ranges, |_| ""), Ok(()));
        selector.add(0, "a", &ranges[1..]);
        assert_eq!(selector.check_ranges(&ranges[..1], |_| ""), Ok(()));
        assert_eq!(selector.check_ranges(&ranges, |_| "a"), Err(SubscribeError::RangeConflict("a".into())));
        assert!(since.elapsed() < std::time::Duration::from_millis(500), "{:?}", since.elapsed());
    }
}
