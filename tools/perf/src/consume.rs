//! `consume`: sets up connections and consumers, and drives each thread's share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use geminga_wire_pulsar::proto::command_subscribe::{InitialPosition, SubType};
use geminga_wire_pulsar::{Command, FrameRef, parse_payload, proto};

use crate::args::{ConsumeArgs, Initial, numbered, thread_count, topic_names};
use crate::client::{Finder, Place, Session, Target, describe};
use crate::clock::{Clock, ns};
use crate::consumer::{Consumer, message_count, payload_bytes, published};
use crate::link::{Link, Outbox, poll, sharpen_timers};
use crate::stats::{Report, Reporter, Stats, Tally, supervise};

const DEFAULT_DURATION: Duration = Duration::from_secs(10);
/// Longest sleep: a worker looks that often whether the run is over.
const MAX_WAIT_NS: u64 = 50_000_000;
/// For the broker's answers at the end.
const CLOSE_LIMIT_NS: u64 = 5_000_000_000;
/// Requests before that are fewer.
const FIRST_CLOSE_REQUEST: u64 = 1 << 32;

/// Receives as told, and returns what came of it. Blocks until the end.
///
/// # Errors
/// If it can't start. A failure after that is in [`Report::failure`].
pub fn consume(args: ConsumeArgs) -> Result<Report> {
    let places = Finder::new(&args.url)?.find(&topic_names(&args.topic, args.topics))?;
    let plans = connect(&args, &places)?;
    let threads = thread_count(args.threads, plans.len());
    let workers = assign(plans, threads, &args)?;

    let clock = Clock::start();
    let stats = Stats::new(threads);
    let stop = AtomicBool::new(false);
    let endless = args.num_messages.is_some() || args.idle_timeout.is_some();
    let duration = args.duration.or_else(|| (!endless).then_some(DEFAULT_DURATION));
    let shared = Shared {
        clock,
        stats: &stats,
        stop: &stop,
        quota: args.num_messages.unwrap_or(u64::MAX),
        stop_ns: duration.map_or(u64::MAX, |duration| ns(duration.saturating_add(args.warmup))),
        idle_ns: args.idle_timeout.map_or(u64::MAX, ns),
        ack_delay_ns: ns(args.ack_delay),
        warmup_ns: ns(args.warmup),
        first_ns: AtomicU64::new(u64::MAX),
        last_ns: AtomicU64::new(0),
        verify: args.verify_checksum,
    };
    let (reporter, failure) =
        supervise(clock, Reporter::new(&stats, "received"), &stop, workers, |i, worker: Worker| {
            sharpen_timers();
            worker.run(&shared, i)
        });
    let mut report = reporter.finish(None, failure);
    if report.messages == 0 && report.failure.is_none() {
        report.failure = Some("no message was received".to_owned());
    }
    Ok(report)
}

/// A connection and the number of consumers on it.
struct ConnectionPlan {
    session: Session,
    consumers: usize,
}

/// Opens the connections to each broker and subscribes, spread over them. Consumer ids count per connection.
fn connect(args: &ConsumeArgs, places: &[Place]) -> Result<Vec<ConnectionPlan>> {
    let subscriptions = numbered(&args.subscription, args.subscriptions);
    let mut wanted: BTreeMap<&Target, Vec<(&str, &str)>> = BTreeMap::new();
    for place in places {
        for subscription in &subscriptions {
            let consumers = std::iter::repeat_n((place.topic.as_str(), subscription.as_str()), args.consumers as usize);
            wanted.entry(&place.target).or_default().extend(consumers);
        }
    }
    let mut plans = Vec::new();
    for (target, consumers) in wanted {
        let count = (args.connections as usize).min(consumers.len());
        for i in 0..count {
            let mut session = Session::open(target)?;
            let mine: Vec<_> = consumers.iter().copied().skip(i).step_by(count).collect();
            subscribe(&mut session, args, &mine, i, count)?;
            plans.push(ConnectionPlan { session, consumers: mine.len() });
        }
    }
    Ok(plans)
}

fn subscribe(
    session: &mut Session,
    args: &ConsumeArgs,
    consumers: &[(&str, &str)],
    at: usize,
    step: usize,
) -> Result<()> {
    let initial = match args.initial {
        Initial::Earliest => InitialPosition::Earliest,
        Initial::Latest => InitialPosition::Latest,
    };
    for (id, (topic, subscription)) in consumers.iter().enumerate() {
        let request_id = session.request_id();
        let subscribe = proto::CommandSubscribe {
            topic: (*topic).to_owned(),
            subscription: (*subscription).to_owned(),
            sub_type: SubType::from(args.subscription_type).into(),
            consumer_id: id as u64,
            request_id,
            consumer_name: Some(format!("perf-{}-{}", std::process::id(), at + id * step)),
            initial_position: Some(initial.into()),
            ..Default::default()
        };
        session.send(&[subscribe.into()])?;
        session.answer(request_id).with_context(|| format!("subscription {subscription} to {topic}"))?;
    }
    Ok(())
}

fn assign(plans: Vec<ConnectionPlan>, threads: usize, args: &ConsumeArgs) -> Result<Vec<Worker>> {
    let mut workers: Vec<Worker> = (0..threads).map(|_| Worker { links: Vec::new(), consumers: Vec::new() }).collect();
    for (i, plan) in plans.into_iter().enumerate() {
        let worker = &mut workers[i % threads];
        let mut link = Link::new(plan.session)?;
        for consumer_id in 0..plan.consumers as u64 {
            link.out.command(proto::CommandFlow { consumer_id, message_permits: args.receiver_queue });
        }
        worker.links.push(link);
        worker.consumers.push((0..plan.consumers).map(|_| Consumer::new(args.receiver_queue, args.ack)).collect());
    }
    Ok(workers)
}

struct Shared<'a> {
    clock: Clock,
    stats: &'a Stats,
    stop: &'a AtomicBool,
    quota: u64,
    stop_ns: u64,
    idle_ns: u64,
    ack_delay_ns: u64,
    /// After the first message.
    warmup_ns: u64,
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    verify: bool,
}

impl Shared<'_> {
    /// True if time is up or nothing came for too long.
    fn is_over(&self, now: u64) -> bool {
        let idle_since = self.last_ns.load(Ordering::Relaxed);
        now >= self.stop_ns || now.saturating_sub(idle_since) >= self.idle_ns
    }
}

/// A thread's connections, and the consumers of each by id.
struct Worker {
    links: Vec<Link>,
    consumers: Vec<Vec<Consumer>>,
}

impl Worker {
    fn run(mut self, shared: &Shared<'_>, index: usize) -> Result<()> {
        let mut readable = Vec::new();
        let mut next_ack = shared.ack_delay_ns;
        loop {
            let now = shared.clock.now();
            let over = shared.is_over(now) || shared.stop.load(Ordering::Relaxed);
            if over || now >= next_ack {
                self.acknowledge();
                next_ack = now + shared.ack_delay_ns;
            }
            if over {
                return self.close(shared.clock);
            }
            for link in &mut self.links {
                link.flush()?;
            }
            poll(&self.links, next_ack.saturating_sub(now).min(MAX_WAIT_NS), &mut readable)?;
            for (link, readable) in readable.iter().enumerate() {
                if *readable {
                    self.receive(link, shared, index)?;
                }
            }
        }
    }

    fn acknowledge(&mut self) {
        for (link, consumers) in self.links.iter_mut().zip(&mut self.consumers) {
            for (id, consumer) in consumers.iter_mut().enumerate() {
                if let Some(ack) = consumer.take_ack(id as u64) {
                    link.out.command(ack);
                }
            }
        }
    }

    /// Closes the consumers. The answer says that the broker has read what was acknowledged: a connection that ends while deliveries
    /// are on their way is reset, and what was not read of it yet may be lost.
    fn close(&mut self, clock: Clock) -> Result<()> {
        let mut open = 0;
        for (link, consumers) in self.links.iter_mut().zip(&self.consumers) {
            for consumer_id in 0..consumers.len() as u64 {
                let request_id = FIRST_CLOSE_REQUEST + consumer_id;
                link.out.command(proto::CommandCloseConsumer { consumer_id, request_id, ..Default::default() });
                open += 1;
            }
        }
        let until = clock.now() + CLOSE_LIMIT_NS;
        let mut readable = Vec::new();
        while open > 0 && clock.now() < until {
            for link in &mut self.links {
                link.flush()?;
            }
            poll(&self.links, MAX_WAIT_NS, &mut readable)?;
            for (link, _) in self.links.iter_mut().zip(&readable).filter(|(_, readable)| **readable) {
                link.receive(|frame, _| {
                    let answer = frame.command.request_id().is_some_and(|id| id >= FIRST_CLOSE_REQUEST);
                    open -= usize::from(answer);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, link: usize, shared: &Shared<'_>, index: usize) -> Result<()> {
        let consumers = &mut self.consumers[link];
        let mut round = Round { now: shared.clock.now(), count: 0, tally: &mut shared.stats.of(index), shared };
        self.links[link].receive(|frame, out| match frame.command {
            Command::Message(_) => round.message(frame, consumers, out),
            Command::CloseConsumer(_) => {
                bail!("the broker closed a consumer (the topic moves, or was unloaded or deleted)")
            }
            Command::TopicMigrated(_) => bail!("the topic has migrated to another cluster"),
            Command::Error(error) => bail!(describe(Some(error.error), Some(&error.message))),
            _ => Ok(()),
        })?;
        let count = round.count;
        if count > 0 {
            shared.last_ns.fetch_max(shared.clock.now(), Ordering::Relaxed);
            if shared.stats.add_total(count) >= shared.quota {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// What one read brought.
struct Round<'a> {
    now: u64,
    count: u64,
    tally: &'a mut Tally,
    shared: &'a Shared<'a>,
}

impl Round<'_> {
    fn message(&mut self, frame: FrameRef<'_>, consumers: &mut [Consumer], out: &mut Outbox) -> Result<()> {
        let Command::Message(message) = frame.command else {
            return Ok(());
        };
        let consumer = consumers.get_mut(message.consumer_id as usize).context("a message for an unknown consumer")?;
        let view = match parse_payload(frame.payload) {
            Ok(view) => view,
            Err(error) => {
                self.tally.error(1, || format!("malformed entry: {error}"));
                return Ok(());
            }
        };
        if self.shared.verify && !view.verify_checksum() {
            self.tally.error(1, || {
                format!("wrong checksum of {}:{}", message.message_id.ledger_id, message.message_id.entry_id)
            });
        }
        let count = message_count(&view, &message.ack_set);
        match payload_bytes(&view) {
            Some(bytes) => self.measure(&view, count, bytes),
            None => self.tally.error(1, || "malformed batch".to_owned()),
        }
        if message.redelivery_count() > 0 {
            self.tally.redelivered += u64::from(count);
        }
        if let Some(message_permits) = consumer.received(count) {
            out.command(proto::CommandFlow { consumer_id: message.consumer_id, message_permits });
        }
        if consumer.note(&message.message_id, count)
            && let Some(ack) = consumer.take_ack(message.consumer_id)
        {
            out.command(ack);
        }
        Ok(())
    }

    fn measure(&mut self, view: &geminga_wire_pulsar::PayloadView<'_>, count: u32, bytes: u64) {
        self.count += u64::from(count);
        let first = self.shared.first_ns.fetch_min(self.now, Ordering::Relaxed).min(self.now);
        if self.now - first < self.shared.warmup_ns {
            return;
        }
        self.tally.done(u64::from(count), bytes, self.now);
        let now = self.shared.clock.to_epoch(self.now);
        match published(view) {
            (first, 0) => self.tally.latency(now.saturating_sub(first), u64::from(count)),
            (first, interval) => {
                for i in 0..u64::from(count) {
                    self.tally.latency(now.saturating_sub(first.saturating_add(i.saturating_mul(interval))), 1);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_duration_end_a_run() {
        let (stats, stop) = (Stats::new(1), AtomicBool::new(false));
        let shared = Shared {
            clock: Clock::start(),
            stats: &stats,
            stop: &stop,
            quota: 1,
            stop_ns: 100,
            idle_ns: 30,
            ack_delay_ns: 1,
            warmup_ns: 0,
            first_ns: AtomicU64::new(u64::MAX),
            last_ns: AtomicU64::new(50),
            verify: false,
        };
        assert_eq!([60, 79, 80, 100].map(|now| shared.is_over(now)), [false, false, true, true]);
    }
}
