//! Splitting bundles that have been too hot for a while.

use crate::{Decision, bundles::Slot, in_flight::Change, round::Round};

impl Round<'_> {
    pub fn split(&mut self) {
        let limits = &self.config.split;
        let room = limits.in_flight.saturating_sub(self.in_flight.splits());
        let ripe: Vec<Slot> = self.fleet.hot.iter().copied().filter(|slot| self.is_ripe(*slot)).take(room).collect();
        for slot in ripe {
            let bundle = &self.fleet.bundles[slot];
            let (Some(owner), Some((reason, _))) = (bundle.owner.clone(), bundle.hot) else { continue };
            let (id, epoch) = (bundle.id.clone(), bundle.epoch);
            self.in_flight.start(self.now_ms, id.clone(), Change::Split, bundle.work.value());
            self.decisions.push(Decision::Split { bundle: id, epoch, owner, reason });
        }
    }

    fn is_ripe(&self, slot: Slot) -> bool {
        let bundle = &self.fleet.bundles[slot];
        let confirm_ms = self.config.split.confirm_ms;
        let is_confirmed = bundle.hot.is_some_and(|(_, since_ms)| self.now_ms - since_ms >= confirm_ms);
        let serves = |it: &crate::standings::Standing| it.serves() && bundle.is_owned_by(&it.broker);
        is_confirmed
            && self.now_ms >= bundle.retry_after_ms
            && !self.in_flight.has(&bundle.id)
            && self.standings.all.iter().any(serves)
    }
}
