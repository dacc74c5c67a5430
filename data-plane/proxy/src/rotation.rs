//! Which of the configured brokers is asked next.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::dial::DialError;
use crate::endpoint::Endpoint;

/// A broker that could not be reached is asked only after the others for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(5);

/// Takes turns among brokers, those last that were not reachable a moment ago.
pub struct Rotation {
    brokers: Vec<Endpoint>,
    state: Mutex<State>,
}

struct State {
    next: usize,
    avoided_until: Vec<Option<Instant>>,
}

impl Rotation {
    pub fn new(brokers: Vec<Endpoint>) -> Self {
        let avoided_until = vec![None; brokers.len()];
        Self { brokers, state: Mutex::new(State { next: 0, avoided_until }) }
    }

    /// All brokers, in the order in which to try them.
    pub fn turn(&self, now: Instant) -> Vec<Endpoint> {
        let mut state = self.state.lock();
        let first = state.next;
        state.next = (first + 1) % self.brokers.len().max(1);
        let order = (0..self.brokers.len()).map(|offset| (first + offset) % self.brokers.len());
        let (avoided, fine): (Vec<usize>, Vec<usize>) =
            order.partition(|index| state.avoided_until[*index].is_some_and(|until| now < until));
        fine.into_iter().chain(avoided).map(|index| self.brokers[index].clone()).collect()
    }

    /// Notes whether a broker could be reached, and says so in the log when that has changed. Others than the configured ones
    /// are of no interest.
    pub fn note(&self, broker: &Endpoint, outcome: Result<(), &DialError>, now: Instant) {
        let Some(index) = self.brokers.iter().position(|known| known == broker) else { return };
        let until = outcome.is_err().then(|| now + AVOIDED_FOR);
        let before = std::mem::replace(&mut self.state.lock().avoided_until[index], until);
        match outcome {
            Err(error) if before.is_none() => tracing::warn!(%error, "a broker cannot be reached"),
            Ok(()) if before.is_some() => tracing::info!(%broker, "a broker can be reached again"),
            _ => {}
        }
    }

    /// Whether a broker is there that was not unreachable a moment ago.
    pub fn any_fine(&self, now: Instant) -> bool {
        self.state.lock().avoided_until.iter().any(|until| until.is_none_or(|until| until <= now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_turns_and_asks_the_dead_last_for_a_while() {
        let brokers: Vec<Endpoint> = ["a:1", "b:1", "c:1"].iter().map(|text| Endpoint::pulsar(text).unwrap()).collect();
        let [a, b, c] = [0, 1, 2].map(|index| brokers[index].clone());
        let rotation = Rotation::new(brokers);
        let now = Instant::now();
        assert_eq!(rotation.turn(now), [a.clone(), b.clone(), c.clone()]);
        assert_eq!(rotation.turn(now), [b.clone(), c.clone(), a.clone()]);
        rotation.note(&c, Err(&DialError::NoBrokers), now);
        assert_eq!(rotation.turn(now), [a.clone(), b.clone(), c.clone()]);
        assert_eq!(rotation.turn(now), [a.clone(), b.clone(), c.clone()], "c's turn, but it is dead");
        assert_eq!(rotation.turn(now), [b.clone(), a.clone(), c.clone()]);
        assert_eq!(rotation.turn(now + AVOIDED_FOR), [c.clone(), a.clone(), b.clone()]);
        rotation.note(&c, Ok(()), now);
        assert!(rotation.any_fine(now));
        for broker in [&a, &b, &c] {
            rotation.note(broker, Err(&DialError::NoBrokers), now);
        }
        assert!(!rotation.any_fine(now));
        assert_eq!(rotation.turn(now).len(), 3, "dead ones are better than none");
    }
}
