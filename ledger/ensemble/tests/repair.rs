//! A repair, with nodes that answer at once.

use std::collections::{BTreeMap, BTreeSet};

use geminga_ensemble::distribution::write_set;
use geminga_ensemble::placement::Place;
use geminga_ensemble::repair::{
    Blocker, CopyFailure, LedgerRepair, Listing, NodeTable, NodeView, RepairAction, RepairReport, Standing,
};
use geminga_ensemble::{Fragment, LedgerMetadata, LedgerState, MetadataOutcome, NodeId, Quorum};
use proptest::prelude::*;

#[derive(Debug)]
struct Listed(BTreeSet<u64>);

impl Listing for Listed {
    fn contains(&self, entry: u64) -> bool {
        self.0.contains(&entry)
    }
}

/// What each node has, and what it does not do.
#[derive(Default)]
struct Nodes {
    entries: BTreeMap<NodeId, BTreeSet<u64>>,
    refusing: BTreeSet<NodeId>,
    copied: Vec<(NodeId, u64)>,
    /// After so many copies they stand like that.
    changing: Option<(usize, NodeTable)>,
}

impl Nodes {
    /// Everybody has what a ledger's metadata say.
    fn holding(metadata: &LedgerMetadata, entries: u64) -> Self {
        let mut nodes = Self::default();
        for entry in 0..entries {
            let ensemble = &metadata.fragment_of(entry).ensemble;
            for slot in write_set(metadata.quorum, entry).iter() {
                nodes.entries.entry(ensemble[slot].clone()).or_default().insert(entry);
            }
        }
        nodes
    }

    /// Carries a repair out, and answers the metadata with its report.
    fn repair(&mut self, mut metadata: LedgerMetadata, mut table: NodeTable) -> (LedgerMetadata, RepairReport) {
        let mut repair = LedgerRepair::new(metadata.clone(), 1, table.clone(), 7);
        let mut version = 1;
        loop {
            for action in repair.take_actions() {
                match action {
                    RepairAction::List { node } => {
                        let listing = Listed(self.entries.get(&node).cloned().unwrap_or_default());
                        repair.listed(&node, Some(Box::new(listing)));
                    }
                    RepairAction::Read { entry, node } => {
                        let is_there = !matches!(table.standing(&node), Standing::Lost | Standing::Away);
                        let has_it = self.entries.get(&node).is_some_and(|has| has.contains(&entry));
                        repair.read(entry, &node, (is_there && has_it).then_some(10));
                    }
                    RepairAction::Add { entry, nodes } => {
                        for node in nodes {
                            let refuses = self.refusing.contains(&node);
                            if !refuses {
                                self.entries.entry(node.clone()).or_default().insert(entry);
                                self.copied.push((node.clone(), entry));
                            }
                            let answer = if refuses { Err(CopyFailure::Refused) } else { Ok(()) };
                            repair.added(entry, &node, answer);
                        }
                        if let Some((_, changed)) = self.changing.take_if(|(copies, _)| self.copied.len() >= *copies) {
                            table = changed;
                            repair.nodes_changed(table.clone());
                        }
                    }
                    RepairAction::WriteMetadata { metadata: written, expected_version } => {
                        assert_eq!(expected_version, version);
                        version += 1;
                        metadata = written;
                        repair.metadata_written(Some(MetadataOutcome::Written { version }));
                    }
                    RepairAction::Done(report) => return (metadata, report),
                }
            }
        }
    }
}

fn name(node: usize) -> NodeId {
    format!("n{node}")
}

/// A closed ledger whose fragments begin at these entries, each on the nodes that follow those of the one before.
fn ledger(quorum: Quorum, firsts: &[u64], entries: u64, nodes: usize) -> LedgerMetadata {
    let ensemble = |n: usize| (0..quorum.ensemble as usize).map(|slot| name((n + slot) % nodes)).collect();
    let fragment = |(n, first): (usize, &u64)| Fragment { first_entry: *first, ensemble: ensemble(n) };
    LedgerMetadata {
        quorum,
        state: LedgerState::Closed { entries, length: entries },
        fragments: firsts.iter().enumerate().map(fragment).collect(),
        properties: BTreeMap::new(),
    }
}

fn table(nodes: usize, standing: impl Fn(usize) -> Standing) -> NodeTable {
    let view = |node: usize| NodeView {
        place: Place { region: "r".to_owned(), zone: name(node) },
        standing: standing(node),
        free_bytes: None,
    };
    (0..nodes).map(|node| (name(node), view(node))).collect()
}

#[test]
fn a_ledger_of_very_many_fragments_is_looked_at_piece_by_piece() {
    let quorum = Quorum { ensemble: 2, write: 2, ack: 1 };
    let firsts: Vec<u64> = (0..5_000).collect();
    let metadata = ledger(quorum, &firsts, 5_000, 4);
    let mut nodes = Nodes::holding(&metadata, 5_000);
    let (same, report) = nodes.repair(metadata.clone(), table(4, |_| Standing::Writable));
    assert_eq!((same, report), (metadata, RepairReport::default()));
}

#[test]
fn a_member_that_does_not_take_what_it_lacks_is_replaced_and_a_newcomer_that_does_not_is_not_named() {
    let quorum = Quorum { ensemble: 2, write: 2, ack: 1 };
    let metadata = ledger(quorum, &[0], 10, 4);
    let mut nodes = Nodes::holding(&metadata, 10);
    nodes.entries.get_mut("n1").expect("a member").remove(&3);
    nodes.refusing = BTreeSet::from([name(1), name(2)]);
    let (repaired, report) = nodes.repair(metadata, table(4, |_| Standing::Writable));
    assert_eq!(repaired.fragments[0].ensemble, [name(0), name(3)]);
    assert_eq!((report.replaced, report.blockers.len()), (1, 0));
    // Now nobody is left.
    nodes.refusing.insert(name(3));
    nodes.entries.get_mut("n3").expect("a member").remove(&4);
    let (same, report) = nodes.repair(repaired.clone(), table(4, |_| Standing::Writable));
    assert_eq!((same, report.blockers), (repaired, BTreeSet::from([Blocker::NoSuccessor(name(3))])));
}

#[test]
fn a_member_that_is_back_is_given_what_it_lacks_and_its_place_is_not_filled() {
    let quorum = Quorum { ensemble: 2, write: 2, ack: 1 };
    let metadata = ledger(quorum, &[0], 1000, 2);
    let mut nodes = Nodes::holding(&metadata, 1000);
    nodes.entries.get_mut("n0").expect("a member").remove(&900);
    nodes.changing = Some((10, table(4, |_| Standing::Writable)));
    let lost = |node| if node == 0 { Standing::Lost } else { Standing::Writable };
    let (same, report) = nodes.repair(metadata.clone(), table(4, lost));
    assert_eq!((same, report.replaced, report.blockers.len()), (metadata, 0, 0));
    assert_eq!(nodes.copied.last(), Some(&(name(0), 900)));
    assert!((10..50).contains(&report.copied), "{report:?}");
}

#[test]
fn a_member_that_is_back_before_anything_is_copied_keeps_its_place() {
    let quorum = Quorum { ensemble: 2, write: 2, ack: 1 };
    let metadata = ledger(quorum, &[0], 10, 2);
    let nodes = Nodes::holding(&metadata, 10);
    let lost = |node| if node == 0 { Standing::Lost } else { Standing::Writable };
    let mut repair = LedgerRepair::new(metadata, 1, table(4, lost), 7);
    let mut asked = repair.take_actions();
    assert!(repair.nodes_changed(table(4, |_| Standing::Writable)));
    asked.extend(repair.take_actions());
    for action in asked {
        let RepairAction::List { node } = action else { panic!("{action:?}") };
        let listing = Listed(nodes.entries.get(&node).cloned().unwrap_or_default());
        repair.listed(&node, Some(Box::new(listing)));
    }
    assert_eq!(repair.take_actions(), [RepairAction::Done(RepairReport::default())]);
}

#[test]
fn what_nobody_has_is_left_as_it_is() {
    let quorum = Quorum { ensemble: 2, write: 2, ack: 1 };
    let metadata = ledger(quorum, &[0, 5], 10, 2);
    let mut nodes = Nodes::holding(&metadata, 10);
    nodes.entries.get_mut("n1").expect("a member").remove(&3);
    let lost = |node| if node == 0 { Standing::Lost } else { Standing::Writable };
    let (repaired, report) = nodes.repair(metadata.clone(), table(4, lost));
    assert_eq!(report.blockers, BTreeSet::from([Blocker::Unreadable(3)]));
    assert_eq!(repaired.fragments[0], metadata.fragments[0], "its place is not taken by one that lacks an entry");
    assert!(!repaired.fragments[1].ensemble.contains(&name(0)));
}

proptest! {
    /// After a repair each member has what it should have, and nothing was copied but what somebody lacked.
    #[test]
    fn members_have_all_and_no_more_is_copied_than_was_missing(
        (write, more) in (2_u32..4, 0_u32..3),
        firsts in prop::collection::btree_set(1_u64..60, 0..4),
        entries in 60_u64..80,
        leaving in prop::collection::btree_map(0_usize..9, prop::bool::ANY, 0..2),
        missed in prop::collection::btree_set((0_usize..9, 0_u64..80), 0..20),
    ) {
        let quorum = Quorum { ensemble: write + more, write, ack: 1 };
        let firsts: Vec<u64> = std::iter::once(0).chain(firsts).collect();
        let metadata = ledger(quorum, &firsts, entries, 9);
        let mut nodes = Nodes::holding(&metadata, entries);
        let standing = |node: usize| match leaving.get(&node) {
            Some(true) => Standing::Lost,
            Some(false) => Standing::Draining,
            None => Standing::Writable,
        };
        // A copy of each entry is left where it can be read.
        for (node, entry) in missed {
            let good = |other: &usize| *other != node && standing(*other) != Standing::Lost
                && nodes.entries.get(&name(*other)).is_some_and(|has| has.contains(&entry));
            if (0..9).any(|other| good(&other)) {
                nodes.entries.entry(name(node)).or_default().remove(&entry);
            }
        }
        let before = nodes.entries.clone();
        let (repaired, report) = nodes.repair(metadata.clone(), table(9, standing));
        prop_assert_eq!(report.blockers, BTreeSet::new());
        prop_assert_eq!(repaired.check(), Ok(()));
        let mut should_be_copied = BTreeSet::new();
        for entry in 0..entries {
            let ensemble = &repaired.fragment_of(entry).ensemble;
            for slot in write_set(quorum, entry).iter() {
                let node = &ensemble[slot];
                prop_assert!(nodes.entries[node].contains(&entry), "{} lacks {}", node, entry);
                prop_assert!((0..9).any(|known| name(known) == *node && !leaving.contains_key(&known)));
                if !before.get(node).is_some_and(|has| has.contains(&entry)) {
                    should_be_copied.insert((node.clone(), entry));
                }
            }
        }
        prop_assert_eq!(nodes.copied.len(), should_be_copied.len(), "nothing is copied twice");
        prop_assert_eq!(nodes.copied.iter().cloned().collect::<BTreeSet<_>>(), should_be_copied);
    }
}
