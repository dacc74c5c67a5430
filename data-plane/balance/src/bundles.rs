//! Every bundle that the balancer has heard of.

use std::{
    collections::HashMap,
    ops::{Index, IndexMut},
};

use crate::{BrokerId, BundleId, Reason, SplitReason, estimate::Estimate, moved::Moved};

/// What is known of one bundle. Times are the leader's.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub id: BundleId,
    pub owner: Option<BrokerId>,
    pub epoch: u64,
    /// When it got that owner, or lost it.
    pub since_ms: u64,
    /// When it is known to have come to its owner, who has not reported it yet.
    pub handed_over_ms: Option<u64>,
    pub work: Estimate,
    /// Whether its work was known already when it got its owner.
    pub came_known: bool,
    pub topics: u32,
    pub sessions: u32,
    /// A limit that is exceeded and that a split would help with, and since when one is.
    pub hot: Option<(SplitReason, u64)>,
    pub moved: Moved,
    /// Where it was last asked to go, until it gets another owner.
    pub asked: Option<Asked>,
    pub failures: u32,
    pub retry_after_ms: u64,
    /// The report that it was last seen in.
    pub seen_in: u64,
}

/// A wish that a bundle's owner hands it over.
#[derive(Debug)]
pub(crate) struct Asked {
    pub to: BrokerId,
    pub reason: Reason,
}

impl Bundle {
    fn new(id: BundleId, now_ms: u64) -> Self {
        Self {
            id,
            owner: None,
            epoch: 0,
            since_ms: now_ms,
            handed_over_ms: None,
            work: Estimate::default(),
            came_known: false,
            topics: 0,
            sessions: 0,
            hot: None,
            moved: Moved::default(),
            asked: None,
            failures: 0,
            retry_after_ms: 0,
            seen_in: 0,
        }
    }

    /// A split that has failed is not waited for.
    pub fn will_be_split(&self) -> bool {
        self.hot.is_some() && self.failures == 0
    }

    pub fn is_owned_by(&self, broker: &BrokerId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is(broker))
    }
}

/// Where a bundle is kept. Valid until the bundle is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Slot(u32);

impl Slot {
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Bundles in slots, which may be empty. Walks go by slot and so do not depend on the hash.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    slots: Vec<Option<Bundle>>,
    empty: Vec<Slot>,
    by_id: HashMap<BundleId, Slot>,
}

impl Bundles {
    pub fn slot_if_known(&self, id: &BundleId) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    pub fn find(&self, id: &BundleId) -> Option<&Bundle> {
        self.slot_if_known(id).map(|slot| &self[slot])
    }

    pub fn find_mut(&mut self, id: &BundleId) -> Option<&mut Bundle> {
        self.slot_if_known(id).map(|slot| &mut self[slot])
    }

    /// The slot of a bundle, which is made if it is new. A report mostly names the same bundles in the same order as the last
    /// one, so `guess`, the one then in that place, is looked at first.
    pub fn slot_of(&mut self, id: &BundleId, guess: Option<Slot>, now_ms: u64) -> Slot {
        let guessed = guess.filter(|slot| self.slots[slot.0 as usize].as_ref().is_some_and(|it| it.id.is(id)));
        if let Some(slot) = guessed.or_else(|| self.by_id.get(id).copied()) {
            return slot;
        }
        let bundle = Bundle::new(id.clone(), now_ms);
        let slot = match self.empty.pop() {
            Some(slot) => {
                self.slots[slot.0 as usize] = Some(bundle);
                slot
            }
            None => {
                self.slots.push(Some(bundle));
                Slot(u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 bundles"))
            }
        };
        self.by_id.insert(id.clone(), slot);
        slot
    }

    /// Forgets bundles that nobody has owned since before `ms`.
    pub fn forget_ownerless_since(&mut self, ms: u64) {
        for (index, place) in self.slots.iter_mut().enumerate() {
            if let Some(gone) = place.take_if(|it| it.owner.is_none() && it.since_ms < ms) {
                self.by_id.remove(&gone.id);
                self.empty.push(Slot(index as u32));
            }
        }
    }
}

impl Index<Slot> for Bundles {
    type Output = Bundle;

    fn index(&self, slot: Slot) -> &Bundle {
        self.slots[slot.0 as usize].as_ref().expect("a slot in use")
    }
}

impl IndexMut<Slot> for Bundles {
    fn index_mut(&mut self, slot: Slot) -> &mut Bundle {
        self.slots[slot.0 as usize].as_mut().expect("a slot in use")
    }
}
