//! How many entries of a closed ledger each node should have.

use std::collections::BTreeMap;

use geminga_ensemble::{LedgerMetadata, LedgerState, NodeId, distribution::write_order};

/// By node; none while the ledger has no end, or if its metadata are not sound.
pub(crate) fn expected(ledger: &LedgerMetadata) -> Option<BTreeMap<&NodeId, u64>> {
    let LedgerState::Closed { entries, .. } = ledger.state else { return None };
    ledger.check().ok()?;
    let mut counts = BTreeMap::new();
    for (place, fragment) in ledger.fragments.iter().enumerate() {
        let next = ledger.fragments.get(place + 1).map_or(entries, |next| next.first_entry.min(entries));
        // Entries go round the ensemble: each residue stands for all entries that have it.
        for residue in 0..u64::from(ledger.quorum.ensemble) {
            let before =
                |end: u64| (end + u64::from(ledger.quorum.ensemble) - 1 - residue) / u64::from(ledger.quorum.ensemble);
            let count = before(next).saturating_sub(before(fragment.first_entry));
            for slot in write_order(ledger.quorum, residue) {
                *counts.entry(&fragment.ensemble[slot]).or_default() += count;
            }
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use geminga_ensemble::{Fragment, Quorum};

    use super::*;

    /// Counted one by one.
    #[test]
    fn counts_are_those_of_the_entries() {
        let nodes = |names: [&str; 3]| names.map(str::to_owned).to_vec();
        for (entries, second, write) in [(0, 4, 2), (10, 4, 2), (11, 5, 3), (23, 7, 1), (4, 9, 2)] {
            let fragments = vec![
                Fragment { first_entry: 0, ensemble: nodes(["a", "b", "c"]) },
                Fragment { first_entry: second, ensemble: nodes(["a", "d", "c"]) },
            ];
            let ledger = LedgerMetadata {
                quorum: Quorum { ensemble: 3, write, ack: 1 },
                state: LedgerState::Closed { entries, length: 0 },
                fragments,
                properties: BTreeMap::new(),
            };
            let mut counted = BTreeMap::new();
            for entry in 0..entries {
                let fragment = &ledger.fragments[usize::from(entry >= second)];
                for slot in write_order(ledger.quorum, entry) {
                    *counted.entry(&fragment.ensemble[slot]).or_default() += 1;
                }
            }
            let mut expected = expected(&ledger).expect("it is closed");
            expected.retain(|_, count| *count > 0);
            assert_eq!(expected, counted);
        }
    }
}
