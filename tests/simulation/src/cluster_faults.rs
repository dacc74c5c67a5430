//! Faults in a simulated cluster: how they begin and end.

use std::rc::Rc;

use geminga_metadata::{MovedFor, Wanted};
use geminga_model::BundleRange;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster_broker::Broker;
use crate::cluster_bundles::hash_of;
use crate::cluster_chaos::{Fault, Happening, Way};
use crate::cluster_membership::broker_name;
use crate::cluster_node::Node;
use crate::cluster_sim::{Event, MS, Machine};
use crate::cluster_simulation::{NODES_MAX, SWEEP, World};
use crate::cluster_tasks::at_once;
use crate::ensemble_simulation::Storage;

impl World {
    pub fn happen(&mut self, happening: Happening) {
        self.sim.note(format_args!("{happening:?}"));
        let mut nodes = self.sim.nodes.borrow_mut();
        match happening {
            Happening::Begin(fault, time) => {
                drop(nodes);
                self.sim.after(time, Event::Heal(fault.clone()));
                self.begin(fault);
            }
            Happening::Pause(machine, time) => {
                let broker = matches!(machine, Machine::Broker(_));
                self.sim.count(if broker { "fault: broker paused" } else { "fault: node paused" });
                self.paused.entry(machine).or_default();
                self.sim.after(time, Event::Heal(Fault::Paused(machine)));
            }
            Happening::Part(apart, one_way, time) => {
                self.sim.count("fault: network parted");
                self.sim.network.borrow_mut().part(&apart, one_way);
                self.sim.after(time, Event::Heal(Fault::Partition));
            }
            // A second copy of something may be gone already.
            Happening::FlipBits(_) | Happening::ForgetEntries(..) if self.lost_another => (),
            Happening::FlipBits(node) => {
                for _ in 0..3 {
                    self.sim.count_many("fault: bit flipped", u64::from(nodes[node].store.flip_bit()));
                }
                start_on_what_is_there(self.sim.storage, &mut nodes[node], &mut self.rng);
                self.is_hurt = true;
            }
            Happening::ForgetEntries(node, is_cut) => {
                let what = match (self.sim.storage, is_cut) {
                    (Storage::Model, true) => "fault: file cut off",
                    (Storage::Model, false) => "fault: index damaged",
                    (Storage::Engine, true) => "fault: block misdirected",
                    (Storage::Engine, false) => "fault: block unreadable",
                };
                self.sim.count_many(what, u64::from(nodes[node].store.forget_entries(is_cut)));
                start_on_what_is_there(self.sim.storage, &mut nodes[node], &mut self.rng);
                self.is_hurt = true;
            }
            Happening::GiveUpDirectory(_) if self.lost_another || !self.sim.metadata.is_up.get() => (),
            Happening::GiveUpDirectory(node) => {
                let horizon = self.horizon().expect("metadata are there");
                let is_given_up = nodes[node].give_up_directory(horizon);
                self.sim.count_many("fault: directory given up", u64::from(is_given_up));
            }
            Happening::LoseDisk(node) => {
                self.sim.count("fault: disk lost");
                drop(nodes);
                self.lose_disk(node);
            }
            Happening::LoseAnotherDisk => {
                let node = self.rng.random_range(0..nodes.len());
                let can_be = nodes.len() < NODES_MAX && !nodes[node].is_lost && !self.is_hurt;
                drop(nodes);
                if can_be && self.sim.oracle.borrow().would_keep_all_without(&self.sim, node) {
                    self.sim.count("fault: another disk lost");
                    self.lost_another = true;
                    // What was not confirmed yet may be confirmed by what it has said.
                    self.sim.nodes.borrow_mut()[node].is_victim = true;
                    self.lose_disk(node);
                }
            }
            Happening::SetClock(broker, skew_ms) => {
                self.sim.count("fault: clock changed");
                if let Some(broker) = &self.brokers[broker] {
                    broker.skew_ms.set(skew_ms);
                }
            }
            Happening::SetPolicies(topic) => {
                self.sim.count("policies changed");
                let policies = &mut self.sim.policies.borrow_mut()[topic];
                *policies = policies.changed(&mut self.rng, self.may_deduplicate[topic]);
            }
            Happening::DeleteTopic(topic) => {
                drop(nodes);
                if let Some((owner, bundle)) = self.running_owner(topic) {
                    owner.delete_topic(bundle, topic);
                    owner.drive();
                }
            }
            Happening::Transfer { topic, to, way: Way::AskedBy(broker) } => {
                drop(nodes);
                let to = Some(broker_name(to));
                self.ask_owner(broker, topic, Wanted::Handover { to, reason: MovedFor::default() });
            }
            Happening::Split { topic, way: Way::AskedBy(broker), .. } => {
                drop(nodes);
                self.ask_owner(broker, topic, Wanted::Split);
            }
            Happening::Transfer { topic, to, way: Way::Told } => {
                drop(nodes);
                if let Some((owner, bundle)) = self.running_owner(topic) {
                    owner.transfer(bundle, Some(to));
                    owner.drive();
                }
            }
            Happening::Split { topic, at, way: Way::Told } => {
                drop(nodes);
                if let Some((owner, bundle)) = self.running_owner(topic) {
                    owner.split(bundle, &at);
                    owner.drive();
                }
            }
        }
    }

    /// For good; another node comes in its place.
    fn lose_disk(&mut self, node: usize) {
        let mut nodes = self.sim.nodes.borrow_mut();
        nodes[node].lose_disk();
        let state = Node::new(self.sim.storage, self.sim.plant, SmallRng::from_rng(&mut self.rng));
        nodes.push(state);
        let heir = nodes.len() - 1;
        self.sim.after(SWEEP, Event::Sweep { node: heir });
        if self.rng.random() {
            self.sim.count("fault: empty node at an old address");
            nodes[node].heir = Some(heir);
        }
    }

    /// A ledger id that is greater than all that anybody was given, if metadata can be asked.
    pub fn horizon(&self) -> Option<u64> {
        let metadata = self.sim.metadata.client();
        self.sim.metadata.is_up.get().then(|| at_once(metadata.fresh_ledger_id()).expect("it is in memory"))
    }

    /// A broker that has a topic, and is not paused, with the bundle that the topic is in.
    fn running_owner(&self, topic: usize) -> Option<(Rc<Broker>, BundleRange)> {
        let is_running = |broker: &&Rc<Broker>| !self.paused.contains_key(&Machine::Broker(broker.id));
        let mut running = self.brokers.iter().flatten().filter(is_running);
        running.find_map(|broker| Some((broker.clone(), broker.bundle_with(topic)?)))
    }

    fn ask_owner(&self, broker: usize, topic: usize, wanted: Wanted) {
        let is_running = |broker: &&Rc<Broker>| !self.paused.contains_key(&Machine::Broker(broker.id));
        let Some(broker) = self.brokers[broker].as_ref().filter(is_running) else { return };
        let bundle = broker.ranges.borrow().iter().copied().find(|range| range.contains(hash_of(topic)));
        bundle.into_iter().for_each(|bundle| broker.ask_owner(bundle, wanted.clone()));
    }

    /// It goes on with what has come meanwhile, in that order.
    fn resume(&self, waiting: Vec<Event>) {
        waiting.into_iter().for_each(|event| self.sim.after(0, event));
    }

    fn begin(&mut self, fault: Fault) {
        let horizon = self.horizon();
        let mut nodes = self.sim.nodes.borrow_mut();
        let mut network = self.sim.network.borrow_mut();
        let what = match fault {
            Fault::NodeDown(node) => {
                if nodes[node].is_up {
                    nodes[node].crash();
                }
                "fault: node crashed"
            }
            Fault::SlowDisk(node) => {
                nodes[node].slowness = self.rng.random_range(10..6000);
                "fault: disk slow"
            }
            Fault::FullDisk(node) => {
                nodes[node].store.set_full(true);
                "fault: disk full"
            }
            Fault::FailingSyncs(node) => {
                nodes[node].store.set_sync_failures(self.rng.random_range(0.01..0.5));
                "fault: syncs fail"
            }
            Fault::DirectoryAway(node) => match nodes[node].miss_directory(horizon) {
                true => "fault: directory missing",
                false => "nodes with one directory",
            },
            Fault::MetadataAway => {
                self.sim.metadata.is_up.set(false);
                "fault: metadata away"
            }
            Fault::SlowMetadata => {
                self.sim.metadata.lateness.set(self.rng.random_range(0.01..0.3));
                "fault: metadata slow"
            }
            Fault::Clogged => {
                network.clog(20);
                "fault: links clogged"
            }
            Fault::BadNetwork => {
                network.loss = self.rng.random_range(0.001..0.1);
                network.repetition = self.rng.random_range(0.0..0.1);
                "fault: messages lost and repeated"
            }
            Fault::SlowNetwork => {
                network.slowness = self.rng.random_range(5..200);
                "fault: network slow"
            }
            Fault::Partition | Fault::Paused(_) => unreachable!("they begin otherwise"),
            Fault::BrokerDown(broker) => {
                drop((nodes, network));
                self.stop_broker(broker);
                "fault: broker crashed"
            }
        };
        self.sim.count(what);
    }

    pub fn end(&mut self, fault: Fault) {
        let mut nodes = self.sim.nodes.borrow_mut();
        let mut network = self.sim.network.borrow_mut();
        match fault {
            Fault::NodeDown(node) => nodes[node].is_up = !nodes[node].is_lost,
            Fault::SlowDisk(node) => nodes[node].slowness = 1,
            Fault::FullDisk(node) => nodes[node].store.set_full(false),
            Fault::FailingSyncs(node) => {
                nodes[node].store.set_sync_failures(0.0);
                start_on_what_is_there(self.sim.storage, &mut nodes[node], &mut self.rng);
            }
            Fault::DirectoryAway(node) => nodes[node].find_directory(),
            Fault::MetadataAway => self.sim.metadata.is_up.set(true),
            Fault::SlowMetadata => self.sim.metadata.lateness.set(0.0),
            Fault::Partition => network.reunite(),
            Fault::Clogged => {
                network.unclog_some();
                if network.is_clogged() {
                    self.sim.after(100 * MS, Event::Heal(Fault::Clogged));
                }
                drop(network);
                self.sim.release_held();
            }
            Fault::BadNetwork => (network.loss, network.repetition) = (0.0, 0.0),
            Fault::SlowNetwork => network.slowness = 1,
            Fault::Paused(machine) => {
                drop((nodes, network));
                let waiting = self.paused.remove(&machine).unwrap_or_default();
                self.resume(waiting);
            }
            Fault::BrokerDown(broker) => {
                drop((nodes, network));
                self.start_broker(broker);
            }
        }
    }

    /// Nothing fails any more.
    pub fn heal(&mut self) {
        self.sim.note(format_args!("nothing fails from now on"));
        for node in self.sim.nodes.borrow_mut().iter_mut() {
            node.find_directory();
            (node.is_up, node.slowness) = (!node.is_lost, 1);
            node.store.set_full(false);
            node.store.set_sync_failures(0.0);
        }
        self.sim.metadata.is_up.set(true);
        self.sim.metadata.lateness.set(0.0);
        self.sim.network.borrow_mut().heal();
        self.sim.release_held();
        std::mem::take(&mut self.paused).into_values().for_each(|waiting| self.resume(waiting));
        (0..self.brokers.len()).for_each(|broker| self.start_broker(broker));
    }
}

/// A start of the engine finds other damage than it does while it runs, and what a failed sync has lost.
fn start_on_what_is_there(storage: Storage, node: &mut Node, rng: &mut SmallRng) {
    if storage == Storage::Engine && rng.random() {
        node.start_again();
    }
}
