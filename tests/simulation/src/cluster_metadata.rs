//! The metadata service: the real repositories and leases over the store in memory, at the other end of a network.
//!
//! It may be away, and an answer may get lost: then it is unknown what became of a request, which may still be on its way.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use geminga_ensemble::{LedgerMetadata, MetadataOutcome};
use geminga_metadata::{ManualClock, MemoryStore, Metadata, MetadataError, Versioned};

use crate::cluster_broker::{Broker, Waiting};
use crate::cluster_messages::{Answer, Ask};
use crate::cluster_sim::{Event, MS, Machine, Micros, SECOND, Sim};
use crate::cluster_tasks::{at_once, promise};

/// How long an answer is waited for.
const PATIENCE: Micros = 2 * SECOND;
/// How long a request may wait in there.
const LATE: Micros = 8 * SECOND;
/// Pause before what could not be written is tried again.
const RETRY: Micros = 200 * MS;

pub struct MetadataService {
    store: MemoryStore,
    clock: ManualClock,
    pub is_up: Cell<bool>,
    /// How many requests wait for others before they are carried out.
    pub lateness: Cell<f64>,
}

impl MetadataService {
    pub fn new() -> MetadataService {
        let clock = ManualClock::starting_at_ms(1_000_000);
        MetadataService {
            store: MemoryStore::with_clock(clock.clone()),
            clock,
            is_up: Cell::new(true),
            lateness: Cell::new(0.0),
        }
    }

    /// As one process has it: ids are taken from the store in blocks.
    pub fn client(&self) -> Metadata {
        Metadata::new(Arc::new(self.store.clone()))
    }

    /// Its clock, which leases expire by.
    pub fn set_time(&self, now: Micros) {
        let now_ms = 1_000_000 + now / MS;
        self.clock.advance_ms(now_ms.saturating_sub(self.clock.now_ms()));
    }

    /// A request arrives.
    pub fn answer(&self, sim: &Sim, broker: usize, life: u32, number: u64, ask: &Ask) {
        if !self.is_up.get() {
            self.set_time(sim.now());
            // As when they go away in the middle of a COMMIT: nobody is told what became of it.
            if sim.likely(0.05) && ask.carry_out() {
                return sim.count("requests carried out by metadata that went away");
            }
            return sim.count("requests that found metadata away");
        }
        if self.lateness.get() > 0.0 && sim.likely(self.lateness.get()) {
            let event = Event::Metadata { broker, life, number, ask: ask.clone() };
            return sim.after(sim.random(0..LATE), event);
        }
        self.set_time(sim.now());
        if ask.carry_out() {
            let answer = Event::Answer { broker, life, number, answer: Answer::Metadata };
            sim.send(Machine::Metadata, Machine::Broker(broker), answer);
        }
    }
}

impl Default for MetadataService {
    fn default() -> Self {
        Self::new()
    }
}

impl Broker {
    /// Asks the metadata service, as `metadata` do: for a bundle its owner's, which are written only while it is the owner.
    ///
    /// # Errors
    /// What the store says; [`MetadataError::OutcomeUnknown`] when no answer comes in time.
    pub async fn ask<T: 'static, F>(
        self: &Rc<Self>,
        metadata: &Metadata,
        what: &'static str,
        ask: impl FnOnce(Metadata) -> F + 'static,
    ) -> Result<T, MetadataError>
    where
        F: Future<Output = Result<T, MetadataError>>,
    {
        let result: Rc<RefCell<Option<Result<T, MetadataError>>>> = Rc::default();
        let (metadata, place) = (metadata.clone(), result.clone());
        let ask = Ask::new(what, move || *place.borrow_mut() = Some(at_once(ask(metadata))));
        let (resolver, answered) = promise();
        let number = self.expect(None, PATIENCE, Waiting::Task(resolver));
        let event = Event::Metadata { broker: self.id, life: self.life, number, ask };
        self.sim.send(Machine::Broker(self.id), Machine::Metadata, event);
        match answered.await {
            Answer::Metadata => result.take().expect("it was answered"),
            _ => Err(MetadataError::OutcomeUnknown("no answer in time".into())),
        }
    }

    /// `None` if the ledger does not exist.
    pub async fn get_ledger(self: &Rc<Self>, ledger: u64) -> Result<Option<Versioned<LedgerMetadata>>, MetadataError> {
        self.ask(&self.metadata, "get ledger", move |metadata| async move { metadata.get_ledger(ledger).await }).await
    }

    pub async fn put_ledger(
        self: &Rc<Self>,
        metadata: &Metadata,
        ledger: u64,
        value: LedgerMetadata,
        version: Option<u64>,
    ) -> Result<u64, MetadataError> {
        let sim = self.sim.clone();
        self.ask(metadata, "put ledger", move |metadata| async move {
            let written = metadata.put_ledger(ledger, &value, version).await;
            match &written {
                Ok(_) => sim.oracle.borrow_mut().metadata_written(&sim, ledger, &value),
                Err(_) => sim.count("conflicts of ledgers' metadata"),
            }
            written
        })
        .await
    }

    /// Writes a ledger's metadata if they have that version still, for as long as it takes to learn what they are; `None` if the
    /// ledger is gone.
    pub async fn write_ledger(
        self: &Rc<Self>,
        ledger: u64,
        value: LedgerMetadata,
        version: u64,
    ) -> Option<MetadataOutcome> {
        loop {
            if let Ok(version) = self.put_ledger(&self.metadata, ledger, value.clone(), Some(version)).await {
                return Some(MetadataOutcome::Written { version });
            }
            // Whoever does not know what became of a write looks.
            match self.get_ledger(ledger).await {
                Ok(Some(Versioned { value, version })) => {
                    return Some(MetadataOutcome::Found { metadata: value, version });
                }
                Ok(None) => return None,
                Err(_) => self.sleep(RETRY).await,
            }
        }
    }

    /// Of ledgers that no record names any more; what fails is left lying around.
    pub fn delete_ledgers(self: &Rc<Self>, ledgers: Vec<u64>) {
        let broker = self.clone();
        self.tasks.spawn(async move {
            for ledger in ledgers {
                let sim = broker.sim.clone();
                let deleted = broker.ask(&broker.metadata, "delete ledger", move |metadata| async move {
                    sim.oracle.borrow_mut().ledger_deleted(ledger, &metadata);
                    metadata.delete_ledger(ledger).await
                });
                if deleted.await.is_ok() {
                    broker.sim.count("ledgers deleted");
                }
            }
        });
    }
}
