//! Brokers, bundles and a leader with a balancer, on a clock that a test moves.

use std::collections::BTreeMap;

use geminga_balance::{
    BalanceConfig, Balancer, BrokerId, BrokerReport, BrokerSummary, BundleId, BundleReport, Decision, Reason, choose,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    load::{BundleLoad, Span, Waves, noise},
    measures::{History, Measures},
    oracle::Oracle,
};

#[derive(Clone)]
pub struct Bundle {
    pub id: BundleId,
    pub load: BundleLoad,
    pub topics: u32,
    pub owner: Option<usize>,
    pub epoch: u64,
    /// When it was last moved for levelling.
    pub levelled_ms: Option<u64>,
    /// When a broker was last filled with it.
    pub filled_ms: Option<u64>,
    /// Its last moves, with those of what it was split from.
    moves: History,
    pub is_split: bool,
}

pub struct Broker {
    pub id: BrokerId,
    pub cores: f64,
    pub is_up: bool,
    pub accepts: bool,
    pub owned: Vec<usize>,
    /// Cores that something else than bundles keeps busy.
    pub foreign: f64,
    /// Its reports are lost.
    pub is_mute: bool,
    /// The last report, of which the next one is made.
    report: BrokerReport,
    /// Whether it owns others than that says.
    has_changed: bool,
    /// What is measured for each report: places in it, and bundles.
    weighty: Vec<(usize, usize)>,
    /// The load of the others.
    dust: f64,
    /// The load of all at the last report, with what has changed since.
    carried: f64,
}

/// What goes wrong, as probabilities.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub report_lost: f64,
    pub report_late: f64,
    /// Decisions that nobody carries out; of half of them the leader is told.
    pub decision_lost: f64,
    /// Decisions that are carried out without the leader being told.
    pub answer_lost: f64,
    /// Decisions that are carried out when the leader has given them up.
    pub decision_late: f64,
}

enum Event {
    Execute(Decision),
    Report(BrokerReport),
    Forget(usize),
    LookUp(usize),
    Start(usize),
}

pub const TICK_MS: u64 = 5_000;
/// Between two rounds of decisions.
const ROUND_MS: u64 = 2 * TICK_MS;
/// Bundles with less load, of which most are and which have a third of all load together, are measured only for each so-many-th report,
/// over a minute. Nothing depends on one of them.
const DUST: f64 = 0.002;
const DUST_EVERY: u64 = 6;
const LEASE_MS: u64 = 15_000;
/// Real cores per core that the weights make of a bundle's rates.
const REAL_CORES: f64 = 1.4;

pub struct Cluster {
    pub now_ms: u64,
    pub rng: SmallRng,
    pub bundles: Vec<Bundle>,
    pub brokers: Vec<Broker>,
    pub balancer: Balancer,
    pub measures: Measures,
    /// Checks each decision, where a test wants it.
    pub oracle: Option<Oracle>,
    pub faults: Faults,
    pub is_noisy: bool,
    /// What rates are averages over, as far as their noise goes. A few large bundles, as in small clusters, have little of it.
    pub measured_over: Span,
    config: BalanceConfig,
    report_every_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    event_number: u64,
    /// What brokers know of each other.
    summaries: Vec<BrokerSummary>,
    leaderless_until_ms: u64,
    by_id: BTreeMap<BundleId, usize>,
}

impl Cluster {
    pub fn new(seed: u64, brokers: usize, config: BalanceConfig, report_every_ms: u64) -> Self {
        let mut cluster = Self {
            now_ms: 1_000_000,
            rng: SmallRng::seed_from_u64(seed),
            bundles: Vec::new(),
            brokers: Vec::new(),
            balancer: Balancer::new(config.clone()),
            measures: Measures::default(),
            oracle: None,
            faults: Faults::default(),
            is_noisy: true,
            measured_over: Span::Minute,
            config,
            report_every_ms,
            events: BTreeMap::new(),
            event_number: 0,
            summaries: Vec::new(),
            leaderless_until_ms: 0,
            by_id: BTreeMap::new(),
        };
        for _ in 0..brokers {
            cluster.add_broker(4.0);
        }
        cluster
    }

    pub fn add_broker(&mut self, cores: f64) -> usize {
        let number = self.brokers.len();
        let id = BrokerId::from(format!("broker-{number:03}"));
        let report = BrokerReport {
            broker: id.clone(),
            incarnation: 1,
            sequence: 0,
            cores,
            cpu: 0.0,
            accepts: true,
            bundles: Vec::new(),
        };
        self.brokers.push(Broker {
            id,
            cores,
            is_up: true,
            accepts: true,
            owned: Vec::new(),
            foreign: 0.0,
            is_mute: false,
            report,
            has_changed: false,
            weighty: Vec::new(),
            dust: 0.0,
            carried: 0.0,
        });
        number
    }

    pub fn add_bundle(&mut self, load: BundleLoad, topics: u32, owner: Option<usize>) -> usize {
        let number = self.bundles.len();
        let id = BundleId::from(format!("public/default/{number:08x}"));
        self.by_id.insert(id.clone(), number);
        self.bundles.push(Bundle {
            id,
            load,
            topics,
            owner: None,
            epoch: 0,
            levelled_ms: None,
            filled_ms: None,
            moves: History::new(),
            is_split: false,
        });
        match owner {
            Some(owner) => self.give(number, owner),
            None => self.after(0, Event::LookUp(number)),
        }
        number
    }

    pub fn run_for(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.tick();
        }
    }

    pub fn tick(&mut self) {
        self.now_ms += TICK_MS;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= self.now_ms) {
            let event = entry.remove();
            self.handle(event);
        }
        for broker in 0..self.brokers.len() {
            let offset_ms = broker as u64 * TICK_MS % self.report_every_ms;
            if (self.now_ms + offset_ms).is_multiple_of(self.report_every_ms) && self.brokers[broker].is_up {
                self.report(broker);
            }
        }
        if self.now_ms < self.leaderless_until_ms || !self.now_ms.is_multiple_of(ROUND_MS) {
            return;
        }
        for decision in self.balancer.decide(self.now_ms) {
            self.send(decision);
        }
        self.summaries = self.balancer.summaries(self.now_ms);
    }

    pub fn kill(&mut self, broker: usize) {
        self.brokers[broker].is_up = false;
        self.brokers[broker].has_changed = true;
        self.brokers[broker].carried = 0.0;
        for bundle in std::mem::take(&mut self.brokers[broker].owned) {
            self.bundles[bundle].owner = None;
            let looked_up_ms = LEASE_MS + self.rng.random_range(0..10_000);
            self.after(looked_up_ms, Event::LookUp(bundle));
        }
        self.after(LEASE_MS, Event::Forget(broker));
    }

    pub fn start_after(&mut self, broker: usize, ms: u64) {
        self.after(ms, Event::Start(broker));
    }

    /// What it has now is heard some time later.
    pub fn report_after(&mut self, broker: usize, ms: u64) {
        self.brokers[broker].report.sequence += 1;
        let report = self.brokers[broker].report.clone();
        self.after(ms, Event::Report(report));
    }

    /// The leader is lost, and its successor knows nothing.
    pub fn lose_leader(&mut self) {
        self.balancer = Balancer::new(self.config.clone());
        self.oracle = self.oracle.as_ref().map(|_| Oracle::default());
        self.leaderless_until_ms = self.now_ms + LEASE_MS;
    }

    /// The real load of each broker by its cores, and what each would have if all that serve had the same.
    pub fn utilizations(&self) -> (Vec<f64>, f64) {
        let waves = Waves::at(self.now_ms);
        let mut loads: Vec<f64> = self.brokers.iter().map(|it| it.foreign).collect();
        for bundle in &self.bundles {
            if let Some(owner) = bundle.owner {
                loads[owner] += bundle.load.at(self.now_ms, &waves);
            }
        }
        let serving: f64 = self.brokers.iter().filter(|it| it.is_up && it.accepts).map(|it| it.cores).sum();
        let mean = loads.iter().sum::<f64>() / serving;
        (loads.iter().zip(&self.brokers).map(|(load, broker)| load / broker.cores).collect(), mean)
    }

    /// How far the most loaded broker that serves is above the mean, as a part of the mean.
    pub fn imbalance(&self) -> f64 {
        self.imbalance_of(self.utilizations())
    }

    pub fn imbalance_of(&self, (utilizations, mean): (Vec<f64>, f64)) -> f64 {
        let serving = utilizations.iter().zip(&self.brokers).filter(|(_, it)| it.is_up && it.accepts);
        serving.map(|(utilization, _)| utilization / mean - 1.0).fold(0.0, f64::max)
    }

    /// From now on the bundle has another load.
    pub fn change_load(&mut self, bundle: usize, change: impl FnOnce(&mut BundleLoad)) {
        let waves = Waves::at(self.now_ms);
        let it = &mut self.bundles[bundle];
        let before = it.load.at(self.now_ms, &waves);
        change(&mut it.load);
        if let Some(owner) = it.owner {
            self.brokers[owner].carried += it.load.at(self.now_ms, &waves) - before;
        }
    }

    /// What `utilizations` says, but for what waves have changed since each broker's last report. This takes no walk over all bundles.
    pub fn carried(&self) -> (Vec<f64>, f64) {
        let serving: f64 = self.brokers.iter().filter(|it| it.is_up && it.accepts).map(|it| it.cores).sum();
        let mean = self.brokers.iter().map(|it| it.carried).sum::<f64>() / serving;
        (self.brokers.iter().map(|it| it.carried / it.cores).collect(), mean)
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.event_number += 1;
        self.events.insert((self.now_ms + ms, self.event_number), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Execute(decision) => self.execute(decision),
            Event::Report(report) => self.deliver(&report),
            Event::Forget(broker) => {
                if !self.brokers[broker].is_up && self.now_ms >= self.leaderless_until_ms {
                    self.balancer.forget(self.now_ms, &self.brokers[broker].id);
                    if let Some(oracle) = &mut self.oracle {
                        oracle.forget(&self.brokers[broker].id);
                    }
                }
            }
            Event::LookUp(bundle) => self.look_up(bundle),
            Event::Start(broker) => {
                let it = &mut self.brokers[broker];
                (it.is_up, it.accepts, it.report.sequence) = (true, true, 0);
                it.report.incarnation += 1;
                self.report(broker);
            }
        }
    }

    /// Somebody wants the bundle, and whichever broker he asks chooses with what it knows.
    fn look_up(&mut self, bundle: usize) {
        let it = &self.bundles[bundle];
        if it.owner.is_some() || it.is_split {
            return;
        }
        let chosen = if self.summaries.is_empty() {
            Some(self.rng.random_range(0..self.brokers.len()))
        } else {
            choose(&it.id, &self.summaries).map(|chosen| self.number_of(chosen))
        };
        match chosen.filter(|broker| self.brokers[*broker].is_up && self.brokers[*broker].accepts) {
            Some(broker) => {
                let it = &mut self.bundles[bundle];
                if it.epoch > 0 {
                    self.measures.note_history(self.now_ms, None, &mut it.moves);
                }
                self.give(bundle, broker);
            }
            None => self.after(2_000, Event::LookUp(bundle)),
        }
    }

    fn give(&mut self, bundle: usize, broker: usize) {
        let it = &mut self.bundles[bundle];
        it.owner = Some(broker);
        it.epoch += 1;
        let load = it.load.at(self.now_ms, &Waves::at(self.now_ms));
        let broker = &mut self.brokers[broker];
        broker.owned.push(bundle);
        broker.carried += load;
        broker.has_changed = true;
    }

    fn take(&mut self, bundle: usize) {
        if let Some(owner) = self.bundles[bundle].owner.take() {
            let load = self.bundles[bundle].load.at(self.now_ms, &Waves::at(self.now_ms));
            let owner = &mut self.brokers[owner];
            owner.owned.retain(|it| *it != bundle);
            owner.carried -= load;
            owner.has_changed = true;
        }
    }

    fn report(&mut self, broker: usize) {
        let it = &mut self.brokers[broker];
        let has_changed = std::mem::take(&mut it.has_changed);
        if has_changed {
            it.report.bundles = it.owned.iter().map(|number| described(&self.bundles[*number])).collect();
        }
        if has_changed || (it.report.sequence + broker as u64).is_multiple_of(DUST_EVERY) {
            self.measure_all(broker);
        } else {
            self.measure_weighty(broker);
        }
        let it = &mut self.brokers[broker];
        let busy = it.carried;
        let noise = if self.is_noisy { self.rng.random_range(0.9..1.1) } else { 1.0 };
        it.report.sequence += 1;
        it.report.cpu = (0.02 + (busy + it.foreign) / it.cores * noise).min(1.0);
        it.report.accepts = it.accepts;
        if it.is_mute || self.rng.random_bool(self.faults.report_lost) {
            return;
        }
        if self.rng.random_bool(self.faults.report_late) {
            let late_ms = self.rng.random_range(10_000..90_000);
            let report = it.report.clone();
            self.after(late_ms, Event::Report(report));
        } else if self.now_ms >= self.leaderless_until_ms {
            let bundles = std::mem::take(&mut self.brokers[broker].report.bundles);
            let report = BrokerReport { bundles, ..self.brokers[broker].report.clone() };
            self.deliver(&report);
            self.brokers[broker].report.bundles = report.bundles;
        }
    }

    fn measure_weighty(&mut self, broker: usize) {
        let waves = Waves::at(self.now_ms);
        let it = &mut self.brokers[broker];
        it.carried = it.dust;
        for (place, number) in &it.weighty {
            let bundle = &self.bundles[*number];
            let load = bundle.load.at(self.now_ms, &waves);
            it.carried += load;
            let noise = if self.is_noisy { noise(&mut self.rng, self.measured_over) } else { 1.0 };
            measure(load * noise / REAL_CORES, &mut it.report.bundles[*place]);
        }
    }

    fn measure_all(&mut self, broker: usize) {
        let waves = Waves::at(self.now_ms);
        let it = &mut self.brokers[broker];
        it.weighty.clear();
        it.dust = 0.0;
        for (place, number) in it.owned.iter().enumerate() {
            let bundle = &self.bundles[*number];
            let news = &mut it.report.bundles[place];
            news.since_move_ms = bundle.levelled_ms.map(|moved_ms| self.now_ms - moved_ms);
            news.since_fill_ms = bundle.filled_ms.map(|moved_ms| self.now_ms - moved_ms);
            let load = bundle.load.at(self.now_ms, &waves);
            if load >= DUST {
                it.weighty.push((place, *number));
                continue;
            }
            it.dust += load;
            let noise = if self.is_noisy { noise(&mut self.rng, Span::Minute) } else { 1.0 };
            measure(load * noise / REAL_CORES, news);
        }
        self.measure_weighty(broker);
    }

    fn deliver(&mut self, report: &BrokerReport) {
        let broker = self.number_of(&report.broker);
        let is_over = !self.brokers[broker].is_up || report.incarnation < self.brokers[broker].report.incarnation;
        if self.now_ms < self.leaderless_until_ms || is_over {
            return;
        }
        let is_taken = self.balancer.report(self.now_ms, report).is_ok();
        self.measures.stale_reports += u64::from(!is_taken);
        if let Some(oracle) = self.oracle.as_mut().filter(|_| is_taken) {
            oracle.report(self.now_ms, report, &self.config);
        }
    }

    fn send(&mut self, decision: Decision) {
        if let Some(oracle) = &mut self.oracle {
            oracle.check(self.now_ms, &decision, &self.config);
        }
        self.measures.decisions += 1;
        if self.rng.random_bool(self.faults.decision_lost) {
            if self.rng.random_bool(0.5) {
                self.tell_failed(decision.bundle());
            }
            return;
        }
        let late = self.rng.random_bool(self.faults.decision_late);
        let after_ms = if late { 90_000 } else { self.rng.random_range(200..4_000) };
        self.after(after_ms, Event::Execute(decision));
    }

    fn execute(&mut self, decision: Decision) {
        let bundle = self.by_id[decision.bundle()];
        let is_done = match decision {
            Decision::Move { epoch, from, to, reason, .. } => self.hand_over(bundle, epoch, &from, &to, reason),
            Decision::Split { epoch, owner, .. } => self.split(bundle, epoch, &owner),
        };
        if !is_done {
            self.measures.refused += 1;
            let id = self.bundles[bundle].id.clone();
            self.tell_failed(&id);
        } else if !self.rng.random_bool(self.faults.answer_lost) {
            let (id, epoch) = (self.bundles[bundle].id.clone(), self.bundles[bundle].epoch);
            self.balancer.moved(self.now_ms, &id, epoch);
            if let Some(oracle) = &mut self.oracle {
                oracle.moved(self.now_ms, &id, epoch);
            }
        }
    }

    fn tell_failed(&mut self, bundle: &BundleId) {
        self.balancer.failed(self.now_ms, bundle);
        if let Some(oracle) = &mut self.oracle {
            oracle.failed(bundle);
        }
    }

    fn owns(&self, bundle: usize, epoch: u64, owner: &BrokerId) -> bool {
        let it = &self.bundles[bundle];
        it.epoch == epoch && it.owner.is_some_and(|number| self.brokers[number].id == *owner)
    }

    fn hand_over(&mut self, bundle: usize, epoch: u64, from: &BrokerId, to: &BrokerId, reason: Reason) -> bool {
        let to = self.number_of(to);
        if !self.owns(bundle, epoch, from) || !self.brokers[to].is_up || !self.brokers[to].accepts {
            return false;
        }
        self.take(bundle);
        self.give(bundle, to);
        let now_ms = self.now_ms;
        let it = &mut self.bundles[bundle];
        let since = [it.levelled_ms, it.filled_ms].map(|moved| moved.map(|moved_ms| now_ms - moved_ms));
        match reason {
            Reason::Level => it.levelled_ms = Some(now_ms),
            Reason::Fill => it.filled_ms = Some(now_ms),
            Reason::Drain => {}
        }
        self.measures.note_move(reason, since);
        self.measures.note_history(now_ms, Some(reason), &mut it.moves);
        true
    }

    fn split(&mut self, bundle: usize, epoch: u64, owner: &BrokerId) -> bool {
        let it = self.bundles[bundle].clone();
        if !self.owns(bundle, epoch, owner) || it.topics < 2 {
            return false;
        }
        self.take(bundle);
        self.bundles[bundle].is_split = true;
        let part = self.rng.random_range(0.35..0.65);
        let topics = ((f64::from(it.topics) * part) as u32).clamp(1, it.topics - 1);
        let owner = self.number_of(owner);
        for (part, topics) in [(part, topics), (1.0 - part, it.topics - topics)] {
            let child = self.add_bundle(it.load.piece(part), topics, Some(owner));
            self.bundles[child].levelled_ms = it.levelled_ms;
            self.bundles[child].filled_ms = it.filled_ms;
            self.bundles[child].moves.clone_from(&it.moves);
        }
        self.measures.splits += 1;
        true
    }

    fn number_of(&self, broker: &BrokerId) -> usize {
        self.brokers.iter().position(|it| it.id == *broker).expect("a broker of the cluster")
    }
}

fn described(bundle: &Bundle) -> BundleReport {
    BundleReport {
        bundle: bundle.id.clone(),
        epoch: bundle.epoch,
        messages_in: 0.0,
        messages_out: 0.0,
        bytes_in: 0.0,
        bytes_out: 0.0,
        topics: bundle.topics,
        producers: bundle.topics.min(200),
        consumers: bundle.topics.min(200),
        can_split: bundle.topics > 1,
        since_move_ms: None,
        since_fill_ms: None,
    }
}

/// Messages of 500 bytes, in and out alike, that the default weights make `cores` of.
fn measure(cores: f64, news: &mut BundleReport) {
    let messages = cores / (0.5e-6 + 500.0 * 0.3e-9) / 2.0;
    (news.messages_in, news.messages_out) = (messages, messages);
    (news.bytes_in, news.bytes_out) = (messages * 500.0, messages * 500.0);
}
