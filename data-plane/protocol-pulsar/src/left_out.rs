//! Messages that were left out in silence, as their producer's topic was on its way to another owner: the client, which is told
//! that the producer is closed, sends them again once it has made it anew.
//!
//! On the same connection it may do so in the wrong order. The Go client (0.19, `run` in `internal/connection.go`) takes commands and
//! messages from two queues, as they come: the PRODUCER passes up to 256 messages that were queued before it. Those that the
//! broker reads once it has the new producer would be stored before the ones that it left out. With deduplication these are then
//! duplicates when they are sent again, have receipts, and are nowhere.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

/// Where the first message of a new producer stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    InOrder,
    /// It passes one that was left out: the producer is to be closed once more, so that the client begins anew with the oldest it
    /// has. That is this one if it has given up the others, as their time was over, or if another broker has stored them.
    TooEarly,
    /// And once more: on another connection the client's queues are empty.
    Hopeless,
}

/// By producer id, for one connection. Clients give an id to one producer only, also if they close it because the broker does not
/// answer, and make it again.
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
    /// Also for a message that came too early.
    again: bool,
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

    /// Looks at the first message of a new producer, which is taken if it is in order.
    pub fn place(&self, producer_id: u64, sequence_id: u64) -> Place {
        if !self.any.load(Ordering::Relaxed) {
            return Place::InOrder;
        }
        let mut producers = self.producers.lock();
        let Some(closed) = producers.get_mut(&producer_id) else { return Place::InOrder };
        if closed.lowest.replace(sequence_id).is_none_or(|lowest| sequence_id <= lowest) {
            producers.remove(&producer_id);
            self.any.store(!producers.is_empty(), Ordering::Relaxed);
            return Place::InOrder;
        }
        if std::mem::replace(&mut closed.again, true) { Place::Hopeless } else { Place::TooEarly }
    }
}

#[cfg(test)]
mod tests {
    use super::Place::{Hopeless, InOrder, TooEarly};
    use super::*;

    fn closed_with(left_out: &[u64]) -> LeftOut {
        let missing = LeftOut::default();
        missing.expect(1);
        left_out.iter().for_each(|sequence_id| missing.note(1, *sequence_id));
        missing
    }

    #[test]
    fn what_was_left_out_comes_first() {
        assert_eq!(closed_with(&[]).place(1, 9), InOrder);
        assert_eq!(closed_with(&[3, 4]).place(1, 3), InOrder);
        // One before it has had no receipt either.
        assert_eq!(closed_with(&[3, 4]).place(1, 2), InOrder);
        assert_eq!(closed_with(&[3, 4]).place(2, 9), InOrder, "another producer");

        let missing = closed_with(&[3, 4]);
        assert_eq!(missing.place(1, 5), TooEarly);
        // What is repeated too late for that producer is left out as well.
        missing.note(1, 3);
        assert_eq!(missing.place(1, 3), InOrder);
        assert_eq!(missing.place(1, 9), InOrder);
    }

    #[test]
    fn what_a_client_has_given_up_is_not_waited_for() {
        let missing = closed_with(&[3]);
        assert_eq!(missing.place(1, 5), TooEarly);
        assert_eq!(missing.place(1, 5), InOrder);
    }

    #[test]
    fn none_is_taken_that_passes_others_however_often() {
        let missing = closed_with(&[3]);
        for place in [TooEarly, Hopeless, Hopeless] {
            assert_eq!(missing.place(1, 7), place);
            missing.note(1, 3);
        }
    }
}
