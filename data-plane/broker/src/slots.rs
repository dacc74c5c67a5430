//! Values by name that are loaded when somebody asks for them: each once at a time, however many ask.

use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::OnceCell;

type Slot<V> = Arc<OnceCell<Arc<V>>>;

/// A loading that fails leaves its turn to the next who waits for it, in the same slot: as long as anybody waits, no second one can
/// begin beside it. (Two of the same topic, or of the same cursor log, would each believe that it is the only one.)
pub(crate) struct Slots<K, V> {
    slots: Mutex<FxHashMap<K, Slot<V>>>,
    /// Values that lists of all of them have had.
    #[cfg(test)]
    copied: std::sync::atomic::AtomicUsize,
}

impl<K, V> Default for Slots<K, V> {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            #[cfg(test)]
            copied: Default::default(),
        }
    }
}

impl<K: Clone + Eq + Hash, V> Slots<K, V> {
    /// The value, which `load` makes unless it is there, or somebody else makes it.
    pub async fn get_or_load<E, L>(&self, name: &K, load: impl FnOnce() -> L) -> Result<Arc<V>, E>
    where
        L: Future<Output = Result<Arc<V>, E>>,
    {
        let waiting =
            Waiting { slots: self, name, slot: Some(self.slots.lock().entry(name.clone()).or_default().clone()) };
        let slot = waiting.slot.as_ref().expect("it is taken out by drop");
        slot.get_or_try_init(load).await.cloned()
    }

    /// The value if it is loaded.
    pub fn get(&self, name: &K) -> Option<Arc<V>> {
        self.slots.lock().get(name).and_then(|slot| slot.get().cloned())
    }

    /// All that are loaded, in no order.
    pub fn all(&self) -> Vec<Arc<V>> {
        let all: Vec<Arc<V>> = self.slots.lock().values().filter_map(|slot| slot.get().cloned()).collect();
        #[cfg(test)]
        self.copied.fetch_add(all.len(), std::sync::atomic::Ordering::Relaxed);
        all
    }

    #[cfg(test)]
    pub fn copied(&self) -> usize {
        self.copied.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Forgets this value, unless another has taken its place.
    pub fn forget(&self, name: &K, value: &Arc<V>) {
        let mut slots = self.slots.lock();
        if slots.get(name).and_then(|slot| slot.get()).is_some_and(|known| Arc::ptr_eq(known, value)) {
            slots.remove(name);
        }
    }
}

/// Whoever asks for a value. The last to go takes an empty slot along.
struct Waiting<'a, K: Clone + Eq + Hash, V> {
    slots: &'a Slots<K, V>,
    name: &'a K,
    slot: Option<Slot<V>>,
}

impl<K: Clone + Eq + Hash, V> Drop for Waiting<'_, K, V> {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take().filter(|slot| slot.get().is_none()) else { return };
        // Slots are shared out, and empty ones given back, under this lock only: the count is true.
        let mut slots = self.slots.slots.lock();
        let in_map_and_here = 2;
        if slot.get().is_none() && Arc::strong_count(&slot) == in_map_and_here {
            slots.remove(self.name);
        }
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn no_two_load_the_same_value_also_when_loading_fails() {
        let slots: Arc<Slots<&str, usize>> = Arc::default();
        let (attempts, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut asking = JoinSet::new();
        for client in 0..100u64 {
            let (slots, attempts, at_once) = (slots.clone(), attempts.clone(), at_once.clone());
            asking.spawn(async move {
                tokio::time::sleep(Duration::from_millis(client * 3)).await;
                let load = || async {
                    assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two load at once");
                    tokio::time::sleep(Duration::from_millis(7)).await;
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    let attempt = attempts.fetch_add(1, Ordering::SeqCst);
                    if attempt < 20 { Err(attempt) } else { Ok(Arc::new(attempt)) }
                };
                slots.get_or_load(&"topic", load).await.ok()
            });
        }
        let loaded: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
        assert_eq!((loaded.len(), attempts.load(Ordering::SeqCst)), (80, 21));
        assert!(loaded.iter().all(|value| Arc::ptr_eq(value, &loaded[0])));
        slots.forget(&"topic", &Arc::new(20));
        assert!(slots.get(&"topic").is_some(), "it is another value that is forgotten");
        slots.forget(&"topic", &loaded[0]);
        assert!(slots.slots.lock().is_empty());
    }

    #[tokio::test]
    async fn what_could_not_be_loaded_leaves_nothing_behind() {
        let slots: Slots<&str, ()> = Slots::default();
        let failing = || async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Err(())
        };
        let (first, second) = tokio::join!(slots.get_or_load(&"a", failing), slots.get_or_load(&"a", failing));
        assert_eq!((first, second), (Err(()), Err(())));
        let given_up = tokio::time::timeout(Duration::from_millis(1), slots.get_or_load(&"b", failing)).await;
        assert!(given_up.is_err() && slots.slots.lock().is_empty());
    }
}
