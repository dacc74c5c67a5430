//! What the client has asked and not been answered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::links::LinkId;
use crate::frame::Frame;

/// Beyond either, the client is not read until something was answered.
const REQUESTS_MAX: usize = 1000;
const BYTES_MAX: usize = 1 << 20;
/// Longer than clients wait: an answer after that is of no use.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

pub struct Request {
    /// As it goes to the broker; a redirected lookup is changed.
    pub frame: Frame,
    pub link: LinkId,
    pub redirects: u8,
    attempts: u8,
    since: Instant,
}

impl Request {
    pub fn new(frame: Frame, link: LinkId, now: Instant) -> Self {
        Self { frame, link, redirects: 0, attempts: 1, since: now }
    }
}

/// By the client's request id.
#[derive(Default)]
pub struct Requests {
    requests: BTreeMap<u64, Request>,
    bytes: usize,
}

impl Requests {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn has_room(&self) -> bool {
        self.requests.len() < REQUESTS_MAX && self.bytes < BYTES_MAX
    }

    pub fn contains(&self, request_id: u64) -> bool {
        self.requests.contains_key(&request_id)
    }

    pub fn get(&self, request_id: u64) -> Option<&Request> {
        self.requests.get(&request_id)
    }

    pub fn insert(&mut self, request_id: u64, request: Request) {
        self.bytes += request.frame.bytes.len();
        let before = self.requests.insert(request_id, request);
        debug_assert!(before.is_none(), "request id {request_id} is used twice");
    }

    pub fn remove(&mut self, request_id: u64) -> Option<Request> {
        let request = self.requests.remove(&request_id)?;
        self.bytes -= request.frame.bytes.len();
        Some(request)
    }

    /// Goes on with a lookup at another broker.
    pub fn redirect(&mut self, request_id: u64, frame: Frame, link: LinkId) {
        let Some(mut request) = self.remove(request_id) else { return };
        request.frame = frame;
        request.link = link;
        request.redirects += 1;
        self.insert(request_id, request);
    }

    /// Whether a request whose broker is lost may be asked again; counts it.
    pub fn again(&mut self, request_id: u64, limit: u8) -> bool {
        let Some(request) = self.requests.get_mut(&request_id) else { return false };
        request.attempts += 1;
        request.attempts <= limit
    }

    pub fn restart_at(&mut self, request_id: u64, link: LinkId) {
        if let Some(request) = self.requests.get_mut(&request_id) {
            request.link = link;
        }
    }

    /// Those on a link, by their ids, which clients count up.
    pub fn of(&self, link: LinkId) -> Vec<u64> {
        self.requests.iter().filter(|(_, request)| request.link == link).map(|(id, _)| *id).collect()
    }

    pub fn any_at(&self, link: LinkId) -> bool {
        self.requests.values().any(|request| request.link == link)
    }

    pub fn overdue(&self, now: Instant) -> Vec<u64> {
        let overdue = |request: &Request| now.saturating_duration_since(request.since) >= ANSWER_LIMIT;
        self.requests.iter().filter(|(_, request)| overdue(request)).map(|(id, _)| *id).collect()
    }
}
