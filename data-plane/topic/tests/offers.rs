//! Entries of a non-persistent topic: who gets them, and when they are lost.

use bytes::Bytes;
use geminga_ledger::{Cursor, LedgerList};
use geminga_model::Position;
use geminga_topic::{
    ConsumerSpec, Delivery, Entry, EntryMeta, KeySharedMode, KeySharedSpec, Subscription, SubscriptionOptions,
    SubscriptionType, hash,
};

use SubscriptionType::{Exclusive, Failover, KeyShared, Shared};

const NOW: u64 = 1000;

fn subscription() -> Subscription {
    Subscription::new(
        "s",
        Cursor::new(Position::EARLIEST),
        SubscriptionOptions { durable: false, ..Default::default() },
    )
}

fn consumer(key: u64, sub_type: SubscriptionType) -> ConsumerSpec {
    ConsumerSpec { key, consumer_id: key, name: format!("c{key}"), sub_type, ..Default::default() }
}

fn entry(entry_id: i64, meta: EntryMeta) -> Entry {
    Entry { position: Position { ledger_id: 1, entry_id }, meta, data: Bytes::from_static(b"0123456789") }
}

/// Offers single messages; who got each, 0 for nobody.
fn offer(sub: &mut Subscription, metas: impl IntoIterator<Item = EntryMeta>) -> Vec<u64> {
    let mut out: Vec<Delivery> = Vec::new();
    let got = metas.into_iter().zip(0..).map(|(meta, id)| {
        let taken = sub.offer(NOW, &entry(id, meta), &mut out);
        let last = out.last().filter(|last| taken && last.entry.position.entry_id == id);
        assert_eq!(taken, last.is_some());
        last.map_or(0, |last| last.consumer)
    });
    let got = got.collect();
    sub.check_invariants();
    got
}

fn plain(count: usize) -> Vec<EntryMeta> {
    vec![EntryMeta::default(); count]
}

fn keyed(key: &str) -> EntryMeta {
    EntryMeta { sticky_key_hash: hash::sticky_key_hash(key.as_bytes()), ..EntryMeta::default() }
}

#[test]
fn permits_bound_what_one_consumer_gets() {
    for sub_type in [Exclusive, Failover, Shared, KeyShared] {
        let mut sub = subscription();
        assert_eq!(offer(&mut sub, plain(1)), [0], "nobody is there");
        sub.add_consumer(consumer(1, sub_type), NOW).unwrap();
        assert_eq!(offer(&mut sub, plain(1)), [0], "no permits");
        sub.flow(1, 2);
        assert_eq!(offer(&mut sub, plain(3)), [1, 1, 0]);
        sub.flow(1, 5);
        let batch = EntryMeta { num_messages: 5, ..EntryMeta::default() };
        assert_eq!(offer(&mut sub, [batch, EntryMeta::default()]), [1, 0], "a batch takes its messages' permits");
        sub.flow(1, 5);
        sub.set_writable(1, false);
        assert_eq!(offer(&mut sub, plain(1)), [0], "its connection is full");
        sub.set_writable(1, true);
        assert_eq!(offer(&mut sub, plain(1)), [1]);
        let stats = sub.stats(&LedgerList::default());
        assert_eq!((stats.msg_out_counter, stats.unacked_messages, stats.msg_backlog), (8, 0, 0), "{sub_type:?}");
    }
}

#[test]
fn nothing_waits_for_a_time_or_an_acknowledgement() {
    let mut sub = subscription();
    sub.options_mut().max_unacked_per_consumer = 1;
    sub.add_consumer(consumer(1, Shared), NOW).unwrap();
    sub.flow(1, 10);
    let delayed = EntryMeta { deliver_at: NOW + 60_000, ..EntryMeta::default() };
    assert_eq!(offer(&mut sub, [delayed, delayed, delayed]), [1, 1, 1]);
}

#[test]
fn failover_follows_the_active_consumer() {
    let mut sub = subscription();
    for key in [1, 2] {
        sub.add_consumer(consumer(key, Failover), NOW).unwrap();
        sub.flow(key, 10);
    }
    let active = offer(&mut sub, plain(2));
    assert_eq!(active[0], active[1]);
    sub.remove_consumer(active[0], &LedgerList::default(), NOW);
    assert_eq!(offer(&mut sub, plain(1)), [3 - active[0]]);
}

#[test]
fn shared_takes_turns_and_keeps_chunks_together() {
    let mut sub = subscription();
    for key in [1, 2, 3] {
        sub.add_consumer(consumer(key, Shared), NOW).unwrap();
        sub.flow(key, if key == 3 { 1 } else { 10 });
    }
    assert_eq!(offer(&mut sub, plain(6)), [1, 2, 3, 1, 2, 1]);
    let chunk = |chunk_id| EntryMeta { chunk_uuid_hash: 9, chunk_id, num_chunks: 3, ..EntryMeta::default() };
    let got = offer(&mut sub, [chunk(0), chunk(1), chunk(2)]);
    assert_eq!(got, [got[0]; 3]);
}

#[test]
fn keys_stay_with_their_consumer() {
    let mut sub = subscription();
    for key in [1, 2] {
        sub.add_consumer(consumer(key, KeyShared), NOW).unwrap();
        sub.flow(key, 100);
    }
    let keys: Vec<String> = (0..40).map(|i| format!("k{i}")).collect();
    let first = offer(&mut sub, keys.iter().map(|key| keyed(key)));
    assert!(first.contains(&1) && first.contains(&2) && !first.contains(&0));
    assert_eq!(offer(&mut sub, keys.iter().map(|key| keyed(key))), first);
    sub.remove_consumer(1, &LedgerList::default(), NOW);
    assert_eq!(offer(&mut sub, [keyed("k0"), keyed("k1")]), [2, 2]);

    let mut sticky = subscription();
    let spec = |key, range| ConsumerSpec {
        key_shared: Some(KeySharedSpec { mode: KeySharedMode::Sticky(vec![range]), allow_out_of_order: false }),
        ..consumer(key, KeyShared)
    };
    sticky.add_consumer(spec(1, (0, 30_000)), NOW).unwrap();
    sticky.flow(1, 100);
    let got = offer(&mut sticky, keys.iter().map(|key| keyed(key)));
    assert!(got.contains(&0) && got.contains(&1), "a slot of nobody loses its messages");
}
