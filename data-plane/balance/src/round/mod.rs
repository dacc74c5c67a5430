//! One round of decisions.

mod drain;
mod fill;
mod level;
mod split;

use std::collections::BTreeSet;

use crate::{
    BrokerId, Decision, Obstacle, Reason, Verdict,
    bundles::{Asked, Bundle, Slot},
    choose::{mixed, unit},
    config::BalanceConfig,
    fleet::Fleet,
    in_flight::{Budget, Change, InFlight},
    moved::Rest,
    standings::Standings,
};

pub(crate) struct Round<'a> {
    pub now_ms: u64,
    pub config: &'a BalanceConfig,
    pub fleet: &'a mut Fleet,
    pub in_flight: &'a mut InFlight,
    pub budget: &'a mut Budget,
    /// With everything that this round has planned counted as done.
    pub standings: Standings,
    /// In the order of the standings.
    pub verdicts: Vec<Verdict>,
    pub decisions: Vec<Decision>,
    planned: BTreeSet<Slot>,
}

/// Moves that are made together or not at all.
struct Draft {
    moves: Vec<(Slot, usize, usize)>,
    load: f64,
    before: Standings,
    /// What ended it before its goal was reached.
    obstacle: Option<Obstacle>,
}

/// A bundle and its load in busy cores.
struct Pick {
    slot: Slot,
    load: f64,
}

/// What a move costs beside its sessions' reconnects, in such.
const MOVE_IN_SESSIONS: f64 = 50.0;

/// A bundle with less than this part of what is to move is dust, and stays.
const DUST: f64 = 0.001;

impl<'a> Round<'a> {
    pub fn new(
        now_ms: u64,
        config: &'a BalanceConfig,
        fleet: &'a mut Fleet,
        in_flight: &'a mut InFlight,
        budget: &'a mut Budget,
    ) -> Self {
        let standings = Standings::of(now_ms, fleet, in_flight, config);
        let verdicts = vec![Verdict::NotJudged; standings.all.len()];
        let (decisions, planned) = (Vec::new(), BTreeSet::new());
        Self { now_ms, config, fleet, in_flight, budget, standings, verdicts, decisions, planned }
    }

    pub fn run(&mut self) {
        for (verdict, standing) in self.verdicts.iter_mut().zip(&self.standings.all) {
            *verdict = if standing.is_silent { Verdict::Silent } else { Verdict::Balanced };
        }
        self.drain();
        self.fill();
        self.level();
        self.split();
    }

    /// How many more moves may be under way in the cluster.
    fn room(&self) -> usize {
        self.config.moves.in_flight.saturating_sub(self.in_flight.moves() + self.planned.len())
    }

    fn is_full(&self, place: usize) -> bool {
        self.standings.all[place].moving >= self.config.moves.in_flight_per_broker
    }

    fn draft(&self) -> Draft {
        Draft { moves: Vec::new(), load: 0.0, before: self.standings.clone(), obstacle: None }
    }

    fn add(&mut self, draft: &mut Draft, pick: &Pick, from: usize, to: usize) {
        self.standings.shift(pick.load, from, to);
        self.planned.insert(pick.slot);
        draft.moves.push((pick.slot, from, to));
        draft.load += pick.load;
    }

    fn discard(&mut self, draft: Draft) {
        for (slot, ..) in &draft.moves {
            self.planned.remove(slot);
        }
        self.standings = draft.before;
    }

    fn decide(&mut self, draft: Draft, reason: Reason) {
        for (slot, from, to) in draft.moves {
            self.planned.remove(&slot);
            let [from, to] = [from, to].map(|place| self.standings.all[place].broker.clone());
            let bundle = &mut self.fleet.bundles[slot];
            bundle.asked = Some(Asked { to: to.clone(), reason });
            let (id, epoch, work) = (bundle.id.clone(), bundle.epoch, bundle.work.value());
            let change = Change::Move { from: from.clone(), to: to.clone() };
            self.in_flight.start(self.now_ms, id.clone(), change, work);
            self.decisions.push(Decision::Move { bundle: id, epoch, from, to, reason });
        }
    }

    /// What was found at the last try for a broker, if that is not long ago and did not help.
    fn stuck(&self, place: usize) -> Option<Verdict> {
        let stuck = &self.fleet.brokers[&self.standings.all[place].broker].stuck;
        stuck.as_ref().filter(|(until_ms, _)| self.now_ms < *until_ms).map(|(_, verdict)| verdict.clone())
    }

    fn get_stuck(&mut self, place: usize, verdict: Verdict) -> Verdict {
        let until_ms = self.now_ms + self.config.moves.stuck_ms;
        let broker = self.fleet.brokers.get_mut(&self.standings.all[place].broker).expect("standings are of the fleet");
        broker.stuck = Some((until_ms, verdict.clone()));
        verdict
    }

    /// Bundles that a broker owns and that nothing is under way with.
    fn free_bundles<'b>(&'b self, of: &'b BrokerId) -> impl Iterator<Item = Slot> + 'b {
        let claims = self.fleet.brokers[of].claims.iter().copied();
        claims.filter(move |slot| {
            let bundle = &self.fleet.bundles[*slot];
            bundle.is_owned_by(of) && !self.planned.contains(slot) && !self.in_flight.has(&bundle.id)
        })
    }

    /// The bundle of a broker, with a load up to `most`, that moves the most for each client that has to connect again. From a
    /// load of `handy` of the broker's share on, more is less.
    fn pick(&self, from: usize, least: f64, most: f64, rest: Rest) -> Result<Pick, Obstacle> {
        let handy = self.config.level.handy;
        let handy = handy * self.standings.mean * self.standings.all[from].cores;
        self.best_of(from, least, most, rest, |load, slot| {
            let value = if load <= handy { load } else { handy * handy / load };
            value / (MOVE_IN_SESSIONS + f64::from(self.fleet.bundles[slot].sessions))
        })
    }

    /// Any bundle of a broker between two loads, with a chance in proportion to its load. So a broker that is filled gets what others
    /// consist of. Had it only the small ones, or only those that happen to have some load now, its day would differ from theirs.
    fn pick_any(&self, from: usize, least: f64, most: f64) -> Result<Pick, Obstacle> {
        self.best_of(from, least, most, Rest::Whole, |load, slot| uniform(self.now_ms, slot).ln() / load)
    }

    /// The smallest bundle of a broker between two loads.
    fn pick_smallest(&self, from: usize, least: f64, most: f64, rest: Rest) -> Result<Pick, Obstacle> {
        self.best_of(from, least, most, rest, |load, _| -load)
    }

    /// The bundle between two loads that has the greatest worth. Where policies bind bundles to some brokers
    /// (isolation, failure domains, anti-affinity), the broker that is to take it has to be asked about here, and in `choose`.
    fn best_of(
        &self,
        from: usize,
        least: f64,
        most: f64,
        rest: Rest,
        worth: impl Fn(f64, Slot) -> f64,
    ) -> Result<Pick, Obstacle> {
        let mut best: Option<(f64, Pick)> = None;
        let (mut resting, mut rested_ms) = (0, u64::MAX);
        let from = &self.standings.all[from].broker;
        for slot in self.fleet.brokers[from].claims.iter().copied() {
            let bundle = &self.fleet.bundles[slot];
            let load = bundle.work.value() * self.standings.cores_per_work;
            // What is about to be split is moved in pieces.
            let is_fit = (least..=most).contains(&load) && bundle.is_owned_by(from) && !bundle.will_be_split();
            if !is_fit {
                continue;
            }
            let free_ms = self.free_from_ms(bundle, rest);
            if free_ms > self.now_ms {
                resting += 1;
                rested_ms = rested_ms.min(free_ms);
                continue;
            }
            let worth = worth(load, slot);
            let is_better = best.as_ref().is_none_or(|(than, _)| worth > *than);
            if is_better && !self.planned.contains(&slot) && !self.in_flight.has(&bundle.id) {
                best = Some((worth, Pick { slot, load }));
            }
        }
        match best {
            Some((_, pick)) => Ok(pick),
            None if resting > 0 => Err(Obstacle::Resting { bundles: resting, until_ms: rested_ms }),
            None => Err(Obstacle::NothingFits { cores: most }),
        }
    }

    /// From when on a bundle may be moved for balance's sake.
    fn free_from_ms(&self, bundle: &Bundle, rest: Rest) -> u64 {
        let rested_ms = bundle.moved.free_from_ms(rest, &self.config.moves);
        let settled_ms = bundle.since_ms + self.config.hearing.settle_ms;
        rested_ms.max(settled_ms).max(bundle.retry_after_ms)
    }
}

/// A number above 0 and up to 1 that looks random and is the same for the same time and bundle.
fn uniform(now_ms: u64, slot: Slot) -> f64 {
    unit(mixed(mixed(now_ms) ^ u64::from(slot.number())))
}
