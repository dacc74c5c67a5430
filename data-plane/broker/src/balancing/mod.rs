//! Spreading bundles by load: every broker reports, one of them (by lease) decides, owners carry it out.
//!
//! What is decided, and why, is `geminga-balance`'s affair. A leader that is deposed costs a move that was not needed at most.

mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_balance::{BalanceConfig, Balancer, BrokerId, BrokerReport, Decision, Reason};
use geminga_metadata::{Lease, LeaseOutcome, MovedFor, Wanted};
use geminga_model::BundleName;
use parking_lot::Mutex;

use crate::broker::Broker;
use crate::error::Result;
use report::Reporter;

const LEADER: &str = "leader";

/// How load is spread.
#[derive(Debug, Clone)]
pub struct BalanceSettings {
    /// Between two reports of a broker, and between two rounds of decisions.
    pub interval: Duration,
    pub config: BalanceConfig,
}

impl BalanceSettings {
    pub fn with_interval(interval: Duration) -> Self {
        Self { interval, config: BalanceConfig::with_interval(interval.as_millis() as u64) }
    }
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self::with_interval(Duration::from_millis(BalanceConfig::INTERVAL_MS))
    }
}

/// This broker as the leader, while it is.
struct Leader {
    lease: Lease,
    balancer: Arc<Mutex<Balancer>>,
    started: Instant,
    heard: Vec<BrokerId>,
}

impl Broker {
    /// Reports, and leads if nobody else does, for as long as the broker lives.
    pub(crate) fn balance_load(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        let interval = self.shared.config.balance.interval;
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let (mut reporter, mut leader) = (Reporter::default(), None);
            loop {
                ticks.tick().await;
                let Some(broker) = weak.upgrade() else { return };
                if let Err(error) = broker.balancing_round(&mut reporter, &mut leader).await {
                    tracing::warn!(%error, "could not take part in spreading load");
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }

    async fn balancing_round(self: &Arc<Self>, reporter: &mut Reporter, leader: &mut Option<Leader>) -> Result<()> {
        if let Some(report) = reporter.report(self) {
            self.shared.metadata.put_load_report(report.broker.as_str(), &report).await?;
        }
        self.keep_lead(leader).await?;
        match leader {
            Some(leader) => self.lead(leader).await,
            None => Ok(()),
        }
    }

    /// Renews the lease of the leader, or takes it when it is free.
    async fn keep_lead(&self, leader: &mut Option<Leader>) -> Result<()> {
        let Some((me, incarnation, _)) = self.ownership.standing() else { return Ok(()) };
        let settings = &self.shared.config.balance;
        let store = self.shared.metadata.store();
        let time = 3 * settings.interval;
        if let Some(current) = leader {
            match store.renew_lease(&current.lease, time).await {
                Ok(lease) => {
                    current.lease = lease;
                    return Ok(());
                }
                Err(error) => {
                    tracing::info!(%error, "this broker does not lead any more");
                    *leader = None;
                }
            }
        }
        // With the session in its name, so that a broker that starts again does not lead with a memory that is gone.
        let name = format!("{me}#{incarnation}");
        if let LeaseOutcome::Acquired(lease) = store.acquire_lease(LEADER, &name, time).await? {
            tracing::info!("this broker leads");
            let balancer = Arc::new(Mutex::new(Balancer::new(settings.config.clone())));
            *self.balancer.lock() = Some(balancer.clone());
            *leader = Some(Leader { lease, balancer, started: Instant::now(), heard: Vec::new() });
        }
        Ok(())
    }

    async fn lead(self: &Arc<Self>, leader: &mut Leader) -> Result<()> {
        let reports: Vec<BrokerReport> = self.shared.metadata.list_load_reports().await?;
        let now_ms = leader.started.elapsed().as_millis() as u64;
        let alive = self.ownership.brokers();
        let is_alive = |report: &&BrokerReport| {
            alive.iter().any(|broker| broker.id == report.broker.as_str() && broker.incarnation == report.incarnation)
        };
        let decisions = {
            let mut balancer = leader.balancer.lock();
            for gone in leader.heard.extract_if(.., |known| !alive.iter().any(|broker| broker.id == known.as_str())) {
                balancer.forget(now_ms, &gone);
            }
            for report in reports.iter().filter(is_alive) {
                // What was heard before is refused, and changes nothing.
                if balancer.report(now_ms, report).is_ok() && !leader.heard.contains(&report.broker) {
                    leader.heard.push(report.broker.clone());
                }
            }
            balancer.decide(now_ms)
        };
        for decision in decisions {
            let (broker, balancer, started) = (self.clone(), leader.balancer.clone(), leader.started);
            tokio::spawn(async move { broker.carry_out_decision(decision, &balancer, started).await });
        }
        Ok(())
    }

    async fn carry_out_decision(&self, decision: Decision, balancer: &Mutex<Balancer>, started: Instant) {
        tracing::info!(?decision, "spreading load");
        let (bundle, wanted) = match &decision {
            Decision::Move { bundle, to, reason, .. } => {
                let reason = match reason {
                    Reason::Drain => MovedFor::default(),
                    Reason::Level => MovedFor::LEVELLING,
                    Reason::Fill => MovedFor::FILLING,
                };
                (bundle, Wanted::Handover { to: Some(to.to_string()), reason })
            }
            Decision::Split { bundle, .. } => (bundle, Wanted::Split),
        };
        let Ok(name) = bundle.as_str().parse::<BundleName>() else { return };
        let result = self.ownership.ask(&name, wanted).await;
        let now_ms = started.elapsed().as_millis() as u64;
        match (result, &decision) {
            (Ok(()), Decision::Move { epoch, .. }) => balancer.lock().moved(now_ms, bundle, epoch + 1),
            // Reports will show it.
            (Ok(()), Decision::Split { .. }) => {}
            (Err(error), _) => {
                tracing::warn!(%bundle, %error, "a decision could not be carried out");
                balancer.lock().failed(now_ms, bundle);
            }
        }
    }

    /// The id of the broker that spreads load now.
    pub async fn leader(&self) -> Result<Option<String>> {
        let lease = self.shared.metadata.store().lease(LEADER).await?;
        Ok(lease.map(|lease| lease.owner.split('#').next().unwrap_or_default().to_owned()))
    }

    /// What moves and why, as the leader sees it; none where this broker has not led.
    pub fn explain_balance(&self) -> Option<String> {
        let balancer = self.balancer.lock().clone()?;
        let explanation = balancer.lock().explain();
        Some(explanation.to_string())
    }
}
