//! Work that is done once at a time, however many ask for it: who asked before it began shares its outcome.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::error::Result;

/// Work of one kind, with when it was begun last and what came of it.
#[derive(Default)]
pub(super) struct Turn(tokio::sync::Mutex<Option<(Instant, Result<()>)>>);

impl Turn {
    /// Does the work, unless it was begun since this was called.
    pub async fn take(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let asked_at = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((began, outcome)) = &*last
            && *began > asked_at
        {
            return outcome.clone();
        }
        let began = Instant::now();
        let outcome = work.await;
        *last = Some((began, outcome.clone()));
        outcome
    }
}

/// The same for each name.
pub(super) struct Turns<K>(Mutex<FxHashMap<K, Arc<Turn>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    pub async fn take(&self, name: &K, work: impl Future<Output = Result<()>>) -> Result<()> {
        let turn = self.0.lock().entry(name.clone()).or_default().clone();
        let waiting = Waiting { turns: self, name, turn };
        waiting.turn.take(work).await
    }
}

/// Whoever waits for a turn. The last to go takes it along.
struct Waiting<'a, K: Clone + Eq + Hash> {
    turns: &'a Turns<K>,
    name: &'a K,
    turn: Arc<Turn>,
}

impl<K: Clone + Eq + Hash> Drop for Waiting<'_, K> {
    fn drop(&mut self) {
        // Turns are shared out under this lock only: the count does not grow meanwhile.
        let mut turns = self.turns.0.lock();
        let in_map_and_here = 2;
        if Arc::strong_count(&self.turn) == in_map_and_here {
            turns.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;
    use crate::error::BrokerError;

    #[tokio::test]
    async fn who_asked_before_it_began_shares_its_outcome() {
        let (turns, begun) = (Arc::new(Turns::<u32>::default()), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let (turns, begun) = (turns.clone(), begun.clone());
            tasks.spawn(async move {
                let work = async {
                    let attempt = begun.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    // The second one fails.
                    if attempt == 1 { Err(BrokerError::ServiceNotReady(String::new())) } else { Ok(()) }
                };
                turns.take(&7, work).await
            });
        }
        let outcomes = tasks.join_all().await;
        assert_eq!(begun.load(Ordering::Relaxed), 2, "one, and one for all who came while that was under way");
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        assert!(turns.0.lock().is_empty());
    }
}
