//! What the balancer was told, kept in the simplest way, and what no decision may do given that.

use std::collections::{BTreeMap, BTreeSet};

use geminga_balance::{BalanceConfig, BrokerId, BrokerReport, BundleId, Decision, Reason};

struct Broker {
    heard_ms: u64,
    accepts: bool,
    incarnation: u64,
    bundles: BTreeMap<BundleId, Claim>,
}

/// That a broker has a bundle. The greatest is right: of equal epochs the one that was heard of last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claim {
    epoch: u64,
    number: u64,
    can_split: bool,
    /// When it was known to have come, if no report has named it yet.
    handed_over_ms: Option<u64>,
}

struct Asked {
    at_ms: u64,
    /// The claim of whom was asked.
    claim: Claim,
    from: BrokerId,
    to: Option<BrokerId>,
}

#[derive(Default)]
pub struct Oracle {
    brokers: BTreeMap<BrokerId, Broker>,
    asked: BTreeMap<BundleId, Asked>,
    claims: u64,
    first_ms: Option<u64>,
    levelled: usize,
    most_brokers: usize,
    pub checked: usize,
}

impl Oracle {
    pub fn report(&mut self, now_ms: u64, report: &BrokerReport, config: &BalanceConfig) {
        self.first_ms.get_or_insert(now_ms);
        let known = self.brokers.remove(&report.broker);
        let is_same = known.as_ref().is_some_and(|it| it.incarnation == report.incarnation);
        let before = known.map(|it| it.bundles).unwrap_or_default();
        // What has come while the report was on its way.
        let has_come =
            |it: &Claim| is_same && it.handed_over_ms.is_some_and(|ms| now_ms - ms < config.hearing.silent_after_ms);
        let mut bundles: BTreeMap<BundleId, Claim> =
            before.iter().filter(|(_, it)| has_come(it)).map(|(id, it)| (id.clone(), *it)).collect();
        for news in &report.bundles {
            let can_split = news.can_split && news.topics > 1;
            let known = before.get(&news.bundle).filter(|it| it.epoch >= news.epoch);
            let number = known.map_or_else(|| self.next_number(), |it| it.number);
            bundles.insert(news.bundle.clone(), Claim { epoch: news.epoch, number, can_split, handed_over_ms: None });
        }
        // What a report shows to have left, or somebody else to have by now, is not under way any more.
        self.asked.retain(|bundle, it| match bundles.get(bundle) {
            _ if it.from != report.broker => bundles.get(bundle).is_none_or(|claim| *claim < it.claim),
            None => !before.contains_key(bundle),
            Some(claim) => {
                it.claim = it.claim.max(*claim);
                true
            }
        });
        let (accepts, incarnation) = (report.accepts, report.incarnation);
        self.brokers.insert(report.broker.clone(), Broker { heard_ms: now_ms, accepts, incarnation, bundles });
        self.most_brokers = self.most_brokers.max(self.brokers.len());
    }

    fn next_number(&mut self) -> u64 {
        self.claims += 1;
        self.claims
    }

    pub fn forget(&mut self, broker: &BrokerId) {
        self.brokers.remove(broker);
        self.asked.retain(|_, it| it.from != *broker);
    }

    pub fn failed(&mut self, bundle: &BundleId) {
        self.asked.remove(bundle);
    }

    pub fn moved(&mut self, now_ms: u64, bundle: &BundleId, epoch: u64) {
        let Some(Asked { at_ms, from, to: Some(to), .. }) = self.asked.remove(bundle) else { return };
        assert!(now_ms >= at_ms);
        let number = self.next_number();
        let known = self.brokers.get_mut(&from).and_then(|it| it.bundles.remove(bundle));
        if let (Some(known), Some(to)) = (known, self.brokers.get_mut(&to)) {
            to.bundles.insert(bundle.clone(), Claim { epoch, number, handed_over_ms: Some(now_ms), ..known });
        }
    }

    pub fn check(&mut self, now_ms: u64, decision: &Decision, config: &BalanceConfig) {
        self.checked += 1;
        let timeout_ms = config.moves.timeout_ms;
        self.asked.retain(|_, it| now_ms - it.at_ms < timeout_ms);
        let bundle = decision.bundle();
        assert!(!self.asked.contains_key(bundle), "{decision:?} while something is under way with it");
        let first_ms = self.first_ms.expect("decisions come after reports");
        assert!(now_ms >= first_ms + config.hearing.warm_up_ms, "{decision:?} while warming up");
        let (owner, epoch, to) = match decision {
            Decision::Move { from, epoch, to, .. } => (from, *epoch, Some(to)),
            Decision::Split { owner, epoch, .. } => (owner, *epoch, None),
        };
        let claims = self.brokers.iter().filter_map(|(id, it)| Some((*it.bundles.get(bundle)?, id)));
        let claim = claims.max().filter(|(claim, id)| claim.epoch == epoch && *id == owner).map(|(claim, _)| claim);
        let claim = claim.unwrap_or_else(|| panic!("{decision:?} is not for whom reports say to own it"));
        assert!(self.is_heard(now_ms, owner, config), "{decision:?} asks a silent broker");
        match decision {
            Decision::Move { from, to, reason, .. } => self.check_move(now_ms, decision, from, to, *reason, config),
            Decision::Split { .. } => {
                assert!(claim.can_split, "{decision:?} splits what cannot be split");
                assert!(self.brokers[owner].accepts, "{decision:?} splits on a broker that leaves");
            }
        }
        self.asked.insert(bundle.clone(), Asked { at_ms: now_ms, claim, from: owner.clone(), to: to.cloned() });
        self.check_under_way(config);
    }

    fn is_heard(&self, now_ms: u64, broker: &BrokerId, config: &BalanceConfig) -> bool {
        now_ms - self.brokers[broker].heard_ms < config.hearing.silent_after_ms
    }

    fn check_move(
        &mut self,
        now_ms: u64,
        decision: &Decision,
        from: &BrokerId,
        to: &BrokerId,
        reason: Reason,
        config: &BalanceConfig,
    ) {
        assert_ne!(from, to);
        assert!(
            self.brokers[to].accepts && self.is_heard(now_ms, to, config),
            "{decision:?} goes to who does not take it"
        );
        assert_eq!(reason.is_forced(), !self.brokers[from].accepts, "{decision:?}");
        self.levelled += usize::from(reason == Reason::Level);
        let hours = 3.0 + (now_ms - self.first_ms.unwrap_or(now_ms)) as f64 / 3_600_000.0;
        let budget = config.moves.per_broker_hour * self.most_brokers as f64 * hours;
        assert!(self.levelled as f64 <= budget, "{} moves for levelling, {budget} allowed", self.levelled);
    }

    fn check_under_way(&self, config: &BalanceConfig) {
        let moves: Vec<(&BrokerId, &BrokerId)> =
            self.asked.values().filter_map(|it| Some((&it.from, it.to.as_ref()?))).collect();
        assert!(moves.len() <= config.moves.in_flight);
        assert!(self.asked.len() - moves.len() <= config.split.in_flight);
        let involved: BTreeSet<&BrokerId> = moves.iter().flat_map(|(from, to)| [*from, *to]).collect();
        for broker in involved {
            let count = moves.iter().filter(|(from, to)| *from == broker || *to == broker).count();
            assert!(count <= config.moves.in_flight_per_broker, "{count} moves at {broker}");
        }
    }
}
