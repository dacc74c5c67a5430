//! Giving brokers that have far less than their share, as after a start, what is theirs.

use std::collections::BTreeSet;

use crate::{
    Obstacle, Reason, Verdict,
    round::{DUST, Draft, Round},
};

impl Round<'_> {
    pub fn fill(&mut self) {
        let mut empty: Vec<usize> = (0..self.standings.all.len()).filter(|place| self.is_far_below(*place)).collect();
        empty.sort_by(|one, other| {
            let [one, other] = [one, other].map(|place| self.standings.all[*place].utilization());
            one.total_cmp(&other)
        });
        for place in empty {
            self.verdicts[place] = self.fill_one(place);
        }
    }

    /// Notes since when a broker has too little, and tells whether it has. Once it has, it is filled up to the goal, in several
    /// rounds if need be.
    fn is_far_below(&mut self, place: usize) -> bool {
        let (fill, mean) = (&self.config.fill, self.standings.mean);
        let standing = &self.standings.all[place];
        // What is under way to it may fail, so that only what has come counts as an end.
        let missing = mean - standing.utilization().min(standing.load_now / standing.cores);
        let broker = self.fleet.brokers.get_mut(&standing.broker).expect("standings are of the fleet");
        let bound = if broker.under_since_ms.is_some() { fill.goal } else { fill.trigger };
        let is_below = standing.serves() && missing > (bound * mean).max(fill.least);
        broker.under_since_ms = is_below.then(|| broker.under_since_ms.unwrap_or(self.now_ms));
        is_below
    }

    fn fill_one(&mut self, place: usize) -> Verdict {
        let fill = &self.config.fill;
        let id = &self.standings.all[place].broker;
        let since_ms = self.fleet.brokers[id].under_since_ms.unwrap_or(self.now_ms);
        let acts_ms = since_ms + fill.confirm_ms;
        if self.now_ms < acts_ms {
            return Verdict::Under { since_ms, acts_ms };
        }
        let waits_ms = self.fleet.filled_from_ms(id, self.config);
        if self.now_ms < waits_ms {
            return Verdict::CannotFill(Obstacle::KeepsStarting { until_ms: waits_ms });
        }
        if self.standings.all[place].is_avoided {
            return Verdict::CannotFill(Obstacle::NobodyTakes);
        }
        if let Some(verdict) = self.stuck(place) {
            return verdict;
        }
        let standing = &self.standings.all[place];
        let missing = (self.standings.mean * (1.0 - fill.goal) - standing.utilization()) * standing.cores;
        let draft = self.gather(place, missing);
        let moves = draft.moves.len();
        match draft.obstacle.clone() {
            Some(obstacle) if draft.load < fill.least_gain * missing && obstacle != Obstacle::ManyUnderWay => {
                self.discard(draft);
                self.get_stuck(place, Verdict::CannotFill(obstacle))
            }
            Some(obstacle) if moves == 0 => Verdict::CannotFill(obstacle),
            _ => {
                self.decide(draft, Reason::Fill);
                Verdict::Filling { moves }
            }
        }
    }

    /// Takes from whoever has most, one bundle after the other.
    fn gather(&mut self, to: usize, missing: f64) -> Draft {
        let mut draft = self.draft();
        let mut exhausted = BTreeSet::from([to]);
        let floor = self.standings.mean * (1.0 - self.config.fill.donors);
        let dust = DUST * missing;
        while draft.load + dust < missing {
            if self.room() == 0 || self.is_full(to) {
                draft.obstacle = Some(Obstacle::ManyUnderWay);
                break;
            }
            let Some(from) = self.most_loaded(floor, &exhausted) else {
                draft.obstacle.get_or_insert(Obstacle::NobodyGives);
                break;
            };
            let donor = &self.standings.all[from];
            let most = ((donor.utilization() - floor) * donor.cores).min(missing - draft.load);
            match self.pick_any(from, dust, most) {
                Ok(pick) => self.add(&mut draft, &pick, from, to),
                Err(obstacle) => {
                    draft.obstacle = Some(obstacle);
                    exhausted.insert(from);
                }
            }
        }
        draft
    }

    fn most_loaded(&self, floor: f64, but: &BTreeSet<usize>) -> Option<usize> {
        let donors = self.standings.all.iter().enumerate().filter(|(place, it)| {
            it.serves() && it.utilization() > floor && !but.contains(place) && !self.is_full(*place)
        });
        let most = donors.max_by(|(_, one), (_, other)| one.utilization().total_cmp(&other.utilization()));
        most.map(|(place, _)| place)
    }
}
