//! What goes wrong in a simulated cluster. A seed draws which faults there are at all, and how often.

use std::collections::BTreeSet;

use geminga_ownership::SplitAt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::cluster_network::Layout;
use crate::cluster_sim::{MS, Machine, Micros, SECOND};

/// One that lasts, and is over at some time.
#[derive(Clone, Debug)]
pub enum Fault {
    NodeDown(usize),
    BrokerDown(usize),
    MetadataAway,
    /// Some requests are carried out seconds later, when nobody waits for them any more.
    SlowMetadata,
    SlowDisk(usize),
    FullDisk(usize),
    FailingSyncs(usize),
    /// A node starts again without one of its data directories, which comes back at the end.
    DirectoryAway(usize),
    Partition,
    Clogged,
    /// Messages get lost and repeated.
    BadNetwork,
    SlowNetwork,
    /// As by SIGSTOP: what comes meanwhile waits.
    Paused(Machine),
}

/// What happens at one moment.
#[derive(Clone, Debug)]
pub enum Happening {
    /// Until it is healed.
    Begin(Fault, Micros),
    Pause(Machine, Micros),
    Part(BTreeSet<Machine>, bool, Micros),
    FlipBits(usize),
    /// The index forgets entries, or (true) a file is cut off.
    ForgetEntries(usize, bool),
    LoseDisk(usize),
    /// A node starts again without one of its data directories, for good.
    GiveUpDirectory(usize),
    /// One more, where all that was on the last one has been repaired.
    LoseAnotherDisk,
    /// A broker's clock is ahead by so many milliseconds from now on.
    SetClock(usize, u64),
    /// What the policies of a topic say changes.
    SetPolicies(usize),
    DeleteTopic(usize),
    /// The bundle of a topic.
    Transfer {
        topic: usize,
        to: usize,
        way: Way,
    },
    Split {
        topic: usize,
        at: SplitAt,
        way: Way,
    },
}

/// How an owner learns what is wanted of it.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// It is told itself.
    Told,
    /// This broker asks for it in metadata.
    AskedBy(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NodeDown,
    BrokerDown,
    MetadataAway,
    SlowMetadata,
    SlowDisk,
    FullDisk,
    FailingSyncs,
    Partition,
    Clogged,
    BadNetwork,
    SlowNetwork,
    PauseBroker,
    PauseNode,
    FlipBits,
    ForgetEntries,
    LoseDisk,
    DirectoryAway,
    GiveUpDirectory,
    SetClock,
    SetPolicies,
    DeleteTopic,
    Transfer,
    Split,
}

const KINDS: [Kind; 23] = [
    Kind::NodeDown,
    Kind::BrokerDown,
    Kind::MetadataAway,
    Kind::SlowMetadata,
    Kind::SlowDisk,
    Kind::FullDisk,
    Kind::FailingSyncs,
    Kind::Partition,
    Kind::Clogged,
    Kind::BadNetwork,
    Kind::SlowNetwork,
    Kind::PauseBroker,
    Kind::PauseNode,
    Kind::FlipBits,
    Kind::ForgetEntries,
    Kind::LoseDisk,
    Kind::DirectoryAway,
    Kind::GiveUpDirectory,
    Kind::SetClock,
    Kind::SetPolicies,
    Kind::DeleteTopic,
    Kind::Transfer,
    Kind::Split,
];

pub struct Chaos {
    rng: SmallRng,
    kinds: Vec<Kind>,
    /// Between two faults, at most.
    pause: Micros,
    layout: Layout,
    topics: usize,
    /// Nodes that may be damaged.
    pub victims: Vec<usize>,
    disk_is_lost: bool,
}

impl Chaos {
    pub fn new(rng: &mut SmallRng, layout: Layout, nodes: usize, topics: usize, victims: usize) -> Chaos {
        let mut rng = SmallRng::from_rng(rng);
        let share = rng.random_range(0.3..1.0);
        let kinds = KINDS.into_iter().filter(|_| rng.random_bool(share)).collect();
        let pause = rng.random_range(3 * SECOND..30 * SECOND);
        let all: Vec<usize> = (0..nodes).collect();
        let victims = all.choose_multiple(&mut rng, victims).copied().collect();
        Chaos { rng, kinds, pause, layout: Layout { nodes, ..layout }, topics, victims, disk_is_lost: false }
    }

    pub fn next_pause(&mut self) -> Micros {
        self.rng.random_range(MS..self.pause)
    }

    /// Mostly short, sometimes much longer than a lease.
    fn duration(&mut self, most: Micros) -> Micros {
        let share = self.rng.random_range(0.0..1.0_f64);
        (most as f64 * share.powi(3)) as Micros + 50 * MS
    }

    fn way(&mut self) -> Way {
        let by = self.rng.random_range(0..self.layout.brokers);
        if self.rng.random() { Way::Told } else { Way::AskedBy(by) }
    }

    pub fn draw(&mut self) -> Option<Happening> {
        let &kind = self.kinds.choose(&mut self.rng)?;
        let node = self.rng.random_range(0..self.layout.nodes);
        let broker = self.rng.random_range(0..self.layout.brokers);
        let victim = self.victims.choose(&mut self.rng).copied();
        Some(match kind {
            Kind::NodeDown => Happening::Begin(Fault::NodeDown(node), self.duration(30 * SECOND)),
            Kind::BrokerDown => Happening::Begin(Fault::BrokerDown(broker), self.duration(20 * SECOND)),
            Kind::MetadataAway => Happening::Begin(Fault::MetadataAway, self.duration(60 * SECOND)),
            Kind::SlowMetadata => Happening::Begin(Fault::SlowMetadata, self.duration(60 * SECOND)),
            Kind::SlowDisk => Happening::Begin(Fault::SlowDisk(node), self.duration(20 * SECOND)),
            Kind::FullDisk => Happening::Begin(Fault::FullDisk(node), self.duration(40 * SECOND)),
            Kind::FailingSyncs => Happening::Begin(Fault::FailingSyncs(node), self.duration(20 * SECOND)),
            Kind::Clogged => Happening::Begin(Fault::Clogged, self.duration(10 * SECOND)),
            Kind::BadNetwork => Happening::Begin(Fault::BadNetwork, self.duration(20 * SECOND)),
            Kind::SlowNetwork => Happening::Begin(Fault::SlowNetwork, self.duration(20 * SECOND)),
            Kind::Partition => {
                let machines: Vec<Machine> = self.layout.machines().collect();
                let count = self.rng.random_range(1..=machines.len() / 2);
                let apart = machines.choose_multiple(&mut self.rng, count).copied().collect();
                Happening::Part(apart, self.rng.random_bool(0.3), self.duration(30 * SECOND))
            }
            Kind::PauseBroker => Happening::Pause(Machine::Broker(broker), self.duration(90 * SECOND)),
            Kind::PauseNode => Happening::Pause(Machine::Node(node), self.duration(20 * SECOND)),
            Kind::FlipBits => Happening::FlipBits(victim?),
            Kind::ForgetEntries => Happening::ForgetEntries(victim?, self.rng.random()),
            Kind::LoseDisk if !self.disk_is_lost && self.rng.random_bool(0.1) => {
                self.disk_is_lost = true;
                Happening::LoseDisk(victim?)
            }
            Kind::LoseDisk if self.disk_is_lost => Happening::LoseAnotherDisk,
            Kind::LoseDisk => return None,
            Kind::DirectoryAway => Happening::Begin(Fault::DirectoryAway(node), self.duration(60 * SECOND)),
            Kind::GiveUpDirectory => Happening::GiveUpDirectory(victim?),
            Kind::SetClock => Happening::SetClock(broker, self.rng.random_range(0..60_000)),
            Kind::SetPolicies => Happening::SetPolicies(self.rng.random_range(0..self.topics)),
            // Rarely, as what is tested grows old with a topic.
            Kind::DeleteTopic if self.rng.random_bool(0.7) => return None,
            Kind::DeleteTopic => Happening::DeleteTopic(self.rng.random_range(0..self.topics)),
            Kind::Transfer => {
                Happening::Transfer { topic: self.rng.random_range(0..self.topics), to: broker, way: self.way() }
            }
            Kind::Split => {
                let at = if self.rng.random() { SplitAt::Topics } else { SplitAt::Middle };
                Happening::Split { topic: self.rng.random_range(0..self.topics), at, way: self.way() }
            }
        })
    }
}
