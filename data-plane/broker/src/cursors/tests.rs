use std::sync::atomic::{AtomicBool, AtomicU32};

use geminga_ledger_client::{AppendDone, EntryParts, MemoryLedgers, Pending, StoredEntry};
use geminga_metadata::{Disturbance, DisturbedStore, MemoryStore, MetadataStore, Op};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
/// So much fills a ledger of the log.
const A_LEDGER: usize = 64 << 20;

/// Metadata in memory that refuse to save the records of cursor logs so many times.
#[derive(Default)]
struct Refusing {
    refusals: AtomicU32,
    /// A record was saved together with a note of garbage.
    noted: AtomicBool,
}

impl Disturbance for Refusing {
    async fn commit(&self, stored: &MemoryStore, ops: Vec<Op>) -> std::result::Result<Vec<u64>, MetadataError> {
        let puts = |prefix: &str| ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with(prefix)));
        if puts("cursor-logs/") {
            let less = |left: u32| left.checked_sub(1);
            if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
                return Err(MetadataError::Unavailable("it is refused".into()));
            }
            self.noted.fetch_or(puts("garbage/"), Ordering::Relaxed);
        }
        stored.commit(ops).await
    }
}

/// Ledgers in memory that may not be deleted, as when the process ends before that.
struct Kept {
    stored: MemoryLedgers,
    deletes: bool,
}

impl LedgerClient for Kept {
    fn append(&self, ledger: u64, first: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone) {
        self.stored.append(ledger, first, entries, class, done);
    }

    fn read(&self, ledger: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>> {
        self.stored.read(ledger, first, last, max_bytes)
    }

    fn recover(&self, ledger: u64) -> Pending<Option<u64>> {
        self.stored.recover(ledger)
    }

    fn delete(&self, ledgers: Vec<u64>) -> Pending<()> {
        match self.deletes {
            true => self.stored.delete(ledgers),
            false => Box::pin(async { Err(LedgerError::Closed) }),
        }
    }

    fn size(&self, ledger: u64) -> u64 {
        self.stored.size(ledger)
    }
}

async fn open(store: &Arc<DisturbedStore<Refusing>>, deletes: bool) -> (Metadata, Arc<Cursors>) {
    let metadata = Metadata::new(store.clone());
    let ledgers = Arc::new(Kept { stored: MemoryLedgers::default(), deletes });
    let opened = Cursors::open("t/n/b".into(), metadata.clone(), ledgers, PendingAcks::new(u64::MAX)).await;
    (metadata, opened.expect("there is nothing yet"))
}

async fn put(cursors: &Cursors, key: u64, bytes: usize) {
    cursors.put_blob(key, vec![7; bytes].into(), Box::new(|_| ()));
    let flushed = tokio::time::timeout(PATIENCE, cursors.flushed()).await;
    flushed.expect("it becomes durable in time").expect("nobody else has the log");
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// Nothing waits when the record is refused, so that nobody but the log itself tries it again.
#[tokio::test]
async fn the_log_goes_on_when_the_record_of_its_next_ledger_could_not_be_saved() {
    let store = Arc::new(DisturbedStore::<Refusing>::default());
    let (_, cursors) = open(&store, true).await;
    put(&cursors, 1, 10).await;
    let first = cursors.ledger_ids();
    // Often enough that what was to be tried again for the sake of the bytes is over.
    store.refusals.store(4, Ordering::Relaxed);
    put(&cursors, 1, A_LEDGER).await;
    eventually("the record is refused", async || store.refusals.load(Ordering::Relaxed) == 0).await;
    put(&cursors, 2, 10).await;
    assert!(!cursors.ledger_ids().ends_with(&first));
}

#[tokio::test]
async fn a_ledger_that_goes_is_noted_with_the_record_that_drops_it() {
    for deletes in [true, false] {
        let store = Arc::new(DisturbedStore::<Refusing>::default());
        let (metadata, cursors) = open(&store, deletes).await;
        put(&cursors, 1, 10).await;
        let first = cursors.ledger_ids()[0];
        put(&cursors, 1, A_LEDGER).await;
        eventually("the first ledger goes", async || !cursors.ledger_ids().contains(&first)).await;
        let left = if deletes { vec![] } else { vec![vec![first]] };
        eventually("it is forgotten once it is deleted", async || {
            store.noted.load(Ordering::Relaxed) && metadata.list_garbage(10).await.expect("read") == left
        })
        .await;
    }
}

#[tokio::test]
async fn a_settled_log_is_not_changed_by_what_was_begun_before() {
    let store = Arc::new(DisturbedStore::<Refusing>::default());
    let (metadata, cursors) = open(&store, true).await;
    assert!(!cursors.is_in_doubt());
    // Of one that has no record yet, too.
    Cursors::settle("t/n/b", &metadata).await.unwrap();
    let first = metadata.put_cursor_log("t/n/b", &Vec::<Listed>::new(), None, &[], None).await;
    assert!(first.unwrap_err().is_conflict());

    let (metadata, cursors) = open(&store, true).await;
    put(&cursors, 1, 10).await;
    assert!(!cursors.is_in_doubt(), "its record is written");
    let ledgers = cursors.ledger_ids();
    let version = cursors.record_version();
    Cursors::settle("t/n/b", &metadata).await.unwrap();
    let late = metadata.put_cursor_log("t/n/b", &Vec::<Listed>::new(), version, &[], None).await;
    assert!(late.unwrap_err().is_conflict());
    let found = metadata.get_cursor_log::<Vec<Listed>>("t/n/b").await.unwrap().unwrap().value;
    assert_eq!(found.iter().map(|listed| listed.ledger.ledger_id).collect::<Vec<_>>(), ledgers);
}
