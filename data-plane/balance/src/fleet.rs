//! Brokers and who owns what, as reports say.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    BrokerId, BrokerReport, BundleId, BundleReport, ReportRefused, SplitLimits, SplitReason, Verdict,
    bundles::{Bundles, Slot},
    config::BalanceConfig,
    estimate::{Estimate, Gains},
};

#[derive(Debug)]
pub(crate) struct Broker {
    pub incarnation: u64,
    sequence: u64,
    pub cores: f64,
    pub accepts: bool,
    pub heard_ms: u64,
    /// When it was first heard since its start.
    pub known_since_ms: u64,
    /// What its last report names, in that order. Some of it may belong to others by now.
    pub claims: Vec<Slot>,
    /// Estimated work of what it owns, in the weights' cores.
    pub work: f64,
    pub bundles: usize,
    /// Busy cores.
    cpu: Estimate,
    /// Busy cores that its bundles do not explain.
    foreign: Estimate,
    pub over_since_ms: Option<u64>,
    /// Nothing helped at the last try, which is not repeated before then.
    pub stuck: Option<(u64, Verdict)>,
    pub under_since_ms: Option<u64>,
    /// Moves to it that have failed since the last that did not.
    pub refusals: u32,
    pub refused_ms: u64,
    /// When it last got what was moved to it.
    pub took_ms: u64,
}

impl Broker {
    fn new(now_ms: u64, report: &BrokerReport, claims: Vec<Slot>) -> Self {
        Self {
            incarnation: report.incarnation,
            sequence: report.sequence,
            cores: report.cores,
            accepts: report.accepts,
            heard_ms: now_ms,
            known_since_ms: now_ms,
            claims,
            work: 0.0,
            bundles: 0,
            cpu: Estimate::default(),
            foreign: Estimate::default(),
            over_since_ms: None,
            stuck: None,
            under_since_ms: None,
            refusals: 0,
            refused_ms: 0,
            took_ms: 0,
        }
    }

    /// What it is estimated to have to do, in busy cores. What its bundles do not explain weighs on it all the same.
    pub fn load(&self, cores_per_work: f64) -> f64 {
        self.work * cores_per_work + self.foreign.value()
    }

    /// How many busy cores one estimated core turns out to be, where there is enough of both to tell.
    pub fn cores_per_work(&self) -> Option<f64> {
        let tells = self.work > 0.02 * self.cores && self.cpu.value() > 0.05 * self.cores;
        tells.then(|| self.cpu.value() / self.work)
    }
}

/// When a bundle is too hot to be one.
pub(crate) struct SplitCheck<'a> {
    pub limits: &'a SplitLimits,
    /// From so much work on it can hardly be placed.
    pub share_work: f64,
}

impl SplitCheck<'_> {
    fn reason(&self, bundle: &BundleReport, work: f64) -> Option<SplitReason> {
        let limits = self.limits;
        let reasons = [
            (bundle.topics > limits.topics, SplitReason::Topics),
            (bundle.sessions() > limits.sessions, SplitReason::Sessions),
            (bundle.messages() > limits.messages, SplitReason::Messages),
            (bundle.bytes() > limits.bytes, SplitReason::Bytes),
            (work > self.share_work, SplitReason::Share),
        ];
        let may = bundle.can_split && bundle.topics > 1;
        reasons.into_iter().find(|(is_so, _)| may && *is_so).map(|(_, reason)| reason)
    }
}

/// A bundle that has another owner than before.
pub(crate) struct OwnerChange {
    pub slot: Slot,
    pub owner: Option<BrokerId>,
}

/// How often a broker has started of late.
#[derive(Debug)]
struct Starts {
    last_ms: u64,
    in_a_row: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub brokers: BTreeMap<BrokerId, Broker>,
    pub bundles: Bundles,
    /// Those that exceed a limit for splitting.
    pub hot: BTreeSet<Slot>,
    starts: BTreeMap<BrokerId, Starts>,
    reports: u64,
}

/// CPU up to so many times what the work explains is not foreign, nor is that of a machine that idles.
const EXPLAINED: f64 = 1.15;
const IDLE_CPU: f64 = 0.05;

impl Fleet {
    /// Takes a report in, and says which bundles have changed hands.
    pub fn take_in(
        &mut self,
        now_ms: u64,
        report: &BrokerReport,
        cores_per_work: f64,
        check: &SplitCheck,
        config: &BalanceConfig,
    ) -> Result<Vec<OwnerChange>, ReportRefused> {
        report.check()?;
        // What a broker has when it is first heard, it has had for a while, unless it has just started: then it has nothing.
        let had_ms = match self.brokers.contains_key(&report.broker) {
            true => now_ms,
            false => now_ms.saturating_sub(config.hearing.settle_ms),
        };
        let mut slots = self.slots_of(now_ms, report)?;
        let has_started = self.brokers.get(&report.broker).is_none_or(|known| known.incarnation < report.incarnation);
        let (id, elapsed_ms) = self.greet(now_ms, report, config)?;
        // One value after a silence is not worth more than others.
        let gains = Gains::after(elapsed_ms.min(config.smoothing.fast_ms), &config.smoothing);
        let mut changes = Vec::new();
        let (mut work, mut bundles) = (0.0, 0);
        for (slot, news) in slots.iter().zip(&report.bundles) {
            if !self.claim(had_ms, *slot, &id, news, &mut changes) {
                continue;
            }
            let [levelled_ms, filled_ms] =
                [news.since_move_ms, news.since_fill_ms].map(|it| it.map(|since_ms| now_ms.saturating_sub(since_ms)));
            self.bundles[*slot].moved.learn(levelled_ms, filled_ms);
            self.observe(now_ms, *slot, news, gains, config);
            self.note_heat(now_ms, *slot, check.reason(news, self.bundles[*slot].work.value()));
            work += self.bundles[*slot].work.value();
            bundles += 1;
        }
        let before = std::mem::take(&mut self.brokers.get_mut(&id).expect("greeted").claims);
        // Mostly it names the same as the last time.
        let to_look_at = if before == slots { Vec::new() } else { before };
        for slot in to_look_at {
            let bundle = &self.bundles[slot];
            if !bundle.is_owned_by(&id) || bundle.seen_in == self.reports {
                continue;
            }
            // A report may have been on its way when the bundle came.
            let is_news = |ms: u64| now_ms.saturating_sub(ms) < config.hearing.silent_after_ms;
            if !has_started && bundle.handed_over_ms.is_some_and(is_news) {
                work += bundle.work.value();
                bundles += 1;
                slots.push(slot);
            } else {
                self.release(now_ms, slot, &mut changes);
            }
        }
        let broker = self.brokers.get_mut(&id).expect("greeted");
        (broker.claims, broker.work, broker.bundles) = (slots, work, bundles);
        let busy = report.cpu.min(1.0) * report.cores;
        broker.cpu.observe(now_ms, busy, gains, &config.smoothing);
        let foreign = (busy - EXPLAINED * cores_per_work * work - IDLE_CPU * report.cores).max(0.0);
        broker.foreign.observe(now_ms, foreign, gains, &config.smoothing);
        Ok(changes)
    }

    /// A bundle is known to have gone to a broker before that reports it.
    pub fn hand_over(&mut self, now_ms: u64, bundle: &BundleId, to: &BrokerId, epoch: u64) -> Option<OwnerChange> {
        let slot = self.bundles.slot_if_known(bundle)?;
        if epoch <= self.bundles[slot].epoch || !self.brokers.contains_key(to) {
            return None;
        }
        let mut changes = Vec::new();
        self.assign(now_ms, slot, to, epoch, &mut changes);
        self.bundles[slot].handed_over_ms = Some(now_ms);
        let broker = self.brokers.get_mut(to)?;
        broker.work += self.bundles[slot].work.value();
        broker.bundles += 1;
        // So that its reports have to go on naming it.
        broker.claims.push(slot);
        changes.pop()
    }

    /// The broker is gone, and owns nothing any more.
    pub fn forget(&mut self, now_ms: u64, id: &BrokerId) -> Vec<OwnerChange> {
        let mut changes = Vec::new();
        for slot in self.brokers.remove(id).map(|broker| broker.claims).unwrap_or_default() {
            if self.bundles[slot].is_owned_by(id) {
                self.release(now_ms, slot, &mut changes);
            }
        }
        changes
    }

    /// Forgets what is too old to matter.
    pub fn tidy(&mut self, now_ms: u64, config: &BalanceConfig) {
        let kept_ms = config.hearing.forget_bundle_after_ms.max(config.moves.rest_ms);
        if let Some(before) = now_ms.checked_sub(kept_ms) {
            // Who still claims one of them, though in vain, holds its slot.
            for broker in self.brokers.values_mut() {
                let bundles = &self.bundles;
                broker.claims.retain(|slot| bundles[*slot].owner.is_some() || bundles[*slot].since_ms >= before);
            }
            self.bundles.forget_ownerless_since(before);
        }
        let window_ms = config.fill.restart_window_ms;
        self.starts.retain(|_, starts| now_ms.saturating_sub(starts.last_ms) <= window_ms);
    }

    /// Until when a broker that keeps starting has to wait to be filled.
    pub fn filled_from_ms(&self, id: &BrokerId, config: &BalanceConfig) -> u64 {
        let fill = &config.fill;
        match self.starts.get(id) {
            Some(starts) if starts.in_a_row > 2 => {
                let doublings = (starts.in_a_row - 3).min(16);
                starts.last_ms + (fill.restart_wait_ms << doublings).min(fill.restart_window_ms)
            }
            _ => 0,
        }
    }

    /// The slots of the bundles that a report names, each of which it may name once.
    fn slots_of(&mut self, now_ms: u64, report: &BrokerReport) -> Result<Vec<Slot>, ReportRefused> {
        let known = self.brokers.get(&report.broker);
        if known.is_some_and(|it| (report.incarnation, report.sequence) <= (it.incarnation, it.sequence)) {
            return Err(ReportRefused::Stale { broker: report.broker.clone() });
        }
        self.reports += 1;
        let mut slots = Vec::with_capacity(report.bundles.len());
        for (place, news) in report.bundles.iter().enumerate() {
            let guess = known.and_then(|it| it.claims.get(place)).copied();
            let slot = self.bundles.slot_of(&news.bundle, guess, now_ms);
            let seen_in = std::mem::replace(&mut self.bundles[slot].seen_in, self.reports);
            if seen_in == self.reports {
                return Err(ReportRefused::Twice { broker: report.broker.clone(), bundle: news.bundle.clone() });
            }
            slots.push(slot);
        }
        Ok(slots)
    }

    /// Notes what a report says about the broker itself. Returns the name under which it is kept, and the time since it was
    /// last heard.
    fn greet(
        &mut self,
        now_ms: u64,
        report: &BrokerReport,
        config: &BalanceConfig,
    ) -> Result<(BrokerId, u64), ReportRefused> {
        let is_new = self.brokers.get(&report.broker).is_none_or(|known| known.incarnation < report.incarnation);
        if is_new {
            self.note_start(now_ms, &report.broker, config.fill.restart_window_ms);
            let claims = self.brokers.remove(&report.broker).map(|before| before.claims).unwrap_or_default();
            self.brokers.insert(report.broker.clone(), Broker::new(now_ms, report, claims));
        }
        let entry = self.brokers.range_mut(&report.broker..).next();
        let (id, broker) = entry.expect("known or just inserted");
        let elapsed_ms = now_ms.saturating_sub(broker.heard_ms);
        broker.sequence = report.sequence;
        broker.cores = report.cores;
        broker.accepts = report.accepts;
        broker.heard_ms = now_ms;
        Ok((id.clone(), elapsed_ms))
    }

    fn note_start(&mut self, now_ms: u64, id: &BrokerId, window_ms: u64) {
        let starts = self.starts.entry(id.clone()).or_insert(Starts { last_ms: now_ms, in_a_row: 0 });
        let is_again = now_ms.saturating_sub(starts.last_ms) <= window_ms;
        starts.in_a_row = if is_again { starts.in_a_row.saturating_add(1) } else { 1 };
        starts.last_ms = now_ms;
    }

    /// Whether the bundle is this broker's. With equal epochs, who claims it anew has it from who has claimed it for longer.
    fn claim(
        &mut self,
        had_ms: u64,
        slot: Slot,
        id: &BrokerId,
        news: &BundleReport,
        changes: &mut Vec<OwnerChange>,
    ) -> bool {
        let bundle = &self.bundles[slot];
        if bundle.is_owned_by(id) {
            let bundle = &mut self.bundles[slot];
            bundle.epoch = bundle.epoch.max(news.epoch);
            bundle.handed_over_ms = None;
            return true;
        }
        let claimed_before = self.brokers[id].claims.contains(&slot);
        let is_newer = news.epoch > bundle.epoch || (news.epoch == bundle.epoch && !claimed_before);
        let is_free = bundle.owner.is_none() && news.epoch >= bundle.epoch;
        if !is_newer && !is_free {
            return false;
        }
        self.assign(had_ms, slot, id, news.epoch, changes);
        true
    }

    fn assign(&mut self, since_ms: u64, slot: Slot, id: &BrokerId, epoch: u64, changes: &mut Vec<OwnerChange>) {
        let bundle = &mut self.bundles[slot];
        if let Some(before) = bundle.owner.as_ref().and_then(|owner| self.brokers.get_mut(owner)) {
            before.work -= bundle.work.value();
            before.bundles = before.bundles.saturating_sub(1);
        }
        bundle.owner = Some(id.clone());
        bundle.epoch = epoch;
        bundle.since_ms = since_ms;
        bundle.handed_over_ms = None;
        bundle.came_known = bundle.work.is_known();
        bundle.hot = None;
        self.hot.remove(&slot);
        changes.push(OwnerChange { slot, owner: Some(id.clone()) });
    }

    fn release(&mut self, now_ms: u64, slot: Slot, changes: &mut Vec<OwnerChange>) {
        let bundle = &mut self.bundles[slot];
        bundle.owner = None;
        bundle.since_ms = now_ms;
        bundle.hot = None;
        self.hot.remove(&slot);
        changes.push(OwnerChange { slot, owner: None });
    }

    /// A bundle is hot for as long as there is any reason.
    fn note_heat(&mut self, now_ms: u64, slot: Slot, reason: Option<SplitReason>) {
        let bundle = &mut self.bundles[slot];
        match (reason, bundle.hot) {
            (None, None) => {}
            (None, Some(_)) => {
                bundle.hot = None;
                self.hot.remove(&slot);
            }
            (Some(reason), before) => {
                bundle.hot = Some((reason, before.map_or(now_ms, |(_, since_ms)| since_ms)));
                self.hot.insert(slot);
            }
        }
    }

    fn observe(&mut self, now_ms: u64, slot: Slot, news: &BundleReport, gains: Gains, config: &BalanceConfig) {
        let bundle = &mut self.bundles[slot];
        bundle.topics = news.topics;
        bundle.sessions = news.sessions();
        let is_settled = now_ms.saturating_sub(bundle.since_ms) >= config.hearing.settle_ms;
        if is_settled || !bundle.came_known {
            bundle.work.observe(now_ms, config.weights.cores(news), gains, &config.smoothing);
        }
    }
}
