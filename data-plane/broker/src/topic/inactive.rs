//! Topics and subscriptions that nobody uses any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Life, Topic, TopicState};
use crate::policies::Inactivity;
use crate::shared::now_ms;

/// A topic that was asked for is left alone for so long: whoever asked may be about to use it.
const GRACE_MS: u64 = 5_000;

impl Topic {
    /// Somebody asked for the topic.
    pub(crate) fn asked_for(&self) {
        self.asked_at.store(now_ms(), Ordering::Relaxed);
    }

    /// Stops serving for a deletion if the topic has been inactive for as long as its policies say.
    pub(crate) fn close_if_inactive(&self) -> bool {
        // Whoever changes the topic's records uses it.
        let Ok(_turn) = self.record_turn.try_lock() else { return false };
        let mut state = self.state.lock();
        let Some(policy) = state.policies.inactivity(&self.shared.config) else { return false };
        if state.life != Life::Serving || self.name.is_system() {
            return false;
        }
        let now = now_ms();
        if is_used(&state, policy) {
            state.last_active_at = now;
            return false;
        }
        let idle_ms = now.saturating_sub(state.last_active_at);
        // Data that is retained by time keeps its topic; a limit by size alone does not, as in Pulsar.
        let retained_ms = u64::try_from(state.policies.retention().time_ms).unwrap_or(u64::MAX);
        let grace_ms = GRACE_MS.min(policy.after_ms);
        if idle_ms < policy.after_ms.max(retained_ms)
            || now.saturating_sub(self.asked_at.load(Ordering::Relaxed)) < grace_ms
        {
            return false;
        }
        state.life = Life::Deleting;
        tracing::info!(topic = %self.name, idle_s = idle_ms / 1000, "inactive topic is deleted");
        true
    }

    /// Deletes subscriptions that have been without a consumer for longer than the namespace allows.
    pub(super) fn expire_subscriptions(&self) {
        let expired: Vec<Arc<str>> = {
            let state = self.state.lock();
            let Some(limit_ms) = state.policies.subscription_expiration_ms() else { return };
            let before = now_ms().saturating_sub(limit_ms);
            let unused =
                state.subscriptions.iter().filter(|(_, sub)| !sub.core.has_consumers() && sub.unused_since < before);
            unused.map(|(name, _)| name.clone()).collect()
        };
        if expired.is_empty() {
            return;
        }
        let topic = self.arc();
        tokio::spawn(async move {
            for name in expired {
                match topic.delete_subscription(&name, None, false).await {
                    Ok(()) => {
                        tracing::info!(topic = %topic.name, subscription = %name, "unused subscription has expired")
                    }
                    Err(error) => {
                        tracing::warn!(topic = %topic.name, subscription = %name, %error, "could not delete an expired subscription");
                    }
                }
            }
        });
    }
}

pub(super) fn is_used(state: &TopicState, policy: Inactivity) -> bool {
    let list = state.ledger.list();
    let keeps = |sub: &super::Sub| !policy.caught_up_suffices || sub.core.cursor().unacked_entries(list) > 0;
    !state.producer_handles.is_empty()
        || !state.joining.is_empty()
        || !state.consumers.is_empty()
        || state.subscriptions.values().any(|sub| keeps(sub))
}
