//! Message deduplication by producer name and sequence id, as Pulsar's `MessageDeduplication`.
//!
//! Of each producer two numbers are known: the highest sequence id that was taken in, and the highest that is durable. A
//! message at or below the durable one is a duplicate; one between them may turn out to be one, so the producer is told
//! to try again. All chunks of a message have its sequence id: only the last one counts.
//!
//! The state is stored as a snapshot with the position it was taken at; after a crash the entries behind that are replayed.
//! It is bounded by the number of producers, and forgets those that were inactive for long.

use std::collections::VecDeque;
use std::sync::Arc;

use geminga_ledger::ledger_list::LedgerList;
use geminga_model::Position;
use rustc_hash::FxHashMap;

/// Version of the snapshot's encoding: version, position (ledger id, entry id), number of producers; of each the length of its
/// name, the name, its highest durable sequence id and the time of its last activity. Integers are little endian.
const FORMAT_VERSION: u8 = 1;

/// What is known of a message that a producer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Never seen: it is to be stored, and [`Deduplication::persisted`] or [`Deduplication::failed`] to be called.
    New,
    /// Stored before: the receipt can be sent, without a position.
    Duplicate,
    /// The first sending is not durable yet, and may still fail.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("unknown version {0}")]
    Version(u8),
    #[error("truncated or damaged")]
    Damaged,
}

#[derive(Clone, Copy, Debug)]
pub struct DeduplicationLimits {
    /// Producers remembered; beyond, those that were inactive for the longest are forgotten.
    pub max_producers: usize,
    /// Milliseconds after which a producer that is not connected is forgotten.
    pub inactivity_ms: u64,
}

impl Default for DeduplicationLimits {
    /// Pulsar's `brokerDeduplicationMaxNumberOfProducers` and `brokerDeduplicationProducerInactivityTimeoutMinutes`.
    fn default() -> Self {
        DeduplicationLimits { max_producers: 10_000, inactivity_ms: 6 * 60 * 60 * 1000 }
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Deduplication {
    producers: FxHashMap<Arc<str>, Producer>,
    limits: DeduplicationLimits,
}

#[derive(Debug, Default)]
struct Producer {
    persisted: Option<u64>,
    /// Taken in and not durable, in order. The last one is the highest taken in.
    in_flight: VecDeque<InFlight>,
    connected: u32,
    /// Something happened since the time of last activity was noted.
    touched: bool,
    last_active: u64,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    highest: u64,
    inner_chunk: bool,
}

impl Producer {
    fn pushed(&self) -> Option<u64> {
        let in_flight = self.in_flight.iter().rev().find(|sent| !sent.inner_chunk).map(|sent| sent.highest);
        in_flight.max(self.persisted)
    }
}

impl Deduplication {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with_limits(limits: DeduplicationLimits) -> Self {
        Deduplication { limits, ..Self::default() }
    }

    pub fn set_limits(&mut self, limits: DeduplicationLimits) {
        self.limits = limits;
    }

    pub fn producers(&self) -> usize {
        self.producers.len()
    }

    fn producer(&mut self, name: &str) -> &mut Producer {
        if !self.producers.contains_key(name) {
            self.producers.insert(Arc::from(name), Producer::default());
        }
        self.producers.get_mut(name).expect("it was inserted above")
    }

    /// Looks at a message before it is stored. A batch has the sequence ids `sequence_id..=highest`.
    pub fn check(&mut self, name: &str, sequence_id: u64, highest: u64, inner_chunk: bool) -> Verdict {
        let producer = self.producer(name);
        producer.touched = true;
        if !inner_chunk && producer.pushed().is_some_and(|pushed| sequence_id <= pushed) {
            return match producer.persisted.is_some_and(|persisted| sequence_id <= persisted) {
                true => Verdict::Duplicate,
                false => Verdict::Unknown,
            };
        }
        producer.in_flight.push_back(InFlight { highest: highest.max(sequence_id), inner_chunk });
        Verdict::New
    }

    /// A message is durable. Of one producer, messages become durable (or fail) in the order they were taken in.
    pub fn persisted(&mut self, name: &str, highest: u64, _position: Position) {
        let producer = self.producer(name);
        producer.touched = true;
        let sent = producer.in_flight.pop_front();
        if !sent.is_some_and(|sent| sent.inner_chunk) {
            producer.persisted = producer.persisted.max(Some(highest));
        }
    }

    /// A message will not become durable: it may be sent again.
    pub fn failed(&mut self, name: &str) {
        self.producer(name).in_flight.pop_front();
    }

    /// An entry that was stored after the snapshot. `inner_chunk`s are not to be passed in.
    pub fn replayed(&mut self, name: &str, highest: u64, _position: Position, now: u64) {
        let producer = self.producer(name);
        producer.persisted = producer.persisted.max(Some(highest));
        producer.last_active = now;
    }

    /// Highest sequence id known of a producer, or -1: what a client continues after.
    pub fn last_sequence_id(&self, name: &str) -> i64 {
        self.producers.get(name).and_then(Producer::pushed).map_or(-1, |pushed| pushed as i64)
    }

    pub fn producer_added(&mut self, name: &str, now: u64) {
        let producer = self.producer(name);
        producer.connected += 1;
        producer.last_active = now;
    }

    pub fn producer_removed(&mut self, name: &str, now: u64) {
        if let Some(producer) = self.producers.get_mut(name) {
            producer.connected = producer.connected.saturating_sub(1);
            producer.last_active = now;
        }
    }

    /// Forgets producers that are neither connected nor have messages on their way, and were inactive for too long or are
    /// too many. Returns how many.
    pub fn expire(&mut self, now: u64) -> usize {
        for producer in self.producers.values_mut().filter(|producer| producer.touched) {
            producer.touched = false;
            producer.last_active = now;
        }
        let before = self.producers.len();
        let limits = self.limits;
        let in_use = |producer: &Producer| producer.connected > 0 || !producer.in_flight.is_empty();
        self.producers.retain(|_, p| in_use(p) || now.saturating_sub(p.last_active) < limits.inactivity_ms);
        if self.producers.len() > limits.max_producers {
            let mut idle: Vec<(u64, Arc<str>)> = self
                .producers
                .iter()
                .filter(|(_, producer)| !in_use(producer))
                .map(|(name, producer)| (producer.last_active, name.clone()))
                .collect();
            idle.sort_unstable();
            for (_, name) in idle.into_iter().take(self.producers.len() - limits.max_producers) {
                self.producers.remove(&name);
            }
        }
        before - self.producers.len()
    }

    /// The durable state. `position` is the last entry that it takes account of.
    pub fn encode(&self, position: Position) -> Vec<u8> {
        let known = || self.producers.iter().filter_map(|(name, p)| Some((name, p.persisted?, p.last_active)));
        let mut out = Vec::with_capacity(32 + self.producers.len() * 48);
        out.push(FORMAT_VERSION);
        out.extend_from_slice(&position.ledger_id.to_le_bytes());
        out.extend_from_slice(&position.entry_id.to_le_bytes());
        out.extend_from_slice(&(known().count() as u32).to_le_bytes());
        for (name, persisted, last_active) in known() {
            out.extend_from_slice(&(name.len() as u32).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&persisted.to_le_bytes());
            out.extend_from_slice(&last_active.to_le_bytes());
        }
        out
    }

    /// Reads a snapshot; entries after the position returned are to be replayed.
    pub fn decode(mut bytes: &[u8], now: u64) -> Result<(Self, Position), SnapshotError> {
        let [version] = take(&mut bytes)?;
        if version != FORMAT_VERSION {
            return Err(SnapshotError::Version(version));
        }
        let ledger_id = u64::from_le_bytes(take(&mut bytes)?);
        let entry_id = i64::from_le_bytes(take(&mut bytes)?);
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let mut dedup = Deduplication::new();
        for _ in 0..count {
            let length = u32::from_le_bytes(take(&mut bytes)?) as usize;
            let name =
                bytes.get(..length).and_then(|name| std::str::from_utf8(name).ok()).ok_or(SnapshotError::Damaged)?;
            bytes = &bytes[length..];
            let persisted = Some(u64::from_le_bytes(take(&mut bytes)?));
            let last_active = u64::from_le_bytes(take(&mut bytes)?).min(now);
            dedup.producers.insert(Arc::from(name), Producer { persisted, last_active, ..Producer::default() });
        }
        match bytes.is_empty() {
            true => Ok((dedup, Position { ledger_id, entry_id })),
            false => Err(SnapshotError::Damaged),
        }
    }
}

/// Whether the first ledger of a topic is kept only because the last `durable` snapshot is older than its end.
pub fn snapshot_holds_up_trimming(list: &LedgerList, slowest: Option<Position>, durable: Position) -> bool {
    let first = list.spans().next().map(|span| span.last_position());
    list.len() > 1 && first.is_some_and(|last| durable < last && slowest.is_none_or(|slowest| last <= slowest))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], SnapshotError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(SnapshotError::Damaged)?;
    *bytes = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const AT: Position = Position::new(3, 7);

    #[test]
    fn duplicates_and_what_is_not_known_yet() {
        let mut dedup = Deduplication::new();
        assert_eq!(dedup.last_sequence_id("a"), -1);
        assert_eq!(dedup.check("a", 0, 0, false), Verdict::New);
        assert_eq!(dedup.check("a", 1, 9, false), Verdict::New);
        assert_eq!(dedup.check("a", 0, 0, false), Verdict::Unknown);
        dedup.persisted("a", 0, AT);
        assert_eq!(dedup.check("a", 0, 0, false), Verdict::Duplicate);
        assert_eq!(dedup.check("a", 1, 9, false), Verdict::Unknown);
        assert_eq!(dedup.check("b", 1, 1, false), Verdict::New, "producers do not know each other");
        dedup.failed("a");
        assert_eq!(dedup.last_sequence_id("a"), 0);
        assert_eq!(dedup.check("a", 1, 9, false), Verdict::New, "it failed: it may come again");
        dedup.persisted("a", 9, AT);
        assert_eq!(dedup.check("a", 9, 9, false), Verdict::Duplicate);
        assert_eq!(dedup.check("a", 20, 20, false), Verdict::New, "gaps are allowed");
    }

    #[test]
    fn only_the_last_chunk_counts() {
        let mut dedup = Deduplication::new();
        assert_eq!(dedup.check("a", 5, 5, true), Verdict::New);
        assert_eq!(dedup.check("a", 5, 5, true), Verdict::New);
        dedup.persisted("a", 5, AT);
        dedup.persisted("a", 5, AT);
        assert_eq!(dedup.check("a", 5, 5, false), Verdict::New);
        dedup.persisted("a", 5, AT);
        assert_eq!(dedup.check("a", 5, 5, false), Verdict::Duplicate);
    }

    /// The bytes on disk, as docs/formats.md describes them: a change needs a new version.
    #[test]
    fn snapshot_format() {
        let mut dedup = Deduplication::new();
        dedup.replayed("p-1", 0x0102, AT, 0x0a0b);
        let hex: String = dedup.encode(AT).iter().map(|byte| format!("{byte:02x}")).collect();
        let head = "010300000000000000070000000000000001000000";
        let producer = "03000000702d3102010000000000000b0a000000000000";
        assert_eq!(hex, [head, producer].concat());
    }

    proptest! {
        /// A snapshot holds what was known; one that is damaged is refused or read as something else, and never more.
        #[test]
        fn snapshots_come_back(
            producers in btree_map("\\PC{0,12}", any::<(u64, u64)>(), 0..20),
            at in any::<(u64, i64)>(),
            damage in any::<(Index, u8)>(),
        ) {
            let (position, now) = (Position::new(at.0, at.1), u64::MAX);
            let mut dedup = Deduplication::new();
            for (name, (sequence_id, time)) in &producers {
                dedup.replayed(name, *sequence_id, position, *time);
            }
            let mut bytes = dedup.encode(position);
            let (again, found) = Deduplication::decode(&bytes, now).unwrap();
            prop_assert_eq!((found, again.producers()), (position, producers.len()));
            for (name, (sequence_id, time)) in &producers {
                prop_assert_eq!(again.last_sequence_id(name), *sequence_id as i64);
                prop_assert_eq!(again.producers[name.as_str()].last_active, *time);
            }
            let at = damage.0.index(bytes.len());
            prop_assert!(Deduplication::decode(&bytes[..at], now).is_err());
            bytes[at] = damage.1;
            if let Ok((damaged, _)) = Deduplication::decode(&bytes, now) {
                prop_assert!(damaged.producers() <= producers.len());
            }
        }
    }

    #[test]
    fn snapshot_replay_and_expiry() {
        let limits = DeduplicationLimits { max_producers: 3, inactivity_ms: 1000 };
        let mut dedup = Deduplication::with_limits(limits);
        for (name, at) in [("a", 10), ("b", 20), ("c", 30), ("d", 40), ("e", 50)] {
            dedup.replayed(name, at, AT, at);
        }
        assert_eq!(dedup.check("z", 1, 1, false), Verdict::New);
        let bytes = dedup.encode(AT);
        let (mut again, position) = Deduplication::decode(&bytes, 100).unwrap();
        assert_eq!((position, again.producers()), (AT, 5), "what is not durable is not in it");
        assert_eq!(again.check("b", 20, 20, false), Verdict::Duplicate);
        again.replayed("b", 25, Position::new(3, 8), 100);
        assert_eq!(again.check("b", 25, 25, false), Verdict::Duplicate);
        again.set_limits(limits);
        again.producer_added("a", 100);
        assert_eq!(again.expire(100), 2);
        assert_eq!(["a", "b", "c", "d", "e"].map(|name| again.last_sequence_id(name)), [10, 25, -1, -1, 50]);
        assert_eq!(again.expire(2000), 2);
        assert_eq!(again.last_sequence_id("a"), 10, "it is connected");
        for cut in 0..bytes.len() {
            assert!(Deduplication::decode(&bytes[..cut], 0).is_err());
        }
        assert!(matches!(Deduplication::decode(&[9], 0), Err(SnapshotError::Version(9))));
    }
}
