//! A ledger's life on an ensemble: a writer, recoveries that compete with it and with each other, nodes that crash, and a
//! network that delays, reorders, repeats and loses.
//!
//! What must be true at every step: what is confirmed stays readable, with what was written; the ledger is closed once, with
//! everything that was confirmed; nothing is confirmed behind its end. When faults stop, a recovery ends, and everything in
//! the ledger can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use geminga_ensemble::{
    AddFailure, Bug, LedgerMetadata, LedgerRecovery, LedgerState, LedgerWriter, MetadataOutcome, NodeId, Quorum,
    ReadAnswer, RecoveryAction, WriterAction, WriterError, distribution, plant,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::ensemble_node::{AddAnswer, EngineNode, ModelNode, Node, NodeBug, ReadResult, Stored};

const STEPS: usize = 600;
const NODES: usize = 6;
/// Steps within which a recovery ends once nothing fails any more.
const STEPS_TO_SETTLE: usize = 20_000;

/// What stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Model,
    Engine,
}

/// A mistake to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    Client(Bug),
    Node(NodeBug),
    /// The reads of a recovery do not fence (BookKeeper 2614).
    ReadsDoNotFence,
}

/// How often what a simulation is for has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub confirmed: u64,
    pub ensembles_changed: u64,
    pub changes_conflicted: u64,
    pub writers_fenced: u64,
    pub writers_closed: u64,
    pub recoveries_done: u64,
    pub recoveries_given_up: u64,
    pub entries_recovered: u64,
    pub ends_found_behind_the_confirmed: u64,
    pub disks_lost: u64,
}

impl Seen {
    pub fn add(&mut self, other: &Seen) {
        self.confirmed += other.confirmed;
        self.ensembles_changed += other.ensembles_changed;
        self.changes_conflicted += other.changes_conflicted;
        self.writers_fenced += other.writers_fenced;
        self.writers_closed += other.writers_closed;
        self.recoveries_done += other.recoveries_done;
        self.recoveries_given_up += other.recoveries_given_up;
        self.entries_recovered += other.entries_recovered;
        self.ends_found_behind_the_confirmed += other.ends_found_behind_the_confirmed;
        self.disks_lost += other.disks_lost;
    }
}

#[derive(Debug, Clone)]
enum Call {
    Add { entry: u64, stored: Stored, recovery: bool },
    Fence,
    Read { entry: u64, fence: bool },
    WriteMetadata { metadata: LedgerMetadata, expected_version: u64 },
}

#[derive(Debug, Clone)]
enum Reply {
    Added(AddAnswer),
    Fenced(Option<u64>),
    Read(ReadResult),
    Metadata(MetadataOutcome),
}

#[derive(Debug, Clone)]
enum Message {
    Call { client: usize, number: u64, to: Option<usize>, call: Call },
    Reply { client: usize, number: u64, reply: Reply },
}

/// A call that was not answered yet.
#[derive(Debug, Clone)]
struct Open {
    to: Option<usize>,
    call: Call,
}

enum Role {
    Writer(Box<LedgerWriter>),
    Recovery(Box<LedgerRecovery>),
}

struct Client {
    role: Role,
    open: BTreeMap<u64, Open>,
    next_number: u64,
    /// Payload up to each entry that it has read.
    lengths: BTreeMap<u64, u64>,
}

/// What may come next.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Append,
    Deliver,
    TimeOut,
    Crash,
    ComeBack,
    Recover,
    LearnOfNodes,
    Close,
    LoseDisk,
    LoseMessage,
    Clog,
    Unclog,
}

/// Each as often as the seed likes it.
fn happenings(rng: &mut SmallRng) -> Vec<Happening> {
    let rare = [
        (Happening::TimeOut, 8),
        (Happening::Crash, 4),
        (Happening::Recover, 3),
        (Happening::LearnOfNodes, 3),
        (Happening::Close, 2),
        (Happening::LoseDisk, 2),
        (Happening::LoseMessage, 8),
        (Happening::Clog, 6),
    ];
    let mut all = vec![Happening::ComeBack; 8];
    all.extend([Happening::Unclog; 2]);
    all.extend(vec![Happening::Append; rng.random_range(10..60)]);
    all.extend(vec![Happening::Deliver; rng.random_range(60..300)]);
    for (happening, most) in rare {
        all.extend(vec![happening; rng.random_range(0..=most)]);
    }
    all
}

struct World {
    rng: SmallRng,
    happenings: Vec<Happening>,
    clogged: BTreeSet<(usize, usize)>,
    nodes: Vec<Box<dyn Node>>,
    up: Vec<bool>,
    lost: Option<usize>,
    network: Vec<Message>,
    clients: Vec<Client>,
    metadata: LedgerMetadata,
    version: u64,
    /// Payload up to each entry, as the writer numbered them.
    written: Vec<u64>,
    confirmed: u64,
    closed: Option<LedgerState>,
    calm: bool,
    planted: Option<Planted>,
    seen: Seen,
    trace: String,
}

fn name(node: usize) -> NodeId {
    format!("node-{node}")
}

fn number_of(node: &NodeId) -> usize {
    node.strip_prefix("node-").and_then(|number| number.parse().ok()).expect("a name of ours")
}

/// What happened; a broken promise panics.
pub fn run(seed: u64, storage: Storage, planted: Option<Planted>) -> (String, Seen) {
    plant(match planted {
        Some(Planted::Client(bug)) => Some(bug),
        _ => None,
    });
    let mut world = World::new(seed, storage, planted);
    for _ in 0..STEPS {
        world.step();
    }
    world.settle();
    (std::mem::take(&mut world.trace), world.seen)
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("ENSEMBLE_SEED").is_some() {
            println!("{}", self.trace);
        }
    }
}

impl World {
    fn new(seed: u64, storage: Storage, planted: Option<Planted>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let quorums = [(3, 3, 2), (3, 2, 2), (4, 3, 2), (3, 3, 3), (2, 2, 1), (5, 3, 2), (1, 1, 1)];
        let &(ensemble, write, ack) = quorums.choose(&mut rng).expect("there are some");
        let quorum = Quorum { ensemble, write, ack };
        let nodes: Vec<Box<dyn Node>> = (0..NODES)
            .map(|_| match storage {
                Storage::Model => Box::new(ModelNode::new(match planted {
                    Some(Planted::Node(bug)) => Some(bug),
                    _ => None,
                })) as Box<dyn Node>,
                Storage::Engine => Box::new(EngineNode::new(SmallRng::seed_from_u64(rng.random()))),
            })
            .collect();
        let metadata = LedgerMetadata::new(quorum, (0..ensemble as usize).map(name).collect(), BTreeMap::new());
        let writer = Role::Writer(Box::new(LedgerWriter::new(metadata.clone(), 1)));
        let mut world = Self {
            happenings: happenings(&mut rng),
            clogged: BTreeSet::new(),
            nodes,
            up: vec![true; NODES],
            lost: None,
            network: Vec::new(),
            clients: Vec::new(),
            metadata,
            version: 1,
            written: Vec::new(),
            confirmed: 0,
            closed: None,
            calm: false,
            planted,
            seen: Seen::default(),
            trace: String::new(),
            rng,
        };
        world.add_client(writer);
        world
    }

    fn note(&mut self, what: std::fmt::Arguments) {
        writeln!(self.trace, "{what}").expect("strings take everything");
    }

    fn add_client(&mut self, role: Role) -> usize {
        self.clients.push(Client { role, open: BTreeMap::new(), next_number: 0, lengths: BTreeMap::new() });
        self.clients.len() - 1
    }

    fn step(&mut self) {
        let happening = self.happenings[self.rng.random_range(0..self.happenings.len())];
        match happening {
            Happening::Append => self.append(),
            Happening::Deliver => self.deliver(),
            Happening::TimeOut => self.time_out(),
            Happening::Crash => self.crash(),
            Happening::ComeBack => self.come_back(),
            Happening::Recover => self.recover(),
            Happening::LearnOfNodes => self.clients_learn_of_nodes(),
            Happening::Close => self.close(),
            Happening::LoseDisk => self.lose_a_disk(),
            Happening::LoseMessage => self.lose_or_repeat(),
            Happening::Clog => self.clog(),
            Happening::Unclog => self.clogged.clear(),
        }
    }

    /// Between a client and some nodes nothing passes for a while; it is not lost.
    fn clog(&mut self) {
        let client = self.rng.random_range(0..self.clients.len());
        for _ in 0..self.rng.random_range(1..4) {
            let node = self.rng.random_range(0..NODES);
            self.clogged.insert((client, node));
        }
    }

    fn append(&mut self) {
        let payload = self.rng.random_range(1..50);
        let Role::Writer(writer) = &mut self.clients[0].role else { unreachable!("the first client writes") };
        if let Ok(entry) = writer.append(payload) {
            assert_eq!(entry, self.written.len() as u64);
            self.written.push(writer.length());
        }
        self.follow(0);
    }

    fn close(&mut self) {
        let Role::Writer(writer) = &mut self.clients[0].role else { unreachable!("the first client writes") };
        writer.close();
        self.note(format_args!("writer closes"));
        self.follow(0);
    }

    fn recover(&mut self) {
        if self.clients.len() >= 4 {
            return;
        }
        let recovery = LedgerRecovery::new(self.metadata.clone(), self.version);
        let client = self.add_client(Role::Recovery(Box::new(recovery)));
        self.note(format_args!("client {client} recovers"));
        self.follow(client);
    }

    fn clients_learn_of_nodes(&mut self) {
        if let Role::Writer(writer) = &mut self.clients[0].role {
            writer.nodes_changed();
        }
        self.follow(0);
    }

    fn crash(&mut self) {
        let node = self.rng.random_range(0..NODES);
        if self.up[node] {
            self.up[node] = false;
            self.note(format_args!("{} crashes", name(node)));
            self.nodes[node].crash();
        }
    }

    /// At most one, and only where one copy of what counts is left.
    fn lose_a_disk(&mut self) {
        if self.metadata.quorum.ack < 2 || self.seen.disks_lost > 0 {
            return;
        }
        let node = self.rng.random_range(0..NODES);
        self.seen.disks_lost += 1;
        self.lost = Some(node);
        self.note(format_args!("{} loses its disk", name(node)));
        self.nodes[node].lose();
    }

    fn come_back(&mut self) {
        let node = self.rng.random_range(0..NODES);
        self.up[node] = true;
    }

    fn lose_or_repeat(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.network.len());
        if self.rng.random_bool(0.5) {
            self.network.swap_remove(at);
        } else if self.network.len() < 500 {
            let again = self.network[at].clone();
            self.network.push(again);
        }
    }

    /// A call of some client is given up.
    fn time_out(&mut self) {
        let client = self.rng.random_range(0..self.clients.len());
        let numbers: Vec<u64> = self.clients[client].open.keys().copied().collect();
        if let Some(&number) = numbers.choose(&mut self.rng) {
            self.give_up(client, number);
        }
    }

    /// Nobody knows what became of the call.
    fn give_up(&mut self, client: usize, number: u64) {
        let Some(Open { call, .. }) = self.clients[client].open.get(&number).cloned() else { return };
        self.note(format_args!("client {client} gives up {call:?}"));
        let reply = match call {
            Call::Add { .. } => Reply::Added(AddAnswer::Failed),
            Call::Fence => Reply::Fenced(None),
            Call::Read { .. } => Reply::Read(ReadResult::Unknown),
            // Whoever does not know what became of a write looks.
            Call::WriteMetadata { .. } => {
                Reply::Metadata(MetadataOutcome::Found { metadata: self.metadata.clone(), version: self.version })
            }
        };
        self.hear(client, number, reply);
    }

    fn deliver(&mut self) {
        let passes = |message: &Message| match message {
            Message::Call { client, to: Some(node), .. } => !self.clogged.contains(&(*client, *node)),
            _ => true,
        };
        let ready: Vec<usize> = (0..self.network.len()).filter(|at| passes(&self.network[*at])).collect();
        let Some(&at) = ready.choose(&mut self.rng) else { return };
        match self.network.swap_remove(at) {
            Message::Reply { client, number, reply } => self.hear(client, number, reply),
            Message::Call { client, number, to: Some(node), call } => {
                if !self.up[node] {
                    return;
                }
                let reply = self.ask(node, &call);
                self.note(format_args!("{} answers client {client}: {call:?}: {reply:?}", name(node)));
                self.network.push(Message::Reply { client, number, reply });
            }
            Message::Call { client, number, to: None, call } => {
                let Call::WriteMetadata { metadata, expected_version } = call else {
                    unreachable!("metadata take nothing else")
                };
                let outcome = self.write_metadata(metadata, expected_version);
                self.network.push(Message::Reply { client, number, reply: Reply::Metadata(outcome) });
            }
        }
    }

    fn ask(&mut self, node: usize, call: &Call) -> Reply {
        let planted = self.planted;
        let node = &mut self.nodes[node];
        match *call {
            Call::Add { entry, stored, recovery } => Reply::Added(node.add(entry, stored, recovery)),
            Call::Fence => Reply::Fenced(node.fence()),
            Call::Read { entry, fence } => {
                if fence && planted != Some(Planted::ReadsDoNotFence) && node.fence().is_none() {
                    return Reply::Read(ReadResult::Unknown);
                }
                Reply::Read(node.read(entry))
            }
            Call::WriteMetadata { .. } => unreachable!("nodes have no metadata"),
        }
    }

    fn write_metadata(&mut self, metadata: LedgerMetadata, expected_version: u64) -> MetadataOutcome {
        if self.version != expected_version {
            self.seen.changes_conflicted += 1;
            return MetadataOutcome::Found { metadata: self.metadata.clone(), version: self.version };
        }
        assert_eq!(metadata.check(), Ok(()));
        self.seen.ensembles_changed += u64::from(metadata.last_fragment() != self.metadata.last_fragment());
        if let Some(closed) = &self.closed {
            assert_eq!(*closed, metadata.state, "a closed ledger changes");
        }
        if let LedgerState::Closed { entries, .. } = metadata.state {
            assert!(entries >= self.confirmed, "closed with {entries} entries, {} are confirmed", self.confirmed);
            assert!(entries <= self.written.len() as u64, "closed with entries that nobody wrote");
            self.seen.ends_found_behind_the_confirmed += u64::from(entries > self.confirmed);
            self.closed = Some(metadata.state);
        }
        self.note(format_args!("metadata {}: {metadata:?}", self.version + 1));
        self.metadata = metadata;
        self.version += 1;
        MetadataOutcome::Written { version: self.version }
    }

    fn call(&mut self, client: usize, to: Option<NodeId>, call: Call) {
        let to = to.map(|node| number_of(&node));
        let number = self.clients[client].next_number;
        self.clients[client].next_number += 1;
        self.clients[client].open.insert(number, Open { to, call: call.clone() });
        self.network.push(Message::Call { client, number, to, call });
    }

    /// A reply reaches its client, once.
    fn hear(&mut self, client: usize, number: u64, reply: Reply) {
        let Some(Open { to, call }) = self.clients[client].open.remove(&number) else { return };
        let node = to.map(name);
        let state = &mut self.clients[client];
        match (&mut state.role, call, reply) {
            (Role::Writer(writer), Call::Add { entry, .. }, Reply::Added(answer)) => {
                writer.added(entry, &node.expect("nodes take adds"), result_of(answer));
            }
            (Role::Recovery(recovery), Call::Add { entry, .. }, Reply::Added(answer)) => {
                recovery.added(entry, &node.expect("nodes take adds"), result_of(answer));
            }
            (Role::Recovery(recovery), Call::Fence, Reply::Fenced(answer)) => {
                recovery.fenced(&node.expect("nodes are fenced"), answer);
            }
            (Role::Recovery(recovery), Call::Read { entry, .. }, Reply::Read(result)) => {
                let answer = match result {
                    ReadResult::Here(stored) => {
                        state.lengths.insert(entry, stored.length);
                        ReadAnswer::Here { length: stored.length }
                    }
                    ReadResult::Absent => ReadAnswer::Absent,
                    ReadResult::Unknown => ReadAnswer::Unknown,
                };
                recovery.read(entry, &node.expect("nodes are read"), answer);
            }
            (Role::Writer(writer), Call::WriteMetadata { .. }, Reply::Metadata(outcome)) => {
                writer.metadata_written(outcome);
            }
            (Role::Recovery(recovery), Call::WriteMetadata { .. }, Reply::Metadata(outcome)) => {
                recovery.metadata_written(outcome);
            }
            (_, call, reply) => unreachable!("{reply:?} to {call:?}"),
        }
        self.follow(client);
    }

    /// Carries out what the client's state machine wants.
    fn follow(&mut self, client: usize) {
        loop {
            let actions = match &mut self.clients[client].role {
                Role::Writer(writer) => writer.take_actions().into_iter().map(Action::Writer).collect::<Vec<_>>(),
                Role::Recovery(recovery) => recovery.take_actions().into_iter().map(Action::Recovery).collect(),
            };
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.carry_out(client, action);
            }
        }
    }

    fn carry_out(&mut self, client: usize, action: Action) {
        match action {
            Action::Writer(WriterAction::Send { entry, node, last_add_confirmed }) => {
                let length = self.written[entry as usize];
                let stored = Stored { length, confirmed: last_add_confirmed.map_or(0, |last| last + 1) };
                self.call(client, Some(node), Call::Add { entry, stored, recovery: false });
            }
            Action::Writer(WriterAction::Confirm { up_to }) => self.confirm(up_to),
            Action::Writer(WriterAction::Closed { entries }) => {
                self.seen.writers_closed += 1;
                assert!(entries >= self.confirmed);
                self.note(format_args!("writer has closed it with {entries}"));
            }
            Action::Writer(WriterAction::Fail(error)) => {
                self.seen.writers_fenced += u64::from(error == WriterError::Fenced);
                self.note(format_args!("writer has failed: {error}"));
            }
            Action::Recovery(RecoveryAction::Fence { node }) => self.call(client, Some(node), Call::Fence),
            Action::Recovery(RecoveryAction::Read { entry, node }) => {
                self.call(client, Some(node), Call::Read { entry, fence: true });
            }
            Action::Recovery(RecoveryAction::Add { entry, node, last_add_confirmed }) => {
                self.seen.entries_recovered += 1;
                let length = self.clients[client].lengths[&entry];
                assert_eq!(Some(&length), self.written.get(entry as usize), "entry {entry} is another");
                let stored = Stored { length, confirmed: last_add_confirmed.map_or(0, |last| last + 1) };
                self.call(client, Some(node), Call::Add { entry, stored, recovery: true });
            }
            Action::Recovery(RecoveryAction::Done(result)) => {
                self.note(format_args!("client {client} is done: {result:?}"));
                match &result {
                    Ok(_) => self.seen.recoveries_done += 1,
                    Err(_) => self.seen.recoveries_given_up += 1,
                }
                if let Ok(recovered) = result {
                    assert_eq!(Some(&recovered.metadata.state), self.closed.as_ref(), "it is closed otherwise");
                }
            }
            Action::Writer(WriterAction::Choose { ensemble, failed, avoid })
            | Action::Recovery(RecoveryAction::Choose { ensemble, failed, avoid }) => {
                let nodes = self.choose(&ensemble, failed.len(), &avoid);
                match &mut self.clients[client].role {
                    Role::Writer(writer) => writer.chosen(nodes),
                    Role::Recovery(recovery) => recovery.chosen(nodes),
                }
            }
            Action::Writer(WriterAction::WriteMetadata { metadata, expected_version })
            | Action::Recovery(RecoveryAction::WriteMetadata { metadata, expected_version }) => {
                self.call(client, None, Call::WriteMetadata { metadata, expected_version });
            }
        }
    }

    fn choose(&mut self, ensemble: &[NodeId], count: usize, avoid: &BTreeSet<NodeId>) -> Vec<Option<NodeId>> {
        let mut free: Vec<NodeId> =
            (0..NODES).map(name).filter(|node| !ensemble.contains(node) && !avoid.contains(node)).collect();
        if !self.calm && self.rng.random_bool(0.1) {
            free.clear();
        }
        (0..count)
            .map(|_| {
                let at = (!free.is_empty()).then(|| self.rng.random_range(0..free.len()))?;
                Some(free.swap_remove(at))
            })
            .collect()
    }

    fn confirm(&mut self, up_to: u64) {
        self.note(format_args!("confirmed up to {up_to}"));
        self.seen.confirmed += 1;
        assert!(up_to >= self.confirmed, "confirmed out of order");
        self.confirmed = up_to + 1;
        if let Some(LedgerState::Closed { entries, .. }) = self.closed {
            assert!(up_to < entries, "confirmed {up_to} after the ledger was closed with {entries} entries");
        }
        let quorum = self.metadata.quorum;
        for entry in 0..self.confirmed {
            let ensemble = self.metadata.fragment_of(entry).ensemble.clone();
            let holders = distribution::write_order(quorum, entry)
                .map(|slot| number_of(&ensemble[slot]))
                .filter(|node| self.lost == Some(*node) || matches!(self.nodes[*node].read(entry), ReadResult::Here(_)))
                .count();
            assert!(holders >= quorum.ack as usize, "entry {entry} is confirmed and on {holders} nodes only");
        }
    }

    /// When nothing fails any more a recovery closes the ledger, and all of it can be read.
    fn settle(&mut self) {
        self.calm = true;
        self.up.fill(true);
        self.clogged.clear();
        self.note(format_args!("calm"));
        for _ in 0..40 {
            let recovery = LedgerRecovery::new(self.metadata.clone(), self.version);
            let client = self.add_client(Role::Recovery(Box::new(recovery)));
            self.follow(client);
            for _ in 0..STEPS_TO_SETTLE {
                if self.network.is_empty() {
                    break;
                }
                self.deliver();
            }
            if self.closed.is_some() {
                break;
            }
            // What was lost before it was calm is given up by now.
            let open = self.clients.iter().enumerate();
            let open: Vec<(usize, u64)> =
                open.flat_map(|(client, state)| state.open.keys().map(move |&number| (client, number))).collect();
            open.into_iter().for_each(|(client, number)| self.give_up(client, number));
        }
        let Some(LedgerState::Closed { entries, length }) = self.closed else {
            panic!("no recovery comes to its end");
        };
        assert!(entries >= self.confirmed);
        assert_eq!(length, entries.checked_sub(1).map_or(0, |last| self.written[last as usize]), "another length");
        for entry in 0..entries {
            let ensemble = self.metadata.fragment_of(entry).ensemble.clone();
            let quorum = self.metadata.quorum;
            let mut found = distribution::write_order(quorum, entry).filter_map(|slot| {
                match self.nodes[number_of(&ensemble[slot])].read(entry) {
                    ReadResult::Here(stored) => Some(stored.length),
                    _ => None,
                }
            });
            let length = found.next().unwrap_or_else(|| panic!("entry {entry} cannot be read"));
            assert_eq!(length, self.written[entry as usize], "entry {entry} is another");
        }
    }
}

enum Action {
    Writer(WriterAction),
    Recovery(RecoveryAction),
}

fn result_of(answer: AddAnswer) -> Result<(), AddFailure> {
    match answer {
        AddAnswer::Ok => Ok(()),
        AddAnswer::Fenced => Err(AddFailure::Fenced),
        AddAnswer::Failed => Err(AddFailure::Failed),
    }
}
