//! What is wrong with where a ledger is, by its metadata alone.

use std::collections::BTreeSet;

use crate::distribution::write_set;
use crate::metadata::{LedgerMetadata, LedgerState, NodeId};
use crate::planted::{Bug, is_planted};
use crate::repair::ledger::Listing;
use crate::repair::nodes::NodeTable;

/// Why a place of a fragment needs another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Lost,
    Draining,
    /// It shares its zone with another member though it need not.
    Misplaced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    pub first_entry: u64,
    pub slot: usize,
    pub cause: Cause,
}

/// A fragment's entries that nobody adds to any more; there is at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Index of the fragment.
    pub fragment: usize,
    pub first: u64,
    /// The first entry behind it.
    pub end: u64,
}

/// What of a ledger can be repaired.
pub fn stretches(metadata: &LedgerMetadata) -> impl Iterator<Item = Stretch> {
    let fragments = &metadata.fragments;
    let closed_end = match metadata.state {
        LedgerState::Closed { entries, .. } => Some(entries),
        LedgerState::Open | LedgerState::InRecovery => None,
    };
    fragments.iter().enumerate().filter_map(move |(fragment, this)| {
        let next = fragments.get(fragment + 1).map(|next| next.first_entry);
        let end = match (next, closed_end) {
            (Some(next), Some(entries)) => next.min(entries),
            (Some(end), None) | (None, Some(end)) => end,
            (None, None) if is_planted(Bug::RepairWritersEnd) => this.first_entry + 1,
            (None, None) => return None,
        };
        (this.first_entry < end).then_some(Stretch { fragment, first: this.first_entry, end })
    })
}

/// Those of them that a node is a member of.
pub fn stretches_of(metadata: &LedgerMetadata, node: &NodeId) -> impl Iterator<Item = Stretch> {
    stretches(metadata).filter(move |stretch| metadata.fragments[stretch.fragment].ensemble.contains(node))
}

/// Every place that needs another node.
pub fn flaws(metadata: &LedgerMetadata, nodes: &NodeTable) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    for stretch in stretches(metadata) {
        let ensemble = &metadata.fragments[stretch.fragment].ensemble;
        let before = flaws.len();
        for (slot, node) in ensemble.iter().enumerate().filter(|(_, node)| nodes.must_leave(node)) {
            let cause = if nodes.standing(node) == super::Standing::Lost { Cause::Lost } else { Cause::Draining };
            flaws.push(Flaw { first_entry: stretch.first, slot, cause });
        }
        // Whoever is replaced anyway goes where it is best.
        if flaws.len() == before
            && let Some(slot) = nodes.crowded(ensemble, &BTreeSet::new())
        {
            flaws.push(Flaw { first_entry: stretch.first, slot, cause: Cause::Misplaced });
        }
    }
    flaws
}

/// Nodes that must leave and that the ledger's writer may still write to, as it is not closed. Empty: nothing to be done about
/// its end.
pub fn writers_end(metadata: &LedgerMetadata, nodes: &NodeTable) -> Vec<NodeId> {
    match metadata.state {
        LedgerState::Closed { .. } => Vec::new(),
        LedgerState::Open | LedgerState::InRecovery => {
            metadata.last_fragment().ensemble.iter().filter(|node| nodes.must_leave(node)).cloned().collect()
        }
    }
}

/// Whether anything would be missed if the node went: it has entries of the ledger, or its writer may write to it.
pub fn depends_on(metadata: &LedgerMetadata, node: &NodeId) -> bool {
    let has_entries = stretches(metadata).any(|stretch| metadata.fragments[stretch.fragment].ensemble.contains(node));
    let is_open = !matches!(metadata.state, LedgerState::Closed { .. });
    has_entries || is_open && metadata.last_fragment().ensemble.contains(node)
}

/// Whether a member says itself that it lacks an entry which it should have.
pub fn lacks(metadata: &LedgerMetadata, node: &NodeId, listing: &dyn Listing) -> bool {
    stretches(metadata).any(|stretch| {
        let ensemble = &metadata.fragments[stretch.fragment].ensemble;
        let Some(slot) = ensemble.iter().position(|member| member == node) else { return false };
        let should_have = |entry: &u64| write_set(metadata.quorum, *entry).contains(slot);
        (stretch.first..stretch.end).filter(should_have).any(|entry| !listing.contains(entry))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metadata::{Fragment, Quorum};
    use crate::placement::Place;
    use crate::repair::{NodeView, Standing};

    fn fragment(first_entry: u64, nodes: &[&str]) -> Fragment {
        Fragment { first_entry, ensemble: nodes.iter().map(|node| (*node).to_owned()).collect() }
    }

    fn ledger(state: LedgerState, fragments: Vec<Fragment>) -> LedgerMetadata {
        let quorum = Quorum { ensemble: 2, write: 2, ack: 1 };
        LedgerMetadata { quorum, state, fragments, properties: BTreeMap::new() }
    }

    fn table(nodes: &[(&str, Standing)]) -> NodeTable {
        let view = |node: &str, standing| NodeView {
            place: Place { region: "r".to_owned(), zone: node.to_owned() },
            standing,
            free_bytes: None,
        };
        nodes.iter().map(|(node, standing)| ((*node).to_owned(), view(node, *standing))).collect()
    }

    #[test]
    fn the_end_of_an_open_ledger_is_its_writers() {
        let nodes = table(&[("a", Standing::Writable), ("b", Standing::Draining), ("c", Standing::Away)]);
        let fragments = vec![fragment(0, &["a", "gone"]), fragment(7, &["b", "c"])];
        for state in [LedgerState::Open, LedgerState::InRecovery] {
            let open = ledger(state, fragments.clone());
            assert_eq!(stretches(&open).collect::<Vec<_>>(), [Stretch { fragment: 0, first: 0, end: 7 }]);
            assert_eq!(flaws(&open, &nodes), [Flaw { first_entry: 0, slot: 1, cause: Cause::Lost }]);
            assert_eq!(writers_end(&open, &nodes), ["b"]);
            assert!(depends_on(&open, &"b".to_owned()));
        }
        let closed = ledger(LedgerState::Closed { entries: 9, length: 9 }, fragments.clone());
        let found = flaws(&closed, &nodes);
        assert_eq!(found[1], Flaw { first_entry: 7, slot: 0, cause: Cause::Draining });
        assert_eq!((found.len(), writers_end(&closed, &nodes)), (2, vec![]));
        let closed_before = ledger(LedgerState::Closed { entries: 7, length: 7 }, fragments);
        assert_eq!(flaws(&closed_before, &nodes).len(), 1, "a fragment without entries has nothing to copy");
        assert!(!depends_on(&closed_before, &"b".to_owned()));
    }

    #[derive(Debug)]
    struct AllBut(u64);

    impl Listing for AllBut {
        fn contains(&self, entry: u64) -> bool {
            entry != self.0
        }
    }

    #[test]
    fn a_member_lacks_what_is_striped_to_it_only() {
        let quorum = Quorum { ensemble: 3, write: 2, ack: 1 };
        let fragments = vec![fragment(0, &["a", "b", "c"]), fragment(6, &["a", "d", "c"])];
        let state = LedgerState::Closed { entries: 9, length: 9 };
        let metadata = LedgerMetadata { quorum, state, fragments, properties: BTreeMap::new() };
        for entry in 0..12 {
            // The second place has the entries 0, 1, 3, 4, 6, 7.
            assert_eq!(lacks(&metadata, &"b".to_owned(), &AllBut(entry)), [0, 1, 3, 4].contains(&entry), "{entry}");
            assert_eq!(lacks(&metadata, &"d".to_owned(), &AllBut(entry)), [6, 7].contains(&entry), "{entry}");
            assert!(!lacks(&metadata, &"e".to_owned(), &AllBut(entry)));
        }
    }
}
