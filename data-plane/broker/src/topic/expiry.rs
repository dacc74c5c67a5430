//! What messages outlive and what they do not: their time to live, quotas of backlogs.

use std::sync::Arc;

use geminga_ledger::cursor::{AckKind, Cursor};
use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;

use super::admin::{backlog_size, entry_time};
use super::{Flushes, Sub, Topic, TopicState};
use crate::error::{BrokerError, Result};
use crate::policies::{EffectivePolicies, QuotaAction};
use crate::shared::now_ms;

/// Entries of a backlog that expires although consumers are connected.
const BEHIND_DESPITE_CONSUMERS: u64 = 1000;

impl Topic {
    /// Acknowledges what is older than so many seconds; answers how many entries that were.
    pub async fn expire(&self, subscription: &str, seconds: u64) -> Result<u64> {
        self.needs_storage("Expire messages")?;
        let oldest = {
            let state = self.state.lock();
            let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
            sub.core.cursor().next_unacked(state.ledger.list(), sub.core.cursor().mark_delete())
        };
        let Some(oldest) = oldest else { return Ok(0) };
        let cut = now_ms().saturating_sub(seconds.saturating_mul(1000));
        if entry_time(&self.read_one(oldest).await?.meta) >= cut {
            return Ok(0);
        }
        let first_kept = self.position_at_time(cut).await?;
        let expired = self.advance(subscription, |cursor, list| match list.previous(first_kept) {
            Some(last) => unacked_through(cursor, list, last),
            None => 0,
        });
        Ok(self.count_expired(subscription, expired.await?))
    }

    /// The same when an operator asks. False: Pulsar refuses it, as nothing waits, or so little that connected consumers are about
    /// to take it.
    pub async fn expire_if_behind(&self, subscription: &str, seconds: u64) -> Result<bool> {
        let (behind, connected) = {
            let state = self.state.lock();
            let sub = state.subscriptions.get(subscription).ok_or_else(|| self.not_found(subscription))?;
            (sub.core.cursor().unacked_entries(state.ledger.list()), sub.core.has_consumers())
        };
        let expired = self.expire(subscription, seconds).await?;
        Ok(expired > 0 || (behind > 0 && (!connected || behind >= BEHIND_DESPITE_CONSUMERS)))
    }

    fn count_expired(&self, subscription: &str, entries: u64) -> u64 {
        if let Some(sub) = self.state.lock().subscriptions.get_mut(subscription) {
            sub.expired += entries;
            sub.expired_at = now_ms();
        }
        entries
    }

    /// Acknowledges everything up to and including a position; answers how many entries that were. None: there is no such
    /// position yet.
    pub async fn expire_through(&self, subscription: &str, position: Position) -> Result<Option<u64>> {
        if position > self.state.lock().ledger.list().last_position() {
            return Ok(None);
        }
        let expired = self.advance(subscription, |cursor, list| unacked_through(cursor, list, position)).await?;
        Ok(Some(self.count_expired(subscription, expired)))
    }

    /// Why producers are refused: the backlog is over its quota. As in Pulsar that is looked at when one joins and from time
    /// to time, not with each message. Costs two lookups where there is no quota.
    pub(super) fn backlog_refusal(&self, state: &TopicState) -> Option<BrokerError> {
        if state.backlog_too_old {
            let hold =
                state.policies.backlog_age_quota().is_none_or(|(_, action)| action == QuotaAction::HoldProducers);
            let message = format!(
                "Cannot create producer on topic with backlog quota exceeded: a message of {} is older than the quota allows",
                self.name
            );
            return Some(BrokerError::QuotaExceeded { message, hold });
        }
        let (limit, action) = state.policies.backlog_quota()?;
        let size = backlog_size(state);
        if action == QuotaAction::EvictBacklog || size <= limit {
            return None;
        }
        let message = format!(
            "Cannot create producer on topic with backlog quota exceeded: {} holds {size} bytes, the quota is {limit}",
            self.name
        );
        Some(BrokerError::QuotaExceeded { message, hold: action == QuotaAction::HoldProducers })
    }

    /// Sends producers away that would not be let in now.
    fn close_refused_producers(&self) {
        let mut flushes = Flushes::default();
        let mut state = self.state.lock();
        if !state.producer_handles.is_empty() && self.backlog_refusal(&state).is_some() {
            self.close_producers(&mut state, &mut flushes);
        }
        drop(state);
        flushes.run();
    }

    /// What policies expire: messages beyond their time to live, backlogs over a quota that evicts.
    pub(super) fn expire_by_policy(&self) {
        self.close_refused_producers();
        let (expiry, subscriptions) = {
            let mut state = self.state.lock();
            let expiry = Expiry::of(&state.policies);
            if expiry == Expiry::default() {
                return;
            }
            let list = state.ledger.list();
            let behind = |sub: &Sub| sub.core.cursor().unacked_entries(list) > 0;
            let names = state.subscriptions.iter().filter(|(_, sub)| behind(sub)).map(|(name, _)| name.clone());
            let names: Vec<Arc<str>> = names.collect();
            if names.is_empty() {
                state.backlog_too_old = false;
                return;
            }
            (expiry, names)
        };
        let topic = self.arc();
        tokio::spawn(async move {
            for name in &subscriptions {
                if let Err(error) = topic.expire_one(name, expiry.ttl_ms, expiry.max_bytes).await {
                    tracing::warn!(topic = %topic.name, subscription = %name, %error, "could not expire messages");
                }
            }
            if let Some(seconds) = expiry.refuse_after_s
                && let Err(error) = topic.check_backlog_age(seconds).await
            {
                tracing::warn!(topic = %topic.name, %error, "could not read the oldest message of the backlog");
            }
        });
    }

    /// Producers are refused while a message of a backlog is older than so many seconds.
    async fn check_backlog_age(&self, seconds: u64) -> Result<()> {
        let oldest = {
            let state = self.state.lock();
            let list = state.ledger.list();
            let first = |sub: &Sub| sub.core.cursor().next_unacked(list, sub.core.cursor().mark_delete());
            state.subscriptions.values().filter(|sub| !sub.ephemeral).filter_map(|sub| first(sub)).min()
        };
        let too_old = match oldest {
            Some(position) => {
                let limit = now_ms().saturating_sub(seconds.saturating_mul(1000));
                entry_time(&self.read_one(position).await?.meta) < limit
            }
            None => false,
        };
        self.state.lock().backlog_too_old = too_old;
        Ok(())
    }

    async fn expire_one(&self, name: &str, ttl_ms: Option<u64>, quota: Option<u64>) -> Result<()> {
        if let Some(ttl_ms) = ttl_ms {
            let expired = self.expire(name, ttl_ms / 1000).await?;
            if expired > 0 {
                tracing::debug!(topic = %self.name, subscription = name, expired, "messages outlived their time");
            }
        }
        if let Some(limit) = quota {
            let evicted = self.advance(name, |cursor, list| over_quota(cursor, list, limit)).await?;
            if evicted > 0 {
                tracing::info!(topic = %self.name, subscription = name, evicted, limit, "backlog over its quota was evicted");
            }
        }
        Ok(())
    }
}

/// What policies let messages outlive, or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Expiry {
    ttl_ms: Option<u64>,
    max_bytes: Option<u64>,
    /// Producers are refused while the backlog holds an older message.
    refuse_after_s: Option<u64>,
}

impl EffectivePolicies {
    /// Whether time alone changes what subscriptions have, or which there are.
    pub(crate) fn has_upkeep(&self) -> bool {
        Expiry::of(self) != Expiry::default() || self.subscription_expiration_ms().is_some()
    }
}

impl Expiry {
    fn of(policies: &EffectivePolicies) -> Self {
        let mut expiry = Self { ttl_ms: policies.message_ttl_ms(), ..Self::default() };
        if let Some((limit, QuotaAction::EvictBacklog)) = policies.backlog_quota() {
            expiry.max_bytes = Some(limit);
        }
        match policies.backlog_age_quota() {
            Some((seconds, QuotaAction::EvictBacklog)) => {
                let age_ms = seconds.saturating_mul(1000);
                expiry.ttl_ms = Some(expiry.ttl_ms.map_or(age_ms, |ttl| ttl.min(age_ms)));
            }
            Some((seconds, QuotaAction::HoldProducers | QuotaAction::RefuseProducers)) => {
                expiry.refuse_after_s = Some(seconds)
            }
            None => {}
        }
        expiry
    }
}

/// Unacknowledged entries up to and including `last`.
fn unacked_through(cursor: &Cursor, list: &LedgerList, last: Position) -> u64 {
    if list.entries_between(cursor.mark_delete(), last) == 0 {
        return 0;
    }
    let mut copy = Cursor::from_snapshot(cursor.snapshot());
    copy.ack_cumulative(list, last.min(list.last_position()), AckKind::Entry).entries_acked
}

/// Entries to acknowledge so that what is left takes nine tenths of `limit` bytes, by the average entry.
fn over_quota(cursor: &Cursor, list: &LedgerList, limit: u64) -> u64 {
    let size = list.size_between(cursor.mark_delete(), list.last_position());
    if size <= limit {
        return 0;
    }
    let keep = u128::from(limit) * 9 / 10;
    let entries = u128::from(cursor.unacked_entries(list));
    (entries - entries * keep / u128::from(size)) as u64
}
