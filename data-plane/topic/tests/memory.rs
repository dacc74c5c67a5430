//! What a subscription allocates for entries that consumers hold, and what it charges for them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use geminga_ledger::{Cursor, LedgerList, LedgerSpan};
use geminga_model::Position;
use geminga_topic::{
    AckRequest, ConsumerSpec, Delivery, Entry, EntryMeta, EntryReader, IndividualAck, Ready, Subscription,
    SubscriptionOptions, SubscriptionType, UnackedBudget, hash,
};

/// Counts what is allocated in this process, whose only test this is.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller promises what the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Entries of one message, of as many keys as there are entries.
struct Entries(LedgerList);

impl Entries {
    fn entry(position: Position) -> Entry {
        let sticky_key_hash = hash::sticky_key_hash(&position.entry_id.to_le_bytes());
        let meta = EntryMeta { num_messages: 1, sticky_key_hash, ..EntryMeta::default() };
        Entry { position, meta, data: Bytes::from_static(b"0123456789") }
    }
}

impl EntryReader for Entries {
    fn read_ready(&mut self, from: Position, max_entries: usize, _: usize, out: &mut Vec<Entry>) -> Ready {
        let ids = from.entry_id..self.0.last_position().entry_id + 1;
        out.extend(ids.take(max_entries).map(|entry_id| Self::entry(Position { entry_id, ..from })));
        if out.is_empty() { Ready::CaughtUp } else { Ready::Entries }
    }

    fn get(&mut self, at: Position) -> Option<Entry> {
        Some(Self::entry(at))
    }

    fn has(&self, _: Position) -> bool {
        true
    }

    fn single_reads_fail(&self) -> bool {
        false
    }

    fn forget(&mut self, _: Position) {}

    fn ledgers(&self) -> &LedgerList {
        &self.0
    }
}

#[test]
fn what_is_charged_is_what_is_allocated() {
    for sub_type in [SubscriptionType::Shared, SubscriptionType::KeyShared] {
        for held in [100, 1000, 50_000, 100_000, 200_000] {
            let span = LedgerSpan { ledger_id: 3, entries: held, size: 0, timestamp_ms: 0, first_index: 0 };
            let mut entries = Entries(LedgerList::new([span]));
            let budget = UnackedBudget::new(1 << 30);
            let options = SubscriptionOptions {
                max_unacked_per_consumer: 0,
                max_unacked_per_subscription: 0,
                unacked_budget: budget.clone(),
                ..Default::default()
            };
            let mut sub = Subscription::new("s", Cursor::new(entries.0.before_first()), options);
            sub.add_consumer(ConsumerSpec { key: 1, sub_type, ..Default::default() }, 0).unwrap();
            sub.flow(1, u32::MAX);
            let before = ALLOCATED.load(Ordering::Relaxed);
            let dispatch = |sub: &mut Subscription, entries: &mut Entries| {
                let mut out: Vec<Delivery> = Vec::new();
                sub.dispatch(0, entries, 1 << 30, &mut out);
                sub.dispatch(0, entries, 1 << 30, &mut out);
                out.len() as u64
            };
            let allocated = || ALLOCATED.load(Ordering::Relaxed).saturating_sub(before);
            assert_eq!(dispatch(&mut sub, &mut entries), held);
            sub.give_back_spare();
            let close = |what: &str| {
                let (allocated, charged) = (allocated(), budget.used());
                println!(
                    "{sub_type:?}, {held} {what}: {allocated} B allocated, {} an entry; {charged} charged",
                    allocated as u64 / held
                );
                assert!(charged.abs_diff(allocated) <= allocated / 4 + 4096, "{charged} of {allocated} bytes");
            };
            close("held");
            sub.redeliver(1, None, None, &entries.0, 0);
            dispatch(&mut sub, &mut entries);
            close("held for the second time");
            let acks = (0..held as i64).map(|entry_id| IndividualAck {
                position: Position { ledger_id: 3, entry_id },
                ack_set: Vec::new(),
                batch_size: None,
            });
            sub.ack(1, AckRequest::Individual(acks.collect()), &entries.0, 0).unwrap();
            dispatch(&mut sub, &mut entries);
            sub.give_back_spare();
            assert!(budget.used() < 1 << 20, "{} bytes are charged for nothing", budget.used());
            drop(sub);
            assert_eq!(budget.used(), 0);
        }
    }
}
