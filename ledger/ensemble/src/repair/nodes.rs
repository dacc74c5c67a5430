//! The storage nodes as a repair sees them, and where a copy goes.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::NodeId;
use crate::placement::{self, Candidate, Place};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Alive, and takes entries.
    Writable,
    /// Alive; takes nothing but repairs of what it should have.
    ReadOnly,
    /// Alive or not, it is to be emptied: what it has is copied, and may be copied from it.
    Draining,
    /// Not there, but not for long: it is waited for.
    Away,
    /// Given up.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    pub place: Place,
    pub standing: Standing,
    /// Bytes that are free on its disk; `None` if it did not say.
    pub free_bytes: Option<u64>,
}

/// The nodes that are known at one time. A node that is not among them is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeTable {
    nodes: BTreeMap<NodeId, NodeView>,
}

impl FromIterator<(NodeId, NodeView)> for NodeTable {
    fn from_iter<I: IntoIterator<Item = (NodeId, NodeView)>>(nodes: I) -> Self {
        Self { nodes: nodes.into_iter().collect() }
    }
}

impl NodeTable {
    pub fn standing(&self, node: &NodeId) -> Standing {
        self.nodes.get(node).map_or(Standing::Lost, |view| view.standing)
    }

    /// Whether what it has must be somewhere else.
    pub fn must_leave(&self, node: &NodeId) -> bool {
        matches!(self.standing(node), Standing::Draining | Standing::Lost)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &NodeView)> {
        self.nodes.iter()
    }

    fn place(&self, node: &NodeId) -> Option<&Place> {
        self.nodes.get(node).map(|view| &view.place)
    }

    /// How many of these nodes are in each zone; those that nobody knows are in none.
    fn zones<'a>(&'a self, nodes: impl IntoIterator<Item = &'a NodeId>) -> BTreeMap<&'a Place, usize> {
        let mut zones = BTreeMap::new();
        for place in nodes.into_iter().filter_map(|node| self.place(node)) {
            *zones.entry(place).or_default() += 1;
        }
        zones
    }

    /// Nodes that may take the place of a member.
    fn candidates<'a>(
        &'a self,
        ensemble: &'a [NodeId],
        avoid: &'a BTreeSet<NodeId>,
    ) -> impl Iterator<Item = (&'a NodeId, &'a NodeView)> {
        self.nodes.iter().filter(|(node, view)| {
            view.standing == Standing::Writable && !ensemble.contains(node) && !avoid.contains(*node)
        })
    }

    /// A node for the place `slot`, as [`placement::next`] finds it among those that take entries; members that must leave count
    /// for nothing. `None` if there is nobody.
    pub fn successor(&self, ensemble: &[NodeId], slot: usize, avoid: &BTreeSet<NodeId>, random: u64) -> Option<NodeId> {
        let stays = |node: &NodeId| self.place(node).filter(|_| !self.must_leave(node));
        let places: Vec<Option<&Place>> = ensemble.iter().map(stays).collect();
        let candidates: Vec<Candidate> = self
            .candidates(ensemble, avoid)
            .map(|(node, view)| Candidate { node, place: &view.place, free_bytes: view.free_bytes })
            .collect();
        placement::next(&places, slot, ensemble.len(), &candidates, random).cloned()
    }

    /// A place whose node shares its zone with another member, while a node of a zone without any could have it. Nothing is
    /// moved while a member is not there: every copy may be needed.
    pub fn crowded(&self, ensemble: &[NodeId], avoid: &BTreeSet<NodeId>) -> Option<usize> {
        let is_there = |node: &NodeId| matches!(self.standing(node), Standing::Writable | Standing::ReadOnly);
        if !ensemble.iter().all(is_there) {
            return None;
        }
        let zones = self.zones(ensemble);
        self.candidates(ensemble, avoid).find(|(_, view)| !zones.contains_key(&view.place))?;
        let (most, count) = zones.iter().max_by_key(|(_, count)| **count)?;
        let is_in_it = |node: &NodeId| self.place(node) == Some(*most);
        (*count > 1).then(|| ensemble.iter().rposition(is_in_it).expect("the zone has members"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(zone: &str) -> Place {
        Place { region: "r".to_owned(), zone: zone.to_owned() }
    }

    fn table(nodes: &[(&str, &str, Standing, u64)]) -> NodeTable {
        let view = |zone: &str, standing, free| NodeView { place: place(zone), standing, free_bytes: Some(free << 30) };
        nodes.iter().map(|(node, zone, standing, free)| ((*node).to_owned(), view(zone, *standing, *free))).collect()
    }

    fn names(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_successor_is_in_a_zone_that_the_others_are_not_in() {
        use Standing::{Draining, Lost, ReadOnly, Writable};
        let table = table(&[
            ("a", "1", Writable, 9),
            ("b", "2", Writable, 9),
            ("c", "3", Lost, 9),
            ("d", "1", Writable, 90),
            ("e", "3", Writable, 1),
            ("f", "3", ReadOnly, 90),
            ("g", "3", Draining, 90),
        ]);
        let ensemble = names(&["a", "b", "c"]);
        for random in 0..100 {
            assert_eq!(table.successor(&ensemble, 2, &BTreeSet::new(), random), Some("e".to_owned()));
        }
        let avoid = BTreeSet::from(["e".to_owned()]);
        assert_eq!(table.successor(&ensemble, 2, &avoid, 7), Some("d".to_owned()), "rather a crowded zone than nobody");
        let avoid = BTreeSet::from(["e".to_owned(), "d".to_owned()]);
        assert_eq!(table.successor(&ensemble, 2, &avoid, 7), None);
    }

    #[test]
    fn more_space_gets_more() {
        use Standing::{Lost, Writable};
        let table = table(&[("a", "1", Lost, 1), ("b", "1", Writable, 30), ("c", "2", Writable, 10)]);
        let ensemble = names(&["a"]);
        let mut chosen = BTreeMap::<NodeId, u64>::new();
        // Any odd number goes round all remainders.
        for n in 0..40_000_u64 {
            let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *chosen.entry(table.successor(&ensemble, 0, &BTreeSet::new(), random).expect("two")).or_default() += 1;
        }
        assert!((29_000..31_000).contains(&chosen["b"]), "{chosen:?}");
    }

    #[test]
    fn members_that_share_a_zone_are_moved_when_there_is_another() {
        use Standing::{Away, ReadOnly, Writable};
        let all = [("a", "1", Writable, 1), ("b", "1", Writable, 1), ("c", "2", ReadOnly, 1), ("d", "2", Writable, 1)];
        let two_zones = table(&all);
        assert_eq!(two_zones.crowded(&names(&["a", "b", "c"]), &BTreeSet::new()), None, "there are no more zones");
        assert_eq!(two_zones.crowded(&names(&["a", "b"]), &BTreeSet::new()), Some(1));
        let three_zones = table(&[&all[..], &[("e", "3", Writable, 1)]].concat());
        assert_eq!(three_zones.crowded(&names(&["b", "c", "a"]), &BTreeSet::new()), Some(2));
        assert_eq!(three_zones.crowded(&names(&["b", "c", "a"]), &BTreeSet::from(["e".to_owned()])), None);
        let one_is_away = table(&[&all[..2], &[("c", "2", Away, 1), ("e", "3", Writable, 1)]].concat());
        assert_eq!(one_is_away.crowded(&names(&["b", "c", "a"]), &BTreeSet::new()), None);
    }

    proptest! {
        /// Whoever is moved out of a crowded zone finds one that is not, so that moving comes to an end.
        #[test]
        fn moving_ends_with_as_many_zones_as_there_can_be(
            zones in prop::collection::vec(0_u8..4, 3..9), size in 1_usize..4, random: u64
        ) {
            let view = |zone: &u8| NodeView { place: place(&zone.to_string()), standing: Standing::Writable, free_bytes: None };
            let table: NodeTable = zones.iter().enumerate().map(|(n, zone)| (format!("n{n}"), view(zone))).collect();
            let mut ensemble: Vec<NodeId> = (0..size).map(|n| format!("n{n}")).collect();
            let mut moves = 0;
            while let Some(slot) = table.crowded(&ensemble, &BTreeSet::new()) {
                ensemble[slot] = table.successor(&ensemble, slot, &BTreeSet::new(), random).expect("a free zone");
                moves += 1;
                prop_assert!(moves <= size);
            }
            let all = zones.iter().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(table.zones(&ensemble).len(), all.min(size));
        }
    }
}
