//! The leader's view and decisions.

use crate::{
    BalanceConfig, BrokerExplanation, BrokerId, BrokerReport, BrokerSummary, BundleId, Decision, Explanation, Pause,
    ReportRefused, Verdict, choose,
    fleet::{Fleet, OwnerChange, SplitCheck},
    in_flight::{Budget, Change, InFlight, Pending},
    round::Round,
    standings::Standings,
};

/// Time is whatever milliseconds the leader counts, and must not go back.
#[derive(Debug)]
pub struct Balancer {
    config: BalanceConfig,
    fleet: Fleet,
    in_flight: InFlight,
    budget: Budget,
    first_report_ms: Option<u64>,
    tidied_ms: u64,
    /// Of the last round.
    standings: Standings,
    verdicts: Vec<Verdict>,
    round_ms: u64,
    pause: Option<Pause>,
}

const TIDY_EVERY_MS: u64 = 60_000;
/// How long it mostly takes at the most to carry a decision out.
const CARRIED_OUT_MS: u64 = 10_000;
const LONGEST_RETRY_DOUBLING: u32 = 6;

impl Balancer {
    pub fn new(config: BalanceConfig) -> Self {
        Self {
            config,
            fleet: Fleet::default(),
            in_flight: InFlight::default(),
            budget: Budget::default(),
            first_report_ms: None,
            tidied_ms: 0,
            standings: Standings { cores_per_work: 1.0, ..Standings::default() },
            verdicts: Vec::new(),
            round_ms: 0,
            pause: Some(Pause::NoReports),
        }
    }

    /// Takes a broker's report in. It names all bundles that the broker owns; what it does not name, the broker does not own.
    pub fn report(&mut self, now_ms: u64, report: &BrokerReport) -> Result<(), ReportRefused> {
        let check = SplitCheck { limits: &self.config.split, share_work: self.share_work() };
        let changes = self.fleet.take_in(now_ms, report, self.standings.cores_per_work, &check, &self.config)?;
        self.first_report_ms.get_or_insert(now_ms);
        self.settle(now_ms, changes);
        Ok(())
    }

    /// The broker is gone for sure: its lease has ended, and others may own its bundles. A broker that merely is not heard is
    /// left alone without being told here.
    pub fn forget(&mut self, now_ms: u64, broker: &BrokerId) {
        let changes = self.fleet.forget(now_ms, broker);
        self.settle(now_ms, changes);
        let placed = |pending: &Pending| matches!(&pending.change, Change::Place { to } if to == broker);
        let lost: Vec<BundleId> =
            self.in_flight.iter().filter(|(_, it)| placed(it)).map(|(id, _)| id.clone()).collect();
        for bundle in lost {
            self.in_flight.end(&bundle);
        }
    }

    /// A decision could not be carried out. Without this, that is found out when its time is over.
    pub fn failed(&mut self, now_ms: u64, bundle: &BundleId) {
        if let Some(pending) = self.in_flight.end(bundle) {
            self.note_failure(now_ms, bundle, &pending);
        }
    }

    /// A move was carried out, and the bundle belongs to whom it was decided for, with this epoch. Without this, that is found out
    /// when reports show it, until when fewer other moves are begun.
    pub fn moved(&mut self, now_ms: u64, bundle: &BundleId, epoch: u64) {
        let Some(Change::Move { to, .. }) = self.in_flight.change_of(bundle).cloned() else { return };
        let change = self.fleet.hand_over(now_ms, bundle, &to, epoch);
        self.settle(now_ms, change.into_iter().collect());
    }

    /// What is to be done now. To be called every few seconds. Each decision is for whoever owns the bundle, and is remembered
    /// until [`moved`](Self::moved) is called or reports show it done, [`failed`](Self::failed) is called or its time is over.
    pub fn decide(&mut self, now_ms: u64) -> Vec<Decision> {
        let late = self.in_flight.take_late(|it| is_late(now_ms, it, &self.fleet, &self.config));
        for (bundle, pending) in late {
            self.note_failure(now_ms, &bundle, &pending);
        }
        if now_ms.saturating_sub(self.tidied_ms) >= TIDY_EVERY_MS {
            self.fleet.tidy(now_ms, &self.config);
            self.tidied_ms = now_ms;
        }
        self.pause = self.find_pause(now_ms);
        let (fleet, in_flight, budget) = (&mut self.fleet, &mut self.in_flight, &mut self.budget);
        let mut round = Round::new(now_ms, &self.config, fleet, in_flight, budget);
        if self.pause.is_none() {
            let serving = round.standings.all.iter().filter(|it| it.serves()).count();
            round.budget.refill(now_ms, serving, &self.config.moves);
            round.run();
        }
        let Round { standings, verdicts, decisions, .. } = round;
        (self.standings, self.verdicts, self.round_ms) = (standings, verdicts, now_ms);
        decisions
    }

    /// Where a bundle that nobody owns goes. Unlike [`choose`] with [`summaries`](Self::summaries), this remembers what it has
    /// answered until the broker reports the bundle.
    pub fn choose(&mut self, now_ms: u64, bundle: &BundleId) -> Option<BrokerId> {
        let to = choose(bundle, &self.summaries(now_ms))?.clone();
        let work = self.fleet.bundles.find(bundle).map_or(0.0, |it| it.work.value());
        if !self.in_flight.has(bundle) {
            self.in_flight.start(now_ms, bundle.clone(), Change::Place { to: to.clone() }, work);
        }
        Some(to)
    }

    /// What other brokers need in order to choose by themselves.
    pub fn summaries(&self, now_ms: u64) -> Vec<BrokerSummary> {
        let standings = Standings::of(now_ms, &self.fleet, &self.in_flight, &self.config);
        let each = standings.all.into_iter().map(|it| BrokerSummary {
            cores: it.cores,
            utilization: it.utilization().max(0.0),
            accepts: it.serves() && !it.is_avoided,
            broker: it.broker,
        });
        each.collect()
    }

    pub fn explain(&self) -> Explanation {
        let each = self.standings.all.iter().zip(&self.verdicts).map(|(it, verdict)| BrokerExplanation {
            broker: it.broker.clone(),
            load: it.load_now,
            load_to_be: it.load,
            cores: it.cores,
            bundles: it.bundles,
            verdict: verdict.clone(),
        });
        Explanation {
            at_ms: self.round_ms,
            pause: self.pause,
            mean: self.standings.mean,
            brokers: each.collect(),
            moves_under_way: self.in_flight.moves(),
            splits_under_way: self.in_flight.splits(),
            moves_left: self.budget.left(),
        }
    }

    /// "I have not heard it" is not "it is gone": with too few reports nothing is decided.
    fn find_pause(&self, now_ms: u64) -> Option<Pause> {
        let hearing = &self.config.hearing;
        let Some(first_ms) = self.first_report_ms else { return Some(Pause::NoReports) };
        let until_ms = first_ms + hearing.warm_up_ms;
        if now_ms < until_ms {
            return Some(Pause::WarmsUp { until_ms });
        }
        let known = self.fleet.brokers.len();
        let is_heard = |heard_ms| now_ms.saturating_sub(heard_ms) < hearing.silent_after_ms;
        let heard = self.fleet.brokers.values().filter(|it| is_heard(it.heard_ms)).count();
        let is_enough = heard > 0 && heard as f64 >= hearing.least_heard * known as f64;
        (!is_enough).then_some(Pause::FewHeard { heard, known })
    }

    /// From how much work on a bundle is too great a part of a broker's share, if there is more than one broker.
    fn share_work(&self) -> f64 {
        let serving = self.standings.all.iter().filter(|it| it.serves());
        let (count, cores) = serving.fold((0, 0.0), |(count, cores), it| (count + 1, cores + it.cores));
        if count < 2 {
            return f64::INFINITY;
        }
        let share = self.standings.mean * cores / f64::from(count);
        let split = &self.config.split;
        (split.share * share).max(split.share_least) / self.standings.cores_per_work
    }

    /// Ends what the changes of owners show to be done.
    fn settle(&mut self, now_ms: u64, changes: Vec<OwnerChange>) {
        for OwnerChange { slot, owner } in changes {
            let bundle = &mut self.fleet.bundles[slot];
            let pending = self.in_flight.end(&bundle.id);
            let Some(owner) = owner else {
                // It has left, but has not come yet: its load is not the old broker's any more.
                if let Some(Pending { change: Change::Move { to, .. } | Change::Place { to }, work, since_ms }) =
                    pending
                {
                    self.in_flight.start(since_ms, bundle.id.clone(), Change::Place { to }, work);
                }
                continue;
            };
            let Some(asked) = bundle.asked.take().filter(|asked| asked.to == owner) else { continue };
            bundle.failures = 0;
            bundle.moved.note(asked.reason, now_ms);
            if let Some(broker) = self.fleet.brokers.get_mut(&owner) {
                (broker.refusals, broker.took_ms) = (0, now_ms);
            }
        }
    }

    /// The bundle is left alone for a while, and after some such failures the broker that was to take it too.
    fn note_failure(&mut self, now_ms: u64, id: &BundleId, pending: &Pending) {
        let Some(bundle) = self.fleet.bundles.find_mut(id) else { return };
        // Somebody may have asked without the bundle being wanted.
        if matches!(pending.change, Change::Place { .. }) && bundle.asked.is_none() {
            return;
        }
        let doublings = bundle.failures.min(LONGEST_RETRY_DOUBLING);
        bundle.retry_after_ms = now_ms + (self.config.moves.retry_ms << doublings);
        bundle.failures = bundle.failures.saturating_add(1);
        // Who has taken something meanwhile refuses nothing.
        let taker = pending.taker().and_then(|to| self.fleet.brokers.get_mut(to));
        if let Some(broker) = taker.filter(|it| it.took_ms < pending.since_ms) {
            broker.refusals = broker.refusals.saturating_add(1);
            broker.refused_ms = now_ms;
        }
    }
}

/// Whether what was decided should have been seen done by now. A broker that was not heard since may have done it all the same.
fn is_late(now_ms: u64, pending: &Pending, fleet: &Fleet, config: &BalanceConfig) -> bool {
    let age_ms = now_ms.saturating_sub(pending.since_ms);
    let taker = pending.taker().and_then(|to| fleet.brokers.get(to));
    let has_told = taker.is_none_or(|it| it.heard_ms >= pending.since_ms + CARRIED_OUT_MS);
    age_ms >= config.moves.timeout_ms && (has_told || age_ms >= config.hearing.silent_after_ms)
}
