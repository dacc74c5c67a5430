//! A ledger among nodes that are lost for good: a writer, an auditor that gives nodes up, workers that repair and get in each
//! other's and the writer's way, nodes that crash and return, entries whose bytes turn, and a bad network.
//!
//! What must be true at every step: what was acknowledged is somewhere among the nodes that metadata name; a repair names nobody
//! who lacks an entry. When faults stop, within a bound every entry is on every node that should have it, and no node that
//! should go is a member. Faults are such that it can be: a node is lost, or an entry hurt, only where that leaves a good copy
//! of everything; when a repair has made copies, more may be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use geminga_ensemble::placement::Place;
use geminga_ensemble::repair::{
    Absences, CopyFailure, LedgerRepair, Listing, NodeTable, NodeView, RepairAction, Standing,
    survey::{self, Cause},
};
use geminga_ensemble::{
    AddFailure, Bug, LedgerMetadata, LedgerRecovery, LedgerWriter, MetadataOutcome, NodeId, Quorum, ReadAnswer,
    RecoveryAction, WriterAction, plant,
};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::auto_recovery_truth::{Body, Store, Truth, name, number_of};
use crate::ensemble_node::{AddAnswer, EngineNode, ModelNode, Node, ReadResult, Stored};
use crate::ensemble_simulation::Storage;

const STEPS: usize = 1_500;
const NODES: usize = 8;
const ZONES: usize = 3;
/// Nodes that may be lost for good. Another may be emptied, and those that are left beyond an ensemble may be hurt: who has a
/// bad copy is not taken into a fragment.
const LOST_MAX: usize = 2;
const CLIENTS_MAX: usize = 5;
/// Audits, and steps after each, within which all is repaired once nothing fails any more.
const ROUNDS_TO_SETTLE: usize = 30;
const STEPS_TO_SETTLE: usize = 20_000;

/// A mistake to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    Client(Bug),
    /// What is read to be copied is not checked against its digest.
    CopiesAreNotChecked,
}

/// How often what a simulation is for has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    pub nodes_lost: u64,
    pub entries_hurt: u64,
    pub entries_copied: u64,
    pub places_replaced: u64,
    pub repairs_blocked: u64,
    pub repairs_conflicted: u64,
    pub open_ledgers_repaired: u64,
    pub writers_closed_under: u64,
    pub nodes_given_up_that_returned: u64,
    pub bad_copies_refused: u64,
}

impl Seen {
    fn counts(&mut self) -> [&mut u64; 10] {
        [
            &mut self.nodes_lost,
            &mut self.entries_hurt,
            &mut self.entries_copied,
            &mut self.places_replaced,
            &mut self.repairs_blocked,
            &mut self.repairs_conflicted,
            &mut self.open_ledgers_repaired,
            &mut self.writers_closed_under,
            &mut self.nodes_given_up_that_returned,
            &mut self.bad_copies_refused,
        ]
    }

    pub fn add(&mut self, mut other: Seen) {
        for (count, more) in self.counts().into_iter().zip(other.counts()) {
            *count += *more;
        }
    }

    /// How often the rarest has happened.
    pub fn least(mut self) -> u64 {
        self.counts().into_iter().map(|count| *count).min().expect("there are some")
    }
}

#[derive(Debug, Clone)]
enum Call {
    Add { entry: u64, body: Body, recovery: bool },
    Fence,
    Read { entry: u64, fence: bool },
    List,
    WriteMetadata { metadata: LedgerMetadata, expected_version: u64 },
}

#[derive(Debug, Clone)]
enum Reply {
    Added(AddAnswer),
    Fenced(Option<u64>),
    Read(Result<Body, ReadResult>),
    Listed(Option<BTreeSet<u64>>),
    Metadata(MetadataOutcome),
    /// There is none, and none will come.
    Silence,
}

#[derive(Debug, Clone)]
enum Message {
    Call { client: usize, number: u64, to: Option<usize>, call: Call },
    Reply { client: usize, number: u64, reply: Reply },
}

enum Role {
    Writer(Box<LedgerWriter>),
    Recovery(Box<LedgerRecovery>),
    Repair(Box<LedgerRepair>),
}

enum Action {
    Writer(WriterAction),
    Recovery(RecoveryAction),
    Repair(RepairAction),
}

struct Client {
    role: Role,
    open: BTreeMap<u64, (Option<usize>, Call)>,
    next_number: u64,
    /// What it has read.
    bodies: BTreeMap<u64, Body>,
}

#[derive(Debug)]
struct Listed(BTreeSet<u64>);

impl Listing for Listed {
    fn contains(&self, entry: u64) -> bool {
        self.0.contains(&entry)
    }
}

/// What may come next.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Append,
    Deliver,
    Audit,
    FailToLook,
    Work,
    TimeOut,
    LoseMessage,
    Crash,
    ComeBack,
    LoseNode,
    HurtEntry,
    Drain,
    Close,
    Recover,
}

/// Each as often as the seed likes it.
fn happenings(rng: &mut SmallRng) -> Vec<Happening> {
    let rare = [
        (Happening::FailToLook, 2),
        (Happening::TimeOut, 6),
        (Happening::LoseMessage, 4),
        (Happening::Crash, 4),
        (Happening::LoseNode, 4),
        (Happening::HurtEntry, 4),
        (Happening::Drain, 1),
        (Happening::Close, 1),
        (Happening::Recover, 1),
    ];
    let mut all = vec![Happening::ComeBack; rng.random_range(1..8)];
    all.extend(vec![Happening::Audit; rng.random_range(4..20)]);
    all.extend(vec![Happening::Work; rng.random_range(2..10)]);
    all.extend(vec![Happening::Append; rng.random_range(5..40)]);
    all.extend(vec![Happening::Deliver; rng.random_range(80..300)]);
    for (happening, most) in rare {
        all.extend(vec![happening; rng.random_range(0..=most)]);
    }
    all
}

struct World {
    rng: SmallRng,
    happenings: Vec<Happening>,
    stores: Vec<Store>,
    truth: Truth,
    network: Vec<Message>,
    clients: Vec<Client>,
    /// Steps, as the auditor's clock.
    now: u64,
    absences: Absences,
    given_up: BTreeSet<NodeId>,
    draining: Option<usize>,
    /// Since when the writer was waited for, and for how long it is.
    writer_awaited_since: Option<u64>,
    writers_grace: u64,
    calm: bool,
    planted: Option<Planted>,
    seen: Seen,
    trace: String,
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
        if std::thread::panicking() && std::env::var_os("AUTO_RECOVERY_SEED").is_some() {
            println!("{}", self.trace);
        }
    }
}

impl World {
    fn new(seed: u64, storage: Storage, planted: Option<Planted>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let quorums = [(3, 3, 2), (3, 2, 2), (4, 3, 2), (3, 3, 3), (2, 2, 2)];
        let &(ensemble, write, ack) = quorums.choose(&mut rng).expect("there are some");
        let quorum = Quorum { ensemble, write, ack };
        let store = |rng: &mut SmallRng| {
            Store::new(match storage {
                Storage::Model => Box::new(ModelNode::new(None)) as Box<dyn Node>,
                Storage::Engine => Box::new(EngineNode::new(SmallRng::seed_from_u64(rng.random()))),
            })
        };
        let stores = (0..NODES).map(|_| store(&mut rng)).collect();
        let metadata = LedgerMetadata::new(quorum, (0..ensemble as usize).map(name).collect(), BTreeMap::new());
        let writer = LedgerWriter::new(metadata.clone(), 1);
        let mut world = Self {
            happenings: happenings(&mut rng),
            stores,
            truth: Truth::new(metadata),
            network: Vec::new(),
            clients: Vec::new(),
            now: 0,
            absences: Absences::new(Duration::from_millis(rng.random_range(20..200))),
            given_up: BTreeSet::new(),
            draining: None,
            writer_awaited_since: None,
            writers_grace: rng.random_range(20..300),
            calm: false,
            planted,
            seen: Seen::default(),
            trace: String::new(),
            rng,
        };
        world.begin(Role::Writer(Box::new(writer)));
        world
    }

    fn note(&mut self, what: std::fmt::Arguments) {
        writeln!(self.trace, "{}: {what}", self.now).expect("strings take everything");
    }

    fn begin(&mut self, role: Role) {
        self.clients.push(Client { role, open: BTreeMap::new(), next_number: 0, bodies: BTreeMap::new() });
        self.follow(self.clients.len() - 1);
    }

    fn step(&mut self) {
        self.now += 1;
        let happening = self.happenings[self.rng.random_range(0..self.happenings.len())];
        let node = self.rng.random_range(0..NODES);
        match happening {
            Happening::Append => self.append(),
            Happening::Deliver => self.deliver(),
            Happening::Audit => self.audit(),
            Happening::FailToLook => self.absences.could_not_look(),
            Happening::Work => self.work(),
            Happening::TimeOut => self.time_out(),
            Happening::LoseMessage => self.lose_a_message(),
            Happening::Crash => self.stores[node].crash(),
            Happening::ComeBack => self.stores[node].up = true,
            Happening::LoseNode => self.lose(node),
            Happening::HurtEntry => self.hurt(node),
            Happening::Drain => drop(self.draining.get_or_insert(node)),
            Happening::Close => self.with_writer(LedgerWriter::close),
            Happening::Recover => self.recover(),
        }
    }

    fn with_writer(&mut self, event: impl FnOnce(&mut LedgerWriter)) {
        let Role::Writer(writer) = &mut self.clients[0].role else { unreachable!("the first client writes") };
        event(writer);
        self.follow(0);
    }

    fn append(&mut self) {
        let payload = self.rng.random_range(1..50);
        let Role::Writer(writer) = &mut self.clients[0].role else { unreachable!("the first client writes") };
        if let Ok(entry) = writer.append(payload) {
            assert_eq!(entry, self.truth.written.len() as u64);
            self.truth.written.push(writer.length());
        }
        self.follow(0);
    }

    /// A node goes with its disk, if that leaves a good copy of everything.
    fn lose(&mut self, node: usize) {
        let lost = self.stores.iter().filter(|store| store.is_gone).count();
        // Where the writer is, one is as much as its acknowledgements allow for.
        let last = &self.truth.metadata.last_fragment().ensemble;
        let writer_lacks_one = last.iter().any(|member| self.stores[number_of(member)].is_gone);
        if lost >= LOST_MAX || self.stores[node].is_gone || self.truth.closed.is_none() && writer_lacks_one {
            return;
        }
        if self.is_at_rest(node) && (0..self.truth.kept()).all(|entry| self.is_safe_without(node, entry)) {
            self.note(format_args!("{} is lost for good", name(node)));
            self.seen.nodes_lost += 1;
            self.stores[node].is_gone = true;
        }
    }

    /// A bit of an entry turns, of one that is in the ledger for good: another may have but the copies that count.
    fn hurt(&mut self, node: usize) {
        let Some(last) = self.truth.kept().checked_sub(1) else { return };
        let entry = self.rng.random_range(0..=last);
        let spare = NODES - LOST_MAX - 1 - self.truth.metadata.quorum.ensemble as usize;
        let hurt = self.stores.iter().filter(|store| store.is_hurt()).count();
        if hurt >= spare && !self.stores[node].is_hurt() {
            return;
        }
        if self.stores[node].has_good(entry) && self.is_at_rest(node) && self.is_safe_without(node, entry) {
            self.note(format_args!("{} has a damaged entry {entry}", name(node)));
            self.seen.entries_hurt += 1;
            self.stores[node].hurt(entry);
        }
    }

    fn is_moving(&self) -> bool {
        let is_moving = |client: &Client| match client.role {
            Role::Writer(_) => client.open.values().any(|(_, call)| matches!(call, Call::WriteMetadata { .. })),
            Role::Recovery(_) | Role::Repair(_) => !client.has_ended(),
        };
        self.clients.iter().any(is_moving)
    }

    /// Whether the node is not about to become a member: what is lost of it then would be lost of a member.
    fn is_at_rest(&self, node: usize) -> bool {
        let is_member = self.truth.metadata.fragments.iter().any(|fragment| fragment.ensemble.contains(&name(node)));
        is_member || !self.is_moving()
    }

    /// Whether enough is left without this node's copy: one, or another one while members change.
    fn is_safe_without(&mut self, node: usize, entry: u64) -> bool {
        let mut copies = self.truth.good_copies(entry, &mut self.stores);
        copies.retain(|copy| *copy != node);
        match self.is_moving() {
            false => !copies.is_empty(),
            true => copies.iter().filter(|copy| self.draining != Some(**copy)).count() >= 2,
        }
    }

    fn table(&self) -> NodeTable {
        let standing = |node: usize| match () {
            () if !self.stores[node].is_there() && self.given_up.contains(&name(node)) => Standing::Lost,
            () if self.draining == Some(node) => Standing::Draining,
            () if !self.stores[node].is_there() => Standing::Away,
            () => Standing::Writable,
        };
        let view = |node: usize| NodeView {
            place: Place { region: "r".to_owned(), zone: (node % ZONES).to_string() },
            standing: standing(node),
            free_bytes: None,
        };
        (0..NODES).map(|node| (name(node), view(node))).collect()
    }

    fn audit(&mut self) {
        let missing = (0..NODES).filter(|node| !self.stores[*node].is_there()).map(name).collect();
        let given_up = self.absences.look(Duration::from_millis(self.now), &missing);
        let back = self.given_up.difference(&given_up).count();
        self.seen.nodes_given_up_that_returned += back as u64;
        self.given_up = given_up;
    }

    /// A worker looks at the ledger.
    fn work(&mut self) {
        let busy = self.clients.iter().filter(|client| !client.has_ended()).count();
        if busy >= CLIENTS_MAX {
            return;
        }
        let (metadata, version, nodes) = (self.truth.metadata.clone(), self.truth.version, self.table());
        match survey::writers_end(&metadata, &nodes).is_empty() {
            true => self.writer_awaited_since = None,
            false => {
                let since = *self.writer_awaited_since.get_or_insert(self.now);
                if self.now - since >= self.writers_grace || self.calm {
                    self.note(format_args!("the ledger is closed under its writer"));
                    self.seen.writers_closed_under += 1;
                    self.begin(Role::Recovery(Box::new(LedgerRecovery::new(metadata, version))));
                    return;
                }
            }
        }
        let random = self.rng.random();
        self.begin(Role::Repair(Box::new(LedgerRepair::new(metadata, version, nodes, random))));
    }

    fn recover(&mut self) {
        let recovery = LedgerRecovery::new(self.truth.metadata.clone(), self.truth.version);
        if self.clients.iter().filter(|client| !client.has_ended()).count() < CLIENTS_MAX {
            self.begin(Role::Recovery(Box::new(recovery)));
        }
    }

    fn time_out(&mut self) {
        let client = self.rng.random_range(0..self.clients.len());
        let numbers: Vec<u64> = self.clients[client].open.keys().copied().collect();
        if let Some(&number) = numbers.choose(&mut self.rng) {
            self.hear(client, number, Reply::Silence);
        }
    }

    fn lose_a_message(&mut self) {
        if !self.network.is_empty() {
            let at = self.rng.random_range(0..self.network.len());
            self.network.swap_remove(at);
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.network.len());
        match self.network.swap_remove(at) {
            Message::Reply { client, number, reply } => self.hear(client, number, reply),
            Message::Call { client, number, to, call } => {
                let by_repair = matches!(self.clients[client].role, Role::Repair(_));
                let Some(reply) = self.answer(to, call, by_repair) else { return };
                self.network.push(Message::Reply { client, number, reply });
            }
        }
    }

    /// `None` if whoever was asked is not there.
    fn answer(&mut self, to: Option<usize>, call: Call, by_repair: bool) -> Option<Reply> {
        let Some(node) = to else {
            let Call::WriteMetadata { metadata, expected_version } = call else {
                unreachable!("metadata take nothing else")
            };
            let replaces = metadata.fragments != self.truth.metadata.fragments;
            let outcome = self.truth.write(metadata, expected_version, by_repair, &mut self.stores);
            match &outcome {
                MetadataOutcome::Written { .. } => {
                    self.seen.open_ledgers_repaired += u64::from(by_repair && replaces && self.truth.closed.is_none());
                    let written = format!("{:?}", self.truth.metadata);
                    self.note(format_args!("by repair: {by_repair}: {written}"));
                    self.truth.check_readable(&mut self.stores);
                }
                MetadataOutcome::Found { .. } => self.seen.repairs_conflicted += u64::from(by_repair),
            }
            return Some(Reply::Metadata(outcome));
        };
        let store = &mut self.stores[node];
        if !store.is_there() {
            // Whoever is there no more does not refuse either: the caller runs out of patience.
            return self.calm.then_some(Reply::Silence);
        }
        Some(match call {
            Call::Add { entry, body, recovery } => Reply::Added(store.add(entry, body, recovery)),
            Call::Fence => Reply::Fenced(store.fence()),
            Call::Read { fence: true, .. } if store.fence().is_none() => Reply::Read(Err(ReadResult::Unknown)),
            Call::Read { entry, .. } => Reply::Read(store.read(entry)),
            Call::List => Reply::Listed(store.list(self.truth.written.len() as u64)),
            Call::WriteMetadata { .. } => unreachable!("nodes have no metadata"),
        })
    }

    fn call(&mut self, client: usize, to: Option<NodeId>, call: Call) {
        let to = to.map(|node| number_of(&node));
        let state = &mut self.clients[client];
        let number = state.next_number;
        state.next_number += 1;
        state.open.insert(number, (to, call.clone()));
        self.network.push(Message::Call { client, number, to, call });
    }

    /// A reply reaches its client, once.
    fn hear(&mut self, client: usize, number: u64, reply: Reply) {
        let Some((to, call)) = self.clients[client].open.remove(&number) else { return };
        let node = to.map(name).unwrap_or_default();
        match call {
            Call::Add { entry, .. } => {
                let answer = match reply {
                    Reply::Added(AddAnswer::Ok) => Ok(()),
                    Reply::Added(AddAnswer::Fenced) => Err(AddFailure::Fenced),
                    _ => Err(AddFailure::Failed),
                };
                let is_silent = matches!(reply, Reply::Silence);
                self.clients[client].role.added(entry, &node, answer, is_silent);
            }
            Call::Fence => {
                let answer = if let Reply::Fenced(confirmed) = reply { confirmed } else { None };
                if let Role::Recovery(recovery) = &mut self.clients[client].role {
                    recovery.fenced(&node, answer);
                }
            }
            Call::Read { entry, .. } => self.hear_of_entry(client, entry, &node, reply),
            Call::List => {
                let listing = if let Reply::Listed(listing) = reply { listing } else { None };
                if let Role::Repair(repair) = &mut self.clients[client].role {
                    repair.listed(&node, listing.map(|list| Box::new(Listed(list)) as Box<dyn Listing>));
                }
            }
            Call::WriteMetadata { .. } => {
                // Whoever does not know what became of a write looks.
                let found = (self.truth.metadata.clone(), self.truth.version);
                let outcome = match reply {
                    Reply::Metadata(outcome) => outcome,
                    _ => MetadataOutcome::Found { metadata: found.0, version: found.1 },
                };
                match &mut self.clients[client].role {
                    Role::Writer(writer) => writer.metadata_written(outcome),
                    Role::Recovery(recovery) => recovery.metadata_written(outcome),
                    Role::Repair(repair) => repair.metadata_written(Some(outcome)),
                }
            }
        }
        self.follow(client);
    }

    /// What a client makes of an entry that it was sent: bytes that do not fit their digest say nothing.
    fn hear_of_entry(&mut self, client: usize, entry: u64, node: &NodeId, reply: Reply) {
        let found = if let Reply::Read(found) = reply { found } else { Err(ReadResult::Unknown) };
        let state = &mut self.clients[client];
        let is_unchecked = self.planted == Some(Planted::CopiesAreNotChecked) && matches!(state.role, Role::Repair(_));
        let good = found.ok().filter(|body| body.is_good || is_unchecked);
        if let Some(body) = good {
            state.bodies.insert(entry, body);
        }
        match &mut state.role {
            Role::Recovery(recovery) => {
                let answer = match (good, found) {
                    (Some(body), _) => ReadAnswer::Here { length: body.stored.length },
                    (None, Err(ReadResult::Absent)) => ReadAnswer::Absent,
                    (None, _) => ReadAnswer::Unknown,
                };
                recovery.read(entry, node, answer);
            }
            Role::Repair(repair) => {
                self.seen.bad_copies_refused += u64::from(found.is_ok() && good.is_none());
                repair.read(entry, node, good.map(|_| 100));
            }
            Role::Writer(_) => unreachable!("writers do not read"),
        }
    }

    /// Carries out what the client's state machine wants.
    fn follow(&mut self, client: usize) {
        loop {
            let actions = self.clients[client].role.take_actions();
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
                let confirmed = last_add_confirmed.map_or(0, |last| last + 1);
                let stored = Stored { length: self.truth.written[entry as usize], confirmed };
                let body = Body { stored, is_good: true };
                self.call(client, Some(node), Call::Add { entry, body, recovery: false });
            }
            Action::Writer(WriterAction::Confirm { up_to }) => self.truth.confirm(up_to, &mut self.stores),
            Action::Writer(WriterAction::Closed { .. } | WriterAction::Fail(_)) => {
                self.note(format_args!("the writer has ended"));
            }
            Action::Recovery(RecoveryAction::Fence { node }) => self.call(client, Some(node), Call::Fence),
            Action::Recovery(RecoveryAction::Read { entry, node }) => {
                self.call(client, Some(node), Call::Read { entry, fence: true });
            }
            Action::Recovery(RecoveryAction::Add { entry, node, .. }) => {
                let body = self.clients[client].bodies[&entry];
                self.call(client, Some(node), Call::Add { entry, body, recovery: true });
            }
            Action::Recovery(RecoveryAction::Done(result)) => self.note(format_args!("recovered: {result:?}")),
            Action::Writer(WriterAction::Choose { ensemble, failed, avoid })
            | Action::Recovery(RecoveryAction::Choose { ensemble, failed, avoid }) => {
                let nodes = self.choose(&ensemble, failed.len(), &avoid);
                match &mut self.clients[client].role {
                    Role::Writer(writer) => writer.chosen(nodes),
                    Role::Recovery(recovery) => recovery.chosen(nodes),
                    Role::Repair(_) => unreachable!("repairs choose by themselves"),
                }
            }
            Action::Writer(WriterAction::WriteMetadata { metadata, expected_version })
            | Action::Recovery(RecoveryAction::WriteMetadata { metadata, expected_version })
            | Action::Repair(RepairAction::WriteMetadata { metadata, expected_version }) => {
                self.call(client, None, Call::WriteMetadata { metadata, expected_version });
            }
            Action::Repair(RepairAction::List { node }) => self.call(client, Some(node), Call::List),
            Action::Repair(RepairAction::Read { entry, node }) => {
                self.call(client, Some(node), Call::Read { entry, fence: false });
            }
            Action::Repair(RepairAction::Add { entry, nodes }) => {
                let body = self.clients[client].bodies.remove(&entry).expect("it was just read");
                for node in nodes {
                    self.call(client, Some(node), Call::Add { entry, body, recovery: true });
                }
            }
            Action::Repair(RepairAction::Done(report)) => {
                self.note(format_args!("client {client}: {report:?}"));
                self.seen.entries_copied += report.copied;
                self.seen.places_replaced += report.replaced;
                self.seen.repairs_blocked += u64::from(!report.blockers.is_empty());
            }
        }
    }

    fn choose(&mut self, ensemble: &[NodeId], count: usize, avoid: &BTreeSet<NodeId>) -> Vec<Option<NodeId>> {
        let is_free = |node: &usize| {
            let id = name(*node);
            self.stores[*node].is_there()
                && self.draining != Some(*node)
                && !ensemble.contains(&id)
                && !avoid.contains(&id)
        };
        let mut free: Vec<usize> = (0..NODES).filter(is_free).collect();
        let mut one = || {
            let at = (!free.is_empty()).then(|| self.rng.random_range(0..free.len()))?;
            Some(name(free.swap_remove(at)))
        };
        (0..count).map(|_| one()).collect()
    }

    /// When nothing fails any more, the ledger is closed, and repaired within a bound.
    fn settle(&mut self) {
        self.calm = true;
        self.note(format_args!("calm"));
        self.stores.iter_mut().for_each(|store| store.up = true);
        let mut left = String::new();
        for _ in 0..ROUNDS_TO_SETTLE {
            // Nodes are looked at often enough for what is missing to be given up.
            for _ in 0..100 {
                self.now += 10;
                self.audit();
            }
            if self.truth.closed.is_none() {
                self.recover();
            }
            self.work();
            self.run_dry();
            let is_leaving = |node: &usize| self.stores[*node].is_gone || self.draining == Some(*node);
            let leaving: BTreeSet<NodeId> = (0..NODES).filter(is_leaving).map(name).collect();
            let mut flaws = survey::flaws(&self.truth.metadata, &self.table());
            // Whoever has a bad copy is not taken, and may be the only one in its zone.
            let is_any_hurt = self.stores.iter().any(Store::is_hurt);
            flaws.retain(|flaw| flaw.cause != Cause::Misplaced || !is_any_hurt);
            left = match self.truth.unrepaired(&mut self.stores, &leaving) {
                Some(unrepaired) => unrepaired,
                None if !flaws.is_empty() => format!("{flaws:?}"),
                None if self.truth.closed.is_none() => "it is not closed".to_owned(),
                None => return self.truth.check_readable(&mut self.stores),
            };
        }
        panic!("not repaired in the end: {left}");
    }

    /// Until nobody waits for anything any more.
    fn run_dry(&mut self) {
        for _ in 0..STEPS_TO_SETTLE {
            if self.network.is_empty() {
                // What was lost before it was calm is given up by now.
                let open = self.clients.iter().enumerate();
                let open: Vec<(usize, u64)> =
                    open.flat_map(|(client, state)| state.open.keys().map(move |&number| (client, number))).collect();
                if open.is_empty() {
                    return;
                }
                open.into_iter().for_each(|(client, number)| self.hear(client, number, Reply::Silence));
            }
            self.deliver();
        }
    }
}

impl Client {
    fn has_ended(&self) -> bool {
        match &self.role {
            Role::Writer(writer) => writer.has_ended(),
            Role::Recovery(recovery) => recovery.has_ended(),
            Role::Repair(repair) => repair.has_ended(),
        }
    }
}

impl Role {
    fn take_actions(&mut self) -> Vec<Action> {
        match self {
            Role::Writer(writer) => writer.take_actions().into_iter().map(Action::Writer).collect(),
            Role::Recovery(recovery) => recovery.take_actions().into_iter().map(Action::Recovery).collect(),
            Role::Repair(repair) => repair.take_actions().into_iter().map(Action::Repair).collect(),
        }
    }

    fn added(&mut self, entry: u64, node: &NodeId, answer: Result<(), AddFailure>, is_silent: bool) {
        match self {
            Role::Writer(writer) => writer.added(entry, node, answer),
            Role::Recovery(recovery) => recovery.added(entry, node, answer),
            Role::Repair(repair) => {
                let failure = if is_silent { CopyFailure::Unreachable } else { CopyFailure::Refused };
                repair.added(entry, node, answer.map_err(|_| failure));
            }
        }
    }
}
