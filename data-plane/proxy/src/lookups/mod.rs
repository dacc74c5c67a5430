//! A connection on which a client asks where topics are: a pure state machine.
//!
//! The client has one connection to the proxy; the proxy has, for this client alone, a *link* to one of the configured
//! brokers (its home), and further ones while lookups are redirected to other brokers. Each link is greeted with the
//! client's own CONNECT, so that brokers know for whom they answer. Requests keep the client's ids. A home that is lost is
//! replaced, and what it had not answered is asked again: everything that is asked here may be asked twice.
//!
//! Answers to lookups are rewritten: the broker's address stays, and the client is told to reach it through the proxy.
//!
//! Time and frames come in; what is to be done comes out of [`Lookups::take_actions`].

mod from_brokers;
mod links;
mod redirects;
mod requests;
mod time;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_wire_pulsar::{Command, NO_REQUEST, proto};
use rustc_hash::FxHashSet;
use thiserror::Error;

use crate::answers::Refusal;
use crate::endpoint::Endpoint;
use crate::frame::Frame;
use links::{Links, Stage};
use requests::{Request, Requests};

pub use links::LinkId;

/// A side that is quiet for so long is asked for a sign of life, and given up after twice that.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// From the client's CONNECT, or from the beginning of a link, until the broker has agreed.
pub const GREETING_LIMIT: Duration = Duration::from_secs(30);
/// How often a request is asked again, and a broker greeted, when the broker goes away meanwhile.
const ATTEMPTS: u8 = 3;
/// Challenges of brokers that the client has not answered yet.
const CHALLENGES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    ToClient(Bytes),
    /// Connects a link: to this broker, or to any that is configured.
    Dial(LinkId, Option<Endpoint>),
    ToBroker(LinkId, Bytes),
    HangUp(LinkId),
    /// A broker has named this one: clients may be connected to it.
    LookedUp(Endpoint),
}

/// Why the connection ends. What is to be sent to the client before stands in the actions.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum End {
    #[error("{0} on a connection for lookups")]
    Unexpected(&'static str),
    #[error("request id {0} is used twice")]
    DuplicateRequest(u64),
    #[error("the broker refuses: {0}")]
    Refused(String),
    #[error("no broker can be reached: {0}")]
    NoBroker(String),
    #[error("the broker that topics were watched at is lost: {0}")]
    WatchLost(String),
    #[error("the broker has not agreed in time")]
    GreetingLimit,
    #[error("no sign of life")]
    Silent,
    #[error("the client leaves challenges unanswered")]
    Challenges,
}

pub struct Lookups {
    /// With the newest credentials.
    connect: proto::CommandConnect,
    began: Instant,
    /// The client has been told CONNECTED.
    greeted: bool,
    /// Homes that were lost before they agreed.
    lost_greetings: u8,
    heard: Instant,
    asked_alive: bool,
    links: Links,
    /// Where requests go. There is one from the beginning, and after it is lost from the next request on.
    home: Option<LinkId>,
    requests: Requests,
    /// Watches of topic lists, all at home.
    watches: FxHashSet<u64>,
    /// Who waits for an answer to a challenge, and whether it asks for whole credentials. A link that is lost meanwhile stays
    /// in the row, as the client answers it too.
    challenges: VecDeque<(LinkId, bool)>,
    actions: Vec<Action>,
}

impl Lookups {
    pub fn new(connect: proto::CommandConnect, now: Instant) -> Self {
        let mut new = Self {
            connect,
            began: now,
            greeted: false,
            lost_greetings: 0,
            heard: now,
            asked_alive: false,
            links: Links::default(),
            home: None,
            requests: Requests::default(),
            watches: FxHashSet::default(),
            challenges: VecDeque::new(),
            actions: Vec::new(),
        };
        new.home(now);
        new
    }

    /// What is to be done, in this order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Bytes of requests that wait for an answer.
    pub fn held_bytes(&self) -> usize {
        self.requests.bytes()
    }

    /// Whether the client should be read: false while it has too much under way.
    pub fn takes_more(&self) -> bool {
        self.requests.has_room()
    }

    /// # Errors
    /// When the connection is to end.
    pub fn client_sent(&mut self, frame: Frame, now: Instant) -> Result<(), End> {
        self.heard = now;
        self.asked_alive = false;
        match &frame.command {
            Command::Ping(_) => self.tell(Frame::new(proto::CommandPong {})),
            Command::Pong(_) => {}
            Command::AuthResponse(response) => {
                let response = response.response.clone();
                self.challenge_answered(response, frame.bytes);
            }
            Command::Lookup(_)
            | Command::PartitionedMetadata(_)
            | Command::GetTopicsOfNamespace(_)
            | Command::GetSchema(_)
            | Command::GetOrCreateSchema(_) => self.ask(frame, now)?,
            Command::WatchTopicList(watch) => {
                self.watches.insert(watch.watcher_id);
                self.ask(frame, now)?;
            }
            Command::WatchTopicListClose(close) => {
                self.watches.remove(&close.watcher_id);
                self.ask(frame, now)?;
            }
            Command::Unknown { request_id, .. } => {
                let refusal = Refusal::not_allowed(format!("command {} is not supported", frame.command.label()));
                self.tell(refusal.error(request_id.unwrap_or(NO_REQUEST)));
            }
            other => match other.request_id() {
                Some(request_id) => {
                    let message = format!("{} needs a connection to a broker", other.name());
                    let answer = Refusal::not_allowed(message).answer(other, request_id);
                    self.tell(answer);
                }
                None => return Err(End::Unexpected(other.name())),
            },
        }
        Ok(())
    }

    fn challenge_answered(&mut self, response: Option<proto::AuthData>, bytes: Bytes) {
        let Some((link, whole)) = self.challenges.pop_front() else { return };
        if let (true, Some(response)) = (whole, response) {
            self.connect.auth_data = response.auth_data;
            if response.auth_method_name.is_some() {
                self.connect.auth_method_name = response.auth_method_name;
            }
        }
        if self.links.contains(link) {
            self.actions.push(Action::ToBroker(link, bytes));
        }
    }

    fn ask(&mut self, frame: Frame, now: Instant) -> Result<(), End> {
        let Some(request_id) = frame.command.request_id() else { return Err(End::Unexpected(frame.command.name())) };
        if self.requests.contains(request_id) {
            return Err(End::DuplicateRequest(request_id));
        }
        let link = self.home(now);
        self.requests.insert(request_id, Request::new(frame, link, now));
        self.send(request_id, now);
        Ok(())
    }

    /// Sends a request on its link, once that is ready.
    fn send(&mut self, request_id: u64, now: Instant) {
        let Some(request) = self.requests.get(request_id) else { return };
        let Some(link) = self.links.get_mut(request.link) else { return };
        match link.stage {
            Stage::Ready => {
                link.used = now;
                self.actions.push(Action::ToBroker(request.link, request.frame.bytes.clone()));
            }
            Stage::Dialing | Stage::Greeting => link.waiting.push(request_id),
        }
    }

    /// The link for requests, a new one if there is none.
    fn home(&mut self, now: Instant) -> LinkId {
        if let Some(home) = self.home {
            return home;
        }
        let home = self.links.begin(now);
        self.home = Some(home);
        self.actions.push(Action::Dial(home, None));
        home
    }

    fn fail(&mut self, request_id: u64, refusal: &Refusal) {
        let Some(request) = self.requests.remove(request_id) else { return };
        if let Command::WatchTopicList(watch) = &request.frame.command {
            self.watches.remove(&watch.watcher_id);
        }
        self.tell(refusal.answer(&request.frame.command, request_id));
    }

    fn tell(&mut self, frame: Frame) {
        self.actions.push(Action::ToClient(frame.bytes));
    }
}

#[cfg(test)]
mod tests;
