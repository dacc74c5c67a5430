//! Connections to brokers on behalf of one client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{GREETING_LIMIT, KEEP_ALIVE};
use crate::endpoint::Endpoint;

/// A link beside home is given up when nothing was asked on it for so long.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Numbers links; none is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Dialing,
    /// CONNECT is sent.
    Greeting,
    Ready,
}

pub struct Link {
    pub stage: Stage,
    /// The broker that is asked for, or that was reached.
    pub endpoint: Option<Endpoint>,
    /// Requests to be sent once it is ready, in this order.
    pub waiting: Vec<u64>,
    began: Instant,
    pub heard: Instant,
    pub asked_alive: bool,
    /// When something was asked on it last.
    pub used: Instant,
}

#[derive(Default)]
pub struct Links {
    next: u64,
    links: BTreeMap<LinkId, Link>,
}

impl Links {
    pub fn begin(&mut self, now: Instant) -> LinkId {
        let id = LinkId(self.next);
        self.next += 1;
        let link = Link {
            stage: Stage::Dialing,
            endpoint: None,
            waiting: Vec::new(),
            began: now,
            heard: now,
            asked_alive: false,
            used: now,
        };
        self.links.insert(id, link);
        id
    }

    pub fn contains(&self, id: LinkId) -> bool {
        self.links.contains_key(&id)
    }

    pub fn get(&self, id: LinkId) -> Option<&Link> {
        self.links.get(&id)
    }

    pub fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(&id)
    }

    pub fn remove(&mut self, id: LinkId) {
        self.links.remove(&id);
    }

    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// The link to this broker.
    pub fn at(&self, endpoint: &Endpoint) -> Option<LinkId> {
        self.links.iter().find(|(_, link)| link.endpoint.as_ref() == Some(endpoint)).map(|(id, _)| *id)
    }

    /// Links that are quiet, and count as asked for a sign of life from now on.
    pub fn begin_asking(&mut self, now: Instant) -> Vec<LinkId> {
        let quiet = self.links.iter_mut().filter(|(_, link)| {
            link.stage == Stage::Ready && !link.asked_alive && now.saturating_duration_since(link.heard) >= KEEP_ALIVE
        });
        quiet
            .map(|(id, link)| {
                link.asked_alive = true;
                *id
            })
            .collect()
    }

    /// Links that have not become ready in time, or do not answer.
    pub fn overdue(&self, now: Instant) -> Vec<LinkId> {
        let overdue = |link: &Link| match link.stage {
            Stage::Ready => now.saturating_duration_since(link.heard) >= 2 * KEEP_ALIVE,
            Stage::Dialing | Stage::Greeting => now.saturating_duration_since(link.began) >= GREETING_LIMIT,
        };
        self.links.iter().filter(|(_, link)| overdue(link)).map(|(id, _)| *id).collect()
    }

    /// Links that nobody needs any more; `needed` ones are not among them.
    pub fn idle(&self, now: Instant, needed: impl Fn(LinkId) -> bool) -> Vec<LinkId> {
        let idle = |link: &Link| now.saturating_duration_since(link.used) >= IDLE_LIMIT;
        self.links.iter().filter(|(id, link)| idle(link) && !needed(**id)).map(|(id, _)| *id).collect()
    }
}
