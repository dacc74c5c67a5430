//! What comes from brokers, and what becomes of it when one is lost.

use std::time::Instant;

use geminga_wire_pulsar::{Command, proto};

use super::links::{LinkId, Stage};
use super::{ATTEMPTS, Action, CHALLENGES_MAX, End, Lookups};
use crate::answers::Refusal;
use crate::endpoint::Endpoint;
use crate::frame::Frame;
use crate::greeting::{asks_for_new_credentials, introduction};

impl Lookups {
    /// A link is connected, to this broker.
    pub fn dialed(&mut self, link: LinkId, endpoint: Endpoint, now: Instant) {
        let Some(found) = self.links.get_mut(link) else { return };
        found.stage = Stage::Greeting;
        found.endpoint = Some(endpoint);
        found.heard = now;
        self.actions.push(Action::ToBroker(link, introduction(&self.connect).bytes));
    }

    /// # Errors
    /// When the connection is to end.
    pub fn broker_sent(&mut self, link: LinkId, frame: Frame, now: Instant) -> Result<(), End> {
        let Some(found) = self.links.get_mut(link) else { return Ok(()) };
        found.heard = now;
        found.asked_alive = false;
        let ready = matches!(found.stage, Stage::Ready);
        match &frame.command {
            Command::Ping(_) => {
                let pong = Frame::new(proto::CommandPong {});
                self.actions.push(Action::ToBroker(link, pong.bytes));
            }
            Command::Pong(_) => {}
            Command::AuthChallenge(challenge) => {
                if self.challenges.len() >= CHALLENGES_MAX {
                    return Err(End::Challenges);
                }
                self.challenges.push_back((link, asks_for_new_credentials(challenge)));
                self.tell(frame);
            }
            Command::Connected(_) if !ready => self.agreed(link, frame, now),
            Command::Error(error) if !ready => {
                let refusal = Refusal::of(error);
                return self.refused(link, &refusal, frame);
            }
            _ if !ready => {
                self.actions.push(Action::HangUp(link));
                return self.lost(link, &format!("it greets with {}", frame.command.name()), true, now);
            }
            Command::LookupResponse(response) => {
                let response = (**response).clone();
                self.looked_up(link, &response, frame, now);
            }
            _ => self.answered(link, frame),
        }
        Ok(())
    }

    /// The broker of a link has accepted the client.
    fn agreed(&mut self, link: LinkId, connected: Frame, now: Instant) {
        if !self.greeted && self.home == Some(link) {
            self.greeted = true;
            self.heard = now;
            self.tell(connected);
        }
        let waiting = match self.links.get_mut(link) {
            Some(found) => {
                found.stage = Stage::Ready;
                std::mem::take(&mut found.waiting)
            }
            None => return,
        };
        for request_id in waiting {
            self.send(request_id, now);
        }
    }

    /// The broker of a link has refused the client: its word is final.
    fn refused(&mut self, link: LinkId, refusal: &Refusal, error: Frame) -> Result<(), End> {
        if !self.greeted {
            self.tell(error);
            return Err(End::Refused(refusal.message.clone()));
        }
        self.actions.push(Action::HangUp(link));
        self.forget(link);
        for request_id in self.requests.of(link) {
            self.fail(request_id, refusal);
        }
        Ok(())
    }

    /// An answer that needs no change.
    fn answered(&mut self, link: LinkId, frame: Frame) {
        if let Command::WatchTopicUpdate(update) = &frame.command {
            if self.home == Some(link) && self.watches.contains(&update.watcher_id) {
                self.tell(frame);
            }
            return;
        }
        let answers = frame.command.request_id().filter(|id| self.requests.get(*id).is_some_and(|r| r.link == link));
        match answers {
            Some(request_id) => {
                let request = self.requests.remove(request_id);
                if let (Command::Error(_), Some(Command::WatchTopicList(watch))) =
                    (&frame.command, request.map(|request| request.frame.command))
                {
                    self.watches.remove(&watch.watcher_id);
                }
                self.tell(frame);
            }
            None => tracing::debug!(command = frame.command.name(), "ignored what a broker sent unasked"),
        }
    }

    /// A link could not be made, or has ended. `reached` says whether its broker had been reached: if not, no other could be
    /// either.
    ///
    /// # Errors
    /// When the connection is to end.
    pub fn lost(&mut self, link: LinkId, reason: &str, reached: bool, now: Instant) -> Result<(), End> {
        if !self.links.contains(link) {
            return Ok(());
        }
        let was_home = self.home == Some(link);
        self.forget(link);
        if was_home && !self.watches.is_empty() {
            return Err(End::WatchLost(reason.to_owned()));
        }
        if !self.greeted {
            self.lost_greetings += 1;
            if !reached || self.lost_greetings >= ATTEMPTS {
                self.tell(Refusal::not_ready(format!("no broker can be reached: {reason}")).greeting());
                return Err(End::NoBroker(reason.to_owned()));
            }
            self.home(now);
        }
        for request_id in self.requests.of(link) {
            let again = self.requests.again(request_id, ATTEMPTS) && (reached || !was_home);
            if again {
                self.move_to_home(request_id, now);
            } else {
                self.fail(request_id, &Refusal::not_ready(format!("the broker is lost: {reason}")));
            }
        }
        Ok(())
    }

    fn move_to_home(&mut self, request_id: u64, now: Instant) {
        let home = self.home(now);
        self.requests.restart_at(request_id, home);
        self.send(request_id, now);
    }

    pub(super) fn forget(&mut self, link: LinkId) {
        self.links.remove(link);
        if self.home == Some(link) {
            self.home = None;
        }
    }
}
