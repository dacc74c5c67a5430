//! The log of acknowledgements of one bundle in a simulated broker, and who waits for what of it.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;
use geminga_ledger::cursor_log::{Action, CursorLog, CursorLogConfig, LogLedger, Record};
use geminga_ledger::managed_ledger::WriteError;
use geminga_metadata::Metadata;
use geminga_model::Position;

use crate::cluster_broker::Broker;
use crate::cluster_bundles::log_name;
use crate::cluster_ledgers::{Part, WriteDone};
use crate::cluster_messages::ToClient;
use crate::cluster_oracle::AckToken;
use crate::cluster_ownership::Bundle;
use crate::cluster_plant::Plant;
use crate::cluster_subscriptions::Admission;

/// Small enough that it goes through its ledgers within minutes.
pub const LOG: CursorLogConfig = CursorLogConfig {
    max_entry_bytes: 512,
    max_write_bytes: 1000,
    rotate_bytes: 4000,
    snapshot_step_bytes: 500,
    max_writes: 2,
    max_old_ledgers: 2,
};

/// What becomes true when a record is durable.
pub enum Durable {
    Acknowledged(AckToken),
    /// The client waits for it.
    Asked {
        connection: u64,
        request: u64,
    },
    /// The log was this owner's still when a consumer came.
    Confirmed(Admission),
    /// A snapshot of deduplication.
    Snapshot {
        topic: usize,
        key: u64,
        position: Position,
    },
}

pub struct BundleLog {
    pub log: CursorLog,
    /// Of the bundle's owner.
    metadata: Metadata,
    /// None: nobody has written it yet.
    pub version: Option<u64>,
    last_sequence: u64,
    waiting: VecDeque<(u64, Durable)>,
}

impl BundleLog {
    pub fn new(log: CursorLog, metadata: Metadata, version: Option<u64>) -> BundleLog {
        BundleLog { log, metadata, version, last_sequence: 0, waiting: VecDeque::new() }
    }

    pub fn append(&mut self, record: Record, then: impl IntoIterator<Item = Durable>) {
        // Of one that is sealed or somebody else's nothing becomes durable any more.
        if !self.log.is_fenced() {
            self.last_sequence = self.log.append(record);
            self.after_queued(then);
        }
    }

    /// When everything is durable that was appended until now.
    pub fn after_queued(&mut self, then: impl IntoIterator<Item = Durable>) {
        self.waiting.extend(then.into_iter().map(|then| (self.last_sequence, then)));
    }

    pub fn is_settled(&self) -> bool {
        self.log.durable_up_to() >= self.last_sequence
    }

    fn take_durable(&mut self, plant: Plant) -> Vec<Durable> {
        let durable = if plant == Plant::AckBeforeDurable { u64::MAX } else { self.log.durable_up_to() };
        let mut taken = Vec::new();
        while let Some((_, then)) = self.waiting.pop_front_if(|(sequence, _)| *sequence <= durable) {
            taken.push(then);
        }
        taken
    }
}

impl Broker {
    pub fn pump_log(self: &Rc<Self>, bundle: &mut Bundle) {
        self.tell_durable(bundle);
        self.follow_log(Part { bundle: bundle.range, ownership: bundle.ownership(), topic: None }, &mut bundle.log);
    }

    /// Does what a log wants.
    pub fn follow_log(self: &Rc<Self>, part: Part, log: &mut BundleLog) {
        while let Some(action) = log.log.poll_action() {
            match action {
                Action::Write { ledger_id, first_entry, entries } => {
                    self.append(part, &log.metadata, ledger_id, first_entry as u64, entries);
                }
                Action::CreateLedger => self.create_log_ledger(part, log),
                Action::SaveRecord { list, dropped } => self.save_log_record(part, list, dropped, log),
                Action::DeleteLedgers(ledgers) => self.delete_ledgers(ledgers),
            }
        }
    }

    fn tell_durable(&self, bundle: &mut Bundle) {
        for durable in bundle.log.take_durable(self.sim.plant) {
            match durable {
                Durable::Acknowledged(token) => self.sim.oracle.borrow_mut().ack_durable(token),
                Durable::Asked { connection, request } => {
                    let client = self.connections.borrow().get(&connection).map(|connection| connection.client);
                    if let Some(client) = client {
                        self.say(client, connection, ToClient::Done(request));
                    }
                }
                Durable::Confirmed(admission) => self.admit(bundle, admission),
                Durable::Snapshot { topic, key, position } => {
                    let topic = bundle.topics.get_mut(&topic);
                    let same = topic.filter(|topic| topic.dedup_stored.is_some_and(|stored| stored.key == key));
                    if let Some(dedup) = same.and_then(|topic| topic.dedup.as_mut()) {
                        dedup.durable = dedup.durable.max(position);
                    }
                }
            }
        }
    }

    pub fn with_log(&self, part: Part, change: impl FnOnce(&mut BundleLog)) {
        self.touch(part.bundle);
        if let Some(log) = self.new_logs.borrow_mut().get_mut(&(part.bundle, part.ownership)) {
            return change(log);
        }
        let mut bundles = self.bundles.borrow_mut();
        if let Some(bundle) = bundles.get_mut(&part.bundle).filter(|bundle| bundle.ownership() == part.ownership) {
            change(&mut bundle.log);
        }
    }

    fn create_log_ledger(self: &Rc<Self>, part: Part, log: &BundleLog) {
        let (broker, metadata) = (self.clone(), log.metadata.clone());
        let newest = log.log.record().iter().map(|ledger| ledger.ledger_id).max().unwrap_or(0);
        self.tasks.spawn(async move {
            let ask = move |metadata: Metadata| async move { metadata.next_ledger_id(newest).await };
            let created = broker.ask(&metadata, "ledger id", ask).await;
            broker.with_log(part, |log| match created {
                Ok(id) => log.log.ledger_created(id),
                Err(_) => log.log.ledger_create_failed(),
            });
        });
    }

    fn save_log_record(self: &Rc<Self>, part: Part, list: Vec<LogLedger>, dropped: Vec<u64>, log: &BundleLog) {
        let (broker, metadata, version) = (self.clone(), log.metadata.clone(), log.version);
        self.unsettled_logs.borrow_mut().insert(part.bundle);
        self.tasks.spawn(async move {
            let name = log_name(part.bundle);
            let saved = broker
                .ask(&metadata, "put cursor log", move |metadata| async move {
                    metadata.put_cursor_log(&name, &list, version, &dropped, None).await
                })
                .await;
            if saved.is_ok() {
                broker.unsettled_logs.borrow_mut().remove(&part.bundle);
            }
            broker.with_log(part, |log| match saved {
                Ok(version) => {
                    log.version = Some(version);
                    log.log.record_saved();
                }
                Err(error) if error.is_deposed() => log.log.fence(),
                Err(_) => log.log.record_save_failed(),
            });
        });
    }

    /// An append has ended.
    pub fn written(self: &Rc<Self>, done: WriteDone) {
        if matches!(done.result, Err(WriteError::Failed(_))) {
            self.sim.count("writes that failed");
        }
        let part = done.part;
        if part.topic.is_none() {
            return self.with_log(part, |log| {
                log.log.written(done.ledger, done.first as i64, done.count, done.result);
            });
        }
        let mut bundles = self.bundles.borrow_mut();
        let Some(bundle) = bundles.get_mut(&part.bundle).filter(|bundle| bundle.ownership() == part.ownership) else {
            return;
        };
        self.topic_written(bundle, part.topic.expect("it is no log"), done);
        drop(bundles);
        self.touch(part.bundle);
    }
}

/// The entries of a log that is replayed.
pub fn replay(log: &mut CursorLog, ledger: u64, entries: &[Bytes]) -> Result<(), String> {
    log.replay_ledger(ledger);
    entries.iter().try_for_each(|entry| log.replay_entry(entry)).map_err(|error| error.to_string())
}
