//! Taking from brokers that have had more than their share for a while.

use crate::{
    Obstacle, Reason, Verdict,
    moved::Rest,
    round::{DUST, Draft, Round},
    standings::Standing,
};

/// How much more than half a gap a bundle may have that is moved across it.
const HALF: f64 = 1.2;

impl Round<'_> {
    pub fn level(&mut self) {
        let mut over: Vec<usize> = (0..self.standings.all.len()).filter(|place| self.is_above(*place)).collect();
        over.sort_by(|one, other| {
            let [one, other] = [one, other].map(|place| self.standings.all[*place].utilization());
            other.total_cmp(&one)
        });
        for place in over {
            self.verdicts[place] = self.level_one(place);
        }
    }

    /// Notes since when a broker has too much, and tells whether it has.
    fn is_above(&mut self, place: usize) -> bool {
        let (level, mean) = (&self.config.level, self.standings.mean);
        let standing = &self.standings.all[place];
        let surplus = standing.utilization() - mean;
        let is_above = standing.serves() && surplus > (level.trigger * mean).max(level.least);
        let broker = self.fleet.brokers.get_mut(&standing.broker).expect("standings are of the fleet");
        broker.over_since_ms = is_above.then(|| broker.over_since_ms.unwrap_or(self.now_ms));
        is_above
    }

    fn level_one(&mut self, place: usize) -> Verdict {
        let level = &self.config.level;
        let standing = &self.standings.all[place];
        let broker = &self.fleet.brokers[&standing.broker];
        let since_ms = broker.over_since_ms.unwrap_or(self.now_ms);
        let is_far_above = standing.utilization() > self.standings.mean * (1.0 + level.at_once);
        let acts_ms = level.confirm_ms + if is_far_above { broker.known_since_ms } else { since_ms };
        if self.now_ms < acts_ms {
            return Verdict::Over { since_ms, acts_ms };
        }
        if let Some(verdict) = self.stuck(place) {
            return verdict;
        }
        let goal = self.standings.mean * (1.0 + level.goal);
        let surplus = (standing.utilization() - goal) * standing.cores;
        let draft = self.shed(place, goal, surplus);
        let moves = draft.moves.len();
        match draft.obstacle.clone() {
            Some(Obstacle::BudgetSpent | Obstacle::ManyUnderWay) if moves > 0 => {}
            Some(obstacle) if draft.load < level.least_gain * surplus => {
                self.discard(draft);
                return self.get_stuck(place, Verdict::CannotShed(obstacle));
            }
            _ => {}
        }
        self.budget.spend(moves);
        self.decide(draft, Reason::Level);
        Verdict::Shedding { moves }
    }

    /// Gives to whoever has least, one bundle after the other.
    fn shed(&mut self, from: usize, goal: f64, surplus: f64) -> Draft {
        let mut draft = self.draft();
        let mut rest = Rest::Whole;
        let dust = DUST * surplus;
        while draft.load + dust < surplus {
            draft.obstacle = if draft.moves.len() >= self.budget.left() {
                Some(Obstacle::BudgetSpent)
            } else if self.room() == 0 || self.is_full(from) {
                Some(Obstacle::ManyUnderWay)
            } else {
                self.shed_one(&mut draft, from, goal, surplus, rest).err()
            };
            // What a started broker was given has not been levelled yet, so that it may be, but only if there is nothing else.
            if rest == Rest::Whole && matches!(draft.obstacle, Some(Obstacle::Resting { .. })) {
                rest = Rest::SinceLevelled;
                continue;
            }
            if draft.obstacle.is_some() {
                break;
            }
        }
        draft
    }

    fn shed_one(
        &mut self,
        draft: &mut Draft,
        from: usize,
        goal: f64,
        surplus: f64,
        rest: Rest,
    ) -> Result<(), Obstacle> {
        let limit = self.config.moves.in_flight_per_broker;
        let may = |place, it: &Standing| place != from && !it.is_unsteady;
        let to = self.standings.least_loaded(limit, may).ok_or(Obstacle::NobodyTakes)?;
        let taker = &self.standings.all[to];
        let most = ((goal - taker.utilization()) * taker.cores).min(surplus - draft.load);
        let fits = self.pick(from, DUST * surplus, most, rest);
        // A large bundle lifts the taker above the goal, but hardly above where it comes from, so that the gap between them all but
        // closes. What the taker has too much then may be smaller and go elsewhere.
        let pick = fits.or_else(|obstacle| {
            let gap = self.standings.all[from].utilization() - taker.utilization();
            let half = gap / (1.0 / taker.cores + 1.0 / self.standings.all[from].cores);
            self.pick_smallest(from, most.max(DUST * surplus), HALF * half, rest).map_err(|_| obstacle)
        })?;
        self.add(draft, &pick, from, to);
        Ok(())
    }
}
