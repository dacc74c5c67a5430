//! Drives [`Lookups`] for one client: sockets, tasks, time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use geminga_flow::Budget;
use geminga_wire_pulsar::proto;
use rustc_hash::FxHashMap;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::client::{ClientError, ClientReader, ClientWriter};
use crate::link::{self, LinkEvent};
use crate::lookups::{Action, End, LinkId, Lookups};
use crate::proxy::Proxy;

const TICK: Duration = Duration::from_secs(2);
/// Events of links that wait to be looked at; beyond, brokers are not read.
const EVENTS: usize = 16;
/// What waits to be written to one broker. More cannot be under way, but for signs of life.
const OUTBOUND: usize = 1200;
/// While this much waits to be written to the client, neither it nor brokers are read.
const HIGH_WATER: usize = 1 << 20;
/// The same while the proxy as a whole holds too much.
const HIGH_WATER_SCARCE: usize = 16 << 10;
/// For what is still to be written when the connection ends.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);

/// Serves a client that has said CONNECT without naming a broker.
///
/// # Errors
/// Why the connection has ended, unless the client has closed it.
pub async fn serve(
    proxy: &Arc<Proxy>,
    connect: proto::CommandConnect,
    frames: ClientReader,
    write: ClientWriter,
) -> Result<(), ClientError> {
    let (events, mut from_links) = mpsc::channel(EVENTS);
    let mut asking = Asking {
        proxy: proxy.clone(),
        lookups: Lookups::new(connect, Instant::now()),
        links: FxHashMap::default(),
        tasks: JoinSet::new(),
        events,
        outbound: Outbound { write, waiting: BytesMut::new(), unflushed: false },
        held: Held { budget: proxy.held.clone(), bytes: 0 },
    };
    let ended = asking.run(frames, &mut from_links).await;
    // The reason, in the client's words, may still be to be written.
    let _ = tokio::time::timeout(FAREWELL_LIMIT, asking.outbound.finish()).await;
    ended
}

/// What goes to the client.
struct Outbound {
    write: ClientWriter,
    waiting: BytesMut,
    /// Something was written that may still be in the buffers of TLS.
    unflushed: bool,
}

impl Outbound {
    fn is_done(&self) -> bool {
        self.waiting.is_empty() && !self.unflushed
    }

    /// One step of what there is to do. A call that is dropped loses nothing.
    async fn proceed(&mut self) -> std::io::Result<()> {
        if self.waiting.is_empty() {
            self.write.flush().await?;
            self.unflushed = false;
        } else {
            self.write.write_buf(&mut self.waiting).await?;
            self.unflushed = true;
        }
        Ok(())
    }

    async fn finish(&mut self) -> std::io::Result<()> {
        while !self.is_done() {
            self.proceed().await?;
        }
        self.write.shutdown().await
    }
}

struct Asking {
    proxy: Arc<Proxy>,
    lookups: Lookups,
    links: FxHashMap<LinkId, OpenLink>,
    /// Ends all links when dropped.
    tasks: JoinSet<()>,
    events: mpsc::Sender<(LinkId, LinkEvent)>,
    outbound: Outbound,
    held: Held,
}

struct OpenLink {
    outbound: mpsc::Sender<Bytes>,
    task: AbortHandle,
}

impl Asking {
    async fn run(
        &mut self,
        mut frames: ClientReader,
        from_links: &mut mpsc::Receiver<(LinkId, LinkEvent)>,
    ) -> Result<(), ClientError> {
        let mut ticks = tokio::time::interval(TICK);
        self.act()?;
        loop {
            let room = self.outbound.waiting.len() < if self.is_scarce() { HIGH_WATER_SCARCE } else { HIGH_WATER };
            tokio::select! {
                written = self.outbound.proceed(), if !self.outbound.is_done() => written?,
                frame = frames.next(), if room && self.takes_more() => match frame? {
                    Some(frame) => self.lookups.client_sent(frame, Instant::now()).or_else(|end| self.end(end))?,
                    None => return Ok(()),
                },
                Some((link, event)) = from_links.recv(), if room => {
                    self.link_event(link, event).or_else(|end| self.end(end))?;
                }
                _ = ticks.tick() => self.lookups.tick(Instant::now()).or_else(|end| self.end(end))?,
            }
            self.act()?;
        }
    }

    fn is_scarce(&self) -> bool {
        self.held.budget.exhausted()
    }

    /// A client that has nothing under way gets its turn even while the proxy as a whole holds too much.
    fn takes_more(&self) -> bool {
        self.lookups.takes_more() && (self.lookups.held_bytes() == 0 || !self.is_scarce())
    }

    fn link_event(&mut self, link: LinkId, event: LinkEvent) -> Result<(), End> {
        let now = Instant::now();
        match event {
            LinkEvent::Dialed(endpoint) => {
                self.lookups.dialed(link, endpoint, now);
                Ok(())
            }
            LinkEvent::Frame(frame) => self.lookups.broker_sent(link, frame, now),
            LinkEvent::Lost { reason, reached } => {
                self.links.remove(&link);
                self.lookups.lost(link, &reason, reached, now)
            }
        }
    }

    /// What the end has to say still gets into the buffer.
    fn end(&mut self, end: End) -> Result<(), End> {
        self.act()?;
        Err(end)
    }

    fn act(&mut self) -> Result<(), End> {
        // What cannot be sent makes a link lost, of which more may come.
        loop {
            let actions = self.lookups.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.perform(action)?;
            }
        }
        while self.tasks.try_join_next().is_some() {}
        self.held.set(self.lookups.held_bytes() + self.outbound.waiting.len());
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<(), End> {
        match action {
            Action::ToClient(bytes) => self.outbound.waiting.extend_from_slice(&bytes),
            Action::LookedUp(endpoint) => {
                self.proxy.figures.looked_up();
                self.proxy.admission.looked_up(&endpoint, Instant::now());
            }
            Action::Dial(link, target) => {
                let (outbound, receiver) = mpsc::channel(OUTBOUND);
                let running = link::run(self.proxy.clone(), link, target, receiver, self.events.clone());
                let task = self.tasks.spawn(running);
                self.links.insert(link, OpenLink { outbound, task });
            }
            Action::ToBroker(link, bytes) => {
                let sent = self.links.get(&link).map(|link| link.outbound.try_send(bytes));
                if let Some(Err(mpsc::error::TrySendError::Full(_))) = sent {
                    self.hang_up(link);
                    return self.lookups.lost(link, "it does not read", true, Instant::now());
                }
                // A link that has closed says so by an event.
            }
            Action::HangUp(link) => self.hang_up(link),
        }
        Ok(())
    }

    fn hang_up(&mut self, link: LinkId) {
        if let Some(link) = self.links.remove(&link) {
            link.task.abort();
        }
    }
}

/// This connection's part of what the proxy holds for clients that ask.
struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Held {
    fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.take((bytes - self.bytes) as u64);
        } else {
            self.budget.give_back((self.bytes - bytes) as u64);
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes as u64);
    }
}
