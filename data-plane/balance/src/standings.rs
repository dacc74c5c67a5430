//! How loaded each broker is, or will be when everything under way is done.

use std::collections::BTreeMap;

use crate::{
    BrokerId,
    config::BalanceConfig,
    fleet::{Broker, Fleet},
    in_flight::{Change, InFlight},
};

#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub broker: BrokerId,
    pub cores: f64,
    /// In busy cores, with what is under way counted as done.
    pub load: f64,
    /// The same by the last reports alone.
    pub load_now: f64,
    pub bundles: usize,
    /// Moves to and from it that are under way.
    pub moving: usize,
    pub is_silent: bool,
    pub accepts: bool,
    /// Whether it has refused too often of late to be given anything.
    pub is_avoided: bool,
    /// Whether it has started so often of late that nothing is moved to it without need.
    pub is_unsteady: bool,
}

impl Standing {
    pub fn utilization(&self) -> f64 {
        self.load / self.cores
    }

    /// Whether it takes part in the balance.
    pub fn serves(&self) -> bool {
        self.accepts && !self.is_silent
    }
}

/// All brokers, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standings {
    pub all: Vec<Standing>,
    /// What each would have if all had the same: the load of those who were heard by the cores of those who serve.
    pub mean: f64,
    pub cores_per_work: f64,
}

impl Standings {
    pub fn of(now_ms: u64, fleet: &Fleet, in_flight: &InFlight, config: &BalanceConfig) -> Self {
        let cores_per_work = cores_per_work(fleet);
        let each = fleet.brokers.iter().map(|(id, broker)| Standing {
            is_unsteady: now_ms < fleet.filled_from_ms(id, config),
            ..standing(now_ms, id, broker, cores_per_work, config)
        });
        let mut all: Vec<Standing> = each.collect();
        let places: BTreeMap<BrokerId, usize> =
            all.iter().enumerate().map(|(place, it)| (it.broker.clone(), place)).collect();
        for (_, pending) in in_flight.iter() {
            let load = pending.work * cores_per_work;
            let (from, to) = match &pending.change {
                Change::Move { from, to } => (Some(from), Some(to)),
                Change::Place { to } => (None, Some(to)),
                Change::Split => (None, None),
            };
            let is_move = from.is_some();
            if let Some(place) = from.and_then(|it| places.get(it)) {
                all[*place].load -= load;
                all[*place].moving += 1;
            }
            if let Some(place) = to.and_then(|it| places.get(it)) {
                all[*place].load += load;
                all[*place].moving += usize::from(is_move);
            }
        }
        let mut standings = Self { all, mean: 0.0, cores_per_work };
        standings.mean = standings.mean_utilization();
        standings
    }

    /// The least loaded of those that can be given something, among equals the first by name.
    pub fn least_loaded(&self, moves_at_once: usize, may: impl Fn(usize, &Standing) -> bool) -> Option<usize> {
        let takers = self
            .all
            .iter()
            .enumerate()
            .filter(|(place, it)| it.serves() && !it.is_avoided && it.moving < moves_at_once && may(*place, it));
        let least = takers.min_by(|(_, one), (_, other)| one.utilization().total_cmp(&other.utilization()));
        least.map(|(place, _)| place)
    }

    pub fn shift(&mut self, load: f64, from: usize, to: usize) {
        self.all[from].load -= load;
        self.all[from].moving += 1;
        self.all[to].load += load;
        self.all[to].moving += 1;
    }

    fn mean_utilization(&self) -> f64 {
        let load: f64 = self.all.iter().filter(|it| !it.is_silent).map(|it| it.load).sum();
        let cores: f64 = self.all.iter().filter(|it| it.serves()).map(|it| it.cores).sum();
        if cores > 0.0 { load.max(0.0) / cores } else { 0.0 }
    }
}

fn standing(now_ms: u64, id: &BrokerId, broker: &Broker, cores_per_work: f64, config: &BalanceConfig) -> Standing {
    let limits = &config.moves;
    let load = broker.load(cores_per_work);
    Standing {
        broker: id.clone(),
        cores: broker.cores,
        load,
        load_now: load,
        bundles: broker.bundles,
        moving: 0,
        is_silent: now_ms.saturating_sub(broker.heard_ms) >= config.hearing.silent_after_ms,
        accepts: broker.accepts,
        is_avoided: broker.refusals >= limits.refusals && now_ms.saturating_sub(broker.refused_ms) < limits.retry_ms,
        is_unsteady: false,
    }
}

/// The median of what brokers' CPUs say about the weights, or 1 if they say nothing.
fn cores_per_work(fleet: &Fleet) -> f64 {
    let mut each: Vec<f64> = fleet.brokers.values().filter_map(Broker::cores_per_work).collect();
    if each.is_empty() {
        return 1.0;
    }
    each.sort_by(f64::total_cmp);
    each[each.len() / 2]
}
