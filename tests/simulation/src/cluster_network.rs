//! Who can reach whom, and when.
//!
//! Messages between brokers, storage nodes and metadata are delayed, reordered, lost and repeated one by one. Those between clients
//! and brokers travel on connections: in order, and after a gap nothing arrives any more.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::cluster_sim::{Event, MS, Machine, Micros};

/// How many machines there are of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub brokers: usize,
    pub nodes: usize,
    pub clients: usize,
}

impl Layout {
    pub fn machines(&self) -> impl Iterator<Item = Machine> {
        let brokers = (0..self.brokers).map(Machine::Broker);
        let nodes = (0..self.nodes).map(Machine::Node);
        let clients = (0..self.clients).map(Machine::Client);
        [Machine::Metadata].into_iter().chain(brokers).chain(nodes).chain(clients)
    }

    fn count(&self) -> usize {
        1 + self.brokers + self.nodes + self.clients
    }

    fn index(&self, machine: Machine) -> usize {
        match machine {
            Machine::Metadata => 0,
            Machine::Broker(n) => 1 + n,
            Machine::Node(n) => 1 + self.brokers + n,
            Machine::Client(n) => 1 + self.brokers + self.nodes + n,
        }
    }
}

/// What becomes of a message.
pub enum Fate {
    Arrives {
        after: Micros,
        again: Option<Micros>,
    },
    Lost,
    /// It waits until the link is free.
    Held,
}

#[derive(Clone, Copy, Default)]
struct Link {
    blocked: bool,
    clogged: bool,
    /// When the last message of a connection arrives.
    busy_to: Micros,
}

pub struct Network {
    pub layout: Layout,
    links: Vec<Link>,
    held: Vec<(Machine, Machine, Event)>,
    broken: BTreeSet<u64>,
    rng: SmallRng,
    /// Of a message; the same for a repetition.
    pub loss: f64,
    pub repetition: f64,
    /// By how much everything takes longer.
    pub slowness: u64,
}

impl Network {
    pub fn new(layout: Layout, rng: SmallRng) -> Network {
        let links = vec![Link::default(); layout.count() * layout.count()];
        Network {
            layout,
            links,
            held: Vec::new(),
            broken: BTreeSet::new(),
            rng,
            loss: 0.0,
            repetition: 0.0,
            slowness: 1,
        }
    }

    fn link(&mut self, from: Machine, to: Machine) -> &mut Link {
        let at = self.layout.index(from) * self.layout.count() + self.layout.index(to);
        &mut self.links[at]
    }

    /// Mostly a fraction of a millisecond; now and then much more, so that later messages overtake.
    fn delay(&mut self) -> Micros {
        let usual = self.rng.random_range(50..400);
        let long = match self.rng.random_range(0..1000) {
            0..3 => self.rng.random_range(0..400 * MS),
            3..30 => self.rng.random_range(0..10 * MS),
            _ => 0,
        };
        (usual + long) * self.slowness
    }

    pub fn fate_of(&mut self, from: Machine, to: Machine) -> Fate {
        let link = *self.link(from, to);
        if link.blocked || self.loss > 0.0 && self.rng.random_bool(self.loss) {
            return Fate::Lost;
        }
        if link.clogged {
            return Fate::Held;
        }
        let repeated = self.repetition > 0.0 && self.rng.random_bool(self.repetition);
        Fate::Arrives { after: self.delay(), again: repeated.then(|| self.delay() * 10) }
    }

    /// A lost packet is sent again on a connection, which takes time.
    pub fn fate_on(&mut self, connection: u64, from: Machine, to: Machine, now: Micros) -> Fate {
        let link = *self.link(from, to);
        if link.blocked {
            self.broken.insert(connection);
        }
        if self.broken.contains(&connection) {
            return Fate::Lost;
        }
        if link.clogged {
            return Fate::Held;
        }
        let mut delay = self.delay();
        if self.loss > 0.0 && self.rng.random_bool(self.loss) {
            delay += self.rng.random_range(200 * MS..1000 * MS);
        }
        let arrives = (now + delay).max(link.busy_to);
        self.link(from, to).busy_to = arrives;
        Fate::Arrives { after: arrives - now, again: None }
    }

    pub fn hold(&mut self, from: Machine, to: Machine, event: Event) {
        self.held.push((from, to, event));
    }

    /// Those that were held up on links that are free now.
    pub fn take_free(&mut self) -> Vec<(Machine, Machine, Event)> {
        let mut free = Vec::new();
        for (from, to, event) in std::mem::take(&mut self.held) {
            match self.link(from, to).clogged {
                true => self.held.push((from, to, event)),
                false => free.push((from, to, event)),
            }
        }
        free
    }

    /// Nothing passes between these machines and the others, in both directions or only outwards.
    pub fn part(&mut self, apart: &BTreeSet<Machine>, one_way: bool) {
        let machines: Vec<Machine> = self.layout.machines().collect();
        for &inside in apart {
            for &outside in machines.iter().filter(|machine| !apart.contains(machine)) {
                self.link(inside, outside).blocked = true;
                self.link(outside, inside).blocked |= !one_way;
            }
        }
    }

    /// Between some pairs of machines nothing passes for a while; it is not lost.
    pub fn clog(&mut self, links: usize) {
        for _ in 0..links {
            let at = self.rng.random_range(0..self.links.len());
            self.links[at].clogged = true;
        }
    }

    /// Some of them pass again, in any order.
    pub fn unclog_some(&mut self) {
        for at in 0..self.links.len() {
            if self.links[at].clogged && self.rng.random_bool(0.5) {
                self.links[at].clogged = false;
            }
        }
    }

    pub fn is_clogged(&self) -> bool {
        self.links.iter().any(|link| link.clogged)
    }

    pub fn reunite(&mut self) {
        self.links.iter_mut().for_each(|link| link.blocked = false);
    }

    pub fn heal(&mut self) {
        self.reunite();
        self.links.iter_mut().for_each(|link| link.clogged = false);
        (self.loss, self.repetition, self.slowness) = (0.0, 0.0, 1);
    }
}
