//! What metadata say of a ledger.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::distribution::ENSEMBLE_MAX;

/// A property of a ledger that is still to be begun.
const ANNOUNCED: &str = "announced";

/// The lasting name of a storage node, whatever its address is.
pub type NodeId = String;

/// How many nodes a ledger is spread over, how many have each entry, and how many must have it before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    pub ensemble: u32,
    pub write: u32,
    pub ack: u32,
}

impl Quorum {
    pub fn is_sound(self) -> bool {
        1 <= self.ack && self.ack <= self.write && self.write <= self.ensemble && self.ensemble <= ENSEMBLE_MAX
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerState {
    Open,
    /// Somebody fences it and looks for its end. Its writer must not change the metadata any more.
    InRecovery,
    /// It has these entries and never others; `length` is their payload in bytes.
    Closed {
        entries: u64,
        length: u64,
    },
}

/// The nodes that have the entries from one on, up to the next fragment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_entry: u64,
    pub ensemble: Vec<NodeId>,
}

/// Most fragments are the first, and there are millions of ledgers.
fn is_zero(first_entry: &u64) -> bool {
    *first_entry == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerMetadata {
    pub quorum: Quorum,
    pub state: LedgerState,
    /// In order; the first begins at entry 0.
    pub fragments: Vec<Fragment>,
    /// What the ledger is for: from this, lists of ledgers can be made anew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid ledger metadata: {0}")]
pub struct InvalidMetadata(pub &'static str);

impl LedgerMetadata {
    /// A ledger that nothing was written to yet.
    pub fn new(quorum: Quorum, ensemble: Vec<NodeId>, properties: BTreeMap<String, String>) -> Self {
        let fragments = vec![Fragment { first_entry: 0, ensemble }];
        Self { quorum, state: LedgerState::Open, fragments, properties }
    }

    /// Of a ledger that a list names, and that was not begun yet. To whoever does not know of announcements it is a closed one without
    /// entries, which is what becomes of it if it is never begun.
    pub fn announced(quorum: Quorum) -> Self {
        let mut metadata = Self::never_begun(quorum);
        metadata.properties.insert(ANNOUNCED.to_owned(), String::new());
        metadata
    }

    pub fn is_announced(&self) -> bool {
        self.properties.contains_key(ANNOUNCED)
    }

    /// Of a ledger that nobody may begin any more.
    pub fn never_begun(quorum: Quorum) -> Self {
        let ensemble = (0..quorum.ensemble).map(|n| format!("none-{n}")).collect();
        let mut metadata = Self::new(quorum, ensemble, BTreeMap::new());
        metadata.state = LedgerState::Closed { entries: 0, length: 0 };
        metadata
    }

    /// Metadata that are not sound must not be acted on.
    pub fn check(&self) -> Result<(), InvalidMetadata> {
        if !self.quorum.is_sound() {
            return Err(InvalidMetadata("its quorum cannot be reached"));
        }
        if self.fragments.first().is_none_or(|fragment| fragment.first_entry != 0) {
            return Err(InvalidMetadata("no fragment begins at entry 0"));
        }
        if !self.fragments.is_sorted_by(|one, next| one.first_entry < next.first_entry) {
            return Err(InvalidMetadata("its fragments are not in order"));
        }
        let of_nodes = |fragment: &Fragment| {
            let nodes: BTreeSet<&NodeId> = fragment.ensemble.iter().collect();
            nodes.len() == fragment.ensemble.len() && nodes.len() == self.quorum.ensemble as usize
        };
        if !self.fragments.iter().all(of_nodes) {
            return Err(InvalidMetadata("a fragment's ensemble is not so many different nodes"));
        }
        Ok(())
    }

    pub fn last_fragment(&self) -> &Fragment {
        self.fragments.last().expect("checked metadata have a fragment")
    }

    /// The fragment that has the entry, or will.
    pub fn fragment_of(&self, entry: u64) -> &Fragment {
        let after = self.fragments.partition_point(|fragment| fragment.first_entry <= entry);
        &self.fragments[after.saturating_sub(1)]
    }

    /// From `first_entry` on, the nodes are these. Fragments before it are never touched.
    pub(crate) fn set_ensemble_from(&mut self, first_entry: u64, ensemble: Vec<NodeId>) {
        let last = self.fragments.last_mut().expect("checked metadata have a fragment");
        assert!(first_entry >= last.first_entry, "a finished fragment is never changed by a writer");
        if last.first_entry == first_entry {
            last.ensemble = ensemble;
        } else {
            self.fragments.push(Fragment { first_entry, ensemble });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn metadata() -> LedgerMetadata {
        LedgerMetadata::new(Quorum { ensemble: 3, write: 2, ack: 2 }, nodes(&["a", "b", "c"]), BTreeMap::new())
    }

    #[test]
    fn a_change_of_the_ensemble_begins_a_fragment_or_replaces_an_empty_one() {
        let mut ledger = metadata();
        ledger.set_ensemble_from(0, nodes(&["a", "b", "d"]));
        assert_eq!(ledger.fragments.len(), 1);
        ledger.set_ensemble_from(7, nodes(&["a", "e", "d"]));
        assert_eq!(ledger.check(), Ok(()));
        assert_eq!(ledger.fragment_of(6).ensemble, nodes(&["a", "b", "d"]));
        assert_eq!(ledger.fragment_of(7).ensemble, nodes(&["a", "e", "d"]));
    }

    /// As in metadata: millions of ledgers have one fragment, whose first entry need not be said.
    #[test]
    fn the_first_fragment_is_written_without_its_first_entry() {
        let mut ledger = metadata();
        ledger.set_ensemble_from(7, nodes(&["a", "b", "d"]));
        let written = serde_json::to_string(&ledger.fragments).unwrap();
        assert_eq!(written, r#"[{"ensemble":["a","b","c"]},{"first_entry":7,"ensemble":["a","b","d"]}]"#);
        assert_eq!(serde_json::from_str::<Vec<Fragment>>(&written).unwrap(), ledger.fragments);
    }

    #[test]
    fn unsound_metadata_are_refused() {
        let mut doubled = metadata();
        doubled.fragments[0].ensemble = nodes(&["a", "b", "a"]);
        assert!(doubled.check().is_err());
        let mut late = metadata();
        late.fragments[0].first_entry = 1;
        assert!(late.check().is_err());
        let mut greedy = metadata();
        greedy.quorum.ack = 3;
        assert!(greedy.check().is_err());
    }
}
