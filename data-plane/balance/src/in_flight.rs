//! What has been decided and is not seen to be done yet, and what may still be decided.

use std::collections::BTreeMap;

use crate::{BrokerId, BundleId, config::MoveLimits};

/// A change that counts as made when loads are compared.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Change {
    Move {
        from: BrokerId,
        to: BrokerId,
    },
    /// A bundle without an owner was promised to a broker.
    Place {
        to: BrokerId,
    },
    Split,
}

#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub change: Change,
    /// In the weights' cores.
    pub work: f64,
    pub since_ms: u64,
}

impl Pending {
    /// The broker that will have the bundle.
    pub fn taker(&self) -> Option<&BrokerId> {
        match &self.change {
            Change::Move { to, .. } | Change::Place { to } => Some(to),
            Change::Split => None,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct InFlight {
    pending: BTreeMap<BundleId, Pending>,
}

impl InFlight {
    pub fn start(&mut self, now_ms: u64, bundle: BundleId, change: Change, work: f64) {
        self.pending.insert(bundle, Pending { change, work, since_ms: now_ms });
    }

    pub fn end(&mut self, bundle: &BundleId) -> Option<Pending> {
        self.pending.remove(bundle)
    }

    pub fn has(&self, bundle: &BundleId) -> bool {
        self.pending.contains_key(bundle)
    }

    pub fn change_of(&self, bundle: &BundleId) -> Option<&Change> {
        self.pending.get(bundle).map(|it| &it.change)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&BundleId, &Pending)> {
        self.pending.iter()
    }

    pub fn moves(&self) -> usize {
        self.pending.values().filter(|it| matches!(it.change, Change::Move { .. })).count()
    }

    pub fn splits(&self) -> usize {
        self.pending.values().filter(|it| it.change == Change::Split).count()
    }

    /// Takes out what has been under way for too long.
    pub fn take_late(&mut self, is_late: impl Fn(&Pending) -> bool) -> Vec<(BundleId, Pending)> {
        self.pending.extract_if(.., |_, it| is_late(it)).collect()
    }
}

/// The moves that levelling may make: so many an hour, which can be saved up for three hours.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    moves: f64,
    filled_ms: Option<u64>,
}

const SAVED_HOURS: f64 = 3.0;
const HOUR_MS: f64 = 3_600_000.0;

impl Budget {
    pub fn refill(&mut self, now_ms: u64, brokers: usize, limits: &MoveLimits) {
        let per_hour = limits.per_broker_hour * brokers as f64;
        let most = per_hour * SAVED_HOURS;
        self.moves = match self.filled_ms {
            None => most,
            Some(then) => (self.moves + per_hour * now_ms.saturating_sub(then) as f64 / HOUR_MS).min(most),
        };
        self.filled_ms = Some(now_ms);
    }

    pub fn left(&self) -> usize {
        self.moves as usize
    }

    pub fn spend(&mut self, moves: usize) {
        self.moves -= moves as f64;
    }
}
