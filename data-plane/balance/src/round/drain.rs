//! Emptying brokers that leave.

use crate::{Obstacle, Reason, Verdict, bundles::Slot, round::Round};

impl Round<'_> {
    pub fn drain(&mut self) {
        for place in 0..self.standings.all.len() {
            let standing = &self.standings.all[place];
            if !standing.is_silent && !standing.accepts {
                self.verdicts[place] = self.drain_one(place);
            }
        }
    }

    /// The largest first, each to whoever has least then. Neither rest nor budget holds a drain up.
    fn drain_one(&mut self, place: usize) -> Verdict {
        let broker = self.standings.all[place].broker.clone();
        let mut bundles: Vec<Slot> = self.free_bundles(&broker).collect();
        bundles.sort_by(|one, other| {
            let [one, other] = [one, other].map(|slot| self.fleet.bundles[*slot].work.value());
            other.total_cmp(&one)
        });
        let left = bundles.len();
        let mut draft = self.draft();
        for slot in bundles {
            if self.room() == 0 || self.is_full(place) {
                break;
            }
            let limit = self.config.moves.in_flight_per_broker;
            let Some(to) = self.standings.least_loaded(limit, |it, _| it != place) else {
                draft.obstacle = Some(Obstacle::NobodyTakes);
                break;
            };
            let load = self.fleet.bundles[slot].work.value() * self.standings.cores_per_work;
            self.add(&mut draft, &super::Pick { slot, load }, place, to);
        }
        let moving = self.standings.all[place].moving;
        let waiting = left - draft.moves.len();
        let obstacle = draft.obstacle.take();
        self.decide(draft, Reason::Drain);
        match obstacle {
            Some(obstacle) if moving == 0 => Verdict::CannotDrain { waiting, obstacle },
            _ => Verdict::Draining { waiting, moving },
        }
    }
}
