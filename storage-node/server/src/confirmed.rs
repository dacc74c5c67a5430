//! How far each ledger is confirmed, as far as this node was told, and who waits for more.
//!
//! Writers say so with each entry (the entries before it that were acknowledged), or without one. It is kept in memory for
//! ledgers in use, and can always be found again in the log: the explicit one, and the head of the last entry.

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::watch;

const SHARDS: usize = 16;
/// Ledgers that a shard remembers; beyond, those that nobody waits for are forgotten.
const LEDGERS_MAX: usize = 8192;

/// A last add confirmed, -1 for none, and when it came, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    pub last_add_confirmed: i64,
    pub since_ms: i64,
}

struct State {
    now: Confirmation,
    /// What the log had is in it.
    is_complete: bool,
    waiting: Option<watch::Sender<i64>>,
}

#[derive(Default)]
pub struct Confirmed {
    shards: [Mutex<FxHashMap<u64, State>>; SHARDS],
}

impl Confirmed {
    fn shard(&self, ledger: u64) -> &Mutex<FxHashMap<u64, State>> {
        &self.shards[(ledger as usize) % SHARDS]
    }

    /// What is known without looking into the log; `None` if that has to be done.
    pub fn get(&self, ledger: u64) -> Option<Confirmation> {
        let shard = self.shard(ledger).lock();
        shard.get(&ledger).filter(|state| state.is_complete).map(|state| state.now)
    }

    /// A writer has said so.
    pub fn advance(&self, ledger: u64, last_add_confirmed: i64) {
        self.note(ledger, last_add_confirmed, false);
    }

    /// The log says so, and knows no more.
    pub fn complete(&self, ledger: u64, last_add_confirmed: i64) -> Confirmation {
        self.note(ledger, last_add_confirmed, true)
    }

    fn note(&self, ledger: u64, last_add_confirmed: i64, from_log: bool) -> Confirmation {
        let mut shard = self.shard(ledger).lock();
        if shard.len() >= LEDGERS_MAX && !shard.contains_key(&ledger) {
            shard.retain(|_, state| state.waiting.as_ref().is_some_and(|sender| sender.receiver_count() > 0));
        }
        let state = shard.entry(ledger).or_insert_with(|| State {
            now: Confirmation { last_add_confirmed: -1, since_ms: now_ms() },
            is_complete: false,
            waiting: None,
        });
        state.is_complete |= from_log;
        if last_add_confirmed > state.now.last_add_confirmed {
            state.now = Confirmation { last_add_confirmed, since_ms: now_ms() };
            if let Some(sender) = &state.waiting {
                sender.send_replace(last_add_confirmed);
            }
        }
        state.now
    }

    /// Hears of each advance from now on. The ledger has to be complete.
    pub fn watch(&self, ledger: u64) -> watch::Receiver<i64> {
        let mut shard = self.shard(ledger).lock();
        let state = shard.entry(ledger).or_insert_with(|| State {
            now: Confirmation { last_add_confirmed: -1, since_ms: now_ms() },
            is_complete: false,
            waiting: None,
        });
        let last = state.now.last_add_confirmed;
        state.waiting.get_or_insert_with(|| watch::channel(last).0).subscribe()
    }

    /// Everybody who waits for the ledger is answered: nothing more will come, or all is to be looked at again.
    pub fn wake(&self, ledger: u64) {
        if let Some(state) = self.shard(ledger).lock().get_mut(&ledger) {
            // Receivers see that the sender is gone.
            state.waiting = None;
        }
    }

    pub fn forget(&self, ledger: u64) {
        self.shard(ledger).lock().remove(&ledger);
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_goes_back_and_is_not_believed_before_the_log_was_asked() {
        let confirmed = Confirmed::default();
        confirmed.advance(7, 5);
        assert_eq!(confirmed.get(7), None, "the log may know of more");
        assert_eq!(confirmed.complete(7, 9).last_add_confirmed, 9);
        confirmed.advance(7, 8);
        assert_eq!(confirmed.get(7).map(|now| now.last_add_confirmed), Some(9));
        let mut watch = confirmed.watch(7);
        confirmed.advance(7, 12);
        assert_eq!(*watch.borrow_and_update(), 12);
    }

    #[test]
    fn ledgers_that_nobody_waits_for_are_forgotten_when_there_are_too_many() {
        let confirmed = Confirmed::default();
        let _watch = confirmed.watch(0);
        for ledger in 0..(LEDGERS_MAX * SHARDS * 2) as u64 {
            confirmed.complete(ledger, 1);
        }
        assert!(confirmed.shards.iter().all(|shard| shard.lock().len() <= LEDGERS_MAX));
        assert!(confirmed.get(0).is_some());
    }
}
