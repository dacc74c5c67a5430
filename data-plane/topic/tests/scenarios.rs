//! One subscription, few consumers, one question each.

use bytes::Bytes;
use geminga_ledger::{Cursor, LedgerList, LedgerSpan};
use geminga_model::Position;
use geminga_topic::{
    AckError, AckRequest, BlockReason, ConsumerSpec, DelayedBudget, Delivery, DispatchWait, Entry, EntryMeta,
    EntryReader, Event, IndividualAck, KeySharedMode, KeySharedSpec, Mismatch, Ready, SubscribeError, Subscription,
    SubscriptionOptions, SubscriptionType, UnackedBudget, hash,
};

use SubscriptionType::{Exclusive, Failover, KeyShared, Shared};

const LEDGER: u64 = 3;

struct Topic {
    metas: Vec<EntryMeta>,
    list: LedgerList,
    sub: Subscription,
    now: u64,
    /// Entries that the reader was told to forget.
    forgotten: Vec<i64>,
    /// Entries that must be read before they can be delivered again.
    cold: Vec<i64>,
    reads_fail: bool,
}

fn at(entry_id: i64) -> Position {
    Position { ledger_id: LEDGER, entry_id }
}

fn span(entries: usize) -> LedgerSpan {
    LedgerSpan { ledger_id: LEDGER, entries: entries as u64, size: 0, timestamp_ms: 0, first_index: 0 }
}

struct Reader<'a>(&'a [EntryMeta], &'a LedgerList, &'a mut Vec<i64>, &'a [i64], bool);

impl Reader<'_> {
    fn entry(&self, at: Position) -> Option<Entry> {
        let meta = *self.0.get(at.entry_id as usize)?;
        Some(Entry { position: at, meta, data: Bytes::from_static(b"0123456789") })
    }
}

impl EntryReader for Reader<'_> {
    fn read_ready(&mut self, from: Position, max_entries: usize, _: usize, out: &mut Vec<Entry>) -> Ready {
        out.extend((from.entry_id..).map_while(|id| self.entry(at(id))).take(max_entries));
        if out.is_empty() { Ready::CaughtUp } else { Ready::Entries }
    }

    fn get(&mut self, at: Position) -> Option<Entry> {
        if self.3.contains(&at.entry_id) { None } else { self.entry(at) }
    }

    fn has(&self, at: Position) -> bool {
        !self.3.contains(&at.entry_id)
    }

    fn single_reads_fail(&self) -> bool {
        self.4
    }

    fn forget(&mut self, at: Position) {
        self.2.push(at.entry_id);
    }

    fn ledgers(&self) -> &LedgerList {
        self.1
    }
}

impl Topic {
    fn new(options: SubscriptionOptions) -> Self {
        let list = LedgerList::new([span(0)]);
        let sub = Subscription::new("s", Cursor::new(list.before_first()), options);
        Topic { metas: Vec::new(), list, sub, now: 1000, forgotten: Vec::new(), cold: Vec::new(), reads_fail: false }
    }

    fn append(&mut self, metas: impl IntoIterator<Item = EntryMeta>) {
        self.metas.extend(metas);
        self.list = LedgerList::new([span(self.metas.len())]);
    }

    fn singles(&mut self, count: usize) {
        self.append(vec![EntryMeta::default(); count]);
    }

    fn join(&mut self, key: u64, sub_type: SubscriptionType, permits: u32) {
        self.try_join(ConsumerSpec { key, name: format!("c{key}"), sub_type, ..Default::default() }).unwrap();
        self.sub.flow(key, permits);
    }

    fn try_join(&mut self, spec: ConsumerSpec) -> Result<(), SubscribeError> {
        self.sub.add_consumer(spec, self.now)
    }

    fn leave(&mut self, key: u64) {
        self.sub.remove_consumer(key, &self.list, self.now);
    }

    fn dispatch(&mut self) -> (Vec<Delivery>, DispatchWait) {
        let mut out = Vec::new();
        let mut reader = Reader(&self.metas, &self.list, &mut self.forgotten, &self.cold, self.reads_fail);
        let wait = self.sub.dispatch(self.now, &mut reader, 1 << 20, &mut out);
        self.sub.check_invariants();
        (out, wait)
    }

    /// Consumer and entry of each delivery.
    fn deliver(&mut self) -> Vec<(u64, i64)> {
        self.dispatch().0.iter().map(|d| (d.consumer, d.entry.position.entry_id)).collect()
    }

    fn ack(&mut self, key: u64, entries: impl IntoIterator<Item = i64>) {
        let ack = |id| IndividualAck { position: at(id), ack_set: Vec::new(), batch_size: None };
        let request = AckRequest::Individual(entries.into_iter().map(ack).collect());
        self.sub.ack(key, request, &self.list, self.now).unwrap();
    }

    fn redeliver(&mut self, key: u64, positions: Option<&[Position]>) {
        self.sub.redeliver(key, None, positions, &self.list, self.now);
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.sub.poll_event()).collect()
    }

    fn permits(&self, key: u64) -> i64 {
        self.sub.stats(&self.list).consumers.iter().find(|c| c.key == key).unwrap().available_permits
    }
}

fn batch(num_messages: u32) -> EntryMeta {
    EntryMeta { num_messages, ..EntryMeta::default() }
}

fn keyed(key: &str) -> EntryMeta {
    EntryMeta { sticky_key_hash: hash::sticky_key_hash(key.as_bytes()), ..EntryMeta::default() }
}

fn changed(consumer: u64, is_active: bool) -> Event {
    Event::ActiveConsumerChanged { consumer, is_active }
}

#[test]
fn exclusive_permits_count_messages_and_may_go_below_zero_by_a_batch() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.append([batch(10), batch(10), batch(10)]);
    assert_eq!(topic.dispatch().1, DispatchWait::NoConsumers);
    topic.join(1, Exclusive, 11);
    let (out, wait) = topic.dispatch();
    assert_eq!((out.len(), wait, topic.permits(1)), (2, DispatchWait::NoPermits, -9));
    topic.sub.flow(1, 9);
    assert!(topic.deliver().is_empty());
    topic.sub.flow(1, 1);
    assert_eq!(topic.deliver(), [(1, 2)]);
    let other = ConsumerSpec { key: 2, ..Default::default() };
    assert_eq!(topic.try_join(other.clone()), Err(SubscribeError::ExclusiveTaken));
    let refused = topic.try_join(ConsumerSpec { sub_type: Shared, ..other }).unwrap_err();
    assert_eq!(refused, SubscribeError::TypeMismatch(Mismatch::Type { active: Exclusive, joining: Shared }));
    assert_eq!(
        refused.to_string(),
        "Subscription is of different type. Active subscription type of 'Exclusive' is different than the connecting consumer's \
         type 'Shared'."
    );
}

#[test]
fn exclusive_redelivers_everything_unacknowledged_with_epoch_and_ack_set() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.append([batch(3), batch(3), batch(1), batch(1)]);
    topic.try_join(ConsumerSpec { key: 1, epoch: Some(0), ..Default::default() }).unwrap();
    topic.sub.flow(1, 100);
    assert_eq!(topic.deliver().len(), 4);
    topic.ack(1, [2]);
    let request = AckRequest::Cumulative { position: at(1), ack_set: vec![0b110] };
    topic.sub.ack(1, request, &topic.list, 0).unwrap();
    topic.sub.redeliver(1, Some(5), None, &topic.list, 0);
    let (out, _) = topic.dispatch();
    let seen: Vec<_> = out.iter().map(|d| (d.entry.position.entry_id, d.ack_set.clone(), d.consumer_epoch)).collect();
    assert_eq!(seen, [(1, Some(vec![0b110].into()), Some(5)), (3, None, Some(5))]);
    assert_eq!(topic.permits(1), 100 - 8 - 3, "of the batch only what remains is counted");
    topic.sub.redeliver(1, Some(4), None, &topic.list, 0);
    assert!(topic.deliver().is_empty(), "a stale epoch is ignored");
    topic.leave(1);
    topic.join(2, Exclusive, 100);
    assert_eq!(topic.deliver(), [(2, 1), (2, 3)], "the next consumer starts at the first unacknowledged entry");
}

#[test]
fn failover_spreads_partitions_by_name_and_priority() {
    let mut topic = Topic::new(SubscriptionOptions { partition_index: Some(4), ..Default::default() });
    let spec = |key, name: &str, priority| ConsumerSpec {
        key,
        name: name.into(),
        priority,
        sub_type: Failover,
        ..Default::default()
    };
    topic.singles(1);
    topic.try_join(spec(1, "b", 0)).unwrap();
    assert_eq!(topic.events(), [changed(1, true)]);
    topic.try_join(spec(2, "c", 0)).unwrap();
    assert_eq!(topic.events(), [changed(2, false)], "4 % 2 = 0: b stays");
    topic.try_join(spec(3, "a", 0)).unwrap();
    assert_eq!(topic.events(), [changed(3, false)], "4 % 3 = 1: b stays");
    topic.leave(2);
    assert_eq!(topic.events(), [changed(1, false), changed(3, true)], "4 % 2 = 0: a");
    topic.try_join(spec(4, "z", -1)).unwrap();
    assert_eq!(topic.events().last(), Some(&changed(3, false)));
    assert_eq!(
        topic.sub.stats(&topic.list).active_consumer_name.as_deref(),
        Some("z"),
        "alone at the highest priority"
    );
}

#[test]
fn a_new_failover_consumer_waits_only_for_what_is_outstanding() {
    let mut topic = Topic::new(SubscriptionOptions { partition_index: Some(0), ..Default::default() });
    topic.singles(3);
    topic.join(2, Failover, 10);
    assert_eq!(topic.deliver().len(), 3);
    topic.ack(2, [0]);
    topic.join(1, Failover, 10);
    assert_eq!(topic.dispatch().1, DispatchWait::Timer(2000));
    assert!(topic.sub.explain(&topic.list, topic.now).summary.contains("waiting 1000 ms"));
    topic.ack(2, [1]);
    topic.now = 1999;
    assert!(topic.deliver().is_empty());
    topic.now = 2000;
    assert_eq!(topic.deliver(), [(1, 2)], "it did not acknowledge in time: again");
    topic.ack(1, [2]);
    topic.leave(1);
    topic.singles(1);
    assert_eq!(topic.deliver(), [(2, 3)], "nothing outstanding: at once");
}

#[test]
fn shared_takes_turns_of_twenty_within_the_highest_priority() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.singles(100);
    topic.try_join(ConsumerSpec { key: 9, priority: 1, sub_type: Shared, ..Default::default() }).unwrap();
    topic.sub.flow(9, 100);
    topic.join(1, Shared, 30);
    topic.join(2, Shared, 30);
    let runs: Vec<(u64, usize)> =
        topic.deliver().chunk_by(|a, b| a.0 == b.0).map(|run| (run[0].0, run.len())).collect();
    assert_eq!(runs, [(1, 20), (2, 20), (1, 10), (2, 10), (9, 40)]);
    topic.singles(2);
    topic.sub.flow(1, 1);
    topic.sub.flow(2, 1);
    assert_eq!(topic.deliver().len(), 2);
}

#[test]
fn shared_stops_at_the_limits_of_unacknowledged_messages() {
    let options =
        SubscriptionOptions { max_unacked_per_consumer: 2, max_unacked_per_subscription: 3, ..Default::default() };
    let mut topic = Topic::new(options);
    topic.singles(10);
    topic.join(1, Shared, 100);
    let (out, wait) = topic.dispatch();
    assert_eq!((out.len(), wait), (2, DispatchWait::Blocked(BlockReason::ConsumersUnacked)));
    topic.join(2, Shared, 100);
    let (out, wait) = topic.dispatch();
    assert_eq!((out.len(), wait), (1, DispatchWait::Blocked(BlockReason::SubscriptionUnacked)));
    assert!(topic.sub.explain(&topic.list, 0).summary.contains("3 messages are unacknowledged of at most 3"));
    topic.ack(1, [0]);
    assert_eq!(topic.deliver().len(), 1);
    topic.sub.set_writable(1, false);
    topic.ack(2, [1, 2, 3]);
    assert!(topic.deliver().iter().all(|delivery| delivery.0 == 2));
}

#[test]
fn shared_redelivers_what_is_given_back_with_a_count() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.append([batch(2), batch(2), batch(2)]);
    topic.join(1, Shared, 6);
    assert_eq!(topic.deliver().len(), 3);
    let part = IndividualAck { position: at(1), ack_set: vec![0b10], batch_size: Some(2) };
    let summary = topic.sub.ack(1, AckRequest::Individual(vec![part]), &topic.list, 0).unwrap();
    assert_eq!((summary.messages, summary.entries), (1, 0));
    topic.redeliver(1, Some(&[at(1)]));
    topic.redeliver(1, Some(&[at(1), at(77)]));
    topic.join(2, Shared, 10);
    let (out, _) = topic.dispatch();
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].consumer, out[0].redelivery_count, out[0].ack_set.as_deref()), (2, 1, Some(&[0b10][..])));
    assert_eq!(topic.permits(2), 9);
    topic.leave(1);
    let (out, _) = topic.dispatch();
    let again: Vec<_> = out.iter().map(|d| (d.consumer, d.entry.position.entry_id, d.redelivery_count)).collect();
    assert_eq!(again, [(2, 0, 0), (2, 2, 0)], "nobody refused them");
    topic.ack(2, [0, 1, 2]);
    let stats = topic.sub.stats(&topic.list);
    assert_eq!((stats.msg_backlog, stats.unacked_messages, stats.redelivered_counter), (0, 0, 1));
    let cumulative = AckRequest::Cumulative { position: at(2), ack_set: Vec::new() };
    assert_eq!(topic.sub.ack(2, cumulative, &topic.list, 0), Err(AckError::CumulativeOnShared(Shared)));
}

#[test]
fn shared_delivers_what_comes_again_before_what_is_new() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.singles(6);
    topic.join(1, Shared, 3);
    assert_eq!(topic.deliver(), [(1, 0), (1, 1), (1, 2)]);
    topic.join(2, Shared, 0);
    topic.leave(1);
    topic.cold = vec![1];
    topic.sub.flow(2, 10);
    let (out, wait) = topic.dispatch();
    assert_eq!((out.len(), wait), (1, DispatchWait::NeedEntries(vec![at(1)])), "the one behind it is at hand");
    topic.cold.clear();
    assert_eq!(topic.deliver(), [1, 2, 3, 4, 5].map(|entry| (2, entry)));
    // Nobody waits for what cannot be read.
    topic.singles(2);
    topic.redeliver(2, Some(&[at(0), at(3)]));
    (topic.cold, topic.reads_fail) = (vec![0], true);
    let (out, wait) = topic.dispatch();
    let out: Vec<_> = out.iter().map(|delivery| delivery.entry.position.entry_id).collect();
    assert_eq!((out, wait), (vec![3, 6, 7], DispatchWait::NeedEntries(vec![at(0)])));
}

#[test]
fn only_what_is_not_at_hand_is_read_again() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.singles(1000);
    topic.join(1, Shared, 1000);
    assert_eq!(topic.deliver().len(), 1000);
    topic.redeliver(1, None);
    topic.sub.flow(1, 2000);
    topic.cold = vec![10, 11, 50, 500];
    let (out, wait) = topic.dispatch();
    assert_eq!(
        (out.len(), wait),
        (10, DispatchWait::NeedEntries(vec![at(10), at(11), at(50)])),
        "and few are looked at"
    );
    topic.cold = vec![500];
    let (out, wait) = topic.dispatch();
    assert_eq!((out.len(), wait), (490, DispatchWait::NeedEntries(vec![at(500)])));
    topic.cold.clear();
    assert_eq!(topic.deliver(), (500..1000).map(|entry| (1, entry)).collect::<Vec<_>>());
}

#[test]
fn all_chunks_of_a_message_go_to_one_consumer() {
    let mut topic = Topic::new(SubscriptionOptions { round_robin_batch: 1, ..Default::default() });
    let chunk = |uuid, id| EntryMeta { chunk_uuid_hash: uuid, chunk_id: id, num_chunks: 3, ..EntryMeta::default() };
    topic.append([chunk(7, 0), chunk(8, 0), chunk(7, 1), EntryMeta::default(), chunk(8, 1), chunk(8, 2), chunk(7, 2)]);
    topic.join(1, Shared, 2);
    topic.join(2, Shared, 10);
    let mut got = topic.deliver();
    assert!(!got.contains(&(1, 6)) && !got.contains(&(2, 6)), "its consumer has no permits: it waits");
    topic.sub.flow(1, 5);
    got.extend(topic.deliver());
    let of = |uuid| {
        let metas = &topic.metas;
        let mut to: Vec<u64> =
            got.iter().filter(|d| metas[d.1 as usize].chunk_uuid_hash == uuid).map(|d| d.0).collect();
        to.dedup();
        to
    };
    assert_eq!((of(7), of(8), got.len()), (vec![1], vec![2], 7));
}

#[test]
fn those_that_hold_the_most_wait_for_memory_and_nobody_starves() {
    const ENTRIES: i64 = 3000;
    let unacked_budget = UnackedBudget::new(64 << 10);
    let mut topics: Vec<Topic> = (0..40)
        .map(|index| {
            let options = SubscriptionOptions { unacked_budget: unacked_budget.clone(), ..Default::default() };
            let mut topic = Topic::new(options);
            topic.append((0..ENTRIES).map(|id| keyed(&id.to_string())));
            topic.join(1, if index % 2 == 0 { Shared } else { KeyShared }, 10_000);
            topic
        })
        .collect();
    let mut held: Vec<Vec<i64>> = Vec::new();
    for topic in &mut topics {
        let (out, wait) = topic.dispatch();
        assert_eq!(wait, DispatchWait::Blocked(BlockReason::Memory));
        held.push(out.iter().map(|delivery| delivery.entry.position.entry_id).collect());
    }
    let counts: Vec<usize> = held.iter().map(Vec::len).collect();
    // Of Key_Shared an entry takes more.
    for alike in [0, 1].map(|first| counts.iter().skip(first).step_by(2).collect::<Vec<_>>()) {
        assert!(alike.is_sorted_by(|a, b| a >= b), "whoever comes has less: {alike:?}");
    }
    assert!(counts[0] > 500 && counts[39] >= 64, "{counts:?}");
    assert!(unacked_budget.used() < 6 * unacked_budget.limit(), "the few that all may have: {}", unacked_budget.used());
    let explanation = topics[0].sub.explain(&topics[0].list, 0);
    assert!(explanation.summary.contains("memory for unacknowledged messages is used up"), "{}", explanation.summary);
    assert!(topics[0].sub.stats(&topics[0].list).blocked_subscription_on_unacked_msgs);

    // The last one comes to its end although the others never acknowledge, and then so do these.
    for (topic, mut entries) in topics.iter_mut().zip(held).rev() {
        let mut got = Vec::new();
        while !entries.is_empty() {
            topic.ack(1, entries.iter().copied());
            got.append(&mut entries);
            entries = topic.deliver().iter().map(|delivery| delivery.1).collect();
        }
        got.sort_unstable();
        assert!(got.into_iter().eq(0..ENTRIES));
    }
    assert!(topics.iter_mut().all(|topic| topic.dispatch().1 == DispatchWait::CaughtUp));
    drop(topics);
    assert_eq!(unacked_budget.used(), 0);
}

#[test]
fn delayed_messages_wait_for_their_time_even_beyond_the_index() {
    for delayed_index_bytes in [1 << 20, 100] {
        let delayed_budget = DelayedBudget::new(delayed_index_bytes);
        let mut topic = Topic::new(SubscriptionOptions { delayed_budget, ..Default::default() });
        let delayed = |deliver_at| EntryMeta { deliver_at, ..EntryMeta::default() };
        topic.append([5000, 0, 3000, 4000, 2000, 3000, 999].map(delayed));
        topic.join(1, Shared, 100);
        let (out, wait) = topic.dispatch();
        assert_eq!((out.len(), wait), (2, DispatchWait::Timer(2000)));
        let mut order = Vec::new();
        for now in (2000..=5000).step_by(1000) {
            topic.now = now;
            order.push(topic.deliver().iter().map(|delivery| delivery.1).collect::<Vec<_>>());
        }
        assert_eq!(order, [vec![4], vec![2, 5], vec![3], vec![0]], "index of {delayed_index_bytes} bytes");
        topic.redeliver(1, None);
        assert_eq!(topic.deliver().len(), 7);
    }
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.append([EntryMeta { deliver_at: 9999, ..EntryMeta::default() }]);
    topic.join(1, Exclusive, 1);
    assert_eq!(topic.deliver(), [(1, 0)], "Exclusive does not delay");
}

#[test]
fn only_keys_that_move_wait_for_their_previous_consumer() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    let keys: Vec<String> = (0..40).map(|i| format!("key-{i}")).collect();
    topic.append(keys.iter().map(|key| keyed(key)));
    topic.join(1, KeyShared, 1000);
    assert_eq!(topic.deliver().len(), 40);
    topic.join(2, KeyShared, 1000);
    topic.now = 1500;
    topic.append(keys.iter().map(|key| keyed(key)));
    let stay: Vec<i64> = topic
        .deliver()
        .iter()
        .map(|&(consumer, id)| {
            assert_eq!(consumer, 1);
            id - 40
        })
        .collect();
    let moved: Vec<i64> = (0..40).filter(|id| !stay.contains(id)).collect();
    assert!(!stay.is_empty() && !moved.is_empty());
    let explanation = topic.sub.explain(&topic.list, topic.now);
    assert_eq!(explanation.draining_hashes_total, moved.len());
    let block = &explanation.draining_hashes[0];
    assert_eq!((block.held_by.as_str(), block.wanted_by.as_deref(), block.for_ms), ("c1", Some("c2"), 500));
    assert_eq!(topic.sub.stats(&topic.list).draining_hashes_count, moved.len() as u64);
    topic.ack(1, [moved[0]]);
    assert_eq!(topic.deliver(), [(2, moved[0] + 40)], "acknowledged: it moves at once");
    topic.redeliver(1, Some(&[at(moved[1])]));
    assert_eq!(topic.deliver(), [(2, moved[1]), (2, moved[1] + 40)], "given back: it moves in order");
    topic.leave(1);
    let rest = topic.deliver();
    assert_eq!(rest.len(), 80 - 4, "all but what is acknowledged or there");
    assert!(rest.is_sorted() && rest.iter().all(|delivery| delivery.0 == 2));
    topic.join(1, KeyShared, 10);
    topic.leave(2);
    assert_eq!(topic.deliver().len(), 10, "everything goes to the one that is left");
}

#[test]
fn a_consumer_without_permits_holds_up_nobody_else() {
    for look_ahead_bytes in [16 << 20, 360] {
        let mut topic = Topic::new(SubscriptionOptions { look_ahead_bytes, ..Default::default() });
        topic.join(1, KeyShared, 1000);
        topic.join(2, KeyShared, 0);
        topic.append((0..200).map(|i| keyed(&format!("key-{i}"))));
        let first = topic.deliver();
        assert!(first.len() > 50 && first.iter().all(|delivery| delivery.0 == 1));
        topic.sub.flow(2, 1000);
        let second = topic.deliver();
        assert_eq!(first.len() + second.len(), 200, "with {look_ahead_bytes} bytes");
        assert!(second.is_sorted() && second.iter().all(|delivery| delivery.0 == 2));
    }
}

#[test]
fn consumers_of_a_large_subscription_come_and_go_quickly() {
    let mut topic = Topic::new(SubscriptionOptions { look_ahead_bytes: 360, ..Default::default() });
    for key in 1..=600 {
        topic.join(key, KeyShared, if key == 1 { 0 } else { 1000 });
    }
    topic.append((0..10_000).map(|i| keyed(&format!("key-{i}"))));
    let delivered = topic.deliver().len();
    assert!((9_000..10_000).contains(&delivered), "{delivered}: what is for the first one waits, and is forgotten");
    let since = std::time::Instant::now();
    for key in 2..52 {
        topic.leave(key);
        topic.join(600 + key, KeyShared, 1000);
    }
    assert!(since.elapsed() < std::time::Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn ranges_of_an_exclusive_consumer_are_checked() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    let spec = |ranges: &[(u32, u32)]| ConsumerSpec {
        key: 1,
        key_shared: Some(KeySharedSpec { mode: KeySharedMode::Sticky(ranges.to_vec()), allow_out_of_order: false }),
        ..Default::default()
    };
    for bad in [&[(50, 40)][..], &[(50, 65_536)], &[(40, 50), (50, 60)]] {
        assert!(matches!(topic.try_join(spec(bad)), Err(SubscribeError::InvalidRanges(_))), "{bad:?}");
    }
    topic.try_join(spec(&[(40_000, 65_535), (0, 20_000)])).unwrap();
    topic.sub.flow(1, 1000);
    topic.append((0..100).map(|i| keyed(&format!("key-{i}"))));
    let slots: Vec<u32> =
        (0..100).map(|i| u32::from(hash::sticky_slot(hash::sticky_key_hash(format!("key-{i}").as_bytes())))).collect();
    let expected = slots.iter().filter(|slot| !(20_001..40_000).contains(*slot)).count();
    assert!((1..100).contains(&expected));
    assert_eq!(topic.deliver().len(), expected);
}

#[test]
fn sticky_ranges_are_exclusive_and_gaps_wait() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    let spec = |key, ranges: &[(u32, u32)]| ConsumerSpec {
        key,
        name: format!("c{key}"),
        sub_type: KeyShared,
        key_shared: Some(KeySharedSpec { mode: KeySharedMode::Sticky(ranges.to_vec()), allow_out_of_order: false }),
        ..Default::default()
    };
    topic.try_join(spec(1, &[(0, 30_000)])).unwrap();
    assert_eq!(topic.try_join(spec(2, &[(30_000, 40_000)])), Err(SubscribeError::RangeConflict("c1".into())));
    assert!(matches!(topic.try_join(spec(2, &[])), Err(SubscribeError::InvalidRanges(_))));
    let auto = ConsumerSpec { key: 3, sub_type: KeyShared, ..Default::default() };
    let mode = Mismatch::KeySharedMode { active: "STICKY", joining: "AUTO_SPLIT" };
    assert_eq!(topic.try_join(auto), Err(SubscribeError::TypeMismatch(mode)));
    let mut unordered = spec(4, &[(40_001, 50_000)]);
    unordered.key_shared.as_mut().unwrap().allow_out_of_order = true;
    assert_eq!(topic.try_join(unordered), Err(SubscribeError::TypeMismatch(Mismatch::Ordered)));
    topic.sub.flow(1, 1000);
    topic.append((0..100).map(|i| keyed(&format!("key-{i}"))));
    let mine = topic.deliver().len();
    assert!((20..80).contains(&mine));
    assert_eq!(topic.sub.explain(&topic.list, 0).uncovered_entries, 100 - mine as u64);
    topic.try_join(spec(2, &[(30_001, 65_535)])).unwrap();
    topic.sub.flow(2, 1000);
    let rest = topic.deliver();
    assert_eq!(rest.len(), 100 - mine);
    assert!(rest.iter().all(|delivery| delivery.0 == 2));
}

#[test]
fn the_end_of_a_topic_is_told_once_all_is_acknowledged() {
    let mut topic = Topic::new(SubscriptionOptions::default());
    topic.singles(2);
    topic.join(1, Shared, 10);
    topic.sub.terminated();
    assert_eq!(topic.deliver().len(), 2);
    topic.ack(1, [0]);
    topic.deliver();
    assert!(topic.events().is_empty());
    topic.ack(1, [1]);
    topic.deliver();
    topic.deliver();
    assert_eq!(topic.events(), [Event::EndOfTopic { consumer: 1 }]);
}

#[test]
fn a_seek_starts_over_for_connected_consumers() {
    for sub_type in [Exclusive, Shared, KeyShared] {
        let mut topic = Topic::new(SubscriptionOptions::default());
        topic.singles(5);
        topic.join(1, sub_type, 100);
        assert_eq!(topic.deliver().len(), 5);
        topic.ack(1, 0..5);
        topic.sub.reset(at(3), &topic.list);
        assert_eq!(topic.deliver(), [(1, 3), (1, 4)]);
        assert_eq!(topic.sub.cursor().mark_delete(), at(2));
        topic.sub.skip(1, &topic.list);
        topic.redeliver(1, None);
        assert_eq!(topic.deliver(), [(1, 4)]);
    }
}

#[test]
fn what_was_given_back_and_is_acknowledged_is_forgotten() {
    for sub_type in [Shared, KeyShared] {
        let mut topic = Topic::new(SubscriptionOptions::default());
        topic.append([keyed("a"); 3]);
        topic.join(1, sub_type, 3);
        assert_eq!(topic.deliver().len(), 3);
        topic.redeliver(1, None);
        topic.ack(1, [0, 1]);
        topic.sub.flow(1, 1);
        assert_eq!(topic.deliver(), [(1, 2)], "{sub_type:?}");
        assert_eq!(topic.forgotten, [0, 1], "{sub_type:?}");
    }
}
