//! Since when nodes are missed, and which of them are given up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::metadata::NodeId;

/// What one observer has seen of nodes. Times are of its own clock, from whatever beginning.
///
/// A node is given up when it was missing at every look during the grace period. Looks that failed say nothing: time during
/// which nobody could look does not count, as after metadata were away every lease has expired and every node is well. Nor does
/// time in which nobody did, because ledgers were looked at for long.
#[derive(Debug)]
pub struct Absences {
    grace: Duration,
    missing_since: BTreeMap<NodeId, Duration>,
    looked_at: Option<Duration>,
}

impl Absences {
    pub fn new(grace: Duration) -> Self {
        Self { grace, missing_since: BTreeMap::new(), looked_at: None }
    }

    /// The nodes that are missing now. Answers those that are given up.
    pub fn look(&mut self, now: Duration, missing: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        if self.looked_at.is_some_and(|before| now.saturating_sub(before) > self.grace / 2) {
            self.missing_since.clear();
        }
        self.looked_at = Some(now);
        self.missing_since.retain(|node, _| missing.contains(node));
        for node in missing {
            self.missing_since.entry(node.clone()).or_insert(now);
        }
        let is_over = |since: &Duration| now.saturating_sub(*since) >= self.grace;
        self.missing_since.iter().filter(|(_, since)| is_over(since)).map(|(node, _)| node.clone()).collect()
    }

    /// Nobody could look: everything that is missing is missed anew from the next look on.
    pub fn could_not_look(&mut self) {
        self.missing_since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_node_is_given_up_when_it_was_missing_all_the_time() {
        let mut absences = Absences::new(Duration::from_secs(60));
        let at = Duration::from_secs;
        assert_eq!(absences.look(at(0), &nodes(&["a", "b"])), nodes(&[]));
        assert_eq!(absences.look(at(30), &nodes(&["a"])), nodes(&[]));
        assert_eq!(absences.look(at(60), &nodes(&["a", "b"])), nodes(&["a"]));
        assert_eq!(absences.look(at(90), &nodes(&["b"])), nodes(&[]));
        assert_eq!(absences.look(at(119), &nodes(&["b"])), nodes(&[]));
        assert_eq!(absences.look(at(120), &nodes(&["b"])), nodes(&["b"]));
    }

    #[test]
    fn time_in_which_nobody_could_look_does_not_count() {
        let mut absences = Absences::new(Duration::from_secs(60));
        let at = Duration::from_secs;
        absences.look(at(0), &nodes(&["a"]));
        absences.could_not_look();
        assert_eq!(absences.look(at(600), &nodes(&["a", "b", "c"])), nodes(&[]));
        assert_eq!(absences.look(at(630), &nodes(&["c"])), nodes(&[]));
        assert_eq!(absences.look(at(660), &nodes(&["c"])), nodes(&["c"]));
    }
    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let mut absences = Absences::new(Duration::from_secs(60));
        let at = Duration::from_secs;
        absences.look(at(0), &nodes(&["a"]));
        assert_eq!(absences.look(at(600), &nodes(&["a"])), nodes(&[]), "it may have been there meanwhile");
        for now in [620, 640] {
            assert_eq!(absences.look(at(now), &nodes(&["a"])), nodes(&[]));
        }
        assert_eq!(absences.look(at(660), &nodes(&["a"])), nodes(&["a"]));
    }
}
