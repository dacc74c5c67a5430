//! The topics of a bundle that are in memory: a bundle that goes looks at these, and not at all that there are.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Weak};

use rustc_hash::FxHashSet;

/// Weak, as topics hold their bundle. Some ten bytes per topic.
pub(crate) struct Loaded<T>(FxHashSet<ByAddress<T>>);

/// Nothing else can be at the address as long as the weak pointer is there.
struct ByAddress<T>(Weak<T>);

impl<T> PartialEq for ByAddress<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl<T> Eq for ByAddress<T> {}

impl<T> Hash for ByAddress<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_ptr().hash(state);
    }
}

impl<T> Default for Loaded<T> {
    fn default() -> Self {
        Self(FxHashSet::default())
    }
}

impl<T> Loaded<T> {
    pub fn add(&mut self, one: &Arc<T>) {
        self.0.insert(ByAddress(Arc::downgrade(one)));
    }

    pub fn remove(&mut self, one: &Arc<T>) {
        self.0.remove(&ByAddress(Arc::downgrade(one)));
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.0.iter().filter_map(|one| one.0.upgrade()).collect()
    }
}
