//! Which storage node gets a place in an ensemble: so that those that answer for an entry do not fail together.

use std::collections::BTreeMap;

use crate::metadata::{NodeId, Quorum};

/// Where a storage node stands. Zones of different regions are different zones, whatever they are called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub region: String,
    /// Nodes of one zone fail together.
    pub zone: String,
}

/// A node that could be taken.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub node: &'a NodeId,
    pub place: &'a Place,
    /// Bytes that are free on its disk; `None` if it did not say.
    pub free_bytes: Option<u64>,
}

/// How many members share something with a place, the most important first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Crowd {
    /// The zone, and an entry.
    entries_in_zone: usize,
    zone: usize,
    region: usize,
}

/// The candidate for the place `slot` of an ensemble (`None`: a place that nobody has): one that shares its zone with as few
/// members that get the same entries as can be, then with as few members, then its region; and among those the likelier the more
/// space it has. `random` is any number, the same for the same choice. `None` if there is no candidate.
pub fn next<'a>(
    ensemble: &[Option<&Place>],
    slot: usize,
    write_quorum: usize,
    candidates: &[Candidate<'a>],
    random: u64,
) -> Option<&'a NodeId> {
    let others = || ensemble.iter().enumerate().filter(|(at, _)| *at != slot);
    let share_entries = |at: usize| {
        let distance = slot.abs_diff(at);
        distance.min(ensemble.len() - distance) < write_quorum
    };
    let crowd = |place: &Place| Crowd {
        entries_in_zone: others().filter(|(at, member)| **member == Some(place) && share_entries(*at)).count(),
        zone: others().filter(|(_, member)| **member == Some(place)).count(),
        region: others().filter(|(_, member)| member.is_some_and(|member| member.region == place.region)).count(),
    };
    let least = candidates.iter().map(|candidate| crowd(candidate.place)).min()?;
    let best: Vec<&Candidate<'a>> = candidates.iter().filter(|candidate| crowd(candidate.place) == least).collect();
    // In MiB, so that sums stay far from overflowing; whoever did not say counts as the fullest.
    let fullest = best.iter().filter_map(|candidate| candidate.free_bytes).min().unwrap_or(0);
    let weight = |candidate: &Candidate| u128::from(candidate.free_bytes.unwrap_or(fullest) >> 20) + 1;
    let total: u128 = best.iter().map(|candidate| weight(candidate)).sum();
    let mut ticket = u128::from(random) % total;
    for candidate in best {
        match ticket.checked_sub(weight(candidate)) {
            Some(rest) => ticket = rest,
            None => return Some(candidate.node),
        }
    }
    None
}

/// The fewest zones that an ack quorum can be in, whichever nodes answer first. Members whose place is not known, as those that
/// nobody has heard of for long, answer nothing.
pub fn zones_of_ack_quorum(ensemble: &[Option<&Place>], quorum: Quorum) -> usize {
    let of_write_set = |first: usize| {
        let mut zones = BTreeMap::<&Place, u32>::new();
        for nth in 0..quorum.write as usize {
            if let Some(place) = ensemble[(first + nth) % ensemble.len()] {
                *zones.entry(place).or_default() += 1;
            }
        }
        let mut crowds: Vec<u32> = zones.into_values().collect();
        crowds.sort_unstable_by(|a, b| b.cmp(a));
        let mut missing = quorum.ack;
        let zones = crowds.into_iter().take_while(|crowd| {
            let is_needed = missing > 0;
            missing = missing.saturating_sub(*crowd);
            is_needed
        });
        zones.count()
    };
    (0..ensemble.len()).map(of_write_set).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(region: u8, zone: u8) -> Place {
        Place { region: region.to_string(), zone: zone.to_string() }
    }

    /// Fills an ensemble from candidates, each of which is taken once.
    fn fill(places: &[Place], quorum: Quorum, random: u64) -> Vec<Option<&Place>> {
        let ids: Vec<NodeId> = (0..places.len()).map(|n| n.to_string()).collect();
        let mut free: Vec<usize> = (0..places.len()).collect();
        let mut ensemble = vec![None; quorum.ensemble as usize];
        for slot in 0..ensemble.len() {
            let candidates: Vec<Candidate> =
                free.iter().map(|&n| Candidate { node: &ids[n], place: &places[n], free_bytes: None }).collect();
            let Some(node) = next(&ensemble, slot, quorum.write as usize, &candidates, random) else { break };
            let taken: usize = node.parse().expect("a number");
            free.retain(|&n| n != taken);
            ensemble[slot] = Some(&places[taken]);
        }
        ensemble
    }

    #[test]
    fn regions_are_spread_over_where_zones_are_alike() {
        let places: Vec<Place> =
            [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)].map(|(region, zone)| place(region, zone)).into();
        for random in 0..50 {
            let ensemble = fill(&places, Quorum { ensemble: 2, write: 2, ack: 2 }, random);
            assert_ne!(ensemble[0].expect("filled").region, ensemble[1].expect("filled").region);
        }
    }

    #[test]
    fn entries_are_striped_over_zones() {
        let places: Vec<Place> = [0, 0, 1, 1].map(|zone| place(0, zone)).into();
        let quorum = Quorum { ensemble: 4, write: 2, ack: 2 };
        for random in 0..50 {
            assert_eq!(zones_of_ack_quorum(&fill(&places, quorum, random), quorum), 2);
        }
    }

    fn quorums() -> impl Strategy<Value = Quorum> {
        (1_u32..6)
            .prop_flat_map(|ensemble| (Just(ensemble), 1..=ensemble))
            .prop_flat_map(|(ensemble, write)| (Just(ensemble), Just(write), 1..=write))
            .prop_map(|(ensemble, write, ack)| Quorum { ensemble, write, ack })
    }

    proptest! {
        #[test]
        fn the_fewest_zones_are_those_of_the_worst_answers(
            quorum in quorums(), zones in prop::collection::vec(0_u8..3, 6)
        ) {
            let places: Vec<Place> = zones.iter().map(|zone| place(0, *zone)).collect();
            let size = quorum.ensemble as usize;
            let ensemble: Vec<Option<&Place>> = places[..size].iter().map(Some).collect();
            let mut fewest = usize::MAX;
            for first in 0..size {
                for answers in 0_u32..1 << quorum.write {
                    if answers.count_ones() == quorum.ack {
                        let who = (0..quorum.write as usize).filter(|nth| answers >> nth & 1 == 1);
                        let zones: std::collections::BTreeSet<u8> = who.map(|nth| zones[(first + nth) % size]).collect();
                        fewest = fewest.min(zones.len());
                    }
                }
            }
            prop_assert_eq!(zones_of_ack_quorum(&ensemble, quorum), fewest);
        }

        #[test]
        fn with_enough_zones_no_two_members_share_one(
            size in 1_u32..5, zones in prop::collection::vec((0_u8..2, 0_u8..4), 1..12), random: u64
        ) {
            let places: Vec<Place> = zones.iter().map(|(region, zone)| place(*region, *zone)).collect();
            let different: std::collections::BTreeSet<&Place> = places.iter().collect();
            let quorum = Quorum { ensemble: size, write: size, ack: size };
            let ensemble = fill(&places, quorum, random);
            let chosen: std::collections::BTreeSet<&Place> = ensemble.iter().flatten().copied().collect();
            prop_assert_eq!(chosen.len(), different.len().min(size as usize));
        }
    }
}
