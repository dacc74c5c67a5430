//! Which nodes of an ensemble have which entry: striped round-robin, as `RoundRobinDistributionSchedule` of BookKeeper.

use crate::metadata::Quorum;

/// A set of places in an ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots(u64);

/// The greatest ensemble that [`Slots`] can speak of.
pub const ENSEMBLE_MAX: u32 = 64;

impl Slots {
    pub const NONE: Slots = Slots(0);

    pub fn contains(self, slot: usize) -> bool {
        self.0 >> slot & 1 == 1
    }

    pub fn insert(&mut self, slot: usize) {
        self.0 |= 1 << slot;
    }

    pub fn remove(&mut self, slot: usize) {
        self.0 &= !(1 << slot);
    }

    pub fn without(self, other: Slots) -> Slots {
        Slots(self.0 & !other.0)
    }

    pub fn and(self, other: Slots) -> Slots {
        Slots(self.0 & other.0)
    }

    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..ENSEMBLE_MAX as usize).filter(move |slot| self.contains(*slot))
    }
}

impl FromIterator<usize> for Slots {
    fn from_iter<I: IntoIterator<Item = usize>>(slots: I) -> Self {
        let mut set = Slots::NONE;
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// The places of the nodes that an entry is written to, the one to be read first at the front.
pub fn write_order(quorum: Quorum, entry: u64) -> impl Iterator<Item = usize> {
    let (ensemble, write) = (u64::from(quorum.ensemble), u64::from(quorum.write));
    (0..write).map(move |n| ((entry % ensemble + n) % ensemble) as usize)
}

/// The same as a set.
pub fn write_set(quorum: Quorum, entry: u64) -> Slots {
    write_order(quorum, entry).collect()
}

/// Every set of places that some entry is written to.
pub fn write_sets(quorum: Quorum) -> impl Iterator<Item = Slots> {
    (0..u64::from(quorum.ensemble)).map(move |first| write_set(quorum, first))
}

/// Whether entries can still be acknowledged by nodes outside of `fenced`: whether some write set has an ack quorum left.
pub fn an_ack_quorum_is_left(quorum: Quorum, fenced: Slots) -> bool {
    write_sets(quorum).any(|set| set.without(fenced).count() >= quorum.ack)
}

/// Whether an entry that these nodes do not have cannot have been acknowledged.
pub fn proves_absence(quorum: Quorum, entry: u64, without_it: Slots) -> bool {
    let set = write_set(quorum, entry);
    set.without(without_it).count() < quorum.ack
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIPED: Quorum = Quorum { ensemble: 5, write: 3, ack: 2 };

    #[test]
    fn entries_go_round_the_ensemble() {
        assert_eq!(write_order(STRIPED, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(write_order(STRIPED, 9).collect::<Vec<_>>(), [4, 0, 1]);
        assert_eq!(write_order(STRIPED, u64::MAX).count(), 3);
        assert_eq!(write_set(STRIPED, 9).iter().collect::<Vec<_>>(), [0, 1, 4]);
    }

    #[test]
    fn fencing_covers_when_no_write_set_has_an_ack_quorum_left() {
        let all: Quorum = Quorum { ensemble: 3, write: 3, ack: 2 };
        assert!(an_ack_quorum_is_left(all, [0].into_iter().collect()));
        assert!(!an_ack_quorum_is_left(all, [0, 2].into_iter().collect()));
        // Of {0,1,2} one is left and of {1,2,3} none, but of {2,3,4} it is {4}, of {3,4,0} it is {4}, of {4,0,1} it is {4}.
        assert!(!an_ack_quorum_is_left(STRIPED, [0, 1, 2, 3].into_iter().collect()));
        assert!(an_ack_quorum_is_left(STRIPED, [0, 2, 3].into_iter().collect()));
    }

    #[test]
    fn absence_takes_more_than_one_denial() {
        let all: Quorum = Quorum { ensemble: 3, write: 3, ack: 2 };
        assert!(!proves_absence(all, 7, [1].into_iter().collect()));
        assert!(proves_absence(all, 7, [0, 1].into_iter().collect()));
    }
}
