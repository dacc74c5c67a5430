//! A broker process of a simulated cluster: what it waits for, its connections, and the bundles that it owns.
//!
//! It is a thin driver of the pure crates, as `data-plane/broker` and `ledger/replicated` are with tokio.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use geminga_ensemble::{NodeId, Quorum};
use geminga_metadata::Metadata;
use geminga_model::BundleRange;

use crate::cluster_bundles::hash_of;
use crate::cluster_cursors::BundleLog;
use crate::cluster_ledgers::{Ledgers, WriteDone, node_number};
use crate::cluster_membership::Membership;
use crate::cluster_messages::{Answer, Call, ToBroker, ToClient};
use crate::cluster_ownership::Bundle;
use crate::cluster_recovery::Step;
use crate::cluster_sim::{Event, Life, MS, Machine, Micros, SECOND, Sim};
use crate::cluster_tasks::{Resolver, Tasks, promise};

/// How often what is overdue is looked for.
pub const TICK: Micros = 100 * MS;
/// How long a storage node may take.
const CALL_PATIENCE: Micros = 3 * SECOND;
/// How long a connection may be silent.
const SILENCE: Micros = 12 * SECOND;

/// What goes on when an answer comes, or none in time.
pub enum Waiting {
    Task(Resolver<Answer>),
    Add { ledger: u64, entry: u64 },
    Recovery { recovery: u64, step: Step },
}

struct Expected {
    node: Option<usize>,
    until: Micros,
    waiting: Waiting,
}

pub struct Connection {
    pub client: usize,
    pub bundle: BundleRange,
    pub topic: usize,
    pub subscription: Option<usize>,
    heard_at: Micros,
}

pub struct Broker {
    pub id: usize,
    pub life: Life,
    pub sim: Rc<Sim>,
    pub tasks: Tasks,
    pub quorum: Quorum,
    /// Whether deduplication is on, by topic.
    pub metadata: Metadata,
    pub ledgers: RefCell<Ledgers>,
    pub done: RefCell<VecDeque<WriteDone>>,
    /// Of the namespace, as this broker has heard last.
    pub ranges: RefCell<Vec<BundleRange>>,
    pub bundles: RefCell<BTreeMap<BundleRange, Bundle>>,
    /// Of parts of bundles that are being cut, by part and the ownership of the bundle.
    pub new_logs: RefCell<BTreeMap<(BundleRange, u64), BundleLog>>,
    /// Bundles that are being taken over.
    pub moving: RefCell<BTreeSet<BundleRange>>,
    /// Topics of which a record may still come to be written that was begun here.
    pub unsettled: RefCell<BTreeSet<usize>>,
    /// The same of cursor logs.
    pub unsettled_logs: RefCell<BTreeSet<BundleRange>>,
    /// Something has changed in these.
    pub touched: RefCell<BTreeSet<BundleRange>>,
    pub connections: RefCell<BTreeMap<u64, Connection>>,
    pub suspects: RefCell<BTreeMap<usize, Micros>>,
    pub member: Membership,
    /// How often it has opened bundles.
    pub opened: Cell<u64>,
    /// How much its clock is ahead, in milliseconds.
    pub skew_ms: Cell<u64>,
    expected: RefCell<BTreeMap<u64, Expected>>,
    next_number: Cell<u64>,
    ticks: Cell<u64>,
}

impl Broker {
    pub fn new(id: usize, life: Life, sim: Rc<Sim>, quorum: Quorum) -> Rc<Broker> {
        let skew_ms = sim.random(0..20_000);
        let broker = Rc::new(Broker {
            id,
            life,
            metadata: sim.metadata.client(),
            tasks: Tasks::default(),
            quorum,
            ledgers: RefCell::default(),
            done: RefCell::default(),
            ranges: RefCell::default(),
            bundles: RefCell::default(),
            new_logs: RefCell::default(),
            moving: RefCell::default(),
            unsettled: RefCell::default(),
            unsettled_logs: RefCell::default(),
            touched: RefCell::default(),
            connections: RefCell::default(),
            suspects: RefCell::default(),
            member: Membership::default(),
            opened: Cell::new(0),
            skew_ms: Cell::new(skew_ms),
            expected: RefCell::default(),
            next_number: Cell::new(0),
            ticks: Cell::new(0),
            sim,
        });
        broker.sim.after(TICK, Event::BrokerTick { broker: id, life });
        broker.take_part();
        broker
    }

    /// How many topics there are.
    pub fn topics(&self) -> usize {
        self.sim.policies.borrow().len()
    }

    /// Its own clock, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        1_000_000 + self.sim.now() / MS + self.skew_ms.get()
    }

    /// An answer is waited for; its number.
    pub fn expect(&self, node: Option<usize>, patience: Micros, waiting: Waiting) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let until = self.sim.now() + patience;
        self.expected.borrow_mut().insert(number, Expected { node, until, waiting });
        number
    }

    /// Asks a storage node; false if there is none of that name, and nothing will be heard.
    pub fn call(&self, node: &NodeId, call: Call, waiting: Waiting) -> bool {
        self.call_for(CALL_PATIENCE, node, call, waiting)
    }

    pub fn call_for(&self, patience: Micros, node: &NodeId, call: Call, waiting: Waiting) -> bool {
        let Some(node) = node_number(node) else { return false };
        let number = self.expect(Some(node), patience, waiting);
        let event = Event::Call { node, broker: self.id, life: self.life, number, call };
        self.sim.send(Machine::Broker(self.id), Machine::Node(node), event);
        true
    }

    pub async fn sleep(&self, time: Micros) {
        let (resolver, over) = promise();
        self.expect(None, time, Waiting::Task(resolver));
        over.await;
    }

    pub fn answered(self: &Rc<Self>, number: u64, answer: Answer) {
        let expected = self.expected.borrow_mut().remove(&number);
        if let Some(expected) = expected {
            self.go_on(expected, answer);
        }
    }

    fn go_on(self: &Rc<Self>, expected: Expected, answer: Answer) {
        match expected.waiting {
            Waiting::Task(resolver) => resolver.resolve(answer),
            Waiting::Add { ledger, entry } => {
                self.added(ledger, entry, expected.node.expect("nodes take adds"), &answer);
            }
            Waiting::Recovery { recovery, step } => {
                self.recovery_heard(recovery, step, expected.node.expect("nodes are asked"), answer);
            }
        }
        self.drive();
    }

    pub fn tick(self: &Rc<Self>) {
        self.sim.after(TICK, Event::BrokerTick { broker: self.id, life: self.life });
        let now = self.sim.now();
        let overdue: Vec<Expected> =
            self.expected.borrow_mut().extract_if(.., |_, expected| expected.until <= now).map(|(_, e)| e).collect();
        for expected in overdue {
            let answer = if expected.node.is_some() { Answer::Failed } else { Answer::Time };
            self.go_on(expected, answer);
        }
        let ticks = self.ticks.get();
        self.ticks.set(ticks + 1);
        if ticks.is_multiple_of(10) {
            self.close_silent();
            self.time_passes(ticks.is_multiple_of(50));
        }
        if ticks.is_multiple_of(50) {
            self.nodes_changed();
        }
        self.drive();
    }

    fn close_silent(&self) {
        let now = self.sim.now();
        let connections = self.connections.borrow();
        let silent = connections.iter().filter(|(_, connection)| connection.heard_at + SILENCE < now);
        let silent: Vec<u64> = silent.map(|(id, _)| *id).collect();
        drop(connections);
        silent.into_iter().for_each(|connection| self.close(connection, ToClient::Closed));
    }

    /// Runs tasks, completions and state machines until nothing more is to be done at this time.
    pub fn drive(self: &Rc<Self>) {
        loop {
            let ran = self.tasks.run();
            let done = self.done.borrow_mut().pop_front();
            if let Some(done) = done {
                self.written(done);
                continue;
            }
            let bundle = self.touched.borrow_mut().pop_first();
            if let Some(bundle) = bundle {
                self.pump(bundle);
                continue;
            }
            if !ran {
                return;
            }
        }
    }

    pub fn touch(&self, bundle: BundleRange) {
        self.touched.borrow_mut().insert(bundle);
    }

    pub fn say(&self, client: usize, connection: u64, message: ToClient) {
        let event = Event::ToClient { client, connection, message };
        self.sim.send_on(connection, Machine::Broker(self.id), Machine::Client(client), event);
    }

    pub fn answer_ping(&self, connection: u64) {
        let client = self.connections.borrow().get(&connection).map(|connection| connection.client);
        if let Some(client) = client {
            self.say(client, connection, ToClient::Pong);
        }
    }

    /// A client has said something.
    pub fn heard(self: &Rc<Self>, client: usize, connection: u64, message: ToBroker) {
        if let ToBroker::Connect { topic, subscription } = message {
            self.connect(client, connection, topic, subscription);
            return self.drive();
        }
        let (bundle, topic) = match self.connections.borrow_mut().get_mut(&connection) {
            Some(known) => {
                known.heard_at = self.sim.now();
                (known.bundle, known.topic)
            }
            None => return self.say(client, connection, ToClient::Closed),
        };
        if let Some(owned) = self.bundles.borrow_mut().get_mut(&bundle) {
            self.hear_about(owned, topic, connection, message);
        }
        self.touch(bundle);
        self.drive();
    }

    fn connect(self: &Rc<Self>, client: usize, connection: u64, topic: usize, subscription: Option<usize>) {
        // A client that comes again has given its old connection up.
        let connections = self.connections.borrow();
        let old: Vec<u64> = connections.iter().filter(|(_, old)| old.client == client).map(|(id, _)| *id).collect();
        drop(connections);
        old.into_iter().for_each(|old| self.close(old, ToClient::Closed));
        let bundle = self.ranges.borrow().iter().copied().find(|range| range.contains(hash_of(topic)));
        let Some(bundle) = bundle else {
            let broker = self.clone();
            self.tasks.spawn(async move { drop(broker.learn_bundles().await) });
            return self.say(client, connection, ToClient::NotReady);
        };
        if !self.is_serving(bundle) {
            let answer = self.owner_elsewhere(bundle).map_or(ToClient::NotReady, ToClient::Owner);
            self.open_soon(bundle);
            return self.say(client, connection, answer);
        }
        let heard_at = self.sim.now();
        self.connections.borrow_mut().insert(connection, Connection { client, bundle, topic, subscription, heard_at });
        let mut bundles = self.bundles.borrow_mut();
        let owned = bundles.get_mut(&bundle).expect("it is served");
        match subscription {
            Some(subscription) => self.admit_surely(owned, topic, subscription, connection),
            None => self.say(client, connection, ToClient::Connected),
        }
        drop(bundles);
        self.touch(bundle);
    }

    /// Ends a connection with a last message.
    pub fn close(&self, connection: u64, message: ToClient) {
        let Some(closed) = self.connections.borrow_mut().remove(&connection) else { return };
        self.say(closed.client, connection, message);
        let bundle = closed.bundle;
        if let Some(owned) = self.bundles.borrow_mut().get_mut(&bundle) {
            self.leave(owned, closed.topic, closed.subscription, connection);
            self.touch(bundle);
        }
    }

    /// The process is gone.
    pub fn crash(&self) {
        self.tasks.end();
        self.expected.take();
        self.bundles.take();
        self.new_logs.take();
        self.ledgers.take();
    }
}
