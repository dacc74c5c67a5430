//! Which brokers are alive, as one of them sees it: a pure state machine that is told what metadata say and when.

use geminga_metadata::{BrokerSession, OverSession};
use rustc_hash::FxHashMap;

/// What is known of a broker's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    Alive,
    /// It has missed a renewal: in a moment it will be alive or over.
    Suspect,
    Over,
}

/// The sessions of all brokers.
///
/// A session is over when its lease has not changed for its whole length *while it was watched*: time in which metadata
/// could not be read does not count, as then the lease could not be renewed either; nor does time in which they can be read and not
/// written, which the watcher sees by its own session. So metadata that are away for a minute make no broker lose its bundles, and
/// no clock is compared with another one.
#[derive(Debug)]
pub struct Sessions {
    /// How long a session lasts without a renewal, in milliseconds.
    ttl_ms: u64,
    known: FxHashMap<String, Seen>,
    looked_at: Option<u64>,
}

#[derive(Debug)]
struct Seen {
    incarnation: u64,
    expires_at_ms: Option<u64>,
    /// Of its record in metadata.
    version: u64,
    /// By the watcher's clock.
    unchanged_since: u64,
}

impl Sessions {
    pub fn new(ttl_ms: u64) -> Self {
        Self { ttl_ms, known: FxHashMap::default(), looked_at: None }
    }

    /// What metadata say now, at `now_ms` of a clock that only goes forward. `renewed_ms`: when the watcher has last begun to renew
    /// its own session with success; `None` if it has none.
    pub fn look(&mut self, now_ms: u64, sessions: Vec<BrokerSession>, renewed_ms: Option<u64>) {
        let is_long_ago = |at_ms: u64| now_ms.saturating_sub(at_ms) > self.ttl_ms / 2;
        // Twice as long as a renewal is awaited: what happened in between is not known, or nobody could renew.
        let was_blind = self.looked_at.is_none_or(is_long_ago) || renewed_ms.is_some_and(is_long_ago);
        self.looked_at = Some(now_ms);
        let mut before = std::mem::take(&mut self.known);
        for BrokerSession { broker, incarnation, expires_at_ms, version } in sessions {
            let unchanged_since = match before.remove(&broker) {
                Some(seen) if !was_blind && seen.incarnation == incarnation && seen.expires_at_ms == expires_at_ms => {
                    seen.unchanged_since
                }
                _ => now_ms,
            };
            self.known.insert(broker, Seen { incarnation, expires_at_ms, version, unchanged_since });
        }
    }

    /// Whether this incarnation of a broker is alive.
    pub fn state(&self, now_ms: u64, broker: &str, incarnation: u64) -> SessionState {
        match self.known.get(broker) {
            Some(seen) if seen.incarnation == incarnation => seen.state(now_ms, self.ttl_ms),
            // A session that is newer than what was looked at last.
            Some(seen) if seen.incarnation < incarnation => SessionState::Suspect,
            _ => SessionState::Over,
        }
    }

    /// The session of this incarnation as it was last seen, for a commit that depends on its not being renewed. None: it cannot be.
    pub fn over(&self, broker: &str, incarnation: u64) -> Option<OverSession> {
        let seen = self.known.get(broker).filter(|seen| seen.incarnation == incarnation)?;
        Some(OverSession { broker: broker.to_owned(), version: seen.version })
    }

    /// The brokers that are alive, with their incarnations.
    pub fn alive(&self, now_ms: u64) -> impl Iterator<Item = (&str, u64)> {
        self.known
            .iter()
            .filter(move |(_, seen)| seen.state(now_ms, self.ttl_ms) == SessionState::Alive)
            .map(|(broker, seen)| (broker.as_str(), seen.incarnation))
    }
}

impl Seen {
    fn state(&self, now_ms: u64, ttl_ms: u64) -> SessionState {
        let silent = now_ms.saturating_sub(self.unchanged_since);
        match self.expires_at_ms {
            None => SessionState::Over,
            Some(_) if silent >= ttl_ms => SessionState::Over,
            Some(_) if silent >= ttl_ms / 2 => SessionState::Suspect,
            Some(_) => SessionState::Alive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(broker: &str, incarnation: u64, expires_at_ms: u64) -> BrokerSession {
        BrokerSession { broker: broker.into(), incarnation, expires_at_ms: Some(expires_at_ms), version: expires_at_ms }
    }

    #[test]
    fn a_lease_that_is_renewed_is_alive_whatever_its_clock_says() {
        let mut sessions = Sessions::new(1000);
        for step in 0..50 {
            sessions.look(step * 100, vec![session("a", 1, step)], None);
            assert_eq!(sessions.state(step * 100, "a", 1), SessionState::Alive);
        }
    }

    #[test]
    fn a_lease_that_is_not_renewed_is_suspect_and_then_over() {
        let mut sessions = Sessions::new(1000);
        for now in (0..=1000).step_by(250) {
            sessions.look(now, vec![session("a", 1, 77), session("b", 1, now)], None);
        }
        assert_eq!(sessions.state(499, "a", 1), SessionState::Alive);
        assert_eq!(sessions.state(999, "a", 1), SessionState::Suspect);
        assert_eq!(sessions.state(1000, "a", 1), SessionState::Over);
        assert_eq!(sessions.alive(1000).collect::<Vec<_>>(), [("b", 1)]);
    }

    #[test]
    fn time_without_metadata_does_not_count() {
        let mut sessions = Sessions::new(1000);
        sessions.look(0, vec![session("a", 1, 77)], None);
        sessions.look(60_000, vec![session("a", 1, 77)], None);
        assert_eq!(sessions.state(60_000, "a", 1), SessionState::Alive);
        sessions.look(60_400, vec![session("a", 1, 77)], None);
        sessions.look(60_800, vec![session("a", 1, 77)], None);
        assert_eq!(sessions.state(60_999, "a", 1), SessionState::Suspect);
        assert_eq!(sessions.state(61_000, "a", 1), SessionState::Over);
    }

    #[test]
    fn released_restarted_and_unknown_sessions_are_over() {
        let mut sessions = Sessions::new(1000);
        let released = BrokerSession { broker: "a".into(), incarnation: 1, expires_at_ms: None, version: 7 };
        sessions.look(0, vec![released, session("b", 2, 9)], None);
        for (broker, incarnation) in [("a", 1), ("b", 1), ("c", 1)] {
            assert_eq!(sessions.state(0, broker, incarnation), SessionState::Over, "{broker}");
        }
        assert_eq!(sessions.state(0, "b", 2), SessionState::Alive);
        assert_eq!(sessions.state(0, "b", 3), SessionState::Suspect, "newer than what was looked at");
    }
    /// Commits hang or fail, as when the disk is full, and reads do not.
    #[test]
    fn time_in_which_metadata_cannot_be_written_does_not_count() {
        let mut sessions = Sessions::new(1000);
        let of = |expiry| vec![session("me", 1, expiry), session("a", 1, expiry), session("dead", 1, 7)];
        for now in (0..=2000).step_by(125) {
            sessions.look(now, of(now), Some(now));
        }
        assert_eq!(sessions.state(2000, "dead", 1), SessionState::Over);
        for now in (2125..60_000).step_by(125) {
            sessions.look(now, of(2000), Some(2000));
            assert_ne!(sessions.state(now + 124, "a", 1), SessionState::Over, "at {now}");
        }
        // They are written again. Who does not renew now has its whole time for it.
        for now in (60_000..60_800).step_by(125) {
            sessions.look(now, of(2000), Some(now));
            assert_ne!(sessions.state(now, "a", 1), SessionState::Over, "at {now}");
        }
        sessions.look(61_000, of(2000), Some(61_000));
        assert_eq!(sessions.state(61_000, "a", 1), SessionState::Over);
        // Who has no session, and only tells clients where to go, sees what the others see.
        for now in (62_000..63_500).step_by(125) {
            sessions.look(now, of(2000), None);
        }
        assert_eq!(sessions.state(63_500, "a", 1), SessionState::Over);
    }
}
