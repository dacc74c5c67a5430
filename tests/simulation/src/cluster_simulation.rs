//! A whole cluster from one seed: brokers that own bundles of topics under leases, replicated ledgers on storage nodes, metadata,
//! producers and consumers, and whatever goes wrong between and in them.
//!
//! Times of faults alternate with times without: then everything has to come to rest within a bound, with nothing lost.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use geminga_ensemble::{LedgerMetadata, Quorum, Share, plant};
use geminga_metadata::policies::BundlesData;
use geminga_metadata::{Metadata, Policies, TenantInfo, TopicRecord, Versioned};
use geminga_model::Position;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cluster_broker::Broker;
use crate::cluster_bundles::{check_bundles, namespace};
use crate::cluster_chaos::Chaos;
use crate::cluster_clients::{Client, Mood};
use crate::cluster_deduplication::create_subscriptions;
use crate::cluster_ledgers::{digest_of, node_name};
use crate::cluster_messages::Answer;
use crate::cluster_network::{Layout, Network};
use crate::cluster_node::{Node, Outcome, ReplyTo};
use crate::cluster_plant::Plant;
use crate::cluster_policies::TopicPolicies;
use crate::cluster_sim::{Event, Life, MS, Machine, Micros, SECOND, Seen, Sim};
use crate::cluster_tasks::at_once;
use crate::cluster_topic::topic_name;
use crate::ensemble_simulation::Storage;
use crate::ledger_oracle::positions;

const NODES: usize = 6;
/// With those that come in the place of lost ones.
pub const NODES_MAX: usize = 12;
pub const SUBSCRIPTIONS: usize = 2;
/// Within which everything comes to rest once nothing fails any more.
const REST: Micros = 90 * SECOND;
/// How often a storage node looks for ledgers that nobody knows any more.
pub const SWEEP: Micros = 12 * SECOND;
const INSPECTION: Micros = 10 * SECOND;

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub plant: Plant,
    /// Of the storage nodes.
    pub storage: Storage,
    /// Simulated.
    pub minutes: u64,
    pub is_traced: bool,
}

#[derive(Clone, Debug)]
pub struct Report {
    pub seen: Seen,
    pub simulated: Micros,
    pub trace: String,
    /// What was violated, if anything.
    pub violation: Option<String>,
}

pub struct World {
    pub sim: Rc<Sim>,
    pub rng: SmallRng,
    quorum: Quorum,
    /// Topics whose deduplication may be switched on and off.
    pub may_deduplicate: Vec<bool>,
    pub brokers: Vec<Option<Rc<Broker>>>,
    lives: Vec<Life>,
    clients: Vec<Client>,
    mood: Mood,
    /// Machines that do nothing, with what waits for them.
    pub paused: BTreeMap<Machine, Vec<Event>>,
    chaos: Chaos,
    /// Bits were flipped, or entries forgotten, on some node.
    pub is_hurt: bool,
    /// More disks were lost than may be at once.
    pub lost_another: bool,
}

/// Runs one seed.
pub fn run(seed: u64, options: Options) -> Report {
    plant_everywhere(options.plant);
    let mut world = World::new(seed, options);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run(options.minutes * 60 * SECOND)));
    plant_everywhere(Plant::None);
    let violation = ran.err().map(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
    });
    let sim = &world.sim;
    Report { seen: sim.take_seen(), simulated: sim.now(), trace: sim.take_trace(), violation }
}

fn plant_everywhere(bug: Plant) {
    plant(match bug {
        Plant::Client(bug) => Some(bug),
        _ => None,
    });
    geminga_topic::plant(match bug {
        Plant::Topic(bug) => Some(bug),
        _ => None,
    });
    geminga_log::plant(match bug {
        Plant::Engine(bug) => Some(bug),
        _ => None,
    });
}

impl Drop for World {
    fn drop(&mut self) {
        // Tasks and their broker hold each other.
        self.brokers.iter().flatten().for_each(|broker| broker.crash());
    }
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let quorums = [(3, 3, 2), (3, 3, 2), (3, 2, 2), (4, 3, 2), (5, 3, 2), (3, 3, 3)];
        let &(ensemble, write, ack) = quorums.choose(&mut rng).expect("there are some");
        let (topics, bundles) = (rng.random_range(1..=3), rng.random_range(1..=2));
        let producers: Vec<usize> = (0..topics).flat_map(|topic| vec![topic; rng.random_range(1..=2)]).collect();
        let consumers: Vec<(usize, usize)> =
            (0..topics).flat_map(|topic| [(topic, 0), (topic, 1), (topic, 1)]).collect();
        let layout =
            Layout { brokers: rng.random_range(2..=3), nodes: NODES_MAX, clients: producers.len() + consumers.len() };
        let network = Network::new(layout, SmallRng::from_rng(&mut rng));
        let sim = Rc::new(Sim::new(rng.random(), options, network));
        let victims = ack as usize - 1;
        let chaos = Chaos::new(&mut rng, layout, NODES, topics, victims);
        for node in 0..NODES {
            let mut state = Node::new(options.storage, options.plant, SmallRng::from_rng(&mut rng));
            state.is_victim = chaos.victims.contains(&node);
            sim.nodes.borrow_mut().push(state);
            sim.after(rng.random_range(0..SWEEP), Event::Sweep { node });
        }
        let may_deduplicate: Vec<bool> = (0..topics).map(|_| rng.random_bool(0.3)).collect();
        let policies: Vec<TopicPolicies> = (0..topics).map(|_| TopicPolicies::first(&mut rng)).collect();
        let always = policies.iter().zip(&may_deduplicate).map(|(policies, may)| policies.deduplicates && !may);
        sim.oracle.borrow_mut().begin(&always.collect::<Vec<_>>(), SUBSCRIPTIONS);
        at_once(create_records(&sim.metadata.client(), &policies, bundles));
        *sim.policies.borrow_mut() = policies;
        let mut clients = Vec::new();
        for topic in producers {
            let (id, rng) = (clients.len(), SmallRng::from_rng(&mut rng));
            clients.push(Client::producer(sim.clone(), id, topic, layout.brokers, rng));
        }
        for (topic, subscription) in consumers {
            let (id, rng) = (clients.len(), SmallRng::from_rng(&mut rng));
            clients.push(Client::consumer(sim.clone(), id, topic, subscription, layout.brokers, rng));
        }
        let mut world = World {
            quorum: Quorum { ensemble, write, ack },
            may_deduplicate,
            brokers: vec![None; layout.brokers],
            lives: vec![0; layout.brokers],
            clients,
            mood: Mood::Lively,
            paused: BTreeMap::new(),
            chaos,
            is_hurt: false,
            lost_another: false,
            sim,
            rng,
        };
        (0..layout.brokers).for_each(|broker| world.start_broker(broker));
        world.sim.after(INSPECTION, Event::Inspect);
        world
    }

    fn run(&mut self, time: Micros) {
        while self.sim.now() < time {
            self.mood = Mood::Lively;
            self.sim.after(self.chaos.next_pause(), Event::NextFault);
            let trouble = self.rng.random_range(60 * SECOND..240 * SECOND);
            self.run_for(trouble);
            self.heal();
            self.sim.oracle.borrow().check_disks(&self.sim);
            self.mood = Mood::Orderly;
            self.run_for(3 * SECOND);
            self.come_to_rest();
        }
        // Whoever takes over now has only what is durable.
        (0..self.brokers.len()).for_each(|broker| self.stop_broker(broker));
        (0..self.brokers.len()).for_each(|broker| self.start_broker(broker));
        self.come_to_rest();
        self.read_everything();
        for (number, node) in self.sim.nodes.borrow().iter().enumerate() {
            if let Some(digest) = node.store.digest() {
                self.sim.note(format_args!("node {number} has {digest:x}"));
            }
        }
    }

    fn run_for(&mut self, time: Micros) {
        let until = self.sim.now() + time;
        while self.sim.now() < until {
            self.step();
        }
    }

    fn come_to_rest(&mut self) {
        self.mood = Mood::Quiet;
        let begin = self.sim.now();
        while !self.is_at_rest() {
            assert!(
                self.sim.now() < begin + REST,
                "not at rest {} s after the last fault: {}",
                REST / SECOND,
                self.wait()
            );
            self.run_for(500 * MS);
        }
        self.sim.count("times that everything came to rest");
    }

    /// Everything that was sent is stored, read and acknowledged.
    fn is_at_rest(&self) -> bool {
        self.clients.iter().all(Client::is_idle) && self.wait().is_empty()
    }

    /// What is waited for.
    fn wait(&self) -> String {
        let mut waits = Vec::new();
        for topic in 0..self.may_deduplicate.len() {
            let mut owners = 0;
            for broker in self.brokers.iter().flatten() {
                let bundles = broker.bundles.borrow();
                let Some(owned) = broker.bundle_with(topic).map(|bundle| &bundles[&bundle]) else { continue };
                owners += 1;
                let topic = &owned.topics[&topic];
                let list = topic.ledger.list();
                for (number, sub) in topic.subscriptions.iter().enumerate() {
                    let backlog = sub.core.cursor().unacked_entries(list);
                    if backlog > 0 {
                        waits.push(format!("{backlog} entries of subscription {number} of topic {}", topic.number));
                    }
                }
                if topic.ledger.pending_bytes() > 0 || !owned.log.is_settled() {
                    waits.push(format!("writes of topic {}: {:?}", topic.number, topic.ledger.waiting_for()));
                }
            }
            if owners != 1 {
                waits.push(format!("{owners} owners of topic {topic}"));
            }
        }
        let busy = self.clients.iter().filter(|client| !client.is_idle()).count();
        if busy > 0 {
            waits.push(format!("{busy} clients"));
        }
        waits.join(", ")
    }

    /// A last reader finds every entry that is not trimmed before it comes to it.
    fn read_everything(&mut self) {
        for topic in 0..self.may_deduplicate.len() {
            let owner = self.brokers.iter().flatten().find(|broker| broker.bundle_with(topic).is_some());
            let owner = owner.expect("every topic has an owner").clone();
            let bundle = owner.bundle_with(topic).expect("it has the topic");
            let all: Vec<Position> = positions(owner.bundles.borrow()[&bundle].topics[&topic].ledger.list()).collect();
            let (reader, count) = (owner.clone(), all.len() as u64);
            let (resolver, read) = crate::cluster_tasks::promise();
            owner.tasks.spawn(async move {
                for position in all {
                    let read = reader.read_entry(position.ledger_id, position.entry_id as u64).await;
                    let bundles = reader.bundles.borrow();
                    let exists = bundles[&bundle].topics[&topic].ledger.list().contains(position);
                    assert!(read.is_ok() || !exists, "at the end, {position}: {read:?}");
                }
                resolver.resolve(());
            });
            owner.drive();
            let mut read = std::pin::pin!(read);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let begin = self.sim.now();
            while std::future::Future::poll(read.as_mut(), &mut context).is_pending() {
                assert!(self.sim.now() < begin + REST, "reading everything does not end");
                self.step();
            }
            self.sim.count_many("entries read at the end", count);
        }
    }

    fn step(&mut self) {
        let event = self.sim.next().expect("clients never stop");
        if let Some(machine) = event.machine()
            && let Some(waiting) = self.paused.get_mut(&machine)
        {
            return waiting.push(event);
        }
        match event {
            Event::Call { node, broker, life, number, call } => {
                let reply = ReplyTo { broker, life, number };
                let heir = self.sim.nodes.borrow()[node].heir;
                let at = heir.unwrap_or(node);
                let outcome = match &mut self.sim.nodes.borrow_mut()[at] {
                    state if !state.is_up => return,
                    // It says who it is, and the connection is left.
                    _ if heir.is_some() && self.sim.plant != Plant::EmptyNodeIsTrusted => {
                        self.sim.count("calls that found another node");
                        Outcome { answers: vec![(reply, Answer::Failed)], sync: None }
                    }
                    state => state.ask(reply, call),
                };
                self.follow_node(at, outcome);
            }
            Event::Synced { node, life } => {
                let outcome = match &mut self.sim.nodes.borrow_mut()[node] {
                    state if state.is_up && state.life == life => state.synced(),
                    _ => return,
                };
                self.follow_node(node, outcome);
            }
            Event::Answer { broker, life, number, answer } => {
                if let Some(broker) = self.alive(broker, life) {
                    broker.answered(number, answer);
                }
            }
            Event::Metadata { broker, life, number, ask } => {
                self.sim.metadata.answer(&self.sim, broker, life, number, &ask);
            }
            Event::ToBroker { broker, client, connection, message } => {
                if let Some(broker) = self.brokers[broker].clone() {
                    broker.heard(client, connection, message);
                }
            }
            Event::ToClient { client, connection, message } => {
                self.clients[client].hear(connection, message, self.mood);
            }
            Event::BrokerTick { broker, life } => {
                if let Some(broker) = self.alive(broker, life) {
                    broker.tick();
                }
            }
            Event::ClientTick { client } => self.clients[client].tick(self.mood),
            Event::Sweep { node } => self.sweep(node),
            Event::NextFault if self.mood != Mood::Lively => (),
            Event::NextFault => {
                self.sim.after(self.chaos.next_pause(), Event::NextFault);
                if let Some(happening) = self.chaos.draw() {
                    self.happen(happening);
                    self.sim.oracle.borrow().check_disks(&self.sim);
                }
            }
            Event::Heal(fault) => {
                self.end(fault);
                self.sim.oracle.borrow().check_disks(&self.sim);
            }
            Event::Inspect => self.inspect(),
        }
    }

    fn alive(&self, broker: usize, life: Life) -> Option<Rc<Broker>> {
        self.brokers[broker].clone().filter(|broker| broker.life == life)
    }

    fn follow_node(&self, node: usize, outcome: Outcome) {
        for (ReplyTo { broker, life, number }, answer) in outcome.answers {
            let event = Event::Answer { broker, life, number, answer };
            self.sim.send(Machine::Node(node), Machine::Broker(broker), event);
        }
        if let Some(time) = outcome.sync {
            let life = self.sim.nodes.borrow()[node].life;
            self.sim.after(time, Event::Synced { node, life });
        }
    }

    fn sweep(&self, node: usize) {
        self.sim.after(SWEEP, Event::Sweep { node });
        let mut nodes = self.sim.nodes.borrow_mut();
        if !nodes[node].is_up || !self.sim.metadata.is_up.get() {
            return;
        }
        let metadata = self.sim.metadata.client();
        let known = at_once(metadata.list_ledgers(0, usize::MAX)).expect("it is in memory");
        let gone = nodes[node].store.sweep(&|ledger| known.binary_search(&ledger).is_ok());
        self.sim.count_many("replicas of deleted ledgers swept", gone);
        let share = |ledger: u64| {
            let found: Versioned<LedgerMetadata> = at_once(metadata.get_ledger(ledger)).expect("it is in memory")?;
            Some((ledger, found.value.share_of(&node_name(node))?))
        };
        let shares: BTreeMap<u64, Share> = known.into_iter().filter_map(share).collect();
        let horizon = self.horizon().expect("metadata are there");
        let settled = nodes[node].store.settle(self.sim.now(), horizon, &shares);
        self.sim.count_many("losses of storage nodes settled", settled);
        for (ledger, entry) in nodes[node].store.wants(&shares) {
            let mut others = nodes.iter().enumerate().filter(|(other, state)| *other != node && state.is_up);
            let good_copy = others.find_map(|(_, state)| match state.store.read(ledger, entry) {
                Answer::Here(body) => digest_of(ledger).open(entry as i64, body.clone()).is_ok().then_some(body),
                _ => None,
            });
            if let Some(body) = good_copy {
                nodes[node].store.give(ledger, entry, body);
                self.sim.count("entries that nodes have from others");
            }
        }
        for (what, times) in nodes[node].store.take_seen() {
            self.sim.count_many(what, times);
        }
        let outcome = nodes[node].go_on(Vec::new());
        drop(nodes);
        self.follow_node(node, outcome);
    }

    fn inspect(&self) {
        self.sim.after(INSPECTION, Event::Inspect);
        self.sim.oracle.borrow().check_disks(&self.sim);
        check_bundles(&self.sim.metadata.client());
        for broker in self.brokers.iter().flatten() {
            for topic in broker.bundles.borrow().values().flat_map(|bundle| bundle.topics.values()) {
                for sub in &topic.subscriptions {
                    sub.core.check_invariants();
                    self.sim.oracle.borrow().deliveries.check_permits(&sub.core.stats(topic.ledger.list()));
                }
            }
        }
    }

    pub fn start_broker(&mut self, broker: usize) {
        if self.brokers[broker].is_none() {
            let life = self.lives[broker];
            self.brokers[broker] = Some(Broker::new(broker, life, self.sim.clone(), self.quorum));
        }
    }

    pub fn stop_broker(&mut self, broker: usize) {
        if let Some(stopped) = self.brokers[broker].take() {
            stopped.crash();
            self.lives[broker] += 1;
            self.paused.remove(&Machine::Broker(broker));
        }
    }
}

async fn create_records(metadata: &Metadata, topics: &[TopicPolicies], bundles: u32) {
    let tenant = TenantInfo::default();
    let policies = Policies { bundles: Some(BundlesData::even(bundles)), ..Policies::default() };
    metadata.create_tenant_with_namespace(&tenant, &namespace(), &policies).await.expect("it is new");
    for (topic, policies) in topics.iter().enumerate() {
        metadata.create_topic(&topic_name(topic), TopicRecord::default()).await.expect("it is new");
        create_subscriptions(metadata, topic, policies.deduplicates).await.expect("they are new");
    }
}
