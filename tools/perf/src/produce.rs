//! `produce`: sets up connections and producers, and drives each thread's share.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use geminga_wire_pulsar::{Command, proto};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::args::{Outstanding, ProduceArgs, thread_count, topic_names};
use crate::client::{Finder, Place, Session, Target, describe};
use crate::clock::{Clock, ns};
use crate::link::{Link, poll, sharpen_timers};
use crate::producer::{Limits, Pace, Producer, Turn};
use crate::stats::{Report, Reporter, Stats, Tally};
use crate::template::{INTERVAL_PROPERTY, Template};

const DEFAULT_DURATION: Duration = Duration::from_secs(10);
const DEFAULT_OUTSTANDING_MESSAGES: u64 = 1000;
const DEFAULT_OUTSTANDING_BYTES: u64 = 64 << 20;
/// How long receipts are waited for after the last message was sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest sleep: a worker looks that often whether another one has failed.
const MAX_WAIT_NS: u64 = 100_000_000;

/// Publishes as told, and returns what came of it. Blocks until the end.
///
/// # Errors
/// If it can't start. A failure after that is in [`Report::failure`].
pub fn produce(args: ProduceArgs) -> Result<Report> {
    let places = Finder::new(&args.url)?.find(&topic_names(&args.topic, args.topics))?;
    let template = Template::new(args.size, args.batching_max_messages.max(1), args.batching_max_bytes as usize);
    let plans = connect(&args, &places, &template)?;
    let threads = thread_count(args.threads, plans.len());
    let clock = Clock::start();
    let total: usize = plans.iter().map(|plan| plan.producers.len()).sum();
    let schedule = Schedule::new(&args, total, clock.now());
    let workers = assign(plans, threads, &args, &schedule, &template)?;

    let stats = Stats::new(threads);
    let stop = AtomicBool::new(false);
    let warmup_ns = schedule.start_ns.saturating_add(ns(args.warmup));
    let shared = Shared { args: &args, template: &template, clock, stats: &stats, stop: &stop, warmup_ns };
    let (reporter, failure) =
        crate::stats::supervise(clock, Reporter::new(&stats, "sent"), &stop, workers, |i, worker| {
            sharpen_timers();
            worker.run(&shared, i)
        });
    let mut report = reporter.finish(Some(warmup_ns), failure);
    if report.messages == 0 && report.failure.is_none() {
        report.failure = Some("no message was acknowledged".to_owned());
    }
    Ok(report)
}

/// What every producer has in common.
struct Schedule {
    interval_ns: Option<f64>,
    /// Between the first messages of two producers.
    offset_ns: f64,
    start_ns: u64,
    stop_ns: u64,
    quota: u64,
    producers: u64,
    limits: (u64, u64),
}

impl Schedule {
    fn new(args: &ProduceArgs, producers: usize, start_ns: u64) -> Self {
        let producers = producers as u64;
        let duration = match (args.duration, args.num_messages) {
            (None, Some(_)) => None,
            (duration, _) => Some(duration.unwrap_or(DEFAULT_DURATION)),
        };
        let stop_ns = duration.map_or(u64::MAX, |d| start_ns.saturating_add(ns(args.warmup)).saturating_add(ns(d)));
        let offset_ns = if args.rate > 0.0 { 1e9 / args.rate } else { 0.0 };
        let outstanding = args.max_outstanding.unwrap_or(if args.batching_max_messages > 1 {
            Outstanding::Bytes(DEFAULT_OUTSTANDING_BYTES)
        } else {
            Outstanding::Messages(DEFAULT_OUTSTANDING_MESSAGES)
        });
        let limits = match outstanding {
            Outstanding::Messages(count) => (count, u64::MAX),
            Outstanding::Bytes(bytes) => (u64::MAX, (bytes / producers).max(1)),
        };
        Self {
            interval_ns: (args.rate > 0.0).then_some(offset_ns * producers as f64),
            offset_ns,
            start_ns,
            stop_ns,
            quota: args.num_messages.unwrap_or(u64::MAX),
            producers,
            limits,
        }
    }

    fn producer(&self, index: u64, batch_count: u32, batch_delay: Duration) -> Producer {
        let quota = match self.quota {
            u64::MAX => u64::MAX,
            all => all / self.producers + u64::from(index < all % self.producers),
        };
        let pace = Pace {
            start_ns: self.start_ns + (index as f64 * self.offset_ns) as u64,
            interval_ns: self.interval_ns,
            stop_ns: self.stop_ns,
            quota,
        };
        let (max_count, max_bytes) = self.limits;
        Producer::new(pace, Limits { batch_count, batch_delay_ns: ns(batch_delay), max_count, max_bytes })
    }
}

impl Schedule {
    /// What stays the same in a producer's metadata.
    fn metadata(&self, producer_name: String, batch_count: u32) -> proto::MessageMetadata {
        let interval = self.interval_ns.filter(|_| batch_count > 1);
        let property =
            interval.map(|ns| proto::KeyValue { key: INTERVAL_PROPERTY.to_owned(), value: format!("{ns:.0}") });
        proto::MessageMetadata { producer_name, properties: property.into_iter().collect(), ..Default::default() }
    }
}

/// A connection and the names of the producers on it.
struct ConnectionPlan {
    session: Session,
    producers: Vec<String>,
}

/// Opens the connections to each broker and registers the producers, spread over them. Producer ids count per connection.
fn connect(args: &ProduceArgs, places: &[Place], template: &Template) -> Result<Vec<ConnectionPlan>> {
    let mut topics_of: BTreeMap<&Target, Vec<&str>> = BTreeMap::new();
    for place in places {
        let topics = topics_of.entry(&place.target).or_default();
        topics.extend(std::iter::repeat_n(place.topic.as_str(), args.producers as usize));
    }
    let mut plans = Vec::new();
    for (target, topics) in topics_of {
        let count = (args.connections as usize).min(topics.len());
        for i in 0..count {
            let mut session = Session::open(target)?;
            if !template.fits(session.max_message_size) {
                bail!(
                    "a batch of {} bytes is over the broker's limit of {} bytes",
                    template.len(template.max_count()),
                    session.max_message_size
                );
            }
            let mine: Vec<&str> = topics.iter().copied().skip(i).step_by(count).collect();
            let producers = register(&mut session, &mine)?;
            plans.push(ConnectionPlan { session, producers });
        }
    }
    Ok(plans)
}

fn register(session: &mut Session, topics: &[&str]) -> Result<Vec<String>> {
    let mut names = Vec::with_capacity(topics.len());
    for (id, topic) in topics.iter().enumerate() {
        let request_id = session.request_id();
        let producer = proto::CommandProducer {
            topic: (*topic).to_owned(),
            producer_id: id as u64,
            request_id,
            user_provided_producer_name: Some(false),
            ..Default::default()
        };
        session.send(&[producer.into()])?;
        match session.answer(request_id).with_context(|| format!("producer on {topic}"))? {
            Command::ProducerSuccess(success) => names.push(success.producer_name),
            other => bail!("producer on {topic}: got {} instead of PRODUCER_SUCCESS", other.name()),
        }
    }
    Ok(names)
}

fn assign(
    plans: Vec<ConnectionPlan>,
    threads: usize,
    args: &ProduceArgs,
    schedule: &Schedule,
    template: &Template,
) -> Result<Vec<Worker>> {
    let keys: Arc<[String]> = (0..args.keys).map(|i| format!("key-{i}")).collect();
    let mut workers: Vec<Worker> = (0..threads).map(|i| Worker::new(i, keys.clone())).collect();
    let mut index = 0;
    for (i, plan) in plans.into_iter().enumerate() {
        let worker = &mut workers[i % threads];
        let link = worker.links.len();
        worker.links.push(Link::new(plan.session)?);
        worker.ready.push(VecDeque::new());
        worker.first_of_link.push(worker.slots.len());
        for (id, name) in plan.producers.into_iter().enumerate() {
            let producer = schedule.producer(index, template.max_count(), args.batching_max_delay);
            index += 1;
            worker.ready[link].push_back(worker.slots.len());
            worker.slots.push(Slot::new(producer, link, id as u64, schedule.metadata(name, template.max_count())));
        }
    }
    Ok(workers)
}

struct Shared<'a> {
    args: &'a ProduceArgs,
    template: &'a Template,
    clock: Clock,
    stats: &'a Stats,
    stop: &'a AtomicBool,
    warmup_ns: u64,
}

/// A producer and where it lives.
struct Slot {
    producer: Producer,
    link: usize,
    id: u64,
    metadata: proto::MessageMetadata,
    blocked: bool,
    /// The time for which it is in the timers.
    timer: Option<u64>,
}

impl Slot {
    fn new(producer: Producer, link: usize, id: u64, metadata: proto::MessageMetadata) -> Self {
        Self { producer, link, id, metadata, blocked: false, timer: None }
    }
}

/// A thread's connections and producers. Each producer that isn't done is in exactly one place: ready on its link, in the
/// timers, or blocked until a receipt.
struct Worker {
    links: Vec<Link>,
    first_of_link: Vec<usize>,
    slots: Vec<Slot>,
    ready: Vec<VecDeque<usize>>,
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    done: usize,
    keys: Arc<[String]>,
    rng: SmallRng,
}

impl Worker {
    fn new(index: usize, keys: Arc<[String]>) -> Self {
        Self {
            links: Vec::new(),
            first_of_link: Vec::new(),
            slots: Vec::new(),
            ready: Vec::new(),
            timers: BinaryHeap::new(),
            done: 0,
            keys,
            rng: SmallRng::seed_from_u64(index as u64),
        }
    }

    fn run(mut self, shared: &Shared<'_>, index: usize) -> Result<()> {
        let mut readable = Vec::new();
        let mut drain_until = None;
        while !shared.stop.load(Ordering::Relaxed) {
            let now = shared.clock.now();
            self.wake_due(now);
            for link in 0..self.links.len() {
                self.fill(link, shared);
                self.links[link].flush()?;
            }
            if self.done == self.slots.len() {
                if self.links.iter().all(|l| l.out.is_empty()) && self.slots.iter().all(|s| s.producer.in_flight() == 0)
                {
                    return Ok(());
                }
                if now > *drain_until.get_or_insert(now + ns(DRAIN_TIMEOUT)) {
                    let left: u64 = self.slots.iter().map(|slot| slot.producer.in_flight()).sum();
                    shared.stats.of(index).error(left, || format!("no receipt within {DRAIN_TIMEOUT:?}"));
                    bail!("{left} messages got no receipt within {DRAIN_TIMEOUT:?} after the last was sent");
                }
            }
            poll(&self.links, self.wait_ns(shared.clock.now()), &mut readable)?;
            for (link, readable) in readable.iter().enumerate() {
                if *readable {
                    self.receive(link, shared, index)?;
                }
            }
        }
        Ok(())
    }

    fn wake_due(&mut self, now: u64) {
        while let Some(Reverse((time, slot))) = self.timers.peek().copied() {
            if time > now {
                break;
            }
            self.timers.pop();
            // One that was called before is in the timers in vain.
            if self.slots[slot].timer == Some(time) {
                self.slots[slot].timer = None;
                self.ready[self.slots[slot].link].push_back(slot);
            }
        }
    }

    fn wait_ns(&self, now: u64) -> u64 {
        let can_fill = |link: usize| !self.ready[link].is_empty() && !self.links[link].out.is_full();
        if (0..self.links.len()).any(can_fill) {
            return 0;
        }
        match self.timers.peek() {
            Some(Reverse((time, _))) => time.saturating_sub(now).min(MAX_WAIT_NS),
            None => MAX_WAIT_NS,
        }
    }

    /// Lets the ready producers of a link take turns until its outbox is full.
    fn fill(&mut self, link: usize, shared: &Shared<'_>) {
        while !self.links[link].out.is_full() {
            let Some(index) = self.ready[link].pop_front() else {
                return;
            };
            let now = shared.clock.now();
            let slot = &mut self.slots[index];
            match slot.producer.turn(now) {
                Turn::Send { count, first_ns } => {
                    let key = (!self.keys.is_empty()).then(|| self.rng.random_range(0..self.keys.len()));
                    stamp(&mut slot.metadata, shared.clock, now, first_ns, key.map(|k| self.keys[k].as_str()));
                    let sequence_id = slot.producer.sent(count, first_ns, shared.template.len(count) as u64);
                    let out = &mut self.links[link].out;
                    shared.template.send(slot.id, sequence_id, count, &mut slot.metadata, out);
                    self.ready[link].push_back(index);
                }
                Turn::At(time) => {
                    slot.timer = Some(time);
                    self.timers.push(Reverse((time, index)));
                }
                Turn::Blocked => slot.blocked = true,
                Turn::Done => self.done += 1,
            }
        }
    }

    fn receive(&mut self, link: usize, shared: &Shared<'_>, index: usize) -> Result<()> {
        let (first, slots, ready) = (self.first_of_link[link], &mut self.slots, &mut self.ready[link]);
        let now = shared.clock.now();
        let mut tally = shared.stats.of(index);
        let mut answered = |producer_id: u64, sequence_id: u64, error: Option<String>, tally: &mut Tally| {
            let at = first + producer_id as usize;
            let slot =
                slots.get_mut(at).filter(|slot| slot.link == link).context("an answer for an unknown producer")?;
            let (batch, skipped) = slot.producer.answered(sequence_id);
            if skipped > 0 {
                tally.error(skipped, || format!("no receipt for {skipped} messages before sequence id {sequence_id}"));
            }
            if let Some(batch) = batch {
                match error {
                    Some(error) => tally.error(u64::from(batch.count), || error),
                    None if batch.first_ns >= shared.warmup_ns => {
                        tally.done(u64::from(batch.count), u64::from(batch.count) * shared.args.size as u64, now);
                        slot.producer.each_scheduled(&batch, |time, n| tally.latency(now.saturating_sub(time), n));
                    }
                    None => {}
                }
            }
            // A batch that others gather in may go now.
            let may_go = slot.timer.is_some() && matches!(slot.producer.turn(now), Turn::Send { .. });
            if std::mem::take(&mut slot.blocked) || may_go {
                slot.timer = None;
                ready.push_back(at);
            }
            Ok::<_, anyhow::Error>(())
        };
        self.links[link].receive(|frame, _| match frame.command {
            Command::SendReceipt(receipt) => answered(receipt.producer_id, receipt.sequence_id, None, &mut tally),
            Command::SendError(error) => {
                let text = describe(Some(error.error), Some(&error.message));
                answered(error.producer_id, error.sequence_id, Some(text), &mut tally)
            }
            Command::CloseProducer(_) => {
                bail!("the broker closed a producer (the topic moves, or was unloaded or deleted)")
            }
            Command::TopicMigrated(_) => bail!("the topic has migrated to another cluster"),
            Command::Error(error) => bail!(describe(Some(error.error), Some(&error.message))),
            _ => Ok(()),
        })
    }
}

/// Sets what differs between batches: times and key.
fn stamp(metadata: &mut proto::MessageMetadata, clock: Clock, now: u64, first_ns: u64, key: Option<&str>) {
    metadata.publish_time = clock.to_epoch(now) / 1_000_000;
    metadata.event_time = Some(clock.to_epoch(first_ns));
    if let Some(key) = key {
        let own = metadata.partition_key.get_or_insert_default();
        own.clear();
        own.push_str(key);
    }
}
