//! Whether a topic may leave memory until somebody asks for it.

use std::sync::atomic::Ordering;

use super::inactive::is_used;
use super::{Life, Topic, TopicState};
use crate::resting::Wake;
use crate::shared::now_ms;

impl Topic {
    /// Stops serving if nobody has used the topic for so long and no policy has something to do in it soon.
    pub(crate) fn close_if_idle(&self, after_ms: u64) -> Option<Wake> {
        // Whoever changes the topic's records uses it.
        let _turn = self.record_turn.try_lock().ok()?;
        let mut state = self.state.lock();
        let now = now_ms();
        if state.has_clients() {
            state.clients_seen_at = now;
            return None;
        }
        let used_at = state.clients_seen_at.max(self.asked_at.load(Ordering::Relaxed));
        if now.saturating_sub(used_at) < after_ms || !self.may_rest(&state) {
            return None;
        }
        let wake = self.wake(&state);
        if matches!(wake, Wake::At(at) if at < now + after_ms) {
            return None;
        }
        state.life = Life::Closing;
        Some(wake)
    }

    /// Nothing but trimming would happen in it.
    fn may_rest(&self, state: &TopicState) -> bool {
        let list = state.ledger.list();
        let behind = || state.subscriptions.values().any(|sub| sub.core.cursor().unacked_entries(list) > 0);
        state.life == Life::Serving
            && self.name.is_persistent()
            && state.policies.inactivity(&self.shared.config).is_none_or(|policy| is_used(state, policy))
            && state.policies.subscription_expiration_ms().is_none()
            && !(state.policies.has_upkeep() && behind())
    }

    /// What no subscription needs is trimmed when its ledger is old enough to be closed, and its retention is over.
    fn wake(&self, state: &TopicState) -> Wake {
        let retention = state.policies.retention();
        if retention.time_ms < 0 {
            return Wake::LimitedRetention;
        }
        let list = state.ledger.list();
        let Some(oldest) = list.spans().next() else { return Wake::Asked };
        if self.slowest_durable(state).is_some_and(|mark_delete| mark_delete < oldest.last_position()) {
            return Wake::Asked;
        }
        let is_newest = list.len() == 1;
        let closes_after = if is_newest { self.shared.config.max_ledger_age.as_millis() as u64 } else { 0 };
        Wake::At(oldest.timestamp_ms + closes_after + retention.time_ms as u64)
    }
}

impl TopicState {
    fn has_clients(&self) -> bool {
        !self.producer_handles.is_empty()
            || !self.joining.is_empty()
            || !self.consumers.is_empty()
            || self.subscriptions.values().any(|sub| sub.ephemeral)
    }
}
