//! Entries that are not stored: whoever can take one now gets it, nobody holds it, and what nobody takes is lost.
//!
//! Pulsar's non-persistent dispatchers. They choose as their persistent counterparts do; what delays those (waiting for
//! acknowledgements, delivery times, limits of unacknowledged messages) does not exist here.

use super::{Dispatcher, Subscription};
use crate::entry::{Delivery, Entry};

impl Subscription {
    /// Hands an entry to the consumer whose turn it is. False when that one has no permits or its connection takes no
    /// more: then the entry is lost to this subscription.
    pub fn offer(&mut self, now: u64, entry: &Entry, out: &mut Vec<Delivery>) -> bool {
        let core = &mut self.core;
        core.now = now;
        let hash = entry.meta.sticky_key_hash;
        let slot = match &mut self.dispatcher {
            None => None,
            Some(Dispatcher::SingleActive(single)) => single.active.filter(|_| single.in_ranges(hash)),
            Some(Dispatcher::Shared(shared)) => shared.choose(core, entry),
            Some(Dispatcher::KeyShared(keyed)) => keyed.selector.select(keyed.selector.hash_slot(hash)),
        };
        let Some(slot) = slot.filter(|&slot| core.is_available(slot)) else { return false };
        core.deliver(now, slot, entry.clone(), None, out);
        true
    }
}
