//! One round of decisions.

mod drain;
mod fill;
mod level;
mod split;

use std::collections::BTreeSet;

use crate::{
    BrokerId, Decision, Obstacle, Reason, Verdict,
    bundles::Slot,
    config::BalanceConfig,
    fleet::Fleet,
    in_flight::{Budget, Change, InFlight},
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
        let verdict = |is_silent| if is_silent { Verdict::Silent } else { Verdict::Balanced };
        let verdicts = standings.all.iter().map(|it| verdict(it.is_silent)).collect();
        let (decisions, planned) = (Vec::new(), BTreeSet::new());
        Self { now_ms, config, fleet, in_flight, budget, standings, verdicts, decisions, planned }
    }

    pub fn run(&mut self) {
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
            bundle.asked = Some((to.clone(), reason));
            let (id, epoch, work) = (bundle.id.clone(), bundle.epoch, bundle.work.value());
            let change = Change::Move { from: from.clone(), to: to.clone() };
            self.in_flight.start(self.now_ms, id.clone(), change, work);
            self.decisions.push(Decision::Move { bundle: id, epoch, from, to, reason });
        }
    }

    /// Bundles that a broker owns and that nothing is under way with.
    fn free_bundles<'b>(&'b self, of: &'b BrokerId) -> impl Iterator<Item = Slot> + 'b {
        let claims = self.fleet.brokers[of].claims.iter().copied();
        claims.filter(move |slot| {
            let bundle = &self.fleet.bundles[*slot];
            bundle.is_owned_by(of) && !self.planned.contains(slot) && !self.in_flight.has(&bundle.id)
        })
    }

    /// The bundle of a broker, between two loads, that moves the most load for each client that has to connect again. Where
    /// policies bind bundles to some brokers (isolation, failure domains, anti-affinity), the broker that is to take it has
    /// to be asked about here, and in `choose`.
    fn pick(&self, from: usize, least: f64, most: f64) -> Result<Pick, Obstacle> {
        let (now_ms, limits) = (self.now_ms, &self.config.moves);
        let mut best: Option<(f64, Pick)> = None;
        let (mut resting, mut rested_ms) = (0, u64::MAX);
        for slot in self.fleet.brokers[&self.standings.all[from].broker].claims.iter().copied() {
            let bundle = &self.fleet.bundles[slot];
            let load = bundle.work.value() * self.standings.cores_per_work;
            if load < least || load > most || !bundle.is_owned_by(&self.standings.all[from].broker) {
                continue;
            }
            let settled_ms = bundle.since_ms + self.config.hearing.settle_ms;
            let free_ms = bundle.moved_ms.map_or(0, |moved| moved + limits.rest_ms).max(settled_ms);
            let free_ms = free_ms.max(bundle.retry_after_ms);
            if free_ms > now_ms {
                resting += 1;
                rested_ms = rested_ms.min(free_ms);
                continue;
            }
            let worth = load / (MOVE_IN_SESSIONS + f64::from(bundle.sessions));
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
}
