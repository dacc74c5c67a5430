//! A seed's life of a log of whole ledgers: what is asked, in which order writes complete, what the disk does, when the
//! machine crashes.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use geminga_log::engine::Request;
use geminga_log::{Admission, Append, AppendError, FenceError};
use rand::Rng;

use crate::machine::{Machine, Stop};
use crate::model::{Model, content};

const STEPS: usize = 160;
const LEDGERS_MAX: usize = 12;

enum Answer {
    Append { call: u64, ledger: u64, first: u64, count: u64, result: Result<(), AppendError> },
    Fence { ledger: u64, result: Result<Option<u64>, FenceError> },
    Delete { ledgers: Vec<u64>, result: Result<(), AppendError> },
}

pub struct World {
    machine: Machine,
    answers: Arc<Mutex<Vec<Answer>>>,
    model: Model,
    next_ledger: u64,
    next_call: u64,
    answered_call: u64,
}

/// Everything that a seed did and left behind.
#[derive(PartialEq, Eq)]
pub struct Outcome {
    pub trace: String,
    pub files: Vec<(String, Vec<u8>)>,
}

pub fn run(seed: u64) -> Outcome {
    let mut world = World {
        machine: Machine::new(seed, false),
        answers: Arc::default(),
        model: Model::default(),
        next_ledger: 1,
        next_call: 0,
        answered_call: 0,
    };
    for _ in 0..STEPS {
        world.step();
    }
    world.end();
    Outcome { trace: std::mem::take(&mut world.machine.trace), files: world.machine.disk.contents() }
}

impl World {
    fn step(&mut self) {
        match self.machine.rng.random_range(0..100) {
            0..28 => self.append(),
            28..32 => self.fence(),
            32..36 => self.delete(),
            36..56 => {
                self.machine.begin();
            }
            56..70 => self.machine.write_one(),
            70..84 => self.machine.finish_one(),
            84..91 => self.machine.maintain(),
            91 => self.lose_block(),
            92..96 => self.read(),
            96..98 => {
                let changes = self.machine.rng.random_range(1..20);
                self.machine.disk.crash_after(changes);
                self.machine.note(format_args!("will crash after {changes}"));
            }
            98 => self.restart(Stop::Kill),
            _ => self.restart(Stop::Close),
        }
        self.settle();
    }

    fn settle(&mut self) {
        self.take_answers();
        if self.machine.disk.has_crashed() {
            self.restart(Stop::Crash);
        }
    }

    fn append(&mut self) {
        let open: Vec<u64> =
            self.model.ledgers.iter().filter(|(_, known)| known.takes_entries()).map(|(id, _)| *id).collect();
        let ledger = if open.len() < LEDGERS_MAX && self.machine.rng.random_bool(0.2) || open.is_empty() {
            self.next_ledger += 1;
            self.next_ledger - 1
        } else if self.machine.rng.random_bool(0.03) {
            // A deposed writer. It was one of this process, so it knows where it was.
            let ledger = self.machine.rng.random_range(1..self.next_ledger);
            if self.model.ledgers[&ledger].is_unknown {
                return;
            }
            ledger
        } else {
            open[self.machine.rng.random_range(0..open.len())]
        };
        let was_refused = self.machine.rng.random_bool(0.01);
        self.append_to(ledger, was_refused);
    }

    fn append_to(&mut self, ledger: u64, was_refused: bool) {
        let count = self.machine.rng.random_range(1..10);
        let known = self.model.ledgers.entry(ledger).or_default();
        let first = known.submitted;
        known.submitted += count;
        let reserve = self.machine.rng.random_bool(0.1);
        let entries = (first..first + count).map(|entry| {
            let bytes = content(ledger, entry);
            let cut = bytes.len() / 3;
            let parts = [Bytes::copy_from_slice(&bytes[..cut]), Bytes::new(), Bytes::copy_from_slice(&bytes[cut..])];
            Append { ledger, entry, parts, reserve }
        });
        let (answers, call) = (self.answers.clone(), self.next_call);
        self.next_call += 1;
        let done = Box::new(move |result| {
            answers.lock().unwrap().push(Answer::Append { call, ledger, first, count, result });
        });
        let request = if was_refused {
            Request::Refused { ledgers: vec![ledger], done, error: AppendError::Overloaded }
        } else {
            Request::Append { entries: entries.collect(), admission: Admission::Whole, done }
        };
        self.machine.queue.push_back(request);
        self.machine.note(format_args!("append {ledger}:{first}+{count}"));
    }

    fn any_ledger(&mut self) -> Option<u64> {
        (self.next_ledger > 1).then(|| self.machine.rng.random_range(1..self.next_ledger))
    }

    fn fence(&mut self) {
        let Some(ledger) = self.any_ledger() else { return };
        self.ask_fence(ledger);
    }

    fn ask_fence(&mut self, ledger: u64) {
        self.model.ledgers.get_mut(&ledger).expect("exists").fence_asked = true;
        let answers = self.answers.clone();
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Fence { ledger, result }));
        self.machine.queue.push_back(Request::Fence { ledger, key: None, done });
        self.machine.note(format_args!("fence {ledger}"));
    }

    fn delete(&mut self) {
        let count = self.machine.rng.random_range(1..4);
        let ledgers: Vec<u64> = (0..count).filter_map(|_| self.any_ledger()).collect();
        self.ask_deletion(ledgers);
    }

    fn ask_deletion(&mut self, ledgers: Vec<u64>) {
        for ledger in &ledgers {
            self.model.ledgers.get_mut(ledger).expect("exists").deletion_asked = true;
        }
        self.machine.note(format_args!("delete {ledgers:?}"));
        let (answers, told) = (self.answers.clone(), ledgers.clone());
        let done = Box::new(move |result| answers.lock().unwrap().push(Answer::Delete { ledgers: told, result }));
        self.machine.queue.push_back(Request::Delete { ledgers, done });
    }

    fn take_answers(&mut self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        for answer in answers {
            match answer {
                Answer::Append { call, ledger, first, count, result } => {
                    assert!(call >= self.answered_call, "answers come in order");
                    self.answered_call = call + 1;
                    self.machine.note(format_args!("appended {ledger}:{first}+{count}: {result:?}"));
                    self.model.appended(ledger, first, count, &result);
                }
                Answer::Fence { ledger, result } => {
                    self.machine.note(format_args!("fenced {ledger}: {result:?}"));
                    self.model.fenced(ledger, &result);
                }
                Answer::Delete { ledgers, result } => {
                    self.machine.note(format_args!("deleted {ledgers:?}: {result:?}"));
                    if result.is_ok() {
                        ledgers.iter().for_each(|id| self.model.ledgers.get_mut(id).expect("asked for").deleted = true);
                    } else {
                        assert!(
                            self.machine.has_faults() || self.machine.disk.has_crashed(),
                            "deleting fails only with the disk: {result:?}"
                        );
                    }
                }
            }
        }
    }

    fn read(&mut self) {
        let Some(ledger) = self.any_ledger() else { return };
        let first = self.machine.rng.random_range(0..=self.model.ledgers[&ledger].submitted);
        let last = first + self.machine.rng.random_range(0..30);
        let max_bytes = self.machine.rng.random_range(0..5000);
        let fail = self.machine.rng.random_bool(0.5);
        self.model.reads_fail = self.machine.let_reads_fail(fail);
        self.model.check_range(&self.machine.engine, ledger, first, last, max_bytes);
        self.model.reads_fail = self.machine.let_reads_fail(false);
    }

    fn lose_block(&mut self) {
        self.machine.lose_block();
        self.note_damages();
    }

    fn note_damages(&mut self) {
        self.model.damages = self.machine.damages();
        self.model.unreadable_max = self.machine.unreadable_max();
    }

    fn restart(&mut self, stop: Stop) {
        if matches!(stop, Stop::Close) {
            self.machine.drain();
            self.take_answers();
        }
        self.machine.restart(stop);
        self.answers.lock().unwrap().clear();
        self.answered_call = self.next_call;
        self.note_damages();
        self.model.check(&self.machine.engine, true);
        for known in self.model.ledgers.values_mut() {
            known.given_up |= self.machine.rng.random_bool(0.5);
            if !known.is_unknown {
                known.submitted = known.durable;
            }
            known.fence_asked = known.fenced.is_some() || known.fence_asked && self.machine.rng.random_bool(0.5);
        }
    }

    /// Without any more faults everything can be deleted, the space comes back, and the log takes entries.
    fn end(&mut self) {
        self.machine.heal();
        self.machine.drain();
        self.settle();
        self.model.check(&self.machine.engine, false);
        self.restart(Stop::Close);
        let ledgers: Vec<u64> = self.machine.engine.ledgers();
        ledgers.iter().for_each(|&ledger| {
            self.model.ledgers.entry(ledger).or_default();
        });
        self.ask_deletion(ledgers);
        for _ in 0..12 {
            self.machine.drain();
            self.take_answers();
            self.machine.engine.prepare_next().expect("no faults");
            self.machine.engine.seal_retired().expect("no faults");
            self.machine.engine.check_space();
            self.machine.reclaim().expect("no faults");
        }
        self.machine.drain();
        self.take_answers();
        assert_eq!(self.machine.engine.ledgers(), [0; 0]);
        let stats = self.machine.engine.stats();
        assert!(self.model.damages > 0 || stats.segments <= 3, "the space does not come back: {stats:?}");
        if self.model.damages == 0 {
            assert!(!self.machine.small_disk || !self.machine.engine.is_full(), "still full: {stats:?}");
            self.append_to(self.next_ledger, false);
            self.machine.drain();
            self.take_answers();
            assert!(self.model.ledgers[&self.next_ledger].durable > 0, "takes no entries");
        }
        self.restart(Stop::Crash);
    }
}
