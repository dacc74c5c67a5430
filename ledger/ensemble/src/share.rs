//! What one node has to have of a ledger.

use crate::distribution::write_set;
use crate::metadata::{LedgerMetadata, LedgerState};

/// See [`LedgerMetadata::share_of`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// First entry and number of entries, in order.
    pub stretches: Vec<(u64, u64)>,
    /// Nothing more will be written to the node: the ledger is closed, or has gone on elsewhere.
    pub is_settled: bool,
    pub is_closed: bool,
}

impl LedgerMetadata {
    /// The entries that `node` has to have as far as that is settled: of fragments that are finished. `None` if it is in no
    /// fragment.
    pub fn share_of(&self, node: &str) -> Option<Share> {
        let mut share = None;
        for (at, fragment) in self.fragments.iter().enumerate() {
            let Some(slot) = fragment.ensemble.iter().position(|member| member == node) else { continue };
            let share = share.get_or_insert_with(|| Share {
                stretches: Vec::new(),
                is_settled: true,
                is_closed: matches!(self.state, LedgerState::Closed { .. }),
            });
            let end = match (self.fragments.get(at + 1), self.state) {
                (Some(next), _) => next.first_entry,
                (None, LedgerState::Closed { entries, .. }) => entries,
                (None, LedgerState::Open | LedgerState::InRecovery) => {
                    share.is_settled = false;
                    continue;
                }
            };
            for entry in (fragment.first_entry..end).filter(|entry| write_set(self.quorum, *entry).contains(slot)) {
                match share.stretches.last_mut() {
                    Some((first, count)) if *first + *count == entry => *count += 1,
                    _ => share.stretches.push((entry, 1)),
                }
            }
        }
        share
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metadata::Quorum;

    fn nodes(names: [&str; 3]) -> Vec<String> {
        names.map(str::to_owned).to_vec()
    }

    #[test]
    fn a_node_has_its_stripes_of_finished_fragments() {
        let quorum = Quorum { ensemble: 3, write: 2, ack: 2 };
        let mut ledger = LedgerMetadata::new(quorum, nodes(["a", "b", "c"]), BTreeMap::new());
        let open = ledger.share_of("a").expect("it is a member");
        assert_eq!((open.stretches.len(), open.is_settled), (0, false));
        ledger.set_ensemble_from(7, nodes(["a", "d", "c"]));
        // Of entries 0 to 6, those that begin at slot 0 or 2 of three.
        let share = ledger.share_of("a").expect("it is a member");
        assert_eq!((&share.stretches[..], share.is_settled), (&[(0, 1), (2, 2), (5, 2)][..], false));
        let left = ledger.share_of("b").expect("it was a member");
        assert_eq!(
            (&left.stretches[..], left.is_settled, left.is_closed),
            (&[(0, 2), (3, 2), (6, 1)][..], true, false)
        );
        ledger.state = LedgerState::Closed { entries: 9, length: 0 };
        let closed = ledger.share_of("a").expect("it is a member");
        assert_eq!((&closed.stretches[..], closed.is_closed), (&[(0, 1), (2, 2), (5, 2), (8, 1)][..], true));
        assert_eq!(ledger.share_of("e"), None);
    }
}
