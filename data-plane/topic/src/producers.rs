//! Who may write to a topic: unique names, access modes, topic epochs.
//!
//! Follows Pulsar's `AbstractTopic`: an exclusive producer raises the *topic epoch*, which is stored before the producer is
//! ready; one that comes back with an older epoch is fenced, because another was exclusive in between. Different from
//! Pulsar: a producer that waits to be exclusive is let in as soon as the last one is gone, also if that was a shared one.
//!
//! [`Producers::add`] answers at once; what it or a removal entails for others comes out of [`Producers::poll_action`].

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum AccessMode {
    #[default]
    Shared,
    /// Alone, or refused.
    Exclusive,
    /// Alone; whoever is there is sent away.
    ExclusiveWithFencing,
    /// Alone, once everybody else is gone.
    WaitForExclusive,
}

#[derive(Clone, Debug)]
pub struct ProducerSpec {
    /// Unique within the broker process.
    pub key: u64,
    /// Unique within the topic.
    pub name: Arc<str>,
    pub connection: u64,
    /// Unique within the connection.
    pub producer_id: u64,
    /// Grows when a client creates the same producer again.
    pub epoch: u64,
    pub access_mode: AccessMode,
    /// The topic epoch that the producer had before, if it comes back.
    pub topic_epoch: Option<u64>,
}

/// Answer to a producer that wants to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Ready {
        topic_epoch: Option<u64>,
    },
    /// The epoch is to be stored, then [`Producers::epoch_stored`] to be called.
    StoreEpoch {
        epoch: u64,
    },
    /// It waits for its turn; it is to be told `producer_ready = false`.
    Queued,
}

/// What is to be done about producers other than the one that a call was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A ready producer is out: its connection is to be told, except when `replaced` by the same client.
    Close { key: u64, replaced: bool },
    /// A producer that was queued, or whose epoch was being stored, has failed with [`ProducerError::FencedOut`].
    Fail { key: u64 },
    /// It is the turn of a producer that waited: the epoch is to be stored, then [`Producers::epoch_stored`] to be called.
    StoreEpoch { key: u64, epoch: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerError {
    /// Pulsar's `ProducerBusy` (its `NamingException`). The other one may sit on a dead connection: it can be removed then.
    #[error("Producer with name '{name}' is already connected to topic")]
    NameTaken { name: Arc<str>, by: u64 },
    /// Pulsar's `ProducerBusy`.
    #[error("Topic has an existing exclusive producer: {0}")]
    Busy(String),
    /// Pulsar's `ProducerBusy`.
    #[error("Topic reached max producers limit")]
    MaxProducers,
    /// Pulsar's `ProducerFenced`.
    #[error("Topic has an existing exclusive producer: {0}")]
    ExclusiveTaken(String),
    /// Pulsar's `ProducerFenced`.
    #[error("Topic has existing shared producers")]
    SharedPresent,
    /// Pulsar's `ProducerFenced`.
    #[error("Topic epoch has already moved. Current epoch: {current}, Producer epoch: {given}")]
    EpochMoved { current: u64, given: u64 },
    /// Pulsar's `ProducerFenced`.
    #[error("Fenced out")]
    FencedOut,
    #[error("the topic epoch could not be stored")]
    NotStored,
}

impl ProducerError {
    /// Whether it is Pulsar's `ProducerFenced`: the producer must not try again.
    pub fn is_fenced(&self) -> bool {
        matches!(
            self,
            ProducerError::ExclusiveTaken(_)
                | ProducerError::SharedPresent
                | ProducerError::EpochMoved { .. }
                | ProducerError::FencedOut
        )
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Producers {
    ready: FxHashMap<u64, ProducerSpec>,
    by_name: FxHashMap<Arc<str>, u64>,
    /// The exclusive producer, ready or with its epoch being stored.
    exclusive: Option<Exclusive>,
    waiting: VecDeque<ProducerSpec>,
    topic_epoch: Option<u64>,
    max_producers: usize,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Exclusive {
    key: u64,
    name: Arc<str>,
    /// While the epoch is being stored.
    storing: Option<(u64, ProducerSpec)>,
}

impl Producers {
    /// `topic_epoch` as it was stored last; a `max_producers` of 0 means no limit.
    pub fn new(topic_epoch: Option<u64>, max_producers: usize) -> Self {
        Producers { topic_epoch, max_producers, ..Producers::default() }
    }

    pub fn set_max_producers(&mut self, max_producers: usize) {
        self.max_producers = max_producers;
    }

    pub fn topic_epoch(&self) -> Option<u64> {
        self.topic_epoch
    }

    /// Producers that are ready.
    pub fn len(&self) -> usize {
        self.ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_ready(&self, key: u64) -> bool {
        self.ready.contains_key(&key)
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// A producer wants to join.
    pub fn add(&mut self, spec: ProducerSpec) -> Result<Admission, ProducerError> {
        let occupied = self.exclusive.is_some() || !self.ready.is_empty();
        match spec.access_mode {
            AccessMode::Shared => {
                if self.exclusive.is_some() || !self.waiting.is_empty() {
                    return Err(ProducerError::Busy(self.exclusive_name()));
                }
                self.check_name(&spec)?;
                self.insert(spec);
                Ok(Admission::Ready { topic_epoch: self.topic_epoch })
            }
            AccessMode::Exclusive => {
                if self.exclusive.is_some() || !self.waiting.is_empty() {
                    return Err(ProducerError::ExclusiveTaken(self.exclusive_name()));
                }
                if occupied {
                    return Err(ProducerError::SharedPresent);
                }
                self.become_exclusive(spec)
            }
            AccessMode::ExclusiveWithFencing => {
                self.check_epoch(&spec)?;
                self.fence_all();
                self.become_exclusive(spec)
            }
            AccessMode::WaitForExclusive if occupied || !self.waiting.is_empty() => {
                // One that has been the exclusive producer, and was fenced, is not to come back by waiting.
                self.check_epoch(&spec)?;
                self.waiting.push_back(spec);
                Ok(Admission::Queued)
            }
            AccessMode::WaitForExclusive => self.become_exclusive(spec),
        }
    }

    /// The epoch of a producer is stored (or could not be). `None` if the producer is gone or was fenced meanwhile.
    pub fn epoch_stored(&mut self, key: u64, stored: bool) -> Option<Result<Admission, ProducerError>> {
        let exclusive = self.exclusive.as_mut().filter(|exclusive| exclusive.key == key)?;
        let (epoch, spec) = exclusive.storing.take()?;
        if !stored {
            self.exclusive = None;
            self.next_in_line();
            return Some(Err(ProducerError::NotStored));
        }
        self.topic_epoch = self.topic_epoch.max(Some(epoch));
        self.insert(spec);
        Some(Ok(Admission::Ready { topic_epoch: Some(epoch) }))
    }

    /// A producer is gone, ready or not. Unknown keys are ignored.
    pub fn remove(&mut self, key: u64) {
        self.waiting.retain(|spec| spec.key != key);
        if let Some(spec) = self.ready.remove(&key)
            && self.by_name.get(&spec.name) == Some(&key)
        {
            self.by_name.remove(&spec.name);
        }
        if self.exclusive.as_ref().is_some_and(|exclusive| exclusive.key == key) {
            self.exclusive = None;
        }
        self.next_in_line();
    }

    fn exclusive_name(&self) -> String {
        let waiting = self.waiting.front().map(|spec| &spec.name);
        self.exclusive
            .as_ref()
            .map(|exclusive| &exclusive.name)
            .or(waiting)
            .map_or(String::new(), |name| name.to_string())
    }

    fn check_epoch(&self, spec: &ProducerSpec) -> Result<(), ProducerError> {
        let storing = self.exclusive.as_ref().and_then(|exclusive| exclusive.storing.as_ref());
        match (spec.topic_epoch, self.topic_epoch.max(storing.map(|(epoch, _)| *epoch))) {
            (Some(given), Some(current)) if given < current => Err(ProducerError::EpochMoved { current, given }),
            _ => Ok(()),
        }
    }

    /// A name may be taken over by the same producer of the same connection, created again.
    fn check_name(&mut self, spec: &ProducerSpec) -> Result<(), ProducerError> {
        if let Some(old) = self.by_name.get(&spec.name).and_then(|key| self.ready.get(key)) {
            let successor =
                old.connection == spec.connection && old.producer_id == spec.producer_id && old.epoch < spec.epoch;
            if !successor {
                return Err(ProducerError::NameTaken { name: spec.name.clone(), by: old.key });
            }
            let key = old.key;
            self.ready.remove(&key);
            self.by_name.remove(&spec.name);
            self.actions.push_back(Action::Close { key, replaced: true });
        } else if self.max_producers > 0 && self.ready.len() >= self.max_producers {
            return Err(ProducerError::MaxProducers);
        }
        Ok(())
    }

    fn insert(&mut self, spec: ProducerSpec) {
        self.by_name.insert(spec.name.clone(), spec.key);
        self.ready.insert(spec.key, spec);
    }

    /// Nobody else is there.
    fn become_exclusive(&mut self, spec: ProducerSpec) -> Result<Admission, ProducerError> {
        self.check_epoch(&spec)?;
        let epoch = spec.topic_epoch.unwrap_or_else(|| self.topic_epoch.map_or(0, |epoch| epoch + 1));
        self.exclusive = Some(Exclusive { key: spec.key, name: spec.name.clone(), storing: Some((epoch, spec)) });
        Ok(Admission::StoreEpoch { epoch })
    }

    fn fence_all(&mut self) {
        self.actions.extend(self.waiting.drain(..).map(|spec| Action::Fail { key: spec.key }));
        if let Some(Exclusive { key, storing: Some(_), .. }) = self.exclusive.take() {
            self.actions.push_back(Action::Fail { key });
        }
        self.by_name.clear();
        self.actions.extend(self.ready.drain().map(|(key, _)| Action::Close { key, replaced: false }));
    }

    /// Lets the first producer in that waits, if nobody is there any more.
    fn next_in_line(&mut self) {
        while self.exclusive.is_none()
            && self.ready.is_empty()
            && let Some(spec) = self.waiting.pop_front()
        {
            let key = spec.key;
            match self.become_exclusive(spec) {
                Ok(Admission::StoreEpoch { epoch }) => self.actions.push_back(Action::StoreEpoch { key, epoch }),
                _ => self.actions.push_back(Action::Fail { key }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(key: u64, name: &str, access_mode: AccessMode) -> ProducerSpec {
        ProducerSpec {
            key,
            name: name.into(),
            connection: 1,
            producer_id: key,
            epoch: 0,
            access_mode,
            topic_epoch: None,
        }
    }

    fn actions(producers: &mut Producers) -> Vec<Action> {
        std::iter::from_fn(|| producers.poll_action()).collect()
    }

    #[test]
    fn names_are_unique_but_a_client_may_create_its_producer_again() {
        let mut producers = Producers::new(None, 2);
        assert_eq!(producers.add(spec(1, "a", AccessMode::Shared)), Ok(Admission::Ready { topic_epoch: None }));
        assert!(matches!(producers.add(spec(2, "a", AccessMode::Shared)), Err(ProducerError::NameTaken { by: 1, .. })));
        let again = ProducerSpec { key: 3, producer_id: 1, epoch: 1, ..spec(1, "a", AccessMode::Shared) };
        assert!(producers.add(again).is_ok());
        assert_eq!(actions(&mut producers), [Action::Close { key: 1, replaced: true }]);
        // The replaced one's connection reports it gone: the new one stays.
        producers.remove(1);
        assert!(producers.is_ready(3));
        assert!(producers.add(spec(4, "b", AccessMode::Shared)).is_ok());
        assert_eq!(producers.add(spec(5, "c", AccessMode::Shared)), Err(ProducerError::MaxProducers));
        producers.remove(4);
        assert!(producers.add(spec(5, "c", AccessMode::Shared)).is_ok());
    }

    #[test]
    fn exclusive_raises_the_epoch_and_fences_who_comes_back_late() {
        let mut producers = Producers::new(Some(6), 0);
        assert_eq!(producers.add(spec(1, "a", AccessMode::Exclusive)), Ok(Admission::StoreEpoch { epoch: 7 }));
        assert!(matches!(producers.add(spec(2, "b", AccessMode::Shared)), Err(ProducerError::Busy(_))));
        assert_eq!(producers.epoch_stored(1, true), Some(Ok(Admission::Ready { topic_epoch: Some(7) })));
        let refused = producers.add(spec(2, "b", AccessMode::Exclusive)).unwrap_err();
        assert!(refused.is_fenced(), "{refused}");
        assert_eq!(
            producers.add(spec(3, "c", AccessMode::ExclusiveWithFencing)),
            Ok(Admission::StoreEpoch { epoch: 8 })
        );
        assert_eq!(actions(&mut producers), [Action::Close { key: 1, replaced: false }]);
        assert_eq!(producers.epoch_stored(3, true), Some(Ok(Admission::Ready { topic_epoch: Some(8) })));
        producers.remove(1);
        producers.remove(3);
        let late = ProducerSpec { topic_epoch: Some(7), ..spec(4, "a", AccessMode::Exclusive) };
        assert_eq!(producers.add(late), Err(ProducerError::EpochMoved { current: 8, given: 7 }));
        let late = ProducerSpec { topic_epoch: Some(7), ..spec(4, "a", AccessMode::WaitForExclusive) };
        assert_eq!(producers.add(late), Err(ProducerError::EpochMoved { current: 8, given: 7 }));
        let same = ProducerSpec { topic_epoch: Some(8), ..spec(5, "c", AccessMode::Exclusive) };
        assert_eq!(producers.add(same), Ok(Admission::StoreEpoch { epoch: 8 }));
        assert_eq!(producers.epoch_stored(5, false), Some(Err(ProducerError::NotStored)));
        assert!(producers.add(spec(6, "d", AccessMode::Shared)).is_ok());
        assert_eq!(producers.add(spec(7, "e", AccessMode::Exclusive)), Err(ProducerError::SharedPresent));
    }

    #[test]
    fn waiting_producers_get_their_turn_or_are_fenced() {
        let mut producers = Producers::new(None, 0);
        assert!(producers.add(spec(1, "a", AccessMode::Shared)).is_ok());
        assert_eq!(producers.add(spec(2, "b", AccessMode::WaitForExclusive)), Ok(Admission::Queued));
        assert_eq!(producers.add(spec(3, "c", AccessMode::WaitForExclusive)), Ok(Admission::Queued));
        assert!(matches!(producers.add(spec(4, "d", AccessMode::Shared)), Err(ProducerError::Busy(_))));
        producers.remove(1);
        assert_eq!(actions(&mut producers), [Action::StoreEpoch { key: 2, epoch: 0 }]);
        assert_eq!(producers.epoch_stored(2, true), Some(Ok(Admission::Ready { topic_epoch: Some(0) })));
        producers.remove(2);
        assert_eq!(actions(&mut producers), [Action::StoreEpoch { key: 3, epoch: 1 }]);
        assert_eq!(producers.add(spec(5, "e", AccessMode::WaitForExclusive)), Ok(Admission::Queued));
        assert_eq!(
            producers.add(spec(6, "f", AccessMode::ExclusiveWithFencing)),
            Ok(Admission::StoreEpoch { epoch: 1 })
        );
        assert_eq!(actions(&mut producers), [Action::Fail { key: 5 }, Action::Fail { key: 3 }]);
        assert_eq!(producers.epoch_stored(3, true), None);
        assert_eq!(producers.epoch_stored(6, true), Some(Ok(Admission::Ready { topic_epoch: Some(1) })));
        // One that was fenced while the epoch of its successor was being stored does not come back by waiting.
        assert_eq!(
            producers.add(spec(7, "g", AccessMode::ExclusiveWithFencing)),
            Ok(Admission::StoreEpoch { epoch: 2 })
        );
        let fenced = ProducerSpec { topic_epoch: Some(1), ..spec(8, "f", AccessMode::WaitForExclusive) };
        assert_eq!(producers.add(fenced), Err(ProducerError::EpochMoved { current: 2, given: 1 }));
        assert_eq!(producers.waiting(), 0);
    }
}
