//! Reading back what is in no cache any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use geminga_broker::{Broker, BrokerConfig};
use geminga_ledger_client::{
    AppendClass, AppendDone, EntryParts, LedgerClient, LedgerError, MemoryLedgers, Pending, StoredEntry,
};
use geminga_topic::SubscriptionType::Exclusive;
use tokio::sync::Semaphore;

use crate::fixture::{self, Client};

/// Counts reads, and fails as many of them as asked for.
#[derive(Clone, Default)]
struct WatchedLedgers {
    ledgers: MemoryLedgers,
    reads: Arc<AtomicU64>,
    to_fail: Arc<AtomicU64>,
    /// Reads but the first wait for it.
    gate: Arc<OnceLock<Arc<Semaphore>>>,
}

impl LedgerClient for WatchedLedgers {
    fn append(&self, ledger_id: u64, first_entry: u64, entries: Vec<EntryParts>, class: AppendClass, done: AppendDone) {
        self.ledgers.append(ledger_id, first_entry, entries, class, done);
    }
    fn read(&self, ledger_id: u64, first: u64, last: u64, max_bytes: usize) -> Pending<Vec<StoredEntry>> {
        let before = self.reads.fetch_add(1, Ordering::Relaxed);
        let fails = self.to_fail.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if fails {
            return Box::pin(std::future::ready(Err(LedgerError::Io("a bad moment".into()))));
        }
        let read = self.ledgers.read(ledger_id, first, last, max_bytes);
        let Some(gate) = self.gate.get().filter(|_| before > 0).cloned() else { return read };
        Box::pin(async move {
            let _passed = gate.acquire().await;
            read.await
        })
    }
    fn recover(&self, ledger_id: u64) -> Pending<Option<u64>> {
        self.ledgers.recover(ledger_id)
    }
    fn delete(&self, ledger_ids: Vec<u64>) -> Pending<()> {
        self.ledgers.delete(ledger_ids)
    }
    fn size(&self, ledger_id: u64) -> u64 {
        self.ledgers.size(ledger_id)
    }
}

const NAME: &str = "persistent://public/default/t";
const MESSAGES: usize = 400;

fn text_of(number: usize) -> String {
    format!("{number:05}{}", "x".repeat(20 << 10))
}

/// Eight MiB that no consumer has read.
async fn backlog() -> (WatchedLedgers, Arc<Broker>) {
    let ledgers = WatchedLedgers::default();
    let broker =
        Broker::start(BrokerConfig::default(), fixture::metadata().await, Arc::new(ledgers.clone())).await.unwrap();
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let producer = client.produce(&topic, "p").await.unwrap();
    for number in 0..MESSAGES {
        fixture::publish(&client, &producer, &[&text_of(number)]).await;
    }
    client.leave();
    (ledgers, broker)
}

#[tokio::test]
async fn subscriptions_side_by_side_share_reads() {
    let (ledgers, broker) = backlog().await;
    let topic = fixture::topic(&broker, NAME).await;
    let clients: Vec<_> = (0..10).map(|_| Client::new()).collect();
    let mut consumers = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        consumers.push(client.consume(&topic, &format!("s{number}"), Exclusive).await.unwrap());
    }
    for expected in 0..MESSAGES {
        for (client, consumer) in clients.iter().zip(&consumers) {
            if expected % 10 == 0 {
                topic.flow(consumer, 10);
            }
            let text = fixture::text(&client.message().await);
            assert_eq!(text, text_of(expected));
        }
    }
    let reads = ledgers.reads.load(Ordering::Relaxed);
    assert!((8..=20).contains(&reads), "{reads} reads of 1 MiB for 8 MiB");
    assert_eq!(broker.memory().read_ahead.used(), 0, "everybody has passed everything");
    clients.iter().for_each(|client| client.leave());
}

#[tokio::test]
async fn several_pieces_are_on_their_way_and_count_as_memory() {
    let (ledgers, broker) = backlog().await;
    let topic = fixture::topic(&broker, NAME).await;
    let gate = Arc::new(Semaphore::new(0));
    ledgers.gate.set(gate.clone()).unwrap();
    let client = Client::new();
    let consumer = client.consume(&topic, "s", Exclusive).await.unwrap();
    topic.flow(&consumer, 1);
    assert_eq!(fixture::text(&client.message().await), text_of(0));
    let asked = || std::future::ready(ledgers.reads.load(Ordering::Relaxed) == 1 + 4);
    fixture::eventually("four more were asked for", asked).await;
    let used = broker.memory().read_ahead.used();
    assert!((4 << 20..6 << 20).contains(&used), "{used}");
    gate.add_permits(1);
    topic.flow(&consumer, MESSAGES as u32);
    for expected in 1..MESSAGES {
        assert_eq!(fixture::text(&client.message().await), text_of(expected));
    }
    assert_eq!(broker.memory().read_ahead.used(), 0);
}

#[tokio::test]
async fn a_consumer_that_does_not_read_on_keeps_no_memory_from_others() {
    let config = BrokerConfig {
        memory_limit: 8 << 20,
        housekeeping_interval: Duration::from_millis(20),
        ..BrokerConfig::default()
    };
    let broker = fixture::broker_with(config).await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    let consumer = client.consume(&topic, "s", Exclusive).await.unwrap();
    let publisher = Client::new();
    let producer = publisher.produce(&topic, "p").await.unwrap();
    for number in 0..100 {
        fixture::publish(&publisher, &producer, &[&text_of(number)]).await;
    }
    let used = || std::future::ready(broker.memory().tail_cache.used() < broker.memory().tail_cache.limit() / 2);
    fixture::eventually("the cache is given up", used).await;
    topic.flow(&consumer, 100);
    for expected in 0..100 {
        assert_eq!(fixture::text(&client.message().await), text_of(expected));
    }
}

#[tokio::test]
async fn a_read_that_fails_is_tried_again() {
    let (ledgers, broker) = backlog().await;
    let topic = fixture::topic(&broker, NAME).await;
    let client = Client::new();
    ledgers.to_fail.store(2, Ordering::Relaxed);
    let consumer = client.consume(&topic, "s", Exclusive).await.unwrap();
    topic.flow(&consumer, MESSAGES as u32);
    for expected in 0..MESSAGES {
        assert_eq!(fixture::text(&client.message().await), text_of(expected));
    }
    assert_eq!(ledgers.to_fail.load(Ordering::Relaxed), 0);
    assert_eq!(broker.memory().read_ahead.used(), 0);
}
