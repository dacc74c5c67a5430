//! Messages that were left out in silence, as their producer's topic was on its way to another owner: the client, which is told
//! that the producer is closed, sends them again once it has made it anew.
//!
//! On the same connection it may do so in the wrong order. The Go client (0.19, `run` in `internal/connection.go`) takes commands and
//! messages from two queues, as they come, so that a message passes the PRODUCER that it should precede, or follow after those
//! from before. With deduplication those would then be duplicates, and have receipts, and be nowhere.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// A client that has given up what was left out, as its time was over, goes on with later messages for good: these are taken then.
const ATTEMPTS: u8 = 3;

/// By producer id, for one connection.
#[derive(Default)]
pub(crate) struct LeftOut {
    /// Whether there is any, so that messages in order pay nothing.
    any: AtomicBool,
    producers: Mutex<FxHashMap<u64, Closed>>,
}

#[derive(Default)]
struct Closed {
    /// Sequence id of the first message that is missing.
    lowest: Option<u64>,
    /// How often the producer was closed again for a message that came too early.
    attempts: u8,
}

impl LeftOut {
    /// The broker has closed the producer, or is about to.
    pub fn expect(&self, producer_id: u64) {
        self.producers.lock().entry(producer_id).or_default();
        self.any.store(true, Ordering::Relaxed);
    }

    /// A message was left out; of no consequence if the broker has not closed the producer.
    pub fn note(&self, producer_id: u64, sequence_id: u64) {
        if let Some(closed) = self.producers.lock().get_mut(&producer_id) {
            closed.lowest = Some(closed.lowest.map_or(sequence_id, |lowest| lowest.min(sequence_id)));
        }
    }

    /// Whether the first message of a new producer may be taken. If not, it passes one that was left out: the producer is to be closed
    /// once more, so that the client begins anew with the oldest it has.
    pub fn lets_pass(&self, producer_id: u64, sequence_id: u64) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return true;
        }
        let mut producers = self.producers.lock();
        let passes = producers.get_mut(&producer_id).is_none_or(|closed| {
            closed.attempts += 1;
            closed.lowest.replace(sequence_id).is_none_or(|lowest| sequence_id <= lowest) || closed.attempts > ATTEMPTS
        });
        if passes {
            producers.remove(&producer_id);
            self.any.store(!producers.is_empty(), Ordering::Relaxed);
        }
        passes
    }

    /// The client has closed the producer itself.
    pub fn forget(&self, producer_id: u64) {
        self.producers.lock().remove(&producer_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed_with(left_out: &[u64]) -> LeftOut {
        let missing = LeftOut::default();
        missing.expect(1);
        left_out.iter().for_each(|sequence_id| missing.note(1, *sequence_id));
        missing
    }

    #[test]
    fn what_was_left_out_comes_first() {
        assert!(closed_with(&[]).lets_pass(1, 9));
        assert!(closed_with(&[3, 4]).lets_pass(1, 3));
        // One before it has had no receipt either.
        assert!(closed_with(&[3, 4]).lets_pass(1, 2));
        assert!(closed_with(&[3, 4]).lets_pass(2, 9), "another producer");

        let missing = closed_with(&[3, 4]);
        assert!(!missing.lets_pass(1, 5));
        // What is repeated too late for that producer is left out as well.
        missing.note(1, 3);
        assert!(!missing.lets_pass(1, 4));
        missing.note(1, 3);
        assert!(missing.lets_pass(1, 3) && missing.lets_pass(1, 9));
    }

    #[test]
    fn what_a_client_has_given_up_is_not_waited_for() {
        let missing = closed_with(&[3]);
        assert!(!missing.lets_pass(1, 5));
        assert!(missing.lets_pass(1, 5));

        // Whose numbers are in no order.
        let missing = closed_with(&[7, 3]);
        let closed = (0..).take_while(|_| {
            let closed = !missing.lets_pass(1, 7);
            missing.note(1, 3);
            closed
        });
        assert_eq!(closed.count(), usize::from(ATTEMPTS));
    }

    #[test]
    fn a_producer_that_the_client_closed_owes_nothing() {
        let missing = closed_with(&[3]);
        missing.forget(1);
        missing.note(1, 3);
        assert!(missing.lets_pass(1, 9));
    }
}
