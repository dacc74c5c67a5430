//! What all of a simulated cluster shares: time, what is going to happen, who can reach whom, chance, and the truth.
//!
//! Nothing happens but by an event, and events come in the order of their times (and, at one time, in that in which they were
//! caused), so a seed decides everything.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster_chaos::Fault;
use crate::cluster_messages::{Answer, Ask, Call, ToBroker, ToClient};
use crate::cluster_metadata::MetadataService;
use crate::cluster_network::{Fate, Network};
use crate::cluster_node::Node;
use crate::cluster_oracle::Oracle;
use crate::cluster_plant::Plant;
use crate::cluster_policies::TopicPolicies;
use crate::cluster_simulation::Options;
use crate::ensemble_simulation::Storage;

/// Simulated time since the beginning, in microseconds.
pub type Micros = u64;
pub const MS: Micros = 1_000;
pub const SECOND: Micros = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    Metadata,
    Broker(usize),
    Node(usize),
    Client(usize),
}

/// A process that crashes begins another life; what was meant for the one before is lost.
pub type Life = u32;

#[derive(Clone, Debug)]
pub enum Event {
    Call {
        node: usize,
        broker: usize,
        life: Life,
        number: u64,
        call: Call,
    },
    /// What a node has given to its disk is there, or has failed.
    Synced {
        node: usize,
        life: Life,
    },
    Answer {
        broker: usize,
        life: Life,
        number: u64,
        answer: Answer,
    },
    Metadata {
        broker: usize,
        life: Life,
        number: u64,
        ask: Ask,
    },
    ToBroker {
        broker: usize,
        client: usize,
        connection: u64,
        message: ToBroker,
    },
    ToClient {
        client: usize,
        connection: u64,
        message: ToClient,
    },
    BrokerTick {
        broker: usize,
        life: Life,
    },
    ClientTick {
        client: usize,
    },
    /// Storage nodes look for ledgers that nobody knows any more.
    Sweep {
        node: usize,
    },
    NextFault,
    Heal(Fault),
    /// Everything that must be true is looked at.
    Inspect,
}

impl Event {
    /// Whose processor it takes; a paused one gets to it later.
    pub fn machine(&self) -> Option<Machine> {
        match self {
            Event::Call { node, .. } | Event::Synced { node, .. } | Event::Sweep { node } => Some(Machine::Node(*node)),
            Event::Answer { broker, .. } | Event::ToBroker { broker, .. } | Event::BrokerTick { broker, .. } => {
                Some(Machine::Broker(*broker))
            }
            Event::Metadata { .. } => Some(Machine::Metadata),
            Event::ToClient { client, .. } | Event::ClientTick { client } => Some(Machine::Client(*client)),
            Event::NextFault | Event::Heal(_) | Event::Inspect => None,
        }
    }
}

struct Due {
    at: Micros,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[derive(Default)]
struct Schedule {
    due: BinaryHeap<Reverse<Due>>,
    next_number: u64,
}

/// How often what a run is for has happened.
pub type Seen = BTreeMap<&'static str, u64>;

pub struct Sim {
    pub plant: Plant,
    /// What storage nodes store with.
    pub storage: Storage,
    pub nodes: RefCell<Vec<Node>>,
    pub network: RefCell<Network>,
    pub metadata: MetadataService,
    pub oracle: RefCell<Oracle>,
    /// Of each topic.
    pub policies: RefCell<Vec<TopicPolicies>>,
    pub chance: RefCell<SmallRng>,
    now: Cell<Micros>,
    schedule: RefCell<Schedule>,
    seen: RefCell<Seen>,
    trace: RefCell<Option<String>>,
}

impl Sim {
    pub fn new(seed: u64, options: Options, network: Network) -> Sim {
        Sim {
            plant: options.plant,
            storage: options.storage,
            nodes: RefCell::default(),
            network: RefCell::new(network),
            metadata: MetadataService::new(),
            oracle: RefCell::default(),
            policies: RefCell::default(),
            chance: RefCell::new(SmallRng::seed_from_u64(seed)),
            now: Cell::new(0),
            schedule: RefCell::default(),
            seen: RefCell::default(),
            trace: RefCell::new(options.is_traced.then(String::new)),
        }
    }

    pub fn now(&self) -> Micros {
        self.now.get()
    }

    pub fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.chance.borrow_mut().random_range(range)
    }

    pub fn likely(&self, probability: f64) -> bool {
        self.chance.borrow_mut().random_bool(probability)
    }

    pub fn after(&self, delay: Micros, event: Event) {
        self.at(self.now() + delay, event);
    }

    pub fn at(&self, at: Micros, event: Event) {
        let mut schedule = self.schedule.borrow_mut();
        let number = schedule.next_number;
        schedule.next_number += 1;
        schedule.due.push(Reverse(Due { at, number, event }));
    }

    /// The next event, at its time.
    pub fn next(&self) -> Option<Event> {
        let Reverse(due) = self.schedule.borrow_mut().due.pop()?;
        self.now.set(due.at.max(self.now()));
        if self.trace.borrow().is_some() {
            self.note(format_args!("{:?}", due.event));
        }
        Some(due.event)
    }

    /// A datagram, or what behaves like one because whoever sends it gives up waiting in the end.
    pub fn send(&self, from: Machine, to: Machine, event: Event) {
        let fate = self.network.borrow_mut().fate_of(from, to);
        self.deliver(fate, from, to, event);
    }

    /// On a connection: in order, and if something does not arrive then nothing that follows does.
    pub fn send_on(&self, connection: u64, from: Machine, to: Machine, event: Event) {
        let fate = self.network.borrow_mut().fate_on(connection, from, to, self.now());
        self.deliver(fate, from, to, event);
    }

    fn deliver(&self, fate: Fate, from: Machine, to: Machine, event: Event) {
        match fate {
            Fate::Lost => self.count("messages lost"),
            Fate::Held => {
                self.count("messages held up");
                self.network.borrow_mut().hold(from, to, event);
            }
            Fate::Arrives { after, again } => {
                if let Some(again) = again {
                    self.count("messages repeated");
                    self.after(again, event.clone());
                }
                self.after(after, event);
            }
        }
    }

    /// What was held up and may pass now goes on its way.
    pub fn release_held(&self) {
        let released = self.network.borrow_mut().take_free();
        for (from, to, event) in released {
            match &event {
                Event::ToBroker { connection, .. } | Event::ToClient { connection, .. } => {
                    let connection = *connection;
                    self.send_on(connection, from, to, event);
                }
                _ => self.send(from, to, event),
            }
        }
    }

    pub fn count(&self, what: &'static str) {
        self.count_many(what, 1);
    }

    pub fn count_many(&self, what: &'static str, times: u64) {
        *self.seen.borrow_mut().entry(what).or_default() += times;
    }

    pub fn take_seen(&self) -> Seen {
        self.seen.take()
    }

    /// A line of the trace.
    pub fn note(&self, what: std::fmt::Arguments) {
        if let Some(trace) = &mut *self.trace.borrow_mut() {
            writeln!(trace, "{:>12} {what}", self.now()).expect("strings take everything");
        }
    }

    pub fn take_trace(&self) -> String {
        self.trace.borrow_mut().take().unwrap_or_default()
    }
}
