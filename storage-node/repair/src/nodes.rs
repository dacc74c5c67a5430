//! The nodes that metadata know, as a repair sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use geminga_ensemble::NodeId;
use geminga_ensemble::placement::Place;
use geminga_ensemble::repair::{NodeTable, NodeView, Standing};
use geminga_metadata::StorageNodeStatus;
use geminga_replicated_ledgers::ReplicatedLedgers;
use tokio::sync::Mutex;

/// How long nodes' free space is believed.
const FREE_SPACE_FOR: Duration = Duration::from_secs(30);

/// `lost`: those that are given up, as long as they are not back.
pub fn table(statuses: &[StorageNodeStatus], lost: &BTreeSet<NodeId>, free: &BTreeMap<NodeId, u64>) -> NodeTable {
    let view = |status: &StorageNodeStatus| NodeView {
        place: Place { region: status.record.region.clone(), zone: status.record.zone.clone() },
        standing: standing(status, lost),
        free_bytes: free.get(&status.id).copied(),
    };
    statuses.iter().map(|status| (status.id.clone(), view(status))).collect()
}

fn standing(status: &StorageNodeStatus, lost: &BTreeSet<NodeId>) -> Standing {
    if !status.is_alive && lost.contains(&status.id) {
        Standing::Lost
    } else if status.decommissioned_ms.is_some() {
        Standing::Draining
    } else if !status.is_alive {
        Standing::Away
    } else if status.record.read_only {
        Standing::ReadOnly
    } else {
        Standing::Writable
    }
}

/// Nodes' free space, asked for now and then.
#[derive(Default)]
pub struct FreeSpace {
    known: Mutex<Option<(Instant, BTreeMap<NodeId, u64>)>>,
}

impl FreeSpace {
    pub async fn get(&self, ledgers: &ReplicatedLedgers, statuses: &[StorageNodeStatus]) -> BTreeMap<NodeId, u64> {
        let mut known = self.known.lock().await;
        if let Some((at, free)) = &*known
            && at.elapsed() < FREE_SPACE_FOR
        {
            return free.clone();
        }
        let mut free = BTreeMap::new();
        for status in statuses.iter().filter(|status| status.is_alive && !status.record.read_only) {
            if let Some(bytes) = ledgers.free_space(&status.id).await {
                free.insert(status.id.clone(), bytes);
            }
        }
        *known = Some((Instant::now(), free.clone()));
        free
    }
}

#[cfg(test)]
mod tests {
    use geminga_metadata::StorageNodeRecord;

    use super::*;

    #[test]
    fn a_node_that_is_back_is_not_lost() {
        let status = |is_alive, read_only, decommissioned_ms| StorageNodeStatus {
            lease_ends_ms: 0,
            id: "a".to_owned(),
            record: StorageNodeRecord {
                address: "x:1".to_owned(),
                zone: "z".to_owned(),
                region: "r".to_owned(),
                read_only,
                control: None,
            },
            version: 1,
            is_alive,
            decommissioned_ms,
        };
        let lost = BTreeSet::from(["a".to_owned()]);
        let none = BTreeSet::new();
        assert_eq!(standing(&status(false, false, None), &lost), Standing::Lost);
        assert_eq!(standing(&status(false, false, Some(1)), &lost), Standing::Lost);
        assert_eq!(standing(&status(false, false, None), &none), Standing::Away);
        assert_eq!(standing(&status(false, false, Some(1)), &none), Standing::Draining);
        assert_eq!(standing(&status(true, false, None), &lost), Standing::Writable);
        assert_eq!(standing(&status(true, true, None), &lost), Standing::ReadOnly);
        assert_eq!(standing(&status(true, false, Some(1)), &lost), Standing::Draining);
        let empty = table(&[], &none, &BTreeMap::new());
        assert_eq!(empty.standing(&"a".to_owned()), Standing::Lost, "whoever is not registered is lost");
    }
}
