//! Ledgers in memory, for tests of the layers above: nothing survives the process.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::{AppendClass, AppendDone, EntryParts, LedgerClient, LedgerError, Pending, StoredEntry};

#[derive(Default)]
struct Ledger {
    entries: BTreeMap<u64, Bytes>,
    fenced: bool,
}

/// See the module's head. Clones share the ledgers.
#[derive(Clone, Default)]
pub struct MemoryLedgers {
    ledgers: Arc<Mutex<BTreeMap<u64, Ledger>>>,
}

impl LedgerClient for MemoryLedgers {
    fn append(&self, ledger_id: u64, first_entry: u64, entries: Vec<EntryParts>, _: AppendClass, done: AppendDone) {
        let result = {
            let mut ledgers = self.ledgers.lock();
            let ledger = ledgers.entry(ledger_id).or_default();
            if ledger.fenced {
                Err(LedgerError::Fenced(ledger_id))
            } else {
                for (entry_id, parts) in (first_entry..).zip(entries) {
                    let joined: BytesMut = parts.iter().flatten().copied().collect();
                    ledger.entries.insert(entry_id, joined.freeze());
                }
                Ok(())
            }
        };
        done(result);
    }

    fn read(&self, ledger_id: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>> {
        let ledgers = self.ledgers.lock();
        let result = match ledgers.get(&ledger_id) {
            None => Err(LedgerError::NoSuchLedger(ledger_id)),
            Some(ledger) => {
                let mut bytes = 0;
                let mut found = Vec::new();
                for (entry_id, data) in ledger.entries.range(first..=last) {
                    if bytes >= max_bytes && !found.is_empty() {
                        break;
                    }
                    bytes += data.len();
                    found.push(StoredEntry { entry_id: *entry_id, data: data.clone() });
                }
                match found.is_empty() {
                    true => Err(LedgerError::NoSuchEntry { ledger_id, entry_id: first }),
                    false => Ok(found),
                }
            }
        };
        Box::pin(std::future::ready(result))
    }

    fn recover(&self, ledger_id: u64) -> Pending<Option<u64>> {
        let mut ledgers = self.ledgers.lock();
        let ledger = ledgers.entry(ledger_id).or_default();
        ledger.fenced = true;
        let last = ledger.entries.last_key_value().map(|(entry_id, _)| *entry_id);
        Box::pin(std::future::ready(Ok(last)))
    }

    fn delete(&self, ledger_ids: Vec<u64>) -> Pending<()> {
        let mut ledgers = self.ledgers.lock();
        for id in ledger_ids {
            ledgers.remove(&id);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn size(&self, ledger_id: u64) -> u64 {
        self.ledgers.lock().get(&ledger_id).map_or(0, |ledger| ledger.entries.values().map(|e| e.len() as u64).sum())
    }
}
