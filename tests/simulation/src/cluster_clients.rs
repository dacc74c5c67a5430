//! Producers and consumers of a simulated cluster. They look for their topic's owner, connect again when something went wrong,
//! and send again, in order, what has no receipt.

use std::collections::BTreeMap;
use std::rc::Rc;

use geminga_model::Position;
use geminga_topic::SubscriptionType;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::cluster_messages::{Message, ToBroker, ToClient};
use crate::cluster_sim::{Event, MS, Machine, Micros, SECOND, Sim};
use crate::cluster_subscriptions::type_of;
use crate::ledger_oracle::Entry;
use crate::ledger_producers::{Answer, Producer};

/// How long a broker may be silent, which answers pings.
const PATIENCE: Micros = 8 * SECOND;
const PING: Micros = 3 * SECOND;
/// Messages that a consumer is ready for when it begins.
const PERMITS: u32 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Tries again then.
    Away {
        until: Micros,
    },
    Connecting {
        since: Micros,
    },
    Connected,
}

struct Consumer {
    subscription: usize,
    granted: u32,
    delivered: u32,
    /// What came last of a key (an exclusive consumer has one for all), while it has neither sought nor asked for anything again.
    last: BTreeMap<u64, Position>,
    in_order: bool,
    /// Given to it, and not acknowledged.
    kept: Vec<Position>,
    /// A place to go back to.
    seen: Option<Position>,
    next_request: u64,
    /// Of the topic when it connected last.
    incarnation: Option<u64>,
}

enum Role {
    Producer(Producer),
    Consumer(Consumer),
}

pub struct Client {
    id: usize,
    pub topic: usize,
    brokers: u64,
    sim: Rc<Sim>,
    rng: SmallRng,
    role: Role,
    link: Link,
    broker: usize,
    connection: u64,
    heard_at: Micros,
    pinged_at: Micros,
    period: Micros,
}

/// How the clients of a cluster behave at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// They write, go away, forget to acknowledge and seek.
    Lively,
    /// They write, and read to the end.
    Orderly,
    /// They write nothing new.
    Quiet,
}

impl Client {
    pub fn producer(sim: Rc<Sim>, id: usize, topic: usize, brokers: usize, rng: SmallRng) -> Client {
        Client::new(sim, id, topic, brokers, rng, Role::Producer(Producer::new(id as u64, topic)))
    }

    pub fn consumer(
        sim: Rc<Sim>,
        id: usize,
        topic: usize,
        subscription: usize,
        brokers: usize,
        rng: SmallRng,
    ) -> Client {
        let consumer = Consumer {
            subscription,
            granted: 0,
            delivered: 0,
            last: BTreeMap::new(),
            in_order: true,
            kept: Vec::new(),
            seen: None,
            next_request: 0,
            incarnation: None,
        };
        Client::new(sim, id, topic, brokers, rng, Role::Consumer(consumer))
    }

    fn new(sim: Rc<Sim>, id: usize, topic: usize, brokers: usize, rng: SmallRng, role: Role) -> Client {
        let mut rng = SmallRng::from_rng(&mut { rng });
        let period = rng.random_range(100 * MS..600 * MS);
        sim.after(rng.random_range(0..period), Event::ClientTick { client: id });
        Client {
            id,
            topic,
            brokers: brokers as u64,
            sim,
            role,
            link: Link::Away { until: 0 },
            broker: rng.random_range(0..brokers),
            connection: (id as u64) << 32,
            heard_at: 0,
            pinged_at: 0,
            period,
            rng,
        }
    }

    /// Whether it has receipts for all that it has sent.
    pub fn is_idle(&self) -> bool {
        match &self.role {
            Role::Producer(producer) => producer.is_idle(),
            Role::Consumer(_) => self.link == Link::Connected,
        }
    }

    fn say(&mut self, message: ToBroker) {
        let event = Event::ToBroker { broker: self.broker, client: self.id, connection: self.connection, message };
        self.sim.send_on(self.connection, Machine::Client(self.id), Machine::Broker(self.broker), event);
    }

    pub fn tick(&mut self, mood: Mood) {
        self.sim.after(self.period, Event::ClientTick { client: self.id });
        let now = self.sim.now();
        match self.link {
            Link::Away { until } if until <= now => self.connect(),
            Link::Away { .. } => (),
            Link::Connecting { since } if since + PATIENCE < now => self.look_elsewhere(),
            Link::Connecting { .. } => (),
            Link::Connected if self.heard_at + PATIENCE < now => {
                self.sim.count("connections given up by clients");
                self.look_elsewhere();
            }
            Link::Connected => self.work(mood),
        }
    }

    fn connect(&mut self) {
        self.connection += 1;
        self.link = Link::Connecting { since: self.sim.now() };
        let subscription = match &mut self.role {
            Role::Producer(producer) => {
                producer.connected(self.broker as u32, self.connection);
                None
            }
            Role::Consumer(consumer) => {
                (consumer.granted, consumer.delivered) = (0, 0);
                (consumer.last, consumer.in_order) = (BTreeMap::new(), true);
                consumer.kept.clear();
                let incarnation = self.sim.oracle.borrow().incarnation(self.topic);
                if consumer.incarnation != incarnation {
                    // What it has seen is gone.
                    (consumer.incarnation, consumer.seen) = (incarnation, None);
                }
                Some(consumer.subscription)
            }
        };
        self.say(ToBroker::Connect { topic: self.topic, subscription });
    }

    fn look_elsewhere(&mut self) {
        self.broker = self.rng.random_range(0..self.brokers) as usize;
        self.try_again(50 * MS..500 * MS);
    }

    fn try_again(&mut self, pause: std::ops::Range<Micros>) {
        self.link = Link::Away { until: self.sim.now() + self.rng.random_range(pause) };
    }

    fn work(&mut self, mood: Mood) {
        let now = self.sim.now();
        let is_lively = mood == Mood::Lively;
        if self.pinged_at + PING < now {
            self.pinged_at = now;
            self.say(ToBroker::Ping);
        }
        if is_lively && self.rng.random_bool(0.002) {
            // Without a word: the broker finds out by itself.
            return self.try_again(SECOND..30 * SECOND);
        }
        let mut rng = self.rng.clone();
        match &mut self.role {
            Role::Producer(producer) => {
                if mood != Mood::Quiet {
                    for _ in 0..rng.random_range(0..4) {
                        producer.write(&mut rng);
                    }
                }
                let mut entries: Vec<Entry> = Vec::new();
                while let Some(entry) = producer.unsent(0) {
                    producer.answered(Answer::Taken);
                    entries.push(entry);
                }
                if !entries.is_empty() {
                    self.say(ToBroker::Publish(entries));
                }
            }
            Role::Consumer(consumer) => {
                let is_exclusive = type_of(&self.sim, self.topic, consumer.subscription) == SubscriptionType::Exclusive;
                let may_seek = is_lively && is_exclusive;
                let target = match consumer.seen {
                    Some(seen) if may_seek && rng.random_bool(0.01) => Some(seen),
                    _ if may_seek && rng.random_bool(0.001) => Some(Position::EARLIEST),
                    _ => None,
                };
                if let Some(position) = target {
                    consumer.in_order = false;
                    let request = consumer.request();
                    self.say(ToBroker::Seek { position, request });
                } else if !consumer.kept.is_empty() && (!is_lively || rng.random_bool(0.05)) {
                    consumer.in_order = false;
                    let kept = std::mem::take(&mut consumer.kept);
                    self.say(ToBroker::Redeliver(kept));
                }
            }
        }
        self.rng = rng;
    }

    pub fn hear(&mut self, connection: u64, message: ToClient, mood: Mood) {
        if connection != self.connection || matches!(self.link, Link::Away { .. }) {
            return;
        }
        self.heard_at = self.sim.now();
        match message {
            ToClient::Connected => {
                self.link = Link::Connected;
                if let Role::Consumer(consumer) = &mut self.role {
                    consumer.granted = PERMITS;
                    self.say(ToBroker::Flow(PERMITS));
                }
            }
            ToClient::Owner(broker) => {
                self.broker = broker;
                self.try_again(MS..5 * MS);
            }
            ToClient::NotReady if self.rng.random_bool(0.1) => self.look_elsewhere(),
            ToClient::NotReady | ToClient::Closed => self.try_again(20 * MS..200 * MS),
            ToClient::Refused(_) => self.try_again(20 * MS..200 * MS),
            ToClient::Receipts(sequences) => {
                let Role::Producer(producer) = &mut self.role else { unreachable!("only producers get receipts") };
                for sequence in sequences {
                    let origin = crate::ledger_oracle::Origin { producer: self.id as u64, sequence, connection };
                    producer.receipt(origin);
                    self.sim.count("receipts");
                }
            }
            ToClient::Messages(messages) => self.consume(messages, mood),
            ToClient::Pong => (),
            ToClient::Done(_) => self.sim.count("acks and resets with a receipt"),
        }
    }

    fn consume(&mut self, messages: Vec<Message>, mood: Mood) {
        let Role::Consumer(consumer) = &mut self.role else { unreachable!("only consumers get messages") };
        let sub_type = type_of(&self.sim, self.topic, consumer.subscription);
        let is_exclusive = sub_type == SubscriptionType::Exclusive;
        let mut acked = Vec::new();
        let mut taken = 0;
        for Message { position, payload } in messages {
            self.sim.count("messages checked by consumers");
            self.sim.oracle.borrow().delivered(self.topic, position, &payload);
            let entry = Entry::from_bytes(&payload);
            if sub_type != SubscriptionType::Shared && consumer.in_order {
                let key = if is_exclusive { 0 } else { entry.key() };
                let last = consumer.last.insert(key, position);
                assert!(last < Some(position), "{position} comes after {last:?}");
            }
            // A batch goes out whole.
            assert!(consumer.delivered < consumer.granted, "{position} comes without a permit");
            consumer.delivered += entry.messages;
            taken += entry.messages;
            consumer.seen = Some(position).filter(|_| self.rng.random_bool(0.2)).or(consumer.seen);
            let forgets = mood == Mood::Lively && self.rng.random_bool(0.03);
            if forgets { consumer.kept.push(position) } else { acked.push(position) }
        }
        consumer.granted += taken;
        let cumulative = is_exclusive && consumer.kept.is_empty() && self.rng.random_bool(0.5);
        let request = if self.rng.random_bool(0.3) { Some(consumer.request()) } else { None };
        if !acked.is_empty() {
            self.say(ToBroker::Ack { positions: acked, cumulative, request });
        }
        self.say(ToBroker::Flow(taken));
    }
}

impl Consumer {
    fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }
}
